"""The JSON Schema of recipes in a validator of another language: it takes the gallery and refuses what a schema can see."""

import json
import pathlib
import re

import jsonschema
import yaml

BROKEN = pathlib.Path("tests/broken")

# Broken recipes whose mistake a schema can see. The others need the stages that references lead to, the parameters, the
# places of keys given twice, or the disk.
SEEN = """
    bad_choice bad_choice_stranger bad_stage_names device_unknown dropout_of_one empty empty_list_of_models
    empty_mapping_of_models empty_stages empty_stages_mapping fraction_for_a_count hidden_kind just_a_text
    kind_as_a_list list_for_a_number list_for_a_stage missing_port missing_source missing_version
    models_in_a_list_of_lists name_is_a_number negative_learning_rate negative_seed no_kind no_stages not_a_mapping
    number_for_a_text number_in_quotes only_comments output_is_a_text output_unknown_format output_unknown_word
    output_without_to parameters_that_make_no_sense params_as_a_list port_is_nothing reference_to_a_stranger
    select_of_an_unknown_metric several_mistakes source_bad_pin source_empty source_empty_list source_number
    source_unknown_word stage_is_a_text stage_is_nothing stages_as_a_list stop_if_as_a_text stop_if_of_nothing
    stop_if_of_unknown_words stop_if_without_limits test_of_one_and_a_half test_of_zero text_for_a_number
    text_for_a_truth unclosed_parameter unknown_field unknown_field_stranger unknown_kind unknown_kind_stranger
    unknown_top_key unknown_top_key_stranger unknown_version version_as_text zero_epochs zero_rank zero_threads
""".split()


class Core(yaml.SafeLoader):
    """YAML 1.2's core schema, which Levain reads: `yes` is a text, `2e-4` a number."""


Core.yaml_implicit_resolvers = {}
for tag, pattern, first in [
    ("null", r"^(null|Null|NULL|~|)$", ["n", "N", "~", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", list("-+.0123456789")),
]:
    Core.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), first)


def main():
    schema = json.loads(pathlib.Path("schemas/recipe.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    gallery = sorted(pathlib.Path("recipes").rglob("*.yaml"))
    assert gallery, "the gallery is empty"
    for path in gallery:
        errors = [f"{path}: {'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(yaml.load(path.read_text(), Core))]
        assert not errors, "\n".join(errors)
    assert len(SEEN) > 40
    for name in SEEN:
        path = BROKEN / f"{name}.yaml"
        assert not validator.is_valid(yaml.load(path.read_text(), Core)), f"{path}: the schema takes a broken recipe"
    print(f"jsonschema takes {len(gallery)} recipes and refuses {len(SEEN)} broken ones")


main()

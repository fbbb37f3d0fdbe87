//! What is made from the contracts and checked in beside them: the JSON Schema of recipes and the manual of kinds.
//!
//! `UPDATE=1 cargo test --test schema` writes both anew.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Compares `text` with the file, or writes it when asked to.
fn compare(path: &Path, text: &str) {
    if std::env::var_os("UPDATE").is_some_and(|v| v == "1") {
        std::fs::create_dir_all(path.parent().expect("a file has a folder")).unwrap();
        std::fs::write(path, text).unwrap();
        return;
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let line = found.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or(found.lines().count().min(text.lines().count()));
    assert!(
        found == text,
        "{}:{} is not what the contracts say; write it anew with `UPDATE=1 cargo test --test schema`",
        path.display(),
        line + 1
    );
}

fn schema() -> serde_json::Value {
    engine::schema::recipe_schema(kinds::contracts())
}

#[test]
fn the_schema_is_the_one_that_is_checked_in() {
    compare(&root().join("schemas/recipe.schema.json"), &format!("{:#}\n", schema()));
}

#[test]
fn the_manual_of_kinds_is_the_one_that_is_checked_in() {
    compare(&root().join("docs/kinds.md"), &engine::manual::markdown(kinds::contracts()));
}

/// A recipe as a schema sees it: YAML's tree.
fn tree(text: &str) -> serde_json::Value {
    engine::recipe::yaml::parse(text, 0).expect("readable YAML").0.to_value()
}

#[test]
fn the_schema_is_one_and_takes_every_recipe_of_the_gallery() {
    let validator = jsonschema::draft202012::new(&schema()).expect("a schema of draft 2020-12");
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        count += 1;
        let instance = tree(&std::fs::read_to_string(&path).unwrap());
        let errors: Vec<String> = validator.iter_errors(&instance).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{}: {}", path.display(), errors.join("\n"));
    }
    assert!(count > 0, "the gallery is empty");
}

#[test]
fn every_example_of_the_manual_is_taken_by_the_schema() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    for contract in kinds::contracts().kinds {
        let indented: String = contract.example.lines().map(|l| format!("  {l}\n")).collect();
        let instance = tree(&format!("levain: 1\nstages:\n{indented}"));
        let errors: Vec<String> = validator.iter_errors(&instance).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "the example of `{}`: {}", contract.kind, errors.join("\n"));
    }
}

#[test]
fn parameters_may_stand_wherever_a_value_may() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let recipe = "levain: 1\nseed: '${params.s}'\nparams: { s: 1, lr: 1.0e-4, from: a }\nstages:\n  \
        rows: { kind: load_dataset, source: 'data/${params.from}.json', format: '${params.f}' }\n  \
        halves: { kind: split, data: rows, test: '${params.t}', seed: '${params.s}' }\n";
    assert!(validator.is_valid(&tree(recipe)));
}

#[test]
fn mistakes_that_a_schema_can_see_are_seen() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let rows = "rows: { kind: load_dataset, source: a.json }";
    for broken in [
        "".to_owned(),
        "levain: 2\nstages:\n  rows: { kind: load_dataset, source: a }\n".to_owned(),
        format!("stages:\n  {rows}\n"),
        "levain: 1\n".to_owned(),
        "levain: 1\nstages: {}\n".to_owned(),
        "levain: 1\nstages: []\n".to_owned(),
        format!("levain: 1\nstage:\n  {rows}\n"),
        "levain: 1\nstages:\n  rows: { kind: load_datasets, source: a }\n".to_owned(),
        "levain: 1\nstages:\n  rows: { source: a }\n".to_owned(),
        "levain: 1\nstages:\n  rows: { kind: load_dataset }\n".to_owned(),
        "levain: 1\nstages:\n  rows: { kind: load_dataset, source: a, formt: text }\n".to_owned(),
        "levain: 1\nstages:\n  rows: { kind: load_dataset, source: a, format: csv }\n".to_owned(),
        "levain: 1\nstages:\n  rows: { kind: load_dataset, source: { frm: a } }\n".to_owned(),
        "levain: 1\nstages:\n  rows: { kind: load_dataset, source: { from: a, blake3: abc } }\n".to_owned(),
        "levain: 1\nstages:\n  1rows: { kind: load_dataset, source: a }\n".to_owned(),
        format!("levain: 1\nstages:\n  {rows}\n  h: {{ kind: split, data: rows, test: 1.5 }}\n"),
        format!("levain: 1\nstages:\n  {rows}\n  h: {{ kind: split, data: rows, test: 0 }}\n"),
        format!("levain: 1\nstages:\n  {rows}\n  h: {{ kind: split, data: [rows] }}\n"),
        format!("levain: 1\nstages:\n  {rows}\n  h: {{ kind: split, data: 'two words' }}\n"),
        format!("levain: 1\nseed: -1\nstages:\n  {rows}\n"),
        format!("levain: 1\ndevice: tpu\nstages:\n  {rows}\n"),
        format!("levain: 1\nthreads: 0\nstages:\n  {rows}\n"),
        format!("levain: 1\nstages:\n  {rows}\noutputs:\n  o: {{ from: rows }}\n"),
        format!("levain: 1\nstages:\n  {rows}\noutputs:\n  o: {{ from: rows, to: out, format: zip }}\n"),
        format!("levain: 1\nstages:\n  {rows}\noutputs:\n  o: {{ from: rows, to: out, as: zip }}\n"),
    ] {
        assert!(!validator.is_valid(&tree(&broken)), "the schema takes this broken recipe:\n{broken}");
    }
}

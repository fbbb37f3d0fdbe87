//! `load_classifier`: a classifier's files outside → a classifier in the cache.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, FieldType, Inputs, Literal, Need, Output, Pool, Port, Repeatable, no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::load_model::DTYPES;
use crate::words::field;

/// The type of a whole model's weights unless given.
const USUAL_DTYPE: &str = "bf16";

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadClassifier {
    /// As written; the files come with the job.
    pub source: Value,
    /// `bf16` or `f32`; of whole models only.
    pub dtype: Option<String>,
    /// Names of the classes, in the order of the head's rows.
    pub labels: Option<Vec<String>>,
    /// The files were made for another model than `model`, and that is meant.
    pub other_base: bool,
}

impl LoadClassifier {
    /// The type of a whole model's weights.
    pub fn dtype(&self) -> &str {
        self.dtype.as_deref().unwrap_or(USUAL_DTYPE)
    }
}

/// What does nothing beside `model`, or without it.
fn fits(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let based = !(inputs.names)("model").is_empty();
    let typed = params.get("dtype").is_some_and(|dtype| !dtype.is_null());
    let other = params.get("other_base").and_then(Value::as_bool) == Some(true);
    let mut problems = Vec::new();
    if based && typed {
        let message = "the weights are those of `model`, in the type that it was loaded with: leave `dtype` out";
        problems.push(("dtype", message.to_owned()));
    }
    if !based && other {
        let message = "`other_base` is about `model`, and there is none: leave it out";
        problems.push(("other_base", message.to_owned()));
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "load_classifier",
    version: 1,
    about: "Reads a classifier, or a head alone: a folder of transformers' AutoModelForSequenceClassification, or one that Levain exported.",
    manual: "\
The result is what `classifier` and `head` give, and `classify` measures it. These folders are read:

| folder | what it is | `model` |
|---|---|---|
| `config.json`, `model.safetensors` (or its index and shards) with `classifier.weight` and `classifier.bias` | `BertForSequenceClassification` | |
| the same with `score.weight` | `LlamaForSequenceClassification`: the last token's state, no bias | |
| `head.json`, `head.safetensors` and a whole model | an export of `classifier`, of any `pooling` and `hidden` | |
| `head.json`, `head.safetensors`, `adapter_config.json` and the adapter's tensors | an export of `classifier` on an adapter | the adapter's base |
| `head.json`, `head.safetensors` | an export of `head`, or of `classifier` on quantized weights | the model whose vectors it takes |

Where there is `head.json` it says what the head is. Else `config.json` does: `id2label` has the names of the classes by the rows of the head's weight (without one
they are LABEL_0 and LABEL_1, as transformers has it), and `problem_type` the task; without that, a head of one row tells a number. `label2id` is not looked
at, as in transformers. Labels must be those of the texts that are measured: where the file says LABEL_0 and the texts say `neg`, give `labels: [neg, pos]`.

Refused are: an adapter of PEFT without `head.json`, since PEFT writes down no labels (`merge_and_unload` it and save the whole classifier); several labels at a time
(`multi_label_classification`); regression of several numbers; other classes of transformers, such as those that label tokens; pickled weights; GGUF files. Every tensor
must be there with its shape, no other may be, and labels must be as many as the rows, each of them once.

An export of an adapter or of a head alone names its model in `levain_base.json`, as those of `load_adapter` do: where `model` is another one the stage
fails, unless `other_base: true` says that it is meant.

The head is kept in f32 in a file of its own, and the model under it in files without the head, which are the same bytes wherever the head stood apart already. To go on
training from a loaded head is not possible: `classifier` puts a fresh head on a model.",
    example: "theirs: { kind: load_classifier, source: models/sentiment, labels: [neg, pos] }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "source",
            FieldType::Source,
            Need::Required,
            "A folder, `hf://owner/name@revision` or an archive; `{ from: [a, b], blake3: … }` lists alternatives and pins the content.",
        ),
        field(
            "dtype",
            DTYPES,
            Need::Optional,
            "The type of the weights and activations of a whole model, bf16 unless given; the head is in f32 always.",
        ),
        field(
            "labels",
            FieldType::List {
                of: &FieldType::Text,
                min: 2,
            },
            Need::Optional,
            "The names of the classes in the order of the rows of the head's weight, instead of those that the files say.",
        ),
        field(
            "other_base",
            FieldType::Bool,
            Need::Default(Literal::Bool(false)),
            "Take the files although they say that they were made for other weights than those of `model`.",
        ),
    ],
    ports: &[Port {
        name: "model",
        accepts: &[ArtifactType::Model],
        arity: Arity::Optional,
        layouts: &[],
        doc: "The model that the files leave out: an adapter's base, or that whose vectors a head takes. Of a whole classifier none.",
    }],
    outputs: &[Output::new(
        "model",
        ArtifactType::Classifier,
        "The model with its head.",
    )],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: Some(fits),
    memory: None,
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::known::tests::places;

    #[test]
    fn what_is_of_no_use_is_refused() {
        let none: [&str; 0] = [];
        let model = [("model", "m", json!({}))];
        let typed = json!({ "dtype": "f32", "other_base": false });
        assert_eq!(places(fits, typed.clone(), &[]), none);
        assert_eq!(places(fits, typed, &model), ["dtype"]);
        let other = json!({ "dtype": null, "other_base": true });
        assert_eq!(places(fits, other.clone(), &[]), ["other_base"]);
        assert_eq!(places(fits, other, &model), none);
    }
}

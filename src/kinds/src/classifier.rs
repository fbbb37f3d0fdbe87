//! `classifier`: a model with a head for labels or numbers, trained end to end.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, From, Inputs, Output, Pool, Port, Preparation, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::features::POOLING;
use crate::head::{ACTIVATION, DROPOUT, HIDDEN, TASK, fits_head, names, told};
use crate::lists::fields;
use crate::tokenize_labelled::{FIELDS, MAX_LENGTH, TEXTS, TRUNCATION, labelled};
use crate::training::{RUNNING, Training, learning};
use crate::{known, memory};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Classifier {
    /// What every training has.
    #[serde(flatten)]
    pub training: Training,
    /// See `head`.
    pub task: String,
    /// See `features`.
    pub pooling: String,
    /// See `head`.
    pub hidden: Vec<usize>,
    /// See `head`.
    pub activation: String,
    /// See `head`.
    pub dropout: f64,
    /// See `tokenize_labelled`.
    pub max_length: usize,
    /// See `tokenize_labelled`.
    pub truncation: String,
}

fn metrics(params: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let own = ["first_loss", "last_loss", "steps", "tokens"];
    names(&own, params, named)
}

/// A training of weights that can't be trained, but that of the head alone.
fn trains(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let mut mistakes = known::trains_port(params, inputs, "model");
    if params.get("train").and_then(Value::as_str) == Some("head") {
        mistakes.retain(|(field, _)| *field != "model");
    }
    mistakes
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "classifier",
    version: 2,
    about: "Trains a model with a head for labels or numbers, end to end.",
    manual: "\
The head is that of `head`, with the same losses and the same measures on `test`, on the vector that `pooling` makes of a text as in `features`; but
the model learns as well: its adapter, or without one what `train` says (`train: head` leaves the model as it is). A fresh head is
uniform in ±1/√inputs, its biases 0, that of a regression's result the mean of the training labels. Dropout is before each layer of the head.

Two shapes are those of transformers, whose `AutoModelForSequenceClassification` opens the files and gives the same results, with
`id2label`, `label2id` and `problem_type` in config.json:

| model | `pooling` | `hidden` | files |
|---|---|---|---|
| BERT | `pooler` | none | `BertForSequenceClassification`: `classifier.weight`, `classifier.bias` |
| Llama | `last` | none | `LlamaForSequenceClassification`: `score.weight`; this head has no bias |

The weights are in two files with an index. With an adapter the files are PEFT's, with `task_type: SEQ_CLS` and the head under `modules_to_save`.
transformers takes the state of a Llama's last token that is not padding, so a text should not end with the padding token. Any other shape
keeps the model's files as they were, and the head in `head.safetensors` beside them, which transformers does not open; `head.json` says
what the head is, in every case.

`train` and `learning_rates` name the head's parameters as the files do: `classifier` and `score` in these two shapes, else `head`, with layers `head.0`,
`head.1`…; the head learns whatever `train` says.

`classify` applies a classifier to texts, and `load_classifier` reads what was exported. A head is always a fresh one: going on from a trained head is not
possible. Fields of optimizers are explained under `sft`.",
    example: "tuned: { kind: classifier, model: base, data: halves.train, test: halves.test, pooling: pooler, learning_rate: 5.0e-5 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &[TASK, POOLING, HIDDEN, ACTIVATION, DROPOUT],
        &learning(5e-5),
        &[MAX_LENGTH, TRUNCATION],
        &RUNNING,
    ],
    ports: &[
        Port {
            name: "model",
            accepts: &[ArtifactType::Model],
            arity: Arity::One,
            layouts: &[],
            doc: "The model that gets the head.",
        },
        labelled("data", Arity::One, "Texts with labels to train on."),
        labelled("test", Arity::Optional, "Held-out texts to measure on."),
    ],
    outputs: &[
        Output::new("model", ArtifactType::Classifier, "The model with its head.").keeps_tokenizer_of("model").foreseen(told),
        Output::new("metrics", ArtifactType::Metrics, "Loss and accuracy of each step, and what was measured on `test`.").metrics(metrics),
    ],
    preparations: &[
        TEXTS,
        Preparation {
            name: "test_tokens",
            kind: "tokenize_labelled",
            inputs: &[("tokenizer", From::TokenizerOf("model")), ("data", From::Port("test"))],
            fields: &FIELDS,
            replaces: &[],
        },
    ],
    layout: None,
    check: fits_head,
    check_inputs: Some(trains),
    memory: Some(memory::of_texts),
};

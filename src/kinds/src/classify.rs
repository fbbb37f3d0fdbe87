//! `classify`: what heads and classifiers say of texts, measured against the labels.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, From, Output, Pool, Port, Preparation, Repeatable, no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::features::FORWARD_BATCH;
use crate::head::{TASK, measured};
use crate::tokenize_labelled::{FIELDS, MAX_LENGTH, TRUNCATION, labelled};
use crate::words::each;

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classify {
    /// What the models were trained for.
    pub task: String,
    /// See `tokenize_labelled`.
    pub max_length: usize,
    /// See `tokenize_labelled`.
    pub truncation: String,
    /// Texts at once.
    pub micro_batch: usize,
}

fn names(params: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    each(&named("models"), measured(params))
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "classify",
    version: 1,
    about: "Measures heads and classifiers on labelled texts, side by side.",
    manual: "\
Each model says of each text which label it has, or which number: a `classifier` as it is, a `head` on the vectors that its model makes of
the texts. What is measured is explained under `head`; numbers bear the models' names, `tuned.accuracy`. `max_length` should be that of the training.
`predictions.jsonl` has a line for each row: its place in the data, its label, and of each model the prediction and (of labels) its probability.",
    example: "table: { kind: classify, models: { probe: probe, tuned: tuned }, data: held_out, max_length: 128 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[TASK, MAX_LENGTH, TRUNCATION, FORWARD_BATCH],
    ports: &[
        Port {
            name: "models",
            accepts: &[ArtifactType::Classifier],
            arity: Arity::Many,
            layouts: &[],
            doc: "Heads and classifiers: one, a list, or a mapping from the names that the report uses.",
        },
        labelled("data", Arity::One, "The texts with their labels."),
    ],
    outputs: &[Output::new(
        "metrics",
        ArtifactType::Metrics,
        "Numbers and predictions.",
    )
    .metrics(names)],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize_labelled",
        inputs: &[
            ("tokenizer", From::TokenizerOf("models")),
            ("data", From::Port("data")),
        ],
        fields: &FIELDS,
        replaces: &[],
    }],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

//! `classify`: what heads and classifiers say of texts, measured against the labels.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, From, Inputs, Output, Pool, Port, Preparation, Repeatable, no_check,
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

/// Models that were trained for the other task.
fn fits(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let asked = params.get("task").and_then(Value::as_str);
    let models = (inputs.known)("models").into_iter();
    let others = models.filter_map(|(stage, known)| {
        let task = known.get("task")?.as_str()?;
        let message = format!(
            "`{stage}` was trained for {task}: say `task: {task}`, or leave it out of this stage"
        );
        (asked != Some(task)).then_some(("task", message))
    });
    others.collect()
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "classify",
    version: 2,
    about: "Measures heads and classifiers on labelled texts, side by side.",
    manual: "\
Each model says of each text which label it has, or which number: a `classifier` as it is, a `head` on the vectors that its model makes of
the texts. What is measured is explained under `head`; numbers bear the models' names, `tuned.accuracy`. `max_length` should be that of the training: where
another cuts texts otherwise, a note says so. Labels are those of the training, `1` for `1.0` and without white space around them.
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
    check_inputs: Some(fits),
    memory: None,
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::known::tests::said;

    #[test]
    fn models_for_the_other_task_are_named() {
        let of = |task: &str, facts: Value| {
            let fields = json!({ "task": task });
            said(fits, fields, &[("models", "probe", facts)])
        };
        let number = json!({ "task": "regression" });
        assert!(of("regression", number.clone()).is_empty());
        assert!(of("classification", json!({})).is_empty());
        let found = of("classification", number);
        assert_eq!(found[0].0, "task");
        assert!(
            found[0].1.starts_with("`probe` was trained for regression"),
            "{found:?}"
        );
    }
}

//! `select`: the best of several, by a metric.

use engine::contract::{Arity, Choice, Contract, FieldType, Need, Output, Pool, Port, Repeatable};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{METRICS, NUMBER, any, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The name of a number.
    pub metric: String,
    /// `min` or `max`.
    pub goal: String,
    /// The least number of a candidate that may win.
    pub at_least: Option<f64>,
    /// The greatest number of a candidate that may win.
    pub at_most: Option<f64>,
}

fn check(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let limit = |name: &str| params.get(name).and_then(Value::as_f64);
    match (limit("at_least"), limit("at_most")) {
        (Some(least), Some(most)) if least > most => vec![(
            "at_least",
            format!("`at_least` is not above `at_most`, which is {most}: {least}"),
        )],
        _ => Vec::new(),
    }
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "select",
    version: 2,
    about: "Picks the best of several by a metric: a roll-back, an early stop, the winner of a matrix.",
    manual: "\
The output is the very artifact that wins, with its digest; of equals the first wins. Candidates are of one type. `metrics` is
either one artifact that has a number for each candidate under its name (`tuned.loss`, as an `evaluate` of the same mapping gives),
or one artifact for each candidate: that of its name, or of its place where the two sides share no names. A number that is not
there, and one that is not a number (a loss that went astray), is an error.

With `at_most` or `at_least` only candidates within these limits can win, so that `metric: policy.kl, goal: max, at_most: 3` picks the
round that went furthest within a budget of 3 nats. When none is within them, the stage fails and says what the numbers are.",
    example: "best: { kind: select, candidates: \"align[*].tuned\", metrics: scores, metric: loss, goal: min }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "metric",
            FieldType::Metric { of: "metrics", each: Some("candidates") },
            Need::Required,
            "The name of the number, without the candidate's: `loss`.",
        ),
        field(
            "goal",
            FieldType::Choice(&[
                Choice { word: "min", doc: "the least number wins" },
                Choice { word: "max", doc: "the greatest number wins" },
            ]),
            Need::Required,
            "Which number wins.",
        ),
        field("at_least", NUMBER, Need::Optional, "The least number that can win."),
        field("at_most", NUMBER, Need::Optional, "The greatest number that can win."),
    ],
    ports: &[
        any("candidates", Arity::Many, "What there is to pick from: a mapping, a list, or every round as `align[*].tuned`."),
        Port { name: "metrics", arity: Arity::Many, doc: "Where the numbers are: one for all, or one for each.", ..METRICS },
    ],
    outputs: &[Output::same("best", "candidates", "The candidate that won.")],
    preparations: &[],
    layout: None,
    check,
    check_inputs: None,
    memory: None,
};

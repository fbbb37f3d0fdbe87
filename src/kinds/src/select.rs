//! `select`: the best of several, by a metric.

use engine::contract::{
    Arity, Choice, Contract, FieldType, Need, Output, Pool, Port, Repeatable, no_check,
};
use serde::Deserialize;

use crate::words::{METRICS, any, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The name of a number.
    pub metric: String,
    /// `min` or `max`.
    pub goal: String,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "select",
    version: 1,
    about: "Picks the best of several by a metric: a roll-back, an early stop, the winner of a matrix.",
    manual: "\
The output is the very artifact that wins, with its digest; of equals the first wins. Candidates are of one type. `metrics` is
either one artifact that has a number for each candidate under its name (`tuned.loss`, as an `evaluate` of the same mapping gives),
or one artifact for each candidate: that of its name, or of its place where the two sides share no names. A number that is not
there, and one that is not a number (a loss that went astray), is an error.",
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
    ],
    ports: &[
        any("candidates", Arity::Many, "What there is to pick from: a mapping, a list, or every round as `align[*].tuned`."),
        Port { name: "metrics", arity: Arity::Many, doc: "Where the numbers are: one for all, or one for each.", ..METRICS },
    ],
    outputs: &[Output::same("best", "candidates", "The candidate that won.")],
    preparations: &[],
    layout: None,
    check: no_check,
    memory: None,
};

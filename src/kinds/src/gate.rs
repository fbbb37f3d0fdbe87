//! `gate`: anything goes through as it is, or the run ends here.

use engine::contract::{Arity, Contract, FieldType, Need, Output, Pool, Port, Repeatable};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{METRICS, NUMBER, any, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// The name of a number.
    pub metric: String,
    /// The least that goes through.
    pub min: Option<f64>,
    /// The greatest that goes through.
    pub max: Option<f64>,
}

fn check(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let limit = |name: &str| params.get(name).and_then(Value::as_f64);
    match (limit("min"), limit("max")) {
        (None, None) => vec![(
            "metric",
            "a gate without limits lets everything through: write `min`, `max` or both".to_owned(),
        )],
        (Some(min), Some(max)) if min > max => {
            vec![(
                "min",
                format!("`min` is at most `max`, which is {max}, not {min}"),
            )]
        }
        _ => Vec::new(),
    }
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "gate",
    version: 1,
    about: "Lets something through when a metric is within its limits, and fails when it is not.",
    manual: "\
The output is the very artifact of `input`, with its digest: what comes after it has the same keys as without the gate. A number that
is not there, and one that is not a number (a loss that went astray), does not go through.",
    example: "good: { kind: gate, input: tuned, metrics: scores, metric: tuned.loss, max: 2.0 }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "metric",
            FieldType::Metric { of: "metrics", each: None },
            Need::Required,
            "The name of the number: what `levain show` lists, such as `tuned.loss` of an evaluation or `last_loss` of a training.",
        ),
        field("min", NUMBER, Need::Optional, "The least number that goes through."),
        field("max", NUMBER, Need::Optional, "The greatest number that goes through."),
    ],
    ports: &[
        any("input", Arity::One, "What goes through."),
        Port { name: "metrics", arity: Arity::One, doc: "Where the number is.", ..METRICS },
    ],
    outputs: &[Output::same("output", "input", "What went in.")],
    preparations: &[],
    layout: None,
    check,
    check_inputs: None,
    memory: None,
};

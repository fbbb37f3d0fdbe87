//! The one stream of events that a run produces; terminal, log, TensorBoard and reports are readers of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::diagnostic::Place;
use crate::digest::Digest;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the run began.
    pub at: u64,
    /// The stage, or `owner › preparation`; none for the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The run begins; said once.
    Planned {
        /// The recipe's name.
        recipe: String,
        /// (stage, verdict) in the order of the plan.
        stages: Vec<(String, crate::plan::Verdict)>,
    },
    /// The stage's work begins.
    Started {
        /// Its kind.
        kind: String,
        /// Its key.
        key: Digest,
    },
    /// The stage's outputs were in the cache.
    Hit {
        /// Its key.
        key: Digest,
    },
    /// How far the stage is.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all; 0 when unknown.
        total: u64,
        /// `rows`, `steps`, `tokens`, `bytes`.
        unit: String,
        /// What a second brought lately, with its unit, such as (730.0, "tokens/s").
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate: Option<(f64, String)>,
    },
    /// Numbers of one step.
    Metrics {
        /// The step they belong to.
        step: u64,
        /// Name to value; what is not a number is null in JSON.
        #[serde(deserialize_with = "numbers_or_null")]
        values: BTreeMap<String, f64>,
    },
    /// A text worth seeing, such as a sampled answer.
    Sample {
        /// What it is.
        title: String,
        /// The text.
        text: String,
    },
    /// A remark.
    Note {
        /// How grave.
        level: Level,
        /// The remark.
        text: String,
    },
    /// The stage waits for a person.
    Waiting {
        /// What for, and how to go on.
        reason: String,
    },
    /// The stage's outputs are in the cache.
    Finished {
        /// Output name to artifact.
        outputs: BTreeMap<String, Digest>,
        /// How long it worked.
        milliseconds: u64,
    },
    /// The stage failed.
    Failed {
        /// The cause and the way out.
        error: String,
        /// Where the recipe says what failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        place: Option<Place>,
    },
    /// The stage did not run, because of what happened before it.
    Skipped {
        /// Why.
        reason: String,
    },
    /// The run is over; said once, last.
    Ended {
        /// Stages that ran.
        ran: usize,
        /// Stages found in the cache.
        hits: usize,
        /// Stages that failed.
        failed: usize,
        /// Stages that wait for a person.
        waiting: usize,
        /// Stages that did not run.
        skipped: usize,
        /// How long it all took.
        milliseconds: u64,
    },
}

/// How grave a note is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Good to know.
    Info,
    /// Likely a mistake.
    Warning,
}

/// A reader of the stream. It returns nothing: failing to report may not fail the run.
pub trait Sink: Send {
    /// Takes one event.
    fn emit(&mut self, event: &Event);
}

/// A metric, sample or JSON value that a reader shows; kept here so that readers agree on the text.
pub fn number_text(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if value.abs() >= 1e-3 && value.abs() < 1e6 {
        format!("{value:.4}")
    } else {
        format!("{value:.3e}")
    }
}

/// The event as one line of `events.jsonl`.
pub fn to_line(event: &Event) -> String {
    serde_json::to_string(event).unwrap_or_default()
}
/// JSON has no infinities and no NaN, and a loss that went astray must not stop the reader.
fn numbers_or_null<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<BTreeMap<String, f64>, D::Error> {
    let values: BTreeMap<String, Option<f64>> = serde::Deserialize::deserialize(from)?;
    let number = |(name, value): (String, Option<f64>)| (name, value.unwrap_or(f64::NAN));
    Ok(values.into_iter().map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_stays_what_it_is() {
        let values = [("loss".to_owned(), f64::INFINITY), ("kl".to_owned(), 0.5)];
        let what = What::Metrics {
            step: 3,
            values: values.into(),
        };
        let text = serde_json::to_string(&what).unwrap();
        let What::Metrics { step, values } = serde_json::from_str(&text).unwrap() else {
            panic!("{text}")
        };
        assert_eq!((step, values["kl"]), (3, 0.5));
        assert!(values["loss"].is_nan());
    }
}

//! Toy kinds that weigh things, hand them on, and pick one of them.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::contract::{Arity, Contract, Field, FieldType, Need, Output, Port, Trial};
use engine::job::{Draft, Drafts, Job, Reporter};
use engine::metric::{number, places};
use serde_json::{Map, Value, json};

use super::kinds::{field, toy};

const fn any(name: &'static str, arity: Arity) -> Port {
    Port {
        name,
        accepts: ArtifactType::ALL,
        arity,
        layouts: &[],
        doc: "anything",
    }
}

const fn metrics(arity: Arity) -> Port {
    Port {
        name: "metrics",
        accepts: &[ArtifactType::Metrics],
        arity,
        layouts: &[],
        doc: "numbers",
    }
}

const fn metric(each: Option<&'static str>) -> Field {
    let ty = FieldType::Metric {
        of: "metrics",
        each,
    };
    field("metric", ty, Need::Optional)
}

/// The length of a text; of one that holds `astray`, no number.
pub const WEIGH: Contract = toy(
    "weigh",
    &[],
    &[any("data", Arity::One)],
    &[Output::new("metrics", ArtifactType::Metrics, "numbers")
        .metrics(|_, _| vec!["bytes".to_owned()])],
);
/// The length of each of several texts.
pub const WEIGH_ALL: Contract = toy(
    "weigh_all",
    &[],
    &[any("parts", Arity::Many)],
    &[
        Output::new("metrics", ArtifactType::Metrics, "numbers").metrics(|_, named| {
            let parts = named("parts");
            parts.iter().map(|part| format!("{part}.bytes")).collect()
        }),
    ],
);
/// Hands on what it is given.
pub const PASS: Contract = toy(
    "pass",
    &[metric(None)],
    &[any("data", Arity::One), metrics(Arity::Optional)],
    &[Output::same("same", "data", "what it was given")],
);
/// Hands on the longest.
pub const LONGEST: Contract = toy(
    "longest",
    &[metric(Some("parts"))],
    &[any("parts", Arity::Many), metrics(Arity::Many)],
    &[Output::same("best", "parts", "the longest")],
);
/// Says that it hands something on, and makes something else.
pub const CHANGE: Contract = toy(
    "change",
    &[],
    &[any("data", Arity::One)],
    &[Output::same("same", "data", "what it was given")],
);
/// Mixes salted parts, of which one may be the first.
pub const BLEND: Contract = Contract {
    check_inputs: Some(|params, inputs| {
        let parts = (inputs.names)("parts");
        let first = params.get("first").and_then(Value::as_str);
        let lost = first.filter(|first| !parts.iter().any(|part| part == first));
        let lost = lost.map(|first| ("first", format!("there is no part `{first}`")));
        let rows = (inputs.rows)("parts").into_iter();
        let bland = rows.filter(|(_, rows)| rows.empty.contains(&"salt"));
        let bland = bland.map(|(stage, _)| ("parts", format!("`{stage}` has no salt")));
        lost.into_iter().chain(bland).collect()
    }),
    ..toy(
        "blend",
        &[field("first", FieldType::Text, Need::Optional)],
        &[any("parts", Arity::OneOrMany)],
        &[Output::new("text", ArtifactType::Dataset, "a text")],
    )
};
/// Reads what is to be said: nobody says `ugh`.
pub const TRIALS: &[Trial] = &[Trial {
    kind: "say",
    attempt: |params| match params.get("text").and_then(Value::as_str) {
        Some("ugh") => vec![("text", "nobody says `ugh`".to_owned())],
        _ => Vec::new(),
    },
    attempt_inputs: None,
}];

fn size(view: &ArtifactView) -> Result<Value> {
    let text = std::fs::read_to_string(&view.files[0].1)?;
    Ok(match text.contains("astray") {
        true => json!({ "bytes": null }),
        false => json!({ "bytes": text.len() }),
    })
}

fn numbers(summary: Value) -> Drafts {
    let draft = Draft {
        artifact: ArtifactType::Metrics,
        files: Vec::new(),
        refs: BTreeMap::new(),
        summary: serde_json::from_value(summary).unwrap(),
    };
    [("metrics".to_owned(), draft)].into()
}

pub fn weigh(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    Ok(numbers(size(job.input("data")?)?))
}

pub fn weigh_all(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let mut all = Map::new();
    for (name, view) in job.inputs_of("parts")? {
        all.insert(name.clone(), size(view)?);
    }
    Ok(numbers(all.into()))
}

pub fn pass(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let same = Draft::of(job.input("data")?);
    Ok([("same".to_owned(), same)].into())
}

pub fn change(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let mut other = Draft::of(job.input("data")?);
    other.summary.insert("more".to_owned(), json!(1));
    Ok([("same".to_owned(), other)].into())
}

pub fn longest(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let (parts, metrics) = (job.inputs_of("parts")?, job.inputs_of("metrics")?);
    let names = |list: &[(String, ArtifactView)]| -> Vec<String> {
        list.iter().map(|(name, _)| name.clone()).collect()
    };
    let (own, theirs) = (names(parts), names(metrics));
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let mut best: Option<(f64, &ArtifactView)> = None;
    let places = places(&own, &theirs, "bytes").map_err(anyhow::Error::msg)?;
    for ((_, view), (index, paths)) in parts.iter().zip(places) {
        let value = number(&metrics[index].1.summary, &paths)?;
        if best.is_none_or(|(most, _)| value > most) {
            best = Some((value, view));
        }
    }
    let Some((_, view)) = best else {
        bail!("there is nothing to pick from")
    };
    Ok([("best".to_owned(), Draft::of(view))].into())
}

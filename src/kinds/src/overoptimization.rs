//! `overoptimization`: how far a proxy can be raised before the gold score falls.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable, no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{each, field, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overoptimization {
    /// `best_of_n`, `rl` or `none`.
    pub law: String,
    /// Whether every entry of `scores` is a curve of its own.
    pub separate: bool,
    /// The name of the score that is optimized.
    pub proxy: String,
    /// The name of the score that counts.
    pub gold: String,
    /// The name of the KL.
    pub kl: String,
}

/// What is measured of each curve, whatever the law.
const ALWAYS: [&str; 9] = [
    "points",
    "kl",
    "proxy_score",
    "gold_score",
    "best_kl",
    "best_score",
    "best_gain",
    "drop",
    "hacked",
];

/// What a law adds.
const FITTED: [&str; 12] = [
    "proxy.alpha",
    "proxy.beta",
    "proxy.alpha_error",
    "proxy.beta_error",
    "proxy.r2",
    "gold.alpha",
    "gold.beta",
    "gold.alpha_error",
    "gold.beta_error",
    "gold.r2",
    "peak_d",
    "peak_gain",
];

fn names(params: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let is = |name: &str, value: Value| params.get(name) == Some(&value);
    let mut own = ALWAYS.to_vec();
    if !is("law", "none".into()) {
        own.extend(FITTED);
    }
    let curves = named("scores");
    if is("separate", true.into()) && !curves.is_empty() {
        return each(&curves, &own);
    }
    words(&own)
}

/// A number that each of the metrics has, under its name or under that of each model in it.
const fn number(
    name: &'static str,
    default: &'static str,
    doc: &'static str,
) -> engine::contract::Field {
    field(
        name,
        FieldType::Metric {
            of: "scores",
            each: Some("scores"),
        },
        Need::Default(Literal::Text(default)),
        doc,
    )
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "overoptimization",
    version: 2,
    about: "Shows how far a proxy reward can be raised before the gold score falls: fits, a chart, and whether the proxy is hacked.",
    manual: "\
A point is a model, a round or an n with three numbers: the score under the judge that was optimized (proxy), the score under a judge that was
not (gold), and the KL from where the optimization began. The points come from `best_of_n`, from `evaluate` under two judges with a `reference`
(every model in it that has the three numbers, or the numbers themselves), or from another `overoptimization`. They stand in the order in which
`scores` names them, as rounds follow each other, and those of one evaluation in that of their KL. Gains are over the point with the least KL, which
has to be where the optimization began (KL at most 0.1); d = √KL.

| law | gain |
|---|---|
| `best_of_n` | R(d) = d (α − β d) |
| `rl` | R(d) = d (α − β ln d) |

α and β come from least squares over all points but those at d = 0, with their standard errors from s² (XᵀX)⁻¹, for proxy and gold alike; r² = 1 −
RSS/TSS (Gao, Schulman and Hilton 2022, arXiv 2210.10760). `peak_d` and `peak_gain` are the top of the gold curve, at α/(2β) or at
exp(α/β − 1). With two points besides the start there are no standard errors, and of a curve that never turns down no top: such a number is not one,
and a `gate` on it stays closed.

`best` names the point with the highest gold score (`best_score`, `best_gain`, `best_kl`), `drop` is what the last point has less than it, and
`hacked` is 1 when from there to the last point the proxy rises and gold falls, both by more than their standard error: the root of the sum of both
ends' squares, where errors are known (rows of `best_of_n`; of `evaluate` its intervals of the difference from its first model, which should be the
start), else by more than 0. A `gate` with `max: 0` on it stops; `stop_if` with `above: 0` ends a `repeat`, whose stage needs two points only with
`law: none`.

An estimate of the KL may come out below 0: as 0 counts what is not below −0.1, or where its standard error is known (`kl_error`) not below −2 of
them (or not below −0.001, which rounding explains). What is lower is an error, as is a number that is not one.

`chart.svg` draws it all: points with their standard errors, curves, the peak.",
    example: "hacking: { kind: overoptimization, scores: [start, \"align[*].scores\"], law: rl }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "law",
            FieldType::Choice(&[
                Choice { word: "best_of_n", doc: "R(d) = d (α − β d)" },
                Choice { word: "rl", doc: "R(d) = d (α − β ln d)" },
                Choice { word: "none", doc: "no fit: two points are enough" },
            ]),
            Need::Required,
            "What is fitted.",
        ),
        field(
            "separate",
            FieldType::Bool,
            Need::Default(Literal::Bool(false)),
            "Whether every entry of `scores` is a curve of its own, under its name, in one chart; else all are points of one curve.",
        ),
        number("proxy", "proxy_score", "The name of the score that was optimized; what is before it in the metrics names the point. Points of `best_of_n` and `overoptimization` are known without names."),
        number("gold", "gold_score", "The name of the score that counts."),
        number("kl", "kl", "The name of the KL."),
    ],
    ports: &[Port {
        name: "scores",
        accepts: &[ArtifactType::Metrics],
        arity: Arity::OneOrMany,
        layouts: &[],
        doc: "Where the points are: a `best_of_n`, evaluations, or what another `overoptimization` gave.",
    }],
    outputs: &[Output::new("metrics", ArtifactType::Metrics, "Points, fits and `chart.svg`.")
        .metrics(names)],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

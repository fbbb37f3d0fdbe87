//! `annotate`: sampled completions → preferences, rankings, labels or scores, by a judge.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Inputs, Literal, Need, Output, Pool, Port, Repeatable, Rows,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::rollout::{WEIGHTS, unknown_judges};
use crate::words::{FRACTION, MICRO_BATCH, NOT_NEGATIVE, NUMBER, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Annotate {
    /// What rows are made.
    pub make: String,
    /// Which pairs.
    pub pairs: String,
    /// The least difference of scores.
    pub min_margin: f64,
    /// The least part of the judges that agree with their sum about a pair.
    pub min_agreement: f64,
    /// `judged` or `kept`.
    pub order: String,
    /// From which score a completion is desirable.
    pub threshold: f64,
    /// Judge → weight.
    pub weights: Map<String, Value>,
    /// Completions at once.
    pub micro_batch: usize,
}

fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let word = |name: &str| params.get(name).and_then(Value::as_str);
    let differs = |name: &str| {
        let given = params.get(name).and_then(Value::as_f64);
        given.is_some_and(|given| given != 0.0)
    };
    let make = word("make").unwrap_or_default();
    if word("order") == Some("kept") && make != "preference" {
        let message = "`order: kept` is about pairs: it goes with `make: preference`";
        problems.push(("order", message.to_owned()));
    }
    if word("pairs") == Some("all") && make != "preference" {
        problems.push((
            "pairs",
            format!(
                "`pairs` goes with `make: preference`; with `make: {make}` it does nothing: leave it out"
            ),
        ));
    }
    for name in ["min_margin", "min_agreement"] {
        if differs(name) && !matches!(make, "preference" | "ranking") {
            problems.push((
                name,
                format!(
                    "`{name}` goes with `make: preference` and `make: ranking`; with `make: {make}` it does nothing: leave it out"
                ),
            ));
        }
    }
    if differs("threshold") && make != "unpaired" {
        problems.push((
            "threshold",
            format!(
                "`threshold` goes with `make: unpaired`; with `make: {make}` it does nothing: leave it out"
            ),
        ));
    }
    problems
}

/// The layouts of completions.
const SAMPLED: &[&str] = &[
    "prompt-completion",
    "messages",
    "scored",
    "preference",
    "ranking",
    "unpaired",
];

/// Weights of judges that are not there, and rows that nobody judges or that have no order to keep.
fn fits_inputs(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let mut problems = unknown_judges(params, inputs, "judge");
    let kept = params.get("order").and_then(Value::as_str) == Some("kept");
    let unjudged = (inputs.names)("judge").is_empty();
    for (stage, rows) in (inputs.rows)("samples") {
        let layout = rows.layout.as_str();
        // What the port does not take has been said.
        if !SAMPLED.contains(&layout) {
            continue;
        }
        if unjudged && layout != "scored" {
            problems.push((
                "samples",
                format!(
                    "the rows of `{stage}` are laid out as {layout} and have no scores of their own: say who judges them with `judge`"
                ),
            ));
        }
        if kept && layout != "preference" {
            problems.push((
                "order",
                format!(
                    "`order: kept` takes pairs that have an order, and the rows of `{stage}` are laid out as {layout}: leave it out"
                ),
            ));
        }
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "annotate",
    version: 2,
    about: "Turns sampled completions into preferences, rankings, labels or scores by a judge.",
    manual: "\
Rows that follow each other and have the same prompt are one group, as `generate` with `n` writes them; completions that are the same
word for word count once. A row of `preference` or `ranking` is a group by itself. The judge scores every completion (several judges: the
weighted sum of their scores), and of a group is made:

| make | rows |
|---|---|
| `preference` | pairs (chosen, rejected, margin = difference of scores): the best and the worst, or with `pairs: all` every pair |
| `ranking` | all completions, best first |
| `unpaired` | every completion, desirable from `threshold` on |
| `scored` | every completion with its score |
| `best` | the best completion: best-of-n, for fine-tuning on it (rejection sampling) |

A judge may be a reward model or a rule. Rows that are `scored` already, as people (`label`), a program or an endpoint (`ask`) and two models
(`density_ratio`) leave them, need none. Scores that are not finite are an error.

Ambiguous pairs are left out, and how many is said: those whose scores differ by less than `min_margin`, equal ones always; and with
several judges those on whose order less than `min_agreement` of them agree with the sum. With `order: kept` a pair keeps the better completion
that it came with, and is left out where the judge finds the other one better, or does not find it better by `min_margin`: with a judge that was
trained on these very pairs, round after round, this is the self-curation of Lee et al., arXiv 2408.12799.",
    example: "pairs: { kind: annotate, samples: tries, judge: gold }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "make",
            FieldType::Choice(&[
                Choice { word: "preference", doc: "pairs" },
                Choice { word: "ranking", doc: "completions, best first" },
                Choice { word: "unpaired", doc: "completions that are desirable or not" },
                Choice { word: "scored", doc: "completions with scores" },
                Choice { word: "best", doc: "the best completion of each prompt" },
            ]),
            Need::Default(Literal::Text("preference")),
            "What rows are made.",
        ),
        field(
            "pairs",
            FieldType::Choice(&[
                Choice { word: "best_worst", doc: "one of each prompt" },
                Choice { word: "all", doc: "all of each prompt" },
            ]),
            Need::Default(Literal::Text("best_worst")),
            "Which pairs are made.",
        ),
        field("min_margin", NOT_NEGATIVE, Need::Default(Literal::Number(0.0)), "Leave out pairs whose scores differ by less."),
        field("min_agreement", FRACTION, Need::Default(Literal::Number(0.0)), "Leave out pairs on which less than this part of several judges agree with their sum."),
        field(
            "order",
            FieldType::Choice(&[
                Choice { word: "judged", doc: "the completion with the higher score is the better one" },
                Choice { word: "kept", doc: "the rows say which one is better, and the judge only filters" },
            ]),
            Need::Default(Literal::Text("judged")),
            "Who says which completion of a pair is the better one.",
        ),
        field("threshold", NUMBER, Need::Default(Literal::Number(0.0)), "`unpaired`: the least score of a desirable completion."),
        WEIGHTS,
        MICRO_BATCH,
    ],
    ports: &[
        Port {
            name: "samples",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: SAMPLED,
            doc: "Prompts with completions.",
        },
        Port {
            name: "judge",
            accepts: &[ArtifactType::RewardModel, ArtifactType::Judge],
            arity: Arity::Any,
            layouts: &[],
            doc: "Who scores: a reward model or a rule, or several by name. Rows that are `scored` need none.",
        },
    ],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "The annotated rows.")],
    preparations: &[],
    layout: Some(|params, of| match params.get("make")?.as_str()? {
        "best" => match of("samples")?.layout.as_str() {
            "messages" => Some(Rows::of("messages")),
            "prompt-completion" => Some(Rows::of("prompt-completion")),
            _ => None,
        },
        made => Some(Rows::of(made)),
    }),
    check: fits,
    check_inputs: Some(fits_inputs),
    memory: None,
};

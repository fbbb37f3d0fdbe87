//! `annotate`: sampled completions → preferences, rankings, labels or scores, by a judge.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable, no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::rollout::WEIGHTS;
use crate::words::{MICRO_BATCH, NOT_NEGATIVE, NUMBER, field};

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
    /// From which score a completion is desirable.
    pub threshold: f64,
    /// Judge → weight.
    pub weights: Map<String, Value>,
    /// Completions at once.
    pub micro_batch: usize,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "annotate",
    version: 1,
    about: "Turns sampled completions into preferences, rankings, labels or scores by a judge.",
    manual: "\
Rows that follow each other and have the same prompt are one group, as `generate` with `n` writes them; completions that are the same
word for word count once. The judge scores every completion (several judges: the weighted sum of their scores), and of a group is made:

| make | rows |
|---|---|
| `preference` | pairs (chosen, rejected, margin = difference of scores): the best and the worst, or with `pairs: all` every pair |
| `ranking` | all completions, best first |
| `unpaired` | every completion, desirable from `threshold` on |
| `scored` | every completion with its score |
| `best` | the best completion: best-of-n, for fine-tuning on it (rejection sampling) |

Pairs whose scores differ by less than `min_margin` are ambiguous and left out, equal ones always; how many is said. A judge may be a
reward model or a rule. Scores that are not finite are an error.",
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
        field("threshold", NUMBER, Need::Default(Literal::Number(0.0)), "`unpaired`: the least score of a desirable completion."),
        WEIGHTS,
        MICRO_BATCH,
    ],
    ports: &[
        Port {
            name: "samples",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["prompt-completion", "messages"],
            doc: "Prompts with completions.",
        },
        Port {
            name: "judge",
            accepts: &[ArtifactType::RewardModel, ArtifactType::Judge],
            arity: Arity::Many,
            layouts: &[],
            doc: "Who scores: a reward model or a rule, or several by name.",
        },
    ],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "The annotated rows.")],
    preparations: &[],
    layout_of: None,
    check: no_check,
    memory: None,
};

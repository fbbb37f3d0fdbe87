//! `evaluate`: how well models predict rows, and what they answer.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, FieldType, From, Literal, Need, Output, Pool, Port, Preparation, Repeatable,
    no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{
    LOSS_ON, MAX_LENGTH, MAX_NEW_TOKENS, MICRO_BATCH, TEMPERATURE, TOKENIZE_FIELDS, TRUNCATION,
    count, each, field,
};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Rows to answer.
    pub samples: usize,
    /// Tokens of an answer.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Where the stream `sample` starts.
    pub seed: u64,
    /// See `tokenize`.
    pub max_length: usize,
    /// See `tokenize`.
    pub truncation: String,
    /// See `tokenize`.
    pub loss_on: String,
    /// Rows at once.
    pub micro_batch: usize,
}

/// What is measured of each model; more of it under a judge, and with a reference.
fn names(_: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut all = vec!["loss", "perplexity", "token_accuracy", "tokens"];
    if !named("judge").is_empty() {
        all.extend([
            "score",
            "win_rate",
            "difference",
            "difference_low",
            "difference_high",
            "length",
            "finished",
            "diversity",
        ]);
        if !named("reference").is_empty() {
            all.push("kl");
        }
    }
    each(&named("models"), &all)
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "evaluate",
    version: 1,
    about: "Measures models on rows: loss, perplexity, token accuracy, and answers side by side.",
    manual: "\
Over the counted tokens of all rows: *loss* is the mean of −log p(token | what comes before) in nats, *perplexity* its exponential,
*token accuracy* the fraction of tokens that the model finds likeliest. With `samples`, the first so many rows are answered by
every model from their prompt (what comes before the last answer), and the answers stand side by side with the reference.

With a `judge` every model answers the prompts of all rows, and the judge scores the answers: *score* is its mean, *win_rate* how often a
model's answer scores higher than that of the first model (ties count half), *difference* the mean of the paired differences with its 95%
interval, *length* the tokens of an answer, *finished* how many came to their end, *diversity* the different pairs of words over all pairs
(distinct-2). With a `reference`, *kl* is the mean over answers of log π − log π_ref of the whole answer.",
    example: "scores: { kind: evaluate, models: { base: base, tuned: tuned }, data: halves.test, samples: 3 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field("samples", count(0), Need::Default(Literal::Integer(0)), "How many rows are answered by every model."),
        MAX_NEW_TOKENS,
        TEMPERATURE,
        field("seed", FieldType::Seed, Need::Optional, "Where sampling starts; the recipe's seed unless given."),
        MAX_LENGTH,
        TRUNCATION,
        LOSS_ON,
        MICRO_BATCH,
    ],
    ports: &[
        Port {
            name: "models",
            accepts: &[ArtifactType::Model],
            arity: Arity::Many,
            layouts: &[],
            doc: "The models: one, a list, or a mapping from the names that the report uses.",
        },
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["text", "prompt-completion", "messages"],
            doc: "The rows to measure on.",
        },
        Port {
            name: "judge",
            accepts: &[ArtifactType::RewardModel, ArtifactType::Judge],
            arity: Arity::Optional,
            layouts: &[],
            doc: "Who scores the models' answers to the rows' prompts.",
        },
        Port {
            name: "reference",
            accepts: &[ArtifactType::Model],
            arity: Arity::Optional,
            layouts: &[],
            doc: "With a judge: the model from which the KL of the answers is measured.",
        },
    ],
    outputs: &[Output::new("metrics", ArtifactType::Metrics, "Numbers and answers.")
        .metrics(names)],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize",
        inputs: &[("tokenizer", From::TokenizerOf("models")), ("data", From::Port("data"))],
        fields: &TOKENIZE_FIELDS,
        replaces: &[],
    }],
    layout: None,
    check: no_check,
    memory: None,
};

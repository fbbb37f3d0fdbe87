//! `evaluate`: how well models predict rows, and what they answer.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, FieldType, From, Literal, Need, Output, Pool, Port, Preparation, Repeatable,
    no_check,
};
use serde::Deserialize;

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

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "evaluate",
    version: 1,
    about: "Measures models on rows: loss, perplexity, token accuracy, and answers side by side.",
    manual: "\
Over the counted tokens of all rows: *loss* is the mean of −log p(token | what comes before) in nats, *perplexity* its exponential,
*token accuracy* the fraction of tokens that the model finds likeliest. With `samples`, the first so many rows are answered by
every model from their prompt (what comes before the last answer), and the answers stand side by side with the reference.",
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
    ],
    outputs: &[Output::new("metrics", ArtifactType::Metrics, "Numbers and answers.")
        .metrics(|_, named| each(&named("models"), &["loss", "perplexity", "token_accuracy", "tokens"]))],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize",
        inputs: &[("tokenizer", From::TokenizerOf("models")), ("data", From::Port("data"))],
        fields: &TOKENIZE_FIELDS,
        replaces: &[],
    }],
    layout_of: None,
    check: no_check,
    memory: None,
};

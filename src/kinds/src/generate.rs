//! `generate`: prompts → completions by a model.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, Field, FieldType, Literal, Need, Output, Pool, Port, Repeatable, Rows,
    no_check,
};
use serde::Deserialize;

use crate::known::language;
use crate::words::{MAX_NEW_TOKENS, TEMPERATURE, count, field, numeric};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Completions of each prompt.
    pub n: usize,
    /// Tokens of a completion.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Only the so many likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability.
    pub top_p: f64,
    /// Prompts to take.
    pub limit: Option<usize>,
    /// Where the stream `sample` starts.
    pub seed: u64,
    /// Completions at once.
    pub batch: usize,
}

/// A limit on the choice of tokens.
pub(crate) const TOP_K: Field = field(
    "top_k",
    count(0),
    Need::Default(Literal::Integer(0)),
    "Draw among the so many likeliest tokens only; 0 for all.",
);

/// Another one.
pub(crate) const TOP_P: Field = field(
    "top_p",
    FieldType::Number {
        min: 0.0,
        max: 1.0,
        above: true,
    },
    Need::Default(Literal::Number(1.0)),
    "Draw among the likeliest tokens that together have this probability.",
);

/// How many prompts.
pub(crate) const LIMIT: Field = field(
    "limit",
    count(1),
    Need::Optional,
    "Take only the first so many prompts.",
);

/// Where sampling starts.
pub(crate) const SAMPLING_SEED: Field = field(
    "seed",
    FieldType::Seed,
    Need::Optional,
    "Where sampling starts; the recipe's seed unless given.",
);

/// Completions at once.
pub(crate) const SAMPLING_BATCH: Field = numeric(
    "batch",
    FieldType::Integer { min: 1, max: 4096 },
    Need::Default(Literal::Integer(16)),
    "Completions at once: more is faster and needs more memory.",
);

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "generate",
    version: 1,
    about: "Completes prompts with a model, greedily or sampled.",
    manual: "\
The prompt of a row of messages is everything before its last answer, through the chat template with the generation prompt added;
of a prompt and completion, the prompt; of plain text, the text. Tokens are drawn by inverting the cumulative distribution at a
uniform number from the stream `sample`, one stream for each (prompt, completion): a completion does not depend on the prompts
beside it. A completion ends at an end-of-turn token or after `max_new_tokens`.",
    example: "tries: { kind: generate, model: tuned, prompts: halves.test, n: 4, temperature: 0.7 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field("n", FieldType::Integer { min: 1, max: 4096 }, Need::Default(Literal::Integer(1)), "Completions of each prompt."),
        MAX_NEW_TOKENS,
        TEMPERATURE,
        TOP_K,
        TOP_P,
        LIMIT,
        SAMPLING_SEED,
        SAMPLING_BATCH,
    ],
    ports: &[
        Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model that answers." },
        Port {
            name: "prompts",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["text", "prompt-completion", "messages"],
            doc: "The rows whose prompts are completed.",
        },
    ],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "Prompts with their completions; several completions of a prompt follow each other.")],
    preparations: &[],
    layout: Some(|_, of| {
        let messages = of("prompts")?.layout == "messages";
        Some(Rows::of(if messages { "messages" } else { "prompt-completion" }))
    }),
    check: no_check,
    check_inputs: Some(|_, inputs| language(inputs, "model")),
    memory: None,
};

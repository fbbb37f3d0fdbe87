//! `tokenize_completions`: rows → token ids of prompts with their completions. Hidden: a preparation of the kinds that learn from
//! preferences, rankings and scores.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, Output, Pool, Port, Repeatable, no_check};
use serde::Deserialize;

use crate::words::{MAX_LENGTH, TOKENIZER, TRUNCATION};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizeCompletions {
    /// Tokens a row may have.
    pub max_length: usize,
    /// `keep_start`, `keep_end` or `drop`.
    pub truncation: String,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "tokenize_completions",
    version: 2,
    about: "Turns rows into token ids of prompts with their completions.",
    manual: "\
Each row becomes a group of completions behind the same prompt tokens: a preference two, the chosen one first; a ranking all of
its own, in order; another row one. A conversation goes through the tokenizer's chat template with the completion as the
assistant's next turn; plain text and its completion are joined, and the end-of-text token is added. A completion begins where the
tokens of the prompt alone and of prompt and completion diverge, of several at the first such place. `keep_end` takes tokens from
the start of the prompt, the same ones for a whole group; `drop` leaves out whole groups. Two completions of the same tokens are an
error.",
    example: "",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[MAX_LENGTH, TRUNCATION],
    ports: &[
        TOKENIZER,
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &[
                "preference",
                "ranking",
                "unpaired",
                "scored",
                "prompt-completion",
                "messages",
            ],
            doc: "The rows.",
        },
    ],
    outputs: &[Output::new(
        "tokens",
        ArtifactType::Tokens,
        "Ids, prompt length, group and value of each completion.",
    )],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

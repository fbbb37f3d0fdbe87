//! `tokenize`: rows → token ids with a loss mask. Hidden: a preparation of the kinds that train and evaluate, so that a new
//! learning rate does not tokenize again.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, Output, Pool, Port, Repeatable, no_check};
use serde::Deserialize;

use crate::words::{LOSS_ON, MAX_LENGTH, TOKENIZER, TRUNCATION};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenize {
    /// Tokens a row may have.
    pub max_length: usize,
    /// `keep_start`, `keep_end` or `drop`.
    pub truncation: String,
    /// `completions`, `last_turn` or `all`.
    pub loss_on: String,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "tokenize",
    version: 1,
    about: "Turns rows into token ids with a loss mask.",
    manual: "Messages go through the tokenizer's chat template; a prompt and its completion are joined, and the end-of-text token is \
             added; plain text gets the end-of-text token. A dataset in which no token is trained is refused.",
    example: "",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[MAX_LENGTH, TRUNCATION, LOSS_ON],
    ports: &[
        TOKENIZER,
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["text", "prompt-completion", "messages"],
            doc: "The rows.",
        },
    ],
    outputs: &[Output::new(
        "tokens",
        ArtifactType::Tokens,
        "Ids and mask of each row.",
    )],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

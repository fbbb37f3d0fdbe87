//! `tokenize_pieces`: running text → token ids in pieces. Hidden: a preparation of the kinds that hide tokens, so that a new learning rate
//! does not tokenize again.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, Output, Pool, Port, Repeatable, no_check};
use serde::Deserialize;

use crate::words::{PIECE_LENGTH, TOKENIZER};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizePieces {
    /// Tokens a piece may have.
    pub max_length: usize,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "tokenize_pieces",
    version: 1,
    about: "Turns running text into token ids, in pieces.",
    manual: "A text is cut into as few pieces as fit, of lengths that differ by one token at most, and each begins and ends with the \
             special tokens of the tokenizer's post-processor (`[CLS]`, `[SEP]`). Marked are the tokens of the text that are not special.",
    example: "",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[PIECE_LENGTH],
    ports: &[
        TOKENIZER,
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["text", "labelled"],
            doc: "The texts.",
        },
    ],
    outputs: &[Output::new(
        "tokens",
        ArtifactType::Tokens,
        "Ids of each piece, and which of them may be hidden.",
    )],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

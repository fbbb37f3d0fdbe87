//! `mismatch`: prompts with the completions of other rows. Hidden: a preparation of `kto`, whose baseline is measured on them.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, Output, Pool, Port, Repeatable, no_check};
use serde::Deserialize;

use crate::kto::LOSS;
use crate::words::MAX_LENGTH;

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mismatch {
    /// See `kto`.
    pub loss: String,
    /// See `tokenize_completions`.
    pub max_length: usize,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "mismatch",
    version: 2,
    about: "Puts the completion of another row behind each prompt.",
    manual: "\
Each row becomes a group of two: the row, and its prompt with the completion of another row, as tokens. Rows are ordered by their prompts, in
the order in which these first come, and each takes the completion of the row m places before it in a circle, m the largest number of
rows that one prompt has: so each completion is used once, and none behind its own prompt. Where every prompt is another one, that is the
row before, as TRL takes it within a batch. Where one prompt has more than half of the rows, its rows take the completions of the others
in turn; where there is one prompt only, the row before. What exceeds `max_length` is cut off at the end. With `loss: apo_zero`, which has
no baseline, groups stay as they are.",
    example: "",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[LOSS, MAX_LENGTH],
    ports: &[Port {
        name: "tokens",
        accepts: &[ArtifactType::Tokens],
        arity: Arity::One,
        layouts: &[],
        doc: "Rows of one completion each.",
    }],
    outputs: &[Output::new("tokens", ArtifactType::Tokens, "The rows, each with its mismatched one.")],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

//! `reference`: the log-probabilities of completions under a model. Hidden: a preparation of the kinds that compare a policy with where
//! it came from, shared by every loss and every β.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, Output, Pool, Port, Repeatable, no_check};
use serde::Deserialize;

use crate::words::MICRO_BATCH;

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Groups at once.
    pub micro_batch: usize,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "reference",
    version: 1,
    about: "Takes the log-probabilities of completions under a model.",
    manual: "\
log π(token | what comes before) of every token of every completion, in f32. What the completions of a group begin with alike, their prompt,
is computed once.",
    example: "",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[MICRO_BATCH],
    ports: &[
        Port {
            name: "model",
            accepts: &[ArtifactType::Model],
            arity: Arity::One,
            layouts: &[],
            doc: "The reference.",
        },
        Port {
            name: "tokens",
            accepts: &[ArtifactType::Tokens],
            arity: Arity::One,
            layouts: &[],
            doc: "The completions.",
        },
    ],
    outputs: &[Output::new(
        "log_probabilities",
        ArtifactType::LogProbabilities,
        "One number for each token of each completion.",
    )],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

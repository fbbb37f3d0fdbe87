//! `orpo`: odds ratio preference optimization.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, Literal, Need, Pool, Port, Repeatable};
use serde::Deserialize;

use crate::known::trains;
use crate::lists::fields;
use crate::memory;
use crate::training::{COMPLETIONS, POLICY, RUNNING, TRAINED, Training, fits, learning};
use crate::words::{MAX_LENGTH, POSITIVE, TRUNCATION, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Orpo {
    /// What every training has.
    #[serde(flatten)]
    pub training: Training,
    /// See `tokenize_completions`.
    pub max_length: usize,
    /// See `tokenize_completions`.
    pub truncation: String,
    /// β.
    pub beta: f64,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "orpo",
    version: 3,
    about: "Trains a model on preferences in one stage with its fine-tuning, by odds ratios (ORPO).",
    manual: "\
The cross entropy of prompt and chosen completion, minus β times the mean of log σ of the log odds ratio
(p_c − p_r) − (log(1 − e^p_c) − log(1 − e^p_r)), p the mean of log π over a completion's tokens. No reference model. Source: Hong et al.,
arXiv 2403.07691.",
    example: "tuned: { kind: orpo, model: base, data: pairs, beta: 0.1 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &learning(8e-6),
        &[
            MAX_LENGTH,
            TRUNCATION,
            field("beta", POSITIVE, Need::Default(Literal::Number(0.1)), "β: the weight of the odds ratio."),
        ],
        &RUNNING,
    ],
    ports: &[
        POLICY,
        Port { name: "data", accepts: &[ArtifactType::Dataset], arity: Arity::One, layouts: &["preference"], doc: "Pairs." },
    ],
    outputs: &TRAINED,
    preparations: &[
        COMPLETIONS,
    ],
    layout: None,
    check: fits,
    check_inputs: Some(trains),
    memory: Some(memory::of_groups),
};

//! `orpo`: odds ratio preference optimization.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, Literal, Need, Pool, Port, Repeatable};
use serde::Deserialize;

use crate::known::trains;
use crate::memory;
use crate::training::{
    BATCH, BETA1, BETA2, CHECKPOINTING, COMPLETIONS, EPOCHS, EPSILON, LAYER_DECAY, LEARNING_RATES,
    MAX_GRAD_NORM, MAX_STEPS, OPTIMIZER, OPTIMIZER_STATE, POLICY, SCHEDULE, SEED, SNAPSHOT_SECONDS,
    TRAIN, TRAINED, Training, UNFREEZE_EVERY, WARMUP, WEIGHT_DECAY, fits, learning_rate,
};
use crate::words::{MAX_LENGTH, MICRO_BATCH, POSITIVE, TRUNCATION, field};

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
    fields: &[
        learning_rate(8e-6),
        SCHEDULE,
        WARMUP,
        EPOCHS,
        MAX_STEPS,
        BATCH,
        TRAIN,
        LAYER_DECAY,
        UNFREEZE_EVERY,
        LEARNING_RATES,
        OPTIMIZER,
        OPTIMIZER_STATE,
        WEIGHT_DECAY,
        BETA1,
        BETA2,
        EPSILON,
        MAX_GRAD_NORM,
        SEED,
        MAX_LENGTH,
        TRUNCATION,
        field("beta", POSITIVE, Need::Default(Literal::Number(0.1)), "β: the weight of the odds ratio."),
        MICRO_BATCH,
        CHECKPOINTING,
        SNAPSHOT_SECONDS,
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

//! `rloo`: REINFORCE with a leave-one-out baseline.

use engine::artifact::ArtifactType;
use engine::contract::{Contract, FieldType, Literal, Need, Output, Pool, Repeatable};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::rollout::{
    MINIBATCHES, MISSING_EOS_PENALTY, POLICY, PROMPTS, REFERENCE, REWARD, ROLLOUT_BATCH,
    ROLLOUT_MICRO_BATCH, Rollout, UPDATES, WEIGHTS, sampling_temperature, update_epochs,
};
use crate::training::{
    BETA1, BETA2, EPSILON, MAX_GRAD_NORM, SCHEDULE, SEED, SNAPSHOT_SECONDS, WARMUP, WEIGHT_DECAY,
    learning_rate,
};
use crate::words::{MAX_NEW_TOKENS, NOT_NEGATIVE, POSITIVE, field, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Rloo {
    /// What it shares with PPO.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// Completions of a prompt.
    pub group: usize,
    /// The clip range.
    pub clip: f64,
    /// The clip range above 1.
    pub clip_high: Option<f64>,
    /// The weight of the KL.
    pub beta: f64,
    /// Leave out completions without end.
    pub mask_truncated: bool,
    /// Cut rewards.
    pub reward_clip: Option<f64>,
    /// Normalize advantages over the batch.
    pub normalize: bool,
}

fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    crate::rollout::whole_groups(params)
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "rloo",
    version: 1,
    about: "Trains a policy against a judge without a critic, relative to the mean of the other completions of a prompt (RLOO).",
    manual: "\
Of each prompt `group` completions are sampled. A completion's reward is its score minus β times its KL from the reference (the sum over
tokens of log π − log π_ref); its advantage is the reward minus the mean of the others of its group. The loss is −min(ρA, clip(ρ)A) with ρ
the ratio of the whole completion's new to old probability, a mean over completions. Source: Ahmadian et al., arXiv 2402.14740; defaults
are TRL's.",
    example: "tuned: { kind: rloo, model: sft, reward: judge, prompts: prompts.train, group: 4 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        UPDATES,
        ROLLOUT_BATCH,
        field("group", FieldType::Integer { min: 2, max: 4096 }, Need::Default(Literal::Integer(2)), "Completions of each prompt."),
        MINIBATCHES,
        update_epochs(1),
        MAX_NEW_TOKENS,
        sampling_temperature(1.0),
        field("beta", NOT_NEGATIVE, Need::Default(Literal::Number(0.05)), "β: the weight of the KL from the reference in the reward."),
        field("normalize", FieldType::Bool, Need::Default(Literal::Bool(false)), "Centre advantages over the batch and divide them by their deviation."),
        field("clip", POSITIVE, Need::Default(Literal::Number(0.2)), "How far below 1 the ratio may count, and above unless `clip_high` is given."),
        field("clip_high", POSITIVE, Need::Optional, "How far above 1 the ratio may count."),
        MISSING_EOS_PENALTY,
        field("mask_truncated", FieldType::Bool, Need::Default(Literal::Bool(false)), "Leave completions without end out of the loss."),
        field("reward_clip", POSITIVE, Need::Optional, "Rewards are cut to ± this."),
        WEIGHTS,
        learning_rate(1e-6),
        SCHEDULE,
        WARMUP,
        WEIGHT_DECAY,
        BETA1,
        BETA2,
        EPSILON,
        MAX_GRAD_NORM,
        SEED,
        ROLLOUT_MICRO_BATCH,
        SNAPSHOT_SECONDS,
    ],
    ports: &[POLICY, REWARD, PROMPTS, REFERENCE],
    outputs: &[
        Output::new("model", ArtifactType::Model, "The trained policy.").keeps_tokenizer_of("model"),
        Output::new("metrics", ArtifactType::Metrics, "What each update measured.")
            .metrics(|_, _| words(&["updates", "first_score", "last_score", "last_kl"])),
    ],
    preparations: &[],
    layout_of: None,
    check: fits,
    memory: None,
};

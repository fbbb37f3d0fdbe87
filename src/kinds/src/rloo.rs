//! `rloo`: REINFORCE with a leave-one-out baseline.

use engine::contract::{Contract, FieldType, Literal, Need, Pool, Repeatable};
use serde::Deserialize;

use crate::lists::fields;
use crate::rollout::{
    CLIP, CLIP_HIGH, Groups, MASK_TRUNCATED, MINIBATCHES, MISSING_EOS_PENALTY, PROMPTS, REFERENCE,
    REWARD, REWARD_CLIP, ROLLOUT_BATCH, Rollout, STEPPING, TRAINED, UPDATES, WEIGHTS, group,
    sampling_temperature, unknown_rewards, update_epochs, whole_groups,
};
use crate::training::{POLICY, learning_rate};
use crate::words::{MAX_NEW_TOKENS, NOT_NEGATIVE, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Rloo {
    /// What it shares with PPO.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// What it shares with the other that learns from groups.
    #[serde(flatten)]
    pub groups: Groups,
    /// The weight of the KL.
    pub beta: f64,
    /// Normalize advantages over the batch.
    pub normalize: bool,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "rloo",
    version: 2,
    about: "Trains a policy against a judge without a critic, relative to the mean of the other completions of a prompt (RLOO).",
    manual: "\
Of each prompt `group` completions are sampled. A completion's reward is its score minus β times its KL from the reference (the sum over
tokens of log π − log π_ref); its advantage is the reward minus the mean of the others of its group. The loss is −min(ρA, clip(ρ)A) with ρ
the ratio of the whole completion's new to old probability, a mean over completions. Source: Ahmadian et al., arXiv 2402.14740; defaults
are TRL's.",
    example: "tuned: { kind: rloo, model: sft, reward: judge, prompts: prompts.train, group: 4 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &[
            UPDATES,
            ROLLOUT_BATCH,
            group(2),
            MINIBATCHES,
            update_epochs(1),
            MAX_NEW_TOKENS,
            sampling_temperature(1.0),
            field("beta", NOT_NEGATIVE, Need::Default(Literal::Number(0.05)), "β: the weight of the KL from the reference in the reward."),
            field("normalize", FieldType::Bool, Need::Default(Literal::Bool(false)), "Centre advantages over the batch and divide them by their deviation."),
            CLIP,
            CLIP_HIGH,
            MISSING_EOS_PENALTY,
            MASK_TRUNCATED,
            REWARD_CLIP,
            WEIGHTS,
            learning_rate(1e-6),
        ],
        &STEPPING,
    ],
    ports: &[POLICY, REWARD, PROMPTS, REFERENCE],
    outputs: &TRAINED,
    preparations: &[],
    layout: None,
    check: whole_groups,
    check_inputs: Some(unknown_rewards),
    memory: None,
};

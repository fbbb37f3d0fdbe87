//! `grpo`: group relative policy optimization.

use engine::contract::{Choice, Contract, FieldType, Literal, Need, Pool, Repeatable};
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
pub struct Grpo {
    /// What it shares with PPO.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// What it shares with the other that learns from groups.
    #[serde(flatten)]
    pub groups: Groups,
    /// The weight of the KL.
    pub beta: f64,
    /// `grpo`, `bnpo`, `dr_grpo` or `dapo`.
    pub loss: String,
    /// `group`, `batch` or `none`.
    pub scale: String,
    /// `token` or `sequence`.
    pub ratio: String,
    /// Correct the KL by the ratio.
    pub corrected_kl: bool,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "grpo",
    version: 2,
    about: "Trains a policy against a judge without a critic, relative to the other completions of a prompt (GRPO).",
    manual: "\
Of each prompt `group` completions are sampled; the advantage of one is its reward minus the mean of the group, over the group's deviation
+ 1e-4 (`scale`). A token's loss is −min(ρA, clip(ρ)A) + β · (π_ref/π − 1 − log(π_ref/π)), the KL corrected by ρ, ρ the ratio of new to old
probability. A group with equal rewards teaches nothing; how many there are is logged.

| loss | the sum over tokens is divided by |
|---|---|
| `grpo` | the completion's length, then the number of completions (arXiv 2402.03300) |
| `bnpo` | the tokens of the minibatch |
| `dr_grpo` | completions times `max_new_tokens` (Dr. GRPO, arXiv 2503.20783; with `scale: none`) |
| `dapo` | the tokens of the whole batch (DAPO, arXiv 2503.14476) |

`ratio: sequence` takes the geometric mean over the completion's tokens (GSPO, arXiv 2507.18071). Defaults are TRL's.",
    example: "tuned: { kind: grpo, model: sft, reward: judge, prompts: prompts.train, group: 8 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &[
            UPDATES,
            ROLLOUT_BATCH,
            group(8),
            MINIBATCHES,
            update_epochs(1),
            MAX_NEW_TOKENS,
            sampling_temperature(1.0),
            field(
                "loss",
                FieldType::Choice(&[
                    Choice { word: "dapo", doc: "by the tokens of the batch" },
                    Choice { word: "grpo", doc: "by each completion's length" },
                    Choice { word: "bnpo", doc: "by the tokens of the minibatch" },
                    Choice { word: "dr_grpo", doc: "by the longest length" },
                ]),
                Need::Default(Literal::Text("dapo")),
                "What the sum over tokens is divided by.",
            ),
            field(
                "scale",
                FieldType::Choice(&[
                    Choice { word: "group", doc: "the deviation of the group" },
                    Choice { word: "batch", doc: "the deviation of the batch" },
                    Choice { word: "none", doc: "nothing" },
                ]),
                Need::Default(Literal::Text("group")),
                "What advantages are divided by.",
            ),
            field(
                "ratio",
                FieldType::Choice(&[
                    Choice { word: "token", doc: "of each token" },
                    Choice { word: "sequence", doc: "the geometric mean over the completion" },
                ]),
                Need::Default(Literal::Text("token")),
                "What the ratio is of.",
            ),
            field("beta", NOT_NEGATIVE, Need::Default(Literal::Number(0.0)), "β: the weight of the KL from the reference in the loss."),
            field("corrected_kl", FieldType::Bool, Need::Default(Literal::Bool(true)), "Multiply the KL by the ratio, which makes its gradient right off the policy."),
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

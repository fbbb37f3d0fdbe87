//! `grpo`: group relative policy optimization.

use engine::artifact::ArtifactType;
use engine::contract::{Choice, Contract, FieldType, Literal, Need, Output, Pool, Repeatable};
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
pub struct Grpo {
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
    /// `grpo`, `bnpo`, `dr_grpo` or `dapo`.
    pub loss: String,
    /// `group`, `batch` or `none`.
    pub scale: String,
    /// `token` or `sequence`.
    pub ratio: String,
    /// Correct the KL by the ratio.
    pub corrected_kl: bool,
}

fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    crate::rollout::whole_groups(params)
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "grpo",
    version: 1,
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
    fields: &[
        UPDATES,
        ROLLOUT_BATCH,
        field("group", FieldType::Integer { min: 2, max: 4096 }, Need::Default(Literal::Integer(8)), "Completions of each prompt."),
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

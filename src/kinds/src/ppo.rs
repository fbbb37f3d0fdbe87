//! `ppo`: proximal policy optimization against a judge.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, Inputs, Literal, Need, Output, Pool, Port,
    Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::{same_words, trains_port};
use crate::lists::fields;
use crate::rollout::{
    MINIBATCHES, MISSING_EOS_PENALTY, PROMPTS, REFERENCE, REWARD, ROLLOUT_BATCH, Rollout, STEPPING,
    TRAINED, UPDATES, WEIGHTS, sampling_temperature, unknown_rewards, update_epochs,
};
use crate::training::{POLICY, learning_rate};
use crate::words::{FRACTION, MAX_NEW_TOKENS, NOT_NEGATIVE, POSITIVE, RATE, count, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Ppo {
    /// What it shares with RLOO and GRPO.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// The coefficient of the KL penalty.
    pub kl: f64,
    /// `k1`, `k2` or `k3`.
    pub kl_estimator: String,
    /// Follow this KL of a completion.
    pub kl_target: Option<f64>,
    /// Over how many completions the coefficient follows.
    pub kl_horizon: f64,
    /// γ.
    pub gamma: f64,
    /// λ.
    pub lambda: f64,
    /// The policy's clip range.
    pub clip: f64,
    /// The value's clip range.
    pub value_clip: f64,
    /// The weight of the value's loss.
    pub value_weight: f64,
    /// The weight of the entropy.
    pub entropy_weight: f64,
    /// Normalize scores by running moments.
    pub normalize_scores: bool,
    /// Scale scores by their running deviation.
    pub scale_scores: bool,
    /// Cut scores.
    pub score_clip: Option<f64>,
    /// Whiten rewards.
    pub whiten_rewards: bool,
    /// Whiten advantages.
    pub whiten_advantages: bool,
    /// Cut advantages.
    pub advantage_clip: Option<f64>,
    /// The critic's own learning rate.
    pub critic_learning_rate: Option<f64>,
    /// Updates of the critic alone.
    pub critic_warmup: usize,
    /// End an update's epochs beyond this.
    pub target_kl: Option<f64>,
    /// The weight of the language-modelling loss.
    pub mixed_weight: f64,
    /// Tokens of a mixed row.
    pub mixed_length: usize,
}

/// How fast an adaptive β reacts, unless given.
const KL_HORIZON: f64 = 10000.0;

/// The longest mixed row, unless given.
const MIXED_LENGTH: i64 = 256;

/// What would do nothing, and what would let nothing be done.
fn idle(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let number = |name: &str| params.get(name).and_then(Value::as_f64);
    let whole = |name: &str| params.get(name).and_then(Value::as_i64);
    let adaptive = number("kl_target").is_some();
    if !adaptive && number("kl_horizon").is_some_and(|given| given != KL_HORIZON) {
        let message = "`kl_horizon` says how fast β follows `kl_target`; without one it does nothing: give a `kl_target`, or leave `kl_horizon` out";
        problems.push(("kl_horizon", message.to_owned()));
    }
    if adaptive && number("kl") == Some(0.0) {
        let message = "an adaptive β is multiplied by how far the KL is from `kl_target`, and 0 stays 0: start at a `kl` above 0, or leave \
                       `kl_target` out";
        problems.push(("kl", message.to_owned()));
    }
    if let (Some(alone), Some(updates)) = (whole("critic_warmup"), whole("updates"))
        && alone >= updates
    {
        problems.push((
            "critic_warmup",
            format!(
                "the critic learns alone in {alone} updates of {updates}, and the policy never: `critic_warmup` is less than `updates`"
            ),
        ));
    }
    if number("mixed_weight") == Some(0.0)
        && whole("mixed_length").is_some_and(|given| given != MIXED_LENGTH)
    {
        let message = "`mixed_length` cuts `mixed` rows, which are not read with `mixed_weight: 0`: give `mixed_weight`, or leave `mixed_length` out";
        problems.push(("mixed_length", message.to_owned()));
    }
    problems
}

fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let number = |name: &str| params.get(name).and_then(Value::as_u64).unwrap_or(1);
    let mut problems = Vec::new();
    if !number("batch").is_multiple_of(number("minibatches").max(1)) {
        problems.push((
            "minibatches",
            format!(
                "a batch of {} completions can't be cut into {} equal parts",
                number("batch"),
                number("minibatches")
            ),
        ));
    }
    let on = |name: &str| params.get(name) == Some(&Value::Bool(true));
    if on("normalize_scores") && on("scale_scores") {
        let message = "normalized scores are scaled already; leave `scale_scores` out";
        problems.push(("scale_scores", message.to_owned()));
    }
    problems.extend(idle(params));
    problems
}

/// What all rollouts look at, and a critic that can't be trained or reads other tokens.
fn fits_inputs(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let mut problems = unknown_rewards(params, inputs);
    problems.extend(trains_port(params, inputs, "critic"));
    problems.extend(same_words(inputs, "critic", "the critic"));
    problems
}

const fn number(name: &'static str, ty: FieldType, default: f64, doc: &'static str) -> Field {
    field(name, ty, Need::Default(Literal::Number(default)), doc)
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "ppo",
    version: 2,
    about: "Trains a policy against a judge by proximal policy optimization, held to a reference.",
    manual: "\
Each update samples completions, scores them, and learns from them in some epochs. A token's reward is −β times an estimate of the KL
from the reference (`k1` log π − log π_ref, `k2` half its square, `k3` π_ref/π − 1 − log(π_ref/π)); the score is added after the last
token. Advantages are GAE's, A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γV_{t+1} − V_t; λ = 0 gives r + γV′ − V. With ρ the ratio of new to
old probability the policy minimises the mean of max(−Aρ, −A clip(ρ, 1 ± `clip`)), the critic half the mean of the larger of (V − R)² and
(clip(V, V_old ± `value_clip`) − R)².

The critic starts from `critic`: a reward model with its head, a model with a head of zeros, or the policy itself where nothing is given.
It has its own weights, optimizer and learning rate; critic, policy, reference and reward model that are adapters on one base hold the base
once. Where the policy has an adapter, only the adapter is trained, and the base without it
is the reference when the adapter is fresh; where it has none, everything is.

PPO-max (*Secrets of RLHF*, arXiv 2307.04964) is `normalize_scores: true`, `score_clip`, `critic_warmup`, `mixed` rows with
`mixed_weight` (PPO-ptx of InstructGPT), an own critic and clipped gradients. Every detail is numbered at the head of
`src/ml/src/rl/ppo.rs`, each with its source; they are tested against the last trainer of TRL that had PPO. Rewards, advantages and
losses are numbers of the completions alone: a killed training goes on at its last snapshot, which is of a whole update
(`snapshot_seconds`), and ends with the same bytes.

Logged for each update: `score` (of the judge, before shaping), `kl` (of a completion from the reference), `rlhf_reward`, `entropy`,
`completion_tokens`, `finished`, losses, clip fractions, norms.",
    example: "tuned: { kind: ppo, model: sft, reward: judge, prompts: prompts.train, updates: 100, kl: 0.05 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &[
            UPDATES,
            ROLLOUT_BATCH,
            MINIBATCHES,
            update_epochs(4),
            MAX_NEW_TOKENS,
            sampling_temperature(0.7),
            number("kl", NOT_NEGATIVE, 0.05, "β: the coefficient of the KL penalty, at the start where it is adaptive."),
            field(
                "kl_estimator",
                FieldType::Choice(&[
                    Choice { word: "k1", doc: "log π − log π_ref" },
                    Choice { word: "k2", doc: "½ (log π − log π_ref)²" },
                    Choice { word: "k3", doc: "π_ref/π − 1 − log(π_ref/π)" },
                ]),
                Need::Default(Literal::Text("k1")),
                "How the KL of a token is estimated.",
            ),
            field("kl_target", POSITIVE, Need::Optional, "Adapt β so that the KL of a completion stays near this (arXiv 1909.08593); fixed unless given."),
            number("kl_horizon", POSITIVE, KL_HORIZON, "In how many completions an adaptive β reacts."),
            number("gamma", FRACTION, 1.0, "γ: the discount of later rewards."),
            number("lambda", FRACTION, 0.95, "λ of GAE: 0 trusts the critic, 1 the returns."),
            number("clip", POSITIVE, 0.2, "How far from 1 the ratio may count."),
            number("value_clip", POSITIVE, 0.2, "How far from the old value the new one may count."),
            number("value_weight", POSITIVE, 0.1, "The weight of the value's loss."),
            number("entropy_weight", NOT_NEGATIVE, 0.0, "The weight of the entropy, which is added to what is maximised."),
            MISSING_EOS_PENALTY,
            field("normalize_scores", FieldType::Bool, Need::Default(Literal::Bool(false)), "(score − running mean) / running deviation."),
            field("scale_scores", FieldType::Bool, Need::Default(Literal::Bool(false)), "score / running deviation."),
            field("score_clip", POSITIVE, Need::Optional, "Scores are cut to ± this."),
            field("whiten_rewards", FieldType::Bool, Need::Default(Literal::Bool(false)), "Divide rewards by their deviation over the batch."),
            field("whiten_advantages", FieldType::Bool, Need::Default(Literal::Bool(true)), "Centre advantages over the batch and divide them by their deviation."),
            field("advantage_clip", POSITIVE, Need::Optional, "Advantages are cut to ± this."),
            field("target_kl", POSITIVE, Need::Optional, "An epoch that moved the policy further than this (half the mean squared change of log π) is the update's last."),
            number("mixed_weight", NOT_NEGATIVE, 0.0, "The weight of the cross entropy of `mixed` rows (PPO-ptx)."),
            field("mixed_length", FieldType::Integer { min: 2, max: 1 << 20 }, Need::Default(Literal::Integer(MIXED_LENGTH)), "The longest mixed row in tokens; longer ones are cut."),
            WEIGHTS,
            learning_rate(3e-6),
            field("critic_learning_rate", RATE, Need::Optional, "The critic's highest learning rate; that of the policy unless given."),
            field("critic_warmup", count(0), Need::Default(Literal::Integer(0)), "In the first so many updates only the critic learns."),
        ],
        &STEPPING,
    ],
    ports: &[
        POLICY,
        REWARD,
        PROMPTS,
        REFERENCE,
        Port {
            name: "critic",
            accepts: &[ArtifactType::RewardModel, ArtifactType::Model],
            arity: Arity::Optional,
            layouts: &[],
            doc: "Where the critic starts; the policy with a head of zeros unless given.",
        },
        Port {
            name: "mixed",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::Optional,
            layouts: &["text", "prompt-completion", "messages"],
            doc: "Rows for the language-modelling loss.",
        },
    ],
    outputs: &[
        TRAINED[0],
        TRAINED[1],
        Output::new("critic", ArtifactType::RewardModel, "The trained critic."),
    ],
    preparations: &[],
    layout: None,
    check: fits,
    check_inputs: Some(fits_inputs),
    memory: None,
};

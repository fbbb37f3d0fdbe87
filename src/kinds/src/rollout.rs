//! The parameters that PPO, RLOO and GRPO share: how completions are sampled and scored, the optimizer, snapshots.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Field, FieldType, Inputs, Literal, Need, Output, Port};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::trains;
use crate::memory;
use crate::training::{
    BETA1, BETA2, EPSILON, MAX_GRAD_NORM, SCHEDULE, SEED, SNAPSHOT_SECONDS, WARMUP, WEIGHT_DECAY,
};
use crate::words::{NOT_NEGATIVE, NUMBER, POSITIVE, count, field, numeric, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Rollout {
    /// Updates in all.
    pub updates: usize,
    /// Completions of an update.
    pub batch: usize,
    /// Minibatches of an epoch.
    pub minibatches: usize,
    /// Epochs of an update.
    pub epochs: usize,
    /// Completions at once.
    pub micro_batch: usize,
    /// Tokens of a completion.
    pub max_new_tokens: usize,
    /// Temperature.
    pub temperature: f64,
    /// What a completion without end loses.
    pub missing_eos_penalty: f64,
    /// Judge → weight.
    pub weights: Map<String, Value>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// `constant`, `linear` or `cosine`.
    pub schedule: String,
    /// Fraction of the updates over which the rate rises.
    pub warmup: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Largest norm of the gradient; 0 for none.
    pub max_grad_norm: f64,
    /// Where `shuffle`, `sample` and `minibatch` start.
    pub seed: u64,
    /// Seconds between snapshots.
    pub snapshot_seconds: u64,
}

/// What GRPO and RLOO have besides.
#[derive(Clone, Debug, Deserialize)]
pub struct Groups {
    /// Completions of a prompt.
    pub group: usize,
    /// The clip range.
    pub clip: f64,
    /// The clip range above 1.
    pub clip_high: Option<f64>,
    /// Leave out completions without end.
    pub mask_truncated: bool,
    /// Cut rewards.
    pub reward_clip: Option<f64>,
}

/// Completions of a prompt.
pub(crate) const fn group(default: i64) -> Field {
    field(
        "group",
        FieldType::Integer { min: 2, max: 4096 },
        Need::Default(Literal::Integer(default)),
        "Completions of each prompt.",
    )
}

/// The clip range.
pub(crate) const CLIP: Field = field(
    "clip",
    POSITIVE,
    Need::Default(Literal::Number(0.2)),
    "How far below 1 the ratio may count, and above unless `clip_high` is given.",
);

/// The clip range above 1.
pub(crate) const CLIP_HIGH: Field = field(
    "clip_high",
    POSITIVE,
    Need::Optional,
    "How far above 1 the ratio may count.",
);

/// Whether completions without end teach.
pub(crate) const MASK_TRUNCATED: Field = field(
    "mask_truncated",
    FieldType::Bool,
    Need::Default(Literal::Bool(false)),
    "Leave completions without end out of the loss.",
);

/// The range of rewards.
pub(crate) const REWARD_CLIP: Field = field(
    "reward_clip",
    POSITIVE,
    Need::Optional,
    "Rewards are cut to ± this.",
);

/// What a policy that learned from a judge comes with.
pub(crate) const TRAINED: [Output; 2] = [
    Output::new("model", ArtifactType::Model, "The trained policy.")
        .keeps_tokenizer_of("model")
        .foreseen(memory::same),
    Output::new(
        "metrics",
        ArtifactType::Metrics,
        "What each update measured.",
    )
    .metrics(|_, _| words(&["updates", "first_score", "last_score", "last_kl"])),
];

/// Updates.
pub(crate) const UPDATES: Field = field(
    "updates",
    count(1),
    Need::Default(Literal::Integer(100)),
    "How often completions are sampled and learned from.",
);

/// Completions of an update.
pub(crate) const ROLLOUT_BATCH: Field = field(
    "batch",
    FieldType::Integer { min: 1, max: 65536 },
    Need::Default(Literal::Integer(64)),
    "Completions of one update.",
);

/// Minibatches.
pub(crate) const MINIBATCHES: Field = field(
    "minibatches",
    FieldType::Integer { min: 1, max: 65536 },
    Need::Default(Literal::Integer(1)),
    "Into how many equal parts the completions are cut in each epoch; each is one step of the optimizer.",
);

/// Epochs of an update.
pub(crate) const fn update_epochs(default: i64) -> Field {
    field(
        "epochs",
        FieldType::Integer { min: 1, max: 1000 },
        Need::Default(Literal::Integer(default)),
        "Passes over the completions of an update.",
    )
}

/// Completions at once.
const MICRO_BATCH: Field = numeric(
    "micro_batch",
    FieldType::Integer { min: 1, max: 65536 },
    Need::Default(Literal::Integer(16)),
    "Completions that go through the model at once: less needs less memory, and changes the last bits only.",
);

/// The last fields of all three: how a step of the optimizer is taken at the learning rate, the seed, and how it runs.
pub(crate) const STEPPING: [Field; 10] = [
    SCHEDULE,
    WARMUP,
    WEIGHT_DECAY,
    BETA1,
    BETA2,
    EPSILON,
    MAX_GRAD_NORM,
    SEED,
    MICRO_BATCH,
    SNAPSHOT_SECONDS,
];

/// Temperature of sampling.
pub(crate) const fn sampling_temperature(default: f64) -> Field {
    field(
        "temperature",
        POSITIVE,
        Need::Default(Literal::Number(default)),
        "Completions are drawn from softmax(logits / temperature), and every log-probability is taken at it.",
    )
}

/// The penalty of completions that do not end.
pub(crate) const MISSING_EOS_PENALTY: Field = field(
    "missing_eos_penalty",
    NOT_NEGATIVE,
    Need::Default(Literal::Number(0.0)),
    "What the score of a completion loses that was cut off at `max_new_tokens`; 1 is usual where answers should end.",
);

/// Weights of judges.
pub(crate) const WEIGHTS: Field = field(
    "weights",
    FieldType::Map {
        of: &NUMBER,
        ordered: false,
    },
    Need::Default(Literal::EmptyMap),
    "The weight of each of several judges, by its name; 1 unless given.",
);

/// Weights of judges that `port` does not have, which would weigh nothing.
pub(crate) fn unknown_judges(
    params: &Map<String, Value>,
    inputs: &Inputs<'_>,
    port: &str,
) -> Vec<(&'static str, String)> {
    let Some(weights) = params.get("weights").and_then(Value::as_object) else {
        return Vec::new();
    };
    let judges = (inputs.names)(port);
    let known: Vec<String> = judges.iter().map(|name| format!("`{name}`")).collect();
    let strangers = weights.keys().filter(|name| !judges.contains(name));
    strangers
        .map(|name| {
            let why = match judges.as_slice() {
                [] => format!("there is no `{port}`"),
                [one] if one == port => {
                    format!(
                        "the one that there is has no name; give it one, `{port}: {{ {name}: … }}`"
                    )
                }
                _ => format!("`{port}` has {}", known.join(", ")),
            };
            let message = format!("`weights` names `{name}`, which is no judge here: {why}");
            ("weights", message)
        })
        .collect()
}

/// The same where judges give rewards, and a policy that can't be trained.
pub(crate) fn unknown_rewards(
    params: &Map<String, Value>,
    inputs: &Inputs<'_>,
) -> Vec<(&'static str, String)> {
    let mut problems = unknown_judges(params, inputs, REWARD.name);
    problems.extend(trains(params, inputs));
    problems
}

/// Who scores.
pub(crate) const REWARD: Port = Port {
    name: "reward",
    accepts: &[ArtifactType::RewardModel, ArtifactType::Judge],
    arity: Arity::OneOrMany,
    layouts: &[],
    doc: "The judge that scores completions: a reward model or a rule, or several by name, whose weighted scores are added.",
};

/// The layouts whose rows have prompts.
pub(crate) const PROMPTED: &[&str] = &[
    "text",
    "prompt-completion",
    "messages",
    "preference",
    "ranking",
    "unpaired",
    "scored",
];

/// Whose prompts are answered.
pub(crate) const PROMPTS: Port = Port {
    name: "prompts",
    accepts: &[ArtifactType::Dataset],
    arity: Arity::One,
    layouts: PROMPTED,
    doc: "The rows whose prompts are answered.",
};

/// What the policy is held to.
pub(crate) const REFERENCE: Port = Port {
    name: "reference",
    accepts: &[ArtifactType::Model],
    arity: Arity::Optional,
    layouts: &[],
    doc: "What the policy is held to; `model` as it comes in unless given.",
};

/// A batch must be a number of minibatches of whole groups.
pub(crate) fn whole_groups(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let number = |name: &str| {
        let value = params.get(name).and_then(Value::as_u64);
        value.unwrap_or(1).max(1)
    };
    let (batch, group, parts) = (number("batch"), number("group"), number("minibatches"));
    if batch.is_multiple_of(group * parts) {
        return Vec::new();
    }
    vec![(
        "batch",
        format!(
            "{batch} completions can't be cut into {parts} minibatches of whole groups of {group}"
        ),
    )]
}

//! The parameters that every training shares: how steps are cut from rows, the optimizer, its schedule, snapshots.

use std::collections::BTreeMap;

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Field, FieldType, From, Literal, Need, Output, Port, Preparation,
};
use serde::Deserialize;

use crate::memory;
pub(crate) use crate::settings::{fits, fits_with_head};
use crate::words::{
    COMPLETION_FIELDS, FRACTION, MICRO_BATCH, NOT_NEGATIVE, POSITIVE, RATE, added, count,
    execution, field, words,
};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Training {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// `constant`, `linear` or `cosine`.
    pub schedule: String,
    /// Fraction of the steps over which the rate rises from 0.
    pub warmup: f64,
    /// Passes over the rows.
    pub epochs: f64,
    /// Overrides `epochs`.
    pub max_steps: Option<u64>,
    /// Rows of one update.
    pub batch: usize,
    /// Which parameters of a model without an adapter.
    pub train: Train,
    /// What each layer's rate is of that of the layer above.
    pub layer_decay: f64,
    /// After how many steps each layer begins after the one above.
    pub unfreeze_every: Option<u64>,
    /// Rates of some parameters, by patterns of their names.
    pub learning_rates: BTreeMap<String, f64>,
    /// `adamw`, `adamw_8bit` or `adafactor`.
    pub optimizer: String,
    /// `device` or `host`: where what the optimizer keeps lies between steps.
    pub optimizer_state: String,
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
    /// Where `shuffle` and `dropout` start.
    pub seed: u64,
    /// Rows at once.
    pub micro_batch: usize,
    /// Compute the inside of each layer again in the backward pass.
    pub checkpointing: bool,
    /// Seconds between snapshots.
    pub snapshot_seconds: u64,
}

/// Which parameters are trained where there is no adapter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Train {
    /// `all`, `norms`, `biases` or `head`.
    Word(String),
    /// Patterns of names.
    Names(Vec<String>),
    /// By depth.
    Depth {
        /// So many layers from the top, and what comes after them.
        last_layers: usize,
    },
}

impl Default for Train {
    fn default() -> Self {
        Self::Word(ALL.to_owned())
    }
}

impl Train {
    /// The choice among the names of parameters; none for a word that means nothing.
    pub fn choice(&self) -> Option<formats::choice::Choice> {
        use formats::choice::Choice;
        Some(match self {
            Self::Names(names) => Choice::Names(names.clone()),
            Self::Depth { last_layers } => Choice::LastLayers(*last_layers),
            Self::Word(word) => match word.as_str() {
                ALL => Choice::All,
                "norms" => Choice::Norms,
                "biases" => Choice::Biases,
                "head" => Choice::Head,
                _ => return None,
            },
        })
    }
}

/// The word for everything.
pub(crate) const ALL: &str = "all";

/// The words of `train`.
pub(crate) const TRAINED_BY_WORD: &[Choice] = &[
    Choice {
        word: ALL,
        doc: "every weight",
    },
    Choice {
        word: "norms",
        doc: "the weights of norms",
    },
    Choice {
        word: "biases",
        doc: "the biases (BitFit, arXiv 2106.10199)",
    },
    Choice {
        word: "head",
        doc: "the head only: that of rewards, or that of words where it is not the embedding",
    },
];

/// The key of a choice by depth.
pub(crate) const LAST_LAYERS: &str = "last_layers";

const SCHEDULES: &[Choice] = &[
    Choice {
        word: "linear",
        doc: "falls to 0 in a line",
    },
    Choice {
        word: "cosine",
        doc: "falls to 0 along half a cosine",
    },
    Choice {
        word: "constant",
        doc: "stays",
    },
];

const OPTIMIZERS: &[Choice] = &[
    Choice {
        word: "adamw",
        doc: "AdamW with both moments in f32: 8 bytes a trained number",
    },
    Choice {
        word: "adamw_8bit",
        doc: "AdamW with both moments in eight bits: 2 bytes a trained number",
    },
    Choice {
        word: "adafactor",
        doc: "of a matrix's second moment the means of rows and columns, no first: next to nothing",
    },
];

const STATES: &[Choice] = &[
    Choice {
        word: "device",
        doc: "beside the weights",
    },
    Choice {
        word: "host",
        doc: "in the host's memory, from where each weight's visits the device for its step",
    },
];

/// Adam's first decay, unless given.
pub(crate) const USUAL_BETA1: f64 = 0.9;

/// Adam's second decay, unless given.
pub(crate) const USUAL_BETA2: f64 = 0.999;

/// Adam's ε, unless given.
pub(crate) const USUAL_EPSILON: f64 = 1e-8;

const fn below_one(name: &'static str, default: f64, doc: &'static str) -> Field {
    field(
        name,
        FieldType::Number {
            min: 0.0,
            max: 0.999_999_999,
            above: false,
        },
        Need::Default(Literal::Number(default)),
        doc,
    )
}

/// The peak of the learning rate.
pub(crate) const fn learning_rate(default: f64) -> Field {
    field(
        "learning_rate",
        RATE,
        Need::Default(Literal::Number(default)),
        "The highest learning rate.",
    )
}

/// How the rate falls.
pub(crate) const SCHEDULE: Field = field(
    "schedule",
    FieldType::Choice(SCHEDULES),
    Need::Default(Literal::Text("linear")),
    "How the rate falls after the warm-up.",
);

/// How the rate rises.
pub(crate) const WARMUP: Field = field(
    "warmup",
    FRACTION,
    Need::Default(Literal::Number(0.03)),
    "The fraction of the steps in which the rate rises from 0.",
);

/// Passes over the rows.
const EPOCHS: Field = field(
    "epochs",
    POSITIVE,
    Need::Default(Literal::Number(1.0)),
    "Passes over the rows; 0.5 is half a pass.",
);

/// The end, if it is not that of the epochs.
pub(crate) const MAX_STEPS: Field = field(
    "max_steps",
    count(1),
    Need::Optional,
    "Stop after so many updates, whatever `epochs` says.",
);

/// Rows of an update.
const BATCH: Field = field(
    "batch",
    FieldType::Integer {
        min: 1,
        max: 1 << 20,
    },
    Need::Default(Literal::Integer(8)),
    "Rows of one update, on all devices together.",
);

/// Which parameters are trained.
const TRAIN: Field = added(
    "train",
    FieldType::Either(&[
        FieldType::Choice(TRAINED_BY_WORD),
        FieldType::List {
            of: &FieldType::Text,
            min: 1,
        },
        FieldType::Map {
            of: &FieldType::Integer { min: 1, max: 65536 },
            ordered: false,
        },
    ]),
    Literal::Text(ALL),
    "What is trained of a model without an adapter: a word; a list of names, each some whole parts of a parameter's name in which `*` stands for \
     anything (`q_proj`, `layers.2`, `'*norm*'` in quotes); or `{ last_layers: 2 }`, the last layers and what comes after them.",
);

/// Lower layers learn slower.
const LAYER_DECAY: Field = added(
    "layer_decay",
    FieldType::Number {
        min: 0.0,
        max: 1.0,
        above: true,
    },
    Literal::Number(1.0),
    "The learning rate of each layer over that of the layer above it; the last layer and what comes after it have the whole rate, the embedding has \
     the least. 0.9 is usual.",
);

/// Lower layers begin later.
const UNFREEZE_EVERY: Field = field(
    "unfreeze_every",
    count(1),
    Need::Optional,
    "Gradual unfreezing: the last layer and what comes after it learn from the first step, each layer below begins so many steps after the one above, \
     the embedding last. What waits is computed without a way back. Unless given, everything begins at once.",
);

/// Some parameters learn at rates of their own.
const LEARNING_RATES: Field = added(
    "learning_rates",
    FieldType::Map {
        of: &RATE,
        ordered: false,
    },
    Literal::EmptyMap,
    "The highest learning rates of trained parameters by names as in `train`, such as `{ layers.1: 1.0e-5 }`; of several that match, the longest \
     holds. `schedule` and `layer_decay` change them as they change `learning_rate`.",
);

/// How a weight follows its gradient.
pub(crate) const OPTIMIZER: Field = added(
    "optimizer",
    FieldType::Choice(OPTIMIZERS),
    Literal::Text("adamw"),
    "How a weight follows its gradient, and what that needs beside the weights.",
);

/// Where moments and masters lie.
const OPTIMIZER_STATE: Field = execution(
    "optimizer_state",
    FieldType::Choice(STATES),
    Need::Default(Literal::Text("device")),
    "Where what the optimizer keeps of each weight lies between steps: `host` takes it out of a GPU's memory and makes steps slower, in the manner of \
     QLoRA's paged optimizers; the numbers are the same. On the CPU both are one.",
);

/// Decoupled weight decay.
pub(crate) const WEIGHT_DECAY: Field = field(
    "weight_decay",
    NOT_NEGATIVE,
    Need::Default(Literal::Number(0.0)),
    "λ: decoupled weight decay; norms and biases are spared, and so are the numbers of (IA)³, the lengths of DoRA and virtual tokens, which do not start at 0.",
);

/// Adam's first decay.
pub(crate) const BETA1: Field =
    below_one("beta1", USUAL_BETA1, "β₁: decay of the mean of gradients.");

/// Adam's second decay.
pub(crate) const BETA2: Field = below_one(
    "beta2",
    USUAL_BETA2,
    "β₂: decay of the mean of squared gradients.",
);

/// Adam's ε.
pub(crate) const EPSILON: Field = field(
    "epsilon",
    FieldType::Number {
        min: 1e-20,
        max: 1.0,
        above: false,
    },
    Need::Default(Literal::Number(USUAL_EPSILON)),
    "ε.",
);

/// Clipping.
pub(crate) const MAX_GRAD_NORM: Field = field(
    "max_grad_norm",
    NOT_NEGATIVE,
    Need::Default(Literal::Number(1.0)),
    "The gradient is scaled down to this norm; 0 for never.",
);

/// Where random numbers come from.
pub(crate) const SEED: Field = field(
    "seed",
    FieldType::Seed,
    Need::Optional,
    "Where the order of rows and dropout start; the recipe's seed unless given.",
);

/// Memory for time.
const CHECKPOINTING: Field = execution(
    "checkpointing",
    FieldType::Bool,
    Need::Default(Literal::Bool(false)),
    "Keep only what goes into each layer and compute its inside again on the way back (gradient checkpointing): less memory, one more \
     forward, the same numbers.",
);

/// How often a snapshot is written.
pub(crate) const SNAPSHOT_SECONDS: Field = execution(
    "snapshot_seconds",
    FieldType::Integer {
        min: 1,
        max: 1 << 30,
    },
    Need::Default(Literal::Integer(60)),
    "Seconds between snapshots from which a killed training goes on.",
);

/// The first fields of every training on rows: its rate, with this default, how steps are cut from rows, what learns and how, the seed.
pub(crate) const fn learning(rate: f64) -> [Field; 18] {
    [
        learning_rate(rate),
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
    ]
}

/// The last: how it runs.
pub(crate) const RUNNING: [Field; 3] = [MICRO_BATCH, CHECKPOINTING, SNAPSHOT_SECONDS];

/// The policy.
pub(crate) const POLICY: Port = Port {
    name: "model",
    accepts: &[ArtifactType::Model],
    arity: Arity::One,
    layouts: &[],
    doc: "The policy to train.",
};

/// The completions of `data` as tokens of the model.
pub(crate) const COMPLETIONS: Preparation = Preparation {
    name: "tokens",
    kind: "tokenize_completions",
    inputs: &[
        ("tokenizer", From::TokenizerOf("model")),
        ("data", From::Port("data")),
    ],
    fields: &COMPLETION_FIELDS,
    replaces: &["data"],
};

/// What a policy that learned from comparisons comes with.
pub(crate) const TRAINED: [Output; 2] = [
    Output::new("model", ArtifactType::Model, "The trained policy.")
        .keeps_tokenizer_of("model")
        .foreseen(memory::same),
    Output::new(
        "metrics",
        ArtifactType::Metrics,
        "Loss, rewards and accuracy of each step.",
    )
    .metrics(|_, _| words(&["first_loss", "last_loss", "steps", "tokens"])),
];

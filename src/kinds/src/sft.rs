//! `sft`: supervised fine-tuning.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, From, Literal, Need, Output, Pool, Port,
    Preparation, Repeatable, no_check,
};
use serde::Deserialize;

use crate::words::{
    FRACTION, LOSS_ON, MAX_LENGTH, MICRO_BATCH, NOT_NEGATIVE, POSITIVE, TOKENIZE_FIELDS,
    TRUNCATION, count, execution, field, words,
};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sft {
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
    /// See `tokenize`.
    pub max_length: usize,
    /// See `tokenize`.
    pub truncation: String,
    /// See `tokenize`.
    pub loss_on: String,
    /// Rows at once.
    pub micro_batch: usize,
    /// Seconds between snapshots.
    pub snapshot_seconds: u64,
}

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

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "sft",
    version: 2,
    about: "Trains a model on rows by next-token prediction (supervised fine-tuning).",
    manual: "\
Minimises the mean over the counted tokens of −log p(token | what comes before), taken over the whole batch: the sum over all
micro-batches divided by their number of counted tokens, so that `micro_batch` changes the last bits only. With an adapter only
the adapter is trained; without one, every weight is.

AdamW (Loshchilov and Hutter, arXiv 1711.05101) with states in f32: with g the gradient after clipping, m ← β₁m + (1−β₁)g,
v ← β₂v + (1−β₂)g², w ← w − η(λw + m̂/(√v̂ + ε)). The rate η rises in a line from 0 over `warmup` of the steps, then follows
`schedule`. The rows of an epoch are a permutation drawn from the stream `shuffle` of the seed; a last batch that is not full
is trained as it is.

A killed or stopped training goes on from its last snapshot, and ends with the same bytes as one that was left alone.",
    example: "tuned: { kind: sft, model: thin, data: halves.train, learning_rate: 2.0e-4, epochs: 1 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field("learning_rate", POSITIVE, Need::Default(Literal::Number(2e-4)), "The highest learning rate."),
        field("schedule", FieldType::Choice(SCHEDULES), Need::Default(Literal::Text("linear")), "How the rate falls after the warm-up."),
        field("warmup", FRACTION, Need::Default(Literal::Number(0.03)), "The fraction of the steps in which the rate rises from 0."),
        field("epochs", POSITIVE, Need::Default(Literal::Number(1.0)), "Passes over the rows; 0.5 is half a pass."),
        field("max_steps", count(1), Need::Optional, "Stop after so many updates, whatever `epochs` says."),
        field("batch", FieldType::Integer { min: 1, max: 1 << 20 }, Need::Default(Literal::Integer(8)), "Rows of one update, on all devices together."),
        field("weight_decay", NOT_NEGATIVE, Need::Default(Literal::Number(0.0)), "λ: decoupled weight decay; norms and biases are spared."),
        below_one("beta1", 0.9, "β₁: decay of the mean of gradients."),
        below_one("beta2", 0.999, "β₂: decay of the mean of squared gradients."),
        field("epsilon", FieldType::Number { min: 1e-20, max: 1.0, above: false }, Need::Default(Literal::Number(1e-8)), "ε."),
        field("max_grad_norm", NOT_NEGATIVE, Need::Default(Literal::Number(1.0)), "The gradient is scaled down to this norm; 0 for never."),
        field("seed", FieldType::Seed, Need::Optional, "Where the order of rows and dropout start; the recipe's seed unless given."),
        MAX_LENGTH,
        TRUNCATION,
        LOSS_ON,
        MICRO_BATCH,
        execution(
            "snapshot_seconds",
            FieldType::Integer { min: 1, max: 1 << 30 },
            Need::Default(Literal::Integer(60)),
            "Seconds between snapshots from which a killed training goes on.",
        ),
    ],
    ports: &[
        Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model to train." },
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["text", "prompt-completion", "messages"],
            doc: "The rows to train on.",
        },
    ],
    outputs: &[
        Output::new("model", ArtifactType::Model, "The trained model.").keeps_tokenizer_of("model"),
        Output::new("metrics", ArtifactType::Metrics, "Loss, rate and gradient norm of each step.")
            .metrics(|_, _| words(&["first_loss", "last_loss", "steps", "tokens"])),
    ],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize",
        inputs: &[("tokenizer", From::TokenizerOf("model")), ("data", From::Port("data"))],
        fields: &TOKENIZE_FIELDS,
        replaces: &["data"],
    }],
    layout_of: None,
    check: no_check,
    memory: None,
};

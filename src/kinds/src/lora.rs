//! `lora`: a model → the same model with a low-rank adapter to train.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, Field, FieldType, Literal, Need, Output, Pool, Port, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::unadapted;
use crate::memory;
use crate::words::{field, twice};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rank.
    pub r: usize,
    /// Scale, before division by the rank.
    pub alpha: f64,
    /// Probability that an input of A is dropped in training.
    pub dropout: f64,
    /// One pattern or several.
    pub targets: Targets,
    /// Divide by √r instead of r.
    pub rslora: bool,
    /// A trained length for each row of a weight.
    pub dora: bool,
    /// Where the stream `init` starts.
    pub seed: u64,
}

/// Which linear layers get an adapter.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// `all-linear` or one pattern.
    One(String),
    /// Several patterns.
    Many(Vec<String>),
}

impl Targets {
    /// The patterns.
    pub fn patterns(&self) -> Vec<String> {
        match self {
            Self::One(pattern) => vec![pattern.clone()],
            Self::Many(patterns) => patterns.clone(),
        }
    }
}

/// Layers that are named twice.
fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    twice(params, "targets")
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "lora",
    version: 1,
    about: "Attaches a low-rank adapter (LoRA) to a frozen model.",
    manual: "\
For a linear layer y = W x the adapter adds s·B A x, with A of r × in and B of out × r; W stays frozen. s = alpha / r, or
alpha / √r with `rslora`. A starts from U(−1/√in, 1/√in) (Kaiming with a = √5, as in PEFT), drawn from the stream `init` of the
seed; B starts at 0, so that the model is at first unchanged. The files are PEFT's: `adapter_model.safetensors` in f32 and
`adapter_config.json`.

With `dora` (weight-decomposed LoRA) the length of each row of the weight is trained by itself, and the rest of the adapter changes its
direction: y = m / ‖W + s·B A‖ · (W x + s·B A x), with ‖·‖ the length of each row, a constant in the backward pass, and m, one number for
each output, at first ‖W‖. With dropout, as in PEFT, y = W x + (m / ‖·‖ − 1) W x' + m / ‖·‖ s·B A x' for the x' that elements were
dropped from. The lengths follow from ‖W‖ and from products with A and B, so no copy of W is made; with dropout W is multiplied twice. W
may be quantized (QDoRA): m then starts from the lengths of the rows that its codes stand for. `weight_decay` spares m, which would otherwise be
pulled towards 0, away from ‖W‖; PEFT with transformers' trainer decays it.

Source: Hu et al., *LoRA*, arXiv 2106.09685; rsLoRA: Kalajdzievski, arXiv 2312.03732; DoRA: Liu et al., arXiv 2402.09353.",
    example: "thin: { kind: lora, model: base, r: 16, alpha: 32, targets: all-linear }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field("r", FieldType::Integer { min: 1, max: 65536 }, Need::Default(Literal::Integer(8)), "The rank."),
        field(
            "alpha",
            // Twice the largest rank: what is above is a slip.
            FieldType::Number { min: 0.0, max: 131_072.0, above: true },
            Need::Default(Literal::Number(16.0)),
            "The scale is alpha / r.",
        ),
        field(
            "dropout",
            FieldType::Number { min: 0.0, max: 0.99, above: false },
            Need::Default(Literal::Number(0.0)),
            "The probability that an input of the adapter is dropped in training.",
        ),
        field(
            "targets",
            FieldType::Either(&[FieldType::Text, FieldType::List { of: &FieldType::Text, min: 1 }]),
            Need::Default(Literal::Text("all-linear")),
            "`all-linear` (every linear layer but the head), or names such as `q_proj`, `v_proj` or `'layers.1*.mlp'` in quotes: each some whole \
             parts of a layer's name, in which `*` stands for anything.",
        ),
        field("rslora", FieldType::Bool, Need::Default(Literal::Bool(false)), "Scale by alpha / √r, which keeps large ranks stable."),
        Field {
            neutral: Some(Literal::Bool(false)),
            ..field(
                "dora",
                FieldType::Bool,
                Need::Default(Literal::Bool(false)),
                "Train the length of each row of a weight by itself (DoRA), which comes nearer to training all of it at small ranks.",
            )
        },
        field("seed", FieldType::Seed, Need::Optional, "Where the draw of A starts; the recipe's seed unless given."),
    ],
    ports: &[Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model to adapt." }],
    outputs: &[Output::new("model", ArtifactType::Model, "The model with its adapter, ready to train.").keeps_tokenizer_of("model").foreseen(memory::adapted)],
    preparations: &[],
    layout: None,
    check: fits,
    check_inputs: Some(unadapted),
    memory: None,
};

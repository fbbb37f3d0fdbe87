//! `quantize`: a model → the same model with its linear layers in four or eight bits.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::memory;
use crate::words::{field, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantize {
    /// `nf4` or `int8`.
    pub scheme: String,
    /// Values to a scale, of `nf4`.
    pub block: Option<usize>,
    /// Scales in eight bits, of `nf4`.
    pub double_quant: Option<bool>,
    /// Linear layers that stay as they are.
    pub skip: Vec<String>,
}

impl Quantize {
    /// Values to a scale.
    pub fn block(&self) -> usize {
        self.block.unwrap_or(64)
    }

    /// Whether scales are quantized, too.
    pub fn double_quant(&self) -> bool {
        self.double_quant.unwrap_or(true)
    }
}

/// Sizes of a block that bitsandbytes does not take, and options of the other scheme.
fn check(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let given = |name: &str| params.get(name).filter(|value| !value.is_null());
    if params.get("scheme").and_then(Value::as_str) == Some("int8") {
        for name in ["block", "double_quant"] {
            if given(name).is_some() {
                let message =
                    format!("`{name}` is for `nf4`: int8 has one scale for each row of a weight");
                problems.push((name, message));
            }
        }
    }
    if let Some(block) = given("block").and_then(Value::as_u64)
        && !(block.is_power_of_two() && (32..=4096).contains(&block))
    {
        let message =
            format!("a block has 32, 64, 128, 256, 512, 1024, 2048 or 4096 values, not {block}");
        problems.push(("block", message));
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "quantize",
    version: 1,
    about: "Stores the linear layers of a model in four or eight bits, to train adapters on (QLoRA) or to generate.",
    manual: "\
Every linear layer of the blocks is quantized; embeddings, norms, biases and the head stay in the model's `dtype`, to which weights are
rounded first. The model is then used as any other: `lora` on it is QLoRA. Products unpack a tile of the weight at a time, so no copy
of full size is kept; gradients go to the input and to adapters, never to the packed weight.

`nf4`: the weight's rows one after the other in blocks of `block` values; each block keeps its largest magnitude a as its scale, and of
each value x the nearest of the sixteen quantiles of a normal distribution to x / a. With `double_quant` the scales themselves are
stored in eight bits: less their mean, in blocks of 256, each the nearest of 256 values of bitsandbytes' signed dynamic map. That is
4.127 bits a value, 4.5 without. The files are what transformers and bitsandbytes write and read, and the codes are theirs bit for bit.

`int8`: each row of a weight keeps its largest magnitude a, and each value round(127 x / a).

One tensor is in memory at a time. `metrics.json` says of every tensor its bytes before and after and its error: the root of the mean
square of what rounding changed over that of the values, and the largest change. An `evaluate` with both models says what it does to
the loss.

Source: Dettmers et al., *QLoRA*, arXiv 2305.14314; Dettmers et al., *LLM.int8()*, arXiv 2208.07339; bitsandbytes 0.50.",
    example: "small: { kind: quantize, model: base, scheme: nf4, double_quant: true }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "scheme",
            FieldType::Choice(&[
                Choice { word: "nf4", doc: "four bits, the quantiles of a normal distribution (QLoRA)" },
                Choice { word: "int8", doc: "eight bits, a scale for each row" },
            ]),
            Need::Default(Literal::Text("nf4")),
            "How a weight is stored.",
        ),
        field(
            "block",
            FieldType::Integer { min: 32, max: 4096 },
            Need::Optional,
            "`nf4`: values that share a scale, a power of two; 64 unless given.",
        ),
        field("double_quant", FieldType::Bool, Need::Optional, "`nf4`: the scales in eight bits, too; true unless given."),
        field(
            "skip",
            FieldType::List { of: &FieldType::Text, min: 0 },
            Need::Default(Literal::EmptyList),
            "Linear layers that stay as they are, by names such as `down_proj` or `3.mlp.up_proj`: as `targets` of `lora`.",
        ),
    ],
    ports: &[Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model to quantize, without an adapter." }],
    outputs: &[
        Output::new("model", ArtifactType::Model, "The model with packed weights.").keeps_tokenizer_of("model").foreseen(memory::quantized),
        Output::new("metrics", ArtifactType::Metrics, "Bytes and errors of every tensor.")
            .metrics(|_, _| words(&["bytes_before", "bytes_after", "ratio", "error", "quantized"])),
    ],
    preparations: &[],
    layout: None,
    check,
    check_inputs: None,
    memory: None,
};

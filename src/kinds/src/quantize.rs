//! `quantize`: a model → the same model with its linear layers in four or eight bits.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, From, Inputs, Literal, Need, Output, Pool, Port,
    Preparation, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::{Mistakes, Told, adapter, measured, quantized};
use crate::lora::Targets;
use crate::memory;
use crate::merge::{COMPARED, rowless};
use crate::words::{LOSS_ON, MAX_LENGTH, MICRO_BATCH, TOKENIZE_FIELDS, TRUNCATION, field, words};

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
    pub skip: Targets,
    /// See `tokenize`.
    pub max_length: usize,
    /// See `tokenize`.
    pub truncation: String,
    /// See `tokenize`.
    pub loss_on: String,
    /// Rows at once.
    pub micro_batch: usize,
}

impl Quantize {
    /// Values to a scale.
    pub fn block(&self) -> usize {
        self.block.unwrap_or(BLOCK as usize)
    }

    /// Whether scales are quantized, too.
    pub fn double_quant(&self) -> bool {
        self.double_quant.unwrap_or(true)
    }
}

/// The values of a block unless given.
const BLOCK: i64 = 64;

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

/// The field, which at this value is as if it were not given.
const fn neutral(value: Literal, field: Field) -> Field {
    Field {
        neutral: Some(value),
        ..field
    }
}

/// Models that can't be quantized, or not be measured, and fields about rows that are not there.
fn fits_inputs(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let mut mistakes = rowless(params, inputs);
    mistakes.extend(measured(inputs));
    for (model, known) in (inputs.known)("model") {
        if let Told::Is(adapter) = adapter(&known) {
            let message = format!(
                "`{model}` has an adapter ({adapter}): quantize its base, and attach the adapter to the result, or `merge` it before"
            );
            mistakes.push(("model", message));
        } else if let Told::Is(scheme) = quantized(&known) {
            let message = format!(
                "`{model}` is quantized already ({scheme}): take the model that it was made of, in full precision"
            );
            mistakes.push(("model", message));
        }
    }
    mistakes
}

/// What is said in any case, and what only rows can tell.
fn names(_: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut all = words(&["bytes_before", "bytes_after", "ratio", "error", "quantized"]);
    if !named("data").is_empty() {
        all.extend(words(&COMPARED));
    }
    all
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "quantize",
    version: 1,
    about: "Stores the linear layers of a model in four or eight bits, to train adapters on (QLoRA) or to generate.",
    manual: "\
Every linear layer of the blocks is quantized; embeddings, norms, biases and the head (of an encoder the pooler, too) stay in the model's
`dtype`, to which weights are rounded first. The model is then used as any other: `lora` on it is QLoRA. Products unpack a tile of the
weight at a time, so no copy of full size is kept; gradients go to the input and to adapters, never to the packed weight.

`nf4`: the weight's rows one after the other in blocks of `block` values; each block keeps its largest magnitude a as its scale, and of
each value x the nearest of the sixteen quantiles of a normal distribution to x / a. With `double_quant` the scales themselves are
stored in eight bits: less their mean, in blocks of 256, each the nearest of 256 values of bitsandbytes' signed dynamic map. That is
4.127 bits a value, 4.5 without. The files are what transformers and bitsandbytes write and read, and the codes are theirs bit for bit.

`int8`: each row of a weight keeps its largest magnitude a, and each value round(127 x / a).

One tensor is in memory at a time. `metrics.json` says of every tensor its bytes before and after and its error: the root of the mean
square of what rounding changed over that of the values, and the largest change.

With `data` it says what that does to the model, as `merge` does: `loss_before` and `loss_after`, the mean of −log p(token) over the
counted tokens of the rows, and `kl` and `kl_max`, the mean and the largest KL(before ‖ after) at one of them, in nats. \"Before\" is `model`,
\"after\" the quantized one, read back from the file that was written; both are in memory then. Rows that no training saw tell most. An encoder (BERT)
predicts no next token and takes no `data`: `masked_lm_loss` measures it before and after. Without `data`
fields about rows are refused.

Source: Dettmers et al., *QLoRA*, arXiv 2305.14314; Dettmers et al., *LLM.int8()*, arXiv 2208.07339; bitsandbytes 0.50.",
    example: "small: { kind: quantize, model: base, scheme: nf4, double_quant: true }",
    pool: Pool::Torch,
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
        // Spelled out or left out, both are the same stage.
        neutral(
            Literal::Integer(BLOCK),
            field(
                "block",
                FieldType::Integer { min: 32, max: 4096 },
                Need::Optional,
                "`nf4`: values that share a scale, a power of two; 64 unless given.",
            ),
        ),
        neutral(
            Literal::Bool(true),
            field("double_quant", FieldType::Bool, Need::Optional, "`nf4`: the scales in eight bits, too; true unless given."),
        ),
        field(
            "skip",
            FieldType::Either(&[FieldType::Text, FieldType::List { of: &FieldType::Text, min: 0 }]),
            Need::Default(Literal::EmptyList),
            "Linear layers that stay as they are, by names such as `down_proj` or `3.mlp.up_proj`: as `targets` of `lora`.",
        ),
        // Without `data` they say nothing, and keys are those from before there was one.
        neutral(Literal::Integer(1024), MAX_LENGTH),
        neutral(Literal::Text("keep_start"), TRUNCATION),
        neutral(Literal::Text("completions"), LOSS_ON),
        MICRO_BATCH,
    ],
    ports: &[
        Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model to quantize, without an adapter." },
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::Optional,
            layouts: &["text", "prompt-completion", "messages"],
            doc: "Rows to compare a language model before and after on.",
        },
    ],
    outputs: &[
        Output::new("model", ArtifactType::Model, "The model with packed weights.").keeps_tokenizer_of("model").foreseen(memory::quantized),
        Output::new("metrics", ArtifactType::Metrics, "Bytes and errors of every tensor, and with `data` what they do to the loss.")
            .metrics(names),
    ],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize",
        inputs: &[("tokenizer", From::TokenizerOf("model")), ("data", From::Port("data"))],
        fields: &TOKENIZE_FIELDS,
        replaces: &["data"],
    }],
    layout: None,
    check,
    check_inputs: Some(fits_inputs),
    memory: None,
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::known::tests::{places, said};

    #[test]
    fn models_that_can_not_be_quantized_are_told_before() {
        let of = |facts: Value| places(fits_inputs, json!({}), &[("model", "m", facts)]);
        let none: [&str; 0] = [];
        assert_eq!(
            of(json!({ "adapter": "lora", "quantized": "nf4" })),
            ["model"]
        );
        assert_eq!(
            of(json!({ "adapter": null, "quantized": "int8" })),
            ["model"]
        );
        assert_eq!(of(json!({ "adapter": null, "quantized": null })), none);
        assert_eq!(of(json!({})), none);
        // Rows have no loss under an encoder.
        let bert = json!({ "adapter": null, "quantized": null, "architecture": "bert" });
        assert_eq!(of(bert.clone()), none);
        let on = |facts: Value| {
            let known = [("model", "m", facts), ("data", "rows", json!({}))];
            said(fits_inputs, json!({}), &known)
        };
        let found = on(bert);
        assert!(
            found.len() == 1 && found[0].0 == "data" && found[0].1.contains("`masked_lm_loss`"),
            "{found:?}"
        );
        let llama = json!({ "adapter": null, "quantized": null, "architecture": "llama" });
        assert!(on(llama).is_empty());
    }

    #[test]
    fn fields_about_rows_need_rows() {
        let of = |fields: Value| places(fits_inputs, fields, &[("model", "m", json!({}))]);
        let none: [&str; 0] = [];
        assert_eq!(of(json!({ "max_length": 1024, "micro_batch": 4 })), none);
        assert_eq!(of(json!({ "max_length": 64 })), ["max_length"]);
        let known = [("model", "m", json!({})), ("data", "rows", json!({}))];
        assert_eq!(
            places(fits_inputs, json!({ "max_length": 64 }), &known),
            none
        );
    }

    #[test]
    fn the_fields_of_a_comparison_are_neutral_at_their_defaults() {
        for name in TOKENIZE_FIELDS {
            let field = CONTRACT.field(name).unwrap();
            let Need::Default(default) = field.need else {
                panic!("`{name}` has no default")
            };
            assert_eq!(field.neutral, Some(default), "{name}");
        }
    }
}

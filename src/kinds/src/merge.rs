//! `merge`: a model with an adapter → the same model without one, its weights changed.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, From, Inputs, Literal, Need, Output, Pool, Port,
    Preparation, Repeatable, no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{LOSS_ON, MAX_LENGTH, MICRO_BATCH, TOKENIZE_FIELDS, TRUNCATION, field, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// `full_precision` or `dequantized`.
    pub into: String,
    /// See `tokenize`.
    pub max_length: usize,
    /// See `tokenize`.
    pub truncation: String,
    /// See `tokenize`.
    pub loss_on: String,
    /// Rows at once.
    pub micro_batch: usize,
}

/// The word of `into` for weights that were never quantized.
pub const FULL_PRECISION: &str = "full_precision";

/// The word of `into` for the quantized weights, unpacked.
pub const DEQUANTIZED: &str = "dequantized";

/// What is said in any case, and what only rows can tell.
fn names(_: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut all = words(&["modules", "largest_change", "rounding"]);
    if !named("data").is_empty() {
        all.extend(words(&[
            "tokens",
            "kl",
            "kl_max",
            "loss_before",
            "loss_after",
        ]));
    }
    all
}

/// A base that would not be read.
fn fits_inputs(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let unpacked = params.get("into").and_then(Value::as_str) == Some(DEQUANTIZED);
    if !unpacked || (inputs.names)("base").is_empty() {
        return Vec::new();
    }
    let message = "`into: dequantized` merges into the weights that `model` has, and `base` is not read: leave one of the two out";
    vec![("base", message.to_owned())]
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "merge",
    version: 1,
    about: "Writes an adapter's change into the weights: a plain model without adapter.",
    manual: "\
Every linear layer with an adapter gets the weight W' = W + s·B A, s as in `lora`; the result is a model as `load_model` reads one, for
programs that know no adapters, to quantize, or to attach the next adapter to. The sum is made in f32 from the numbers in the model's
file and rounded once to the model's `dtype`. In f32 that is the model with its adapter to the last bits. In bf16 it is not: a weight
keeps 8 bits, and a change that is small beside its weight is rounded, too. The metric `rounding` says how much of all changes that takes
away or adds: √(Σ‖rounded W' − W'‖² / Σ‖W' − W‖²) over the merged layers, 0 in f32. `largest_change` is the largest ‖W' − W‖ / ‖W‖ of a
layer (Frobenius norms), and `modules` counts the layers. Bottleneck adapters are not linear, no weight does what they do, and a model with
them is refused.

An adapter that was trained on a quantized model (QLoRA) was trained on rounded weights, and so the recipe says what it is merged into:

| | W | what comes out |
|---|---|---|
| `into: full_precision` with `base` | the weights of `base`, the model that was quantized | a model without the errors of quantization, but the adapter learned beside those errors and made up for some of them: the model before and after differ by as much as they do |
| `into: dequantized` | the quantized weights, unpacked | the model that was trained, up to the rounding above; the errors of quantization stay in it, and quantizing it again adds new ones |

Neither is better always, which is why it is measured: with `data`, `kl` and `kl_max` are the mean and the largest KL(before ‖ after) =
Σ p_before (log p_before − log p_after) over the vocabulary at the counted tokens of the rows, in nats, and `loss_before` and `loss_after`
the mean of −log p(token). \"Before\" is `model` with its adapter, \"after\" the merged model, read back from the file that was written. The
sums are in f64 over a few rows of logits at a time; both models are in memory then. Rows that no training saw tell most.

Tensors are written one at a time, so that beside the model with its adapter one tensor is in memory. The files are those of a Hugging Face
folder; `config.json` names no quantization. A reward model's adapter can't be merged.

Source: Hu et al., *LoRA*, arXiv 2106.09685 (section 4.1: no latency after merging); Dettmers et al., *QLoRA*, arXiv 2305.14314.",
    example: "plain: { kind: merge, model: tuned, data: halves.test }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "into",
            FieldType::Choice(&[
                Choice {
                    word: FULL_PRECISION,
                    doc: "weights that are not quantized: the model's own, or for an adapter on a quantized model those of `base`",
                },
                Choice { word: DEQUANTIZED, doc: "the quantized weights that the adapter was trained on, unpacked" },
            ]),
            Need::Default(Literal::Text(FULL_PRECISION)),
            "What the change is written into.",
        ),
        MAX_LENGTH,
        TRUNCATION,
        LOSS_ON,
        MICRO_BATCH,
    ],
    ports: &[
        Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model with an adapter." },
        Port {
            name: "base",
            accepts: &[ArtifactType::Model],
            arity: Arity::Optional,
            layouts: &[],
            doc: "Where the adapter is on a quantized model: the model that was quantized, in full precision and without an adapter. The \
                  result has its `dtype`.",
        },
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::Optional,
            layouts: &["text", "prompt-completion", "messages"],
            doc: "Rows to compare the model before and after on.",
        },
    ],
    outputs: &[
        Output::new("model", ArtifactType::Model, "The model without an adapter.").keeps_tokenizer_of("model"),
        Output::new("metrics", ArtifactType::Metrics, "What was changed in each layer, and with `data` what that did.").metrics(names),
    ],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize",
        inputs: &[("tokenizer", From::TokenizerOf("model")), ("data", From::Port("data"))],
        fields: &TOKENIZE_FIELDS,
        replaces: &["data"],
    }],
    layout: None,
    check: no_check,
    check_inputs: Some(fits_inputs),
    memory: None,
};

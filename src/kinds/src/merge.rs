//! `merge`: a model with an adapter → the same model without one, its weights changed.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, From, Inputs, Literal, Need, Output, Pool, Port,
    Preparation, Repeatable, Summary, no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::{Mistakes, Told, adapter, difference, measured, quantized};
use crate::memory;
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

/// What is said of a model before and after, where there are rows.
pub(crate) const COMPARED: [&str; 5] = ["tokens", "kl", "kl_max", "loss_before", "loss_after"];

/// Fields about rows where no rows are given. A field at its default is as if it were left out.
pub(crate) fn rowless(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    if !(inputs.names)("data").is_empty() {
        return Vec::new();
    }
    let fields = [&MAX_LENGTH, &TRUNCATION, &LOSS_ON, &MICRO_BATCH];
    let idle = fields.into_iter().filter(|field| {
        let usual = match field.need {
            Need::Default(literal) => literal.value(),
            _ => Value::Null,
        };
        params
            .get(field.name)
            .is_some_and(|given| *given != usual && !given.is_null())
    });
    idle.map(|field| {
        let name = field.name;
        let message = format!(
            "`{name}` is about rows to compare the model before and after on, and there are none: give `data`, or leave `{name}` out"
        );
        (name, message)
    })
    .collect()
}

/// What is said in any case, and what only rows can tell.
fn names(_: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut all = words(&["modules", "largest_change", "rounding"]);
    if !named("data").is_empty() {
        all.extend(words(&COMPARED));
    }
    all
}

/// A base that would not be read, models that can't be merged, and encoders that rows can't measure.
fn fits_inputs(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let unpacked = params.get("into").and_then(Value::as_str) == Some(DEQUANTIZED);
    let given = !(inputs.names)("base").is_empty();
    if unpacked && given {
        let message = "`into: dequantized` merges into the weights that `model` has, and `base` is not read: leave one of the two out";
        return vec![("base", message.to_owned())];
    }
    let mut mistakes = rowless(params, inputs);
    mistakes.extend(measured(inputs));
    for (model, known) in (inputs.known)("model") {
        if adapter(&known) == Told::None {
            let message = format!(
                "`{model}` has no adapter, so there is nothing to merge: name a model that `lora` gave one and that was trained with it"
            );
            mistakes.push(("model", message));
            continue;
        }
        if let Told::Is(word @ ("prompt_tuning" | "prefix_tuning")) = adapter(&known) {
            let message = format!(
                "the adapter of `{model}` is virtual tokens before every row ({word}), which change no weight: there is nothing to merge"
            );
            mistakes.push(("model", message));
            continue;
        }
        if adapter(&known) == Told::Is("bottleneck") {
            let message = format!(
                "the bottleneck adapters of `{model}` are not linear, so no change of a weight does what they do: there is nothing to merge"
            );
            mistakes.push(("model", message));
            continue;
        }
        match quantized(&known) {
            Told::Is(scheme) if !unpacked && !given => mistakes.push((
                "model",
                format!(
                    "the adapter of `{model}` is on a quantized model ({scheme}). Give the model that was quantized as `base`, to merge into that, \
                     or say `into: dequantized`, to merge into the quantized weights unpacked"
                ),
            )),
            Told::None if unpacked => mistakes.push((
                "into",
                format!(
                    "`into: dequantized` is for adapters on quantized models, and the base of `{model}` is not quantized: leave `into` out"
                ),
            )),
            Told::None if given => mistakes.push((
                "base",
                format!(
                    "`base` is for adapters on quantized models. The base of `{model}` is not quantized, and the adapter is merged into it: leave \
                     `base` out"
                ),
            )),
            _ => mistakes.extend(strange_bases(inputs, &model, &known)),
        }
    }
    mistakes
}

/// Bases that are not the one of `model` in full precision, whose facts are `known`.
fn strange_bases(inputs: &Inputs<'_>, model: &str, known: &Summary) -> Mistakes {
    let bases = (inputs.known)("base").into_iter();
    let said = bases.filter_map(|(base, facts)| {
        if let Told::Is(adapter) = adapter(&facts) {
            return Some(format!(
                "`{base}` has an adapter itself ({adapter}): take the model that was quantized, or merge that adapter first"
            ));
        }
        if let Told::Is(scheme) = quantized(&facts) {
            return Some(format!(
                "`{base}` is quantized, too ({scheme}): take the model that was quantized, in full precision, or merge with `into: dequantized`"
            ));
        }
        let (name, own, other) = difference(known, &facts)?;
        Some(format!(
            "`{base}` has another shape than `{model}` ({name}: {other}, not {own}), so the adapter belongs to another model: take the one that \
             `quantize` was given"
        ))
    });
    said.map(|message| ("base", message)).collect()
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
layer (Frobenius norms), and `modules` counts the layers. (IA)³ multiplies the columns of W, or its rows and the
bias, whose change counts in `rounding`. Bottleneck adapters are not linear, no weight does what they do, and a model with
them is refused; so is one behind virtual tokens, which change no weight.

An adapter that was trained on a quantized model (QLoRA) was trained on rounded weights, and so the recipe says what it is merged into:

| | W | what comes out |
|---|---|---|
| `into: full_precision` with `base` | the weights of `base`, the model that was quantized | a model without the errors of quantization, but the adapter learned beside those errors and made up for some of them: the model before and after differ by as much as they do |
| `into: dequantized` | the quantized weights, unpacked | the model that was trained, up to the rounding above; the errors of quantization stay in it, and quantizing it again adds new ones |

Neither is better always, which is why it is measured: with `data`, `kl` and `kl_max` are the mean and the largest KL(before ‖ after) =
Σ p_before (log p_before − log p_after) over the vocabulary at the counted tokens of the rows, in nats, and `loss_before` and `loss_after`
the mean of −log p(token). \"Before\" is `model` with its adapter, \"after\" the merged model, read back from the file that was written. The
sums are in f64 over a few rows of logits at a time; both models are in memory then. Rows that no training saw tell most. An encoder (BERT) predicts no
next token and takes no `data`: `masked_lm_loss` measures it before and after. Without `data` fields about rows are
refused.

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
            doc: "Rows to compare a language model before and after on.",
        },
    ],
    outputs: &[
        Output::new("model", ArtifactType::Model, "The model without an adapter.").keeps_tokenizer_of("model").foreseen(memory::merged),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::known::tests::{places, said};

    /// What is said of merging into `into` with these facts of `model` and `base`.
    fn of(into: &str, model: Value, base: Option<Value>) -> Vec<String> {
        let mut known = vec![("model", "tuned", model)];
        known.extend(base.map(|base| ("base", "whole", base)));
        let found = said(fits_inputs, json!({ "into": into }), &known).into_iter();
        found
            .map(|(place, text)| format!("{place}: {text}"))
            .collect()
    }

    #[test]
    fn what_can_not_be_merged_is_told_before_it_runs() {
        let qlora = || json!({ "adapter": "lora", "quantized": "nf4", "hidden": 32 });
        let plain =
            |hidden: u64| Some(json!({ "adapter": null, "quantized": null, "hidden": hidden }));
        let lora = || json!({ "adapter": "lora", "quantized": null });
        let none: [&str; 0] = [];
        assert_eq!(of(FULL_PRECISION, lora(), None), none);
        assert_eq!(of(FULL_PRECISION, qlora(), plain(32)), none);
        assert_eq!(of(DEQUANTIZED, qlora(), None), none);
        assert_eq!(of(FULL_PRECISION, json!({ "adapter": "lora" }), None), none);
        for (into, model, base, words) in [
            (
                FULL_PRECISION,
                json!({ "adapter": null }),
                None,
                "model: `tuned` has no adapter",
            ),
            (
                FULL_PRECISION,
                qlora(),
                None,
                "model: the adapter of `tuned` is on a quantized model (nf4)",
            ),
            (
                FULL_PRECISION,
                lora(),
                plain(32),
                "base: `base` is for adapters on quantized models",
            ),
            (
                DEQUANTIZED,
                lora(),
                None,
                "into: `into: dequantized` is for adapters on quantized models",
            ),
            (
                FULL_PRECISION,
                qlora(),
                plain(64),
                "base: `whole` has another shape than `tuned` (hidden: 64, not 32)",
            ),
            (
                FULL_PRECISION,
                qlora(),
                Some(qlora()),
                "base: `whole` has an adapter itself (lora)",
            ),
            (
                FULL_PRECISION,
                qlora(),
                Some(json!({ "quantized": "int8" })),
                "base: `whole` is quantized, too (int8)",
            ),
        ] {
            let found = of(into, model, base);
            assert!(
                found.len() == 1 && found[0].starts_with(words),
                "{words}: {found:?}"
            );
        }
    }

    #[test]
    fn fields_about_rows_need_rows() {
        let lora = json!({ "adapter": "lora", "quantized": null });
        let places = |fields: Value, data: bool| {
            let mut known = vec![("model", "tuned", lora.clone())];
            known.extend(data.then(|| ("data", "rows", json!({}))));
            places(fits_inputs, fields, &known)
        };
        let none: [&str; 0] = [];
        let usual = json!({
            "into": "full_precision", "max_length": 1024, "truncation": "keep_start", "loss_on": "completions", "micro_batch": 4,
        });
        let other =
            json!({ "max_length": 64, "truncation": "drop", "loss_on": "all", "micro_batch": 1 });
        assert_eq!(places(usual, false), none);
        assert_eq!(
            places(other.clone(), false),
            ["max_length", "truncation", "loss_on", "micro_batch"]
        );
        assert_eq!(places(other, true), none);
    }
}

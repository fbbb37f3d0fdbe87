//! What can be told of a model before it is made: its inputs' facts, and what its parameters change of them.

use engine::contract::Summary;
use serde_json::{Map, Value, json};

use super::model::{BOTTLENECK, F32, Linear, Model};
use super::{ADAPTER, MASKED_HEAD, QUANTIZED, input};
use crate::bottleneck::HOULSBY;

/// A model that is a stage's own with other numbers: what is known stays.
pub(crate) fn same(_: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<Summary> {
    input(inputs, "model").cloned()
}

/// What `masked_lm` will make: the encoder with other numbers, and with a head for masked tokens if it had none.
pub(crate) fn masked(_: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<Summary> {
    let mut known = input(inputs, "model")?.clone();
    let headless = known.insert(MASKED_HEAD.to_owned(), true.into()) == Some(false.into());
    if headless {
        for name in ["parameters", "stored"] {
            known.remove(name);
        }
        let model = Model::of(&known);
        let parameters =
            model.map(|model| ("parameters".to_owned(), json!(model.parameters as u64)));
        known.extend(parameters);
    }
    Some(known)
}

/// What can be told of a model whose files are not looked at: it has no adapter.
pub(crate) fn bare(_: &Map<String, Value>, _: &[(&str, &Summary)]) -> Option<Summary> {
    Some([(ADAPTER.to_owned(), Value::Null)].into())
}

/// What `quantize` will make.
pub(crate) fn quantized(
    params: &Map<String, Value>,
    inputs: &[(&str, &Summary)],
) -> Option<Summary> {
    let mut known = input(inputs, "model").cloned().unwrap_or_default();
    let scheme = params.get("scheme")?.as_str()?;
    let bytes = Model::of(&known).map(|model| packed(&model, params, scheme));
    known.insert(QUANTIZED.to_owned(), scheme.into());
    known.remove("bytes");
    known.extend(bytes.map(|bytes| ("bytes".to_owned(), json!(bytes as u64))));
    Some(known)
}

/// The bytes of a model whose linears are packed.
fn packed(model: &Model, params: &Map<String, Value>, scheme: &str) -> f64 {
    let skipped = patterns(params.get("skip"));
    let block = params
        .get("block")
        .and_then(Value::as_f64)
        .unwrap_or(64.0)
        .max(1.0);
    let nested = params.get("double_quant").and_then(Value::as_bool) != Some(false);
    // Of each value, and of each row, the bytes of codes and scales; what is once in a weight counts for nothing.
    let (of_value, of_row) = match scheme {
        "int8" => (1.0, F32),
        _ if nested => (0.5 + (1.0 + F32 / 256.0) / block, 0.0),
        _ => (0.5 + F32 / block, 0.0),
    };
    let (mut packed, mut bytes) = (0.0, 0.0);
    for linear in model.linears() {
        if !skipped.iter().any(|pattern| linear.matches(pattern)) {
            packed += linear.values();
            bytes += linear.values() * of_value + linear.out * of_row;
        }
    }
    bytes + (model.parameters - packed).max(0.0) * model.size
}

/// What `lora` will make.
pub(crate) fn adapted(params: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<Summary> {
    let mut known = attached(inputs, "lora");
    let rank = params.get("r")?.as_f64()?;
    let targets = patterns(params.get("targets"));
    let targeted = |linear: &Linear| targets.iter().any(|pattern| linear.matches(pattern));
    known.extend([
        ("r".to_owned(), params.get("r")?.clone()),
        ("dropout".to_owned(), params.get("dropout")?.clone()),
    ]);
    if let Some(model) = input(inputs, "model").and_then(Model::of) {
        let linears = model.linears().into_iter();
        let matched = linears.filter(targeted);
        let trainable: f64 = matched.map(|l| rank * (l.out + l.input)).sum();
        known.insert("trainable".to_owned(), json!(trainable as u64));
    }
    Some(known)
}

/// The model in `model` with an adapter of this kind, of which no more is told.
pub(crate) fn attached(inputs: &[(&str, &Summary)], adapter: &str) -> Summary {
    let mut known = input(inputs, "model").cloned().unwrap_or_default();
    known.insert(ADAPTER.to_owned(), adapter.into());
    known.remove("trainable");
    known
}

/// What `merge` will make: a model without adapter and quantization, of the shape and the type of what the change is written into.
pub(crate) fn merged(params: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<Summary> {
    let unpacked = params.get("into").and_then(Value::as_str) == Some(crate::merge::DEQUANTIZED);
    let (model, base) = (input(inputs, "model"), input(inputs, "base"));
    let ground = if unpacked { model } else { base.or(model) };
    let mut known = ground.cloned().unwrap_or_default();
    for name in ["bytes", "stored", "trainable", "r", "dropout"] {
        known.remove(name);
    }
    known.insert(ADAPTER.to_owned(), Value::Null);
    known.insert(QUANTIZED.to_owned(), Value::Null);
    Some(known)
}

/// What `bottleneck` will make.
pub(crate) fn narrowed(
    params: &Map<String, Value>,
    inputs: &[(&str, &Summary)],
) -> Option<Summary> {
    let mut known = input(inputs, "model")?.clone();
    let number = |name: &str| known.get(name).and_then(Value::as_f64);
    let (layers, hidden) = (number("layers")?, number("hidden")?);
    let form = params.get("form")?.clone();
    let factor = params.get("reduction_factor")?.as_f64()?;
    let width = (hidden / factor).floor().max(1.0);
    let modules = match form == HOULSBY {
        true => 2.0 * layers,
        false => layers,
    };
    let trainable = modules * (2.0 * hidden * width + width + hidden);
    known.extend([
        ("adapter".to_owned(), BOTTLENECK.into()),
        ("form".to_owned(), form),
        ("width".to_owned(), json!(width as u64)),
        ("modules".to_owned(), json!(modules as u64)),
        ("trainable".to_owned(), json!(trainable as u64)),
    ]);
    Some(known)
}

/// What `prompt_tuning` will make.
pub(crate) fn prompted(
    params: &Map<String, Value>,
    inputs: &[(&str, &Summary)],
) -> Option<Summary> {
    soft("prompt_tuning", params, inputs, |model| model.of_token().0)
}

/// What `prefix_tuning` will make.
pub(crate) fn prefixed(
    params: &Map<String, Value>,
    inputs: &[(&str, &Summary)],
) -> Option<Summary> {
    soft("prefix_tuning", params, inputs, |model| model.of_token().1)
}

/// A model behind virtual tokens of so many numbers each.
fn soft(
    word: &str,
    params: &Map<String, Value>,
    inputs: &[(&str, &Summary)],
    each: impl Fn(&Model) -> f64,
) -> Option<Summary> {
    let mut known = attached(inputs, word);
    let count = params.get("virtual_tokens")?.as_f64()?;
    if let Some(model) = input(inputs, "model").and_then(Model::of) {
        let trainable = count * each(&model);
        known.insert("trainable".to_owned(), json!(trainable as u64));
    }
    Some(known)
}

/// What `load_adapter` will make as far as its base tells: which adapter it is, a look at its files adds.
pub(crate) fn loaded(_: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<Summary> {
    let mut known = input(inputs, "model")?.clone();
    known.remove(ADAPTER);
    Some(known)
}

fn patterns(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(one)) => vec![one],
        _ => Vec::new(),
    }
}

//! What config.json says of quantized weights.

use super::{Linear, Scheme, torch_name};
use crate::config::ModelConfig;
use crate::config::bert::bare_name;
use crate::tensors::Weights;
use crate::{Dtype, json};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::path::Path;

/// What config.json says of the model's quantization; `skipped` are the linears left as they are, the head among them.
pub fn config(scheme: Scheme, nested: bool, dtype: Dtype, skipped: &[String]) -> Value {
    let four = scheme == Scheme::Nf4;
    let skipped = match skipped {
        [] => Value::Null,
        names => json!(names),
    };
    json!({
        "_load_in_4bit": four,
        "_load_in_8bit": !four,
        "bnb_4bit_compute_dtype": torch_name(dtype),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if four { "nf4" } else { "fp4" },
        "bnb_4bit_use_double_quant": nested,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": if four { 6.0 } else { 0.0 },
        "load_in_4bit": four,
        "load_in_8bit": !four,
        "quant_method": "bitsandbytes",
    })
}

/// Linears of a language model outside of its layers.
const OF_LANGUAGE_MODELS: [&str; 1] = ["lm_head"];
/// The same of an encoder under each of transformers' classes: the pooler, the heads of pre-training, and that of a classifier.
const OF_ENCODERS: [&str; 3] = ["pooler.dense", "cls", "classifier"];

/// The modules that transformers must not take for quantized: the linears in `skipped`, and those outside of the layers. transformers
/// compares a module's path with the beginning and with the end of each, and in its class for an encoder alone no path begins with
/// `bert.`: names without it fit every class.
pub fn unconverted(model: &ModelConfig, skipped: &[String]) -> Vec<String> {
    let outside: &[&str] = match model {
        ModelConfig::Llama(_) => &OF_LANGUAGE_MODELS,
        ModelConfig::Bert(_) => &OF_ENCODERS,
    };
    let linears = skipped.iter().map(|module| bare_name(module));
    linears
        .chain(outside.iter().copied())
        .map(str::to_owned)
        .collect()
}

/// Refuses a `quantization_config` of another kind than those that are read here.
pub(crate) fn check_config(value: &Value) -> Result<()> {
    // transformers leaves the first in models that it loaded from GGUF; their tensors are plain.
    let known = matches!(
        value["quant_method"].as_str(),
        Some("gguf" | "bitsandbytes")
    );
    ensure!(
        known,
        "quantization_config is set ({value}), which is not supported; take the unquantized model, or one of bitsandbytes"
    );
    if value["load_in_4bit"] == json!(true) {
        let kind = value["bnb_4bit_quant_type"].as_str().unwrap_or("fp4");
        ensure!(
            kind == "nf4",
            "quantization_config says bnb_4bit_quant_type {kind:?}; supported is \"nf4\""
        );
        let storage = value["bnb_4bit_quant_storage"].as_str().unwrap_or("uint8");
        ensure!(
            storage == "uint8",
            "quantization_config says bnb_4bit_quant_storage {storage:?}; supported is \"uint8\""
        );
    }
    Ok(())
}

/// Refuses a config.json, which messages call `path`, whose `quantization_config` says something else than the weights of the model's
/// linears show. One that says nothing of weights that are quantized is no error, since they say it themselves; what is to be said of it is
/// the answer.
pub fn check_described(
    text: &str,
    path: &Path,
    weights: &Weights,
    model: &ModelConfig,
) -> Result<Option<String>> {
    let object = json::parse_object(text, path)?;
    let said = object.get("quantization_config").unwrap_or(&Value::Null);
    let on = |key: &str| said[key] == json!(true);
    let (words, wanted) = match (on("load_in_4bit"), on("load_in_8bit")) {
        (true, _) => ("four bits", Scheme::Nf4),
        (_, true) => ("eight bits", Scheme::Int8),
        _ => return Ok(undescribed(path, weights, model)),
    };
    let (mut packed, mut types) = (false, None);
    for tensor in model.tensors_in(weights) {
        let name = &tensor.stored;
        let found = match tensor.storage(weights)? {
            Linear::Dense => continue,
            Linear::Nf4(state) => {
                let nested = state.nested.is_some();
                let told = said
                    .get("bnb_4bit_use_double_quant")
                    .and_then(Value::as_bool);
                ensure!(
                    told.is_none_or(|told| told == nested),
                    "{}: bnb_4bit_use_double_quant is {}, but the scales of {name:?} are {}quantized: take the config and the weights of the same model",
                    path.display(),
                    !nested,
                    if nested { "" } else { "not " }
                );
                let first = *types.get_or_insert(state.dtype);
                ensure!(
                    state.dtype == first,
                    "{name:?} was made of {}, and the quantized weights before it of {first}: a model is quantized from one type",
                    state.dtype
                );
                Scheme::Nf4
            }
            Linear::Int8 => Scheme::Int8,
        };
        ensure!(
            found == wanted,
            "{}: quantization_config says {words}, but {name:?} is stored in {}: take the config and the weights of the same model",
            path.display(),
            match found {
                Scheme::Nf4 => "four",
                Scheme::Int8 => "eight",
            }
        );
        packed = true;
    }
    ensure!(
        packed,
        "{}: quantization_config says {words}, but no weight is quantized: take it out of the config, or take the weights that belong to it",
        path.display()
    );
    Ok(None)
}

/// What there is to say of quantized weights beside a config.json that does not speak of them.
fn undescribed(path: &Path, weights: &Weights, model: &ModelConfig) -> Option<String> {
    let tensors = model.tensors_in(weights).into_iter();
    let mut stored = tensors.filter_map(|tensor| tensor.storage(weights).ok());
    let bits = stored.find_map(|stored| match stored {
        Linear::Dense => None,
        Linear::Nf4(_) => Some("four"),
        Linear::Int8 => Some("eight"),
    })?;
    Some(format!(
        "{}: the weights are stored in {bits} bits, and there is no quantization_config that says so; they are read as they are, but \
         transformers does not open such a folder, nor one that is written out of it",
        path.display()
    ))
}

/// The text of a config.json with `quantization` in it.
pub fn config_with(text: &str, path: &Path, quantization: Value, dtype: Dtype) -> Result<String> {
    let mut object = json::parse_object(text, path)?;
    object.insert("quantization_config".to_owned(), quantization);
    object.insert("dtype".to_owned(), json!(torch_name(dtype)));
    object.insert("torch_dtype".to_owned(), json!(torch_name(dtype)));
    Ok(serde_json::to_string_pretty(&Value::Object(object))? + "\n")
}

/// The text of a config.json without quantization, for weights of this type.
pub fn config_without(text: &str, path: &Path, dtype: Dtype) -> Result<String> {
    let mut object = json::parse_object(text, path)?;
    object.retain(|key, _| key != "quantization_config");
    object.insert("dtype".to_owned(), json!(torch_name(dtype)));
    object.insert("torch_dtype".to_owned(), json!(torch_name(dtype)));
    Ok(serde_json::to_string_pretty(&Value::Object(object))? + "\n")
}

//! A Llama configuration out of a config.json.

use super::{LlamaConfig, RopeScaling};
use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

/// Typed access to the fields of a config.json; null counts as missing.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => bail!("{key} should be {expected}, but is {value}"),
        }
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a whole number", |value| {
            value.as_u64().and_then(|number| number.try_into().ok())
        })
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "text", Value::as_str)
    }

    /// Token ids, one or a list; negative ones stand for none in old files.
    pub(super) fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let one = |value: &Value| match value.as_i64() {
            Some(id) if id < 0 => Some(None),
            Some(id) => u32::try_from(id).ok().map(Some),
            None => None,
        };
        self.read(key, "a token id or a list of them", |value| match value {
            Value::Array(items) => {
                let ids: Option<Vec<Option<u32>>> = items.iter().map(one).collect();
                ids.map(|ids| ids.into_iter().flatten().collect())
            }
            value => one(value).map(|id| id.into_iter().collect()),
        })
    }
}

pub(super) fn from_object(object: &Map<String, Value>) -> Result<LlamaConfig> {
    let fields = Fields(object);
    let model_type = fields.text("model_type")?;
    ensure!(
        model_type != Some("bert"),
        "model_type is \"bert\": an encoder, which predicts no next token; this takes a language model, whose model_type is \"llama\""
    );
    ensure!(
        model_type == Some("llama"),
        "model_type is {:?}; supported are \"llama\" and, for encoders, \"bert\"",
        model_type.unwrap_or("missing")
    );
    refuse_unsupported(&fields)?;
    let require = |key: &str| -> Result<usize> {
        (fields.count(key)?).ok_or_else(|| anyhow!("{key} is missing"))
    };
    let hidden_size = require("hidden_size")?;
    let num_attention_heads = require("num_attention_heads")?;
    let head_dim = match fields.count("head_dim")? {
        Some(head_dim) => head_dim,
        None => {
            ensure!(
                num_attention_heads > 0 && hidden_size % num_attention_heads == 0,
                "hidden_size, {hidden_size}, is not a multiple of num_attention_heads, {num_attention_heads}"
            );
            hidden_size / num_attention_heads
        }
    };
    let max_position_embeddings = fields.count("max_position_embeddings")?.unwrap_or(2048);
    let (rope_theta, rope_scaling) = read_rope(&fields, max_position_embeddings)?;
    LlamaConfig {
        vocab_size: require("vocab_size")?,
        hidden_size,
        intermediate_size: require("intermediate_size")?,
        num_hidden_layers: require("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: (fields.count("num_key_value_heads")?).unwrap_or(num_attention_heads),
        head_dim,
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        max_position_embeddings,
        bos_token_id: (fields.tokens("bos_token_id")?).and_then(|ids| ids.first().copied()),
        eos_token_ids: fields.tokens("eos_token_id")?.unwrap_or_default(),
        pad_token_id: (fields.tokens("pad_token_id")?).and_then(|ids| ids.first().copied()),
        rope_scaling,
    }
    .checked()
}

/// Names the settings that would make this another function than the one computed here.
fn refuse_unsupported(fields: &Fields) -> Result<()> {
    if let Some(activation) = fields.text("hidden_act")? {
        ensure!(
            matches!(activation, "silu" | "swish"),
            "hidden_act is {activation:?}; supported is \"silu\""
        );
    }
    for key in [
        "partial_rotary_factor",
        "attention_multiplier",
        "residual_multiplier",
    ] {
        let factor = fields.number(key)?.unwrap_or(1.0);
        ensure!(factor == 1.0, "{key} is {factor}; only 1 is supported");
    }
    let dropout = fields.number("attention_dropout")?.unwrap_or(0.0);
    ensure!(
        dropout == 0.0,
        "attention_dropout is {dropout}; only 0 is supported: set it to 0"
    );
    for key in ["sliding_window", "num_local_experts"] {
        if let Some(value) = fields.get(key) {
            bail!("{key} is set ({value}), which is not supported; take a plain Llama model");
        }
    }
    if let Some(value) = fields.get("quantization_config") {
        crate::quantized::check_config(value)?;
    }
    Ok(())
}

/// Base and stretching, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.
fn read_rope(fields: &Fields, length: usize) -> Result<(f64, Option<RopeScaling>)> {
    let old_theta = fields.number("rope_theta")?;
    let key = match fields.get("rope_parameters") {
        Some(_) => "rope_parameters",
        None => "rope_scaling",
    };
    let Some(rope) = fields.read(key, "an object", Value::as_object)? else {
        return Ok((old_theta.unwrap_or(10_000.0), None));
    };
    let rope = Fields(rope);
    let in_rope = |error: anyhow::Error| anyhow!("{key}: {error:#}");
    let theta = rope.number("rope_theta").map_err(in_rope)?;
    let scaling = read_scaling(&rope, length).map_err(in_rope)?;
    Ok((theta.or(old_theta).unwrap_or(10_000.0), scaling))
}

fn read_scaling(rope: &Fields, length: usize) -> Result<Option<RopeScaling>> {
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let partial = rope.number("partial_rotary_factor")?.unwrap_or(1.0);
    ensure!(
        partial == 1.0,
        "partial_rotary_factor is {partial}; only 1 is supported"
    );
    let positive = |key: &str| -> Result<f64> {
        match rope.number(key)? {
            Some(number) if number > 0.0 && number.is_finite() => Ok(number),
            Some(number) => bail!("{key} is {number}; it should be positive"),
            None => bail!("{key} is missing"),
        }
    };
    match kind {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear {
            factor: positive("factor")?,
        })),
        "llama3" => {
            let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
            ensure!(
                low < high,
                "low_freq_factor, {low}, should be smaller than high_freq_factor, {high}"
            );
            Ok(Some(RopeScaling::Llama3 {
                factor: positive("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: rope
                    .count("original_max_position_embeddings")?
                    .unwrap_or(length),
            }))
        }
        other => bail!(
            "the rope type {other:?} is not supported; supported are \"default\", \"linear\" and \"llama3\""
        ),
    }
}

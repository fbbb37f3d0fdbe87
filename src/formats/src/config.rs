//! The shape of a model: of a Llama config.json and GGUF metadata in, config.json out; of a BERT encoder config.json in.

pub mod bert;
mod check;
mod from_gguf;
mod from_json;
mod stored;

pub use bert::{BertConfig, BertParts};
pub use check::REWARD_HEAD;
pub use stored::ModelTensor;

use crate::gguf;
use crate::json;
use anyhow::{Result, anyhow, ensure};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The largest extent or count that is believed; keeps sums and products of them inside 64 bits.
const MAXIMUM_EXTENT: usize = 1 << 31;
/// The most layers that are believed.
const MAXIMUM_LAYERS: usize = 4096;

/// The configuration of a Llama model, in the words of Hugging Face.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// True if the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// True if the four attention projections have biases.
    pub attention_bias: bool,
    /// True if the three feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Tokens that the model was trained to see at once.
    pub max_position_embeddings: usize,
    /// The token before every text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills rows up.
    pub pad_token_id: Option<u32>,
    /// How the rotary frequencies are stretched for longer texts.
    pub rope_scaling: Option<RopeScaling>,
}

/// The configuration of a model of either architecture.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// A language model.
    Llama(LlamaConfig),
    /// An encoder.
    Bert(BertConfig),
}

impl ModelConfig {
    /// Reads the text of a config.json, which messages call `path`; `model_type` says which it is.
    pub fn from_json(text: &str, path: &Path) -> Result<ModelConfig> {
        let object = json::parse_object(text, path)?;
        let found = match object.get("model_type").and_then(Value::as_str) {
            Some("bert") => bert::from_object(&object).map(ModelConfig::Bert),
            _ => from_json::from_object(&object).map(ModelConfig::Llama),
        };
        found.map_err(|error| anyhow!("{}: {error:#}", path.display()))
    }

    /// The linears inside the blocks: module path, outputs, inputs; in the order of the layers.
    pub fn linear_shapes(&self) -> Vec<(String, usize, usize)> {
        match self {
            ModelConfig::Llama(config) => config.linear_shapes(),
            ModelConfig::Bert(config) => config.linear_shapes(),
        }
    }

    /// Rows of the word embedding.
    pub fn vocab_size(&self) -> usize {
        match self {
            ModelConfig::Llama(config) => config.vocab_size,
            ModelConfig::Bert(config) => config.vocab_size,
        }
    }
}

/// A change of the rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All frequencies are divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3: long wavelengths are divided by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above original length / this are divided.
        low_freq_factor: f64,
        /// Wavelengths below original length / this are kept.
        high_freq_factor: f64,
        /// The length before stretching, in tokens.
        original_max_position_embeddings: usize,
    },
}

/// Refuses extents by name, and numbers of layers, that no model has.
fn check_extents(extents: &[(&str, usize)], layers: usize) -> Result<()> {
    for (name, extent) in extents {
        ensure!(
            (1..=MAXIMUM_EXTENT).contains(extent),
            "{name} is {extent}; it should be between 1 and {MAXIMUM_EXTENT}"
        );
    }
    ensure!(
        layers <= MAXIMUM_LAYERS,
        "num_hidden_layers is {layers}; at most {MAXIMUM_LAYERS} are supported"
    );
    Ok(())
}

impl LlamaConfig {
    /// Reads the text of a config.json, which messages call `path`. What would change the model's
    /// function and is not known here is refused by name; the defaults are those of transformers.
    pub fn from_json(text: &str, path: &Path) -> Result<LlamaConfig> {
        let object = json::parse_object(text, path)?;
        from_json::from_object(&object).map_err(|error| anyhow!("{}: {error:#}", path.display()))
    }

    /// Reads the metadata of a GGUF file of the architecture `llama`, as transformers does.
    pub fn from_gguf(file: &gguf::File) -> Result<LlamaConfig> {
        from_gguf::from_metadata(file)
            .map_err(|error| anyhow!("{}: {error:#}", file.path().display()))
    }

    /// The content of a config.json that transformers' `AutoConfig` loads, old versions and new.
    pub fn to_json(&self) -> Value {
        let mut rope = Map::new();
        rope.insert("rope_theta".to_owned(), json!(self.rope_theta));
        let scaling = match self.rope_scaling {
            None => json!({ "rope_type": "default" }),
            Some(RopeScaling::Linear { factor }) => {
                json!({ "rope_type": "linear", "factor": factor })
            }
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        };
        if let Value::Object(fields) = &scaling {
            rope.extend(fields.clone());
        }
        let eos = match self.eos_token_ids[..] {
            [] => Value::Null,
            [only] => json!(only),
            _ => json!(self.eos_token_ids),
        };
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": self.mlp_bias,
            "model_type": "llama",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            // Both spellings: transformers 5 reads rope_parameters, transformers 4 the other two.
            "rope_parameters": rope,
            "rope_scaling": if self.rope_scaling.is_some() { scaling } else { Value::Null },
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        })
    }

    /// Refuses values that no Llama model can have.
    fn checked(self) -> Result<LlamaConfig> {
        let extents = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        check_extents(&extents, self.num_hidden_layers)?;
        ensure!(
            self.num_attention_heads
                .is_multiple_of(self.num_key_value_heads),
            "num_attention_heads, {}, is not a multiple of num_key_value_heads, {}",
            self.num_attention_heads,
            self.num_key_value_heads
        );
        ensure!(
            self.head_dim.is_multiple_of(2),
            "head_dim is {}; rotary embeddings need an even one",
            self.head_dim
        );
        ensure!(
            self.num_attention_heads <= MAXIMUM_EXTENT / self.head_dim,
            "{} heads of {} are too wide",
            self.num_attention_heads,
            self.head_dim
        );
        ensure!(
            self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0,
            "rms_norm_eps is {}; it should be a small positive number",
            self.rms_norm_eps
        );
        ensure!(
            self.rope_theta.is_finite() && self.rope_theta > 0.0,
            "rope_theta is {}; it should be positive",
            self.rope_theta
        );
        Ok(self)
    }
}

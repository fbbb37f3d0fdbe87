//! The shape of a BERT encoder (Devlin et al., arXiv 1810.04805): config.json in, and the names and shapes of its tensors.
//!
//! Names are those of transformers' `BertForMaskedLM`, whatever the file has: see [`stored_name`].

mod check;

pub use check::{bare_name, stored_name};

use super::check_extents;
use super::from_json::Fields;
use crate::json;
use crate::quantized::check_config;
use anyhow::{Result, anyhow, ensure};
use serde_json::{Map, Value};
use std::path::Path;

/// The configuration of a BERT encoder, in the words of Hugging Face.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the states.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Heads; a divisor of the width.
    pub num_attention_heads: usize,
    /// Rows of the position embedding: the longest text in tokens.
    pub max_position_embeddings: usize,
    /// Rows of the embedding of sentence A and sentence B.
    pub type_vocab_size: usize,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f64,
    /// The token that fills rows up.
    pub pad_token_id: Option<u32>,
}

/// What a file has beside the encoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BertParts {
    /// The dense layer with tanh that the paper puts on the state of `[CLS]`.
    pub pooler: bool,
    /// The head that predicts masked tokens (`cls.predictions`).
    pub head: bool,
}

/// The path of the masked-language head.
pub const MASKED_HEAD: &str = "cls.predictions";
/// What the names of the pooler's parameters begin with.
pub const POOLER: &str = "bert.pooler.";
/// The linears outside of the layers, the pooler's and that of the head for masked tokens: `quantize` and the adapters made here leave them
/// alone, transformers and PEFT do not always.
pub const OUTSIDE: [&str; 2] = ["bert.pooler.dense", "cls.predictions.transform.dense"];

impl BertConfig {
    /// Reads the text of a config.json, which messages call `path`. What would change the model's function and is not known here is
    /// refused by name; the defaults are those of transformers. Dropout is read by nobody: there is none here.
    pub fn from_json(text: &str, path: &Path) -> Result<BertConfig> {
        let object = json::parse_object(text, path)?;
        from_object(&object).map_err(|error| anyhow!("{}: {error:#}", path.display()))
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The linears inside the blocks, where adapters go: module path, outputs, inputs; in the order of the layers.
    pub fn linear_shapes(&self) -> Vec<(String, usize, usize)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let parts = [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ];
        let layers = 0..self.num_hidden_layers;
        layers
            .flat_map(|layer| {
                let name = move |part: &str| format!("bert.encoder.layer.{layer}.{part}");
                parts.map(|(part, out, input)| (name(part), out, input))
            })
            .collect()
    }

    /// The linears outside of the layers that a file with these parts has.
    pub fn outside_shapes(&self, parts: BertParts) -> Vec<(String, usize, usize)> {
        let there = OUTSIDE.into_iter().zip([parts.pooler, parts.head]);
        let there = there.filter(|(_, there)| *there);
        there
            .map(|(name, _)| (name.to_owned(), self.hidden_size, self.hidden_size))
            .collect()
    }

    /// The tensors of a file with these parts: names and row-major shapes. The decoder of the head is the word embedding.
    pub fn tensor_shapes(&self, parts: BertParts) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let mut shapes = Vec::new();
        for (name, rows) in [
            ("word", self.vocab_size),
            ("position", self.max_position_embeddings),
            ("token_type", self.type_vocab_size),
        ] {
            let name = format!("bert.embeddings.{name}_embeddings.weight");
            shapes.push((name, vec![rows, hidden]));
        }
        let mut norms = vec!["bert.embeddings.LayerNorm".to_owned()];
        for layer in 0..self.num_hidden_layers {
            for part in ["attention.output", "output"] {
                norms.push(format!("bert.encoder.layer.{layer}.{part}.LayerNorm"));
            }
        }
        let mut linears = self.linear_shapes();
        linears.extend(self.outside_shapes(parts));
        if parts.head {
            norms.push(format!("{MASKED_HEAD}.transform.LayerNorm"));
            shapes.push((format!("{MASKED_HEAD}.bias"), vec![self.vocab_size]));
        }
        for norm in norms {
            shapes.push((format!("{norm}.weight"), vec![hidden]));
            shapes.push((format!("{norm}.bias"), vec![hidden]));
        }
        for (module, out, input) in linears {
            shapes.push((format!("{module}.bias"), vec![out]));
            shapes.push((format!("{module}.weight"), vec![out, input]));
        }
        shapes
    }

    /// Numbers in all tensors of a file with these parts.
    pub fn parameter_count(&self, parts: BertParts) -> u64 {
        super::check::count(&self.tensor_shapes(parts))
    }

    /// Refuses values that no BERT can have.
    fn checked(self) -> Result<BertConfig> {
        let extents = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ];
        check_extents(&extents, self.num_hidden_layers)?;
        ensure!(
            self.hidden_size.is_multiple_of(self.num_attention_heads),
            "hidden_size, {}, is not a multiple of num_attention_heads, {}",
            self.hidden_size,
            self.num_attention_heads
        );
        ensure!(
            self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0,
            "layer_norm_eps is {}; it should be a small positive number",
            self.layer_norm_eps
        );
        Ok(self)
    }
}

pub(super) fn from_object(object: &Map<String, Value>) -> Result<BertConfig> {
    let fields = Fields(object);
    let model_type = fields.text("model_type")?;
    ensure!(
        model_type == Some("bert"),
        "model_type is {:?}, not \"bert\"",
        model_type.unwrap_or("missing")
    );
    refuse_unsupported(&fields)?;
    let require = |key: &str| -> Result<usize> {
        (fields.count(key)?).ok_or_else(|| anyhow!("{key} is missing"))
    };
    BertConfig {
        vocab_size: require("vocab_size")?,
        hidden_size: require("hidden_size")?,
        intermediate_size: require("intermediate_size")?,
        num_hidden_layers: require("num_hidden_layers")?,
        num_attention_heads: require("num_attention_heads")?,
        max_position_embeddings: fields.count("max_position_embeddings")?.unwrap_or(512),
        type_vocab_size: fields.count("type_vocab_size")?.unwrap_or(2),
        layer_norm_eps: fields.number("layer_norm_eps")?.unwrap_or(1e-12),
        pad_token_id: (fields.tokens("pad_token_id")?).and_then(|ids| ids.first().copied()),
    }
    .checked()
}

/// Names the settings that would make this another function than the one computed here.
fn refuse_unsupported(fields: &Fields) -> Result<()> {
    for (key, supported) in [
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
    ] {
        let found = fields.text(key)?.unwrap_or(supported);
        ensure!(
            found == supported,
            "{key} is {found:?}; supported is {supported:?}"
        );
    }
    for key in ["is_decoder", "add_cross_attention"] {
        ensure!(
            !fields.flag(key)?.unwrap_or(false),
            "{key} is true: this is a decoder, and only encoders are supported"
        );
    }
    ensure!(
        fields.flag("tie_word_embeddings")?.unwrap_or(true),
        "tie_word_embeddings is false; supported is a head whose decoder is the word embedding"
    );
    if let Some(pruned) = fields.get("pruned_heads") {
        let none = pruned.as_object().is_some_and(Map::is_empty);
        ensure!(
            none,
            "pruned_heads is {pruned}; models with pruned heads are not supported"
        );
    }
    if let Some(quantization) = fields.get("quantization_config") {
        check_config(quantization)?;
    }
    Ok(())
}

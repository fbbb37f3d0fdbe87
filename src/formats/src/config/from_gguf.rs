//! A Llama configuration out of GGUF metadata, as transformers reads it.

use super::{LlamaConfig, RopeScaling};
use crate::gguf;
use anyhow::{Result, anyhow, bail, ensure};

pub(super) fn from_metadata(file: &gguf::File) -> Result<LlamaConfig> {
    let architecture = file.architecture()?;
    ensure!(
        architecture == "llama",
        "the architecture is {architecture:?}; supported is \"llama\""
    );
    let has = |name: &str| file.tensors().iter().any(|tensor| tensor.name == name);
    ensure!(
        !has("rope_freqs.weight"),
        "the tensor rope_freqs.weight stretches the rotary frequencies, which is not supported; take the safetensors model, whose config.json says how"
    );
    let experts = file.count("llama.expert_count")?.unwrap_or(0);
    ensure!(
        experts == 0,
        "llama.expert_count is {experts}; mixtures of experts are not supported"
    );
    let require = |key: &str| -> Result<usize> {
        let key = format!("llama.{key}");
        (file.count(&key)?).ok_or_else(|| anyhow!("the metadata {key} is missing"))
    };
    let hidden_size = require("embedding_length")?;
    let heads = require("attention.head_count")?;
    let head_dim = match file.count("llama.rope.dimension_count")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
        None => {
            bail!("llama.embedding_length, {hidden_size}, is not a multiple of the {heads} heads")
        }
    };
    for key in ["llama.attention.key_length", "llama.attention.value_length"] {
        let length = file.count(key)?.unwrap_or(head_dim);
        ensure!(
            length == head_dim,
            "{key} is {length}, but llama.rope.dimension_count is {head_dim}; heads that are turned in part are not supported"
        );
    }
    let rope_scaling = match file.text("llama.rope.scaling.type")? {
        None | Some("none") => None,
        Some("linear") => Some(RopeScaling::Linear {
            factor: (file.number("llama.rope.scaling.factor")?)
                .filter(|factor| *factor > 0.0 && factor.is_finite())
                .ok_or_else(|| anyhow!("llama.rope.scaling.factor should be a positive number"))?,
        }),
        Some(other) => {
            bail!("llama.rope.scaling.type is {other:?}; supported are \"none\" and \"linear\"")
        }
    };
    let vocab_size = match file.count("llama.vocab_size")? {
        Some(size) => size,
        None => (file.texts("tokenizer.ggml.tokens")?)
            .map(<[String]>::len)
            .ok_or_else(|| {
                anyhow!("neither llama.vocab_size nor tokenizer.ggml.tokens is there")
            })?,
    };
    let token = |name: &str| -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = file.count(&key)?.map(u32::try_from).transpose();
        id.map_err(|_| anyhow!("{key} is not a token id"))
    };
    LlamaConfig {
        vocab_size,
        hidden_size,
        intermediate_size: require("feed_forward_length")?,
        num_hidden_layers: require("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: file
            .count("llama.attention.head_count_kv")?
            .unwrap_or(heads),
        head_dim,
        rms_norm_eps: (file.number("llama.attention.layer_norm_rms_epsilon")?)
            .ok_or_else(|| anyhow!("llama.attention.layer_norm_rms_epsilon is missing"))?,
        rope_theta: (file.number("llama.rope.freq_base")?).unwrap_or(10_000.0),
        // llama.cpp leaves the output head away when it is the embedding.
        tie_word_embeddings: !has("output.weight"),
        attention_bias: has("blk.0.attn_q.bias"),
        mlp_bias: has("blk.0.ffn_up.bias"),
        max_position_embeddings: require("context_length")?,
        bos_token_id: token("bos")?,
        eos_token_ids: token("eos")?.into_iter().collect(),
        pad_token_id: token("padding")?,
        rope_scaling,
    }
    .checked()
}

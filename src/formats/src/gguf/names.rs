//! From llama.cpp's tensor names and row order to those of Hugging Face, for the Llama family.

use anyhow::{Result, ensure};

/// The Hugging Face name of a tensor of a Llama model, or `None` for a name that has none.
///
/// `blk.0.attn_q.weight` is `model.layers.0.self_attn.q_proj.weight`.
pub fn to_hugging_face(name: &str) -> Option<String> {
    let (module, parameter) = name.rsplit_once('.')?;
    if !matches!(parameter, "weight" | "bias") {
        return None;
    }
    let module = match module {
        "token_embd" => "model.embed_tokens".to_owned(),
        "output_norm" => "model.norm".to_owned(),
        "output" => "lm_head".to_owned(),
        _ => {
            let (layer, part) = module.strip_prefix("blk.")?.split_once('.')?;
            // Only the canonical spelling, or `blk.01` and `blk.1` would meet under one name.
            if layer.parse::<u32>().ok()?.to_string() != layer {
                return None;
            }
            let part = match part {
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.o_proj",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                _ => return None,
            };
            format!("model.layers.{layer}.{part}")
        }
    };
    Some(format!("{module}.{parameter}"))
}

/// The heads whose rows llama.cpp has interleaved in the tensor of this (GGUF) name, if it has.
///
/// Its rope turns neighbouring rows, that of Hugging Face rows half a head apart, so the converter
/// reorders the rows of the query and key projections of each head.
pub fn interleaved_heads(name: &str, query_heads: usize, key_value_heads: usize) -> Option<usize> {
    if name.contains(".attn_q.") {
        Some(query_heads)
    } else if name.contains(".attn_k.") {
        Some(key_value_heads)
    } else {
        None
    }
}

/// Copies the rows of `stored` (row-major, `rows` rows) into the order of Hugging Face.
///
/// Row `(head, pair, side)` becomes row `(head, side, pair)`: what transformers'
/// `LlamaTensorProcessor._reverse_permute_weights` does.
pub fn undo_interleaving(stored: &[f32], rows: usize, heads: usize) -> Result<Vec<f32>> {
    ensure!(
        heads > 0
            && rows > 0
            && rows.is_multiple_of(heads)
            && (rows / heads).is_multiple_of(2)
            && stored.len().is_multiple_of(rows),
        "{rows} rows cannot be split into {heads} heads of row pairs"
    );
    let width = stored.len() / rows;
    let pairs = rows / heads / 2;
    let mut ordered = vec![0.0; stored.len()];
    for head in 0..heads {
        for pair in 0..pairs {
            for side in 0..2 {
                let from = ((head * pairs + pair) * 2 + side) * width;
                let to = ((head * 2 + side) * pairs + pair) * width;
                ordered[to..to + width].copy_from_slice(&stored[from..from + width]);
            }
        }
    }
    Ok(ordered)
}

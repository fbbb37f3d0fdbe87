//! The rows of the kinds that make models without training them.

use super::{Row, row, with};

pub const ROWS: &[Row] = &[
    row("init_model", "vocabulary", ["280", "270"]),
    row("init_model", "hidden", ["16", "32"]),
    row("init_model", "layers", ["1", "2"]),
    row("init_model", "heads", ["2", "4"]),
    row("init_model", "key_value_heads", ["", "1"]),
    row("init_model", "intermediate", ["", "48"]),
    row("init_model", "context", ["512", "64"]),
    row("init_model", "rope_theta", ["10000.0", "20000.0"]),
    row("init_model", "dtype", ["f32", "bf16"]),
    row("init_model", "initializer_range", ["0.02", "0.04"]),
    row("init_model", "seed", ["1", "2"]),
    row("load_model", "source", ["model", "other"]),
    row("load_model", "dtype", ["f32", "bf16"]),
    row("load_reward_model", "source", ["rewards", "rewards2"]),
    row("load_reward_model", "dtype", ["f32", "bf16"]),
    row("load_reward_model", "mean", ["", "0.5"]),
    row("load_reward_model", "deviation", ["", "2.0"]),
    row("quantize", "scheme", ["nf4", "int8"]),
    row("quantize", "block", ["64", "128"]),
    row("quantize", "double_quant", ["true", "false"]),
    row("quantize", "skip", ["[]", "[q_proj]"]),
    with(
        "quantize",
        "max_length",
        ["1024", "24"],
        &[("data", "chats")],
    ),
    with(
        "quantize",
        "truncation",
        ["keep_start", "keep_end"],
        &[("data", "chats"), ("max_length", "24")],
    ),
    with(
        "quantize",
        "loss_on",
        ["completions", "all"],
        &[("data", "chats")],
    ),
    with(
        "quantize",
        "micro_batch",
        ["4", "1"],
        &[("data", "chats"), ("max_length", "32")],
    ),
    row("lora", "r", ["4", "2"]),
    row("lora", "alpha", ["16", "8"]),
    row("lora", "dropout", ["0.0", "0.1"]),
    row("lora", "targets", ["all-linear", "[q_proj, v_proj]"]),
    row("lora", "rslora", ["false", "true"]),
    row("lora", "dora", ["false", "true"]),
    row("lora", "seed", ["1", "2"]),
    row("ia3", "targets", ["", "[q_proj, down_proj]"]),
    row("ia3", "feedforward", ["", "[]"]),
    row("bottleneck", "form", ["pfeiffer", "houlsby"]),
    row("bottleneck", "reduction_factor", ["16", "8"]),
    row("bottleneck", "non_linearity", ["", "gelu"]),
    row("bottleneck", "seed", ["1", "2"]),
    row("prompt_tuning", "virtual_tokens", ["4", "3"]),
    row("prompt_tuning", "init", ["vocabulary", "random"]),
    row(
        "prompt_tuning",
        "init_text",
        ["say one word", "sing a song"],
    ),
    row("prompt_tuning", "seed", ["1", "2"]),
    row("prefix_tuning", "virtual_tokens", ["4", "3"]),
    row("prefix_tuning", "init", ["vocabulary", "random"]),
    row(
        "prefix_tuning",
        "init_text",
        ["say one word", "sing a song"],
    ),
    row("prefix_tuning", "seed", ["1", "2"]),
];

/// The rest of a stage of this kind.
pub fn usual(kind: &str) -> Option<&'static [(&'static str, &'static str)]> {
    Some(match kind {
        "init_model" => &[
            ("data", "reviews"),
            ("vocabulary", "280"),
            ("hidden", "16"),
            ("layers", "1"),
            ("heads", "2"),
        ],
        "load_model" => &[("source", "model")],
        "load_reward_model" => &[("source", "rewards"), ("dtype", "f32")],
        "quantize" | "lora" | "ia3" | "bottleneck" => &[("model", "base")],
        "prompt_tuning" | "prefix_tuning" => &[("model", "base"), ("virtual_tokens", "4")],
        _ => return None,
    })
}

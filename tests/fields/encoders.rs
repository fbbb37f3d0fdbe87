//! The rows of masked language modelling.

use super::{Row, row};

pub const ROWS: &[Row] = &[
    row("masked_lm", "learning_rate", ["1.0e-3", "2.0e-3"]),
    row("masked_lm", "schedule", ["linear", "cosine"]),
    row("masked_lm", "warmup", ["0.0", "0.5"]),
    row("masked_lm", "epochs", ["1", "0.5"]),
    row("masked_lm", "max_steps", ["", "3"]),
    row("masked_lm", "batch", ["2", "4"]),
    row("masked_lm", "train", ["all", "head"]),
    row(
        "masked_lm",
        "train",
        ["[query, layer.1]", "{ last_layers: 1 }"],
    ),
    row("masked_lm", "layer_decay", ["1.0", "0.5"]),
    row("masked_lm", "unfreeze_every", ["", "1"]),
    row("masked_lm", "optimizer_state", ["device", "host"]),
    row("masked_lm", "learning_rates", ["{}", "{ query: 1.0e-4 }"]),
    row("masked_lm", "optimizer", ["adamw", "adafactor"]),
    row("masked_lm", "weight_decay", ["0.0", "0.1"]),
    row("masked_lm", "beta1", ["0.9", "0.5"]),
    row("masked_lm", "beta2", ["0.999", "0.9"]),
    row("masked_lm", "epsilon", ["1.0e-8", "1.0e-3"]),
    row("masked_lm", "max_grad_norm", ["1.0", "0.001"]),
    row("masked_lm", "seed", ["1", "2"]),
    row("masked_lm", "mask_probability", ["0.15", "0.5"]),
    row("masked_lm", "max_length", ["256", "12"]),
    row("masked_lm", "micro_batch", ["4", "1"]),
    row("masked_lm", "checkpointing", ["false", "true"]),
    row("masked_lm", "snapshot_seconds", ["60", "1"]),
    row("tokenize_pieces", "max_length", ["256", "12"]),
    row("masked_lm_loss", "mask_probability", ["0.15", "0.5"]),
    row("masked_lm_loss", "max_length", ["256", "12"]),
    row("masked_lm_loss", "seed", ["1", "2"]),
    row("masked_lm_loss", "micro_batch", ["4", "1"]),
];

/// The rest of a stage of this kind.
pub fn usual(kind: &str) -> Option<&'static [(&'static str, &'static str)]> {
    Some(match kind {
        "masked_lm" => &[
            ("model", "headed"),
            ("data", "reviews"),
            ("batch", "4"),
            ("epochs", "2"),
            ("learning_rate", "1.0e-3"),
        ],
        // A preparation of this one.
        "tokenize_pieces" => &[
            ("kind", "masked_lm"),
            ("model", "headed"),
            ("data", "reviews"),
        ],
        "masked_lm_loss" => &[("models", "headed"), ("data", "reviews")],
        _ => return None,
    })
}

//! The rows of supervised fine-tuning, and of what every training has beside.

use super::{Row, row, with};

/// A training of all weights: matrices with more than 4096 numbers, which eight bits are for.
const WHOLE: &[(&str, &str)] = &[("model", "base")];

pub const ROWS: &[Row] = &[
    row("sft", "learning_rate", ["1.0e-2", "2.0e-2"]),
    row("sft", "schedule", ["linear", "cosine"]),
    row("sft", "schedule", ["linear", "constant"]),
    row("sft", "warmup", ["0.0", "0.5"]),
    row("sft", "epochs", ["1", "0.5"]),
    row("sft", "max_steps", ["", "3"]),
    row("sft", "batch", ["2", "4"]),
    row("sft", "weight_decay", ["0.0", "0.1"]),
    row("sft", "beta1", ["0.9", "0.5"]),
    row("sft", "beta2", ["0.999", "0.9"]),
    row("sft", "epsilon", ["1.0e-8", "1.0e-3"]),
    row("sft", "max_grad_norm", ["1.0", "0.001"]),
    row("sft", "max_grad_norm", ["0.001", "0"]),
    row("sft", "seed", ["1", "2"]),
    row("sft", "max_length", ["1024", "24"]),
    with(
        "sft",
        "truncation",
        ["keep_start", "keep_end"],
        &[("max_length", "24")],
    ),
    row("sft", "loss_on", ["completions", "all"]),
    row("sft", "micro_batch", ["4", "1"]),
    row("sft", "checkpointing", ["false", "true"]),
    row("sft", "snapshot_seconds", ["60", "1"]),
    with("sft", "optimizer", ["adamw", "adamw_8bit"], WHOLE),
    row("sft", "optimizer", ["adamw", "adafactor"]),
    row("sft", "layer_decay", ["1.0", "0.5"]),
    row("sft", "learning_rates", ["{}", "{ q_proj: 1.0e-3 }"]),
    with("sft", "train", ["all", "norms"], WHOLE),
    with(
        "sft",
        "train",
        ["[q_proj, layers.1]", "{ last_layers: 1 }"],
        WHOLE,
    ),
    with("reward_model", "optimizer", ["adamw", "adamw_8bit"], WHOLE),
    row("reward_model", "optimizer", ["adamw", "adafactor"]),
    row("reward_model", "layer_decay", ["1.0", "0.5"]),
    row(
        "reward_model",
        "learning_rates",
        ["{}", "{ q_proj: 1.0e-3 }"],
    ),
    with("reward_model", "train", ["all", "norms"], WHOLE),
    with("reward_model", "train", ["norms", "head"], WHOLE),
    // Of two patterns the longer one holds.
    row(
        "dpo",
        "learning_rates",
        [
            "{ q_proj: 1.0e-3 }",
            "{ q_proj: 1.0e-3, layers.1.self_attn.q_proj: 2.0e-3 }",
        ],
    ),
    // An adapter is all that is trained of a model that has one.
    Row {
        refused: true,
        ..row("dpo", "train", ["all", "norms"])
    },
    with("dpo", "optimizer", ["adamw", "adamw_8bit"], WHOLE),
    row("dpo", "optimizer", ["adamw", "adafactor"]),
    row("dpo", "layer_decay", ["1.0", "0.5"]),
    row("dpo", "learning_rates", ["{}", "{ q_proj: 1.0e-3 }"]),
    with("dpo", "train", ["all", "norms"], WHOLE),
    with("cpo", "optimizer", ["adamw", "adamw_8bit"], WHOLE),
    row("cpo", "optimizer", ["adamw", "adafactor"]),
    row("cpo", "layer_decay", ["1.0", "0.5"]),
    row("cpo", "learning_rates", ["{}", "{ q_proj: 1.0e-3 }"]),
    with("cpo", "train", ["all", "norms"], WHOLE),
    with("orpo", "optimizer", ["adamw", "adamw_8bit"], WHOLE),
    row("orpo", "optimizer", ["adamw", "adafactor"]),
    row("orpo", "layer_decay", ["1.0", "0.5"]),
    row("orpo", "learning_rates", ["{}", "{ q_proj: 1.0e-3 }"]),
    with("orpo", "train", ["all", "norms"], WHOLE),
    with("kto", "optimizer", ["adamw", "adamw_8bit"], WHOLE),
    row("kto", "optimizer", ["adamw", "adafactor"]),
    row("kto", "layer_decay", ["1.0", "0.5"]),
    row("kto", "learning_rates", ["{}", "{ q_proj: 1.0e-3 }"]),
    with("kto", "train", ["all", "norms"], WHOLE),
];

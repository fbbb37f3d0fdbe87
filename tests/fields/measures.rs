//! The rows of the kinds that measure models, and of `merge`, which measures what it did.

use super::{Row, row, with};

pub const ROWS: &[Row] = &[
    row("evaluate", "samples", ["0", "2"]),
    with(
        "evaluate",
        "max_new_tokens",
        ["4", "8"],
        &[("samples", "2")],
    ),
    with("evaluate", "temperature", ["0", "1.5"], &[("samples", "2")]),
    with(
        "evaluate",
        "seed",
        ["1", "2"],
        &[("samples", "2"), ("temperature", "1.5")],
    ),
    row("evaluate", "max_length", ["1024", "24"]),
    with(
        "evaluate",
        "truncation",
        ["keep_start", "keep_end"],
        &[("max_length", "24")],
    ),
    row("evaluate", "loss_on", ["completions", "all"]),
    row("evaluate", "micro_batch", ["4", "1"]),
    with(
        "exam",
        "task",
        ["multiple_choice", "exact_match"],
        &[("max_new_tokens", "4")],
    ),
    row("exam", "answer_with", ["text", "letter"]),
    row("exam", "template", ["", "\"Ask: {prompt}\\nSay:\""]),
    row("exam", "instructions", ["", "Bake."]),
    row("exam", "shots", ["0", "1"]),
    with(
        "exam",
        "normalization",
        ["squad", "none"],
        &[
            ("task", "exact_match"),
            ("models", "parrot"),
            ("data", "echoes"),
            ("template", "\"{prompt}\""),
        ],
    ),
    with(
        "exam",
        "until",
        ["line", "end"],
        &[
            ("task", "exact_match"),
            ("models", "parrot"),
            ("data", "echoes"),
            ("template", "\"{prompt}\""),
        ],
    ),
    with(
        "exam",
        "max_new_tokens",
        ["4", "8"],
        &[("task", "exact_match")],
    ),
    with("exam", "seed", ["1", "2"], &[("shots", "2")]),
    row("exam", "micro_batch", ["4", "1"]),
    // An adapter on a quantized model: without `base` there are no weights in full precision.
    Row {
        refused: true,
        ..with(
            "merge",
            "into",
            ["dequantized", "full_precision"],
            &[("model", "slim"), ("data", "")],
        )
    },
    row("merge", "max_length", ["1024", "24"]),
    with(
        "merge",
        "truncation",
        ["keep_start", "keep_end"],
        &[("max_length", "24")],
    ),
    row("merge", "loss_on", ["completions", "all"]),
    with("merge", "micro_batch", ["4", "1"], &[("max_length", "32")]),
];

/// The rest of a stage of this kind.
pub fn usual(kind: &str) -> Option<&'static [(&'static str, &'static str)]> {
    Some(match kind {
        "evaluate" => &[("models", "base"), ("data", "chats")],
        "exam" => &[("models", "base"), ("data", "quiz")],
        "merge" => &[("model", "bent"), ("data", "chats")],
        _ => return None,
    })
}

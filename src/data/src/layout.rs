//! Layouts: what the rows of a dataset in the cache may be, and their Arrow columns.
//!
//! A new layout is a variant of [`Layout`] with its columns, a variant of [`Row`](crate::Row), and a line in each of
//! `Row::cells` and `Row::from_cells`; storing, splitting and showing follow from the columns.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::{Result, bail};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use serde::{Deserialize, Serialize};

/// What a dataset's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `text`: running text.
    Text,
    /// `prompt` and `completion`: plain text before and after the point where the model takes over.
    PromptCompletion,
    /// `messages`: a conversation of turns with a role and a content.
    Messages,
    /// `prompt`, `chosen` and `rejected`: two completions, the better one first; `margin` says by how much.
    Preference,
    /// `prompt` and `completions`, the best one first.
    Ranking,
    /// `prompt`, `completion` and whether it is `desirable`.
    Unpaired,
    /// `prompt`, `completion` and its `score`.
    Scored,
    /// `text` and its `label`.
    Labelled,
    /// `prompt`, `choices` of which one is right, and its place among them as the `answer`, from 0.
    Choices,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// `Utf8`.
    Text,
    /// `List<Utf8>`.
    Texts,
    /// `List<Struct{role: Utf8, content: Utf8}>`.
    Messages,
    /// `Boolean`.
    Bool,
    /// `Float64`, finite.
    Number,
    /// `Float64` or null.
    OptionalNumber,
    /// `UInt32`.
    Index,
}

impl Layout {
    /// Every layout.
    pub const ALL: &[Layout] = &[
        Layout::Text,
        Layout::PromptCompletion,
        Layout::Messages,
        Layout::Preference,
        Layout::Ranking,
        Layout::Unpaired,
        Layout::Scored,
        Layout::Labelled,
        Layout::Choices,
    ];

    /// The name in recipes and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Text => "text",
            Layout::PromptCompletion => "prompt-completion",
            Layout::Messages => "messages",
            Layout::Preference => "preference",
            Layout::Ranking => "ranking",
            Layout::Unpaired => "unpaired",
            Layout::Scored => "scored",
            Layout::Labelled => "labelled",
            Layout::Choices => "choices",
        }
    }

    /// The layout with this name.
    pub fn from_name(name: &str) -> Option<Layout> {
        Layout::ALL
            .iter()
            .copied()
            .find(|layout| layout.name() == name)
    }

    /// The columns, in order.
    pub fn columns(self) -> &'static [(&'static str, ColumnKind)] {
        match self {
            Layout::Text => &[("text", ColumnKind::Text)],
            Layout::PromptCompletion => &[
                ("prompt", ColumnKind::Text),
                ("completion", ColumnKind::Text),
            ],
            Layout::Messages => &[("messages", ColumnKind::Messages)],
            Layout::Preference => &[
                ("prompt", ColumnKind::Messages),
                ("chosen", ColumnKind::Text),
                ("rejected", ColumnKind::Text),
                ("margin", ColumnKind::OptionalNumber),
            ],
            Layout::Ranking => &[
                ("prompt", ColumnKind::Messages),
                ("completions", ColumnKind::Texts),
            ],
            Layout::Unpaired => &[
                ("prompt", ColumnKind::Messages),
                ("completion", ColumnKind::Text),
                ("desirable", ColumnKind::Bool),
            ],
            Layout::Scored => &[
                ("prompt", ColumnKind::Messages),
                ("completion", ColumnKind::Text),
                ("score", ColumnKind::Number),
            ],
            Layout::Labelled => &[("text", ColumnKind::Text), ("label", ColumnKind::Text)],
            Layout::Choices => &[
                ("prompt", ColumnKind::Messages),
                ("choices", ColumnKind::Texts),
                ("answer", ColumnKind::Index),
            ],
        }
    }

    /// The Arrow schema of the dataset's file.
    pub fn schema(self) -> Schema {
        let fields = self.columns().iter().map(|(name, kind)| {
            let nullable = *kind == ColumnKind::OptionalNumber;
            Field::new(*name, kind.data_type(), nullable)
        });
        Schema::new(fields.collect::<Vec<_>>())
    }

    /// The layout with exactly this schema.
    ///
    /// Errors when there is none; the message lists the columns found and the layouts known.
    pub fn from_schema(schema: &Schema) -> Result<Layout> {
        for layout in Layout::ALL {
            if layout.schema().fields() == schema.fields() {
                return Ok(*layout);
            }
        }
        let found: Vec<String> = schema
            .fields()
            .iter()
            .map(|f| format!("{}: {}", f.name(), f.data_type()))
            .collect();
        let known: Vec<&str> = Layout::ALL.iter().map(|layout| layout.name()).collect();
        bail!(
            "the columns {{{}}} are no layout of a dataset (known: {})",
            found.join(", "),
            known.join(", ")
        )
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.name())
    }
}

impl ColumnKind {
    /// The Arrow type of the column.
    pub fn data_type(self) -> DataType {
        match self {
            ColumnKind::Text => DataType::Utf8,
            ColumnKind::Texts => DataType::List(item_field(DataType::Utf8)),
            ColumnKind::Messages => DataType::List(item_field(DataType::Struct(message_fields()))),
            ColumnKind::Bool => DataType::Boolean,
            ColumnKind::Number | ColumnKind::OptionalNumber => DataType::Float64,
            ColumnKind::Index => DataType::UInt32,
        }
    }
}

/// The field of a list's items.
pub(crate) fn item_field(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", kind, false))
}

/// The fields of one message: `role` and `content`.
pub(crate) fn message_fields() -> Fields {
    Fields::from(vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::Utf8, false),
    ])
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

impl Message {
    /// A turn of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// What a completion answers: plain text that it continues, or the turns of a conversation before it.
///
/// A file has one column of messages for both, in which plain text is a single message of the role `text`, and an empty
/// text is no message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Plain text; empty where there is no prompt.
    Text(String),
    /// The turns of a conversation, at least one.
    Chat(Vec<Message>),
}

/// The role by which plain text is told from a conversation in a column of messages.
const PLAIN: &str = "text";

impl Prompt {
    /// What a person asks: the text, or the last turn of the user.
    pub fn question(&self) -> &str {
        match self {
            Prompt::Text(text) => text,
            Prompt::Chat(messages) => messages
                .iter()
                .rfind(|message| message.role == "user")
                .or(messages.first())
                .map_or("", |message| &message.content),
        }
    }

    /// The messages that a file keeps.
    pub fn to_messages(&self) -> Cow<'_, [Message]> {
        match self {
            Prompt::Text(text) if text.is_empty() => Cow::Borrowed(&[]),
            Prompt::Text(text) => Cow::Owned(vec![Message::new(PLAIN, text)]),
            Prompt::Chat(messages) => Cow::Borrowed(messages),
        }
    }

    /// The prompt that a file kept as these messages.
    pub fn from_messages(messages: Vec<Message>) -> Prompt {
        match &messages[..] {
            [] => Prompt::Text(String::new()),
            [one] if one.role == PLAIN => Prompt::Text(one.content.clone()),
            _ => Prompt::Chat(messages),
        }
    }

    /// Whether it would be read as plain text once it is stored, though it is a conversation.
    pub(crate) fn is_ambiguous(&self) -> bool {
        match self {
            Prompt::Text(_) => false,
            Prompt::Chat(messages) => match &messages[..] {
                [] => true,
                [one] => one.role == PLAIN,
                _ => false,
            },
        }
    }
}

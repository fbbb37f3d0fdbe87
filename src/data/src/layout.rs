//! Layouts: what the rows of a dataset in the cache may be, and their Arrow columns.
//!
//! A new layout is a variant of [`Layout`] with its columns, a variant of [`Row`], and a line in each of `Row::cells`
//! and `Row::from_cells`; storing, splitting and showing follow from the columns.

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
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// `Utf8`.
    Text,
    /// `List<Struct{role: Utf8, content: Utf8}>`.
    Messages,
}

impl Layout {
    /// Every layout.
    pub const ALL: &[Layout] = &[Layout::Text, Layout::PromptCompletion, Layout::Messages];

    /// The name in recipes and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Text => "text",
            Layout::PromptCompletion => "prompt-completion",
            Layout::Messages => "messages",
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
        }
    }

    /// The Arrow schema of the dataset's file.
    pub fn schema(self) -> Schema {
        let fields = self
            .columns()
            .iter()
            .map(|(name, kind)| Field::new(*name, kind.data_type(), false));
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
            ColumnKind::Messages => {
                let item = Field::new("item", DataType::Struct(message_fields()), false);
                DataType::List(Arc::new(item))
            }
        }
    }
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

/// One row of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Row {
    /// A row of [`Layout::Text`].
    Text {
        /// The text.
        text: String,
    },
    /// A row of [`Layout::PromptCompletion`].
    PromptCompletion {
        /// The text that the model is given.
        prompt: String,
        /// The text that it should write.
        completion: String,
    },
    /// A row of [`Layout::Messages`].
    Messages {
        /// The turns, in order.
        messages: Vec<Message>,
    },
}

/// One value of a row, in the order of [`Layout::columns`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// A value of [`ColumnKind::Text`].
    Text(Cow<'a, str>),
    /// A value of [`ColumnKind::Messages`].
    Messages(Cow<'a, [Message]>),
}

impl Row {
    /// The layout that the row belongs to.
    pub fn layout(&self) -> Layout {
        match self {
            Row::Text { .. } => Layout::Text,
            Row::PromptCompletion { .. } => Layout::PromptCompletion,
            Row::Messages { .. } => Layout::Messages,
        }
    }

    /// The values in the order of the layout's columns.
    pub fn cells(&self) -> Vec<Cell<'_>> {
        match self {
            Row::Text { text } => vec![Cell::Text(text.into())],
            Row::PromptCompletion { prompt, completion } => {
                vec![Cell::Text(prompt.into()), Cell::Text(completion.into())]
            }
            Row::Messages { messages } => vec![Cell::Messages(messages.into())],
        }
    }

    /// The row with these values; `None` when they do not fit the layout.
    pub fn from_cells(layout: Layout, cells: Vec<Cell<'_>>) -> Option<Row> {
        let mut cells = cells.into_iter();
        let row = match layout {
            Layout::Text => Row::Text {
                text: cells.next()?.into_text()?,
            },
            Layout::PromptCompletion => Row::PromptCompletion {
                prompt: cells.next()?.into_text()?,
                completion: cells.next()?.into_text()?,
            },
            Layout::Messages => Row::Messages {
                messages: cells.next()?.into_messages()?,
            },
        };
        cells.next().is_none().then_some(row)
    }

    /// Every text of the row that a person wrote, in order (roles are not among them).
    pub fn texts_mut(&mut self) -> Vec<&mut String> {
        match self {
            Row::Text { text } => vec![text],
            Row::PromptCompletion { prompt, completion } => vec![prompt, completion],
            Row::Messages { messages } => messages
                .iter_mut()
                .map(|message| &mut message.content)
                .collect(),
        }
    }

    /// The number of characters in all texts of the row.
    pub fn characters(&self) -> u64 {
        let count = |text: &str| text.chars().count() as u64;
        self.cells()
            .iter()
            .map(|cell| match cell {
                Cell::Text(text) => count(text),
                Cell::Messages(messages) => {
                    messages.iter().map(|message| count(&message.content)).sum()
                }
            })
            .sum()
    }
}

impl Cell<'_> {
    fn into_text(self) -> Option<String> {
        match self {
            Cell::Text(text) => Some(text.into_owned()),
            Cell::Messages(_) => None,
        }
    }

    fn into_messages(self) -> Option<Vec<Message>> {
        match self {
            Cell::Messages(messages) => Some(messages.into_owned()),
            Cell::Text(_) => None,
        }
    }
}

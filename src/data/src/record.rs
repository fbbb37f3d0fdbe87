//! Records: a source's rows before they are given a layout, each value with its place.

use std::borrow::Cow;
use std::fmt;

use serde_json::Number;

/// Where a row begins in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line and a column in characters, both from 1.
    Line { line: u64, column: u64 },
    /// The number of the row from 1, in files that have no lines.
    Row(u64),
}

/// A value of a record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// With the digits that the file has.
    Number(Number),
    /// An infinity or not a number.
    NotFinite,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    /// Not read, since no format has a column of this name.
    Skipped,
}

/// A value and the byte offset in the row's text where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: usize,
    pub(crate) value: Value,
}

/// The columns of one row, in the file's order.
pub(crate) type Fields = Vec<(String, Node)>;

/// One row of a source.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) place: Place,
    /// The row as the file has it, to point into; empty for files that are not text.
    pub(crate) text: String,
    /// The columns, or what is wrong.
    pub(crate) fields: Result<Fields, Fault>,
    /// After a fault of this kind the rest of the file can't be read.
    pub(crate) last: bool,
}

/// What is wrong with a row, and the byte offset in its text where.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) at: usize,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(at: usize, message: impl Into<String>) -> Fault {
        Fault {
            at,
            message: message.into(),
        }
    }
}

impl Value {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::NotFinite => "a number that is not finite",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "an object",
            Value::Skipped => "another value",
        }
    }

    /// Whether it is true or false, or a text that says so in these words.
    pub(crate) fn is_yes_or_no(&self) -> bool {
        match self {
            Value::Bool(_) => true,
            Value::Text(text) => ["true", "false"].contains(&text.to_ascii_lowercase().as_str()),
            _ => false,
        }
    }

    /// Texts as they are, numbers and booleans as JSON writes them; nothing else is a text.
    pub(crate) fn as_text(&self) -> Option<Cow<'_, str>> {
        match self {
            Value::Text(text) => Some(Cow::Borrowed(text)),
            Value::Number(number) => Some(Cow::Owned(number.to_string())),
            Value::Bool(value) => Some(Cow::Owned(value.to_string())),
            _ => None,
        }
    }
}

impl Place {
    /// The place `bytes` after this one, where `text` begins here.
    pub(crate) fn advance(self, text: &[u8], bytes: usize) -> Place {
        let Place::Line {
            mut line,
            mut column,
        } = self
        else {
            return self;
        };
        for byte in text.iter().take(bytes) {
            step(*byte, &mut line, &mut column);
        }
        Place::Line { line, column }
    }
}

/// Moves a line and a column over one byte; a character of several bytes counts once.
pub(crate) fn step(byte: u8, line: &mut u64, column: &mut u64) {
    if byte == b'\n' {
        *line += 1;
        *column = 1;
    } else if byte & 0xc0 != 0x80 {
        *column += 1;
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { line, column } => write!(out, ":{line}:{column}"),
            Place::Row(row) => write!(out, ", row {row}"),
        }
    }
}

/// The first characters of a row, on one line.
pub(crate) fn excerpt(text: &str) -> String {
    const LENGTH: usize = 60;
    let mut short: String = text
        .chars()
        .take(LENGTH)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(LENGTH).is_some() {
        short.push('…');
    }
    short
}

/// The candidate nearest to `word`, if one is near enough to be a slip of the same word.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 1 + word.len().min(candidate.len()) / 4
                || lower.contains(&candidate.to_lowercase())
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The number of single-character edits between two words.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

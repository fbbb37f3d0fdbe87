//! Formats: which columns a source has, and how its records become rows.

use serde::{Deserialize, Serialize};

use crate::layout::{Layout, Message};
use crate::record::{Fault, Fields, Node, Value, nearest};
use crate::row::Row;

/// What the rows of a source look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Found from the first rows.
    #[default]
    Auto,
    /// `{text}`.
    Text,
    /// `{prompt, completion}`.
    PromptCompletion,
    /// `{messages: [{role, content}]}`, or ShareGPT's `{conversations: [{from, value}]}`.
    Messages,
    /// `{instruction, input, output}`, and if there `system` and `history`; becomes messages.
    Alpaca,
}

impl Format {
    /// Every format that a source may have.
    pub const ALL: &[Format] = &[
        Format::Text,
        Format::PromptCompletion,
        Format::Messages,
        Format::Alpaca,
    ];

    /// The name in recipes and messages.
    pub fn name(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::Text => "text",
            Format::PromptCompletion => "prompt-completion",
            Format::Messages => "messages",
            Format::Alpaca => "alpaca",
        }
    }

    /// The layout of the rows that it gives; `None` for `Auto`.
    pub fn layout(self) -> Option<Layout> {
        match self {
            Format::Auto => None,
            Format::Text => Some(Layout::Text),
            Format::PromptCompletion => Some(Layout::PromptCompletion),
            Format::Messages | Format::Alpaca => Some(Layout::Messages),
        }
    }

    /// The columns that each row must have: one of each group.
    pub(crate) fn required(self) -> &'static [&'static [&'static str]] {
        match self {
            Format::Auto => &[],
            Format::Text => &[&["text"]],
            Format::PromptCompletion => &[&["prompt"], &["completion"]],
            Format::Messages => &[&["messages", "conversations"]],
            Format::Alpaca => &[&["instruction"], &["output"]],
        }
    }

    /// The columns that a row may have besides.
    pub(crate) fn optional(self) -> &'static [&'static str] {
        match self {
            Format::Alpaca => &["input", "system", "history"],
            _ => &[],
        }
    }

    /// Every column that it reads.
    pub(crate) fn columns(self) -> impl Iterator<Item = &'static str> {
        self.required()
            .iter()
            .flat_map(|group| group.iter().copied())
            .chain(self.optional().iter().copied())
    }

    /// Whether these columns have all that it requires.
    pub(crate) fn fits<'a>(self, columns: impl Iterator<Item = &'a str> + Clone) -> bool {
        self.required()
            .iter()
            .all(|group| columns.clone().any(|column| group.contains(&column)))
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.name())
    }
}

/// The row that a record of `format` is.
pub(crate) fn shape(format: Format, fields: Fields) -> Result<Row, Fault> {
    let mut record = Columns(fields);
    match format {
        Format::Auto | Format::Text => Ok(Row::Text {
            text: record.text("text")?,
        }),
        Format::PromptCompletion => Ok(Row::PromptCompletion {
            prompt: record.text("prompt")?,
            completion: record.text("completion")?,
        }),
        Format::Messages => {
            let name = if record.has("conversations") && !record.has("messages") {
                "conversations"
            } else {
                "messages"
            };
            Ok(Row::Messages {
                messages: messages(name, record.take(name)?)?,
            })
        }
        Format::Alpaca => alpaca(record),
    }
}

struct Columns(Fields);

impl Columns {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    fn take(&mut self, name: &str) -> Result<Node, Fault> {
        if let Some(at) = self.0.iter().position(|(key, _)| key == name) {
            return Ok(self.0.swap_remove(at).1);
        }
        let keys = self.0.iter().map(|(key, _)| key.as_str());
        let near = match nearest(name, keys.clone()) {
            Some(near) => format!("; is `{near}` meant? (columns: {{ {name}: {near} }})"),
            None => String::new(),
        };
        let keys = keys.collect::<Vec<_>>().join(", ");
        Err(Fault::new(
            0,
            format!("the field `{name}` is missing, there are: {keys}{near}"),
        ))
    }

    fn text(&mut self, name: &str) -> Result<String, Fault> {
        let node = self.take(name)?;
        match node.value {
            Value::Text(text) => Ok(text),
            Value::List(_) if name == "prompt" || name == "completion" => Err(Fault::new(
                node.at,
                format!(
                    "the field `{name}` is a list of turns, expected a string; put prompt and completion into one list `messages`"
                ),
            )),
            other => Err(expected(name, node.at, "a string", &other)),
        }
    }

    /// A text that may be missing or null.
    fn optional_text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        if !self.has(name) {
            return Ok(None);
        }
        let node = self.take(name)?;
        match node.value {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            other => Err(expected(name, node.at, "a string", &other)),
        }
    }
}

fn expected(name: &str, at: usize, wanted: &str, found: &Value) -> Fault {
    Fault::new(
        at,
        format!("the field `{name}` is {}, expected {wanted}", found.kind()),
    )
}

fn alpaca(mut record: Columns) -> Result<Row, Fault> {
    let instruction = record.text("instruction")?;
    let output = record.text("output")?;
    let input = record.optional_text("input")?.unwrap_or_default();
    let system = record.optional_text("system")?.unwrap_or_default();
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(Message::new("system", system));
    }
    if record.has("history") {
        history(record.take("history")?, &mut messages)?;
    }
    let question = if input.is_empty() {
        instruction
    } else {
        format!("{instruction}\n\n{input}")
    };
    messages.push(Message::new("user", question));
    messages.push(Message::new("assistant", output));
    Ok(Row::Messages { messages })
}

/// Earlier turns of an Alpaca row: a list of [question, answer].
fn history(node: Node, messages: &mut Vec<Message>) -> Result<(), Fault> {
    let pairs = match node.value {
        Value::Null => return Ok(()),
        Value::List(pairs) => pairs,
        other => {
            return Err(expected(
                "history",
                node.at,
                "a list of [question, answer]",
                &other,
            ));
        }
    };
    for pair in pairs {
        let fault = || {
            Fault::new(
                pair.at,
                "an entry of `history` is not a pair [question, answer] of strings",
            )
        };
        let Value::List(turns) = pair.value else {
            return Err(fault());
        };
        let [
            Node {
                value: Value::Text(question),
                ..
            },
            Node {
                value: Value::Text(answer),
                ..
            },
        ] = &turns[..]
        else {
            return Err(fault());
        };
        messages.push(Message::new("user", question));
        messages.push(Message::new("assistant", answer));
    }
    Ok(())
}

/// A list of turns, in either of the two spellings.
fn messages(name: &str, node: Node) -> Result<Vec<Message>, Fault> {
    let turns = match node.value {
        Value::List(turns) => turns,
        other => {
            return Err(expected(
                name,
                node.at,
                "a list of turns {role, content}",
                &other,
            ));
        }
    };
    if turns.is_empty() {
        return Err(Fault::new(
            node.at,
            format!("the field `{name}` is an empty list, expected at least one turn"),
        ));
    }
    turns
        .into_iter()
        .enumerate()
        .map(|(index, turn)| message(&format!("{name}[{index}]"), turn))
        .collect()
}

fn message(name: &str, node: Node) -> Result<Message, Fault> {
    let at = node.at;
    let fields = match node.value {
        Value::Map(fields) => fields,
        other => return Err(expected(name, at, "an object {role, content}", &other)),
    };
    let mut turn = Columns(fields);
    let (role_name, content_name) = if turn.has("from") && !turn.has("role") {
        ("from", "value")
    } else {
        ("role", "content")
    };
    let place = |mut fault: Fault| {
        // A missing field has no place of its own.
        fault.at = if fault.at == 0 { at } else { fault.at };
        fault.message = format!("{name}: {}", fault.message);
        fault
    };
    let role = turn.take(role_name).map_err(place)?;
    let content = turn.take(content_name).map_err(place)?;
    let Value::Text(word) = &role.value else {
        return Err(expected(
            &format!("{name}.{role_name}"),
            role.at,
            "a string",
            &role.value,
        ));
    };
    let role = role_of(word)
        .map_err(|message| Fault::new(role.at, format!("{name}.{role_name}: {message}")))?;
    let content = content_of(&format!("{name}.{content_name}"), content)?;
    Ok(Message::new(role, content))
}

/// The role that a word means, ShareGPT's words included.
fn role_of(word: &str) -> Result<&'static str, String> {
    const ROLES: &[(&str, &str)] = &[
        ("system", "system"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("tool", "tool"),
        ("human", "user"),
        ("gpt", "assistant"),
        ("observation", "tool"),
    ];
    if let Some((_, role)) = ROLES.iter().find(|(name, _)| *name == word) {
        return Ok(role);
    }
    if word == "function_call" || word == "tool_call" {
        return Err(format!("`{word}` turns can't be read (only turns of text)"));
    }
    let near = nearest(word, ROLES.iter().map(|(name, _)| *name));
    let near = near.map_or(String::new(), |near| format!(", is `{near}` meant?"));
    Err(format!(
        "unknown role `{word}`{near} (known: system, user, assistant, tool; human, gpt, observation)"
    ))
}

/// The content of a turn: a string, or a list of parts that are all text.
fn content_of(name: &str, node: Node) -> Result<String, Fault> {
    let parts = match node.value {
        Value::Text(text) => return Ok(text),
        Value::List(parts) => parts,
        other => return Err(expected(name, node.at, "a string", &other)),
    };
    let mut content = String::new();
    for part in parts {
        let text = |key: &str| match &part.value {
            Value::Map(fields) => {
                fields
                    .iter()
                    .find(|(name, _)| name == key)
                    .and_then(|(_, node)| match &node.value {
                        Value::Text(text) => Some(text.as_str()),
                        _ => None,
                    })
            }
            _ => None,
        };
        match (text("type"), text("text").or(text("value"))) {
            (Some("text"), Some(text)) => content.push_str(text),
            (Some(kind), _) if kind != "text" => {
                return Err(Fault::new(
                    part.at,
                    format!("`{name}` has a part of type `{kind}`, only `text` can be read"),
                ));
            }
            _ => {
                return Err(Fault::new(
                    part.at,
                    format!("`{name}` has a part that is not {{type: text, text}}"),
                ));
            }
        }
    }
    Ok(content)
}

//! Records to rows: what the columns of each format mean.

mod choices;
mod judged;
mod turns;

use crate::format::Format;
use crate::layout::Message;
use crate::record::{Fault, Fields, Node, Value, excerpt, nearest};
use crate::row::Row;

use turns::messages;

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
        Format::Messages => Ok(Row::Messages {
            messages: record.conversation()?,
        }),
        Format::Alpaca => alpaca(record),
        Format::Preference => judged::preference(record),
        Format::Ranking => judged::ranking(record),
        Format::Unpaired => judged::unpaired(record),
        Format::Scored => judged::scored(record),
        Format::Labelled => judged::labelled(record),
        Format::Choices => choices::choices(record),
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

    /// Whether there is such a column with a value.
    fn holds(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|(key, node)| key == name && node.value != Value::Null)
    }

    /// The turns of `messages` or `conversations`.
    fn conversation(&mut self) -> Result<Vec<Message>, Fault> {
        let name = if self.has("conversations") && !self.has("messages") {
            "conversations"
        } else {
            "messages"
        };
        messages(name, self.take(name)?)
    }

    /// A number, or a text that is one, as all values of a table are.
    fn number(&mut self, name: &str) -> Result<f64, Fault> {
        number(name, &self.take(name)?)
    }

    /// A number that may be missing, null or an empty text.
    fn optional_number(&mut self, name: &str) -> Result<Option<f64>, Fault> {
        if !self.holds(name) {
            return Ok(None);
        }
        let node = self.take(name)?;
        match &node.value {
            Value::Text(text) if text.trim().is_empty() => Ok(None),
            _ => number(name, &node).map(Some),
        }
    }

    /// True or false, 1 or 0, or a text that says so.
    fn boolean(&mut self, name: &str) -> Result<bool, Fault> {
        let node = self.take(name)?;
        let wanted = "true or false (or 1 or 0)";
        match node.value.as_text() {
            Some(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                other => Err(Fault::new(
                    node.at,
                    format!(
                        "the field `{name}` is `{}`, expected {wanted}",
                        excerpt(other)
                    ),
                )),
            },
            None => Err(expected(name, node.at, wanted, &node.value)),
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

fn number(name: &str, node: &Node) -> Result<f64, Fault> {
    let number = match &node.value {
        Value::Number(number) => number.as_f64(),
        Value::Text(text) => text.trim().parse().ok(),
        other => return Err(expected(name, node.at, "a number", other)),
    };
    match number {
        Some(number) if number.is_finite() => Ok(number),
        _ => Err(Fault::new(
            node.at,
            format!("the field `{name}` is not a finite number"),
        )),
    }
}

fn expected(name: &str, at: usize, wanted: &str, found: &Value) -> Fault {
    Fault::new(
        at,
        format!("the field `{name}` is {}, expected {wanted}", found.kind()),
    )
}

fn alpaca(mut record: Columns) -> Result<Row, Fault> {
    let output = record.text("output")?;
    let mut messages = instruction(&mut record)?;
    messages.push(Message::new("assistant", output));
    Ok(Row::Messages { messages })
}

/// What an Alpaca row asks: the turns up to its instruction and input.
fn instruction(record: &mut Columns) -> Result<Vec<Message>, Fault> {
    let instruction = record.text("instruction")?;
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
    Ok(messages)
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

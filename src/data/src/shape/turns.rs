//! Conversations in records: lists of turns, in either of the two spellings.

use super::{Columns, expected};
use crate::layout::Message;
use crate::record::{Fault, Node, Value, nearest};

/// A list of turns, in either of the two spellings.
pub(super) fn messages(name: &str, node: Node) -> Result<Vec<Message>, Fault> {
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

pub(super) fn message(name: &str, node: Node) -> Result<Message, Fault> {
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

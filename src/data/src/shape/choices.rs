//! Records of questions with choices, of which one is right.

use super::judged::asked;
use super::{Columns, expected};
use crate::format::CHOICE_COLUMNS;
use crate::layout::Prompt;
use crate::record::{Fault, Node, Value, excerpt};
use crate::row::{Row, enough};

pub(super) fn choices(mut record: Columns) -> Result<Row, Fault> {
    let (choices, labels) = match record.has("choices") {
        true => listed(record.take("choices")?)?,
        false => (in_columns(&mut record)?, None),
    };
    enough(choices.len()).map_err(|message| Fault::new(0, message))?;
    let name = match record.has("answerKey") && !record.has("answer") {
        true => "answerKey",
        false => "answer",
    };
    let node = record.take(name)?;
    let answer = place(name, &node, &choices, labels.as_deref())?;
    let prompt = match record.holds("question") {
        true => Some(Prompt::Text(record.text("question")?)),
        false => asked(&mut record)?,
    };
    let prompt = match prompt {
        Some(prompt) => prompt,
        None => Prompt::Text(record.text("question")?),
    };
    Ok(Row::Choices {
        prompt,
        choices,
        answer,
    })
}

/// A list of texts, or as ARC has it `{text: […], label: […]}`: the choices, and what an answer may call them.
fn listed(node: Node) -> Result<(Vec<String>, Option<Vec<String>>), Fault> {
    match node.value {
        Value::List(items) => Ok((texts("choices", items)?, None)),
        Value::Map(pairs) => {
            let (mut choices, mut labels) = (None, None);
            for (key, value) in pairs {
                let kept = match key.as_str() {
                    "text" => &mut choices,
                    "label" => &mut labels,
                    _ => continue,
                };
                let Value::List(items) = value.value else {
                    let name = format!("choices.{key}");
                    return Err(expected(&name, value.at, "a list", &value.value));
                };
                *kept = Some(texts(&format!("choices.{key}"), items)?);
            }
            match (choices, labels) {
                (Some(choices), Some(labels)) if choices.len() == labels.len() => {
                    Ok((choices, Some(labels)))
                }
                (Some(_), Some(_)) => Err(Fault::new(
                    node.at,
                    "`choices.text` and `choices.label` are of different lengths",
                )),
                _ => Err(Fault::new(
                    node.at,
                    "`choices` is an object without `text` and `label`, expected a list of texts",
                )),
            }
        }
        other => Err(expected("choices", node.at, "a list of texts", &other)),
    }
}

fn texts(name: &str, items: Vec<Node>) -> Result<Vec<String>, Fault> {
    let text = |(index, item): (usize, Node)| match item.value {
        Value::Text(text) => Ok(text),
        other => {
            let name = format!("{name}[{index}]");
            Err(expected(&name, item.at, "a string", &other))
        }
    };
    items.into_iter().enumerate().map(text).collect()
}

/// The columns `A`, `B`, … of a table up to the first that is missing or empty; one with a text behind such a gap is an error.
fn in_columns(record: &mut Columns) -> Result<Vec<String>, Fault> {
    let mut choices = Vec::new();
    let mut gap = None;
    for name in CHOICE_COLUMNS {
        let at = record.0.iter().find(|(key, _)| key == name);
        let at = at.map_or(0, |(_, node)| node.at);
        let text = match record.holds(name) {
            true => record.text(name)?,
            false => String::new(),
        };
        match (text.is_empty(), gap) {
            (true, _) => gap = gap.or(Some(*name)),
            (false, None) => choices.push(text),
            (false, Some(gap)) => {
                return Err(Fault::new(
                    at,
                    format!("there is a choice `{name}`, and none `{gap}` before it"),
                ));
            }
        }
    }
    match choices.is_empty() {
        true => Err(Fault::new(
            0,
            "there are no choices: neither a list `choices` nor columns `A`, `B`, …",
        )),
        false => Ok(choices),
    }
}

/// The place of the right choice: a number from 0, the text of a choice, its label, or its letter.
fn place(
    name: &str,
    node: &Node,
    choices: &[String],
    labels: Option<&[String]>,
) -> Result<u32, Fault> {
    let count = choices.len();
    let fault = |message: String| Fault::new(node.at, message);
    let out = |what: &str| {
        fault(format!(
            "the field `{name}` is {what}, and there are {count} choices: expected 0 to {}, a letter or the text of a choice",
            count.saturating_sub(1)
        ))
    };
    let text = match &node.value {
        Value::Number(number) if labels.is_none() => {
            let at = number.as_u64().filter(|at| (*at as usize) < count);
            return at.map(|at| at as u32).ok_or(out(&number.to_string()));
        }
        other => match other.as_text() {
            Some(text) => text.into_owned(),
            None => {
                return Err(expected(
                    name,
                    node.at,
                    "the number, the letter or the text of a choice",
                    other,
                ));
            }
        },
    };
    let is = |list: &[String]| list.iter().position(|one| *one == text);
    if let Some(labels) = labels {
        let at = is(labels);
        return at.map(|at| at as u32).ok_or_else(|| {
            fault(format!(
                "the field `{name}` is `{}`, which is no label of the choices: {}",
                excerpt(&text),
                labels.join(", ")
            ))
        });
    }
    let short = text.trim();
    let letter = match short.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => {
            Some(usize::from(letter.to_ascii_uppercase() - b'A'))
        }
        _ => None,
    };
    let number = short.parse().ok();
    let inside = |at: Option<usize>| at.filter(|at| *at < count);
    let meant = [is(choices), inside(letter), inside(number)];
    let mut meant = meant.into_iter().flatten();
    match meant.next() {
        None => Err(out(&format!("`{}`", excerpt(&text)))),
        Some(at) if meant.all(|other| other == at) => Ok(at as u32),
        Some(_) => Err(fault(format!(
            "the field `{name}` is `{}`, which may be the text of one choice or the place of another; give its letter, or its number without quotes",
            excerpt(&text)
        ))),
    }
}

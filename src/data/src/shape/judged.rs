//! Records that say how good texts are: preferences, rankings, desirable or not, scores, labels.

use super::turns::{message, messages};
use super::{Columns, expected, instruction, number};
use crate::layout::{Message, Prompt};
use crate::record::{Fault, Node, Value};
use crate::row::Row;

/// A completion as the file has it.
enum Answer {
    Text(String),
    /// Turns of which the last one is the completion; the others repeat what it answers.
    Turns(Vec<Message>),
}

pub(super) fn preference(mut record: Columns) -> Result<Row, Fault> {
    let margin = margin(&mut record)?;
    let sides = ["chosen", "rejected"].map(|name| -> Result<_, Fault> {
        let node = record.take(name)?;
        Ok((node.at, answer(name, node)?))
    });
    let [chosen, rejected] = sides;
    let ((chosen_at, chosen), (rejected_at, rejected)) = (chosen?, rejected?);
    let (prompt, chosen, rejected) = match (asked(&mut record)?, chosen, rejected) {
        (None, Answer::Text(chosen), Answer::Text(rejected)) => {
            let shared = shared_text(&chosen, &rejected);
            let (prompt, chosen) = chosen.split_at(shared);
            let prompt = Prompt::Text(prompt.to_owned());
            (prompt, chosen.to_owned(), rejected[shared..].to_owned())
        }
        // A prompt of plain text with turns that repeat it in their own way: the turns tell more.
        (None | Some(Prompt::Text(_)), Answer::Turns(chosen), Answer::Turns(rejected))
            if chosen.len() > 1 || rejected.len() > 1 =>
        {
            let shared = shared_turns(&chosen, &rejected);
            if shared == 0 {
                let message = "the turns of `chosen` and `rejected` share no beginning, so there is no prompt";
                return Err(Fault::new(chosen_at, message));
            }
            let prompt = chosen[..shared].to_vec();
            let chosen = completion("chosen", chosen_at, Answer::Turns(chosen), &prompt)?;
            let rejected = completion("rejected", rejected_at, Answer::Turns(rejected), &prompt)?;
            (Prompt::Chat(prompt), chosen, rejected)
        }
        (None, ..) => {
            return Err(Fault::new(
                chosen_at,
                "there is no prompt: neither a field for it (`prompt`, `messages`, `conversations`, `instruction`) nor a \
                 beginning that `chosen` and `rejected` share",
            ));
        }
        (Some(prompt), chosen, rejected) => {
            let in_turns = [&chosen, &rejected].map(|side| matches!(side, Answer::Turns(_)));
            let prompt = conversation_if(prompt, in_turns.contains(&true));
            let before = turns_of(&prompt);
            let chosen = completion("chosen", chosen_at, chosen, before)?;
            let rejected = completion("rejected", rejected_at, rejected, before)?;
            (prompt, chosen, rejected)
        }
    };
    Ok(Row::Preference {
        prompt,
        chosen,
        rejected,
        margin,
    })
}

pub(super) fn ranking(mut record: Columns) -> Result<Row, Fault> {
    let order = order(&mut record)?;
    let node = record.take("completions")?;
    let at = node.at;
    let Value::List(items) = node.value else {
        return Err(expected(
            "completions",
            at,
            "a list of completions",
            &node.value,
        ));
    };
    let mut answers = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let name = format!("completions[{index}]");
        answers.push((item.at, answer(&name, item)?, name));
    }
    let in_turns = answers
        .iter()
        .any(|(_, side, _)| matches!(side, Answer::Turns(_)));
    let prompt = asked(&mut record)?.unwrap_or(Prompt::Text(String::new()));
    let prompt = conversation_if(prompt, in_turns);
    let mut completions = Vec::with_capacity(answers.len());
    for (at, answer, name) in answers {
        completions.push(completion(&name, at, answer, turns_of(&prompt))?);
    }
    if let Some((name, order_at, places)) = order {
        if places.len() != completions.len() {
            let message = format!(
                "the field `{name}` has {} entries for {} completions",
                places.len(),
                completions.len()
            );
            return Err(Fault::new(order_at, message));
        }
        completions = places
            .iter()
            .map(|place| completions[*place].clone())
            .collect();
    }
    Ok(Row::Ranking {
        prompt,
        completions,
    })
}

pub(super) fn unpaired(mut record: Columns) -> Result<Row, Fault> {
    let desirable = record.boolean("label")?;
    let (prompt, completion) = answered(&mut record)?;
    Ok(Row::Unpaired {
        prompt,
        completion,
        desirable,
    })
}

pub(super) fn scored(mut record: Columns) -> Result<Row, Fault> {
    let score = record.number("score")?;
    let plain = !["completion", "messages", "conversations"]
        .iter()
        .any(|name| record.has(name));
    let (prompt, completion) = if plain && record.has("text") {
        (Prompt::Text(String::new()), record.text("text")?)
    } else {
        answered(&mut record)?
    };
    Ok(Row::Scored {
        prompt,
        completion,
        score,
    })
}

pub(super) fn labelled(mut record: Columns) -> Result<Row, Fault> {
    let text = record.text("text")?;
    let node = record.take("label")?;
    match node.value.as_text() {
        Some(label) if label.is_empty() => Err(Fault::new(node.at, "the field `label` is empty")),
        Some(label) => Ok(Row::Labelled {
            text,
            label: label.into_owned(),
        }),
        None => Err(expected(
            "label",
            node.at,
            "a string, a number or a boolean",
            &node.value,
        )),
    }
}

/// A prompt and its one completion: two fields, or a conversation that ends with the assistant.
fn answered(record: &mut Columns) -> Result<(Prompt, String), Fault> {
    if record.holds("completion") {
        let node = record.take("completion")?;
        let at = node.at;
        let answer = answer("completion", node)?;
        let prompt = asked(record)?.unwrap_or(Prompt::Text(String::new()));
        let prompt = conversation_if(prompt, matches!(answer, Answer::Turns(_)));
        let completion = completion("completion", at, answer, turns_of(&prompt))?;
        return Ok((prompt, completion));
    }
    if !record.has("messages") && !record.has("conversations") {
        record.take("completion")?;
    }
    let mut turns = record.conversation()?;
    match turns.pop() {
        Some(last) if last.role == "assistant" && !turns.is_empty() => {
            Ok((Prompt::Chat(turns), last.content))
        }
        _ => Err(Fault::new(
            0,
            "the conversation does not end with the assistant's answer to an earlier turn",
        )),
    }
}

/// What a row asks, if it says so outside of its completions.
pub(super) fn asked(record: &mut Columns) -> Result<Option<Prompt>, Fault> {
    if record.holds("prompt") {
        let node = record.take("prompt")?;
        return Ok(Some(match node.value {
            Value::Text(text) => Prompt::Text(text),
            Value::Map(_) => Prompt::Chat(vec![message("prompt", node)?]),
            Value::List(_) => Prompt::Chat(messages("prompt", node)?),
            other => {
                return Err(expected(
                    "prompt",
                    node.at,
                    "a string or a list of turns",
                    &other,
                ));
            }
        }));
    }
    if record.holds("messages") || record.holds("conversations") {
        return Ok(Some(Prompt::Chat(record.conversation()?)));
    }
    if record.holds("instruction") {
        return Ok(Some(Prompt::Chat(instruction(record)?)));
    }
    Ok(None)
}

/// A completion: a text, a turn or a list of turns.
fn answer(name: &str, node: Node) -> Result<Answer, Fault> {
    match node.value {
        Value::Text(text) => Ok(Answer::Text(text)),
        Value::Map(_) => Ok(Answer::Turns(vec![message(name, node)?])),
        Value::List(_) => Ok(Answer::Turns(messages(name, node)?)),
        other => Err(expected(
            name,
            node.at,
            "a string, a turn or a list of turns",
            &other,
        )),
    }
}

/// A prompt as a conversation, where its completions are turns: plain text is what the user says.
fn conversation_if(prompt: Prompt, in_turns: bool) -> Prompt {
    match prompt {
        Prompt::Text(text) if in_turns => Prompt::Chat(vec![Message::new("user", text)]),
        other => other,
    }
}

fn turns_of(prompt: &Prompt) -> &[Message] {
    match prompt {
        Prompt::Text(_) => &[],
        Prompt::Chat(turns) => turns,
    }
}

/// The text of a completion: of turns the last one, which the assistant says behind nothing or behind those of the prompt.
fn completion(name: &str, at: usize, answer: Answer, prompt: &[Message]) -> Result<String, Fault> {
    let turns = match answer {
        Answer::Text(text) => return Ok(text),
        Answer::Turns(turns) => turns,
    };
    let own = turns.strip_prefix(prompt).unwrap_or(&turns);
    match own {
        [answer] if answer.role == "assistant" => Ok(answer.content.clone()),
        [answer] => Err(Fault::new(
            at,
            format!(
                "`{name}` is said by `{}`, expected the assistant",
                answer.role
            ),
        )),
        _ => Err(Fault::new(
            at,
            format!(
                "`{name}` has {} turns behind those of the prompt, expected one of the assistant",
                own.len()
            ),
        )),
    }
}

/// By how much the chosen completion is better: said, or the difference of two scores.
fn margin(record: &mut Columns) -> Result<Option<f64>, Fault> {
    if let Some(margin) = record.optional_number("margin")? {
        return Ok(Some(margin));
    }
    for (chosen, rejected) in [
        ("chosen_score", "rejected_score"),
        ("score_chosen", "score_rejected"),
    ] {
        let scores = (
            record.optional_number(chosen)?,
            record.optional_number(rejected)?,
        );
        if let (Some(chosen), Some(rejected)) = scores {
            return Ok(Some(chosen - rejected));
        }
    }
    Ok(None)
}

/// The name of the field that orders completions, where it is, and the places of the completions from the best on.
type Order = (&'static str, usize, Vec<usize>);

fn order(record: &mut Columns) -> Result<Option<Order>, Fault> {
    let (name, best_is_least) = match (record.holds("ranks"), record.holds("scores")) {
        (false, false) => return Ok(None),
        (true, false) => ("ranks", true),
        (false, true) => ("scores", false),
        (true, true) => {
            let at = record.take("scores")?.at;
            return Err(Fault::new(
                at,
                "there are `ranks` and `scores`; only one of them can order the completions",
            ));
        }
    };
    let node = record.take(name)?;
    let at = node.at;
    let Value::List(items) = node.value else {
        return Err(expected(name, at, "a list of numbers", &node.value));
    };
    let values = items.iter().map(|item| number(name, item));
    let values: Vec<f64> = values.collect::<Result<_, _>>()?;
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|a, b| {
        let order = values[*a].total_cmp(&values[*b]);
        if best_is_least {
            order
        } else {
            order.reverse()
        }
    });
    if let Some(pair) = places
        .windows(2)
        .find(|pair| values[pair[0]] == values[pair[1]])
    {
        return Err(Fault::new(
            items[pair[1]].at,
            format!(
                "the field `{name}` has {} twice, so it can't be told which of the two completions is better; leave one out",
                values[pair[0]]
            ),
        ));
    }
    Ok(Some((name, at, places)))
}

/// The bytes that two texts share as their prompt, as TRL's `extract_prompt` finds them: a space before the first difference
/// belongs to the completions, and of a text that is the beginning of the other one the last character is its completion.
fn shared_text(chosen: &str, rejected: &str) -> usize {
    let pairs = chosen.char_indices().zip(rejected.chars());
    let different = pairs.clone().find(|((_, a), b)| a != b);
    match different {
        Some(((at, _), _)) => at - usize::from(chosen[..at].ends_with(' ')),
        None => pairs.last().map_or(0, |((at, _), _)| at),
    }
}

/// The number of turns that two conversations share as their prompt, as TRL's `extract_prompt` finds them.
fn shared_turns(chosen: &[Message], rejected: &[Message]) -> usize {
    let pairs = chosen.iter().zip(rejected);
    let same = pairs.take_while(|(a, b)| a == b).count();
    same.min(chosen.len().min(rejected.len()).saturating_sub(1))
}

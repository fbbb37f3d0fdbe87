//! Comparisons as a file, to be answered elsewhere, and the answers out of such a file.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use data::Prompt;
use data::comparison::{Answer, Shown};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stages_data::label::Labelling;
use stages_data::label::log::Writer;

use crate::failure::Failure;
use crate::units;

/// So many lines that can't be used are listed.
const LISTED: usize = 12;

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    question: &'a str,
    prompt: &'a Prompt,
    /// In the order shown: `1` is the first.
    completions: Vec<&'a str>,
    answer: Option<&'a str>,
}

/// What is read of a line; the rest may have been left out.
#[derive(Deserialize)]
struct Answered {
    id: String,
    completions: Option<Vec<String>>,
    #[serde(default)]
    answer: Value,
}

/// Writes the comparisons that `name` has not answered yet, in the order and with the sides that `name` would see.
pub(super) fn export(labelling: &Labelling, name: &str, file: &Path) -> Result<usize> {
    let answers = labelling.answers_of(name)?;
    let mut text = String::new();
    let mut written = 0;
    for shown in labelling.comparisons.shown_to(name) {
        let comparison = &labelling.comparisons.all[shown.comparison];
        if answers.get(&comparison.id).is_some() {
            continue;
        }
        let line = Line {
            id: &comparison.id,
            question: &labelling.params.question,
            prompt: &labelling.comparisons.groups[comparison.group].prompt,
            completions: labelling.comparisons.texts(&shown),
            answer: None,
        };
        text.push_str(&serde_json::to_string(&line)?);
        text.push('\n');
        written += 1;
    }
    // There may be answers in a file of that name which nobody has imported yet.
    let made = std::fs::File::create_new(file);
    let mut out = match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::usage(format_args!(
                "{} is there already and stays as it is: name another file",
                file.display()
            )));
        }
        made => made.with_context(|| format!("{} can't be made", file.display()))?,
    };
    out.write_all(text.as_bytes())
        .with_context(|| format!("{} can't be written", file.display()))?;
    Ok(written)
}

/// What came of an import.
#[derive(Default)]
pub(super) struct Imported {
    new: usize,
    known: usize,
    other: usize,
    open: usize,
}

impl Imported {
    pub(super) fn to_json(&self) -> Value {
        json!({ "new": self.new, "already_answered": self.known, "answered_otherwise": self.other, "open": self.open })
    }

    pub(super) fn words(&self) -> String {
        let mut parts = vec![units::plural(self.new, "new answer")];
        let mut part = |count: usize, words: &str| {
            if count > 0 {
                parts.push(format!("{} {words}", units::count(count as u64)));
            }
        };
        part(self.known, "already answered");
        part(
            self.other,
            "already answered otherwise, which stays as it is",
        );
        part(self.open, "without an answer");
        parts.join(", ")
    }
}

/// Adds the answers in a file to those of `name`. Nothing is added unless every line can be used.
pub(super) fn import(
    labelling: &Labelling,
    writer: &mut Writer,
    name: &str,
    file: &Path,
) -> Result<Imported> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::usage(format_args!("{} can't be read: {error}", file.display()))
    })?;
    let all = labelling.comparisons.shown_to(name);
    let by_id: BTreeMap<&str, &Shown> = all
        .iter()
        .map(|shown| {
            (
                labelling.comparisons.all[shown.comparison].id.as_str(),
                shown,
            )
        })
        .collect();
    let mut found = Imported::default();
    let mut wrong: Vec<String> = Vec::new();
    let mut new: Vec<(String, Answer)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (index, line) in text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let read = read(labelling, &by_id, line);
        let (id, answer) = match read {
            Ok((id, Some(answer))) => (id, answer),
            Ok((_, None)) => {
                found.open += 1;
                continue;
            }
            Err(message) => {
                wrong.push(format!("\n  line {}: {message}", index + 1));
                continue;
            }
        };
        let twice = places.get(&id).map(|place| &new[*place].1);
        match (writer.answers().get(&id), twice) {
            (None, Some(before)) if *before != answer => {
                wrong.push(format!(
                    "\n  line {}: the comparison {id} is answered twice, and otherwise",
                    index + 1
                ));
            }
            (None, Some(_)) => found.known += 1,
            (None, None) => {
                found.new += 1;
                places.insert(id.clone(), new.len());
                new.push((id, answer));
            }
            (Some(before), _) if *before == answer => found.known += 1,
            (Some(_), _) => found.other += 1,
        }
    }
    if !wrong.is_empty() {
        let more = match wrong.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!("\n  and {} more", units::count(more as u64)),
        };
        wrong.truncate(LISTED);
        return Err(Failure::usage(format_args!(
            "{}: nothing was imported:{}{more}",
            file.display(),
            wrong.concat()
        )));
    }
    writer.add(new)?;
    Ok(found)
}

/// The comparison that a line is about, and the answer, if it has one, about the members in their order.
fn read(
    labelling: &Labelling,
    by_id: &BTreeMap<&str, &Shown>,
    line: &str,
) -> Result<(String, Option<Answer>), String> {
    let line: Answered = serde_json::from_str(line)
        .map_err(|error| format!("a JSON object with `id` and `answer` is expected: {error}"))?;
    let id = &line.id;
    let shown = by_id.get(id.as_str()).ok_or_else(|| {
        format!("this stage asks about no comparison {id}: the file was written for another stage, or for other samples")
    })?;
    let texts = labelling.comparisons.texts(shown);
    // The order in the file counts: whoever answered has seen that one.
    let order = match &line.completions {
        None => shown.order.clone(),
        Some(written) => {
            let place = |text: &String| texts.iter().position(|known| known == text);
            let places: Option<Vec<usize>> = written.iter().map(place).collect();
            let places = places.filter(|places| {
                let mut sorted = places.clone();
                sorted.sort_unstable();
                sorted.iter().copied().eq(0..texts.len())
            });
            let places = places
                .ok_or_else(|| format!("the completions are not those of the comparison {id}"))?;
            places.iter().map(|place| shown.order[*place]).collect()
        }
    };
    let word = match line.answer {
        Value::Null => return Ok((line.id, None)),
        Value::String(word) => word,
        Value::Number(number) => number.to_string(),
        other => other.to_string(),
    };
    let answer = Answer::parse(&word, order.len())?;
    Ok((line.id, Some(answer.of_members(&order))))
}

//! `ask`: an external program or a chat endpoint judges completions. Which questions there are ([`questions`]), what was answered so
//! far ([`kept`]), who is asked the rest ([`endpoint`], [`program`]), and what comes of the answers ([`results`]).

mod endpoint;
mod kept;
mod program;
mod questions;
mod request;
mod results;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use data::candidates::{Candidates, candidates_of};
use data::judging::{Verdict, read_verdict};
use data::{Dataset, DatasetWriter, Layout, Row};
use engine::artifact::ArtifactType;
use engine::digest::Digest;
use engine::event::{Level, What};
use engine::job::{Cancelled, Draft, Drafts, Input, Job, Reporter};
use kinds::ask::Ask;
use serde_json::{Map, Value, json};

use endpoint::Endpoint;
use kept::{Answer, Kept};
use program::Program;
use questions::{Question, of_completions, of_pairs, pairs};
use results::Results;

/// Whether an endpoint's template can be used.
pub(crate) fn attempt(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    // Of an endpoint alone: what a program is told has no template. Fields that do not fit have been said.
    let Ok(params) = serde_json::from_value::<Ask>(Value::Object(params.clone())) else {
        return Vec::new();
    };
    let wrong = params
        .endpoint
        .is_some()
        .then(|| endpoint::judge_prompt(&params).err());
    let wrong = wrong.flatten();
    wrong
        .map(|error| ("template", format!("{error:#}")))
        .into_iter()
        .collect()
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Ask = job.params()?;
    let pairwise = params.how == "pairwise";
    let sets = job.named("samples")?;
    let named = matches!(job.inputs.get("samples"), Some(Input::Many(_)));
    if let Some((name, _)) = sets
        .iter()
        .find(|(name, _)| kinds::ask::NUMBERS.contains(name))
    {
        bail!(
            "a set of samples is called `{name}`, as one of the metrics is: give it another name, `samples: {{ NAME: {name} }}`"
        );
    }
    let datasets = sets
        .iter()
        .map(|(name, view)| Ok((*name, Dataset::open(view.file("rows.arrow")?)?)))
        .collect::<Result<Vec<_>>>()?;
    let datasets: Vec<(&str, &Dataset)> = datasets.iter().map(|(n, d)| (*n, d)).collect();
    let groups = candidates_of(&datasets)?;
    let several = datasets.len() > 1;
    let pairs = match pairwise {
        true => pairs(&groups, several),
        false => Vec::new(),
    };
    let questions = match pairwise {
        true => of_pairs(&groups, &pairs),
        false => of_completions(&groups),
    };
    ensure!(
        !questions.is_empty(),
        "there is nothing to compare: every prompt has one completion only; sample more of each prompt, or name several sets of samples"
    );
    let (answers, verdicts) = answered(job, &params, &groups, &questions, cx)?;

    let ids: Vec<Digest> = questions.iter().map(|question| question.id).collect();
    let results = match pairwise {
        true => Results::of_pairs(&groups, several, &pairs, &ids, &verdicts)?,
        false => Results::of_scores(&groups, &ids, &verdicts),
    };
    let rows = rows(&groups, &results, &job.out)?;
    let mut numbers = numbers(&params, &results, &answers);
    if named {
        for (place, (name, _)) in datasets.iter().enumerate() {
            let own = results.of_set(&groups, place, name)?;
            numbers.insert((*name).to_owned(), own);
        }
    }
    say(&numbers, &datasets, named, cx);
    let metrics = metrics(numbers, &questions, &answers, &job.out)?;
    Ok([("rows".to_owned(), rows), ("metrics".to_owned(), metrics)].into())
}

/// The answer to every question and what it says: those that an earlier run left, and those that are asked for now.
fn answered(
    job: &Job,
    params: &Ask,
    groups: &[Candidates],
    questions: &[Question],
    cx: &dyn Reporter,
) -> Result<(HashMap<Digest, Answer>, HashMap<Digest, Verdict>)> {
    let (pairwise, range) = (params.how == "pairwise", (params.min, params.max));
    let read = |answer: &str| match params.program {
        Some(_) => program::read_answer(answer, pairwise, range),
        None => read_verdict(answer, pairwise, range),
    };
    let folder = job.snapshots.as_deref();
    let folder = folder.context("BUG: no folder for answers")?;
    let (kept, damaged) = Kept::open(folder, |answer| read(&answer.answer).is_ok())?;
    if damaged > 0 {
        let text =
            format!("{damaged} of the answers so far can't be read, and are asked for again");
        cx.note(Level::Warning, &text);
    }
    let mut missing: Vec<Question> = Vec::new();
    let mut known = std::collections::HashSet::new();
    for question in questions {
        if known.insert(question.id) && !kept.has(question.id) {
            missing.push(*question);
        }
    }
    let total = known.len();
    if missing.len() < total {
        let here = total - missing.len();
        cx.note(
            Level::Info,
            &format!("goes on: {here} of {total} answers are here"),
        );
    }
    if !missing.is_empty() {
        let begun = Instant::now();
        let before = total - missing.len();
        let told = |count: usize| {
            let rate =
                (count.saturating_sub(before)) as f64 / begun.elapsed().as_secs_f64().max(1e-9);
            cx.emit(What::Progress {
                done: count as u64,
                total: total as u64,
                unit: "answers".to_owned(),
                rate: Some((rate, "answers/s".to_owned())),
            });
        };
        asked(job, params, groups, &missing, &kept, &told, cx).map_err(|error| {
            if error.is::<Cancelled>() {
                return error;
            }
            let here = kept.len();
            anyhow::anyhow!("{error:#}\n{here} of {total} answers are kept: the next run asks for the others only")
        })?;
    }
    let answers = kept.into_answers();
    let verdicts = answers
        .values()
        .map(|answer| Ok((answer.id, read(&answer.answer)?)))
        .collect::<Result<_>>()?;
    Ok((answers, verdicts))
}

/// Asks the questions.
fn asked(
    job: &Job,
    params: &Ask,
    groups: &[Candidates],
    questions: &[Question],
    kept: &Kept,
    told: &(dyn Fn(usize) + Sync),
    cx: &dyn Reporter,
) -> Result<()> {
    let Some(words) = &params.program else {
        return Endpoint::new(params, cx)?.ask_all(groups, questions, kept, told);
    };
    let script = match job.sources.get("script").map(Vec::as_slice) {
        None => None,
        Some([file]) => Some(std::path::absolute(&file.path)?.display().to_string()),
        Some(files) => bail!("`script` is one file, and there are {}", files.len()),
    };
    let folder = job.out.join("program");
    std::fs::create_dir(&folder).context("a folder for the program can't be made")?;
    let program = Program {
        words: engine::contract::command(words.iter().cloned(), script),
        folder: &folder,
        silence: Duration::try_from_secs_f64(params.timeout_seconds)
            .context("`timeout_seconds` is too long")?,
        range: (params.min, params.max),
        cx,
    };
    program.ask_all(groups, questions, kept, told)
}

/// The completions that have a score.
fn rows(groups: &[Candidates], results: &Results, out: &Path) -> Result<Draft> {
    let path = out.join("rows.arrow");
    let mut writer = DatasetWriter::create(&path, Layout::Scored)?;
    for (group, scores) in groups.iter().zip(&results.scores) {
        for (candidate, score) in group.all.iter().zip(scores) {
            if let Some(score) = score {
                writer.push(&Row::Scored {
                    prompt: group.prompt.clone(),
                    completion: candidate.text.clone(),
                    score: *score,
                })?;
            }
        }
    }
    let summary = writer.finish()?;
    crate::dataset_draft(path, &summary)
}

/// What the judge says as a whole.
fn numbers(
    params: &Ask,
    results: &Results,
    answers: &HashMap<Digest, Answer>,
) -> Map<String, Value> {
    let mut numbers = results.numbers.clone();
    let scores: Vec<f64> = results.scores.iter().flatten().flatten().copied().collect();
    let retries: u64 = answers.values().map(|a| u64::from(a.retries)).sum();
    numbers.insert(
        "score".to_owned(),
        json!(scores.iter().sum::<f64>() / scores.len().max(1) as f64),
    );
    numbers.insert("calls".to_owned(), json!(answers.len()));
    numbers.insert("retries".to_owned(), json!(retries));
    if params.endpoint.is_some() {
        // A sum over some of them would be taken for that over all.
        let tokens = |of: fn(&Answer) -> Option<u64>| answers.values().map(of).sum::<Option<u64>>();
        numbers.insert(
            "prompt_tokens".to_owned(),
            json!(tokens(|a| a.prompt_tokens)),
        );
        numbers.insert(
            "completion_tokens".to_owned(),
            json!(tokens(|a| a.completion_tokens)),
        );
    }
    numbers
}

/// The numbers, and every answer in the order of the questions; prompts and completions are counted from 1.
fn metrics(
    numbers: Map<String, Value>,
    questions: &[Question],
    answers: &HashMap<Digest, Answer>,
    out: &Path,
) -> Result<Draft> {
    let mut lines = String::new();
    for question in questions {
        let answer = answers
            .get(&question.id)
            .context("BUG: a question is open")?;
        let mut line = match question.b {
            Some(b) => json!({ "prompt": question.group + 1, "a": question.a + 1, "b": b + 1 }),
            None => json!({ "prompt": question.group + 1, "completion": question.a + 1 }),
        };
        if let (Value::Object(line), Value::Object(answer)) =
            (&mut line, serde_json::to_value(answer)?)
        {
            line.extend(answer);
        }
        lines.push_str(&format!("{line}\n"));
    }
    let file = |name: &str, bytes: &[u8]| -> Result<_> {
        let path = out.join(name);
        std::fs::write(&path, bytes)?;
        Ok((name.to_owned(), path))
    };
    Ok(Draft {
        artifact: ArtifactType::Metrics,
        files: vec![
            file("metrics.json", &serde_json::to_vec_pretty(&numbers)?)?,
            file(engine::job::ANSWERS, lines.as_bytes())?,
        ],
        refs: BTreeMap::new(),
        summary: numbers.into_iter().collect(),
    })
}

/// What a person wants to know of it first.
fn say(numbers: &Map<String, Value>, sets: &[(&str, &Dataset)], named: bool, cx: &dyn Reporter) {
    let percent = |value: &Value| format!("{:.0}%", 100.0 * value.as_f64().unwrap_or(f64::NAN));
    if let Some(share) = numbers.get("inconsistent") {
        let ties = percent(&numbers["ties"]);
        let text = format!(
            "{ties} of the pairs have no winner; in {} the two orders disagree",
            percent(share)
        );
        cx.note(Level::Info, &text);
    }
    if let Some(((first, _), others)) = sets.split_first().filter(|_| named) {
        for (name, _) in others {
            let rate = percent(&numbers[*name]["win_rate"]);
            cx.note(
                Level::Info,
                &format!("`{name}` wins {rate} against `{first}`"),
            );
        }
    }
}

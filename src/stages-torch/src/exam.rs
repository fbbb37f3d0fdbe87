//! `exam`: questions put to models, and their answers marked.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use data::exam::{Asked, Manner, Shots};
use data::metrics::Normalization;
use data::{Dataset, Row};
use engine::artifact::ArtifactType;
use engine::event::What;
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::exam::Exam;
use ml::Pass;
use ml::completions;
use ml::generate::Prompt;
use ml::pairwise::wilson;
use serde_json::{Map, Value, json};

use crate::answers::{self, MORE_ROOM, answer, room, text};
use crate::completions::log_probabilities;
use crate::model::{Loaded, Turns};

/// A question with its row.
struct Question {
    row: Row,
    asked: Asked,
}

/// How one question went.
struct Mark {
    /// What the model answered.
    answer: String,
    correct: bool,
    /// What else is kept of it.
    details: Map<String, Value>,
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Exam = job.params()?;
    let questions = questions(job, &params)?;
    cx.emit(What::Sample {
        title: "the first question, as it is put".to_owned(),
        text: whole(&questions[0].asked),
    });
    let (mut models, mut samples) = (Map::new(), Vec::new());
    for question in &questions {
        samples.push(Map::from_iter([
            (
                "prompt".to_owned(),
                json!(question.row.question().0.question()),
            ),
            ("reference".to_owned(), json!(question.row.question().1)),
        ]));
    }
    let mut turns = Turns::new(job, Vec::new());
    for (name, view) in job.inputs_of("models")? {
        let loaded = turns.next(name, view)?;
        let (marks, values) = match params.task.as_str() {
            "multiple_choice" => choose(loaded, &questions, &params, cx)?,
            _ => write(loaded, &questions, &params, cx)?,
        };
        cx.emit(What::Metrics {
            step: 0,
            values: values
                .iter()
                .filter_map(|(measure, value)| Some((format!("{name}/{measure}"), value.as_f64()?)))
                .collect(),
        });
        for (sample, mark) in samples.iter_mut().zip(marks) {
            put(sample, "answers", name, json!(mark.answer));
            put(sample, "correct", name, json!(mark.correct));
            for (key, value) in mark.details {
                put(sample, &key, name, value);
            }
        }
        models.insert(name.clone(), Value::Object(values));
        ml::torch::release_memory();
    }
    turns.tell(cx);
    let path = job.out.join("metrics.json");
    let whole = json!({ "models": models });
    std::fs::write(&path, serde_json::to_vec_pretty(&whole)?)?;
    let samples_path = job.out.join("samples.jsonl");
    let lines = samples
        .into_iter()
        .map(|s| Value::Object(s).to_string() + "\n");
    std::fs::write(&samples_path, lines.collect::<String>())?;
    let draft = Draft {
        artifact: ArtifactType::Metrics,
        files: vec![
            ("metrics.json".to_owned(), path),
            ("samples.jsonl".to_owned(), samples_path),
        ],
        refs: BTreeMap::new(),
        summary: models.into_iter().collect(),
    };
    Ok([("metrics".to_owned(), draft)].into())
}

/// Every question as it is put. Errors name the row.
fn questions(job: &Job, params: &Exam) -> Result<Vec<Question>> {
    let dataset = Dataset::open(job.input("data")?.file("rows.arrow")?)?;
    ensure!(!dataset.is_empty(), "there are no questions");
    let own = match job.inputs.contains_key("examples") {
        true => {
            ensure!(
                params.shots > 0,
                "`examples` are given, and `shots` is 0: say how many to show"
            );
            Some(Dataset::open(job.input("examples")?.file("rows.arrow")?)?)
        }
        false => None,
    };
    let shots = Shots::new(own.as_ref().unwrap_or(&dataset), params.shots, params.seed)?;
    let manner = Manner {
        template: params.template().to_owned(),
        instructions: params.instructions.clone(),
        letters: params.answer_with == "letter",
    };
    (0..dataset.len())
        .map(|index| {
            let row = dataset.row(index)?;
            let put = || -> Result<Asked> {
                let asked = manner.ask(&row, &shots.of(&row)?)?;
                ensure!(
                    params.task != "multiple_choice" || !asked.choices.is_empty(),
                    "the row has no choices; `task: exact_match` takes questions without them"
                );
                Ok(asked)
            };
            let asked = put().with_context(|| format!("question {}", index + 1))?;
            Ok(Question { row, asked })
        })
        .collect()
}

/// Multiple choice: the likelihood of every choice of every question.
fn choose(
    loaded: &Loaded,
    questions: &[Question],
    params: &Exam,
    cx: &dyn Reporter,
) -> Result<(Vec<Mark>, Map<String, Value>)> {
    let longest = loaded.model.positions(Pass::eval());
    let (mut rows, mut groups) = (Vec::new(), Vec::new());
    for (index, Question { asked, .. }) in questions.iter().enumerate() {
        groups.push(rows.len()..rows.len() + asked.choices.len());
        for choice in &asked.choices {
            let continuation = format!("{}{choice}", asked.gap);
            let (ids, prompt) = loaded
                .encoder
                .encode_continuation(&asked.prompt, &continuation)?;
            let row = completions::Row {
                tokens: ids.into_iter().map(i64::from).collect(),
                prompt,
            };
            ensure!(
                row.tokens.len() <= longest,
                "question {} has {} tokens with the choice `{choice}`, and the model reads {longest}: leave longer rows out, or take a model with \
                 more positions{}",
                index + 1,
                row.tokens.len(),
                fewer(params)
            );
            ensure!(
                row.completion() > 0,
                "question {}: the choice `{choice}` has no token that anything predicts",
                index + 1
            );
            rows.push(row);
        }
    }
    let found = log_probabilities(
        &loaded.model,
        &rows,
        &groups,
        params.micro_batch,
        "choices",
        cx,
    )?;
    let mut sums = found
        .iter()
        .map(|tokens| tokens.iter().map(|x| f64::from(*x)).sum::<f64>());
    let (mut marks, mut normalized_right) = (Vec::new(), 0.0);
    for (index, Question { asked, .. }) in questions.iter().enumerate() {
        let own: Vec<f64> = sums.by_ref().take(asked.choices.len()).collect();
        ensure!(
            own.iter().all(|likelihood| likelihood.is_finite()),
            "question {}: the model gives log-likelihoods that are not finite: its training diverged",
            index + 1
        );
        let lengths = asked.choices.iter().map(|c| c.chars().count() as f64);
        let normalized: Vec<f64> = own.iter().zip(lengths).map(|(sum, n)| sum / n).collect();
        let chosen = likeliest(&own);
        normalized_right += f64::from(u8::from(likeliest(&normalized) == asked.right));
        marks.push(Mark {
            answer: asked.choices[chosen].clone(),
            correct: chosen == asked.right,
            details: Map::from_iter([("log_likelihoods".to_owned(), json!(own))]),
        });
    }
    let n = marks.len() as f64;
    let right = marks.iter().filter(|mark| mark.correct).count() as f64;
    let mut values = Map::new();
    proportion("accuracy", right / n, n, &mut values);
    proportion("accuracy_normalized", normalized_right / n, n, &mut values);
    values.insert("questions".to_owned(), json!(marks.len()));
    Ok((marks, values))
}

/// Exact match: what the model answers by itself.
fn write(
    loaded: &Loaded,
    questions: &[Question],
    params: &Exam,
    cx: &dyn Reporter,
) -> Result<(Vec<Mark>, Map<String, Value>)> {
    let room = room(&loaded.model, params.max_new_tokens);
    let mut prompts = Vec::new();
    for (index, Question { asked, .. }) in questions.iter().enumerate() {
        let ids = loaded.encoder.encode_prompt(&asked.prompt)?;
        ensure!(
            ids.len() <= room,
            "question {} has {} tokens; with max_new_tokens {} the model has room for {room}: {MORE_ROOM}{}",
            index + 1,
            ids.len(),
            params.max_new_tokens,
            fewer(params)
        );
        prompts.push(Prompt {
            tokens: ids.into_iter().map(i64::from).collect(),
            draw: index as u64,
        });
    }
    let manner = answers::Manner {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        seed: params.seed,
        max_new_tokens: params.max_new_tokens,
        batch: if prompts.len() > 64 { 64 } else { 16 },
    };
    let written = answer(loaded, &prompts, &manner.options(loaded), cx)?;
    let normalization = match params.normalization.as_str() {
        "squad" => Normalization::Squad,
        _ => Normalization::Trimmed,
    };
    let (mut marks, mut f1, mut finished) = (Vec::new(), 0.0, 0.0);
    for (Question { asked, .. }, generated) in questions.iter().zip(&written) {
        let mut said = text(loaded, generated)?;
        if let Some(end) = said.find(['\n', '\r']).filter(|_| params.until == "line") {
            said.truncate(end);
        }
        let own = normalization.token_f1(&said, &asked.answer);
        f1 += own;
        finished += f64::from(u8::from(generated.finished));
        marks.push(Mark {
            correct: normalization.apply(&said) == normalization.apply(&asked.answer),
            answer: said.trim().to_owned(),
            details: Map::from_iter([("f1".to_owned(), json!(own))]),
        });
    }
    let n = marks.len() as f64;
    let right = marks.iter().filter(|mark| mark.correct).count() as f64;
    let mut values = Map::new();
    proportion("exact_match", right / n, n, &mut values);
    values.insert("f1".to_owned(), json!(f1 / n));
    values.insert("finished".to_owned(), json!(finished / n));
    values.insert("questions".to_owned(), json!(marks.len()));
    Ok((marks, values))
}

/// The place of the largest number; of equal ones the first.
fn likeliest(numbers: &[f64]) -> usize {
    let mut best = 0;
    for (at, number) in numbers.iter().enumerate() {
        if *number > numbers[best] {
            best = at;
        }
    }
    best
}

/// A proportion with its interval.
fn proportion(name: &str, part: f64, count: f64, values: &mut Map<String, Value>) {
    let (low, high) = wilson(part, count);
    values.insert(name.to_owned(), json!(part));
    values.insert(format!("{name}_low"), json!(low));
    values.insert(format!("{name}_high"), json!(high));
}

/// The way out of a question that is too long.
fn fewer(params: &Exam) -> &'static str {
    match params.shots {
        0 => "",
        _ => "; fewer `shots` help as well",
    }
}

/// A question as it is put, for people.
fn whole(asked: &Asked) -> String {
    match &asked.prompt {
        data::Prompt::Text(text) => text.clone(),
        data::Prompt::Chat(turns) => turns
            .iter()
            .map(|turn| format!("{}: {}\n", turn.role, turn.content))
            .collect(),
    }
}

/// Puts what is known of a model's answer beside what is known of the others'.
fn put(sample: &mut Map<String, Value>, key: &str, name: &str, value: Value) {
    let all = sample.entry(key).or_insert_with(|| json!({}));
    if let Value::Object(all) = all {
        all.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::likeliest;

    #[test]
    fn of_equal_choices_the_first_counts() {
        assert_eq!(likeliest(&[-2.0, -1.0, -1.0]), 1);
        assert_eq!(likeliest(&[-1.0, -1.0]), 0);
    }
}

//! `evaluate`: loss, perplexity and accuracy on rows, and answers side by side.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, bail};
use data::{Dataset, Tokens};
use engine::artifact::ArtifactType;
use engine::event::{Level, What};
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::evaluate::Evaluate;
use ml::Pass;
use ml::generate::{Generated, Prompt};
use serde_json::{Map, Value, json};

use crate::alignment::Bench;
use crate::answers::{Manner, Question, answer, questions, text};
use crate::model::{Loaded, Turns};
use crate::sft::row;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Evaluate = job.params()?;
    let tokens: BTreeMap<_, _> = job
        .inputs_of("tokens")?
        .iter()
        .map(|(name, view)| (name.as_str(), view))
        .collect();
    let dataset = Dataset::open(job.input("data")?.file("rows.arrow")?)?;
    let bench = Bench::open(job, &params)?;
    let held = bench.as_ref().map(Bench::models).unwrap_or_default();
    let mut turns = Turns::new(job, held);
    let mut first: Option<Vec<Vec<f64>>> = None;
    let mut models = Map::new();
    let mut samples: Vec<Map<String, Value>> = Vec::new();
    for (name, view) in job.inputs_of("models")? {
        let Some(rows) = tokens.get(name.as_str()) else {
            bail!("BUG: the model `{name}` has no tokens")
        };
        let loaded = turns.next(name, view)?;
        let scores = measure(
            loaded,
            &Tokens::open(rows.file("tokens.arrow")?)?,
            &params,
            name,
            cx,
        )?;
        cx.emit(What::Metrics {
            step: 0,
            values: [
                (format!("{name}/loss"), scores.0),
                (format!("{name}/perplexity"), scores.0.exp()),
                (format!("{name}/token_accuracy"), scores.1),
            ]
            .into(),
        });
        if !scores.0.is_finite() {
            let text = format!(
                "{name}: the loss is {}: the model's weights are damaged, or its training diverged",
                scores.0
            );
            cx.note(Level::Warning, &text);
        }
        let mut own = json!({"loss": scores.0, "perplexity": scores.0.exp(), "token_accuracy": scores.1, "tokens": scores.2});
        // Judges hear all answers; the samples are the first of them.
        let asked = match bench {
            Some(_) => dataset.len(),
            None => params.samples.min(dataset.len()),
        };
        let questions = questions(loaded, &dataset, asked, params.max_new_tokens)?;
        let answers = answers(loaded, &questions, &params, cx)?;
        if let (Some(bench), Value::Object(own)) = (&bench, &mut own) {
            let judged = bench.measure(loaded, &questions, &answers, &params, cx)?;
            let before = first.get_or_insert_with(|| judged.scores.clone());
            let fared = bench.against(before, &judged.scores)?;
            for (measure, value) in judged.values.into_iter().chain(fared) {
                if let Some(value) = value.as_f64() {
                    let values = [(format!("{name}/{measure}"), value)].into();
                    cx.emit(What::Metrics { step: 0, values });
                }
                own.insert(measure, value);
            }
        }
        models.insert(name.clone(), own);
        for (index, (question, answer)) in questions
            .iter()
            .zip(&answers)
            .take(params.samples)
            .enumerate()
        {
            let answer = text(loaded, answer)?;
            keep(name, index, question, answer, &mut samples, cx);
        }
        ml::torch::release_memory();
    }
    turns.tell(cx);
    let path = job.out.join("metrics.json");
    std::fs::write(
        &path,
        serde_json::to_vec_pretty(&json!({ "models": models }))?,
    )?;
    let mut files = vec![("metrics.json".to_owned(), path)];
    if params.samples > 0 {
        let path = job.out.join("samples.jsonl");
        let lines: String = samples
            .into_iter()
            .map(|s| Value::Object(s).to_string() + "\n")
            .collect();
        std::fs::write(&path, lines)?;
        files.push(("samples.jsonl".to_owned(), path));
    }
    let summary = models.into_iter().collect();
    Ok([(
        "metrics".to_owned(),
        Draft {
            artifact: ArtifactType::Metrics,
            files,
            refs: BTreeMap::new(),
            summary,
        },
    )]
    .into())
}

/// (mean loss, token accuracy, tokens counted).
fn measure(
    loaded: &Loaded,
    tokens: &Tokens,
    params: &Evaluate,
    name: &str,
    cx: &dyn Reporter,
) -> Result<(f64, f64, u64)> {
    let mut total: Option<ml::sft::Scores> = None;
    let start = Instant::now();
    let mut seen = 0usize;
    for first in (0..tokens.len()).step_by(params.micro_batch) {
        cx.check()?;
        let last = (first + params.micro_batch).min(tokens.len());
        let rows = (first..last)
            .map(|i| row(tokens, i))
            .collect::<Result<Vec<_>>>()?;
        seen += rows.iter().map(|r| r.tokens.len()).sum::<usize>();
        let scores = ml::sft::evaluate(&loaded.model, Pass::eval(), &rows, ml::loss::CHUNK)?;
        match &mut total {
            Some(total) => total.add(scores),
            None => total = Some(scores),
        }
        let rate = Some((
            seen as f64 / start.elapsed().as_secs_f64().max(1e-9),
            "tokens/s".to_owned(),
        ));
        cx.emit(What::Progress {
            done: last as u64,
            total: tokens.len() as u64,
            unit: format!("rows of {name}"),
            rate,
        });
    }
    match total {
        Some(s) if s.count > 0 => Ok((
            s.loss / s.count as f64,
            s.correct as f64 / s.count as f64,
            s.count as u64,
        )),
        _ => bail!("no token of the rows counts: there is nothing to measure"),
    }
}

/// Every question answered.
fn answers(
    loaded: &Loaded,
    questions: &[Question],
    params: &Evaluate,
    cx: &dyn Reporter,
) -> Result<Vec<Generated>> {
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let manner = Manner {
        temperature: params.temperature,
        top_k: 0,
        top_p: 1.0,
        seed: params.seed,
        max_new_tokens: params.max_new_tokens,
        batch: if questions.len() > 64 { 64 } else { 16 },
    };
    let prompts: Vec<_> = (0..)
        .zip(questions)
        .map(|(draw, question)| Prompt {
            tokens: question.tokens.clone(),
            draw,
        })
        .collect();
    answer(loaded, &prompts, &manner.options(loaded), cx)
}

/// Puts an answer beside those of the other models.
fn keep(
    name: &str,
    index: usize,
    question: &Question,
    answer: String,
    samples: &mut Vec<Map<String, Value>>,
    cx: &dyn Reporter,
) {
    cx.emit(What::Sample {
        title: format!("{name}: {}", question.text()),
        text: answer.clone(),
    });
    if samples.len() <= index {
        let mut entry = Map::new();
        entry.insert("prompt".to_owned(), json!(question.text()));
        entry.insert("reference".to_owned(), json!(question.reference));
        entry.insert("answers".to_owned(), json!({}));
        samples.push(entry);
    }
    if let Some(Value::Object(all)) = samples[index].get_mut("answers") {
        all.insert(name.to_owned(), json!(answer));
    }
}

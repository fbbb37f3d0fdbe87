//! `density_ratio`: the log-probabilities of completions under two models, one after the other, and their difference.

use anyhow::{Context, Result, ensure};
use data::candidates::candidates;
use data::fill::fill;
use data::layout::Prompt;
use data::{Dataset, DatasetWriter, Layout, Row};
use engine::artifact::ArtifactType;
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::density_ratio::DensityRatio;
use serde_json::json;

use crate::completions::log_probabilities;
use crate::judge::Answer;
use crate::model::{Loaded, Turns};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: DensityRatio = job.params()?;
    let dataset = Dataset::open(job.input("samples")?.file("rows.arrow")?)?;
    let mut answers = Vec::new();
    for group in candidates(&dataset)? {
        answers.extend(group.all.into_iter().map(|one| Answer {
            prompt: group.prompt.clone(),
            text: one.text,
        }));
    }
    let mut turns = Turns::new(job, Vec::new());
    let mut log_likelihoods = |port: &str| {
        let loaded = turns.next(port, job.input(port)?)?;
        measured(loaded, port, &params, &answers, cx)
    };
    let strong = log_likelihoods("strong")?;
    // What two models give with the same weights is the same.
    let weak = match job.input("weak")?.digest == job.input("strong")?.digest {
        true => strong.clone(),
        false => log_likelihoods("weak")?,
    };
    turns.tell(cx);
    drop(turns);
    ml::torch::release_memory();
    let path = job.out.join("rows.arrow");
    let mut writer = DatasetWriter::create(&path, Layout::Scored)?;
    let mut sum = 0.0;
    for (index, answer) in answers.iter().enumerate() {
        let score = strong[index] - weak[index];
        ensure!(
            score.is_finite(),
            "completion {} has the log-probabilities {} and {}, which are no numbers to compare: one of the models diverged",
            index + 1,
            strong[index],
            weak[index]
        );
        sum += score;
        writer.push(&Row::Scored {
            prompt: answer.prompt.clone(),
            completion: answer.text.clone(),
            score,
        })?;
    }
    let summary = writer.finish()?;
    ensure!(summary.rows > 0, "there are no completions to score");
    let columns: Vec<_> = summary.layout.columns().iter().map(|(n, _)| *n).collect();
    let draft = Draft {
        artifact: ArtifactType::Dataset,
        files: vec![("rows.arrow".to_owned(), path)],
        refs: Default::default(),
        summary: [
            ("rows".to_owned(), json!(summary.rows)),
            ("layout".to_owned(), json!(summary.layout.name())),
            ("columns".to_owned(), json!(columns)),
            (
                "characters".to_owned(),
                serde_json::to_value(summary.characters)?,
            ),
            ("score".to_owned(), json!(sum / summary.rows as f64)),
        ]
        .into(),
    };
    Ok([("rows".to_owned(), draft)].into())
}

/// log π of every answer under the model of a port: a sum over its tokens, or their mean.
fn measured(
    loaded: &Loaded,
    port: &str,
    params: &DensityRatio,
    answers: &[Answer],
    cx: &dyn Reporter,
) -> Result<Vec<f64>> {
    let rows = answers
        .iter()
        .enumerate()
        .map(|(index, answer)| {
            row(loaded, &dressed(&answer.prompt, params), &answer.text)
                .with_context(|| format!("completion {} for `{port}`", index + 1))
        })
        .collect::<Result<Vec<_>>>()?;
    let unit = format!("completions of {port}");
    let alone: Vec<_> = (0..rows.len()).map(|at| at..at + 1).collect();
    let all = log_probabilities(&loaded.model, &rows, &alone, params.micro_batch, &unit, cx)?;
    ml::torch::release_memory();
    let of = |tokens: &Vec<f32>| {
        let sum: f64 = tokens.iter().map(|x| f64::from(*x)).sum();
        match params.normalize.as_str() {
            "tokens" => sum / tokens.len() as f64,
            _ => sum,
        }
    };
    Ok(all.iter().map(of).collect())
}

/// The prompt as the models read it: the template in the place of the text, or of the user's last turn.
fn dressed(prompt: &Prompt, params: &DensityRatio) -> Prompt {
    let filled = |text: &str| {
        let values = [
            ("criteria", params.criteria.as_deref().unwrap_or_default()),
            ("examples", params.examples.as_deref().unwrap_or_default()),
            ("prompt", text),
        ];
        fill(&params.template, &values)
    };
    match prompt {
        Prompt::Text(text) => Prompt::Text(filled(text)),
        Prompt::Chat(messages) => {
            let mut messages = messages.clone();
            if let Some(last) = messages.iter_mut().rfind(|turn| turn.role == "user") {
                last.content = filled(&last.content);
            }
            Prompt::Chat(messages)
        }
    }
}

/// The tokens of a completion after its prompt, as the model's own tokenizer has them, the end among them.
fn row(loaded: &Loaded, prompt: &Prompt, text: &str) -> Result<ml::completions::Row> {
    let group = loaded.encoder.encode_completions(&Row::Scored {
        prompt: prompt.clone(),
        completion: text.to_owned(),
        score: 0.0,
    })?;
    let ids = group.completions.into_iter().next();
    let (ids, _) = ids.context("BUG: a scored row has a completion")?;
    let longest = loaded.model.positions(ml::Pass::eval());
    ensure!(
        ids.len() <= longest,
        "{} tokens with its prompt, and the model reads {longest}: shorten the template, or leave long rows out",
        ids.len()
    );
    Ok(ml::completions::Row {
        tokens: ids.into_iter().map(i64::from).collect(),
        prompt: group.prompt,
    })
}

//! `generate`: completions of prompts.

use std::collections::BTreeMap;

use anyhow::Result;
use data::{Dataset, DatasetWriter, Layout, Message, Row};
use engine::artifact::ArtifactType;
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::generate::Generate;
use ml::generate::Prompt;
use serde_json::json;

use crate::answers::{Manner, answer, questions, text};
use crate::model::load;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Generate = job.params()?;
    let dataset = Dataset::open(job.input("prompts")?.file("rows.arrow")?)?;
    let loaded = load(job.input("model")?, job)?;
    let count = params.limit.unwrap_or(usize::MAX);
    let mut prompts = Vec::new();
    let questions = questions(&loaded, &dataset, count, params.max_new_tokens)?;
    for (index, question) in questions.into_iter().enumerate() {
        for take in 0..params.n {
            prompts.push(Prompt {
                tokens: question.tokens.clone(),
                draw: (index * params.n + take) as u64,
            });
        }
    }
    let manner = Manner {
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        seed: params.seed,
        max_new_tokens: params.max_new_tokens,
        batch: params.batch,
    };
    let answers = answer(&loaded, &prompts, &manner.options(&loaded), cx)?;
    let unfinished = answers.iter().filter(|a| !a.finished).count();
    if unfinished > 0 {
        let text = format!(
            "{unfinished} of {} completions were cut off at max_new_tokens {}",
            answers.len(),
            params.max_new_tokens
        );
        cx.note(Level::Info, &text);
    }
    let layout = match dataset.layout() {
        Layout::Messages => Layout::Messages,
        _ => Layout::PromptCompletion,
    };
    let path = job.out.join("rows.arrow");
    let mut writer = DatasetWriter::create(&path, layout)?;
    for (index, generated) in answers.iter().enumerate() {
        writer.push(&completed(
            &dataset.row(index / params.n)?,
            text(&loaded, generated)?,
        ))?;
    }
    let summary = writer.finish()?;
    let draft = Draft {
        artifact: ArtifactType::Dataset,
        files: vec![("rows.arrow".to_owned(), path)],
        refs: BTreeMap::new(),
        summary: [
            ("rows".to_owned(), json!(summary.rows)),
            ("layout".to_owned(), json!(summary.layout.name())),
            (
                "characters".to_owned(),
                serde_json::to_value(summary.characters)?,
            ),
            ("unfinished".to_owned(), json!(unfinished)),
            (
                "tokens".to_owned(),
                json!(answers.iter().map(|a| a.tokens.len()).sum::<usize>()),
            ),
        ]
        .into(),
    };
    Ok([("rows".to_owned(), draft)].into())
}

/// The row with `answer` in the place of its last answer, or after its question.
fn completed(row: &Row, answer: String) -> Row {
    match row.question().0 {
        data::Prompt::Text(prompt) => Row::PromptCompletion {
            prompt,
            completion: answer,
        },
        data::Prompt::Chat(mut messages) => {
            messages.push(Message::new("assistant", answer));
            Row::Messages { messages }
        }
    }
}

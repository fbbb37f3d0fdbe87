//! `tokenize_labelled`: labelled texts → token ids.

use std::time::Instant;

use anyhow::Result;
use data::tokenize_labelled::{LabelledOptions, tokenize_labelled};
use data::tokens::TokensWriter;
use engine::artifact::ArtifactType;
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reference, Reporter};
use kinds::tokenize_labelled::TokenizeLabelled;

use crate::tokenize::{dataset, encoder, truncation};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: TokenizeLabelled = job.params()?;
    let options = LabelledOptions {
        max_length: params.max_length,
        truncation: truncation(&params.truncation)?,
        threads: Some(job.threads),
    };
    let tokenizer = job.input("tokenizer")?;
    let encoder = encoder(job)?;
    let dataset = dataset(job)?;
    let path = job.out.join("tokens.arrow");
    let start = Instant::now();
    let report = tokenize_labelled(
        &dataset,
        &encoder,
        options,
        TokensWriter::create(&path)?,
        &mut |done, total| crate::rows_done(cx, done, total, start),
    )?;
    cx.check()?;
    let made = &report.tokens;
    let text = format!("{} texts, {} tokens", made.rows, made.tokens);
    cx.note(Level::Info, &text);
    if report.truncated > 0 {
        let text = format!(
            "{} of {} texts are longer than max_length {} and were cut",
            report.truncated, made.rows, options.max_length
        );
        cx.note(Level::Warning, &text);
    }
    let draft = Draft {
        artifact: ArtifactType::Tokens,
        files: vec![("tokens.arrow".to_owned(), path)],
        refs: [(
            "tokenizer".to_owned(),
            Reference::Artifact(tokenizer.digest),
        )]
        .into(),
        summary: [
            ("rows".to_owned(), made.rows.into()),
            ("tokens".to_owned(), made.tokens.into()),
            ("lengths".to_owned(), serde_json::to_value(made.lengths)?),
            ("truncated".to_owned(), report.truncated.into()),
        ]
        .into(),
    };
    Ok([("tokens".to_owned(), draft)].into())
}

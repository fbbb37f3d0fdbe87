//! `tokenize`: rows → token ids with a loss mask.

use std::time::Instant;

use anyhow::{Result, bail};
use data::encode::{Encoder, LossOn};
use data::store::Dataset;
use data::tokenize::{TokenizeOptions, Truncation, tokenize};
use data::tokens::TokensWriter;
use engine::artifact::ArtifactType;
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reporter};
use formats::TokenizerFiles;
use kinds::tokenize::Tokenize;

/// The truncation that a word means.
pub(crate) fn truncation(word: &str) -> Result<Truncation> {
    Ok(match word {
        "keep_start" => Truncation::KeepStart,
        "keep_end" => Truncation::KeepEnd,
        "drop" => Truncation::Drop,
        other => bail!("`{other}` is not a truncation"),
    })
}

/// The tokenizer of a job. No date: a template that writes one would give other tokens tomorrow.
pub(crate) fn encoder(job: &Job) -> Result<Encoder> {
    let files = TokenizerFiles::from_folder_files(&job.input("tokenizer")?.files)?;
    Encoder::from_files(&files, None)
}

/// The rows of a job.
pub(crate) fn dataset(job: &Job) -> Result<Dataset> {
    Dataset::open(job.input("data")?.file("rows.arrow")?)
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Tokenize = job.params()?;
    let options = TokenizeOptions {
        max_length: params.max_length,
        truncation: truncation(&params.truncation)?,
        loss_on: match params.loss_on.as_str() {
            "completions" => LossOn::Completions,
            "last_turn" => LossOn::LastTurn,
            "all" => LossOn::All,
            other => bail!("`{other}` does not say what the loss is on"),
        },
        threads: Some(job.threads),
    };
    let encoder = encoder(job)?;
    let dataset = dataset(job)?;
    let path = job.out.join("tokens.arrow");
    let start = Instant::now();
    let report = tokenize(
        &dataset,
        &encoder,
        &options,
        TokensWriter::create(&path)?,
        &mut |done, total| crate::rows_done(cx, done, total, start),
    )?;
    cx.check()?;
    let text = format!(
        "{} rows, {} tokens, {} of them trained",
        report.tokens.rows, report.tokens.tokens, report.tokens.trained
    );
    cx.note(Level::Info, &text);
    if report.truncated > 0 {
        cx.note(
            Level::Warning,
            &format!(
                "{} rows are longer than max_length {} and were cut",
                report.truncated, options.max_length
            ),
        );
    }
    for lint in &report.lints {
        cx.note(Level::Warning, lint);
    }
    let draft = Draft {
        artifact: ArtifactType::Tokens,
        files: vec![("tokens.arrow".to_owned(), path)],
        refs: Default::default(),
        summary: [
            ("rows".to_owned(), report.tokens.rows.into()),
            ("tokens".to_owned(), report.tokens.tokens.into()),
            ("trained".to_owned(), report.tokens.trained.into()),
            (
                "lengths".to_owned(),
                serde_json::to_value(report.tokens.lengths)?,
            ),
            ("truncated".to_owned(), report.truncated.into()),
            ("dropped".to_owned(), serde_json::to_value(&report.dropped)?),
            ("loss_on".to_owned(), params.loss_on.into()),
        ]
        .into(),
    };
    Ok([("tokens".to_owned(), draft)].into())
}

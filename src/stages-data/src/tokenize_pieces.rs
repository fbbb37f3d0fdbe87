//! `tokenize_pieces`: running text → token ids in pieces.

use std::time::Instant;

use anyhow::Result;
use data::tokenize_pieces::tokenize_pieces;
use data::tokens::TokensWriter;
use engine::artifact::ArtifactType;
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::tokenize_pieces::TokenizePieces;

use crate::tokenize::{dataset, encoder};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: TokenizePieces = job.params()?;
    let encoder = encoder(job)?;
    let dataset = dataset(job)?;
    let path = job.out.join("tokens.arrow");
    let start = Instant::now();
    let report = tokenize_pieces(
        &dataset,
        &encoder,
        params.max_length,
        Some(job.threads),
        TokensWriter::create(&path)?,
        &mut |done, total| crate::rows_done(cx, done, total, start),
    )?;
    cx.check()?;
    let made = &report.tokens;
    let text = format!(
        "{} texts gave {} rows of {} tokens in all; {} texts are longer than max_length {} and were cut into pieces",
        report.rows_read, made.rows, made.tokens, report.cut, params.max_length
    );
    cx.note(Level::Info, &text);
    if report.dropped > 0 {
        let text = format!(
            "{} texts or pieces were left out: they have no token but special ones",
            report.dropped
        );
        cx.note(Level::Warning, &text);
    }
    let draft = Draft {
        artifact: ArtifactType::Tokens,
        files: vec![("tokens.arrow".to_owned(), path)],
        refs: Default::default(),
        summary: [
            ("rows".to_owned(), made.rows.into()),
            ("tokens".to_owned(), made.tokens.into()),
            ("trained".to_owned(), made.trained.into()),
            ("lengths".to_owned(), serde_json::to_value(made.lengths)?),
            ("texts".to_owned(), report.rows_read.into()),
            ("cut".to_owned(), report.cut.into()),
            ("dropped".to_owned(), report.dropped.into()),
        ]
        .into(),
    };
    Ok([("tokens".to_owned(), draft)].into())
}

//! `load_dataset`: files → rows in Arrow.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use data::Format;
use data::read::{ReadOptions, read_into};
use engine::event::{Level, What};
use engine::job::{Drafts, Job, Reporter};
use kinds::load_dataset::LoadDataset;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: LoadDataset = job.params()?;
    let format = match params.format.as_str() {
        "auto" => Format::Auto,
        "text" => Format::Text,
        "prompt-completion" => Format::PromptCompletion,
        "messages" => Format::Messages,
        "alpaca" => Format::Alpaca,
        other => bail!("`{other}` is not a format"),
    };
    let mut replace = Vec::new();
    for (from, to) in &params.replace {
        let to = to
            .as_str()
            .with_context(|| format!("what replaces `{from}` is not a text"))?;
        replace.push((from.clone(), to.to_owned()));
    }
    let options = ReadOptions {
        format,
        columns: params.columns,
        replace,
        limit: params.limit.map(|l| l as u64),
    };
    let files: Vec<_> = job
        .source("source")?
        .iter()
        .map(|f| (f.name.clone(), f.path.clone()))
        .collect();
    let path = job.out.join("rows.arrow");
    let start = Instant::now();
    let (report, summary) = read_into(&files, &options, &path, &mut |p| {
        let rate = (
            p.rows as f64 / start.elapsed().as_secs_f64().max(1e-9),
            "rows/s".to_owned(),
        );
        cx.emit(What::Progress {
            done: p.bytes.min(p.total),
            total: p.total,
            unit: "bytes".to_owned(),
            rate: Some(rate),
        });
    })?;
    cx.check()?;
    cx.note(
        Level::Info,
        &format!(
            "{} rows of {}, kept as {}",
            report.rows,
            report.format.name(),
            report.layout.name()
        ),
    );
    for (column, rows) in &report.ignored {
        cx.note(
            Level::Info,
            &format!("the column `{column}` of {rows} rows is not used"),
        );
    }
    Ok([("rows".to_owned(), crate::dataset_draft(path, &summary)?)].into())
}

//! `load_dataset`: files → rows in Arrow.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use data::read::{ReadOptions, peek, read_into};
use data::{Format, Row};
use engine::contract::Rows;
use engine::event::{Level, What};
use engine::job::{About as _, Drafts, Job, Reporter, SourceFile};
use engine::peek::Seen;
use kinds::load_dataset::LoadDataset;
use serde_json::{Map, Value};

/// The layout that the first rows have, and whether pairs come without margins.
pub(crate) fn look(
    params: &Map<String, Value>,
    sources: &BTreeMap<String, Vec<SourceFile>>,
) -> Result<Seen> {
    let params: LoadDataset = serde_json::from_value(Value::Object(params.clone()))?;
    let files = paths(sources.get("source").context("no source")?);
    let mut margins = false;
    let report = peek(&files, &options(params)?, &mut |row| {
        margins |= !matches!(row, Row::Preference { margin: None, .. });
    })?;
    let (format, layout) = (report.format.name(), report.layout.name());
    let rows = Rows::of(layout);
    Ok(Seen {
        rows: if margins {
            rows
        } else {
            rows.without("margin")
        },
        words: if format == layout {
            layout.to_owned()
        } else {
            format!("{format}, kept as {layout}")
        },
    })
}

fn paths(files: &[SourceFile]) -> Vec<(String, PathBuf)> {
    files
        .iter()
        .map(|f| (f.name.clone(), f.path.clone()))
        .collect()
}

fn options(params: LoadDataset) -> Result<ReadOptions> {
    let format = Format::from_name(&params.format)
        .with_context(|| format!("`{}` is not a format", params.format))?;
    let mut replace = Vec::new();
    for (from, to) in &params.replace {
        let to = to
            .as_str()
            .with_context(|| format!("what replaces `{from}` is not a text"))?;
        replace.push((from.clone(), to.to_owned()));
    }
    let mut filter = BTreeMap::new();
    for (column, values) in params.filter {
        let values = match values {
            Value::Array(values) => values,
            one => vec![one],
        };
        let texts = values.iter().map(|value| value.as_str().map(str::to_owned));
        let texts: Option<Vec<String>> = texts.collect();
        let texts = texts.with_context(|| format!("where: a value of `{column}` is not a text"))?;
        filter.insert(column, texts);
    }
    Ok(ReadOptions {
        format,
        columns: params.columns,
        replace,
        filter,
        limit: params.limit.map(|l| l as u64),
    })
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let options = options(job.params()?)?;
    let files = paths(job.source("source")?);
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
    })
    .about("source")?;
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
    if report.left_out > 0 {
        let text = format!("{} other rows were left out by `where`", report.left_out);
        cx.note(Level::Info, &text);
    }
    for (column, rows) in &report.ignored {
        cx.note(
            Level::Info,
            &format!("the column `{column}` of {rows} rows is not used"),
        );
    }
    Ok([("rows".to_owned(), crate::dataset_draft(path, &summary)?)].into())
}

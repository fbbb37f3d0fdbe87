//! Sources to rows: files of JSON, JSONL, text, CSV and Parquet, read in one pass with every broken row named.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::filter::Filter;
use crate::format::{Format, choose, undecided};
use crate::layout::Layout;
use crate::record::{Fault, Record, excerpt, nearest};
use crate::row::Row;
use crate::shape::shape;
use crate::source::{Source, rename};
use crate::store::{DatasetSummary, DatasetWriter};

/// Rows that are looked at before `Format::Auto` decides.
const PEEK: usize = 32;
/// Broken rows that are listed before reading stops.
const MAX_FAULTS: usize = 10;

/// How a source is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadOptions {
    /// What the rows look like.
    pub format: Format,
    /// Columns of other names: `{prompt: question}` reads the field `prompt` from the column `question`.
    pub columns: BTreeMap<String, String>,
    /// Texts to replace in every text of every row, in this order.
    pub replace: Vec<(String, String)>,
    /// Only rows are read whose columns (under the file's own names) have one of these values.
    #[serde(rename = "where")]
    pub filter: BTreeMap<String, Vec<String>>,
    /// At most this many rows are read.
    pub limit: Option<u64>,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadReport {
    /// The format taken.
    pub format: Format,
    /// The layout of the rows.
    pub layout: Layout,
    /// Number of rows.
    pub rows: u64,
    /// Rows that `where` left out.
    pub left_out: u64,
    /// Columns that the format does not read, and in how many rows they were.
    pub ignored: BTreeMap<String, u64>,
    /// Rows of each file, under the name shown.
    pub files: Vec<(String, u64)>,
    /// Whether a file began with a byte order mark, which was skipped.
    pub byte_order_mark: bool,
}

/// How far reading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadProgress {
    /// Rows so far.
    pub rows: u64,
    /// Bytes of all files so far.
    pub bytes: u64,
    /// Bytes of all files; smaller than `bytes` in the end when files are compressed.
    pub total: u64,
}

/// Reads all files in order and hands each row to `sink`.
///
/// `files` are pairs of the name shown in messages and the path. The kind of a file is known from its ending (`.txt`,
/// `.csv`, `.tsv`, `.parquet`, `.gz` around another) and for JSON from its first character. Broken rows are collected, up to ten, and
/// reported together with file, line and column; no rows at all is an error.
pub fn read_files(
    files: &[(String, PathBuf)],
    options: &ReadOptions,
    sink: &mut dyn FnMut(Row) -> Result<()>,
    progress: &mut dyn FnMut(ReadProgress),
) -> Result<ReadReport> {
    let mut reading = Reading::new(options)?;
    let total = files
        .iter()
        .map(|(_, path)| path.metadata().map_or(0, |data| data.len()))
        .sum();
    let mut before = 0;
    let mut byte_order_mark = false;
    'files: for (name, path) in files {
        reading.files.push((name.clone(), 0));
        let mut source = Source::open(name, path, options)?;
        while let Some(record) = source
            .next()
            .with_context(|| format!("{name}: cannot be read"))?
        {
            let last = record.last;
            reading.take(name, record, sink)?;
            if reading.rows.is_multiple_of(1024) {
                progress(ReadProgress {
                    rows: reading.rows,
                    bytes: before + source.bytes_read(),
                    total,
                });
            }
            if reading.full() || reading.faults.len() >= MAX_FAULTS {
                break 'files;
            }
            if last {
                break;
            }
        }
        before += source.bytes_read();
        byte_order_mark |= source.byte_order_mark();
    }
    reading.decide(sink)?;
    progress(ReadProgress {
        rows: reading.rows,
        bytes: before,
        total,
    });
    reading.finish(byte_order_mark)
}

/// What shows in the first rows of the files, as many as decide the format, each of which `look` is given; for a check before a run.
pub fn peek(
    files: &[(String, PathBuf)],
    options: &ReadOptions,
    look: &mut dyn FnMut(&Row),
) -> Result<ReadReport> {
    let few = ReadOptions {
        limit: Some(options.limit.map_or(PEEK as u64, |l| l.min(PEEK as u64))),
        ..options.clone()
    };
    let mut sink = |row: Row| {
        look(&row);
        Ok(())
    };
    read_files(files, &few, &mut sink, &mut |_| {})
}

/// Reads all files into a dataset at `path`.
pub fn read_into(
    files: &[(String, PathBuf)],
    options: &ReadOptions,
    path: &Path,
    progress: &mut dyn FnMut(ReadProgress),
) -> Result<(ReadReport, DatasetSummary)> {
    let mut writer: Option<DatasetWriter> = None;
    let mut sink = |row: Row| {
        let writer = match &mut writer {
            Some(writer) => writer,
            None => writer.insert(DatasetWriter::create(path, row.layout())?),
        };
        writer.push(&row)
    };
    let report = read_files(files, options, &mut sink, progress)?;
    let summary = writer.context("no rows were read")?.finish()?;
    Ok((report, summary))
}

/// The state of reading: rows that wait for the format, rows done, faults found.
struct Reading<'a> {
    options: &'a ReadOptions,
    format: Option<Format>,
    filter: Filter<'a>,
    waiting: VecDeque<(String, Record)>,
    rows: u64,
    files: Vec<(String, u64)>,
    ignored: BTreeMap<String, u64>,
    faults: Vec<String>,
}

impl<'a> Reading<'a> {
    fn new(options: &'a ReadOptions) -> Result<Reading<'a>> {
        let format = (options.format != Format::Auto).then_some(options.format);
        let known: Vec<&str> = match format {
            Some(format) => format.columns().collect(),
            None => Format::ALL
                .iter()
                .flat_map(|format| format.columns())
                .collect(),
        };
        for name in options.columns.keys() {
            if !known.contains(&name.as_str()) {
                let near = nearest(name, known.iter().copied())
                    .map_or(String::new(), |n| format!(", is `{n}` meant?"));
                bail!(
                    "columns: `{name}` is no field of format {}{near} (it has: {})",
                    options.format,
                    known.join(", ")
                );
            }
        }
        if let Some((from, _)) = options.replace.iter().find(|(from, _)| from.is_empty()) {
            bail!("replace: the text to replace is empty (\"{from}\")");
        }
        if options.limit == Some(0) {
            bail!("limit: 0 rows would be no dataset");
        }
        let (waiting, ignored, faults) = (VecDeque::new(), BTreeMap::new(), Vec::new());
        Ok(Reading {
            options,
            format,
            filter: Filter::new(&options.filter)?,
            waiting,
            rows: 0,
            files: Vec::new(),
            ignored,
            faults,
        })
    }

    fn full(&self) -> bool {
        self.options
            .limit
            .is_some_and(|limit| self.rows + self.waiting.len() as u64 >= limit)
    }

    fn take(
        &mut self,
        name: &str,
        mut record: Record,
        sink: &mut dyn FnMut(Row) -> Result<()>,
    ) -> Result<()> {
        if let Ok(fields) = &record.fields
            && !self.filter.takes(fields)
        {
            return Ok(());
        }
        if let Ok(fields) = record.fields {
            record.fields = Ok(rename(fields, &self.options.columns));
        }
        if let Some(format) = self.format {
            return self.accept(format, name, record, sink);
        }
        self.waiting.push_back((name.to_owned(), record));
        if self.waiting.len() >= PEEK {
            self.decide(sink)
        } else {
            Ok(())
        }
    }

    /// Makes a row of a record, or notes what is wrong with it.
    fn accept(
        &mut self,
        format: Format,
        name: &str,
        record: Record,
        sink: &mut dyn FnMut(Row) -> Result<()>,
    ) -> Result<()> {
        let Record {
            place,
            text,
            fields,
            ..
        } = record;
        if let Ok(fields) = &fields {
            for (key, _) in fields
                .iter()
                .filter(|(key, _)| format.columns().all(|column| column != key))
                .filter(|(key, _)| !self.options.filter.contains_key(key))
            {
                *self.ignored.entry(key.clone()).or_default() += 1;
            }
        }
        let row = fields
            .and_then(|fields| shape(format, fields))
            .and_then(|mut row| {
                for (from, to) in &self.options.replace {
                    for text in row.texts_mut() {
                        if text.contains(from) {
                            *text = text.replace(from, to);
                        }
                    }
                }
                check(&row).map_err(|message| Fault::new(0, message))?;
                Ok(row)
            });
        match row {
            Ok(row) => {
                self.rows += 1;
                // Rows that waited for the format belong to a file that may have been left since.
                if let Some((_, rows)) = self.files.iter_mut().rev().find(|(file, _)| file == name)
                {
                    *rows += 1;
                }
                sink(row)
            }
            Err(fault) => {
                let place = place.advance(text.as_bytes(), fault.at);
                let row = if text.is_empty() {
                    String::new()
                } else {
                    format!(" (row: {})", excerpt(&text))
                };
                self.faults
                    .push(format!("{name}{place}: {}{row}", fault.message));
                Ok(())
            }
        }
    }

    /// Decides on the format, when it is to be found, and hands on the rows that waited for it.
    fn decide(&mut self, sink: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
        if self.format.is_some() || self.waiting.is_empty() {
            return Ok(());
        }
        let mut keys: Vec<&str> = Vec::new();
        let mut candidates = Format::ALL.to_vec();
        let (mut sound, mut yes_or_no) = (0, true);
        for (_, record) in &self.waiting {
            if let Ok(fields) = &record.fields {
                sound += 1;
                let label = fields.iter().find(|(key, _)| key == "label");
                yes_or_no &= label.is_some_and(|(_, node)| node.value.is_yes_or_no());
                let columns = fields.iter().map(|(key, _)| key.as_str());
                candidates.retain(|format| format.fits(columns.clone()));
                for column in columns {
                    if !keys.contains(&column) {
                        keys.push(column);
                    }
                }
            }
        }
        // Rows that are broken say nothing of the format: any does, to have the faults reported.
        let format = match choose(candidates, yes_or_no) {
            Ok(format) => format,
            Err(_) if sound == 0 => Format::Text,
            Err(candidates) => return Err(undecided(&self.waiting[0].0, &keys, &candidates)),
        };
        self.format = Some(format);
        while let Some((name, record)) = self.waiting.pop_front() {
            if self.faults.len() < MAX_FAULTS {
                self.accept(format, &name, record, sink)?;
            }
        }
        Ok(())
    }

    fn finish(self, byte_order_mark: bool) -> Result<ReadReport> {
        if let [fault] = &self.faults[..] {
            bail!("{fault}");
        }
        if !self.faults.is_empty() {
            let more = if self.faults.len() >= MAX_FAULTS {
                " (reading stopped here)"
            } else {
                ""
            };
            bail!(
                "{} broken rows{more}:\n  {}",
                self.faults.len(),
                self.faults.join("\n  ")
            );
        }
        let names = self
            .files
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        self.filter.check(&names, self.rows)?;
        if self.rows == 0 {
            bail!(
                "{}: no rows",
                if names.is_empty() { "no files" } else { &names }
            );
        }
        let format = self.format.context("no format was taken")?;
        let layout = format.layout().context("no layout was taken")?;
        Ok(ReadReport {
            format,
            layout,
            rows: self.rows,
            left_out: self.filter.left_out,
            ignored: self.ignored,
            files: self.files,
            byte_order_mark,
        })
    }
}

/// What a row may not be, though its fields are as they should be.
fn check(row: &Row) -> Result<(), String> {
    row.check()?;
    match row {
        Row::Preference {
            chosen, rejected, ..
        } if chosen == rejected => {
            Err("`chosen` and `rejected` are the same text, so neither is better".to_owned())
        }
        Row::Ranking { completions, .. } => match same(completions) {
            None => Ok(()),
            Some((first, second)) => Err(format!(
                "the completions {} and {} (from the best on) are the same text, so neither is better",
                first + 1,
                second + 1
            )),
        },
        Row::Choices { choices, .. } => {
            if let Some(empty) = choices.iter().position(|c| c.trim().is_empty()) {
                return Err(format!("choice {} is empty", empty + 1));
            }
            let bare: Vec<&str> = choices.iter().map(|choice| choice.trim()).collect();
            match same(&bare) {
                None => Ok(()),
                Some((first, second)) => Err(format!(
                    "the choices {} and {} are the same text, so they can't be told apart",
                    first + 1,
                    second + 1
                )),
            }
        }
        _ => Ok(()),
    }
}

/// The places of two texts that are the same.
fn same<T: PartialEq>(texts: &[T]) -> Option<(usize, usize)> {
    (1..texts.len()).find_map(|at| {
        let first = texts[..at].iter().position(|text| *text == texts[at])?;
        Some((first, at))
    })
}

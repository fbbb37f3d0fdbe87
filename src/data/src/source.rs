//! One file of a source: its rows as records, whatever kind of file it is, and its columns under the names that formats know.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;

use crate::csv::CsvRows;
use crate::format::Format;
use crate::json::{Shape, TextRows};
use crate::parquet::ParquetRows;
use crate::read::ReadOptions;
use crate::record::{Fields, Node, Record, Value};

/// The rows of one file of any kind.
pub(crate) enum Source {
    Text(Box<TextRows<Box<dyn Read>>>),
    Table(Box<CsvRows<Box<dyn Read>>>),
    Parquet(Box<ParquetRows>),
}

impl Source {
    pub(crate) fn open(name: &str, path: &Path, options: &ReadOptions) -> Result<Source> {
        let file = File::open(path).with_context(|| format!("{name}: cannot be opened"))?;
        let lower = name.to_lowercase();
        let plain = lower.strip_suffix(".gz").unwrap_or(&lower);
        let wanted = wanted(options);
        if plain.ends_with(".parquet") {
            let rows = ParquetRows::open(file, wanted)
                .with_context(|| format!("{name}: not a Parquet file"))?;
            return Ok(Source::Parquet(Box::new(rows)));
        }
        let shape = plain.ends_with(".txt").then_some(Shape::Text);
        let reader: Box<dyn Read> = if lower.ends_with(".gz") {
            Box::new(MultiGzDecoder::new(file))
        } else {
            Box::new(file)
        };
        for (ending, delimiter) in [(".csv", b','), (".tsv", b'\t')] {
            if plain.ends_with(ending) {
                let rows = CsvRows::new(reader, delimiter, wanted);
                return Ok(Source::Table(Box::new(rows)));
            }
        }
        Ok(Source::Text(Box::new(TextRows::new(reader, shape, wanted))))
    }

    pub(crate) fn next(&mut self) -> Result<Option<Record>> {
        match self {
            Source::Text(rows) => Ok(rows.next()?),
            Source::Table(rows) => Ok(rows.next()?),
            Source::Parquet(rows) => rows.next(),
        }
    }

    pub(crate) fn bytes_read(&self) -> u64 {
        match self {
            Source::Text(rows) => rows.bytes_read(),
            Source::Table(rows) => rows.bytes_read(),
            Source::Parquet(rows) => rows.bytes_read(),
        }
    }

    pub(crate) fn byte_order_mark(&self) -> bool {
        match self {
            Source::Text(rows) => rows.byte_order_mark,
            Source::Table(rows) => rows.byte_order_mark,
            Source::Parquet(_) => false,
        }
    }
}

/// Which columns of the file have values that may be needed, under their names in the file.
fn wanted(options: &ReadOptions) -> Box<dyn Fn(&str) -> bool> {
    let named = options.columns.values().chain(options.filter.keys());
    let named: Vec<String> = named.cloned().collect();
    let formats: Vec<Format> = if options.format == Format::Auto {
        Format::ALL.to_vec()
    } else {
        vec![options.format]
    };
    Box::new(move |key| {
        named.iter().any(|name| name == key)
            || formats
                .iter()
                .any(|f| f.columns().any(|column| column == key))
    })
}

/// Gives the columns the names that the format knows; a column that a renamed one replaces is dropped.
pub(crate) fn rename(fields: Fields, columns: &BTreeMap<String, String>) -> Fields {
    if columns.is_empty() {
        return fields;
    }
    let mut renamed = Fields::with_capacity(fields.len());
    for (key, node) in &fields {
        for (target, _) in columns.iter().filter(|(_, source)| *source == key) {
            renamed.push((target.clone(), node.clone()));
        }
    }
    for (key, node) in fields {
        let is_source = columns.values().any(|source| *source == key);
        if !is_source && !columns.contains_key(&key) {
            renamed.push((key, node));
        } else if columns.contains_key(&key) && !is_source {
            // Shadowed by the renamed column; still a column that is not read.
            renamed.push((
                format!("{key} (the file's own)"),
                Node {
                    at: node.at,
                    value: Value::Skipped,
                },
            ));
        }
    }
    renamed
}

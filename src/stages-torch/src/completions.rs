//! Tokenized completions as the tensor half takes them.

use std::ops::Range;
use std::time::Instant;

use anyhow::{Result, ensure};
use data::completions::Completions;
use engine::artifact::ArtifactView;
use engine::contract::Contract;
use engine::event::What;
use engine::job::Reporter;
use ml::completions::{Batch, Row};
use ml::{Kind, Llama, Pass, no_grad};
use serde_json::Value;

/// A file of completions with its groups.
pub(crate) struct Groups {
    pub completions: Completions,
    /// The place of each group's rows.
    pub ranges: Vec<Range<usize>>,
}

impl Groups {
    /// Opens the tokens of the rows of a port, which must have a layout that it takes: a source that could not be looked at before
    /// the run may turn out to be anything.
    pub(crate) fn open(view: &ArtifactView, contract: &Contract, port: &str) -> Result<Groups> {
        let layout = view.summary.get("layout").and_then(Value::as_str);
        let layouts = contract.port(port).map_or(&[][..], |port| port.layouts);
        ensure!(
            layout.is_some_and(|layout| layouts.contains(&layout)),
            "`{port}` takes rows laid out as {}, and these are {}",
            layouts.join(", "),
            layout.unwrap_or("of no layout")
        );
        Groups::read(view)
    }

    /// The same of any rows.
    pub(crate) fn read(view: &ArtifactView) -> Result<Groups> {
        let completions = Completions::open(view.file("completions.arrow")?)?;
        let ranges = completions.groups()?;
        Ok(Groups {
            completions,
            ranges,
        })
    }

    /// The number of groups.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The rows of group `index`, and the value of its first.
    pub(crate) fn group(&self, index: usize) -> Result<(Vec<Row>, f64)> {
        let mut value = f64::NAN;
        let mut rows = Vec::new();
        for at in self.ranges[index].clone() {
            let found = self.completions.row(at)?;
            if rows.is_empty() {
                value = found.value;
            }
            rows.push(row(found.ids, found.prompt));
        }
        Ok((rows, value))
    }

    /// The place of each group's rows in the file.
    pub(crate) fn range(&self, index: usize) -> Range<usize> {
        self.ranges[index].clone()
    }

    /// Every row.
    pub(crate) fn rows(&self) -> Result<Vec<Row>> {
        (0..self.completions.len())
            .map(|at| {
                let found = self.completions.row(at)?;
                Ok(row(found.ids, found.prompt))
            })
            .collect()
    }
}

fn row(ids: &[i32], prompt: usize) -> Row {
    Row {
        tokens: ids.iter().map(|id| i64::from(*id)).collect(),
        prompt,
    }
}

/// log π of every token of every row's completion, in the order of the rows; says how far it is in `unit`. What the rows of one of
/// `groups`, places in `rows`, begin with alike is computed once.
pub(crate) fn log_probabilities(
    model: &Llama,
    rows: &[Row],
    groups: &[Range<usize>],
    micro_batch: usize,
    unit: &str,
    cx: &dyn Reporter,
) -> Result<Vec<Vec<f32>>> {
    // Groups of like length go together; the result is in the order of the rows.
    let mut order: Vec<&Range<usize>> = groups.iter().collect();
    order.sort_by_key(|group| {
        rows[(*group).clone()]
            .iter()
            .map(|row| row.tokens.len())
            .max()
    });
    let mut all: Vec<Vec<f32>> = vec![Vec::new(); rows.len()];
    let (start, mut done, mut tokens) = (Instant::now(), 0, 0);
    for chosen in order.chunks(micro_batch) {
        cx.check()?;
        let places: Vec<usize> = chosen.iter().flat_map(|group| (*group).clone()).collect();
        let own: Vec<Row> = places.iter().map(|&index| rows[index].clone()).collect();
        let sizes: Vec<usize> = chosen.iter().map(|group| group.len()).collect();
        let values: Vec<f32> = no_grad(|| -> Result<_> {
            let batch = Batch::of_groups(model, &own, &sizes)?;
            tokens += batch.tokens();
            let found = batch.values(model, Pass::eval(), 1.0, false)?;
            Ok(Vec::try_from(found.log_probabilities.to_kind(Kind::Float))?)
        })?;
        let mut values = values.into_iter();
        for (&index, row) in places.iter().zip(&own) {
            all[index] = values.by_ref().take(row.completion()).collect();
        }
        done += own.len();
        let rate = tokens as f64 / start.elapsed().as_secs_f64().max(1e-9);
        cx.emit(What::Progress {
            done: done as u64,
            total: rows.len() as u64,
            unit: unit.to_owned(),
            rate: Some((rate, "tokens/s".to_owned())),
        });
    }
    Ok(all)
}

//! Tokenized completions as the tensor half takes them.

use std::ops::Range;

use anyhow::Result;
use data::completions::Completions;
use engine::artifact::ArtifactView;
use ml::completions::Row;

/// A file of completions with its groups.
pub(crate) struct Groups {
    pub completions: Completions,
    ranges: Vec<Range<usize>>,
}

impl Groups {
    pub(crate) fn open(view: &ArtifactView) -> Result<Groups> {
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

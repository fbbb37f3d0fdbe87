//! The rows of a source that are wanted: those whose columns have given values.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use crate::record::{Fields, nearest};

/// Values of a column that are remembered for a message.
const SHOWN: usize = 8;

/// Column → its wanted values, and what was seen of it.
pub(crate) struct Filter<'a> {
    wanted: &'a BTreeMap<String, Vec<String>>,
    /// Some values of each column that was there.
    seen: BTreeMap<&'a str, BTreeSet<String>>,
    /// The names of other columns.
    others: BTreeSet<String>,
    /// Rows that are not wanted.
    pub(crate) left_out: u64,
}

impl<'a> Filter<'a> {
    pub(crate) fn new(wanted: &'a BTreeMap<String, Vec<String>>) -> Result<Filter<'a>> {
        if let Some((column, _)) = wanted.iter().find(|(_, values)| values.is_empty()) {
            bail!("where: `{column}` has no values, so no row would be read");
        }
        Ok(Filter {
            wanted,
            seen: BTreeMap::new(),
            others: BTreeSet::new(),
            left_out: 0,
        })
    }

    /// Whether a row with these columns, under the file's own names, is wanted.
    pub(crate) fn takes(&mut self, fields: &Fields) -> bool {
        let mut takes = true;
        for (column, wanted) in self.wanted {
            let Some((_, node)) = fields.iter().find(|(key, _)| key == column) else {
                takes = false;
                if self.others.len() < 100 {
                    self.others
                        .extend(fields.iter().map(|(key, _)| key.clone()));
                }
                continue;
            };
            let seen = self.seen.entry(column).or_default();
            let text = node.value.as_text();
            takes &= text
                .as_ref()
                .is_some_and(|text| wanted.iter().any(|value| value == text));
            if let Some(text) = text
                && seen.len() < SHOWN
                && !seen.contains(&*text)
            {
                seen.insert(text.chars().take(40).collect());
            }
        }
        self.left_out += u64::from(!takes);
        takes
    }

    /// Fails when a column was in no row, or when no row was wanted, of `rows` that were taken.
    pub(crate) fn check(&self, file: &str, rows: u64) -> Result<()> {
        if self.left_out == 0 {
            return Ok(());
        }
        for column in self.wanted.keys() {
            if !self.seen.contains_key(column.as_str()) {
                let others: Vec<&str> = self.others.iter().map(String::as_str).collect();
                let near = nearest(column, others.iter().copied())
                    .map_or(String::new(), |near| format!(", is `{near}` meant?"));
                bail!(
                    "{file}: where: no row has a column `{column}`{near} (there are: {})",
                    others.join(", ")
                );
            }
        }
        if rows == 0 {
            let list = |values: &mut dyn Iterator<Item = &String>| {
                values
                    .map(|value| format!("`{value}`"))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let mut clauses = Vec::new();
            for (column, wanted) in self.wanted {
                let found = self.seen.get(column.as_str()).into_iter().flatten();
                clauses.push(format!(
                    "`{column}` {} (found among others: {})",
                    list(&mut wanted.iter()),
                    list(&mut found.into_iter())
                ));
            }
            bail!(
                "{file}: where: none of {} rows has {}",
                self.left_out,
                clauses.join(" and ")
            );
        }
        Ok(())
    }
}

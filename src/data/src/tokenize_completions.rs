//! Datasets to tokenized completions: every row to a group, cut to length and counted, on several threads with the same result
//! as on one.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::completions::{Completion, CompletionsSummary, CompletionsWriter};
use crate::encode::{Encoder, Group};
use crate::store::Dataset;
use crate::tokenize::{CHUNK, Truncation, in_parallel, name_row, threads_or_all};

/// Rows that are listed when their completions are the same.
const MAX_FAULTS: usize = 10;

/// How completions are tokenized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionsOptions {
    /// The largest number of tokens in a row, the prompt's included.
    pub max_length: usize,
    /// What happens to longer rows; `Drop` leaves the whole group out.
    pub truncation: Truncation,
    /// Threads; `None` takes as many as there are. The result does not depend on it.
    #[serde(skip)]
    pub threads: Option<usize>,
}

/// What tokenizing did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionsReport {
    /// Rows of the dataset.
    pub rows_read: u64,
    /// What was written.
    pub completions: CompletionsSummary,
    /// Groups of which something was cut off.
    pub truncated: u64,
    /// Groups that were left out as too long.
    pub dropped_long: u64,
    /// Groups that were left out since a completion has no token (after the cut) that could be learned.
    pub dropped_empty: u64,
    /// Groups that were left out since two completions are the same after the cut.
    pub dropped_same: u64,
    /// Indices (from 0) of the first rows that were left out, at most 100.
    pub dropped: Vec<u64>,
    /// The number of tokens of the longest row before any cut, and the index of its dataset row from 0.
    pub longest: (u64, u64),
    /// Groups whose prompt is cut into tokens otherwise when it stands alone.
    pub merged_boundaries: u64,
    /// What looks wrong though it is possible, in sentences.
    pub lints: Vec<String>,
}

impl CompletionsReport {
    /// All groups that were left out.
    fn lost(&self) -> u64 {
        self.dropped_long + self.dropped_empty + self.dropped_same
    }
}

/// Tokenizes a dataset into `writer`; `progress` hears of (rows done, rows of the dataset).
///
/// Rows keep their order, and the group of a completion is the index of its row. A row that can't be encoded is an error that
/// names it; so are rows with two completions of the same tokens, and a dataset of which nothing is left.
pub fn tokenize_completions(
    dataset: &Dataset,
    encoder: &Encoder,
    options: &CompletionsOptions,
    writer: CompletionsWriter,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CompletionsReport> {
    if options.max_length < 2 {
        bail!(
            "max_length: {} leaves no room for a prompt and a completion; give at least 2",
            options.max_length
        );
    }
    let threads = threads_or_all(options.threads);
    let mut tally = Tally {
        options,
        writer,
        report: empty_report(dataset.len() as u64),
        faults: Vec::new(),
    };
    let mut done = 0;
    while done < dataset.len() {
        let end = dataset.len().min(done + CHUNK);
        let rows = (done..end)
            .map(|index| dataset.row(index))
            .collect::<Result<Vec<_>>>()?;
        let groups = in_parallel(&rows, threads, |row| encoder.encode_completions(row));
        for ((index, row), group) in (done..).zip(&rows).zip(groups) {
            let name = || name_row(index, row);
            tally.add(index, group.with_context(name)?, &name)?;
        }
        done = end;
        progress(done as u64, dataset.len() as u64);
    }
    tally.finish()
}

/// Counts while groups are cut and written.
struct Tally<'a> {
    options: &'a CompletionsOptions,
    writer: CompletionsWriter,
    report: CompletionsReport,
    faults: Vec<String>,
}

impl Tally<'_> {
    fn add(&mut self, index: usize, mut group: Group, name: &dyn Fn() -> String) -> Result<()> {
        if let Some((first, second)) = group.same_completions() {
            self.faults.push(format!(
                "{}: completions {} and {} are the same tokens",
                name(),
                first + 1,
                second + 1
            ));
            if self.faults.len() == MAX_FAULTS {
                return self.refuse();
            }
            return Ok(());
        }
        let report = &mut self.report;
        report.merged_boundaries += u64::from(group.merged_boundary);
        let longest = group.longest() as u64;
        if longest > report.longest.0 {
            report.longest = (longest, index as u64);
        }
        let cut = group.longest() > self.options.max_length;
        if cut {
            group.cut(self.options.max_length, self.options.truncation);
        }
        let dropped = if cut && self.options.truncation == Truncation::Drop {
            Some(&mut report.dropped_long)
        } else if group.has_empty() {
            Some(&mut report.dropped_empty)
        } else if cut && group.same_completions().is_some() {
            Some(&mut report.dropped_same)
        } else {
            None
        };
        if let Some(count) = dropped {
            *count += 1;
            if report.dropped.len() < 100 {
                report.dropped.push(index as u64);
            }
            return Ok(());
        }
        report.truncated += u64::from(cut);
        for (ids, value) in &group.completions {
            let ids = ids
                .iter()
                .map(|id| i32::try_from(*id))
                .collect::<Result<Vec<_>, _>>()?;
            self.writer.push(Completion {
                ids: &ids,
                prompt: group.prompt,
                group: index,
                value: *value,
            })?;
        }
        Ok(())
    }

    fn refuse(&self) -> Result<()> {
        let more = if self.faults.len() == MAX_FAULTS {
            " (looking stopped here)"
        } else {
            ""
        };
        let count = match self.faults.len() {
            1 => "one row has".to_owned(),
            many => format!("{many} rows have"),
        };
        bail!(
            "{count} two completions that can't be told apart{more}; leave them out:\n  {}",
            self.faults.join("\n  ")
        )
    }

    fn finish(self) -> Result<CompletionsReport> {
        if !self.faults.is_empty() {
            self.refuse()?;
        }
        let mut report = self.report;
        report.completions = self.writer.finish()?;
        if report.completions.rows == 0 {
            bail!("{}", nothing_left(&report, self.options));
        }
        report.lints = lints(&report);
        Ok(report)
    }
}

fn empty_report(rows_read: u64) -> CompletionsReport {
    CompletionsReport {
        rows_read,
        completions: CompletionsSummary::default(),
        truncated: 0,
        dropped_long: 0,
        dropped_empty: 0,
        dropped_same: 0,
        dropped: Vec::new(),
        longest: (0, 0),
        merged_boundaries: 0,
        lints: Vec::new(),
    }
}

fn nothing_left(report: &CompletionsReport, options: &CompletionsOptions) -> String {
    if report.rows_read == 0 {
        return "the dataset has no rows".to_owned();
    }
    let way_out = if report.longest.0 > options.max_length as u64 {
        format!(
            "the longest has {} tokens and max_length is {}: raise it, or take tokens from the prompt (truncation: keep_end)",
            report.longest.0, options.max_length
        )
    } else {
        "no row has a completion: look at the roles of the turns".to_owned()
    };
    format!(
        "nothing is left of any of the {} rows; {way_out}",
        report.rows_read
    )
}

fn lints(report: &CompletionsReport) -> Vec<String> {
    let mut lints = Vec::new();
    if report.merged_boundaries > 0 {
        lints.push(format!(
            "the prompt of {} rows is cut into tokens otherwise when it stands alone: a token spans its end, or the chat \
             template writes it in another way, so the model is trained on another prompt than it is asked with; end \
             prompts without white space",
            report.merged_boundaries
        ));
    }
    if report.lost() > 0 {
        lints.push(format!(
            "{} of {} rows were left out ({} too long, {} with a completion of no tokens, {} whose completions are the same \
             after the cut)",
            report.lost(),
            report.rows_read,
            report.dropped_long,
            report.dropped_empty,
            report.dropped_same
        ));
    }
    lints
}

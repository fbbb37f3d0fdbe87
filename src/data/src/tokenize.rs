//! Datasets to tokens: every row encoded, cut to length and counted, on several threads with the same result as on one.

use std::collections::BTreeMap;
use std::num::NonZero;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::encode::{Encoded, Encoder, LossOn};
use crate::layout::Prompt;
use crate::record::excerpt;
use crate::row::Row;
use crate::store::Dataset;
use crate::tokens::{TokensSummary, TokensWriter};

/// What happens to a row that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Truncation {
    /// Its first tokens are kept.
    #[default]
    KeepStart,
    /// Its last tokens are kept.
    KeepEnd,
    /// It is left out.
    Drop,
}

/// How a dataset is tokenized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenizeOptions {
    /// The largest number of tokens in a row.
    pub max_length: usize,
    /// What happens to longer rows.
    pub truncation: Truncation,
    /// Which tokens are targets of the loss.
    pub loss_on: LossOn,
    /// Threads; `None` takes as many as there are. The result does not depend on it.
    #[serde(skip)]
    pub threads: Option<usize>,
}

impl Default for TokenizeOptions {
    fn default() -> Self {
        let (truncation, loss_on) = (Truncation::KeepStart, LossOn::Completions);
        TokenizeOptions {
            max_length: 1024,
            truncation,
            loss_on,
            threads: None,
        }
    }
}

/// What tokenizing did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenizeReport {
    /// Rows of the dataset.
    pub rows_read: u64,
    /// What was written.
    pub tokens: TokensSummary,
    /// Rows that were cut.
    pub truncated: u64,
    /// Rows that were left out as too long.
    pub dropped_long: u64,
    /// Rows that were left out since nothing of them (after the cut) is trained.
    pub dropped_untrained: u64,
    /// Indices (from 0) of the first rows that were left out, at most 100.
    pub dropped: Vec<u64>,
    /// The number of tokens of the longest row before any cut, and its index from 0.
    pub longest: (u64, u64),
    /// Rows in which the EOS token is trained.
    pub eos_trained: u64,
    /// The special tokens that are trained last in a row, with their number of rows: where generation learns to stop.
    pub stops: BTreeMap<String, u64>,
    /// Rows that begin with the BOS token.
    pub bos: u64,
    /// Boundaries between prompt and completion that fall into a token.
    pub merged_boundaries: u64,
    /// Turns of the assistant that open a conversation and are not trained.
    pub opening_turns: u64,
    /// What looks wrong though it is possible, in sentences.
    pub lints: Vec<String>,
}

/// Rows that are encoded together.
pub(crate) const CHUNK: usize = 1024;

/// Tokenizes a dataset into `writer`; `progress` hears of (rows done, rows of the dataset).
///
/// Rows keep their order. A row that can't be encoded is an error that names it; a dataset in which no token is
/// trained is one too.
pub fn tokenize(
    dataset: &Dataset,
    encoder: &Encoder,
    options: &TokenizeOptions,
    writer: TokensWriter,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<TokenizeReport> {
    if options.max_length < 2 {
        bail!(
            "max_length: {} leaves no token to predict; give at least 2",
            options.max_length
        );
    }
    let threads = threads_or_all(options.threads);
    let total = dataset.len() as u64;
    let mut tally = Tally {
        encoder,
        options,
        writer,
        report: None,
    };
    let mut done = 0usize;
    while done < dataset.len() {
        let end = dataset.len().min(done + CHUNK);
        let rows = (done..end)
            .map(|index| dataset.row(index))
            .collect::<Result<Vec<Row>>>()?;
        let encoded = in_parallel(&rows, threads, |row| encoder.encode(row, options.loss_on));
        for (place, encoded) in encoded.into_iter().enumerate() {
            let index = done + place;
            let encoded = encoded.with_context(|| name_row(index, &rows[place]))?;
            tally.add(index as u64, encoded)?;
        }
        done = end;
        progress(done as u64, total);
    }
    tally.finish(total)
}

/// The number of threads that is asked for, or as many as there are.
pub(crate) fn threads_or_all(asked: Option<usize>) -> usize {
    let available = || std::thread::available_parallelism().map_or(1, NonZero::get);
    asked.unwrap_or_else(available).max(1)
}

/// What `make` makes of rows, on several threads; the results are in the order of the rows.
pub(crate) fn in_parallel<T: Send>(
    rows: &[Row],
    threads: usize,
    make: impl Fn(&Row) -> T + Sync,
) -> Vec<T> {
    let share = rows.len().div_ceil(threads).max(1);
    let make_all = |rows: &[Row]| rows.iter().map(&make).collect::<Vec<_>>();
    if threads == 1 || rows.len() < 2 {
        return make_all(rows);
    }
    std::thread::scope(|scope| {
        let handles: Vec<_> = rows
            .chunks(share)
            .map(|rows| scope.spawn(|| make_all(rows)))
            .collect();
        let mut results = Vec::with_capacity(rows.len());
        for handle in handles {
            match handle.join() {
                Ok(part) => results.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    })
}

/// `row 7 (How are you?)`: the number of a row from 1 and its beginning, for messages.
pub(crate) fn name_row(index: usize, row: &Row) -> String {
    let (prompt, _) = row.question();
    let text = match &prompt {
        Prompt::Text(text) => text,
        Prompt::Chat(messages) => messages.first().map_or("", |turn| &turn.content),
    };
    format!("row {} ({})", index + 1, excerpt(text))
}

/// Counts while rows are cut and written.
struct Tally<'a> {
    encoder: &'a Encoder,
    options: &'a TokenizeOptions,
    writer: TokensWriter,
    report: Option<TokenizeReport>,
}

impl Tally<'_> {
    fn add(&mut self, index: u64, mut row: Encoded) -> Result<()> {
        let encoder = self.encoder;
        let report = self.report.get_or_insert_with(empty_report);
        report.merged_boundaries += row.merged_boundaries;
        report.opening_turns += row.opening_turns;
        let length = row.ids.len();
        if length as u64 > report.longest.0 {
            report.longest = (length as u64, index);
        }
        let drop = |report: &mut TokenizeReport| {
            if report.dropped.len() < 100 {
                report.dropped.push(index);
            }
        };
        if length > self.options.max_length {
            match self.options.truncation {
                Truncation::Drop => {
                    report.dropped_long += 1;
                    drop(report);
                    return Ok(());
                }
                Truncation::KeepStart => {
                    row.ids.truncate(self.options.max_length);
                    row.trained.truncate(self.options.max_length);
                }
                Truncation::KeepEnd => {
                    row.ids.drain(..length - self.options.max_length);
                    row.trained.drain(..length - self.options.max_length);
                    row.trained[0] = false;
                }
            }
            report.truncated += 1;
        }
        if !row.trained.contains(&true) {
            report.dropped_untrained += 1;
            drop(report);
            return Ok(());
        }
        let trained = || {
            row.ids
                .iter()
                .zip(&row.trained)
                .filter(|(_, trained)| **trained)
                .map(|(id, _)| *id)
        };
        report.eos_trained += u64::from(
            encoder
                .eos()
                .is_some_and(|eos| trained().any(|id| id == eos)),
        );
        if let Some(stop) = trained().filter(|id| encoder.is_special(*id)).last() {
            let name = encoder
                .tokenizer()
                .id_to_token(stop)
                .unwrap_or_else(|| stop.to_string());
            *report.stops.entry(name).or_default() += 1;
        }
        report.bos +=
            u64::from(encoder.bos().is_some() && row.ids.first().copied() == encoder.bos());
        let ids = row
            .ids
            .iter()
            .map(|id| i32::try_from(*id))
            .collect::<Result<Vec<_>, _>>()?;
        self.writer.push(&ids, &row.trained)
    }

    fn finish(self, rows: u64) -> Result<TokenizeReport> {
        let tokens = self.writer.finish()?;
        let mut report = self.report.unwrap_or_else(empty_report);
        report.rows_read = rows;
        report.tokens = tokens;
        if report.tokens.trained == 0 {
            bail!("{}", nothing_trained(&report, self.options));
        }
        report.lints = lints(&report, self.encoder);
        Ok(report)
    }
}

fn empty_report() -> TokenizeReport {
    let lengths = crate::store::Lengths::default();
    TokenizeReport {
        rows_read: 0,
        tokens: TokensSummary {
            rows: 0,
            tokens: 0,
            trained: 0,
            lengths,
        },
        truncated: 0,
        dropped_long: 0,
        dropped_untrained: 0,
        dropped: Vec::new(),
        longest: (0, 0),
        eos_trained: 0,
        stops: BTreeMap::new(),
        bos: 0,
        merged_boundaries: 0,
        opening_turns: 0,
        lints: Vec::new(),
    }
}

fn nothing_trained(report: &TokenizeReport, options: &TokenizeOptions) -> String {
    if report.rows_read == 0 {
        return "the dataset has no rows".to_owned();
    }
    let way_out = if report.dropped_long > 0 || report.truncated > 0 {
        format!(
            "the longest row has {} tokens and max_length is {}: raise it, or keep the end of rows (truncation: keep_end)",
            report.longest.0, options.max_length
        )
    } else {
        "no row has a turn of the assistant or a completion; look at the roles, or train on everything (loss_on: all)"
            .to_owned()
    };
    format!(
        "no token of any of the {} rows is trained; {way_out}",
        report.rows_read
    )
}

fn lints(report: &TokenizeReport, encoder: &Encoder) -> Vec<String> {
    let mut lints = Vec::new();
    let kept = report.tokens.rows;
    if encoder.eos().is_some() && report.eos_trained == 0 {
        let eos = encoder
            .eos()
            .and_then(|eos| encoder.tokenizer().id_to_token(eos))
            .unwrap_or_default();
        let stops = report
            .stops
            .keys()
            .map(|stop| format!("`{stop}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let instead = if stops.is_empty() {
            "rows end in no special token".to_owned()
        } else {
            format!("rows end in {stops}")
        };
        lints.push(format!("the EOS token `{eos}` is trained in no row ({instead}); generation must stop at another token"));
    }
    if encoder.adds_bos() && report.bos == 0 {
        lints.push(
            "the tokenizer puts a BOS token before a text, and the chat template writes none"
                .to_owned(),
        );
    }
    if report.merged_boundaries > 0 {
        lints.push(format!(
            "in {} places of {kept} rows a token spans the end of the prompt, so the model is trained on a prompt that is \
             cut otherwise than at inference; end prompts without white space",
            report.merged_boundaries
        ));
    }
    if report.opening_turns > 0 {
        lints.push(format!(
            "{} conversations begin with the assistant; that turn is not trained",
            report.opening_turns
        ));
    }
    let lost = report.dropped_long + report.dropped_untrained;
    if lost > 0 {
        lints.push(format!(
            "{lost} of {} rows were left out ({} too long, {} with nothing to train)",
            report.rows_read, report.dropped_long, report.dropped_untrained
        ));
    }
    lints
}

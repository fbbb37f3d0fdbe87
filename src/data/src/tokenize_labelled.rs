//! Labelled texts to tokens: every text as a model sees it that reads all of it, cut to length; nothing of it is a target.

use anyhow::{Context, Result, bail, ensure};

use crate::encode::Encoder;
use crate::row::Row;
use crate::store::Dataset;
use crate::tokenize::{CHUNK, Truncation, in_parallel, name_row, threads_or_all};
use crate::tokens::{TokensSummary, TokensWriter};

/// How texts are tokenized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelledOptions {
    /// The largest number of tokens in a row.
    pub max_length: usize,
    /// What happens to longer ones; none is left out, since labels belong to rows by their place.
    pub truncation: Truncation,
    /// Threads; `None` takes as many as there are. The result does not depend on it.
    pub threads: Option<usize>,
}

/// What tokenizing did.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledReport {
    /// What was written: as many rows as there were.
    pub tokens: TokensSummary,
    /// Rows that were cut.
    pub truncated: u64,
}

/// Tokenizes the texts of a labelled dataset into `writer`; `progress` hears of (rows done, rows of the dataset).
///
/// Rows keep their order and their number. A dataset of another layout, an empty one, a text that can't be encoded and one without a token are
/// errors.
pub fn tokenize_labelled(
    dataset: &Dataset,
    encoder: &Encoder,
    options: LabelledOptions,
    mut writer: TokensWriter,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<LabelledReport> {
    let keep_end = match options.truncation {
        Truncation::KeepStart => false,
        Truncation::KeepEnd => true,
        Truncation::Drop => {
            bail!("labelled texts are cut, not left out: keep their start or their end")
        }
    };
    ensure!(!dataset.is_empty(), "the dataset has no rows");
    let threads = threads_or_all(options.threads);
    let total = dataset.len() as u64;
    let (mut done, mut truncated) = (0usize, 0u64);
    while done < dataset.len() {
        let end = dataset.len().min(done + CHUNK);
        let rows = (done..end)
            .map(|index| dataset.row(index))
            .collect::<Result<Vec<Row>>>()?;
        let encoded = in_parallel(&rows, threads, |row| match row {
            Row::Labelled { text, .. } => encoder.encode_around(text, options.max_length, keep_end),
            other => bail!("rows of layout {} have no labels", other.layout()),
        });
        for (place, encoded) in encoded.into_iter().enumerate() {
            let named = || name_row(done + place, &rows[place]);
            let (ids, cut) = encoded.with_context(named)?;
            ensure!(
                !ids.is_empty(),
                "{} is empty, and there is nothing to be read of it: leave it out",
                named()
            );
            let ids = ids
                .iter()
                .map(|id| i32::try_from(*id))
                .collect::<Result<Vec<_>, _>>()?;
            writer.push(&ids, &vec![false; ids.len()])?;
            truncated += u64::from(cut);
        }
        done = end;
        progress(done as u64, total);
    }
    Ok(LabelledReport {
        tokens: writer.finish()?,
        truncated,
    })
}

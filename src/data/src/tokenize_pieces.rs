//! Running text to rows of tokens for masked language modelling: every text encoded and cut into pieces, on several threads with the same
//! result as on one.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::encode::{Encoder, Piece};
use crate::row::Row;
use crate::store::Dataset;
use crate::tokenize::{CHUNK, in_parallel, name_row, threads_or_all};
use crate::tokens::{TokensSummary, TokensWriter};

/// What the tokenizing of texts did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PiecesReport {
    /// Rows of the dataset.
    pub rows_read: u64,
    /// What was written: a row is a piece, and its marks say which tokens are the text's and not special.
    pub tokens: TokensSummary,
    /// Texts that were cut into several pieces.
    pub cut: u64,
    /// Pieces, and texts without tokens, that were left out since they have no token but special ones.
    pub dropped: u64,
}

/// Tokenizes the texts of a dataset into `writer`, in rows of at most `max_length` tokens; `progress` hears of (rows done, rows of the
/// dataset). Pieces keep the order of the texts.
///
/// A text that can't be encoded is an error that names its row; so is a dataset of which nothing is left.
pub fn tokenize_pieces(
    dataset: &Dataset,
    encoder: &Encoder,
    max_length: usize,
    threads: Option<usize>,
    mut writer: TokensWriter,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PiecesReport> {
    let threads = threads_or_all(threads);
    let (mut cut, mut dropped) = (0u64, 0u64);
    let mut done = 0usize;
    while done < dataset.len() {
        let end = dataset.len().min(done + CHUNK);
        let rows = (done..end)
            .map(|index| dataset.row(index))
            .collect::<Result<Vec<Row>>>()?;
        let encoded = in_parallel(&rows, threads, |row| pieces(encoder, row, max_length));
        for ((index, row), pieces) in (done..).zip(&rows).zip(encoded) {
            let pieces = pieces.with_context(|| name_row(index, row))?;
            cut += u64::from(pieces.len() > 1);
            dropped += u64::from(pieces.is_empty());
            for piece in pieces {
                if !piece.free.contains(&true) {
                    dropped += 1;
                    continue;
                }
                let ids = piece
                    .ids
                    .iter()
                    .map(|id| i32::try_from(*id))
                    .collect::<Result<Vec<_>, _>>()?;
                writer.push(&ids, &piece.free)?;
            }
        }
        done = end;
        progress(done as u64, dataset.len() as u64);
    }
    let tokens = writer.finish()?;
    if tokens.rows == 0 {
        match dataset.len() {
            0 => bail!("the dataset has no rows"),
            all => bail!("none of the {all} texts has a token that is not special"),
        }
    }
    Ok(PiecesReport {
        rows_read: dataset.len() as u64,
        tokens,
        cut,
        dropped,
    })
}

fn pieces(encoder: &Encoder, row: &Row, max_length: usize) -> Result<Vec<Piece>> {
    match row {
        Row::Text { text } | Row::Labelled { text, .. } => encoder.encode_pieces(text, max_length),
        other => bail!(
            "rows of layout {} are no running text: load them with `format: text`",
            other.layout()
        ),
    }
}

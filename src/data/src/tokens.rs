//! Tokenized rows in the cache: token ids and which of them are trained on, in Arrow IPC files.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, Int32Array, ListArray};
use arrow::buffer::{BooleanBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::ipc::{ArrowFile, ArrowWriter, BATCH_BYTES, BATCH_ROWS, ROW_BYTES};
use crate::store::{Lengths, Measure};

/// `input_ids: List<Int32>` and `trained: List<Boolean>`, of the same length in each row.
pub fn tokens_schema() -> Schema {
    Schema::new(vec![
        Field::new("input_ids", DataType::List(item(DataType::Int32)), false),
        Field::new("trained", DataType::List(item(DataType::Boolean)), false),
    ])
}

fn item(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", kind, false))
}

/// What a file of tokens holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokensSummary {
    /// Number of rows.
    pub rows: u64,
    /// Number of tokens in all rows.
    pub tokens: u64,
    /// Number of tokens that are targets of the loss.
    pub trained: u64,
    /// Tokens in a row.
    pub lengths: Lengths,
}

/// Writes tokenized rows. The same rows give the same bytes, always.
pub struct TokensWriter {
    schema: SchemaRef,
    offsets: Vec<i32>,
    ids: Vec<i32>,
    trained: BooleanBufferBuilder,
    measure: Measure,
    targets: u64,
    file: ArrowWriter,
}

impl TokensWriter {
    /// Creates the file; an existing one is replaced.
    pub fn create(path: &Path) -> Result<TokensWriter> {
        let schema = Arc::new(tokens_schema());
        let file = ArrowWriter::create(path, &schema)?;
        let trained = BooleanBufferBuilder::new(0);
        Ok(TokensWriter {
            schema,
            offsets: vec![0],
            ids: Vec::new(),
            trained,
            measure: Measure::default(),
            targets: 0,
            file,
        })
    }

    /// Adds a row: its token ids, and for each whether it is a target of the loss.
    pub fn push(&mut self, ids: &[i32], trained: &[bool]) -> Result<()> {
        if ids.len() != trained.len() {
            bail!(
                "{} token ids come with a mask of {}",
                ids.len(),
                trained.len()
            );
        }
        if ids.len() > ROW_BYTES / 4 {
            bail!(
                "row {} has {} tokens, more than {}",
                self.measure.count + 1,
                ids.len(),
                ROW_BYTES / 4
            );
        }
        self.ids.extend_from_slice(ids);
        self.trained.append_slice(trained);
        self.offsets.push(i32::try_from(self.ids.len())?);
        self.measure.add(ids.len() as u64);
        self.targets += trained.iter().filter(|trained| **trained).count() as u64;
        if self.offsets.len() > BATCH_ROWS || self.ids.len() * 4 >= BATCH_BYTES {
            self.write_batch()?;
        }
        Ok(())
    }

    /// Writes what is pending and the footer; without it the file cannot be opened.
    pub fn finish(mut self) -> Result<TokensSummary> {
        self.write_batch()?;
        self.file.finish()?;
        Ok(TokensSummary {
            rows: self.measure.count,
            tokens: self.measure.sum,
            trained: self.targets,
            lengths: self.measure.lengths(),
        })
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.offsets.len() == 1 {
            return Ok(());
        }
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let ids = Arc::new(Int32Array::from(std::mem::take(&mut self.ids)));
        let trained = Arc::new(BooleanArray::new(self.trained.finish(), None));
        let ids: ArrayRef = Arc::new(ListArray::try_new(
            item(DataType::Int32),
            offsets.clone(),
            ids,
            None,
        )?);
        let trained: ArrayRef = Arc::new(ListArray::try_new(
            item(DataType::Boolean),
            offsets,
            trained,
            None,
        )?);
        self.file.write(&RecordBatch::try_new(
            self.schema.clone(),
            vec![ids, trained],
        )?)
    }
}

/// A file of tokenized rows, mapped.
#[derive(Debug)]
pub struct Tokens {
    file: ArrowFile,
}

/// One tokenized row, borrowed from the file.
#[derive(Clone, Debug)]
pub struct TokensRow<'a> {
    /// The token ids.
    pub ids: &'a [i32],
    /// For each id whether it is a target of the loss (the first never is: nothing predicts it).
    pub trained: BooleanBuffer,
}

impl TokensRow<'_> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The mask as plain booleans.
    pub fn mask(&self) -> Vec<bool> {
        self.trained.iter().collect()
    }
}

impl Tokens {
    /// Opens a file of tokens; the same checks as for a dataset.
    pub fn open(path: &Path) -> Result<Tokens> {
        let file = ArrowFile::open(path)?;
        if file.schema().fields() != tokens_schema().fields() {
            bail!(
                "{}: not a file of tokens, its columns are others",
                path.display()
            );
        }
        Ok(Tokens { file })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.file.rows()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row `index`, counted from 0, without copying its ids.
    pub fn row(&self, index: usize) -> Result<TokensRow<'_>> {
        let (batch, place) = self.file.locate(index)?;
        row_of(batch, place)
            .with_context(|| format!("{}: row {index} is damaged", self.file.path().display()))
    }

    /// All rows in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<TokensRow<'_>>> + '_ {
        (0..self.len()).map(|index| self.row(index))
    }

    /// The number of tokens of each row; reads only the offsets.
    pub fn lengths(&self) -> Result<Vec<usize>> {
        let mut lengths = Vec::with_capacity(self.len());
        for index in 0..self.file.batches() {
            let batch = self.file.batch(index)?;
            let lists = batch
                .column(0)
                .as_any()
                .downcast_ref::<ListArray>()
                .context("a column changed its type")?;
            lengths.extend(
                lists
                    .offsets()
                    .windows(2)
                    .map(|pair| (pair[1] - pair[0]) as usize),
            );
        }
        Ok(lengths)
    }
}

fn row_of(batch: &RecordBatch, place: usize) -> Option<TokensRow<'_>> {
    let span = |column: usize| -> Option<(&ListArray, std::ops::Range<usize>)> {
        let lists = batch.column(column).as_any().downcast_ref::<ListArray>()?;
        if lists.is_null(place) {
            return None;
        }
        let start = usize::try_from(*lists.offsets().get(place)?).ok()?;
        let end = usize::try_from(*lists.offsets().get(place + 1)?).ok()?;
        Some((lists, start..end))
    };
    let (ids, ids_span) = span(0)?;
    let (trained, trained_span) = span(1)?;
    if ids_span.len() != trained_span.len() {
        return None;
    }
    let ids = ids
        .values()
        .as_any()
        .downcast_ref::<Int32Array>()?
        .values()
        .get(ids_span)?;
    let trained = trained.values().as_any().downcast_ref::<BooleanArray>()?;
    if trained_span.end > trained.len() {
        return None;
    }
    let trained = trained
        .values()
        .slice(trained_span.start, trained_span.len());
    Some(TokensRow { ids, trained })
}

//! Datasets in the cache: rows in and out of Arrow IPC files.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::column::{Column, read_cell};
use crate::ipc::{ArrowFile, ArrowWriter, BATCH_BYTES, BATCH_ROWS, ROW_BYTES};
use crate::layout::Layout;
use crate::row::{Cell, Row};

/// The shortest, mean and longest of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// The smallest value.
    pub min: u64,
    /// The arithmetic mean.
    pub mean: f64,
    /// The largest value.
    pub max: u64,
}

/// What a dataset holds, known without opening it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetSummary {
    /// Number of rows.
    pub rows: u64,
    /// What the rows are.
    pub layout: Layout,
    /// Characters of text in a row.
    pub characters: Lengths,
}

/// Running minimum, sum and maximum.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measure {
    pub(crate) count: u64,
    pub(crate) sum: u64,
    min: u64,
    max: u64,
}

impl Measure {
    pub(crate) fn add(&mut self, value: u64) {
        self.min = if self.count == 0 {
            value
        } else {
            self.min.min(value)
        };
        self.max = self.max.max(value);
        self.sum = self.sum.saturating_add(value);
        self.count += 1;
    }

    pub(crate) fn lengths(&self) -> Lengths {
        let mean = if self.count == 0 {
            0.0
        } else {
            self.sum as f64 / self.count as f64
        };
        Lengths {
            min: self.min,
            mean,
            max: self.max,
        }
    }
}

/// Writes rows to a dataset file. The same rows give the same bytes, always.
pub struct DatasetWriter {
    layout: Layout,
    schema: SchemaRef,
    columns: Vec<Column>,
    pending_rows: usize,
    pending_bytes: usize,
    characters: Measure,
    file: ArrowWriter,
}

impl DatasetWriter {
    /// Creates the file (an existing one is replaced) for rows of `layout`.
    pub fn create(path: &Path, layout: Layout) -> Result<DatasetWriter> {
        let schema = Arc::new(layout.schema());
        let columns = layout
            .columns()
            .iter()
            .map(|(_, kind)| Column::new(*kind))
            .collect();
        let file = ArrowWriter::create(path, &schema)?;
        let characters = Measure::default();
        Ok(DatasetWriter {
            layout,
            schema,
            columns,
            pending_rows: 0,
            pending_bytes: 0,
            characters,
            file,
        })
    }

    /// Adds a row. Errors when it has another layout than the file, holds what a file can't (see [`Row::check`]) or is
    /// larger than a gigabyte.
    pub fn push(&mut self, row: &Row) -> Result<()> {
        if row.layout() != self.layout {
            bail!(
                "a row of layout {} does not belong into a dataset of layout {}",
                row.layout(),
                self.layout
            );
        }
        if let Err(message) = row.check() {
            bail!("row {}: {message}", self.characters.count + 1);
        }
        let cells = row.cells();
        let bytes: usize = cells.iter().map(Cell::bytes).sum();
        if bytes > ROW_BYTES {
            bail!(
                "row {} has {bytes} bytes, more than {ROW_BYTES}",
                self.characters.count + 1
            );
        }
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            column.push(cell)?;
        }
        self.characters.add(row.characters());
        self.pending_rows += 1;
        self.pending_bytes += bytes;
        if self.pending_rows == BATCH_ROWS || self.pending_bytes >= BATCH_BYTES {
            self.write_batch()?;
        }
        Ok(())
    }

    /// Writes what is pending and the footer; without it the file is not a dataset.
    pub fn finish(mut self) -> Result<DatasetSummary> {
        self.write_batch()?;
        self.file.finish()?;
        let characters = self.characters.lengths();
        Ok(DatasetSummary {
            rows: self.characters.count,
            layout: self.layout,
            characters,
        })
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.pending_rows == 0 {
            return Ok(());
        }
        let arrays = self
            .columns
            .iter_mut()
            .map(Column::take)
            .collect::<Result<Vec<ArrayRef>>>()?;
        self.file
            .write(&RecordBatch::try_new(self.schema.clone(), arrays)?)?;
        self.pending_rows = 0;
        self.pending_bytes = 0;
        Ok(())
    }
}

/// A dataset file, mapped: rows are read from the file's own bytes, batch by batch.
#[derive(Debug)]
pub struct Dataset {
    file: ArrowFile,
    layout: Layout,
}

impl Dataset {
    /// Opens a dataset file.
    ///
    /// A file that is truncated, is not Arrow IPC, declares lengths that it does not have or has columns of no layout is
    /// an error. Values are validated batch by batch, when they are first read.
    pub fn open(path: &Path) -> Result<Dataset> {
        let file = ArrowFile::open(path)?;
        let layout =
            Layout::from_schema(file.schema()).with_context(|| path.display().to_string())?;
        Ok(Dataset { file, layout })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.file.rows()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the rows are.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The Arrow schema.
    pub fn schema(&self) -> &SchemaRef {
        self.file.schema()
    }

    /// Row `index`, counted from 0.
    pub fn row(&self, index: usize) -> Result<Row> {
        let (batch, place) = self.file.locate(index)?;
        let kinds = self.layout.columns().iter().map(|(_, kind)| *kind);
        let cells = kinds
            .zip(batch.columns())
            .map(|(kind, column)| read_cell(kind, column, place));
        let row = cells
            .collect::<Option<Vec<_>>>()
            .and_then(|cells| Row::from_cells(self.layout, cells));
        row.with_context(|| format!("{}: row {index} is damaged", self.file.path().display()))
    }

    /// All rows in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Row>> + '_ {
        (0..self.len()).map(|index| self.row(index))
    }

    /// Adds the rows at `indices`, in that order, to `writer`.
    pub fn take(&self, indices: &[usize], writer: &mut DatasetWriter) -> Result<()> {
        indices
            .iter()
            .try_for_each(|index| writer.push(&self.row(*index)?))
    }
}

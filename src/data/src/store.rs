//! Datasets in the cache: rows in and out of Arrow IPC files.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, ListArray, StringArray, StringBuilder, StructArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::ipc::{ArrowFile, ArrowWriter, BATCH_BYTES, BATCH_ROWS, ROW_BYTES};
use crate::layout::{Cell, ColumnKind, Layout, Message, Row, message_fields};

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

/// The values of one column of the batch that is being filled.
enum Column {
    Text(StringBuilder),
    Messages {
        offsets: Vec<i32>,
        roles: StringBuilder,
        contents: StringBuilder,
    },
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

    /// Adds a row. Errors when it has another layout than the file or is larger than a gigabyte.
    pub fn push(&mut self, row: &Row) -> Result<()> {
        if row.layout() != self.layout {
            bail!(
                "a row of layout {} does not belong into a dataset of layout {}",
                row.layout(),
                self.layout
            );
        }
        let cells = row.cells();
        let bytes: usize = cells.iter().map(cell_bytes).sum();
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

fn cell_bytes(cell: &Cell<'_>) -> usize {
    match cell {
        Cell::Text(text) => text.len(),
        Cell::Messages(messages) => messages
            .iter()
            .map(|m| m.role.len() + m.content.len())
            .sum(),
    }
}

impl Column {
    fn new(kind: ColumnKind) -> Column {
        match kind {
            ColumnKind::Text => Column::Text(StringBuilder::new()),
            ColumnKind::Messages => Column::Messages {
                offsets: vec![0],
                roles: StringBuilder::new(),
                contents: StringBuilder::new(),
            },
        }
    }

    fn push(&mut self, cell: Cell<'_>) -> Result<()> {
        match (self, cell) {
            (Column::Text(builder), Cell::Text(text)) => builder.append_value(text),
            (
                Column::Messages {
                    offsets,
                    roles,
                    contents,
                },
                Cell::Messages(messages),
            ) => {
                for message in messages.iter() {
                    roles.append_value(&message.role);
                    contents.append_value(&message.content);
                }
                let last = offsets.last().copied().unwrap_or(0);
                let count = i32::try_from(messages.len())?;
                offsets.push(
                    last.checked_add(count)
                        .context("too many messages in one batch")?,
                );
            }
            _ => bail!("a value does not fit its column"),
        }
        Ok(())
    }

    fn take(&mut self) -> Result<ArrayRef> {
        Ok(match self {
            Column::Text(builder) => Arc::new(builder.finish()),
            Column::Messages {
                offsets,
                roles,
                contents,
            } => {
                let turns: Vec<ArrayRef> =
                    vec![Arc::new(roles.finish()), Arc::new(contents.finish())];
                let turns = StructArray::try_new(message_fields(), turns, None)?;
                let offsets = std::mem::replace(offsets, vec![0]);
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                let item = Arc::new(Field::new(
                    "item",
                    DataType::Struct(message_fields()),
                    false,
                ));
                Arc::new(ListArray::try_new(item, offsets, Arc::new(turns), None)?)
            }
        })
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

fn read_cell(kind: ColumnKind, column: &ArrayRef, place: usize) -> Option<Cell<'_>> {
    match kind {
        ColumnKind::Text => Some(Cell::Text(Cow::Borrowed(text_at(column, place)?))),
        ColumnKind::Messages => {
            let lists = column.as_any().downcast_ref::<ListArray>()?;
            if lists.is_null(place) {
                return None;
            }
            let turns = lists.value(place);
            let turns = turns.as_any().downcast_ref::<StructArray>()?;
            let (roles, contents) = (turns.column(0), turns.column(1));
            let message = |at| Some(Message::new(text_at(roles, at)?, text_at(contents, at)?));
            Some(Cell::Messages(
                (0..turns.len())
                    .map(message)
                    .collect::<Option<Vec<_>>>()?
                    .into(),
            ))
        }
    }
}

fn text_at(column: &ArrayRef, place: usize) -> Option<&str> {
    let texts = column.as_any().downcast_ref::<StringArray>()?;
    (place < texts.len() && !texts.is_null(place)).then(|| texts.value(place))
}

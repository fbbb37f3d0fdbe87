//! Tokenized completions in the cache: rows of a prompt and a completion, in groups that share a prompt, in Arrow IPC files.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, Float64Array, Int32Array, ListArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::ipc::{ArrowFile, ArrowWriter, BATCH_BYTES, BATCH_ROWS, ROW_BYTES};
use crate::layout::item_field;
use crate::store::{Lengths, Measure};

/// `input_ids: List<Int32>`, `prompt: Int32`, `group: Int32` and `value: Float64`.
pub fn completions_schema() -> Schema {
    let ids = DataType::List(item_field(DataType::Int32));
    Schema::new(vec![
        Field::new("input_ids", ids, false),
        Field::new("prompt", DataType::Int32, false),
        Field::new("group", DataType::Int32, false),
        Field::new("value", DataType::Float64, false),
    ])
}

/// One completion with its prompt, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Completion<'a> {
    /// The token ids of the prompt and the completion.
    pub ids: &'a [i32],
    /// How many leading tokens are the prompt's; the completions of a group have the same ones.
    pub prompt: usize,
    /// The row of the dataset that it comes from, counted from 0.
    pub group: usize,
    /// The margin of a chosen completion, a rank from 0, 1 or 0 for desirable or not, a score; NaN when there is none.
    pub value: f64,
}

impl<'a> Completion<'a> {
    /// The token ids of the completion alone.
    pub fn completion(&self) -> &'a [i32] {
        &self.ids[self.prompt..]
    }
}

/// What a file of completions holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionsSummary {
    /// Number of completions.
    pub rows: u64,
    /// Number of groups.
    pub groups: u64,
    /// Number of tokens in all rows, prompts included.
    pub tokens: u64,
    /// Number of tokens of the completions alone.
    pub completion_tokens: u64,
    /// Tokens in a row, the prompt's included.
    pub lengths: Lengths,
    /// Completions of the largest group.
    pub largest_group: u64,
}

/// Writes tokenized completions, group by group. The same rows give the same bytes, always.
pub struct CompletionsWriter {
    schema: SchemaRef,
    offsets: Vec<i32>,
    ids: Vec<i32>,
    prompts: Vec<i32>,
    groups: Vec<i32>,
    values: Vec<f64>,
    measure: Measure,
    completion_tokens: u64,
    /// The group that was written last, and its number of rows.
    last: Option<(usize, u64)>,
    group_count: u64,
    largest_group: u64,
    file: ArrowWriter,
}

impl CompletionsWriter {
    /// Creates the file; an existing one is replaced.
    pub fn create(path: &Path) -> Result<CompletionsWriter> {
        let schema = Arc::new(completions_schema());
        let file = ArrowWriter::create(path, &schema)?;
        Ok(CompletionsWriter {
            schema,
            offsets: vec![0],
            ids: Vec::new(),
            prompts: Vec::new(),
            groups: Vec::new(),
            values: Vec::new(),
            measure: Measure::default(),
            completion_tokens: 0,
            last: None,
            group_count: 0,
            largest_group: 0,
            file,
        })
    }

    /// Adds a row. Errors when its prompt is longer than the row, or its group comes before the last one.
    pub fn push(&mut self, row: Completion<'_>) -> Result<()> {
        let number = self.measure.count + 1;
        if row.prompt > row.ids.len() {
            bail!(
                "completion {number} has {} tokens and a prompt of {}",
                row.ids.len(),
                row.prompt
            );
        }
        if row.ids.len() > ROW_BYTES / 4 {
            bail!(
                "completion {number} has {} tokens, more than {}",
                row.ids.len(),
                ROW_BYTES / 4
            );
        }
        let of_group = match self.last {
            Some((last, _)) if row.group < last => {
                bail!(
                    "completion {number} is of group {} and comes after group {last}",
                    row.group
                )
            }
            Some((last, rows)) if row.group == last => rows + 1,
            _ => {
                self.group_count += 1;
                1
            }
        };
        self.prompts.push(i32::try_from(row.prompt)?);
        self.groups.push(i32::try_from(row.group)?);
        self.values.push(row.value);
        self.ids.extend_from_slice(row.ids);
        self.offsets.push(i32::try_from(self.ids.len())?);
        self.last = Some((row.group, of_group));
        self.largest_group = self.largest_group.max(of_group);
        self.measure.add(row.ids.len() as u64);
        self.completion_tokens += row.completion().len() as u64;
        if self.offsets.len() > BATCH_ROWS || self.ids.len() * 4 >= BATCH_BYTES {
            self.write_batch()?;
        }
        Ok(())
    }

    /// Writes what is pending and the footer; without it the file cannot be opened.
    pub fn finish(mut self) -> Result<CompletionsSummary> {
        self.write_batch()?;
        self.file.finish()?;
        Ok(CompletionsSummary {
            rows: self.measure.count,
            groups: self.group_count,
            tokens: self.measure.sum,
            completion_tokens: self.completion_tokens,
            lengths: self.measure.lengths(),
            largest_group: self.largest_group,
        })
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.offsets.len() == 1 {
            return Ok(());
        }
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let numbers = |values: &mut Vec<i32>| Arc::new(Int32Array::from(std::mem::take(values)));
        let ids = numbers(&mut self.ids);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(ListArray::try_new(
                item_field(DataType::Int32),
                offsets,
                ids,
                None,
            )?),
            numbers(&mut self.prompts),
            numbers(&mut self.groups),
            Arc::new(Float64Array::from(std::mem::take(&mut self.values))),
        ];
        self.file
            .write(&RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

/// A file of tokenized completions, mapped.
#[derive(Debug)]
pub struct Completions {
    file: ArrowFile,
}

impl Completions {
    /// Opens a file of completions; the same checks as for a dataset.
    pub fn open(path: &Path) -> Result<Completions> {
        let file = ArrowFile::open(path)?;
        if file.schema().fields() != completions_schema().fields() {
            bail!(
                "{}: not a file of tokenized completions, its columns are others",
                path.display()
            );
        }
        Ok(Completions { file })
    }

    /// Number of completions.
    pub fn len(&self) -> usize {
        self.file.rows()
    }

    /// Whether there is no completion.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Completion `index`, counted from 0, without copying its ids.
    pub fn row(&self, index: usize) -> Result<Completion<'_>> {
        let (batch, place) = self.file.locate(index)?;
        row_of(batch, place)
            .with_context(|| format!("{}: row {index} is damaged", self.file.path().display()))
    }

    /// All completions in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Completion<'_>>> + '_ {
        (0..self.len()).map(|index| self.row(index))
    }

    /// The rows of each group, in order.
    pub fn groups(&self) -> Result<Vec<Range<usize>>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut last = None;
        for index in 0..self.len() {
            let group = self.row(index)?.group;
            match groups.last_mut() {
                Some(range) if last == Some(group) => range.end = index + 1,
                _ if last.is_none_or(|last| last < group) => groups.push(index..index + 1),
                _ => bail!(
                    "{}: row {index} is damaged, its group comes before the last one",
                    self.file.path().display()
                ),
            }
            last = Some(group);
        }
        Ok(groups)
    }
}

fn row_of(batch: &RecordBatch, place: usize) -> Option<Completion<'_>> {
    let lists = batch.column(0).as_any().downcast_ref::<ListArray>()?;
    if lists.is_null(place) {
        return None;
    }
    let start = usize::try_from(*lists.offsets().get(place)?).ok()?;
    let end = usize::try_from(*lists.offsets().get(place + 1)?).ok()?;
    let ids = lists.values().as_any().downcast_ref::<Int32Array>()?;
    let ids = ids.values().get(start..end)?;
    let number = |column: usize| -> Option<usize> {
        let numbers = batch.column(column).as_any().downcast_ref::<Int32Array>()?;
        usize::try_from(*numbers.values().get(place)?).ok()
    };
    let values = batch.column(3).as_any().downcast_ref::<Float64Array>()?;
    let prompt = number(1).filter(|prompt| *prompt <= ids.len())?;
    Some(Completion {
        ids,
        prompt,
        group: number(2)?,
        value: *values.values().get(place)?,
    })
}

//! Vectors of rows in the cache, with the label of each, in Arrow IPC files.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{Array, ArrayRef, FixedSizeListArray, Float32Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

use crate::ipc::{ArrowFile, ArrowWriter, BATCH_BYTES, BATCH_ROWS, ROW_BYTES};
use crate::layout::item_field;

/// `vector: FixedSizeList<Float32>[width]` and `label: Utf8`.
pub fn vectors_schema(width: i32) -> Schema {
    let vector = DataType::FixedSizeList(item_field(DataType::Float32), width);
    Schema::new(vec![
        Field::new("vector", vector, false),
        Field::new("label", DataType::Utf8, false),
    ])
}

/// Writes vectors with labels. The same rows give the same bytes, always.
pub struct VectorsWriter {
    schema: SchemaRef,
    width: i32,
    numbers: Vec<f32>,
    labels: Vec<String>,
    rows: u64,
    file: ArrowWriter,
}

impl VectorsWriter {
    /// Creates the file for vectors of `width` numbers; an existing one is replaced.
    pub fn create(path: &Path, width: usize) -> Result<VectorsWriter> {
        ensure!(
            width > 0 && width <= ROW_BYTES / 4,
            "vectors of {width} numbers can't be stored"
        );
        let width = i32::try_from(width)?;
        let schema = Arc::new(vectors_schema(width));
        let file = ArrowWriter::create(path, &schema)?;
        Ok(VectorsWriter {
            schema,
            width,
            numbers: Vec::new(),
            labels: Vec::new(),
            rows: 0,
            file,
        })
    }

    /// Adds a row. Errors when the vector has another width, or a number that is not finite.
    pub fn push(&mut self, vector: &[f32], label: &str) -> Result<()> {
        let row = self.rows + 1;
        ensure!(
            vector.len() == self.width as usize,
            "row {row} has {} numbers among vectors of {}",
            vector.len(),
            self.width
        );
        ensure!(
            vector.iter().all(|number| number.is_finite()),
            "the vector of row {row} is not finite: the model's weights are damaged, or its training diverged"
        );
        self.numbers.extend_from_slice(vector);
        self.labels.push(label.to_owned());
        self.rows += 1;
        if self.labels.len() == BATCH_ROWS || self.numbers.len() * 4 >= BATCH_BYTES {
            self.write_batch()?;
        }
        Ok(())
    }

    /// Writes what is pending and the footer; without it the file cannot be opened. Gives the number of rows.
    pub fn finish(mut self) -> Result<u64> {
        self.write_batch()?;
        self.file.finish()?;
        Ok(self.rows)
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.labels.is_empty() {
            return Ok(());
        }
        let numbers: ArrayRef = Arc::new(Float32Array::from(std::mem::take(&mut self.numbers)));
        let field = item_field(DataType::Float32);
        let vectors = FixedSizeListArray::try_new(field, self.width, numbers, None)?;
        let labels = StringArray::from(std::mem::take(&mut self.labels));
        let columns: Vec<ArrayRef> = vec![Arc::new(vectors), Arc::new(labels)];
        self.file
            .write(&RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

/// A file of vectors, mapped.
#[derive(Debug)]
pub struct Vectors {
    file: ArrowFile,
    width: usize,
}

impl Vectors {
    /// Opens a file of vectors; the same checks as for a dataset.
    pub fn open(path: &Path) -> Result<Vectors> {
        let file = ArrowFile::open(path)?;
        let width = match file.schema().fields().first().map(|f| f.data_type()) {
            Some(DataType::FixedSizeList(_, width)) if *width > 0 => *width,
            _ => 0,
        };
        if width == 0 || file.schema().fields() != vectors_schema(width).fields() {
            bail!(
                "{}: not a file of vectors, its columns are others",
                path.display()
            );
        }
        Ok(Vectors {
            file,
            width: usize::try_from(width)?,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.file.rows()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers in each vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Row `index`, counted from 0: its vector and its label, without copying them.
    pub fn row(&self, index: usize) -> Result<(&[f32], &str)> {
        let (batch, place) = self.file.locate(index)?;
        row_of(batch, place, self.width)
            .with_context(|| format!("{}: row {index} is damaged", self.file.path().display()))
    }
}

fn row_of(batch: &RecordBatch, place: usize, width: usize) -> Option<(&[f32], &str)> {
    let vectors = batch
        .column(0)
        .as_any()
        .downcast_ref::<FixedSizeListArray>()?;
    let labels = batch.column(1).as_any().downcast_ref::<StringArray>()?;
    if place >= vectors.len().min(labels.len()) || vectors.is_null(place) || labels.is_null(place) {
        return None;
    }
    let numbers = vectors.values().as_any().downcast_ref::<Float32Array>()?;
    let start = vectors.value_offset_at(place);
    let vector = numbers.values().get(start..start.checked_add(width)?)?;
    Some((vector, labels.value(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vectors.arrow");
        let row = |index: usize| ([index as f32, -0.5, 1e-30], format!("label {}", index % 3));
        let write = || {
            let mut writer = VectorsWriter::create(&path, 3).unwrap();
            for index in 0..2000 {
                let (vector, label) = row(index);
                writer.push(&vector, &label).unwrap();
            }
            assert_eq!(writer.finish().unwrap(), 2000);
            std::fs::read(&path).unwrap()
        };
        assert!(write() == write());
        let file = Vectors::open(&path).unwrap();
        assert_eq!((file.len(), file.width()), (2000, 3));
        for index in [0, 1023, 1024, 1999] {
            let (vector, label) = row(index);
            assert_eq!(file.row(index).unwrap(), (&vector[..], label.as_str()));
        }
        assert!(file.row(2000).is_err());
    }

    #[test]
    fn what_is_no_vector_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vectors.arrow");
        let mut writer = VectorsWriter::create(&path, 2).unwrap();
        assert!(writer.push(&[1.0], "a").is_err());
        assert!(writer.push(&[1.0, f32::NAN], "a").is_err());
        assert!(VectorsWriter::create(&path, 0).is_err());
        let rows = folder.path().join("rows.arrow");
        let dataset = crate::DatasetWriter::create(&rows, crate::Layout::Text).unwrap();
        dataset.finish().unwrap();
        let error = Vectors::open(&rows).unwrap_err().to_string();
        assert!(error.contains("not a file of vectors"), "{error}");
    }
}

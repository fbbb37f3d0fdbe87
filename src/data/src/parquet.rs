//! Parquet files, as hubs keep datasets, as records.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, anyhow};
use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::record::{Fields, Node, Place, Record, Value};

/// Reads the rows of one Parquet file, a batch at a time.
pub(crate) struct ParquetRows {
    reader: ParquetRecordBatchReader,
    wanted: Box<dyn Fn(&str) -> bool>,
    batch: Option<RecordBatch>,
    place: usize,
    rows: u64,
    total_rows: u64,
    size: u64,
}

impl ParquetRows {
    pub(crate) fn open(file: File, wanted: Box<dyn Fn(&str) -> bool>) -> Result<ParquetRows> {
        let size = file.metadata()?.len();
        let (reader, total_rows) = guard(|| {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
            let rows = u64::try_from(builder.metadata().file_metadata().num_rows())?;
            Ok((builder.with_batch_size(1024).build()?, rows))
        })?;
        Ok(ParquetRows {
            reader,
            wanted,
            batch: None,
            place: 0,
            rows: 0,
            total_rows,
            size,
        })
    }

    /// The share of the file that the rows so far are.
    pub(crate) fn bytes_read(&self) -> u64 {
        if self.total_rows == 0 {
            self.size
        } else {
            (self.size as f64 * self.rows as f64 / self.total_rows as f64) as u64
        }
    }

    pub(crate) fn next(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(batch) = &self.batch
                && self.place < batch.num_rows()
            {
                let mut fields = Fields::new();
                for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                    let value = if (self.wanted)(field.name()) {
                        value(column, self.place)?
                    } else {
                        Value::Skipped
                    };
                    fields.push((field.name().clone(), Node { at: 0, value }));
                }
                self.place += 1;
                self.rows += 1;
                let place = Place::Row(self.rows);
                return Ok(Some(Record {
                    place,
                    text: String::new(),
                    fields: Ok(fields),
                    last: false,
                }));
            }
            match guard(|| Ok(self.reader.next().transpose()?)).context("a damaged Parquet page")? {
                None => return Ok(None),
                batch => self.batch = batch,
            }
            self.place = 0;
        }
    }
}

/// Runs a part of the Parquet reader, which answers some damaged files with a panic; here that is an error as well.
fn guard<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(anyhow!("its structure is inconsistent")))
}

/// The value at `place`: texts, lists and structs are read, of others only the kind is told.
fn value(column: &ArrayRef, place: usize) -> Result<Value> {
    if column.is_null(place) {
        return Ok(Value::Null);
    }
    Ok(match column.data_type() {
        DataType::Utf8 => Value::Text(column.as_string::<i32>().value(place).to_owned()),
        DataType::LargeUtf8 => Value::Text(column.as_string::<i64>().value(place).to_owned()),
        DataType::Utf8View => Value::Text(column.as_string_view().value(place).to_owned()),
        DataType::List(_) => list(&column.as_list::<i32>().value(place))?,
        DataType::LargeList(_) => list(&column.as_list::<i64>().value(place))?,
        DataType::Struct(_) => {
            let fields = column
                .as_any()
                .downcast_ref::<StructArray>()
                .ok_or_else(|| anyhow!("a column changed its type"))?;
            let names = fields.column_names();
            let pairs = names.into_iter().zip(fields.columns());
            let nodes = pairs.map(|(name, column)| {
                Ok((
                    name.to_owned(),
                    Node {
                        at: 0,
                        value: value(column, place)?,
                    },
                ))
            });
            Value::Map(nodes.collect::<Result<_>>()?)
        }
        DataType::Boolean => Value::Bool,
        kind if kind.is_numeric() => Value::Number,
        _ => Value::Skipped,
    })
}

fn list(items: &ArrayRef) -> Result<Value> {
    let nodes = (0..items.len()).map(|place| {
        Ok(Node {
            at: 0,
            value: value(items, place)?,
        })
    });
    Ok(Value::List(nodes.collect::<Result<_>>()?))
}

//! Parquet files, as hubs keep datasets, as records.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, anyhow};
use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde_json::Number;

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

/// The value at `place`: texts, numbers, booleans, lists and structs are read.
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
        DataType::Boolean => Value::Bool(column.as_boolean().value(place)),
        DataType::Int8 => Value::Number(number::<Int8Type>(column, place).into()),
        DataType::Int16 => Value::Number(number::<Int16Type>(column, place).into()),
        DataType::Int32 => Value::Number(number::<Int32Type>(column, place).into()),
        DataType::Int64 => Value::Number(number::<Int64Type>(column, place).into()),
        DataType::UInt8 => Value::Number(number::<UInt8Type>(column, place).into()),
        DataType::UInt16 => Value::Number(number::<UInt16Type>(column, place).into()),
        DataType::UInt32 => Value::Number(number::<UInt32Type>(column, place).into()),
        DataType::UInt64 => Value::Number(number::<UInt64Type>(column, place).into()),
        DataType::Float16 => float(number::<Float16Type>(column, place).into()),
        DataType::Float32 => float(number::<Float32Type>(column, place).into()),
        DataType::Float64 => float(number::<Float64Type>(column, place)),
        _ => Value::Skipped,
    })
}

fn number<T: ArrowPrimitiveType>(column: &ArrayRef, place: usize) -> T::Native {
    column.as_primitive::<T>().value(place)
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::NotFinite, Value::Number)
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

//! Columns of a dataset: values in and out of Arrow arrays.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{
    Array, ArrayRef, BooleanArray, BooleanBuilder, Float64Array, Float64Builder, ListArray,
    StringArray, StringBuilder, StructArray, UInt32Array, UInt32Builder,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};

use crate::layout::{ColumnKind, Message, item_field, message_fields};
use crate::row::Cell;

/// The values of one column of the batch that is being filled.
pub(crate) enum Column {
    Text(StringBuilder),
    Texts {
        offsets: Vec<i32>,
        texts: StringBuilder,
    },
    Messages {
        offsets: Vec<i32>,
        roles: StringBuilder,
        contents: StringBuilder,
    },
    Bool(BooleanBuilder),
    /// Numbers, of which some may be missing.
    Number(Float64Builder),
    Index(UInt32Builder),
}

impl Column {
    pub(crate) fn new(kind: ColumnKind) -> Column {
        match kind {
            ColumnKind::Text => Column::Text(StringBuilder::new()),
            ColumnKind::Texts => Column::Texts {
                offsets: vec![0],
                texts: StringBuilder::new(),
            },
            ColumnKind::Messages => Column::Messages {
                offsets: vec![0],
                roles: StringBuilder::new(),
                contents: StringBuilder::new(),
            },
            ColumnKind::Bool => Column::Bool(BooleanBuilder::new()),
            ColumnKind::Number | ColumnKind::OptionalNumber => {
                Column::Number(Float64Builder::new())
            }
            ColumnKind::Index => Column::Index(UInt32Builder::new()),
        }
    }

    pub(crate) fn push(&mut self, cell: Cell<'_>) -> Result<()> {
        match (self, cell) {
            (Column::Text(builder), Cell::Text(text)) => builder.append_value(text),
            (Column::Texts { offsets, texts }, Cell::Texts(values)) => {
                values.iter().for_each(|text| texts.append_value(text));
                extend(offsets, values.len())?;
            }
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
                extend(offsets, messages.len())?;
            }
            (Column::Bool(builder), Cell::Bool(value)) => builder.append_value(value),
            (Column::Number(builder), Cell::Number(number)) => builder.append_value(number),
            (Column::Number(builder), Cell::OptionalNumber(number)) => {
                builder.append_option(number)
            }
            (Column::Index(builder), Cell::Index(index)) => builder.append_value(index),
            _ => bail!("a value does not fit its column"),
        }
        Ok(())
    }

    /// The values so far as an array; the column is empty then.
    pub(crate) fn take(&mut self) -> Result<ArrayRef> {
        Ok(match self {
            Column::Text(builder) => Arc::new(builder.finish()),
            Column::Texts { offsets, texts } => list(offsets, Arc::new(texts.finish()))?,
            Column::Messages {
                offsets,
                roles,
                contents,
            } => {
                let turns: Vec<ArrayRef> =
                    vec![Arc::new(roles.finish()), Arc::new(contents.finish())];
                let turns = StructArray::try_new(message_fields(), turns, None)?;
                list(offsets, Arc::new(turns))?
            }
            Column::Bool(builder) => Arc::new(builder.finish()),
            Column::Number(builder) => Arc::new(builder.finish()),
            Column::Index(builder) => Arc::new(builder.finish()),
        })
    }
}

/// Ends a list of `count` more items.
fn extend(offsets: &mut Vec<i32>, count: usize) -> Result<()> {
    let last = offsets.last().copied().unwrap_or(0);
    let end = last.checked_add(i32::try_from(count)?);
    offsets.push(end.context("too many items in one batch")?);
    Ok(())
}

fn list(offsets: &mut Vec<i32>, items: ArrayRef) -> Result<ArrayRef> {
    let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])));
    let field = item_field(items.data_type().clone());
    Ok(Arc::new(ListArray::try_new(field, offsets, items, None)?))
}

/// The value at `place`; `None` when the array does not hold one.
pub(crate) fn read_cell(kind: ColumnKind, column: &ArrayRef, place: usize) -> Option<Cell<'_>> {
    Some(match kind {
        ColumnKind::Text => Cell::Text(Cow::Borrowed(text_at(column, place)?)),
        ColumnKind::Texts => {
            let texts = items(column, place)?;
            let text = |at| text_at(&texts, at).map(str::to_owned);
            let texts: Option<Vec<String>> = (0..texts.len()).map(text).collect();
            Cell::Texts(texts?.into())
        }
        ColumnKind::Messages => {
            let turns = items(column, place)?;
            let turns = turns.as_any().downcast_ref::<StructArray>()?;
            let (roles, contents) = (turns.column(0), turns.column(1));
            let message = |at| Some(Message::new(text_at(roles, at)?, text_at(contents, at)?));
            let messages: Option<Vec<Message>> = (0..turns.len()).map(message).collect();
            Cell::Messages(messages?.into())
        }
        ColumnKind::Bool => {
            let values = column.as_any().downcast_ref::<BooleanArray>()?;
            has(values, place)?;
            Cell::Bool(values.value(place))
        }
        ColumnKind::Number => Cell::Number(number_at(column, place)?),
        ColumnKind::OptionalNumber => {
            let missing = place < column.len() && column.is_null(place);
            Cell::OptionalNumber(if missing {
                None
            } else {
                Some(number_at(column, place)?)
            })
        }
        ColumnKind::Index => {
            let values = column.as_any().downcast_ref::<UInt32Array>()?;
            has(values, place)?;
            Cell::Index(values.value(place))
        }
    })
}

fn has(array: &dyn Array, place: usize) -> Option<()> {
    (place < array.len() && !array.is_null(place)).then_some(())
}

/// The items of the list at `place`.
fn items(column: &ArrayRef, place: usize) -> Option<ArrayRef> {
    let lists = column.as_any().downcast_ref::<ListArray>()?;
    has(lists, place)?;
    Some(lists.value(place))
}

fn number_at(column: &ArrayRef, place: usize) -> Option<f64> {
    let numbers = column.as_any().downcast_ref::<Float64Array>()?;
    has(numbers, place)?;
    Some(numbers.value(place)).filter(|number| number.is_finite())
}

fn text_at(column: &ArrayRef, place: usize) -> Option<&str> {
    let texts = column.as_any().downcast_ref::<StringArray>()?;
    has(texts, place)?;
    Some(texts.value(place))
}

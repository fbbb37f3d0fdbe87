//! Metadata values of a GGUF file.

use super::reader::Reader;
use anyhow::{Result, bail, ensure};
use std::fmt;

/// Arrays of arrays deeper than this are refused; no known file goes beyond two.
const MAXIMUM_DEPTH: usize = 8;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An unsigned integer of 8, 16, 32 or 64 bits.
    Unsigned(u64),
    /// A signed integer of 8, 16, 32 or 64 bits.
    Signed(i64),
    /// A single precision number.
    F32(f32),
    /// A double precision number.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// A list whose items have one type.
    Array(Array),
}

/// A list, kept as narrow as in the file so that reading needs no more than a small multiple of it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The variants are the format's types.
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    Text(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Array {
    /// The number of items.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(items) => items.len(),
            Array::I8(items) => items.len(),
            Array::U16(items) => items.len(),
            Array::I16(items) => items.len(),
            Array::U32(items) => items.len(),
            Array::I32(items) => items.len(),
            Array::F32(items) => items.len(),
            Array::Bool(items) => items.len(),
            Array::Text(items) => items.len(),
            Array::Array(items) => items.len(),
            Array::U64(items) => items.len(),
            Array::I64(items) => items.len(),
            Array::F64(items) => items.len(),
        }
    }

    /// True if there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read(reader: &mut Reader, depth: usize) -> Result<Array> {
        ensure!(
            depth < MAXIMUM_DEPTH,
            "arrays are nested more than {MAXIMUM_DEPTH} deep"
        );
        let kind = reader.u32("an array's type")?;
        Ok(match kind {
            0 => Array::U8(numbers(reader, u8::from_le_bytes)?),
            1 => Array::I8(numbers(reader, i8::from_le_bytes)?),
            2 => Array::U16(numbers(reader, u16::from_le_bytes)?),
            3 => Array::I16(numbers(reader, i16::from_le_bytes)?),
            4 => Array::U32(numbers(reader, u32::from_le_bytes)?),
            5 => Array::I32(numbers(reader, i32::from_le_bytes)?),
            6 => Array::F32(numbers(reader, f32::from_le_bytes)?),
            7 => Array::Bool(numbers(reader, |byte: [u8; 1]| byte[0] != 0)?),
            8 => {
                let count = reader.count(8, "texts")?;
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(reader.text("a text of an array")?.to_owned());
                }
                Array::Text(items)
            }
            9 => {
                let count = reader.count(12, "arrays")?;
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(Array::read(reader, depth + 1)?);
                }
                Array::Array(items)
            }
            10 => Array::U64(numbers(reader, u64::from_le_bytes)?),
            11 => Array::I64(numbers(reader, i64::from_le_bytes)?),
            12 => Array::F64(numbers(reader, f64::from_le_bytes)?),
            kind => bail!("an array has the unknown type {kind}"),
        })
    }
}

fn numbers<const SIZE: usize, T>(
    reader: &mut Reader,
    one: impl Fn([u8; SIZE]) -> T,
) -> Result<Vec<T>> {
    let count = reader.count(SIZE as u64, "numbers")?;
    let bytes = reader.take(count as u64 * SIZE as u64, "the numbers of an array")?;
    let (items, _) = bytes.as_chunks::<SIZE>();
    Ok(items.iter().map(|item| one(*item)).collect())
}

impl Value {
    pub(super) fn read(reader: &mut Reader) -> Result<Value> {
        let kind = reader.u32("a value's type")?;
        let what = "a value";
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(reader.array(what)?).into()),
            1 => Value::Signed(i8::from_le_bytes(reader.array(what)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(reader.array(what)?).into()),
            3 => Value::Signed(i16::from_le_bytes(reader.array(what)?).into()),
            4 => Value::Unsigned(reader.u32(what)?.into()),
            5 => Value::Signed(i32::from_le_bytes(reader.array(what)?).into()),
            6 => Value::F32(f32::from_le_bytes(reader.array(what)?)),
            7 => Value::Bool(reader.array::<1>(what)?[0] != 0),
            8 => Value::Text(reader.text(what)?.to_owned()),
            9 => Value::Array(Array::read(reader, 0)?),
            10 => Value::Unsigned(reader.u64(what)?),
            11 => Value::Signed(i64::from_le_bytes(reader.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(reader.array(what)?)),
            kind => bail!("a value has the unknown type {kind}"),
        })
    }

    /// The value if it is a whole number of at least zero.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The value if it is a number; whole ones are converted.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            Value::F32(number) => Some(f64::from(*number)),
            Value::F64(number) => Some(*number),
            _ => None,
        }
    }

    /// The value if it is true or false.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The value if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value if it is a list of texts.
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::Text(texts)) => Some(texts),
            _ => None,
        }
    }

    /// The value if it is a list of whole numbers of any width.
    pub fn as_integers(&self) -> Option<Vec<i64>> {
        let Value::Array(array) = self else {
            return None;
        };
        match array {
            Array::U8(items) => Some(items.iter().map(|&item| item.into()).collect()),
            Array::I8(items) => Some(items.iter().map(|&item| item.into()).collect()),
            Array::U16(items) => Some(items.iter().map(|&item| item.into()).collect()),
            Array::I16(items) => Some(items.iter().map(|&item| item.into()).collect()),
            Array::U32(items) => Some(items.iter().map(|&item| item.into()).collect()),
            Array::I32(items) => Some(items.iter().map(|&item| item.into()).collect()),
            Array::I64(items) => Some(items.clone()),
            Array::U64(items) => items.iter().map(|&item| item.try_into().ok()).collect(),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(number) => write!(formatter, "{number}"),
            Value::Signed(number) => write!(formatter, "{number}"),
            Value::F32(number) => write!(formatter, "{number}"),
            Value::F64(number) => write!(formatter, "{number}"),
            Value::Bool(flag) => write!(formatter, "{flag}"),
            // A chat template would drown the message.
            Value::Text(text) if text.chars().count() > 60 => {
                let start: String = text.chars().take(60).collect();
                write!(formatter, "{start:?}...")
            }
            Value::Text(text) => write!(formatter, "{text:?}"),
            Value::Array(array) => write!(formatter, "a list of {}", array.len()),
        }
    }
}

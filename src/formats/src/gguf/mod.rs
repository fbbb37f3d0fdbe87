//! GGUF, the one-file model format of llama.cpp: header, metadata and where each tensor lies.
//!
//! Written after the specification in the ggml repository (docs/gguf.md) and the reader of the `gguf`
//! package. Versions 2 and 3, little-endian.

pub mod names;
mod quantization;
mod reader;
mod value;

pub use quantization::{Quantization, dequantize};
pub use value::{Array, Value};

use crate::mapped::Mapped;
use anyhow::{Context, Result, anyhow, bail, ensure};
use reader::Reader;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

/// The alignment of tensor data when `general.alignment` is not given, in bytes.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The most dimensions that ggml knows.
const MAXIMUM_DIMENSIONS: u32 = 4;

/// One tensor of a file, under its llama.cpp name.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The name in the file, for instance `blk.0.attn_q.weight`.
    pub name: String,
    /// The extents, row-major: reversed against the file, which names the fastest first.
    pub shape: Vec<usize>,
    /// How the numbers are stored.
    pub quantization: Quantization,
    /// The bytes, counted from the start of the file.
    pub range: Range<usize>,
}

/// An open GGUF file.
#[derive(Debug)]
pub struct File {
    mapped: Mapped,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<Tensor>,
}

impl File {
    /// Opens and checks a file: every length and offset lies inside it, no name stands twice, no two
    /// tensors overlap, every quantization is known. Errors name the file and the place.
    pub fn open(path: &Path) -> Result<File> {
        let mapped = Mapped::open(path)?;
        let header = read_header(mapped.bytes())
            .with_context(|| format!("{} is not a GGUF file that can be read", path.display()))?;
        Ok(File {
            mapped,
            version: header.version,
            metadata: header.metadata,
            tensors: header.tensors,
        })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        self.mapped.path()
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The stored bytes of a tensor of this file.
    pub fn bytes(&self, tensor: &Tensor) -> Result<&[u8]> {
        (self.mapped.bytes().get(tensor.range.clone()))
            .ok_or_else(|| anyhow!("{}: no tensor {:?}", self.path().display(), tensor.name))
    }

    /// Says that a tensor will not be read again soon.
    pub(crate) fn release(&self, tensor: &Tensor) {
        self.mapped.release(tensor.range.clone());
    }

    /// The model's family, `general.architecture`.
    pub fn architecture(&self) -> Result<&str> {
        self.require("general.architecture", "text", Value::as_str)
    }

    /// The metadata under `key` as text, if it is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.optional(key, "text", Value::as_str)
    }

    /// The metadata under `key` as a flag, if it is there.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.optional(key, "true or false", Value::as_bool)
    }

    /// The metadata under `key` as a whole number of at least zero, if it is there.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.optional(key, "a whole number", |value| {
            value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
        })
    }

    /// The metadata under `key` as a number, if it is there.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.optional(key, "a number", Value::as_f64)
    }

    /// The metadata under `key` as a list of texts, if it is there.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.optional(key, "a list of texts", Value::as_texts)
    }

    fn optional<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => bail!(
                "{}: the metadata {key} should be {expected}, but is {value}",
                self.path().display()
            ),
        }
    }

    /// Like `optional`, but a missing key is an error.
    pub(crate) fn require<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T> {
        (self.optional(key, expected, read)?).ok_or_else(|| {
            anyhow!(
                "{}: the metadata {key} is missing; convert the model to GGUF again",
                self.path().display()
            )
        })
    }
}

struct Header {
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<Tensor>,
}

/// What the tensor table says of one tensor; its offset is relative to the data.
struct RawTensor {
    name: String,
    shape: Vec<usize>,
    quantization: Quantization,
    offset: u64,
    size: u64,
}

fn read_header(bytes: &[u8]) -> Result<Header> {
    let mut reader = Reader::new(bytes);
    let magic = reader.take(4, "the magic number")?;
    ensure!(
        magic == b"GGUF",
        "it starts with {magic:02x?}, not with the letters GGUF"
    );
    let version = reader.u32("the version")?;
    ensure!(
        version & 0xffff != 0,
        "it is big-endian; convert it with the gguf package's gguf-convert-endian"
    );
    ensure!(
        version == 2 || version == 3,
        "it has version {version}; versions 2 and 3 are supported: convert the model again with a newer llama.cpp"
    );
    // A tensor needs at least 24 bytes and a metadata pair at least 13, so no lying count can make
    // us reserve more than the file's own size.
    let tensor_count = reader.count(24, "tensors")?;
    let pair_count = reader.count(13, "metadata pairs")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..pair_count {
        let key = reader.text("a metadata key")?.to_owned();
        let value = Value::read(&mut reader).with_context(|| format!("metadata {key:?}"))?;
        if metadata.contains_key(&key) {
            bail!("the metadata key {key:?} stands twice");
        }
        metadata.insert(key, value);
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => match value.as_u64() {
            Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => alignment,
            _ => bail!("the metadata general.alignment should be a power of two, but is {value}"),
        },
    };
    let mut raw = Vec::with_capacity(tensor_count);
    let mut seen = HashSet::with_capacity(tensor_count);
    for _ in 0..tensor_count {
        let tensor = read_tensor(&mut reader)?;
        if !seen.insert(tensor.name.clone()) {
            bail!("the tensor {:?} stands twice", tensor.name);
        }
        raw.push(tensor);
    }
    let start = (reader.position() as u64).next_multiple_of(alignment);
    let tensors = place_tensors(raw, start, alignment, bytes.len() as u64)?;
    Ok(Header {
        version,
        metadata,
        tensors,
    })
}

fn read_tensor(reader: &mut Reader) -> Result<RawTensor> {
    let name = reader.text("a tensor's name")?.to_owned();
    read_tensor_after_name(reader, name.clone()).with_context(|| format!("tensor {name:?}"))
}

fn read_tensor_after_name(reader: &mut Reader, name: String) -> Result<RawTensor> {
    let dimensions = reader.u32("the number of dimensions")?;
    ensure!(
        (1..=MAXIMUM_DIMENSIONS).contains(&dimensions),
        "it has {dimensions} dimensions; 1 to {MAXIMUM_DIMENSIONS} are possible"
    );
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(usize::try_from(reader.u64("an extent")?)?);
    }
    let quantization = Quantization::from_id(reader.u32("the quantization")?)?;
    let offset = reader.u64("the offset")?;
    let size = quantization
        .bytes_of(&shape)
        .with_context(|| format!("the extents {shape:?} with {}", quantization.name()))?;
    shape.reverse();
    Ok(RawTensor {
        name,
        shape,
        quantization,
        offset,
        size,
    })
}

/// Turns offsets into ranges of the file and refuses those outside of it or on top of each other.
fn place_tensors(
    raw: Vec<RawTensor>,
    start: u64,
    alignment: u64,
    length: u64,
) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::with_capacity(raw.len());
    for tensor in raw {
        let RawTensor {
            name, offset, size, ..
        } = tensor;
        ensure!(
            offset % alignment == 0,
            "the tensor {name:?} lies at offset {offset}, which is not a multiple of {alignment}"
        );
        let begin = start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(size));
        let (Some(begin), Some(end)) = (begin, end) else {
            bail!("the tensor {name:?} lies at offset {offset}, beyond every file");
        };
        // An empty tensor may stand at the very end, where the padding is left away.
        ensure!(
            end <= length || size == 0,
            "the tensor {name:?} lies at bytes {begin}..{end}, but the file has {length} bytes; it is cut short: fetch it again"
        );
        let range = if size == 0 {
            0..0
        } else {
            usize::try_from(begin)?..usize::try_from(end)?
        };
        tensors.push(Tensor {
            name,
            shape: tensor.shape,
            quantization: tensor.quantization,
            range,
        });
    }
    let mut order: Vec<&Tensor> = tensors.iter().filter(|t| !t.range.is_empty()).collect();
    order.sort_by_key(|tensor| tensor.range.start);
    for pair in order.windows(2) {
        ensure!(
            pair[0].range.end <= pair[1].range.start,
            "the tensors {:?} at {:?} and {:?} at {:?} overlap",
            pair[0].name,
            pair[0].range,
            pair[1].name,
            pair[1].range
        );
    }
    Ok(tensors)
}

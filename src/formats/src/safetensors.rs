//! The safetensors format: a checked reader over a memory map, and a writer with reproducible bytes.

use crate::dtype::{Dtype, element_count};
use crate::json::UniqueEntries;
use crate::mapped::Mapped;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// The longest header that the reference implementation accepts, in bytes.
const MAXIMUM_HEADER: u64 = 100_000_000;

/// Where a tensor lies in a file, checked against the file's length.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// The format of its numbers.
    pub dtype: Dtype,
    /// The extents, row-major: the last one changes fastest.
    pub shape: Vec<usize>,
    /// The bytes, counted from the start of the file.
    pub range: Range<usize>,
}

/// An open safetensors file.
#[derive(Debug)]
pub struct File {
    mapped: Mapped,
    entries: Vec<Entry>,
    metadata: BTreeMap<String, String>,
}

impl File {
    /// Opens and checks a file: header length, JSON, duplicate names, dtypes, shapes, and that the
    /// tensors cover the data without hole or overlap. Errors name the file and the tensor.
    pub fn open(path: &Path) -> Result<File> {
        let mapped = Mapped::open(path)?;
        let (entries, metadata) = read_header(mapped.bytes())
            .with_context(|| format!("{} is not a valid safetensors file", path.display()))?;
        Ok(File {
            mapped,
            entries,
            metadata,
        })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        self.mapped.path()
    }

    /// The tensors in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The text pairs under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The bytes of a tensor of this file.
    pub fn bytes(&self, entry: &Entry) -> Result<&[u8]> {
        self.mapped
            .bytes()
            .get(entry.range.clone())
            .ok_or_else(|| anyhow!("{}: no tensor {:?}", self.path().display(), entry.name))
    }

    /// Says that a tensor will not be read again soon, so that its pages do not count as memory in use.
    pub fn release(&self, entry: &Entry) {
        self.mapped.release(entry.range.clone());
    }
}

/// What the header says of one tensor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The tensors in the order of the header and, from under `__metadata__`, text pairs.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Header;
        impl<'de> serde::de::Visitor<'de> for Header {
            type Value = RawHeader;

            fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
                formatter.write_str("a JSON object of tensors")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<RawHeader, A::Error> {
                use serde::de::Error;
                let mut seen = HashSet::new();
                let mut header = RawHeader {
                    tensors: Vec::new(),
                    metadata: BTreeMap::new(),
                };
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("the name {name:?} stands twice")));
                    }
                    if name == "__metadata__" {
                        let pairs: UniqueEntries<String> = map.next_value()?;
                        header.metadata = pairs.0.into_iter().collect();
                    } else {
                        let entry = map.next_value().map_err(|error| {
                            A::Error::custom(format!("tensor {name:?}: {error}"))
                        })?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Header)
    }
}

type Header = (Vec<Entry>, BTreeMap<String, String>);

fn read_header(bytes: &[u8]) -> Result<Header> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        bail!(
            "it has {} bytes, fewer than the 8 of the header's length",
            bytes.len()
        );
    };
    let length = u64::from_le_bytes(*length);
    ensure!(
        length <= MAXIMUM_HEADER,
        "the header claims {length} bytes; at most {MAXIMUM_HEADER} are allowed"
    );
    let length = usize::try_from(length)?;
    let (Some(header), Some(data)) = (rest.get(..length), rest.get(length..)) else {
        bail!(
            "the header claims {length} bytes, but only {} follow; the file is cut short",
            rest.len()
        );
    };
    let header = std::str::from_utf8(header).context("the header is not UTF-8")?;
    ensure!(
        header.starts_with('{'),
        "the header does not start with '{{'"
    );
    let header: RawHeader = serde_json::from_str(header).context("the header cannot be read")?;
    let mut entries = Vec::with_capacity(header.tensors.len());
    for (name, raw) in header.tensors {
        entries.push(check_entry(name, raw, data.len() as u64)?);
    }
    entries.sort_by(|a, b| {
        (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name))
    });
    check_cover(&entries, data.len())?;
    let first = bytes.len() - data.len();
    for entry in &mut entries {
        entry.range = entry.range.start + first..entry.range.end + first;
    }
    Ok((entries, header.metadata))
}

/// The entry with offsets into the data of `available` bytes.
fn check_entry(name: String, raw: RawEntry, available: u64) -> Result<Entry> {
    let dtype = Dtype::parse(&raw.dtype).with_context(|| format!("tensor {name:?}"))?;
    let (start, end) = raw.data_offsets;
    ensure!(
        start <= end && end <= available,
        "tensor {name:?} lies at bytes {start}..{end}, but the data has {available} bytes; the file is cut short or its header is wrong"
    );
    let shape: Option<Vec<usize>> = (raw.shape.iter())
        .map(|&extent| usize::try_from(extent).ok())
        .collect();
    let needed = (shape.as_deref())
        .and_then(element_count)
        .and_then(|count| count.checked_mul(dtype.size()));
    let (Some(shape), Some(needed)) = (shape, needed) else {
        bail!(
            "tensor {name:?}: the shape {:?} is larger than any file",
            raw.shape
        );
    };
    ensure!(
        needed as u64 == end - start,
        "tensor {name:?} of shape {shape:?} and dtype {dtype} needs {needed} bytes, but has {}",
        end - start
    );
    Ok(Entry {
        shape,
        range: usize::try_from(start)?..usize::try_from(end)?,
        name,
        dtype,
    })
}

/// Refuses holes, overlaps and bytes after the last tensor, as the reference reader does.
fn check_cover(entries: &[Entry], available: usize) -> Result<()> {
    let mut covered = 0;
    for entry in entries {
        let Entry { name, range, .. } = entry;
        ensure!(
            range.start >= covered,
            "tensor {name:?} at {range:?} overlaps the tensor before it, which ends at {covered}"
        );
        ensure!(
            range.start == covered,
            "there is a hole of {} bytes before tensor {name:?}",
            range.start - covered
        );
        covered = range.end;
    }
    ensure!(
        covered == available,
        "{} bytes after the last tensor belong to none",
        available - covered
    );
    Ok(())
}

/// The place of a dtype in the reference writer's order, which puts larger alignments first.
fn write_order(dtype: Dtype) -> u8 {
    match dtype {
        Dtype::I64 => 0,
        Dtype::F64 => 1,
        Dtype::F32 => 2,
        Dtype::I32 => 3,
        Dtype::BF16 => 4,
        Dtype::F16 => 5,
        Dtype::I16 => 6,
        Dtype::I8 => 7,
        Dtype::U8 => 8,
        Dtype::Bool => 9,
    }
}

/// Writes `tensors` (name, dtype, row-major shape, little-endian bytes) to `path`. Equal tensors and
/// metadata give equal bytes, whatever their order, and the same bytes as the reference writer.
/// PEFT and transformers expect the metadata `[("format", "pt")]`.
pub fn write_file<D: AsRef<[u8]>>(
    path: &Path,
    tensors: &[(String, Dtype, Vec<usize>, D)],
    metadata: &[(&str, &str)],
) -> Result<()> {
    let heads: Vec<_> = (tensors.iter())
        .map(|(name, dtype, shape, _)| (name.clone(), *dtype, shape.clone()))
        .collect();
    write_with(path, &heads, metadata, |index| {
        Ok(tensors[index].3.as_ref())
    })
}

/// The same, asking for the bytes of one tensor (by its index in `tensors`) at a time, so that a model
/// need not be in memory whole.
pub fn write_with<D: AsRef<[u8]>>(
    path: &Path,
    tensors: &[(String, Dtype, Vec<usize>)],
    metadata: &[(&str, &str)],
    mut bytes_of: impl FnMut(usize) -> Result<D>,
) -> Result<()> {
    let shown = path.display();
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| (write_order(tensors[index].1), &tensors[index].0));

    let mut header = Map::new();
    if !metadata.is_empty() {
        let pairs: BTreeMap<_, _> = metadata.iter().copied().collect();
        header.insert("__metadata__".to_owned(), json!(pairs));
    }
    let mut sizes = Vec::with_capacity(order.len());
    let mut offset = 0usize;
    for &index in &order {
        let (name, dtype, shape) = &tensors[index];
        let size = element_count(shape).and_then(|count| count.checked_mul(dtype.size()));
        let end = size.and_then(|size| offset.checked_add(size));
        let (Some(size), Some(end)) = (size, end) else {
            bail!("cannot write {shown}: tensor {name:?} of shape {shape:?} is too large");
        };
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [offset, end] });
        ensure!(
            name != "__metadata__" && header.insert(name.clone(), entry).is_none(),
            "cannot write {shown}: the tensor name {name:?} stands twice or is reserved"
        );
        sizes.push(size);
        offset = end;
    }
    let mut header = serde_json::to_vec(&Value::Object(header))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    ensure!(
        header.len() as u64 <= MAXIMUM_HEADER,
        "cannot write {shown}: the names and shapes need {} bytes, more than any reader accepts",
        header.len()
    );

    let write = |out: &mut dyn Write, bytes: &[u8]| {
        (out.write_all(bytes)).with_context(|| format!("cannot write {shown}"))
    };
    let file = std::fs::File::create(path).with_context(|| format!("cannot create {shown}"))?;
    let mut out = std::io::BufWriter::new(file);
    write(&mut out, &(header.len() as u64).to_le_bytes())?;
    write(&mut out, &header)?;
    for (&index, size) in order.iter().zip(sizes) {
        let bytes = bytes_of(index)?;
        let bytes = bytes.as_ref();
        let (name, dtype, shape) = &tensors[index];
        ensure!(
            bytes.len() == size,
            "cannot write {shown}: tensor {name:?} of shape {shape:?} and dtype {dtype} needs {size} bytes, but {} were given",
            bytes.len()
        );
        write(&mut out, bytes)?;
    }
    out.flush().with_context(|| format!("cannot write {shown}"))
}

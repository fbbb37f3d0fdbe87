//! Arrow IPC files: written in batches of a fixed size, mapped and read batch by batch with every length checked.

use std::fs::File;
use std::io::BufWriter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::writer::FileWriter;
use arrow::ipc::{Block, root_as_footer, root_as_message};
use arrow::record_batch::RecordBatch;

/// Rows in one record batch.
pub(crate) const BATCH_ROWS: usize = 1024;
/// A batch is closed early when its values are this large, far below the 2 GiB that 32-bit offsets can address.
pub(crate) const BATCH_BYTES: usize = 64 << 20;
/// The largest row: with it, a batch that was just below `BATCH_BYTES` stays within 32-bit offsets.
pub(crate) const ROW_BYTES: usize = 1 << 30;

/// `ARROW1` and two bytes of padding begin the file; the footer's length and `ARROW1` end it.
const HEAD: usize = 8;
const TAIL: usize = 10;

/// Writes record batches to an Arrow IPC file.
pub(crate) struct ArrowWriter {
    writer: FileWriter<BufWriter<File>>,
    path: PathBuf,
}

impl ArrowWriter {
    pub(crate) fn create(path: &Path, schema: &Schema) -> Result<ArrowWriter> {
        let file =
            File::create(path).with_context(|| format!("{}: cannot be created", path.display()))?;
        let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, file), schema)
            .with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(ArrowWriter {
            writer,
            path: path.to_owned(),
        })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer
            .write(batch)
            .with_context(|| format!("{}: cannot be written", self.path.display()))
    }

    /// Writes the footer and hands everything to the operating system.
    pub(crate) fn finish(mut self) -> Result<()> {
        let end = |writer: &mut FileWriter<BufWriter<File>>| -> Result<()> {
            writer.finish()?;
            writer.flush()?;
            Ok(())
        };
        end(&mut self.writer).with_context(|| format!("{}: cannot be written", self.path.display()))
    }
}

/// A mapped Arrow IPC file. Batches are decoded when they are first asked for, without copying their values.
#[derive(Debug)]
pub(crate) struct ArrowFile {
    path: PathBuf,
    schema: SchemaRef,
    decoder: FileDecoder,
    blocks: Vec<Entry>,
    rows: usize,
}

#[derive(Debug)]
struct Entry {
    first_row: usize,
    rows: usize,
    block: Block,
    bytes: Buffer,
    batch: OnceLock<RecordBatch>,
}

impl ArrowFile {
    /// Maps the file and checks its footer, its blocks and their declared lengths.
    pub(crate) fn open(path: &Path) -> Result<ArrowFile> {
        let name = path.display();
        let bytes = map(path).with_context(|| format!("{name}: cannot be read"))?;
        // Arrow's own reader is written for files from trusted writers: what the checks below do not catch and it
        // answers with a panic is an error like any other.
        catch_unwind(AssertUnwindSafe(|| parse(path, bytes)))
            .unwrap_or_else(|_| Err(anyhow!("its structure is inconsistent")))
            .with_context(|| {
                format!("{name}: not a whole Arrow IPC file; delete it and make it again")
            })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn batches(&self) -> usize {
        self.blocks.len()
    }

    /// The batch that holds row `row`, and the row's place in it.
    pub(crate) fn locate(&self, row: usize) -> Result<(&RecordBatch, usize)> {
        if row >= self.rows {
            bail!(
                "{}: row {row} was asked for, the file has {} rows",
                self.path.display(),
                self.rows
            );
        }
        let index = self.blocks.partition_point(|entry| entry.first_row <= row) - 1;
        Ok((self.batch(index)?, row - self.blocks[index].first_row))
    }

    /// Batch `index`, decoded and validated at the first call.
    pub(crate) fn batch(&self, index: usize) -> Result<&RecordBatch> {
        let entry = self
            .blocks
            .get(index)
            .context("a batch beyond the last one was asked for")?;
        if let Some(batch) = entry.batch.get() {
            return Ok(batch);
        }
        let batch = catch_unwind(AssertUnwindSafe(|| self.decode(entry)))
            .unwrap_or_else(|_| Err(anyhow!("its structure is inconsistent")))
            .with_context(|| format!("{}: record batch {index} is damaged", self.path.display()))?;
        Ok(entry.batch.get_or_init(|| batch))
    }

    fn decode(&self, entry: &Entry) -> Result<RecordBatch> {
        let batch = self.decoder.read_record_batch(&entry.block, &entry.bytes)?;
        let batch = batch.context("it holds no rows")?;
        if batch.num_rows() != entry.rows {
            bail!(
                "{} rows were declared, {} are there",
                entry.rows,
                batch.num_rows()
            );
        }
        Ok(batch)
    }
}

/// The whole file as a buffer that keeps the mapping alive.
fn map(path: &Path) -> Result<Buffer> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Buffer::from_vec(Vec::<u8>::new()));
    }
    // SAFETY: files in the cache are never changed after they were published; one that is truncated by another program
    // while it is mapped ends this process with a signal, as it would for every reader that maps.
    let mapping = Arc::new(unsafe { memmap2::Mmap::map(&file)? });
    let start = NonNull::new(mapping.as_ptr().cast_mut()).context("the mapping has no address")?;
    let length = mapping.len();
    // SAFETY: `start` is valid for `length` bytes for as long as `mapping` lives, which the buffer owns; a `Buffer` is
    // never written to.
    Ok(unsafe { Buffer::from_custom_allocation(start, length, mapping) })
}

fn parse(path: &Path, bytes: Buffer) -> Result<ArrowFile> {
    let size = bytes.len();
    if size < HEAD + TAIL {
        bail!("{size} bytes are too few");
    }
    if !bytes.starts_with(b"ARROW1") {
        bail!("it does not begin with ARROW1");
    }
    let mut tail = [0; TAIL];
    tail.copy_from_slice(&bytes[size - TAIL..]);
    let footer_length =
        read_footer_length(tail).context("the end is missing (was the writer interrupted?)")?;
    let footer_start = (size - TAIL)
        .checked_sub(footer_length)
        .filter(|start| *start >= HEAD);
    let footer_start =
        footer_start.with_context(|| format!("a footer of {footer_length} bytes is declared"))?;
    let footer = root_as_footer(&bytes[footer_start..size - TAIL])
        .map_err(|cause| anyhow!("the footer: {cause}"))?;
    let schema = Arc::new(try_fb_to_schema(
        footer.schema().context("the footer has no schema")?,
    )?);
    if footer
        .dictionaries()
        .is_some_and(|blocks| !blocks.is_empty())
    {
        bail!("it has dictionaries, which datasets do not use");
    }
    let decoder = FileDecoder::new(schema.clone(), footer.version());

    let mut blocks = Vec::new();
    let mut rows = 0usize;
    for block in footer.recordBatches().iter().flatten() {
        let entry = check_block(&bytes, *block, rows, footer_start)
            .with_context(|| format!("record batch {}", blocks.len()))?;
        rows = rows
            .checked_add(entry.rows)
            .context("the number of rows overflows")?;
        if entry.rows > 0 {
            blocks.push(entry);
        }
    }
    Ok(ArrowFile {
        path: path.to_owned(),
        schema,
        decoder,
        blocks,
        rows,
    })
}

/// Checks that a block lies between the head and the footer and that its buffers lie in the block.
fn check_block(
    bytes: &Buffer,
    block: Block,
    first_row: usize,
    footer_start: usize,
) -> Result<Entry> {
    let offset = usize::try_from(block.offset())?;
    let metadata = usize::try_from(block.metaDataLength())?;
    let body = usize::try_from(block.bodyLength())?;
    let end = offset
        .checked_add(metadata)
        .and_then(|end| end.checked_add(body))
        .context("its length overflows")?;
    if offset < HEAD || end > footer_start || metadata < 8 {
        bail!("bytes {offset}..{end} are declared, the data are {HEAD}..{footer_start}");
    }
    let message = &bytes[offset..offset + metadata];
    let message = if message.starts_with(&[0xff; 4]) {
        &message[8..]
    } else {
        &message[4..]
    };
    let message = root_as_message(message).map_err(|cause| anyhow!("its header: {cause}"))?;
    let header = message
        .header_as_record_batch()
        .context("it is not a record batch")?;
    let rows = usize::try_from(header.length())?;
    // Every column of ours has 32-bit offsets, so a batch has at least four bytes for each row.
    if rows > body / 4 {
        bail!("{rows} rows are declared in {body} bytes");
    }
    for buffer in header.buffers().iter().flatten() {
        let start = usize::try_from(buffer.offset())?;
        let length = usize::try_from(buffer.length())?;
        if start.checked_add(length).is_none_or(|end| end > body) {
            bail!("a buffer of {length} bytes at {start} is declared in {body} bytes");
        }
    }
    let bytes = bytes.slice_with_length(offset, end - offset);
    Ok(Entry {
        first_row,
        rows,
        block,
        bytes,
        batch: OnceLock::new(),
    })
}

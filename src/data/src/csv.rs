//! Tables of text (CSV and TSV) as records: the first line names the columns, fields in quotes may hold line ends.
//!
//! The fields are told apart by the state machine of the `csv` crate, which forgives a lot. What it forgives about quotes and
//! the number of fields is a fault here, since the row would be another one than its writer meant.

use std::io::Read;

use csv_core::ReadFieldResult;

use crate::record::{Fault, Fields, Node, Place, Record, Value, step};

/// How much is read at a time.
const CHUNK: usize = 64 * 1024;
/// The largest row; beyond it a quote is missing.
const MAX_ROW: usize = 256 << 20;

/// Reads the rows of one table.
pub(crate) struct CsvRows<R> {
    reader: R,
    machine: csv_core::Reader,
    delimiter: u8,
    /// The columns whose values are wanted.
    wanted: Box<dyn Fn(&str) -> bool>,
    /// The names in the first line, once it is read.
    header: Option<Vec<String>>,
    buffer: Vec<u8>,
    /// Where the unread part of the buffer begins.
    start: usize,
    ended: bool,
    line: u64,
    column: u64,
    offset: u64,
    read: u64,
    done: bool,
    /// Whether a UTF-8 byte order mark was skipped.
    pub(crate) byte_order_mark: bool,
}

/// A line of the table, or several when fields hold line ends.
struct Line {
    place: Place,
    /// The line as the file has it, without its end.
    text: String,
    /// Where each field begins in it, and its value.
    fields: Vec<(usize, String)>,
}

/// A line that can't be taken.
struct Broken {
    place: Place,
    text: String,
    fault: Fault,
    /// After it the rest of the file can't be read.
    last: bool,
}

impl<R: Read> CsvRows<R> {
    /// Reads from `reader`, whose fields are parted by `delimiter`.
    pub(crate) fn new(reader: R, delimiter: u8, wanted: Box<dyn Fn(&str) -> bool>) -> CsvRows<R> {
        CsvRows {
            reader,
            machine: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            delimiter,
            wanted,
            header: None,
            buffer: Vec::new(),
            start: 0,
            ended: false,
            line: 1,
            column: 1,
            offset: 0,
            read: 0,
            done: false,
            byte_order_mark: false,
        }
    }

    /// Bytes read so far (after decompression).
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read
    }

    /// The next row. Errors are those of reading; a broken row is a record with a fault.
    pub(crate) fn next(&mut self) -> std::io::Result<Option<Record>> {
        if self.done {
            return Ok(None);
        }
        let header = match self.header.take() {
            Some(header) => header,
            None => match self.read_header()? {
                Some(Ok(header)) => header,
                Some(Err(broken)) => {
                    return Ok(Some(self.refuse(Broken {
                        last: true,
                        ..broken
                    })));
                }
                None => return Ok(None),
            },
        };
        let record = match self.line()? {
            None => {
                self.done = true;
                None
            }
            Some(Err(broken)) => Some(self.refuse(broken)),
            Some(Ok(line)) => {
                let fields = self.fields(&header, line.fields, line.text.len());
                Some(Record {
                    place: line.place,
                    text: line.text,
                    fields,
                    last: false,
                })
            }
        };
        self.header = Some(header);
        Ok(record)
    }

    fn refuse(&mut self, broken: Broken) -> Record {
        self.done |= broken.last;
        Record {
            place: broken.place,
            text: broken.text,
            fields: Err(broken.fault),
            last: broken.last,
        }
    }

    /// The names of the columns; one without a name is called by its number.
    fn read_header(&mut self) -> std::io::Result<Option<Result<Vec<String>, Broken>>> {
        while self.buffer.len() < 4 && self.fill()? {}
        if self.buffer.starts_with(b"\xef\xbb\xbf") {
            self.byte_order_mark = true;
            self.start = 3;
            self.offset = 3;
        }
        let broken = |place, text, at, message: String| {
            let fault = Fault::new(at, message);
            Ok(Some(Err(Broken {
                place,
                text,
                fault,
                last: true,
            })))
        };
        if self.buffer.starts_with(b"\xff\xfe") || self.buffer.starts_with(b"\xfe\xff") {
            let message = "the byte order mark says UTF-16; convert the file to UTF-8";
            return broken(self.place(), String::new(), 0, message.to_owned());
        }
        let line = match self.line()? {
            None => return Ok(None),
            Some(Err(broken)) => return Ok(Some(Err(broken))),
            Some(Ok(line)) => line,
        };
        let mut names: Vec<String> = Vec::with_capacity(line.fields.len());
        for (number, (at, name)) in line.fields.into_iter().enumerate() {
            let name = match name.trim() {
                "" => format!("column {}", number + 1),
                name => name.to_owned(),
            };
            if names.contains(&name) {
                let message = format!("the column `{name}` is there twice in the first line");
                return broken(line.place, line.text, at, message);
            }
            names.push(name);
        }
        Ok(Some(Ok(names)))
    }

    fn fields(
        &self,
        header: &[String],
        values: Vec<(usize, String)>,
        length: usize,
    ) -> Result<Fields, Fault> {
        if values.len() != header.len() {
            let at = values.get(header.len()).map_or(length, |(at, _)| *at);
            let count = |number| match number {
                1 => "1 field".to_owned(),
                many => format!("{many} fields"),
            };
            let message = format!(
                "this row has {}, and the first line names {} columns ({}): is a quote missing around a field?",
                count(values.len()),
                header.len(),
                header.join(", ")
            );
            return Err(Fault::new(at, message));
        }
        let nodes = header.iter().zip(values).map(|(name, (at, text))| {
            let value = if (self.wanted)(name) {
                Value::Text(text)
            } else {
                Value::Skipped
            };
            (name.clone(), Node { at, value })
        });
        Ok(nodes.collect())
    }

    /// The next line that is not empty.
    fn line(&mut self) -> std::io::Result<Option<Result<Line, Broken>>> {
        loop {
            let unread = &self.buffer[self.start..];
            let blank = unread
                .iter()
                .take_while(|byte| b"\r\n".contains(byte))
                .count();
            let all = blank == unread.len();
            self.consume(blank);
            if !all || !self.fill()? {
                break;
            }
        }
        // Byte offsets from `start`: how far the machine is, and where the fields and their values begin.
        let mut at = 0;
        let mut begins: Vec<(usize, usize)> = vec![(0, 0)];
        let mut values = vec![0; 256];
        let mut length = 0;
        loop {
            if self.start + at == self.buffer.len() {
                self.fill()?;
            }
            let input = &self.buffer[self.start + at..];
            let (result, taken, written) = self.machine.read_field(input, &mut values[length..]);
            at += taken;
            length += written;
            match result {
                ReadFieldResult::InputEmpty => {}
                ReadFieldResult::OutputFull => values.resize(values.len() * 2, 0),
                ReadFieldResult::Field { record_end: true } => break,
                ReadFieldResult::Field { record_end: false } => begins.push((at, length)),
                ReadFieldResult::End => return Ok(None),
            }
            if at > MAX_ROW {
                let message = format!(
                    "a row of more than {} MiB begins here: is a quote missing?",
                    MAX_ROW >> 20
                );
                return Ok(Some(Err(self.broken(400, Fault::new(0, message), true))));
            }
        }
        let line = self.cut(at, &begins, &values[..length]);
        self.consume(at);
        Ok(Some(line))
    }

    /// The line of `at` bytes, checked for what the machine forgives.
    fn cut(&self, at: usize, begins: &[(usize, usize)], values: &[u8]) -> Result<Line, Broken> {
        let raw = &self.buffer[self.start..self.start + at];
        let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
        let raw = raw.strip_suffix(b"\r").unwrap_or(raw);
        let text = match std::str::from_utf8(raw) {
            Ok(text) => text.to_owned(),
            Err(error) => {
                let valid = error.valid_up_to();
                let message = format!(
                    "invalid UTF-8: byte 0x{:02x} at offset {} of the file; convert the file to UTF-8",
                    raw[valid],
                    self.offset + valid as u64
                );
                return Err(Broken {
                    // A position in the lossy text would be another one.
                    place: self.place().advance(raw, valid),
                    ..self.broken(at, Fault::new(0, message), false)
                });
            }
        };
        let mut fields = Vec::with_capacity(begins.len());
        for (index, (start, value)) in begins.iter().enumerate() {
            let (end, value_end) = match begins.get(index + 1) {
                Some((next, value)) => (next - 1, *value),
                None => (raw.len(), values.len()),
            };
            if let Err((quote, message)) = check_quotes(&raw[*start..end], self.delimiter) {
                let open = message == UNCLOSED;
                let fault = Fault::new(start + quote, message);
                return Err(self.broken(at, fault, open));
            }
            let value = String::from_utf8_lossy(&values[*value..value_end]).into_owned();
            fields.push((*start, value));
        }
        Ok(Line {
            place: self.place(),
            text,
            fields,
        })
    }

    /// A fault of the line that begins here, of which `length` bytes are shown.
    fn broken(&self, length: usize, fault: Fault, last: bool) -> Broken {
        let shown = &self.buffer[self.start..self.buffer.len().min(self.start + length)];
        Broken {
            place: self.place(),
            text: String::from_utf8_lossy(shown).into_owned(),
            fault,
            last,
        }
    }

    fn place(&self) -> Place {
        Place::Line {
            line: self.line,
            column: self.column,
        }
    }

    /// Reads more; false at the end of the file.
    fn fill(&mut self) -> std::io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        if self.start >= CHUNK {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let length = self.buffer.len();
        self.buffer.resize(length + CHUNK, 0);
        let read = loop {
            match self.reader.read(&mut self.buffer[length..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => break other,
            }
        };
        self.buffer.truncate(length + *read.as_ref().unwrap_or(&0));
        let read = read?;
        self.read += read as u64;
        self.ended = read == 0;
        Ok(read > 0)
    }

    fn consume(&mut self, bytes: usize) {
        for byte in &self.buffer[self.start..self.start + bytes] {
            step(*byte, &mut self.line, &mut self.column);
        }
        self.offset += bytes as u64;
        self.start += bytes;
    }
}

const UNCLOSED: &str = "a quote is opened here and not closed before the end of the file";

/// That a field which begins with a quote ends with its partner, or where it does not and why.
fn check_quotes(raw: &[u8], delimiter: u8) -> Result<(), (usize, &'static str)> {
    if raw.first() != Some(&b'"') {
        return Ok(());
    }
    let mut at = 1;
    loop {
        match raw[at..].iter().position(|byte| *byte == b'"') {
            None => return Err((0, UNCLOSED)),
            Some(quote) => at += quote + 1,
        }
        match raw.get(at) {
            Some(b'"') => at += 1,
            None => return Ok(()),
            Some(_) if delimiter == b'\t' => {
                return Err((
                    at,
                    "a field in quotes goes on behind its closing quote; a field that begins with a quote is put into quotes, and \
                     the quotes in it are doubled",
                ));
            }
            Some(_) => {
                return Err((
                    at,
                    "a field in quotes goes on behind its closing quote; quotes inside a field in quotes are doubled",
                ));
            }
        }
    }
}

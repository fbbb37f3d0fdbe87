//! JSON arrays, JSON lines and text lines, cut into rows as they stream by; memory holds one row and a buffer.

use std::io::Read;

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::record::{Fault, Fields, Node, Place, Record, Value, step};

/// How much is read at a time.
const CHUNK: usize = 64 * 1024;
/// The largest row; beyond it a quote or a bracket is missing.
const MAX_ROW: usize = 256 << 20;

/// How the rows of a file are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `[row, row]`.
    Array,
    /// One JSON object a line.
    Lines,
    /// One row of text a line.
    Text,
}

/// Reads the rows of one file of text.
pub(crate) struct TextRows<R> {
    reader: R,
    /// The keys whose values are wanted.
    wanted: Box<dyn Fn(&str) -> bool>,
    shape: Option<Shape>,
    buffer: Vec<u8>,
    /// Where the unread part of the buffer begins.
    start: usize,
    /// How far the row that was handed out last reaches.
    ended: bool,
    line: u64,
    column: u64,
    offset: u64,
    read: u64,
    rows: u64,
    done: bool,
    /// Whether a UTF-8 byte order mark was skipped.
    pub(crate) byte_order_mark: bool,
}

/// A stretch of the buffer that is one row, or what is wrong with the file around it.
enum Piece {
    Row(usize),
    Fault(Fault),
    End,
}

impl<R: Read> TextRows<R> {
    /// Reads from `reader`; `shape` is found from the first character when it is not given.
    pub(crate) fn new(
        reader: R,
        shape: Option<Shape>,
        wanted: Box<dyn Fn(&str) -> bool>,
    ) -> TextRows<R> {
        TextRows {
            reader,
            wanted,
            shape,
            buffer: Vec::new(),
            start: 0,
            ended: false,
            line: 1,
            column: 1,
            offset: 0,
            read: 0,
            rows: 0,
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
        if self.read == 0
            && let Some(fault) = self.begin()?
        {
            return Ok(Some(self.fatal(fault)));
        }
        let shape = match self.shape {
            Some(shape) => shape,
            None => match self.peek_shape()? {
                Some(shape) => shape,
                None => {
                    self.done = true;
                    return Ok(None);
                }
            },
        };
        let piece = match shape {
            Shape::Array => self.next_element()?,
            Shape::Lines | Shape::Text => self.next_line()?,
        };
        let length = match piece {
            Piece::End => {
                self.done = true;
                return Ok(None);
            }
            Piece::Fault(fault) => return Ok(Some(self.fatal(fault))),
            Piece::Row(length) => length,
        };
        self.rows += 1;
        let place = Place::Line {
            line: self.line,
            column: self.column,
        };
        let bytes = &self.buffer[self.start..self.start + length];
        let (text, fields) = match std::str::from_utf8(bytes) {
            Ok(text) if shape == Shape::Text => {
                let value = Value::Text(text.to_owned());
                (
                    text.to_owned(),
                    Ok(vec![("text".to_owned(), Node { at: 0, value })]),
                )
            }
            Ok(text) => (text.to_owned(), parse(text, shape, &self.wanted)),
            Err(error) => {
                let at = error.valid_up_to();
                let byte = bytes.get(at).copied().unwrap_or_default();
                let offset = self.offset + at as u64;
                let message = format!(
                    "invalid UTF-8: byte 0x{byte:02x} at offset {offset} of the file; convert the file to UTF-8"
                );
                (
                    String::from_utf8_lossy(bytes).into_owned(),
                    Err(Fault::new(at, message)),
                )
            }
        };
        // A position in bytes of the lossy text would be another one: walk the original bytes.
        let fields = match fields {
            Err(fault) if fault.message.starts_with("invalid UTF-8") => {
                let record = Record {
                    place: place.advance(bytes, fault.at),
                    text,
                    fields: Err(Fault::new(0, fault.message)),
                    last: false,
                };
                self.consume(length);
                return Ok(Some(record));
            }
            fields => fields,
        };
        self.consume(length);
        Ok(Some(Record {
            place,
            text,
            fields,
            last: false,
        }))
    }

    fn fatal(&mut self, fault: Fault) -> Record {
        self.done = true;
        let place = Place::Line {
            line: self.line,
            column: self.column,
        };
        let shown = &self.buffer[self.start..self.buffer.len().min(self.start + 400)];
        let text = String::from_utf8_lossy(shown).into_owned();
        Record {
            place,
            text,
            fields: Err(Fault::new(0, fault.message)),
            last: true,
        }
    }

    /// Reads the first bytes and looks for byte order marks.
    fn begin(&mut self) -> std::io::Result<Option<Fault>> {
        while self.buffer.len() < 4 && self.fill()? {}
        if self.buffer.starts_with(b"\xef\xbb\xbf") {
            self.byte_order_mark = true;
            self.start = 3;
            self.offset = 3;
        } else if self.buffer.starts_with(b"\xff\xfe") || self.buffer.starts_with(b"\xfe\xff") {
            return Ok(Some(Fault::new(
                0,
                "the byte order mark says UTF-16; convert the file to UTF-8",
            )));
        }
        Ok(None)
    }

    fn peek_shape(&mut self) -> std::io::Result<Option<Shape>> {
        self.skip_space()?;
        self.shape = self.byte(0)?.map(|byte| {
            if byte == b'[' {
                Shape::Array
            } else {
                Shape::Lines
            }
        });
        Ok(self.shape)
    }

    fn next_line(&mut self) -> std::io::Result<Piece> {
        loop {
            let mut length = 0;
            let newline = loop {
                let unread = &self.buffer[self.start..];
                if let Some(found) = unread[length..].iter().position(|byte| *byte == b'\n') {
                    length += found;
                    break true;
                }
                length = unread.len();
                if length > MAX_ROW {
                    return Ok(Piece::Fault(too_long()));
                }
                if !self.fill()? {
                    break false;
                }
            };
            let line = &self.buffer[self.start..self.start + length];
            if line.iter().all(u8::is_ascii_whitespace) {
                if !newline {
                    return Ok(Piece::End);
                }
                self.consume(length + 1);
                continue;
            }
            let blank = line
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            let end = line
                .iter()
                .rev()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            if self.shape == Some(Shape::Text) {
                // Running text keeps its indentation, and loses only the end of the line.
                return Ok(Piece::Row(if line.ends_with(b"\r") {
                    length - 1
                } else {
                    length
                }));
            }
            self.consume(blank);
            return Ok(Piece::Row(length - blank - end));
        }
    }

    fn next_element(&mut self) -> std::io::Result<Piece> {
        self.skip_space()?;
        if self.ended {
            return Ok(match self.byte(0)? {
                None => Piece::End,
                Some(_) => Piece::Fault(Fault::new(0, "text after the `]` that ends the array")),
            });
        }
        if self.rows == 0 {
            self.consume(1); // The `[` by which the shape was known.
        } else {
            match self.byte(0)? {
                Some(b',') => self.consume(1),
                Some(b']') => return self.end_array(),
                Some(_) => {
                    return Ok(Piece::Fault(Fault::new(
                        0,
                        "expected `,` or `]` after a row",
                    )));
                }
                None => {
                    return Ok(Piece::Fault(Fault::new(
                        0,
                        "the file ends before the `]` of its array: it is cut off",
                    )));
                }
            }
        }
        self.skip_space()?;
        match self.byte(0)? {
            Some(b']') if self.rows == 0 => self.end_array(),
            Some(b']') => Ok(Piece::Fault(Fault::new(
                0,
                "a `,` before the `]` that ends the array",
            ))),
            Some(b',') => Ok(Piece::Fault(Fault::new(
                0,
                "expected a row, found a second `,`",
            ))),
            None => Ok(Piece::Fault(Fault::new(
                0,
                "the file ends before the `]` of its array: it is cut off",
            ))),
            Some(_) => self.element(),
        }
    }

    fn end_array(&mut self) -> std::io::Result<Piece> {
        self.consume(1);
        self.ended = true;
        self.next_element()
    }

    /// Finds the end of the element that begins here: the closing bracket of its depth, or a comma outside.
    fn element(&mut self) -> std::io::Result<Piece> {
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        let mut length = 0;
        loop {
            let Some(byte) = self.byte(length)? else {
                return Ok(Piece::Fault(Fault::new(
                    0,
                    "the file ends in the middle of this row: it is cut off",
                )));
            };
            if in_string {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = true,
                    b'"' => in_string = false,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 1 => depth -= 1,
                    b'}' | b']' if depth == 1 => return Ok(Piece::Row(length + 1)),
                    b',' | b']' | b'}' if depth == 0 => break,
                    _ => {}
                }
            }
            length += 1;
            if length > MAX_ROW {
                return Ok(Piece::Fault(too_long()));
            }
        }
        let element = &self.buffer[self.start..self.start + length];
        let end = element
            .iter()
            .rev()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        Ok(Piece::Row((length - end).max(1)))
    }

    fn skip_space(&mut self) -> std::io::Result<()> {
        while self.byte(0)?.is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.consume(1);
        }
        Ok(())
    }

    /// The byte `ahead` of the unread part, if the file has it.
    fn byte(&mut self, ahead: usize) -> std::io::Result<Option<u8>> {
        while self.start + ahead >= self.buffer.len() {
            if !self.fill()? {
                return Ok(None);
            }
        }
        Ok(Some(self.buffer[self.start + ahead]))
    }

    /// Reads more; false at the end of the file.
    fn fill(&mut self) -> std::io::Result<bool> {
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
        Ok(read > 0)
    }

    fn consume(&mut self, bytes: usize) {
        let end = (self.start + bytes).min(self.buffer.len());
        for byte in &self.buffer[self.start..end] {
            step(*byte, &mut self.line, &mut self.column);
        }
        self.offset += (end - self.start) as u64;
        self.start = end;
    }
}

fn too_long() -> Fault {
    Fault::new(
        0,
        format!(
            "a row of more than {} MiB begins here: is a quote or a bracket missing?",
            MAX_ROW >> 20
        ),
    )
}

/// The columns of a row of JSON.
fn parse(text: &str, shape: Shape, wanted: &dyn Fn(&str) -> bool) -> Result<Fields, Fault> {
    if !text.starts_with('{') {
        let found = match text.as_bytes().first() {
            Some(b'[') => "a list",
            Some(b'"') => "a string",
            Some(b'0'..=b'9' | b'-') => "a number",
            _ => "other text",
        };
        let hint = if shape == Shape::Lines {
            ", one on each line"
        } else {
            ""
        };
        return Err(Fault::new(
            0,
            format!("expected an object {{…}}{hint}, found {found}"),
        ));
    }
    let raw = entries(text, 0).map_err(|fault| explain(text, shape, fault))?;
    let mut fields = Fields::with_capacity(raw.len());
    for (key, raw) in raw {
        let at = offset(text, raw.get());
        if fields.iter().any(|(other, _)| *other == key) {
            return Err(Fault::new(at, format!("the field `{key}` is there twice")));
        }
        let node = if wanted(&key) {
            node(text, raw)?
        } else {
            Node {
                at,
                value: Value::Skipped,
            }
        };
        fields.push((key, node));
    }
    Ok(fields)
}

/// Adds what usually lies behind a syntax error.
fn explain(text: &str, shape: Shape, fault: Fault) -> Fault {
    let rest = text.get(fault.at..).unwrap_or_default();
    for word in ["NaN", "Infinity", "-Infinity"] {
        if rest.starts_with(word)
            || text
                .get(fault.at.saturating_sub(1)..)
                .unwrap_or_default()
                .starts_with(word)
        {
            let message =
                format!("{word} is not JSON (Python's json writes it); write null or a number");
            return Fault::new(fault.at, message);
        }
    }
    if shape == Shape::Lines && fault.message.starts_with("EOF") {
        let message =
            "the object does not end on its line; a JSONL file has one whole object on each line";
        return Fault::new(text.len(), message);
    }
    Fault::new(fault.at, format!("not JSON: {}", fault.message))
}

/// The value that `raw`, a part of `text`, holds.
fn node(text: &str, raw: &RawValue) -> Result<Node, Fault> {
    let raw = raw.get();
    let at = offset(text, raw);
    let value = match raw.as_bytes().first() {
        Some(b'"') => Value::Text(serde_json::from_str(raw).map_err(|error| Fault {
            at: at + position(raw, &error),
            message: format!("a string that is not text: {}", reason(&error)),
        })?),
        Some(b'{') => {
            let entries = entries(raw, at)?;
            let nodes = entries
                .into_iter()
                .map(|(key, raw)| Ok((key, node(text, raw)?)));
            Value::Map(nodes.collect::<Result<_, Fault>>()?)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(raw)
                .map_err(|error| Fault::new(at + position(raw, &error), reason(&error)))?;
            Value::List(
                items
                    .into_iter()
                    .map(|raw| node(text, raw))
                    .collect::<Result<_, Fault>>()?,
            )
        }
        Some(b'n') => Value::Null,
        Some(b't') => Value::Bool(true),
        Some(b'f') => Value::Bool(false),
        _ => Value::Number(
            serde_json::from_str(raw).map_err(|error| Fault::new(at, reason(&error)))?,
        ),
    };
    Ok(Node { at, value })
}

/// The keys of an object and their values, unread. `at` is where the object lies in its row.
fn entries(object: &str, at: usize) -> Result<Vec<(String, &RawValue)>, Fault> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(String, &'de RawValue)>;
        fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            out.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    let mut parser = serde_json::Deserializer::from_str(object);
    let parsed = parser
        .deserialize_map(Entries)
        .and_then(|entries| parser.end().map(|()| entries));
    parsed.map_err(|error| Fault::new(at + position(object, &error), reason(&error)))
}

/// Where `part`, a slice of `whole`, begins in it.
fn offset(whole: &str, part: &str) -> usize {
    (part.as_ptr() as usize)
        .saturating_sub(whole.as_ptr() as usize)
        .min(whole.len())
}

/// The byte that a parser's error points at. Its lines and columns count from 1, columns in bytes.
fn position(text: &str, error: &serde_json::Error) -> usize {
    let start = match error.line() {
        0 | 1 => 0,
        line => text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .nth(line - 2)
            .map_or(0, |(at, _)| at + 1),
    };
    (start + error.column().saturating_sub(1)).min(text.len())
}

/// The parser's message without its own position.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message
        .split(" at line ")
        .next()
        .unwrap_or(&message)
        .to_owned()
}

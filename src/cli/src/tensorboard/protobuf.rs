//! The few protocol buffer messages of TensorBoard's event files, written field by field in order of their numbers.
//!
//! ```text
//! Event           1 wall_time: double   2 step: int64   3 file_version: string   5 summary: Summary
//! Summary         1 value: repeated Value
//! Value           1 tag: string   2 simple_value: float   8 tensor: TensorProto   9 metadata: SummaryMetadata
//! TensorProto     1 dtype: enum   2 tensor_shape: TensorShapeProto   8 string_val: repeated bytes
//! TensorShape     2 dim: repeated Dim { 1 size: int64 }
//! SummaryMetadata 1 plugin_data: PluginData { 1 plugin_name: string }   4 data_class: enum
//! ```

/// `DT_STRING` of TensorFlow's `types.proto`.
const STRING: u64 = 7;
/// `DATA_CLASS_TENSOR` of `summary.proto`.
const TENSOR_CLASS: u64 = 2;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// One value of an event.
pub(crate) enum Summary<'a> {
    /// A number.
    Scalar {
        /// Its name.
        tag: &'a str,
        /// The number.
        value: f32,
    },
    /// A text in Markdown.
    Text {
        /// Its name.
        tag: &'a str,
        /// The text.
        text: &'a str,
    },
}

/// The first event of every file.
pub(super) fn version_bytes(time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    double(&mut event, 1, time);
    bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// An event with values.
pub(crate) fn event_bytes(time: f64, step: i64, summaries: &[Summary<'_>]) -> Vec<u8> {
    let mut summary = Vec::new();
    summaries
        .iter()
        .for_each(|s| bytes(&mut summary, 1, &value(s)));
    let mut event = Vec::new();
    double(&mut event, 1, time);
    // A field at its default is not written.
    if step != 0 {
        number(&mut event, 2, step as u64);
    }
    bytes(&mut event, 5, &summary);
    event
}

fn value(summary: &Summary<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match summary {
        Summary::Scalar { tag, value } => {
            bytes(&mut out, 1, tag.as_bytes());
            key(&mut out, 2, FIXED32);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Summary::Text { tag, text } => {
            bytes(&mut out, 1, tag.as_bytes());
            let (mut dim, mut shape, mut tensor) = (Vec::new(), Vec::new(), Vec::new());
            number(&mut dim, 1, 1);
            bytes(&mut shape, 2, &dim);
            number(&mut tensor, 1, STRING);
            bytes(&mut tensor, 2, &shape);
            bytes(&mut tensor, 8, text.as_bytes());
            bytes(&mut out, 8, &tensor);
            let (mut plugin, mut metadata) = (Vec::new(), Vec::new());
            bytes(&mut plugin, 1, b"text");
            bytes(&mut metadata, 1, &plugin);
            number(&mut metadata, 4, TENSOR_CLASS);
            bytes(&mut out, 9, &metadata);
        }
    }
    out
}

fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    key(out, field, VARINT);
    varint(out, value);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, BYTES);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

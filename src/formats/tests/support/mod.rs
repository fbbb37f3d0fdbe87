//! What the tests of this crate share: golden files, and a writer of GGUF bytes, right or wrong.
#![allow(dead_code)] // Every test program uses a part of it.

use std::path::{Path, PathBuf};

/// The golden file of this name.
pub fn golden(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/formats");
    root.join(name)
}

/// The content of a golden JSON file.
pub fn golden_json(name: &str) -> serde_json::Value {
    let path = golden(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// A metadata value of GGUF, with its type.
#[derive(Debug, Clone)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Text(&'static str),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    /// The type's number and the bytes after it.
    Raw(u32, Vec<u8>),
}

/// A GGUF file in the making; the fields that may lie are open.
#[derive(Debug, Clone)]
pub struct GgufBytes {
    pub version: u32,
    pub metadata: Vec<(String, Meta)>,
    /// Name, extents (fastest first), type, data.
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    /// Instead of the true offsets.
    pub offsets: Option<Vec<u64>>,
    pub tensor_count: Option<u64>,
    pub pair_count: Option<u64>,
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl GgufBytes {
    /// A small Llama-like file with a tokenizer and two tensors.
    pub fn small() -> GgufBytes {
        let texts = |list: &[&str]| Meta::Texts(list.iter().map(|t| (*t).to_owned()).collect());
        let metadata = [
            ("general.architecture", Meta::Text("llama")),
            ("llama.attention.head_count", Meta::U32(2)),
            ("llama.attention.head_count_kv", Meta::U32(1)),
            ("llama.embedding_length", Meta::U32(32)),
            ("llama.block_count", Meta::U32(1)),
            ("llama.feed_forward_length", Meta::U32(32)),
            ("llama.context_length", Meta::U32(64)),
            ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
            ("tokenizer.ggml.model", Meta::Text("gpt2")),
            ("tokenizer.ggml.pre", Meta::Text("smollm")),
            ("tokenizer.ggml.tokens", texts(&["<e>", "a", "b", "ab"])),
            ("tokenizer.ggml.token_type", Meta::I32s(vec![3, 1, 1, 1])),
            ("tokenizer.ggml.merges", texts(&["a b"])),
            ("tokenizer.ggml.eos_token_id", Meta::U32(0)),
        ];
        GgufBytes {
            version: 3,
            metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
            tensors: vec![
                ("output_norm.weight".to_owned(), vec![32], 0, vec![1; 128]),
                (
                    "blk.0.attn_q.weight".to_owned(),
                    vec![32, 4],
                    8,
                    vec![2; 136],
                ),
            ],
            offsets: None,
            tensor_count: None,
            pair_count: None,
        }
    }

    /// Replaces or adds a metadata pair.
    pub fn set(mut self, key: &str, value: Meta) -> GgufBytes {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        let tensors = self.tensor_count.unwrap_or(self.tensors.len() as u64);
        bytes.extend(tensors.to_le_bytes());
        let pairs = self.pair_count.unwrap_or(self.metadata.len() as u64);
        bytes.extend(pairs.to_le_bytes());
        for (key, value) in &self.metadata {
            push_text(&mut bytes, key);
            push_value(&mut bytes, value);
        }
        let mut offset = 0u64;
        for (index, (name, extents, kind, data)) in self.tensors.iter().enumerate() {
            push_text(&mut bytes, name);
            bytes.extend((extents.len() as u32).to_le_bytes());
            extents
                .iter()
                .for_each(|extent| bytes.extend(extent.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            let claimed = self
                .offsets
                .as_ref()
                .map_or(offset, |offsets| offsets[index]);
            bytes.extend(claimed.to_le_bytes());
            offset += (data.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(data);
        }
        bytes
    }
}

fn push_value(bytes: &mut Vec<u8>, value: &Meta) {
    let push_kind = |bytes: &mut Vec<u8>, kind: u32| bytes.extend(kind.to_le_bytes());
    match value {
        Meta::U32(number) => {
            push_kind(bytes, 4);
            bytes.extend(number.to_le_bytes());
        }
        Meta::F32(number) => {
            push_kind(bytes, 6);
            bytes.extend(number.to_le_bytes());
        }
        Meta::Text(text) => {
            push_kind(bytes, 8);
            push_text(bytes, text);
        }
        Meta::Texts(texts) => {
            push_kind(bytes, 9);
            push_kind(bytes, 8);
            bytes.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| push_text(bytes, text));
        }
        Meta::I32s(numbers) => {
            push_kind(bytes, 9);
            push_kind(bytes, 5);
            bytes.extend((numbers.len() as u64).to_le_bytes());
            numbers
                .iter()
                .for_each(|number| bytes.extend(number.to_le_bytes()));
        }
        Meta::Raw(kind, raw) => {
            push_kind(bytes, *kind);
            bytes.extend(raw);
        }
    }
}

/// The bytes of a safetensors file with this header and data.
pub fn safetensors_bytes(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

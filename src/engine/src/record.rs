//! Records and keys. A record is the canonical list of everything that may change a stage's outputs; the blake3 digest of its
//! encoding is the key. The list is stored beside the key, so that `why` compares the very thing that was hashed.
//!
//! The encoding is tag, length, value; no two records share an encoding:
//!
//! ```text
//! value  = tag (1 byte) · length of the payload (u64, little endian) · payload
//! 0x01 null      payload empty
//! 0x02 bool      one byte, 0 or 1
//! 0x03 integer   i64, little endian
//! 0x04 number    f64 bits, little endian (-0.0 is written as 0.0)
//! 0x05 text      UTF-8
//! 0x06 digest    32 bytes
//! 0x07 list      the values, one after the other
//! 0x08 map       text and value, alternating, ordered by the text's bytes
//! record = list of [text name, value], in order of the names' bytes
//! key    = blake3 derive_key("levain 1 stage record", encoding of the record)
//! ```

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;

const CONTEXT: &str = "levain 1 stage record";

/// One value of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// A parameter's value.
    Value(Value),
    /// The content of an input.
    Digest(Digest),
    /// The contents of a port that takes several, named, in order.
    Named(Vec<(String, Digest)>),
}

/// Everything that may change a stage's outputs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Record {
    items: BTreeMap<String, Item>,
    /// Hashed once: a plan asks for it many times.
    #[serde(skip)]
    key: OnceLock<Digest>,
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

impl Record {
    /// Adds one item; a name is used once.
    pub fn add(&mut self, name: impl Into<String>, item: Item) {
        let name = name.into();
        assert!(
            !self.items.contains_key(&name),
            "BUG: the record has `{name}` twice"
        );
        self.items.insert(name, item);
        self.key = OnceLock::new();
    }

    /// The items, ordered by name.
    pub fn items(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.items.iter().map(|(n, i)| (n.as_str(), i))
    }

    /// The same without the items that `keep` refuses.
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> Record {
        Record {
            items: self
                .items
                .iter()
                .filter(|(n, _)| keep(n))
                .map(|(n, i)| (n.clone(), i.clone()))
                .collect(),
            key: OnceLock::new(),
        }
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 * self.items.len());
        nested(&mut out, 0x07, |list| {
            for (name, item) in &self.items {
                nested(list, 0x07, |pair| {
                    write(pair, 0x05, name.as_bytes());
                    match item {
                        Item::Value(value) => encode_value(pair, value),
                        Item::Digest(digest) => write(pair, 0x06, digest.as_bytes()),
                        Item::Named(named) => nested(pair, 0x07, |inner| {
                            for (name, digest) in named {
                                nested(inner, 0x07, |entry| {
                                    write(entry, 0x05, name.as_bytes());
                                    write(entry, 0x06, digest.as_bytes());
                                });
                            }
                        }),
                    }
                });
            }
        });
        out
    }

    /// The key.
    pub fn key(&self) -> Digest {
        *self
            .key
            .get_or_init(|| Digest::derive(CONTEXT, &self.encode()))
    }

    /// What differs between two records, a line each: (name, before, after).
    pub fn difference(&self, before: &Record) -> Vec<(String, Option<String>, Option<String>)> {
        let names: std::collections::BTreeSet<&String> =
            self.items.keys().chain(before.items.keys()).collect();
        names
            .into_iter()
            .filter(|name| self.items.get(*name) != before.items.get(*name))
            .map(|name| {
                (
                    name.clone(),
                    before.items.get(name).map(text),
                    self.items.get(name).map(text),
                )
            })
            .collect()
    }
}

/// An item for people.
pub fn text(item: &Item) -> String {
    match item {
        Item::Value(Value::String(s)) => s.clone(),
        Item::Value(Value::Number(n)) => n
            .as_f64()
            .filter(|_| n.is_f64())
            .map_or_else(|| n.to_string(), short_number),
        Item::Value(value) => value.to_string(),
        Item::Digest(digest) => digest.short(),
        Item::Named(named) => named
            .iter()
            .map(|(n, d)| format!("{n}: {}", d.short()))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn short_number(x: f64) -> String {
    if x != 0.0 && (x.abs() < 1e-3 || x.abs() >= 1e7) {
        format!("{x:e}")
    } else {
        x.to_string()
    }
}

fn write(out: &mut Vec<u8>, tag: u8, payload: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Writes a value whose payload `fill` appends; its length is put in afterwards.
fn nested(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 8]);
    fill(out);
    let length = (out.len() - at - 8) as u64;
    out[at..at + 8].copy_from_slice(&length.to_le_bytes());
}

fn encode_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => write(out, 0x01, &[]),
        Value::Bool(b) => write(out, 0x02, &[u8::from(*b)]),
        Value::Number(n) => match n.as_i64() {
            Some(i) if !n.is_f64() => write(out, 0x03, &i.to_le_bytes()),
            _ => {
                let x = n.as_f64().unwrap_or(f64::NAN) + 0.0;
                write(out, 0x04, &x.to_bits().to_le_bytes());
            }
        },
        Value::String(s) => write(out, 0x05, s.as_bytes()),
        Value::Array(items) => {
            nested(out, 0x07, |inner| {
                items.iter().for_each(|i| encode_value(inner, i));
            });
        }
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by(|a, b| a.0.cmp(b.0));
            nested(out, 0x08, |inner| {
                for (name, value) in pairs {
                    write(inner, 0x05, name.as_bytes());
                    encode_value(inner, value);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_and_sign_of_zero_do_not_matter_but_types_do() {
        let key = |value: Value| {
            let mut record = Record::default();
            record.add("param.x", Item::Value(value));
            record.key()
        };
        assert_eq!(
            key(serde_json::json!({"a": 1, "b": 2})),
            key(serde_json::json!({"b": 2, "a": 1}))
        );
        assert_eq!(key(serde_json::json!(0.0)), key(serde_json::json!(-0.0)));
        assert_ne!(key(serde_json::json!(1)), key(serde_json::json!(1.0)));
        assert_ne!(key(serde_json::json!(1)), key(serde_json::json!("1")));
        assert_ne!(
            key(serde_json::json!([["a"], "b"])),
            key(serde_json::json!([["a", "b"]]))
        );
        assert_ne!(key(Value::Null), key(serde_json::json!([])));
    }

    proptest! {
        #[test]
        fn texts_never_run_together(a in ".*", b in ".*", c in ".*", d in ".*") {
            let key = |x: &str, y: &str| {
                let mut record = Record::default();
                record.add("param.x", Item::Value(x.into()));
                record.add("param.y", Item::Value(y.into()));
                record.key()
            };
            prop_assert_eq!(key(&a, &b) == key(&c, &d), (a, b) == (c, d));
        }
    }
}

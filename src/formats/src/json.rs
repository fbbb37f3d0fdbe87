//! JSON files from outside: limited in size, duplicate keys refused, errors with file, line and column.

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let shown = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {shown}"))?;
    ensure!(
        bytes.len() as u64 <= limit,
        "{shown} is larger than {limit} bytes, which no such file is; check that the right file is named"
    );
    String::from_utf8(bytes).map_err(|error| {
        anyhow!(
            "{shown}: byte {} is not valid UTF-8; save the file as UTF-8",
            error.utf8_error().valid_up_to()
        )
    })
}

/// Parses `text`, the content of the file that messages call `path`.
pub(crate) fn parse<T: for<'de> Deserialize<'de>>(text: &str, path: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|error| anyhow!("{}: {error}", path.display()))
}

/// Parses a JSON object; a key that stands twice is an error.
pub(crate) fn parse_object(text: &str, path: &Path) -> Result<Map<String, Value>> {
    match parse::<UniqueValue>(text, path)?.0 {
        Value::Object(object) => Ok(object),
        _ => Err(anyhow!(
            "{}: expected a JSON object, {{...}}",
            path.display()
        )),
    }
}

/// The entries of a JSON object in the order of the file; a key that stands twice is an error.
pub(crate) struct UniqueEntries<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueEntries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = UniqueEntries<V>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(de::Error::custom(format!("the key {key:?} stands twice")));
                    }
                    entries.push((key, map.next_value()?));
                }
                Ok(UniqueEntries(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

struct UniqueValue(Value);

impl<'de> Deserialize<'de> for UniqueValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;
        impl<'de> Visitor<'de> for AnyValue {
            type Value = UniqueValue;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a JSON value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<UniqueValue, E> {
                Ok(UniqueValue(Value::Bool(value)))
            }
            fn visit_i64<E>(self, value: i64) -> Result<UniqueValue, E> {
                Ok(UniqueValue(Value::from(value)))
            }
            fn visit_u64<E>(self, value: u64) -> Result<UniqueValue, E> {
                Ok(UniqueValue(Value::from(value)))
            }
            fn visit_f64<E>(self, value: f64) -> Result<UniqueValue, E> {
                Ok(UniqueValue(
                    Number::from_f64(value).map_or(Value::Null, Value::Number),
                ))
            }
            fn visit_str<E>(self, value: &str) -> Result<UniqueValue, E> {
                Ok(UniqueValue(Value::String(value.to_owned())))
            }
            fn visit_string<E>(self, value: String) -> Result<UniqueValue, E> {
                Ok(UniqueValue(Value::String(value)))
            }
            fn visit_unit<E>(self) -> Result<UniqueValue, E> {
                Ok(UniqueValue(Value::Null))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<UniqueValue, A::Error> {
                let mut items = Vec::new();
                while let Some(UniqueValue(item)) = seq.next_element()? {
                    items.push(item);
                }
                Ok(UniqueValue(Value::Array(items)))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UniqueValue, A::Error> {
                let entries = UniqueEntries::<UniqueValue>::deserialize(
                    de::value::MapAccessDeserializer::new(map),
                )?;
                let object = entries.0.into_iter().map(|(key, value)| (key, value.0));
                Ok(UniqueValue(Value::Object(object.collect())))
            }
        }
        deserializer.deserialize_any(AnyValue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_and_broken_text_name_their_place() {
        let path = Path::new("some/config.json");
        let message = |text: &str| parse_object(text, path).unwrap_err().to_string();
        let twice = message("{\"a\": 1,\n \"b\": {\"c\": 1, \"c\": 2}}");
        assert!(
            twice.contains("some/config.json")
                && twice.contains("\"c\" stands twice")
                && twice.contains("line 2"),
            "{twice}"
        );
        assert!(message("[1]").contains("JSON object"));
        assert!(message("{\"a\": ").contains("line 1"));
        let value = parse_object("{\"a\": [1, -2, 2.5, null, true, \"x\"]}", path).unwrap();
        assert_eq!(
            serde_json::to_string(&value).unwrap(),
            "{\"a\":[1,-2,2.5,null,true,\"x\"]}"
        );
    }
}

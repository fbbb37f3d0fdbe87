//! Reading of adapter_config.json: fields of the right type, and no field that is not understood.

use super::ALL_LINEAR;
use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value};

/// The fields of an adapter_config.json; null is the same as absent.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The value of a field that is given.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(value) => bail!("{key} should be text, but is {value}"),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => bail!("{key} should be true or false, but is {value}"),
        }
    }

    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => (value.as_f64())
                .filter(|number| number.is_finite())
                .ok_or_else(|| anyhow!("{key} should be a number, but is {value}")),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<Vec<String>> {
        let items = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(value) => bail!("{key} should be a list of names, but is {value}"),
        };
        let names: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
        let names = names.ok_or_else(|| anyhow!("{key} should be a list of names"))?;
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    /// Names of modules: a list, or the word for all of them.
    pub(super) fn modules(&self, key: &str) -> Result<Vec<String>> {
        match self.get(key) {
            Some(Value::String(word)) if word == ALL_LINEAR => Ok(vec![ALL_LINEAR.to_owned()]),
            Some(Value::String(pattern)) => bail!(
                "{key} is the regular expression {pattern:?}, which is not supported; list the module names"
            ),
            _ => self.list(key),
        }
    }

    /// Refuses every field that is neither known nor neutral (null, false, empty), since it may change what the adapter does; `written`
    /// has all fields that PEFT knows.
    pub(super) fn refuse_unknown(&self, known: &[&str], written: &Value) -> Result<()> {
        for (key, value) in self.0 {
            let neutral = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty(),
                _ => false,
            };
            if !neutral && !known.contains(&key.as_str()) {
                let word = match written.get(key) {
                    Some(_) => "which is not supported",
                    None => "which is not known here and may change what the adapter does",
                };
                bail!("{key} is {value}, {word}");
            }
        }
        Ok(())
    }
}

/// Names as PEFT writes them: sorted, and the word for all modules alone, since in a list it is not resolved.
pub(super) fn written_modules(names: &[String]) -> Value {
    match names {
        [only] if only == ALL_LINEAR => Value::from(only.as_str()),
        _ => {
            let mut names = names.to_vec();
            names.sort();
            Value::from(names)
        }
    }
}

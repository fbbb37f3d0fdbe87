//! Parameters: what they may be, what they are when not given, what they may change.

use serde_json::{Map, Value};

/// What a field may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The result: it is in the record, and so in the key.
    Semantic,
    /// The last bits: equal to tolerance, kept in the provenance, not in the key.
    Numeric,
    /// Nothing: equal bytes.
    Execution,
}

/// One parameter.
#[derive(Clone, Copy)]
pub struct Field {
    /// The key in the recipe.
    pub name: &'static str,
    /// What it may be.
    pub ty: FieldType,
    /// What happens when it is not given.
    pub need: Need,
    /// The value at which it changes nothing: then it is left out of the record, so that a field added later reruns nothing.
    pub neutral: Option<Literal>,
    /// What it may change.
    pub class: Class,
    /// True when raising it continues the same computation (more steps): a snapshot made with less is still of use.
    pub extendable: bool,
    /// Unit, range and effect in a sentence or two.
    pub doc: &'static str,
}

impl Field {
    /// A value as the record has it. Records forget the order of a mapping, so one whose order matters becomes a list of pairs.
    pub fn recorded(&self, value: Value) -> Value {
        match (&self.ty, value) {
            (FieldType::Map { ordered: true, .. }, Value::Object(map)) if !map.is_empty() => map
                .into_iter()
                .map(|(name, value)| Value::Array(vec![name.into(), value]))
                .collect(),
            (_, value) => value,
        }
    }
}

/// What happens when a field is not given.
#[derive(Clone, Copy)]
pub enum Need {
    /// It is an error.
    Required,
    /// It is absent (`null` in the parameters).
    Optional,
    /// It takes this value.
    Default(Literal),
}

/// A constant in a contract.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Literal {
    /// Absent.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A text.
    Text(&'static str),
    /// An empty list.
    EmptyList,
    /// An empty mapping.
    EmptyMap,
}

impl Literal {
    /// The same as a JSON value.
    pub fn value(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(b) => b.into(),
            Self::Integer(i) => i.into(),
            Self::Number(x) => x.into(),
            Self::Text(t) => t.into(),
            Self::EmptyList => Value::Array(Vec::new()),
            Self::EmptyMap => Value::Object(Map::new()),
        }
    }
}

/// What a field may be.
#[derive(Clone, Copy)]
pub enum FieldType {
    /// `true` or `false`.
    Bool,
    /// A whole number between the bounds, both included.
    Integer {
        /// Least.
        min: i64,
        /// Greatest.
        max: i64,
    },
    /// A number between the bounds.
    Number {
        /// Lower bound.
        min: f64,
        /// Upper bound, included.
        max: f64,
        /// Whether the lower bound itself is refused.
        above: bool,
    },
    /// Any text that is not empty.
    Text,
    /// One of some words.
    Choice(&'static [Choice]),
    /// A list.
    List {
        /// Of what.
        of: &'static FieldType,
        /// Least length.
        min: usize,
    },
    /// A mapping from names.
    Map {
        /// To what.
        of: &'static FieldType,
        /// Whether the order of its entries may change the result: then it is part of the record.
        ordered: bool,
    },
    /// The first that fits.
    Either(&'static [FieldType]),
    /// Something outside: a path, an address, a package. Resolved to a digest, which is what the record holds.
    Source,
    /// A program with its arguments, started without a shell, and only in a run in which the user allows it.
    Program {
        /// The source field whose file stands for the word `{script}`, or without that word behind all of them: a file in the
        /// words themselves would be run without its content being in the record.
        script: &'static str,
    },
    /// Where random streams start; the recipe's `seed` when not given.
    Seed,
    /// The name of a number in metrics.
    Metric {
        /// The port of the metrics.
        of: &'static str,
        /// The port to each of whose artifacts such a number belongs; none where there is one number. The port of the metrics itself where
        /// each of them has such a number, or several below names (`tuned.score`), or one by the field's default.
        each: Option<&'static str>,
    },
}

/// A word that a field may be.
pub struct Choice {
    /// The word.
    pub word: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// The words of a [`FieldType::Program`] with the script in its place.
pub fn command(words: impl Iterator<Item = String>, script: Option<String>) -> Vec<String> {
    let mut words: Vec<String> = words.collect();
    let Some(script) = script else {
        return words;
    };
    match words.iter_mut().find(|word| *word == SCRIPT) {
        Some(place) => *place = script,
        None => words.push(script),
    }
    words
}

/// The word of a [`FieldType::Program`] for which its script stands.
pub const SCRIPT: &str = "{script}";

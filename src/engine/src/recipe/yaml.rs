//! YAML text → a tree whose every node knows its place. The only module that knows the YAML library.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy, Spanned};

use crate::diagnostic::{Problem, Span};

/// The largest recipe that is read, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// The deepest nesting that is read.
pub const MAX_DEPTH: usize = 32;
/// The most nodes that are read, aliases counted as often as they are used.
pub const MAX_NODES: usize = 500_000;

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Where it stands.
    pub span: Span,
}

/// A YAML value.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// `null`, `~`, or nothing.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// A text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key with its place.
#[derive(Clone, Debug)]
pub struct Key {
    /// The word.
    pub name: String,
    /// Where it stands.
    pub span: Span,
}

impl Node {
    /// What it is, in a message.
    pub fn describe(&self) -> String {
        match &self.kind {
            NodeKind::Null => "nothing".to_owned(),
            NodeKind::Bool(b) => format!("`{b}`"),
            NodeKind::Integer(i) => format!("the number {i}"),
            NodeKind::Number(x) => format!("the number {x:?}"),
            NodeKind::Text(t) if t.chars().count() > 40 => {
                format!("the text \"{}…\"", t.chars().take(40).collect::<String>())
            }
            NodeKind::Text(t) => format!("the text \"{t}\""),
            NodeKind::List(items) => format!("a list of {}", items.len()),
            NodeKind::Map(_) => "a mapping".to_owned(),
        }
    }

    /// The value of `key`, when this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            NodeKind::Map(pairs) => pairs.iter().find(|(k, _)| k.name == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The same as JSON, without places.
    pub fn to_value(&self) -> Value {
        match &self.kind {
            NodeKind::Null => Value::Null,
            NodeKind::Bool(b) => (*b).into(),
            NodeKind::Integer(i) => (*i).into(),
            NodeKind::Number(x) => (*x).into(),
            NodeKind::Text(t) => t.as_str().into(),
            NodeKind::List(items) => items.iter().map(Node::to_value).collect(),
            NodeKind::Map(pairs) => Value::Object(
                pairs
                    .iter()
                    .map(|(k, v)| (k.name.clone(), v.to_value()))
                    .collect(),
            ),
        }
    }
}

/// Reads `text` into a tree whose spans say `source`. Keys given twice are problems of their own, beside the tree.
pub fn parse(text: &str, source: usize) -> Result<(Node, Vec<Problem>), Problem> {
    let whole = Span {
        source,
        start: 0,
        end: 0,
    };
    if text.len() > MAX_BYTES {
        let message = format!(
            "the recipe has {} bytes; at most {MAX_BYTES} are read",
            text.len()
        );
        return Err(Problem::at("too-large", whole, message));
    }
    let options = serde_saphyr::options! {
        strict_booleans: true,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Merge,
        // No field takes them, and the field says so better than the reader.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_documents: 1,
        },
    };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options)
        .map_err(|e| syntax_problem(&e, text, source))?;
    let mut problems = Vec::new();
    let node = place(raw, text, source, &mut problems);
    Ok((node, problems))
}

/// The tree as serde hands it over.
enum Raw {
    Null,
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        // Beyond i64 it can only be a mistake; as a float it is out of every whole number's range.
        Ok(i64::try_from(value).map_or(Raw::Number(value as f64), Raw::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry()? {
            pairs.push(pair);
        }
        Ok(Raw::Map(pairs))
    }
}

fn place(raw: Spanned<Raw>, text: &str, source: usize, problems: &mut Vec<Problem>) -> Node {
    let span = span_of(&raw.referenced, text, source);
    let kind = match raw.value {
        Raw::Null => NodeKind::Null,
        Raw::Bool(b) => NodeKind::Bool(b),
        Raw::Integer(i) => NodeKind::Integer(i),
        Raw::Number(x) => NodeKind::Number(x),
        Raw::Text(t) => NodeKind::Text(t),
        Raw::List(items) => NodeKind::List(
            items
                .into_iter()
                .map(|i| place(i, text, source, problems))
                .collect(),
        ),
        Raw::Map(raw_pairs) => {
            let mut pairs: Vec<(Key, Node)> = Vec::with_capacity(raw_pairs.len());
            // A stage has few words: they are looked through faster than hashed.
            let few = raw_pairs.len() <= 16;
            let mut seen = std::collections::HashMap::new();
            for (raw_key, raw_value) in raw_pairs {
                let key = Key {
                    span: span_of(&raw_key.referenced, text, source),
                    name: raw_key.value,
                };
                let value = place(raw_value, text, source, problems);
                let first = match few {
                    true => pairs
                        .iter()
                        .find(|(known, _)| known.name == key.name)
                        .map(|(known, _)| known.span),
                    false => seen.insert(key.name.clone(), key.span),
                };
                if let Some(first) = first {
                    problems.push(
                        Problem::at(
                            "duplicate-key",
                            key.span,
                            format!("`{}` is given twice", key.name),
                        )
                        .other(first, "first given here")
                        .help("remove one of the two, or give it another name"),
                    );
                } else {
                    pairs.push((key, value));
                }
            }
            NodeKind::Map(pairs)
        }
    };
    Node { kind, span }
}

fn span_of(location: &serde_saphyr::Location, text: &str, source: usize) -> Span {
    let span = location.span();
    match (span.byte_offset(), span.byte_len()) {
        (Some(start), Some(length)) => {
            let start = (start as usize).min(text.len());
            // A collection's span may run over the line's end or following comments: the first line is enough to point at.
            let rest =
                &text[floor(text, start)..floor(text, (start + length as usize).min(text.len()))];
            let end = start + rest.lines().next().unwrap_or("").trim_end().len();
            let end = closing_bracket(text, start).unwrap_or(end);
            Span {
                source,
                start,
                end: end.max(next_char(text, start)),
            }
        }
        _ => {
            // Errors know their line and column only.
            let line_start: usize = text
                .split_inclusive('\n')
                .take((location.line() as usize).saturating_sub(1))
                .map(str::len)
                .sum();
            let line = text[line_start..].lines().next().unwrap_or("");
            let column = (location.column() as usize).saturating_sub(1);
            let start = line_start
                + line
                    .char_indices()
                    .nth(column)
                    .map_or(line.len(), |(i, _)| i);
            Span {
                source,
                start,
                end: next_char(text, start),
            }
        }
    }
}

/// One past the bracket that closes the one at `start`, when it stands on the same line.
fn closing_bracket(text: &str, start: usize) -> Option<usize> {
    let line = text.get(start..)?.lines().next()?;
    if !line.starts_with(['[', '{']) {
        return None;
    }
    let (mut depth, mut quote) = (0, None);
    for (i, c) in line.char_indices() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(start + i + c.len_utf8());
        }
    }
    None
}

/// The offset after the character at `start`; the text's end when there is none.
fn next_char(text: &str, start: usize) -> usize {
    text.get(start..)
        .and_then(|rest| rest.chars().next())
        .map_or(text.len(), |c| start + c.len_utf8())
}

fn syntax_problem(error: &serde_saphyr::Error, text: &str, source: usize) -> Problem {
    let inner = error.without_snippet();
    let span = inner.location().map_or(
        Span {
            source,
            start: 0,
            end: 0,
        },
        |l| span_of(&l, text, source),
    );
    let full = inner.to_string();
    // The place is told by the span.
    let message = full
        .lines()
        .next()
        .unwrap_or("not YAML")
        .split(" at line ")
        .next()
        .unwrap_or("not YAML");
    let has = |word: &str| message.contains(word);
    if has("Documents {") {
        let help = "remove `---` and what follows, or write it into a file of its own";
        return Problem::at(
            "yaml",
            span,
            "the file holds several YAML documents, and a recipe is one",
        )
        .help(help);
    }
    if has("Depth {") {
        return Problem::at(
            "too-large",
            span,
            format!("the recipe nests deeper than {MAX_DEPTH} levels"),
        );
    }
    if has("budget") {
        let message = format!(
            "the recipe has more than {MAX_NODES} values, aliases counted as often as they are used"
        );
        return Problem::at("too-large", span, message);
    }
    let help = if has("tab") {
        "YAML is indented with spaces, not tabs"
    } else if has("unclosed quote") {
        "close the quote, or write a quote inside a text in the other kind of quotes"
    } else if has("unknown anchor") {
        "a text that begins with `*` needs quotes; an alias needs its `&anchor` before it"
    } else if has("bracket") || has("flow ") {
        "a `{` or `[` is not closed, or a `,` is missing"
    } else if has("did not find expected key") {
        "the keys of one mapping begin in the same column"
    } else {
        "a text that holds `: ` or `#`, or begins with a sign such as `*`, `&`, `@`, `{`, needs quotes"
    };
    Problem::at(
        "yaml",
        span,
        format!("the recipe is not readable YAML: {message}"),
    )
    .help(help)
}

fn floor(text: &str, offset: usize) -> usize {
    let mut at = offset.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        parse(text, 0).unwrap().0.to_value()
    }

    #[test]
    fn scalars_have_their_types() {
        assert_eq!(
            value("a: 1\nb: 2.0e-4\nc: yes\nd: 'true'\ne: true\nf:\ng: 1e-4\nh: [x, 2]\n"),
            serde_json::json!({"a": 1, "b": 2.0e-4, "c": "yes", "d": "true", "e": true, "f": null, "g": 1e-4, "h": ["x", 2]})
        );
    }

    #[test]
    fn places_are_bytes() {
        let text = "# é\nstages:\n  one: { kind: split }\n";
        let (node, _) = parse(text, 0).unwrap();
        let kind = node
            .get("stages")
            .unwrap()
            .get("one")
            .unwrap()
            .get("kind")
            .unwrap();
        assert_eq!(&text[kind.span.start..kind.span.end], "split");
    }

    #[test]
    fn a_key_given_twice_is_seen() {
        let (_, problems) = parse("a: 1\nb: 2\na: 3\n", 0).unwrap();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].code, "duplicate-key");
    }

    #[test]
    fn bombs_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..9 {
            let r = format!("*a{}", i - 1);
            text.push_str(&format!("a{i}: &a{i} [{}]\n", [r.as_str(); 9].join(", ")));
        }
        assert!(parse(&text, 0).is_err());
        assert!(parse(&"[".repeat(1000), 0).is_err());
        let deep = format!("{}x{}", "[".repeat(100), "]".repeat(100));
        assert_eq!(parse(&deep, 0).unwrap_err().code, "too-large");
    }
}

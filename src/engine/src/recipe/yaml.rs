//! YAML text → a tree whose every node knows its place. The only module that knows the YAML library.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};

use crate::diagnostic::{Problem, Span};

/// The largest recipe that is read, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// The deepest nesting that is read.
pub const MAX_DEPTH: usize = 32;
/// The most nodes that are read, aliases counted as often as they are used.
pub const MAX_NODES: usize = 500_000;
/// Up to so many keys are looked through rather than hashed: a stage has few words.
const FEW: usize = 16;

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
    let reader = Reader {
        text,
        source,
        problems: RefCell::default(),
    };
    let (kind, span) =
        serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
            reader.placed(Kind(&reader)).deserialize(deserializer)
        })
        .map_err(|e| syntax_problem(&e, text, source))?;
    Ok((Node { kind, span }, reader.problems.into_inner()))
}

/// What is known while a tree is read.
struct Reader<'t> {
    text: &'t str,
    source: usize,
    /// Mistakes that are not the syntax's.
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Reader<'t> {
    fn placed<S>(&self, seed: S) -> Placed<'_, 't, S> {
        Placed { reader: self, seed }
    }
}

/// Reads something with its place. This is what `serde_saphyr::Spanned` does, whose value can't be told what it belongs to: the
/// library takes a newtype of this name for a mapping from `value`, `referenced` and `defined`, in this order after a mark.
/// The place of a definition is passed over; of an alias, the place where it is used is the one that a message is about.
struct Placed<'r, 't, S> {
    reader: &'r Reader<'t>,
    seed: S,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Placed<'_, '_, S> {
    type Value = (S::Value, Span);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_newtype_struct("__yaml_spanned", self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for Placed<'_, '_, S> {
    type Value = (S::Value, Span);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value with its place")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        access.next_entry::<IgnoredAny, IgnoredAny>()?;
        access.next_key::<IgnoredAny>()?;
        let value = access.next_value_seed(self.seed)?;
        access.next_key::<IgnoredAny>()?;
        let location = access.next_value()?;
        Ok((
            value,
            span_of(&location, self.reader.text, self.reader.source),
        ))
    }
}

/// Reads what a value is.
struct Kind<'r, 't>(&'r Reader<'t>);

impl<'de> DeserializeSeed<'de> for Kind<'_, '_> {
    type Value = NodeKind;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<NodeKind, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Kind<'_, '_> {
    type Value = NodeKind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<NodeKind, E> {
        Ok(NodeKind::Null)
    }

    fn visit_none<E>(self) -> Result<NodeKind, E> {
        Ok(NodeKind::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<NodeKind, E> {
        Ok(NodeKind::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<NodeKind, E> {
        Ok(NodeKind::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<NodeKind, E> {
        // Beyond i64 it can only be a mistake; as a float it is out of every whole number's range.
        Ok(i64::try_from(value).map_or(NodeKind::Number(value as f64), NodeKind::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<NodeKind, E> {
        Ok(NodeKind::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<NodeKind, E> {
        Ok(NodeKind::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<NodeKind, E> {
        Ok(NodeKind::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<NodeKind, A::Error> {
        let mut items = Vec::new();
        while let Some((kind, span)) = access.next_element_seed(self.0.placed(Kind(self.0)))? {
            items.push(Node { kind, span });
        }
        Ok(NodeKind::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<NodeKind, A::Error> {
        let mut pairs = Vec::new();
        let mut places: HashMap<String, Span> = HashMap::new();
        while let Some((name, span)) = access.next_key_seed(self.0.placed(PhantomData::<String>))? {
            let key = Key { name, span };
            let (kind, span) = access.next_value_seed(self.0.placed(Kind(self.0)))?;
            let first = if pairs.len() < FEW {
                let known = |(known, _): &&(Key, Node)| known.name == key.name;
                pairs.iter().find(known).map(|(known, _)| known.span)
            } else {
                if places.is_empty() {
                    places.extend(
                        pairs
                            .iter()
                            .map(|(known, _)| (known.name.clone(), known.span)),
                    );
                }
                match places.entry(key.name.clone()) {
                    Entry::Occupied(first) => Some(*first.get()),
                    Entry::Vacant(place) => {
                        place.insert(key.span);
                        None
                    }
                }
            };
            match first {
                Some(first) => self.0.problems.borrow_mut().push(
                    Problem::at(
                        "duplicate-key",
                        key.span,
                        format!("`{}` is given twice", key.name),
                    )
                    .other(first, "first given here")
                    .help("remove one of the two, or give it another name"),
                ),
                None => pairs.push((key, Node { kind, span })),
            }
        }
        Ok(NodeKind::Map(pairs))
    }
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
    let rest = text.as_bytes().get(start..)?;
    if !matches!(rest.first(), Some(b'[' | b'{')) {
        return None;
    }
    let (mut depth, mut quote) = (0, None);
    for (i, &c) in rest.iter().take_while(|c| **c != b'\n').enumerate() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(c),
            (None, b'[' | b'{') => depth += 1,
            (None, b']' | b'}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(start + i + 1);
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
    fn everything_has_its_own_place() {
        let text = "one: &x { a: [1, zwei] }\ntwo: *x\nthree: { <<: *x, b: }\n";
        let (node, problems) = parse(text, 0).unwrap();
        assert!(problems.is_empty());
        fn places<'t>(node: &Node, text: &'t str, found: &mut Vec<&'t str>) {
            found.push(&text[node.span.start..node.span.end]);
            match &node.kind {
                NodeKind::List(items) => items.iter().for_each(|n| places(n, text, found)),
                NodeKind::Map(pairs) => pairs.iter().for_each(|(key, n)| {
                    found.push(&text[key.span.start..key.span.end]);
                    places(n, text, found);
                }),
                _ => {}
            }
        }
        let mut found = Vec::new();
        places(&node, text, &mut found);
        // A block has its first letter; what an alias stands for has the alias's place.
        let expected = [
            "o",
            "one",
            "{ a: [1, zwei] }",
            "a",
            "[1, zwei]",
            "1",
            "zwei",
            "two",
            "*x",
            "*x",
            "*x",
            "*x",
            "*x",
            "three",
            "{ <<: *x, b: }",
            "b",
            ":",
            "*x",
            "*x",
            "*x",
            "*x",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_key_given_twice_is_seen() {
        for others in [0, 100] {
            let others: String = (0..others).map(|i| format!("k{i}: 1\n")).collect();
            let text = format!("a: 1\nb: 2\n{others}a: 3\na: 4\n");
            let (node, problems) = parse(&text, 0).unwrap();
            assert_eq!(node.get("a").unwrap().to_value(), 1);
            assert_eq!(problems.len(), 2);
            for problem in problems {
                assert_eq!(problem.code, "duplicate-key");
                let (first, _) = problem.others[0];
                assert_eq!((first.start, first.end), (0, 1));
            }
        }
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

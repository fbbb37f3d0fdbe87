//! `${params.x}`: the value of a parameter. A text that is nothing else takes the parameter's value and type; inside a longer
//! text it is written out. `${round}` and `${matrix.x}` are put in where a group is unrolled.

use std::collections::{BTreeMap, BTreeSet};

use super::yaml::{Node, NodeKind};
use crate::diagnostic::{Problem, Span, nearest};

/// What `${…}` may name, by the full name: `params.lr`, `matrix.size`, `round`.
pub(super) type Values = BTreeMap<String, Node>;

/// The names in every `${…}`. Asked before options are applied: one that takes a parameter's place makes it no mistake.
pub(super) fn named(node: &Node, found: &mut BTreeSet<String>) {
    match &node.kind {
        NodeKind::List(items) => items.iter().for_each(|n| named(n, found)),
        NodeKind::Map(pairs) => pairs.iter().for_each(|(_, n)| named(n, found)),
        NodeKind::Text(text) => {
            let names = text
                .split("${")
                .skip(1)
                .filter_map(|rest| rest.split_once('}'));
            found.extend(names.map(|(name, _)| name.trim().to_owned()));
        }
        _ => {}
    }
}

/// Replaces every `${params.x}` outside of `params`; those in `before` were used before options were applied. Returns the
/// places where it could not.
pub(super) fn substitute(
    root: &mut Node,
    before: &BTreeSet<String>,
    problems: &mut Vec<Problem>,
) -> Vec<Span> {
    let mut values = Values::new();
    let mut declared = Vec::new();
    match root.get("params").map(|n| (&n.kind, n)) {
        None | Some((NodeKind::Null, _)) => {}
        Some((NodeKind::Map(pairs), _)) => {
            for (key, value) in pairs {
                declared.push((format!("params.{}", key.name), key.span));
                values.insert(format!("params.{}", key.name), value.clone());
            }
        }
        Some((_, node)) => problems.push(super::read::wrong_type(
            "params",
            "a mapping from names to values",
            node,
        )),
    }
    let mut filling = Filling {
        values: &values,
        later: |name| name == "round" || name.starts_with("matrix."),
        used: BTreeSet::new(),
        failed: Vec::new(),
    };
    let NodeKind::Map(pairs) = &mut root.kind else {
        return filling.failed;
    };
    for (key, node) in pairs.iter_mut().filter(|(k, _)| k.name != "params") {
        if key.name != "levain" {
            filling.walk(node, problems);
        }
    }
    declared.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, span) in declared
        .iter()
        .filter(|(name, _)| !filling.used.contains(name) && !before.contains(name))
    {
        let short = name.trim_start_matches("params.");
        let message = format!("the parameter `{short}` is used nowhere");
        problems.push(
            Problem::at("unused-parameter", *span, message)
                .help(format!("use it as \"${{{name}}}\", or remove it")),
        );
    }
    filling.failed
}

/// Puts in `${round}` and `${matrix.x}`, in a stage or in a word of a group. Returns the places where it could not.
pub(super) fn fill(node: &mut Node, values: &Values, problems: &mut Vec<Problem>) -> Vec<Span> {
    let mut filling = Filling {
        values,
        later: |_| false,
        used: BTreeSet::new(),
        failed: Vec::new(),
    };
    filling.walk(node, problems);
    filling.failed
}

/// Whether anything is left to be put in.
pub(super) fn has_marks(node: &Node) -> bool {
    match &node.kind {
        NodeKind::List(items) => items.iter().any(has_marks),
        NodeKind::Map(pairs) => pairs.iter().any(|(_, n)| has_marks(n)),
        NodeKind::Text(text) => text.contains("${"),
        _ => false,
    }
}

struct Filling<'a> {
    values: &'a Values,
    /// Names that are known only where a group is unrolled.
    later: fn(&str) -> bool,
    used: BTreeSet<String>,
    failed: Vec<Span>,
}

impl Filling<'_> {
    fn walk(&mut self, node: &mut Node, problems: &mut Vec<Problem>) {
        match &mut node.kind {
            NodeKind::List(items) => items.iter_mut().for_each(|n| self.walk(n, problems)),
            NodeKind::Map(pairs) => pairs.iter_mut().for_each(|(_, n)| self.walk(n, problems)),
            NodeKind::Text(text) if text.contains("${") => {
                let text = text.clone();
                match self.replace(&text, node, problems) {
                    Some((kind, span)) => {
                        node.kind = kind;
                        node.span = span;
                    }
                    None => self.failed.push(node.span),
                }
            }
            _ => {}
        }
    }

    fn replace(
        &mut self,
        text: &str,
        node: &Node,
        problems: &mut Vec<Problem>,
    ) -> Option<(NodeKind, Span)> {
        // What an option gave is wrong in the option, not where the recipe uses it.
        let mut place = node.span;
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            out.push_str(&rest[..at]);
            let Some(end) = rest[at..].find('}') else {
                problems.push(
                    Problem::at("bad-reference", node.span, "`${` is not closed")
                        .help("write \"${params.name}\""),
                );
                return None;
            };
            let name = rest[at + 2..at + end].trim();
            let whole = at == 0 && at + end + 1 == text.len();
            if (self.later)(name) {
                out.push_str(&rest[at..=at + end]);
                rest = &rest[at + end + 1..];
                continue;
            }
            rest = &rest[at + end + 1..];
            let Some(value) = self.values.get(name) else {
                problems.push(self.unknown(name, node.span));
                return None;
            };
            self.used.insert(name.to_owned());
            if value.span.source != 0 {
                place = value.span;
            }
            if whole {
                return Some((value.kind.clone(), place));
            }
            match &value.kind {
                NodeKind::Text(t) => out.push_str(t),
                NodeKind::Bool(_) | NodeKind::Integer(_) | NodeKind::Number(_) => {
                    out.push_str(&value.to_value().to_string())
                }
                _ => {
                    let message = format!(
                        "the parameter `{}` is {}; only a text or a number fits inside a text",
                        name.trim_start_matches("params."),
                        value.describe()
                    );
                    problems.push(Problem::at("wrong-type", node.span, message));
                    return None;
                }
            }
        }
        out.push_str(rest);
        Some((NodeKind::Text(out), place))
    }

    fn unknown(&self, name: &str, span: Span) -> Problem {
        let of = |prefix: &'static str| {
            self.values
                .keys()
                .filter_map(move |known| known.strip_prefix(prefix))
        };
        let (message, help) = if let Some(own) = name.strip_prefix("params.") {
            let help = nearest(own, of("params.")).map_or_else(
                || format!("declare it: `params: {{ {own}: … }}`"),
                |w| format!("did you mean `{w}`?"),
            );
            (format!("there is no parameter `{own}`"), help)
        } else if let Some(axis) = name.strip_prefix("matrix.") {
            let axes: Vec<&str> = of("matrix.").collect();
            let help = match nearest(axis, axes.iter().copied()) {
                Some(word) => format!("did you mean `${{matrix.{word}}}`?"),
                None if axes.is_empty() => "only stages in a `matrix` have one".to_owned(),
                None => format!("its axes are {}", axes.join(", ")),
            };
            (
                format!("there is no matrix with an axis `{axis}` here"),
                help,
            )
        } else if name == "round" {
            let help = "only stages in a `repeat` have one".to_owned();
            ("there are no rounds here".to_owned(), help)
        } else {
            let help =
                "write `${params.name}`; in a group also `${round}` or `${matrix.axis}`".to_owned();
            (format!("`${{{name}}}` is not a parameter"), help)
        };
        Problem::at("bad-reference", span, message).help(help)
    }
}

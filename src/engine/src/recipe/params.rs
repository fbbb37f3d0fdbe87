//! `${params.x}`: the value of a parameter. A text that is nothing else takes the parameter's value and type; inside a longer
//! text it is written out.

use std::collections::BTreeMap;

use super::yaml::{Node, NodeKind};
use crate::diagnostic::{Problem, Span, nearest};

/// Replaces every `${params.x}` outside of `params`. Returns the places where it could not.
pub(super) fn substitute(root: &mut Node, problems: &mut Vec<Problem>) -> Vec<Span> {
    let mut values = BTreeMap::new();
    let mut used = std::collections::BTreeSet::new();
    match root.get("params").map(|n| (&n.kind, n)) {
        None | Some((NodeKind::Null, _)) => {}
        Some((NodeKind::Map(pairs), _)) => {
            for (key, value) in pairs {
                values.insert(key.name.clone(), (key.span, value.clone()));
            }
        }
        Some((_, node)) => problems.push(super::read::wrong_type(
            "params",
            "a mapping from names to values",
            node,
        )),
    }
    let mut failed = Vec::new();
    let NodeKind::Map(pairs) = &mut root.kind else {
        return failed;
    };
    for (key, node) in pairs.iter_mut().filter(|(k, _)| k.name != "params") {
        if key.name != "levain" {
            walk(node, &values, &mut used, &mut failed, problems);
        }
    }
    for (name, (span, _)) in values.iter().filter(|(name, _)| !used.contains(*name)) {
        let message = format!("the parameter `{name}` is used nowhere");
        problems.push(
            Problem::at("unused-parameter", *span, message)
                .help(format!("use it as \"${{params.{name}}}\", or remove it")),
        );
    }
    failed
}

type Values = BTreeMap<String, (Span, Node)>;

fn walk(
    node: &mut Node,
    values: &Values,
    used: &mut std::collections::BTreeSet<String>,
    failed: &mut Vec<Span>,
    problems: &mut Vec<Problem>,
) {
    match &mut node.kind {
        NodeKind::List(items) => items
            .iter_mut()
            .for_each(|n| walk(n, values, used, failed, problems)),
        NodeKind::Map(pairs) => pairs
            .iter_mut()
            .for_each(|(_, n)| walk(n, values, used, failed, problems)),
        NodeKind::Text(text) if text.contains("${") => {
            let text = text.clone();
            match replace(&text, node, values, used, problems) {
                Some(kind) => node.kind = kind,
                None => failed.push(node.span),
            }
        }
        _ => {}
    }
}

fn replace(
    text: &str,
    node: &Node,
    values: &Values,
    used: &mut std::collections::BTreeSet<String>,
    problems: &mut Vec<Problem>,
) -> Option<NodeKind> {
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
        let inner = rest[at + 2..at + end].trim();
        let whole = at == 0 && at + end + 1 == text.len();
        rest = &rest[at + end + 1..];
        let Some(name) = inner.strip_prefix("params.") else {
            let message = format!("`${{{inner}}}` is not a parameter");
            problems.push(
                Problem::at("bad-reference", node.span, message)
                    .help("only `${params.name}` can be used"),
            );
            return None;
        };
        let Some((_, value)) = values.get(name) else {
            let near = nearest(name, values.keys().map(String::as_str));
            let help = near.map_or_else(
                || format!("declare it: `params: {{ {name}: … }}`"),
                |w| format!("did you mean `{w}`?"),
            );
            problems.push(
                Problem::at(
                    "bad-reference",
                    node.span,
                    format!("there is no parameter `{name}`"),
                )
                .help(help),
            );
            return None;
        };
        used.insert(name.to_owned());
        if whole {
            return Some(value.kind.clone());
        }
        match &value.kind {
            NodeKind::Text(t) => out.push_str(t),
            NodeKind::Bool(_) | NodeKind::Integer(_) | NodeKind::Number(_) => {
                out.push_str(&value.to_value().to_string())
            }
            _ => {
                let message = format!(
                    "the parameter `{name}` is {}; only a text or a number fits inside a text",
                    value.describe()
                );
                problems.push(Problem::at("wrong-type", node.span, message));
                return None;
            }
        }
    }
    out.push_str(rest);
    Some(NodeKind::Text(out))
}

//! `--set a.b=c`: changes one value of the recipe; mistakes point at the option.

use super::yaml::{self, Key, Node, NodeKind};
use crate::diagnostic::{Problem, Span, nearest};

/// Applies the option `text`, whose spans say `source`. A path starts at the recipe's top (`params.lr`, `stages.sft.epochs`,
/// `seed`); a stage's name may stand first as a shorthand (`sft.epochs`).
pub(super) fn apply(
    root: &mut Node,
    text: &str,
    source: usize,
    top: &[&str],
    problems: &mut Vec<Problem>,
) {
    let whole = Span {
        source,
        start: 0,
        end: text.len(),
    };
    let Some((path, value)) = text.split_once('=') else {
        let help = "write `--set params.lr=1e-4`";
        problems.push(
            Problem::at(
                "bad-option",
                whole,
                "an option to set has the form `path=value`",
            )
            .help(help),
        );
        return;
    };
    let mut parts = Vec::new();
    let mut start = 0;
    for part in path.split('.') {
        parts.push(Key {
            name: part.to_owned(),
            span: Span {
                source,
                start,
                end: start + part.len(),
            },
        });
        start += part.len() + 1;
    }
    if parts.iter().any(|p| p.name.is_empty()) {
        problems.push(
            Problem::at("bad-option", whole, format!("`{path}` has an empty part"))
                .help("write `--set params.lr=1e-4`"),
        );
        return;
    }
    if value.trim().is_empty() {
        let message = format!("`{path}` is set to nothing");
        let help = "give a value; `null` takes one away";
        problems.push(Problem::at("bad-option", whole, message).help(help));
        return;
    }
    let value = match yaml::parse(value, source) {
        Ok((node, _)) => shift(node, path.len() + 1, text.len()),
        Err(mut problem) => {
            problem.span = problem.span.map(|s| moved(s, path.len() + 1, text.len()));
            problem.message = problem.message.replace("the recipe", "the value");
            problems.push(problem);
            return;
        }
    };
    let first = parts[0].name.clone();
    if !top.contains(&first.as_str()) {
        let stages = root.get("stages");
        if stages.and_then(|s| s.get(&first)).is_none() {
            let names = stage_names(stages);
            let words = top.iter().copied().chain(names.iter().map(String::as_str));
            let help = nearest(&first, words).map(|w| format!("did you mean `{w}`?"));
            let message =
                format!("`{first}` is neither a part of a recipe nor a stage of this one");
            problems.push(Problem::at("unknown-key", parts[0].span, message).maybe_help(help));
            return;
        }
        parts.insert(
            0,
            Key {
                name: "stages".to_owned(),
                span: parts[0].span,
            },
        );
    }
    insert(root, &parts, value, problems);
}

fn insert(node: &mut Node, parts: &[Key], value: Node, problems: &mut Vec<Problem>) {
    let (key, rest) = (&parts[0], &parts[1..]);
    let span = key.span;
    let NodeKind::Map(pairs) = &mut node.kind else {
        let message = format!(
            "`{}` can't be set: what it should be part of is {}",
            key.name,
            node.describe()
        );
        problems.push(Problem::at("bad-option", span, message));
        return;
    };
    let at = pairs.iter().position(|(k, _)| k.name == key.name);
    match (at, rest.is_empty()) {
        (Some(i), true) => {
            pairs[i].0.span = span;
            pairs[i].1 = value;
        }
        (None, true) => pairs.push((key.clone(), value)),
        (Some(i), false) => insert(&mut pairs[i].1, rest, value, problems),
        (None, false) => {
            let help = nearest(&key.name, pairs.iter().map(|(k, _)| k.name.as_str()))
                .map(|w| format!("did you mean `{w}`?"));
            problems.push(
                Problem::at(
                    "unknown-key",
                    span,
                    format!("the recipe has no `{}` here", key.name),
                )
                .maybe_help(help),
            );
        }
    }
}

fn stage_names(stages: Option<&Node>) -> Vec<String> {
    match stages.map(|s| &s.kind) {
        Some(NodeKind::Map(pairs)) => pairs.iter().map(|(k, _)| k.name.clone()).collect(),
        _ => Vec::new(),
    }
}

fn moved(span: Span, by: usize, limit: usize) -> Span {
    Span {
        source: span.source,
        start: (span.start + by).min(limit),
        end: (span.end + by).min(limit),
    }
}

fn shift(mut node: Node, by: usize, limit: usize) -> Node {
    node.span = moved(node.span, by, limit);
    node.kind = match node.kind {
        NodeKind::List(items) => {
            NodeKind::List(items.into_iter().map(|n| shift(n, by, limit)).collect())
        }
        NodeKind::Map(pairs) => NodeKind::Map(
            pairs
                .into_iter()
                .map(|(k, v)| {
                    (
                        Key {
                            span: moved(k.span, by, limit),
                            name: k.name,
                        },
                        shift(v, by, limit),
                    )
                })
                .collect(),
        ),
        scalar => scalar,
    };
    node
}

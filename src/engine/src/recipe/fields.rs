//! One stage's parameters against its contract: unknown words, missing fields, types, ranges, defaults.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::read::{key_span, wrong_type};
use super::yaml::{Key, Node, NodeKind};
use crate::contract::{Contract, Contracts, Field, FieldType, Need};
use crate::diagnostic::{Problem, Span, nearest};
use crate::source::{SourceSpec, parse_spec};

/// What was read of a stage, its ports aside.
pub(super) struct Fields {
    pub params: Map<String, Value>,
    pub sources: BTreeMap<&'static str, SourceSpec>,
    pub spans: BTreeMap<String, Span>,
}

/// The contract that `kind:` names.
pub(super) fn kind_of(
    key: &Key,
    body: &Node,
    contracts: Contracts,
    problems: &mut Vec<Problem>,
) -> Option<&'static Contract> {
    if !matches!(body.kind, NodeKind::Map(_)) {
        let message = format!(
            "the stage `{}` is a mapping with a `kind`, not {}",
            key.name,
            body.describe()
        );
        let help = format!("write `{}: {{ kind: … }}`", key.name);
        problems.push(Problem::at("wrong-type", key_span(key), message).help(help));
        return None;
    }
    let Some(kind) = body.get("kind") else {
        let message = format!("the stage `{}` does not say its kind", key.name);
        let help = format!(
            "add `kind:` with one of {}",
            kind_names(contracts).join(", ")
        );
        problems.push(Problem::at("missing-field", key_span(key), message).help(help));
        return None;
    };
    let NodeKind::Text(name) = &kind.kind else {
        problems.push(wrong_type("kind", "a word", kind));
        return None;
    };
    let found = contracts.kind(name);
    if found.is_none() {
        let near = nearest(name, kind_names(contracts));
        let help = near.map_or_else(
            || format!("known kinds: {}", kind_names(contracts).join(", ")),
            |w| format!("did you mean `{w}`?"),
        );
        problems.push(
            Problem::at(
                "unknown-kind",
                kind.span,
                format!("there is no kind `{name}`"),
            )
            .help(help),
        );
    }
    found
}

fn kind_names(contracts: Contracts) -> Vec<&'static str> {
    contracts.kinds.iter().map(|c| c.kind).collect()
}

/// Reads every field of `body`.
pub(super) fn read(
    body: &Node,
    key: &Key,
    contract: &'static Contract,
    contracts: Contracts,
    seed: u64,
    problems: &mut Vec<Problem>,
) -> Fields {
    let mut fields = Fields {
        params: Map::new(),
        sources: BTreeMap::new(),
        spans: BTreeMap::new(),
    };
    let NodeKind::Map(pairs) = &body.kind else {
        return fields;
    };
    for (word, value) in pairs {
        fields.spans.insert(word.name.clone(), value.span);
        // `when` was read before: a stage that is here is to be here.
        if word.name != "when" && !contract.words().any(|w| w == word.name) {
            let help =
                nearest(&word.name, contract.words()).map(|w| format!("did you mean `{w}`?"));
            let help = help.unwrap_or_else(|| {
                let words: Vec<_> = contract.words().collect();
                format!("`{}` knows {}", contract.kind, words.join(", "))
            });
            let message = format!(
                "`{}` is not a word of the kind `{}`",
                word.name, contract.kind
            );
            problems.push(Problem::at("unknown-key", word.span, message).help(help));
        }
    }
    let before = problems.len();
    for field in contract.fields {
        let given = body
            .get(field.name)
            .filter(|n| !matches!(n.kind, NodeKind::Null));
        let value = match (given, field.need, &field.ty) {
            (Some(node), _, FieldType::Source) => read_source(field, node, &mut fields, problems),
            (Some(node), ..) => {
                read_value(field.name, &field.ty, node, problems).unwrap_or(Value::Null)
            }
            (None, _, FieldType::Seed) => seed.into(),
            (None, Need::Default(literal), _) => literal.value(),
            (None, Need::Optional, _) => Value::Null,
            (None, Need::Required, _) => {
                let message = format!("the stage `{}` needs `{}`", key.name, field.name);
                problems.push(Problem::at("missing-field", key_span(key), message).help(field.doc));
                Value::Null
            }
        };
        fields.params.insert(field.name.to_owned(), value);
    }
    if problems.len() == before {
        for (name, message) in contracts.mistakes(contract, &fields.params) {
            let span = fields.spans.get(name).copied().unwrap_or(key_span(key));
            problems.push(Problem::at("out-of-range", span, message));
        }
    }
    fields
}

fn read_source(
    field: &'static Field,
    node: &Node,
    fields: &mut Fields,
    problems: &mut Vec<Problem>,
) -> Value {
    match parse_spec(&node.to_value()) {
        Ok(spec) => {
            fields.sources.insert(field.name, spec);
        }
        Err(message) => problems.push(Problem::at("bad-source", node.span, message)),
    }
    node.to_value()
}

fn read_value(
    name: &str,
    ty: &FieldType,
    node: &Node,
    problems: &mut Vec<Problem>,
) -> Option<Value> {
    let mut found = Vec::new();
    let value = fit(name, ty, node, &mut found);
    problems.extend(found);
    value
}

fn fit(name: &str, ty: &FieldType, node: &Node, problems: &mut Vec<Problem>) -> Option<Value> {
    match (ty, &node.kind) {
        (FieldType::Bool, NodeKind::Bool(b)) => Some((*b).into()),
        (FieldType::Integer { min, max }, NodeKind::Integer(i)) => {
            in_range(
                name,
                (min..=max).contains(&i),
                || bounds(*min as f64, *max as f64, false),
                node,
                problems,
            )?;
            Some((*i).into())
        }
        // A whole number that no whole number here can be.
        (FieldType::Integer { min, max }, NodeKind::Number(x))
            if x.is_finite() && x.fract() == 0.0 && x.abs() > i64::MAX as f64 =>
        {
            let range = if *x > 0.0 {
                format!("at most {max}")
            } else {
                format!("at least {min}")
            };
            in_range(name, false, || range, node, problems)?;
            None
        }
        (FieldType::Number { min, max, above }, NodeKind::Integer(_) | NodeKind::Number(_)) => {
            let x = match node.kind {
                NodeKind::Integer(i) => i as f64,
                NodeKind::Number(x) => x,
                _ => return None,
            };
            let fits = x <= *max && if *above { x > *min } else { x >= *min };
            in_range(
                name,
                x.is_finite(),
                || "a finite number".to_owned(),
                node,
                problems,
            )?;
            in_range(name, fits, || bounds(*min, *max, *above), node, problems)?;
            Some(x.into())
        }
        (FieldType::Text | FieldType::Metric { .. }, NodeKind::Text(text)) if !text.is_empty() => {
            Some(text.as_str().into())
        }
        (FieldType::Text, NodeKind::Text(_)) => {
            let message = format!("a text in `{name}` is empty");
            problems.push(Problem::at("out-of-range", node.span, message));
            None
        }
        (FieldType::Choice(choices), NodeKind::Text(text)) => {
            if choices.iter().any(|c| c.word == text) {
                return Some(text.as_str().into());
            }
            let words: Vec<_> = choices.iter().map(|c| c.word).collect();
            let help = nearest(text, words.iter().copied()).map(|w| format!("did you mean `{w}`?"));
            let message = format!("`{name}` is one of {}, not `{text}`", words.join(", "));
            problems.push(Problem::at("out-of-range", node.span, message).maybe_help(help));
            None
        }
        (FieldType::List { of, min }, NodeKind::List(items)) => {
            if items.len() < *min {
                let message = format!(
                    "`{name}` has at least {min} {}, not {}",
                    if *min == 1 { "entry" } else { "entries" },
                    items.len()
                );
                problems.push(Problem::at("out-of-range", node.span, message));
                return None;
            }
            items
                .iter()
                .map(|item| fit(name, of, item, problems))
                .collect::<Option<Vec<_>>>()
                .map(Value::Array)
        }
        (FieldType::Program { .. }, NodeKind::List(items)) if !items.is_empty() => items
            .iter()
            .map(|item| fit(name, &FieldType::Text, item, problems))
            .collect::<Option<Vec<_>>>()
            .map(Value::Array),
        (FieldType::Map { of, .. }, NodeKind::Map(pairs)) => {
            let mut map = Map::new();
            for (key, value) in pairs {
                map.insert(key.name.clone(), fit(&key.name, of, value, problems)?);
            }
            Some(Value::Object(map))
        }
        (FieldType::Seed, NodeKind::Integer(i)) => {
            in_range(name, *i >= 0, || "0 or more".to_owned(), node, problems)?;
            Some((*i).into())
        }
        (FieldType::Either(types), _) => {
            let mut tried = Vec::new();
            for ty in *types {
                let mut found = Vec::new();
                let value = fit(name, ty, node, &mut found);
                if value.is_some() {
                    return value;
                }
                tried.push(found);
            }
            let number = matches!(node.kind, NodeKind::Integer(_) | NodeKind::Number(_));
            // A value of the right shape with a wrong content says more than a list of shapes.
            let telling = tried
                .into_iter()
                .find(|found| found.iter().any(|p| p.code != "wrong-type"));
            problems.extend(
                match (
                    telling,
                    types.iter().map(range_of).collect::<Option<Vec<_>>>(),
                ) {
                    (Some(_), Some(ranges)) if number => {
                        let message = format!(
                            "`{name}` is {}, not {}",
                            ranges.join(", or "),
                            node.describe()
                        );
                        vec![Problem::at("out-of-range", node.span, message)]
                    }
                    (Some(found), _) => found,
                    (None, _) => vec![wrong_type(name, &expected(ty), node)],
                },
            );
            None
        }
        _ => {
            problems.push(wrong_type(name, &expected(ty), node));
            None
        }
    }
}

fn in_range(
    name: &str,
    fits: bool,
    range: impl FnOnce() -> String,
    node: &Node,
    problems: &mut Vec<Problem>,
) -> Option<()> {
    if !fits {
        problems.push(Problem::at(
            "out-of-range",
            node.span,
            format!("`{name}` is {}, not {}", range(), node.describe()),
        ));
    }
    fits.then_some(())
}

/// A range in words.
pub(crate) fn bounds(min: f64, max: f64, above: bool) -> String {
    let low = if above {
        format!("greater than {min}")
    } else {
        format!("at least {min}")
    };
    match (
        min.is_finite() && min > i64::MIN as f64,
        max.is_finite() && max < i64::MAX as f64,
    ) {
        (true, true) => format!("{low} and at most {max}"),
        (true, false) => low,
        (false, true) => format!("at most {max}"),
        (false, false) => "a finite number".to_owned(),
    }
}

/// The range of a type of numbers in words, with the type itself.
fn range_of(ty: &FieldType) -> Option<String> {
    match ty {
        FieldType::Integer { min, max } => Some(format!(
            "a whole number {}",
            bounds(*min as f64, *max as f64, false)
        )),
        FieldType::Number { min, max, above } => {
            Some(format!("a number {}", bounds(*min, *max, *above)))
        }
        _ => None,
    }
}

/// A type in words.
pub(crate) fn expected(ty: &FieldType) -> String {
    match ty {
        FieldType::Bool => "`true` or `false`".to_owned(),
        FieldType::Integer { .. } => "a whole number".to_owned(),
        FieldType::Number { .. } => "a number".to_owned(),
        FieldType::Text => "a text".to_owned(),
        FieldType::Choice(choices) => {
            format!(
                "one of {}",
                choices
                    .iter()
                    .map(|c| format!("`{}`", c.word))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        }
        FieldType::List { of, .. } => format!("a list, each {}", expected(of)),
        FieldType::Map { of, .. } => format!("a mapping, each {}", expected(of)),
        FieldType::Either(types) => types.iter().map(expected).collect::<Vec<_>>().join(", or "),
        FieldType::Source => "a path, an address or a list of paths".to_owned(),
        FieldType::Program { .. } => "a list of words, such as `[python3]`".to_owned(),
        FieldType::Seed => "a whole number, 0 or more".to_owned(),
        FieldType::Metric { .. } => "the name of a metric".to_owned(),
    }
}

//! The way from text to a checked recipe; all independent mistakes are found in one pass.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::names::Names;
use super::unroll::{Declared, Unroll};
use super::yaml::{Key, Node, NodeKind};
use super::{Guard, Recipe, Stage, bind, fields, inputs, metrics, outputs, params, set, yaml};
use crate::contract::Contracts;
use crate::diagnostic::{Problem, Problems, SourceText, Span, nearest};

/// The version of the recipe language.
pub const VERSION: i64 = 1;

const TOP: [&str; 8] = [
    "levain", "name", "seed", "device", "threads", "params", "stages", "outputs",
];

/// Reads and checks the recipe at `path` with `--set` options. Mistakes come as [`Problems`].
pub fn read(path: &Path, options: &[String], contracts: Contracts) -> Result<Recipe> {
    let shown = path.display();
    let size = std::fs::metadata(path)
        .with_context(|| format!("{shown}: the recipe cannot be read; is the path right?"))?;
    anyhow::ensure!(
        size.is_file(),
        "{shown}: a recipe is a file, and this is not one"
    );
    anyhow::ensure!(
        size.len() <= yaml::MAX_BYTES as u64,
        "{shown}: {} bytes; a recipe has at most {}",
        size.len(),
        yaml::MAX_BYTES
    );
    let bytes =
        std::fs::read(path).with_context(|| format!("{shown}: the recipe cannot be read"))?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            // What comes before the first wrong byte is the same in both texts.
            let start = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let span = Span {
                source: 0,
                start,
                end: start + char::REPLACEMENT_CHARACTER.len_utf8(),
            };
            let problem = Problem::at(
                "not-utf-8",
                span,
                format!("the recipe is not UTF-8: byte {start} begins no character"),
            );
            let sources = vec![SourceText {
                name: shown.to_string(),
                text,
            }];
            return Err(
                Problems::new(sources, vec![problem.help("save the file as UTF-8")]).into(),
            );
        }
    };
    Ok(check_text(path, text, options, contracts)?)
}

/// The same for a text at hand.
pub fn check_text(
    path: &Path,
    text: String,
    options: &[String],
    contracts: Contracts,
) -> Result<Recipe, Problems> {
    let mut sources = vec![SourceText {
        name: path.display().to_string(),
        text,
    }];
    sources.extend(options.iter().map(|o| SourceText {
        name: "--set".to_owned(),
        text: o.clone(),
    }));
    let mut problems = Vec::new();
    let found = check_sources(path, &sources, contracts, &mut problems);
    match found {
        Some(mut recipe) if problems.is_empty() => {
            recipe.sources = sources;
            Ok(recipe)
        }
        _ => Err(Problems::new(sources, problems)),
    }
}

fn check_sources(
    path: &Path,
    sources: &[SourceText],
    contracts: Contracts,
    problems: &mut Vec<Problem>,
) -> Option<Recipe> {
    let (mut root, duplicates) = match yaml::parse(&sources[0].text, 0) {
        Ok(parsed) => parsed,
        Err(problem) => {
            problems.push(problem);
            return None;
        }
    };
    problems.extend(duplicates);
    if matches!(root.kind, NodeKind::Null) {
        let first = Span {
            source: 0,
            start: 0,
            end: sources[0].text.len().min(1),
        };
        let help = "start from `levain init`, or from a file in `recipes/`";
        problems.push(Problem::at("empty", first, "the recipe is empty").help(help));
        return None;
    }
    if !matches!(root.kind, NodeKind::Map(_)) {
        let message = format!("a recipe is a mapping, this is {}", root.describe());
        problems.push(
            Problem::at("wrong-type", root.span, message)
                .help("start with `levain: 1` and `stages:`"),
        );
        return None;
    }
    check_version(&root, problems)?;
    let mut before = BTreeSet::new();
    if sources.len() > 1 {
        params::named(&root, &mut before);
    }
    for (index, option) in sources.iter().enumerate().skip(1) {
        set::apply(&mut root, &option.text, index, &TOP, problems);
    }
    let failed = params::substitute(&mut root, &before, problems);
    let known = problems.len();
    let recipe = build(path, &root, contracts, problems);
    // Where a parameter could not be put in its place, what the place lacks is no mistake of its own.
    let mut index = 0;
    problems.retain(|p| {
        index += 1;
        index <= known || p.span.is_none_or(|s| !failed.contains(&s))
    });
    recipe
}

/// The recipe out of a tree in which options and parameters are in their places.
fn build(
    path: &Path,
    root: &Node,
    contracts: Contracts,
    problems: &mut Vec<Problem>,
) -> Option<Recipe> {
    let NodeKind::Map(pairs) = &root.kind else {
        return None;
    };
    for (key, _) in pairs {
        if !TOP.contains(&key.name.as_str()) {
            let help = nearest(&key.name, TOP).map(|w| format!("did you mean `{w}`?"));
            let message = format!("`{}` is not a part of a recipe", key.name);
            let help = help.unwrap_or_else(|| format!("a recipe has {}", TOP.join(", ")));
            problems.push(Problem::at("unknown-key", key.span, message).help(help));
        }
    }
    let stem = path
        .file_stem()
        .map_or_else(|| "recipe".to_owned(), |s| s.to_string_lossy().into_owned());
    let name = top_text(root, "name", problems).unwrap_or(stem);
    if name.chars().any(char::is_control) || name.len() > 100 {
        let span = root.get("name").map_or(root.span, |n| n.span);
        let message = "a recipe's name is one line of at most 100 bytes";
        problems.push(Problem::at("bad-name", span, message));
    }
    let seed = seed(root, problems);
    let device = device(root, problems);
    let threads = top_integer(root, "threads", 1, 4096, problems).map(|t| t as usize);
    let pairs = stage_pairs(root, problems)?;
    let mut unroll = Unroll::new(contracts, problems);
    unroll.top(pairs, seed);
    let Unroll {
        declared,
        names,
        stops,
        failed,
        ..
    } = unroll;
    let known = problems.len();
    let outputs = outputs::read(root, &names, problems);
    let guards: Vec<Option<Guard>> = stops.iter().map(|s| s.bind(&names, problems)).collect();
    let stages = read_stages(&declared, &names, &guards, contracts, problems);
    let mut index = 0;
    problems.retain(|p| {
        index += 1;
        index <= known || p.span.is_none_or(|s| !failed.contains(&s))
    });
    // Indices in bindings count declared stages: they only fit when every stage could be read.
    if stages.len() < declared.len() {
        return None;
    }
    if stages.is_empty() {
        let help = "the `when` of every stage is false: let at least one be true";
        let span = root.get("stages").map_or(root.span, |n| n.span);
        problems.push(Problem::at("empty", span, "nothing is left of the recipe").help(help));
        return None;
    }
    bind::check_cycles(&stages, problems);
    metrics::check(&stages, problems);
    for (stop, guard) in stops.iter().zip(&guards) {
        if let Some(guard) = guard {
            metrics::check_stop(&stages, stop, guard, problems);
        }
    }
    Some(Recipe {
        name,
        path: path.to_owned(),
        seed,
        device,
        threads,
        stages,
        outputs,
        names,
        sources: Vec::new(),
    })
}

fn check_version(root: &Node, problems: &mut Vec<Problem>) -> Option<()> {
    match root.get("levain") {
        Some(Node {
            kind: NodeKind::Integer(VERSION),
            ..
        }) => Some(()),
        Some(node) => {
            let problem = match node.kind {
                NodeKind::Integer(_) | NodeKind::Number(_) => {
                    let message = format!(
                        "the recipe asks for language version {}, this Levain reads version {VERSION}",
                        node.to_value()
                    );
                    Problem::at("unknown-version", node.span, message)
                        .help("write `levain: 1`, or use a newer Levain")
                }
                _ => wrong_type(
                    "levain",
                    "the number of the recipe's language version",
                    node,
                )
                .help(format!("write `levain: {VERSION}`")),
            };
            problems.push(problem);
            None
        }
        None => {
            let message = "the recipe does not say its language version";
            problems.push(
                Problem::at("missing-field", root.span, message)
                    .help("begin the file with `levain: 1`"),
            );
            Some(())
        }
    }
}

/// The stages of the recipe as they are written: references need every stage's contract before any stage is read.
fn stage_pairs<'a>(root: &'a Node, problems: &mut Vec<Problem>) -> Option<&'a [(Key, Node)]> {
    let Some(node) = root.get("stages") else {
        // A slip in the word itself has been said.
        if matches!(&root.kind, NodeKind::Map(pairs) if pairs.iter().any(|(k, _)| nearest(&k.name, TOP) == Some("stages")))
        {
            return None;
        }
        let help = "add `stages:` with at least one stage, such as `rows: { kind: load_dataset, source: data.jsonl }`";
        problems
            .push(Problem::at("missing-field", root.span, "the recipe has no stages").help(help));
        return None;
    };
    match &node.kind {
        NodeKind::Map(pairs) if !pairs.is_empty() => Some(pairs),
        NodeKind::Null | NodeKind::Map(_) => {
            let help =
                "add at least one, such as `rows: { kind: load_dataset, source: data.jsonl }`";
            problems.push(Problem::at("empty", node.span, "the recipe has no stages").help(help));
            None
        }
        _ => {
            problems.push(
                wrong_type("stages", "a mapping from names to stages", node)
                    .help("write each stage as `name: { kind: … }`"),
            );
            None
        }
    }
}

fn read_stages(
    declared: &[Declared<'_>],
    names: &Names,
    guards: &[Option<Guard>],
    contracts: Contracts,
    problems: &mut Vec<Problem>,
) -> Vec<Stage> {
    let mut stages = Vec::new();
    for (index, stage) in declared.iter().enumerate() {
        let Some(contract) = stage.contract else {
            continue;
        };
        let (key, body) = (stage.key, stage.body.as_ref());
        let known = problems.len();
        let read = fields::read(body, key, contract, contracts, stage.seed, problems);
        let bound = bind::read(body, key, contract, names, index, problems);
        let stage = Stage {
            name: names.stages[index].name.clone(),
            span: key.span,
            contract,
            params: read.params,
            sources: read.sources,
            inputs: bound,
            guards: stage
                .guards
                .iter()
                .filter_map(|at| guards[*at].clone())
                .collect(),
            spans: read.spans,
        };
        if problems.len() == known {
            problems.extend(inputs::check_names(&stage, contracts));
        }
        stages.push(stage);
    }
    stages
}

pub(super) fn check_name(key: &Key, problems: &mut Vec<Problem>) {
    let mut chars = key.name.chars();
    let fine = chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && key.name.len() <= 100;
    if !fine {
        let message = format!("`{}` can't be a stage's name", key.name);
        let help = "a name begins with a letter and has letters, digits, `_` and `-`, at most 100";
        problems.push(Problem::at("bad-name", key.span, message).help(help));
    }
}

fn seed(root: &Node, problems: &mut Vec<Problem>) -> u64 {
    top_integer(root, "seed", 0, i64::MAX, problems).unwrap_or(0) as u64
}

fn device(root: &Node, problems: &mut Vec<Problem>) -> Option<String> {
    let text = top_text(root, "device", problems)?;
    if !is_device(&text) {
        let span = root.get("device").map_or(root.span, |n| n.span);
        problems.push(
            Problem::at("out-of-range", span, format!("`{text}` is not a device"))
                .help("write `cpu`, `cuda` or `cuda:0`"),
        );
    }
    Some(text)
}

/// Whether `text` names a device: `cpu`, `cuda`, `cuda:N`.
pub fn is_device(text: &str) -> bool {
    text == "cpu"
        || text == "cuda"
        || text
            .strip_prefix("cuda:")
            .is_some_and(|n| n.parse::<u8>().is_ok())
}

fn top_integer(
    root: &Node,
    name: &str,
    min: i64,
    max: i64,
    problems: &mut Vec<Problem>,
) -> Option<i64> {
    whole(name, root.get(name)?, (min, max), problems)
}

/// The whole number that `node` holds, when it lies within the limits.
pub(super) fn whole(
    name: &str,
    node: &Node,
    (min, max): (i64, i64),
    problems: &mut Vec<Problem>,
) -> Option<i64> {
    match node.kind {
        NodeKind::Integer(i) if (min..=max).contains(&i) => Some(i),
        NodeKind::Integer(_) => {
            let range = fields::bounds(min as f64, max as f64, false);
            problems.push(Problem::at(
                "out-of-range",
                node.span,
                format!("`{name}` is {range}, not {}", node.describe()),
            ));
            None
        }
        _ => {
            problems.push(wrong_type(name, "a whole number", node));
            None
        }
    }
}

fn top_text(root: &Node, name: &str, problems: &mut Vec<Problem>) -> Option<String> {
    let node = root.get(name)?;
    match &node.kind {
        NodeKind::Text(text) if !text.trim().is_empty() => Some(text.clone()),
        _ => {
            problems.push(wrong_type(name, "a text", node));
            None
        }
    }
}

/// `name` should have been something else.
pub(super) fn wrong_type(name: &str, expected: &str, node: &Node) -> Problem {
    let problem = Problem::at(
        "wrong-type",
        node.span,
        format!("`{name}` is {expected}, not {}", node.describe()),
    );
    let help = match &node.kind {
        NodeKind::Text(text) if expected.contains("number") && text.parse::<f64>().is_ok() => {
            Some("write the number without quotes")
        }
        NodeKind::Text(text) if expected.contains("`true`") => match text.to_lowercase().as_str() {
            "yes" | "on" | "true" => Some("write `true`"),
            "no" | "off" | "false" => Some("write `false`"),
            _ => None,
        },
        _ => None,
    };
    problem.maybe_help(help.map(ToOwned::to_owned))
}

/// The span of a whole stage: its name.
pub(super) fn key_span(key: &Key) -> Span {
    key.span
}

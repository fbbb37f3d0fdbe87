//! `outputs`: folders that every run checks and restores.

use super::bind::output_of;
use super::names::{Found, Names};
use super::read::wrong_type;
use super::yaml::{Node, NodeKind};
use super::{Export, Format, Pick, Target};
use crate::artifact::{ArtifactType, phrase};
use crate::diagnostic::{Problem, Span, nearest};

const WORDS: [&str; 3] = ["from", "format", "to"];

/// Reads every entry of `outputs`.
pub(super) fn read(root: &Node, names: &Names, problems: &mut Vec<Problem>) -> Vec<Export> {
    let (mut exports, mut folders): (Vec<Export>, Vec<(String, String)>) = Default::default();
    let Some(node) = root
        .get("outputs")
        .filter(|n| !matches!(n.kind, NodeKind::Null))
    else {
        return exports;
    };
    let NodeKind::Map(pairs) = &node.kind else {
        problems.push(wrong_type(
            "outputs",
            "a mapping from names to outputs",
            node,
        ));
        return exports;
    };
    for (key, body) in pairs {
        let NodeKind::Map(words) = &body.kind else {
            problems.push(wrong_type(
                &key.name,
                "a mapping with `from` and `to`",
                body,
            ));
            continue;
        };
        for (word, _) in words
            .iter()
            .filter(|(w, _)| !WORDS.contains(&w.name.as_str()))
        {
            let help = nearest(&word.name, WORDS).map_or_else(
                || format!("an output has {}", WORDS.join(", ")),
                |w| format!("did you mean `{w}`?"),
            );
            problems.push(
                Problem::at(
                    "unknown-key",
                    word.span,
                    format!("`{}` is not a part of an output", word.name),
                )
                .help(help),
            );
        }
        let mut text = |word: &str, doc: &str| match body.get(word) {
            Some(Node {
                kind: NodeKind::Text(text),
                ..
            }) if !text.is_empty() => Some(text.clone()),
            Some(other) => {
                problems.push(wrong_type(word, doc, other));
                None
            }
            None => {
                let message = format!("the output `{}` needs `{word}`", key.name);
                problems.push(Problem::at("missing-field", key.span, message).help(doc));
                None
            }
        };
        let (from, to) = (
            text("from", "the stage whose output is written"),
            text("to", "the folder to write, relative to the recipe"),
        );
        let (Some(from), Some(to)) = (from, to) else {
            continue;
        };
        let span = body.get("from").map_or(key.span, |n| n.span);
        let found = find(&from, span, names, problems);
        let artifact = found.as_ref().map(|(_, artifact)| *artifact);
        let format = match body.get("format").map(|n| (n, &n.kind)) {
            None => Format::Files,
            Some((_, NodeKind::Text(word))) if word == "files" => Format::Files,
            Some((node, NodeKind::Text(word))) if word == "peft" => {
                if let Some(other) = artifact.filter(|a| {
                    !matches!(
                        a,
                        ArtifactType::Model
                            | ArtifactType::RewardModel
                            | ArtifactType::Classifier
                            | ArtifactType::Adapter
                    )
                }) {
                    let message = format!(
                        "only a model is written as `peft`, and `{from}` is {}",
                        phrase(&[other])
                    );
                    problems.push(
                        Problem::at("type-mismatch", node.span, message)
                            .help("leave `format` out, and its files are written as they are"),
                    );
                }
                Format::Peft
            }
            Some((node, _)) => {
                problems.push(Problem::at(
                    "out-of-range",
                    node.span,
                    format!("`format` is `files` or `peft`, not {}", node.describe()),
                ));
                Format::Files
            }
        };
        let to_span = body.get("to").map_or(key.span, |n| n.span);
        if std::path::Path::new(&to).is_absolute() || to.split('/').any(|part| part == "..") {
            let message = format!("`{to}` leaves the recipe's folder");
            problems.push(Problem::at("bad-path", to_span, message).help(
                "outputs are written below the recipe's folder; `levain export` writes anywhere",
            ));
        }
        let folder = to.trim_end_matches('/').to_owned();
        if let Some((_, first)) = folders.iter().find(|(f, _)| *f == folder) {
            let message = format!("`{to}` is also written by the output `{first}`");
            problems.push(
                Problem::at("duplicate-key", to_span, message)
                    .help("give each output a folder of its own"),
            );
        }
        folders.push((folder, key.name.clone()));
        if let Some((target, _)) = found {
            exports.push(Export {
                name: key.name.clone(),
                span: key.span,
                from: target,
                format,
                to,
            });
        }
    }
    exports
}

/// The stage output that `from` names.
fn find(
    from: &str,
    span: Span,
    names: &Names,
    problems: &mut Vec<Problem>,
) -> Option<(Pick<Target>, ArtifactType)> {
    let problem = |message: String| Problem::at("bad-reference", span, message);
    let pick = match names.find(0, from) {
        Ok(Found::One(pick)) => pick,
        Ok(Found::Many(list)) => {
            let message = format!("`{from}` is {} outputs; one is written", list.len());
            let first = list.first().and_then(|(_, pick)| pick.from.last());
            let first = first.map(|spot| names.full(spot));
            problems.push(
                problem(message).maybe_help(first.map(|f| format!("choose one, such as `{f}`"))),
            );
            return None;
        }
        Ok(Found::Broken) => return None,
        Err(miss) => {
            problems.push(problem(miss.message).maybe_help(miss.help));
            return None;
        }
    };
    let mut artifact = None;
    let mut targets = Vec::new();
    for spot in pick.from {
        let found = output_of(names, &spot, span, problems)?;
        artifact = Some(names.artifact(spot.stage, found)?);
        targets.push(Target {
            stage: spot.stage,
            output: found.name,
        });
    }
    let pick = Pick {
        from: targets,
        optional: false,
    };
    Some((pick, artifact?))
}

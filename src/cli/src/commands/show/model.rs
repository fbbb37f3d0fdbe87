//! A model's card: its facts, its adapters and bases, its tokenizer, its files. Any other artifact too.

use anyhow::Result;
use engine::artifact::{ArtifactType, ArtifactView};

use super::{facts, files};
use crate::style::Style;

pub(super) fn card(view: &ArtifactView, style: Style) -> Result<String> {
    let mut out = String::new();
    if view.artifact == ArtifactType::Model {
        let mut chain = chain(view);
        chain.reverse();
        for (depth, artifact) in chain.iter().enumerate() {
            let adapter = artifact.refs.contains_key("base");
            let what = if adapter {
                format!("adapter {depth}")
            } else {
                "base".to_owned()
            };
            out.push_str(&format!(
                "\n{} {}\n{}",
                style.bold(&what),
                style.dim(&artifact.digest.short()),
                body(artifact)
            ));
        }
    } else {
        out.push_str(&body(view));
    }
    for (name, reference) in view.refs.iter().filter(|(name, _)| *name != "base") {
        out.push_str(&format!(
            "\n{} {}\n{}",
            style.bold(name),
            style.dim(&reference.digest.short()),
            body(reference)
        ));
    }
    Ok(out)
}

/// The model and everything below it, the innermost last.
fn chain(model: &ArtifactView) -> Vec<&ArtifactView> {
    let mut chain = vec![model];
    let mut at = model;
    while let Some(base) = at.refs.get("base") {
        chain.push(base);
        at = base;
    }
    chain
}

fn body(view: &ArtifactView) -> String {
    let files = files(view, "    ");
    let files = if files.is_empty() {
        files
    } else {
        format!("  files\n{files}")
    };
    format!("{}{files}", facts(view))
}

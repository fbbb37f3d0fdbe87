//! The end of a run: what ran, what evaluations found, what was written, what to try next.

use std::path::Path;

use engine::artifact::ArtifactType;
use engine::schedule::Outcome;
use engine::session::Session;
use engine::shell::quoted;
use serde_json::{Value, json};

use crate::context::{Context, width};
use crate::failure::Status;
use crate::{answers, classes, units};

/// More evaluations than this are not printed: `levain show` prints each.
const TABLES: usize = 6;
/// Answers printed of one evaluation.
const SAMPLES: usize = 3;

/// How the run ended, as an exit code.
pub(crate) fn status(outcome: &Outcome) -> Status {
    match outcome {
        _ if outcome.failed > 0 => Status::Failed,
        _ if outcome.cancelled => Status::Interrupted,
        _ if outcome.waiting > 0 => Status::Waiting,
        _ => Status::Done,
    }
}

/// The summary for people.
pub(crate) fn text(session: &Session, outcome: &Outcome, context: &Context) -> String {
    let style = context.out;
    let mut out = String::new();
    let evaluations: Vec<_> = metrics(session, outcome);
    for (stage, value, samples) in evaluations.iter().take(TABLES) {
        let tables = [answers::scores(value, style), classes::text(value, style)];
        let tables: Vec<String> = tables.into_iter().flatten().collect();
        if tables.is_empty() {
            continue;
        }
        let tables = tables.join("\n");
        out.push_str(&format!("{}\n{tables}\n", style.bold(stage)));
        if let Some(path) = samples {
            match answers::samples(path, SAMPLES, width(), style) {
                Ok(text) => out.push_str(&text),
                Err(error) => {
                    out.push_str(&format!("  the sampled answers can't be read: {error}\n"))
                }
            }
        }
    }
    if evaluations.len() > TABLES {
        let rest = units::plural(evaluations.len() - TABLES, "more evaluation");
        out.push_str(&format!(
            "{rest}: `levain show {} STAGE` prints them\n\n",
            session.recipe.path.display()
        ));
    }
    for export in &outcome.exports {
        let state = match export.written {
            0 => "as it should be".to_owned(),
            written => format!("{} written", units::plural(written, "file")),
        };
        out.push_str(&format!(
            "{}  {}  {}\n",
            style.bold(&export.name),
            shown(&export.folder).display(),
            style.dim(&state)
        ));
    }
    out.push_str(&counts(outcome, context));
    if outcome.cancelled {
        out.push_str("Stopped on request: what long stages did up to here is kept, and the next run goes on from there.\n");
    }
    if outcome.failed > 0 {
        let names: Vec<_> = outcome
            .failures
            .iter()
            .map(|failure| format!("`{}`", failure.stage))
            .collect();
        out.push_str(&format!(
            "{} {}; the next run goes on from what is done.\n",
            style.red("failed:"),
            names.join(", ")
        ));
    }
    if outcome.waiting > 0 {
        let stages = outcome.lock.stages.iter();
        for (name, stage) in stages.filter(|(_, s)| s.outcome == "waiting") {
            let how = match stage.kind.as_str() {
                "label" => format!(
                    ": people go on with `levain label {} {}`",
                    session.typed(),
                    quoted(name)
                ),
                _ => String::new(),
            };
            out.push_str(&format!("{} `{name}`{how}\n", style.yellow("waiting:")));
        }
    }
    if outcome.failed == 0 && !outcome.cancelled {
        for line in next(
            session
                .recipe
                .sources
                .first()
                .map_or("", |s| s.text.as_str()),
        ) {
            out.push_str(&format!("{} {line}\n", style.cyan("Next:")));
        }
    }
    out
}

/// A recipe named without a folder gives paths that begin with `./`.
fn shown(path: &Path) -> &Path {
    path.strip_prefix(".").unwrap_or(path)
}

/// `3 ran, 5 cached in 12 s`.
fn counts(outcome: &Outcome, context: &Context) -> String {
    let mut parts = Vec::new();
    let mut part = |count: usize, word: &str| {
        if count > 0 {
            parts.push(format!("{} {word}", units::count(count as u64)));
        }
    };
    part(outcome.ran, "ran");
    part(outcome.hits, "cached");
    part(outcome.failed, "failed");
    part(outcome.waiting, "waiting");
    part(outcome.skipped, "skipped");
    let words = if parts.is_empty() {
        "nothing to do".to_owned()
    } else {
        parts.join(", ")
    };
    format!(
        "{} in {}\n",
        context.out.bold(&words),
        units::time(outcome.milliseconds)
    )
}

/// The kinds whose numbers are shown at the end of a run.
const EVALUATIONS: [&str; 7] = [
    "evaluate",
    "masked_lm_loss",
    "preference_accuracy",
    "exam",
    "head",
    "classifier",
    "classify",
];

/// Every evaluation of the run: stage, `metrics.json`, and where its samples are.
fn metrics(
    session: &Session,
    outcome: &Outcome,
) -> Vec<(String, Value, Option<std::path::PathBuf>)> {
    let mut list = Vec::new();
    for (name, stage) in &outcome.lock.stages {
        let Some(contract) = session
            .contracts
            .kind(&stage.kind)
            .filter(|c| EVALUATIONS.contains(&c.kind))
        else {
            continue;
        };
        for output in contract
            .outputs
            .iter()
            .filter(|o| o.is(ArtifactType::Metrics))
        {
            let Some(view) = stage
                .outputs
                .get(output.name)
                .and_then(|d| session.cache.view(*d).ok())
            else {
                continue;
            };
            let value = view.find("metrics.json").and_then(|path| read_json(path));
            list.extend(
                value.map(|value| (name.clone(), value, view.find("samples.jsonl").cloned())),
            );
        }
    }
    list
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The lines of a recipe that begin with `# next:`.
fn next(recipe: &str) -> Vec<&str> {
    const MARK: &str = "# next:";
    recipe
        .match_indices(MARK)
        .filter(|(at, _)| {
            let before = recipe[..*at].rsplit('\n').next();
            before.is_none_or(|text| text.trim().is_empty())
        })
        .filter_map(|(at, _)| recipe[at + MARK.len()..].lines().next())
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect()
}

/// The summary for programs.
pub(crate) fn to_json(session: &Session, outcome: &Outcome) -> Value {
    let stages: Vec<Value> = outcome
        .lock
        .stages
        .iter()
        .map(|(name, stage)| {
            json!({
                "name": name,
                "kind": stage.kind,
                "verdict": stage.verdict,
                "outcome": stage.outcome,
                "reason": stage.reason,
                "key": stage.key,
                "outputs": stage.outputs,
            })
        })
        .collect();
    let exports: Vec<Value> = outcome
        .exports
        .iter()
        .map(|e| json!({ "name": e.name, "folder": e.folder, "written": e.written }))
        .collect();
    let failures: Vec<Value> = outcome
        .failures
        .iter()
        .map(|f| json!({ "stage": f.stage, "error": f.error, "place": f.place }))
        .collect();
    json!({
        "recipe": session.recipe.name,
        "run": outcome.folder,
        "cache": session.cache.root(),
        "stages": stages,
        "exports": exports,
        "failures": failures,
        "counts": {
            "ran": outcome.ran,
            "hits": outcome.hits,
            "failed": outcome.failed,
            "waiting": outcome.waiting,
            "skipped": outcome.skipped,
        },
        "cancelled": outcome.cancelled,
        "milliseconds": outcome.milliseconds,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn hints_are_lines_of_the_recipe() {
        let recipe = "levain: 1\n# next: raise epochs\n  # next:  two \n#next: no\n# next:\nx: '# next: no'\n";
        assert_eq!(super::next(recipe), ["raise epochs", "two"]);
    }
}

//! `rule`: checks the rule and keeps it as a judge.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use engine::artifact::ArtifactType;
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::rule::Rule;
use serde_json::{Map, Value, json};

/// Whether the pattern is one.
pub(crate) fn attempt(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let pattern = params.get("pattern").and_then(Value::as_str);
    let wrong = pattern.and_then(|pattern| data::rule::Rule::pattern(pattern).err());
    wrong
        .map(|error| ("pattern", format!("{error:#}")))
        .into_iter()
        .collect()
}

pub(crate) fn run(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let params: Rule = job.params()?;
    let mut files = Vec::new();
    let what = match (&params.pattern, params.length, job.sources.get("lexicon")) {
        (Some(pattern), None, None) => {
            data::rule::Rule::pattern(pattern)?;
            json!({"pattern": pattern})
        }
        (None, Some(length), None) => json!({"length": length}),
        (None, None, Some(found)) => {
            let [file] = &found[..] else {
                bail!("a lexicon is one file, and there are {}", found.len());
            };
            let text = std::fs::read_to_string(&file.path)
                .with_context(|| format!("{}: not a text in UTF-8", file.name))?;
            data::rule::Rule::lexicon(&text).with_context(|| file.name.clone())?;
            files.push(("lexicon.txt".to_owned(), file.path.clone()));
            json!({"lexicon": "lexicon.txt"})
        }
        _ => bail!("BUG: a rule is one thing"),
    };
    let path = job.out.join("judge.json");
    std::fs::write(&path, serde_json::to_vec(&what)?)?;
    files.push(("judge.json".to_owned(), path));
    let draft = Draft {
        artifact: ArtifactType::Judge,
        files,
        refs: BTreeMap::new(),
        summary: [("judge".to_owned(), "rule".into())].into(),
    };
    Ok([("judge".to_owned(), draft)].into())
}

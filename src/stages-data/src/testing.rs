//! What tests of kinds share: artifacts without files, a job, an ear for what is said.

use std::collections::BTreeMap;
use std::sync::Mutex;

use engine::artifact::ArtifactView;
use engine::digest::Digest;
use engine::event::What;
use engine::job::{Input, Job, Reporter};
use serde_json::{Value, json};

/// An artifact without files, of a type and with a summary.
pub(crate) fn artifact(kind: &str, summary: Value) -> ArtifactView {
    ArtifactView {
        digest: Digest::of_bytes(summary.to_string().as_bytes()),
        artifact: serde_json::from_value(json!(kind)).unwrap(),
        files: Vec::new(),
        refs: BTreeMap::new(),
        summary: serde_json::from_value(summary).unwrap(),
    }
}

/// Ports that hold one artifact, and ports that hold several.
pub(crate) fn job(
    kind: &str,
    params: Value,
    one: &[(&str, &ArtifactView)],
    many: &[(&str, &[(&str, ArtifactView)])],
) -> Job {
    let single = |(port, view): &(&str, &ArtifactView)| {
        ((*port).to_owned(), Input::One(Box::new((*view).clone())))
    };
    let several = |(port, list): &(&str, &[(&str, ArtifactView)])| {
        let list = list
            .iter()
            .map(|(name, view)| ((*name).to_owned(), view.clone()));
        ((*port).to_owned(), Input::Many(list.collect()))
    };
    Job {
        stage: "stage".to_owned(),
        recipe: "recipe.yaml".to_owned(),
        kind: kind.to_owned(),
        version: 1,
        params: serde_json::from_value(params).unwrap(),
        inputs: one
            .iter()
            .map(single)
            .chain(many.iter().map(several))
            .collect(),
        sources: BTreeMap::new(),
        out: "out".into(),
        snapshots: None,
        answers: None,
        device: "cpu".to_owned(),
        threads: 1,
    }
}

/// Keeps the notes.
#[derive(Default)]
pub(crate) struct Ear(Mutex<Vec<String>>);

impl Ear {
    pub(crate) fn said(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

impl Reporter for Ear {
    fn emit(&self, what: What) {
        if let What::Note { text, .. } = what {
            self.0.lock().unwrap().push(text);
        }
    }

    fn cancelled(&self) -> bool {
        false
    }
}

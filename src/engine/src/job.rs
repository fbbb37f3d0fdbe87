//! What a stage is given and what it gives back; the same for stages inside `levain` and inside a worker.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::artifact::{ArtifactType, ArtifactView};
use crate::digest::Digest;
use crate::event::What;

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The stage's name, for messages only.
    pub stage: String,
    /// The recipe as it is typed behind a command, for messages only.
    pub recipe: String,
    /// The kind.
    pub kind: String,
    /// The kind's version.
    pub version: u32,
    /// Every parameter after defaults.
    pub params: Map<String, Value>,
    /// Port name to artifacts.
    pub inputs: BTreeMap<String, Input>,
    /// Field name to the files of that source.
    pub sources: BTreeMap<String, Vec<SourceFile>>,
    /// A private folder, empty at the start, for files to publish.
    pub out: PathBuf,
    /// A folder that outlives a killed run, for snapshots of long stages, and for the answers that a recorded stage has so far
    /// ([`ANSWERS`]); its content is the stage's own affair, and it goes when the stage is done.
    pub snapshots: Option<PathBuf>,
    /// A folder that outlives the stage, for answers that were given one by one: of recorded kinds that run inside `levain`.
    /// Nothing removes what is in it.
    pub answers: Option<PathBuf>,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// The run's thread count.
    pub threads: usize,
}

/// The file in [`Job::snapshots`] that holds answers of a person, a program or an endpoint. They can't be made again: as long as
/// it is there, the folder is not rubbish, however old.
pub const ANSWERS: &str = "answers.jsonl";

/// What a port holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// One artifact.
    One(Box<ArtifactView>),
    /// Several, named, in the recipe's order.
    Many(Vec<(String, ArtifactView)>),
}

/// One file of a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name inside the source.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its content.
    pub digest: Digest,
}

impl Job {
    /// The parameters as the kind's own struct.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(Value::Object(self.params.clone())).with_context(|| {
            format!(
                "the parameters of `{}` do not fit its kind `{}`",
                self.stage, self.kind
            )
        })
    }

    /// The artifact of a port that holds exactly one.
    pub fn input(&self, port: &str) -> Result<&ArtifactView> {
        match self.inputs.get(port) {
            Some(Input::One(view)) => Ok(view),
            Some(Input::Many(_)) => bail!("port `{port}` holds several artifacts"),
            None => bail!("port `{port}` is empty"),
        }
    }

    /// The artifacts of a port that holds several.
    pub fn inputs_of(&self, port: &str) -> Result<&[(String, ArtifactView)]> {
        match self.inputs.get(port) {
            Some(Input::Many(views)) => Ok(views),
            Some(Input::One(_)) => bail!("port `{port}` holds one artifact"),
            None => bail!("port `{port}` is empty"),
        }
    }

    /// Every artifact of a port.
    pub fn views(&self, port: &str) -> impl Iterator<Item = &ArtifactView> {
        let (one, many) = match self.inputs.get(port) {
            Some(Input::One(view)) => (Some(&**view), [].as_slice()),
            Some(Input::Many(views)) => (None, views.as_slice()),
            None => (None, [].as_slice()),
        };
        one.into_iter().chain(many.iter().map(|(_, view)| view))
    }

    /// The artifacts of a port by name; the only one of a port that takes one is named like the port.
    pub fn named<'a>(&'a self, port: &'a str) -> Result<Vec<(&'a str, &'a ArtifactView)>> {
        match self.inputs.get(port) {
            Some(Input::Many(views)) => Ok(views.iter().map(|(n, v)| (n.as_str(), v)).collect()),
            Some(Input::One(view)) => Ok(vec![(port, view)]),
            None => bail!("port `{port}` is empty"),
        }
    }

    /// The files of a source field.
    pub fn source(&self, field: &str) -> Result<&[SourceFile]> {
        self.sources
            .get(field)
            .map(Vec::as_slice)
            .with_context(|| format!("source `{field}` is missing"))
    }
}

/// What a stage wants to publish under one output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Draft {
    /// What it is.
    #[serde(rename = "type")]
    pub artifact: ArtifactType,
    /// (name in the artifact, path on disk). A path inside `Job::out` is moved, one of a blob in the cache is named, any other is
    /// copied.
    pub files: Vec<(String, PathBuf)>,
    /// Artifacts it needs.
    pub refs: BTreeMap<String, Reference>,
    /// Facts about it: a pure function of the content.
    pub summary: BTreeMap<String, Value>,
}

impl Draft {
    /// An artifact of the cache as it is: published, it has the same digest. Its files are neither read nor copied.
    pub fn of(view: &ArtifactView) -> Self {
        let refs = view.refs.iter();
        Self {
            artifact: view.artifact,
            files: view.files.clone(),
            refs: refs
                .map(|(name, view)| (name.clone(), Reference::Artifact(view.digest)))
                .collect(),
            summary: view.summary.clone(),
        }
    }
}

/// What a draft may refer to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// An artifact in the cache.
    Artifact(Digest),
    /// Another output of the same stage.
    Output(String),
    /// An artifact published along with this one, without being an output of its own.
    Inline(Box<Draft>),
}

/// Output name to what is to be published.
pub type Drafts = BTreeMap<String, Draft>;

/// The way a running stage speaks to the run.
pub trait Reporter: Sync {
    /// Sends an event of this stage.
    fn emit(&self, what: What);

    /// True when the run wants to stop: write a snapshot and return [`Cancelled`].
    fn cancelled(&self) -> bool;

    /// Fails with [`Cancelled`] when the run wants to stop.
    fn check(&self) -> Result<()> {
        if self.cancelled() {
            Err(Cancelled.into())
        } else {
            Ok(())
        }
    }

    /// Sends progress without a rate.
    fn progress(&self, done: u64, total: u64, unit: &str) {
        self.emit(What::Progress {
            done,
            total,
            unit: unit.to_owned(),
            rate: None,
        });
    }

    /// Sends a remark.
    fn note(&self, level: crate::event::Level, text: &str) {
        self.emit(What::Note {
            level,
            text: text.to_owned(),
        });
    }
}

/// A stage stopped because it was asked to; not a failure of its own.
#[derive(Debug)]
pub struct Cancelled;

impl std::fmt::Display for Cancelled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped on request")
    }
}

impl std::error::Error for Cancelled {}

/// An error about one word of a stage, a field or a port: its place in the recipe is that of the word's value. It reads like the
/// error itself.
#[derive(Debug)]
pub struct AboutWord {
    /// The word.
    pub word: String,
    error: anyhow::Error,
}

impl AboutWord {
    /// `error`, which is about `word`. One that is about a word already stays so, and so does what is no failure.
    pub fn of(word: &str, error: anyhow::Error) -> anyhow::Error {
        if Self::word(&error).is_some() || error.is::<Cancelled>() || error.is::<Waiting>() {
            return error;
        }
        let word = word.to_owned();
        anyhow::Error::new(Self { word, error })
    }

    /// The word that an error is about, if it is about one.
    pub fn word(error: &anyhow::Error) -> Option<&str> {
        let mut chain = error.chain();
        let own = chain.find_map(|cause| cause.downcast_ref::<Self>())?;
        Some(&own.word)
    }
}

impl std::fmt::Display for AboutWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for AboutWord {}

/// Says which word of a stage an error is about, where that is plain.
pub trait About<T> {
    /// The same, and an error is about the field or port `word`.
    fn about(self, word: &str) -> Result<T>;
}

impl<T> About<T> for Result<T> {
    fn about(self, word: &str) -> Result<T> {
        self.map_err(|error| AboutWord::of(word, error))
    }
}

/// The function that runs a kind.
pub type Run = fn(&Job, &dyn Reporter) -> Result<Drafts>;

/// How a kind runs: its name and its function, in the list of a stages crate.
#[derive(Clone, Copy)]
pub struct Implementation {
    /// The kind's name.
    pub kind: &'static str,
    /// The function that runs it.
    pub run: Run,
}

/// A stage can't go on without a person; not a failure.
#[derive(Debug)]
pub struct Waiting {
    /// What it waits for, and how to go on.
    pub reason: String,
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Waiting {}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn an_error_about_a_word_reads_like_itself() {
        let plain = || Err::<(), _>(anyhow!("no layer is called q").context("`targets`"));
        let said = format!("{:#}", plain().unwrap_err());
        let about = plain().about("targets").unwrap_err();
        assert_eq!(format!("{about:#}"), said);
        assert_eq!(AboutWord::word(&about), Some("targets"));
        assert_eq!(AboutWord::word(&plain().unwrap_err()), None);
        // Whoever is nearest to the mistake knows best.
        let outer = Err::<(), _>(about.context("the adapter")).about("model");
        let outer = outer.unwrap_err();
        assert_eq!(AboutWord::word(&outer), Some("targets"));
        assert_eq!(format!("{outer:#}"), format!("the adapter: {said}"));
    }

    #[test]
    fn what_is_no_failure_is_about_no_word() {
        let stopped = Err::<(), _>(anyhow::Error::from(Cancelled))
            .about("data")
            .unwrap_err();
        assert!(stopped.is::<Cancelled>());
        let reason = "for a person".to_owned();
        let waiting = Err::<(), _>(anyhow::Error::from(Waiting { reason })).about("data");
        assert!(waiting.unwrap_err().is::<Waiting>());
    }
}

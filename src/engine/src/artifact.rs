//! Artifacts: immutable outputs, named by the digest of their manifest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;

/// What an artifact is; the type of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactType {
    /// Rows in Arrow IPC.
    Dataset,
    /// A base, its adapters in order, heads, and the tokenizer.
    Model,
    /// An adapter alone.
    Adapter,
    /// A tokenizer with its chat template.
    Tokenizer,
    /// Rows as token ids with their loss mask.
    Tokens,
    /// Numbers about a model or a training.
    Metrics,
    /// Prompts with sampled completions and their log-probabilities.
    Rollouts,
    /// Embeddings of rows.
    Vectors,
    /// Log-probabilities of rows under a model.
    LogProbabilities,
    /// A model with a scalar head.
    RewardModel,
    /// Who scores without a model.
    Judge,
    /// A model with a head that tells labels or a number, or such a head with the model that it belongs to.
    Classifier,
}

impl ArtifactType {
    /// Every type: what a port takes that takes anything.
    pub const ALL: &[Self] = &[
        Self::Dataset,
        Self::Model,
        Self::Adapter,
        Self::Tokenizer,
        Self::Tokens,
        Self::Metrics,
        Self::Rollouts,
        Self::Vectors,
        Self::LogProbabilities,
        Self::RewardModel,
        Self::Judge,
        Self::Classifier,
    ];

    /// The word that recipes, manuals and messages use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Model => "model",
            Self::Adapter => "adapter",
            Self::Tokenizer => "tokenizer",
            Self::Tokens => "tokens",
            Self::Metrics => "metrics",
            Self::Rollouts => "rollouts",
            Self::Vectors => "vectors",
            Self::LogProbabilities => "log-probabilities",
            Self::RewardModel => "reward-model",
            Self::Judge => "judge",
            Self::Classifier => "classifier",
        }
    }
}

impl std::fmt::Display for ArtifactType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Relative, with `/` between folders, without `.` and `..`.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// Content.
    pub digest: Digest,
}

/// The list of what an artifact holds. Its canonical bytes are stored like any blob; their digest names the artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What it is.
    #[serde(rename = "type")]
    pub artifact: ArtifactType,
    /// The files, ordered by name.
    pub files: Vec<FileEntry>,
    /// Other artifacts that this one needs, such as an adapter's base.
    pub refs: BTreeMap<String, Digest>,
    /// Facts for people and for estimates: rows, lengths, shapes. A pure function of the content.
    pub summary: BTreeMap<String, Value>,
}

impl Manifest {
    /// The canonical bytes: JSON without spaces, keys in order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let sorted = sort_keys(serde_json::to_value(self).expect("a manifest is always JSON"));
        sorted.to_string().into_bytes()
    }

    /// Reads canonical bytes, refusing names that leave the artifact's folder.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let manifest: Self = serde_json::from_slice(bytes).context("not an artifact manifest")?;
        for file in &manifest.files {
            check_name(&file.name)?;
        }
        Ok(manifest)
    }

    /// The artifact's name.
    pub fn digest(&self) -> Digest {
        Digest::of_bytes(&self.to_bytes())
    }
}

/// Refuses a file name that is absolute, empty, or climbs out of its folder.
pub fn check_name(name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && !name.contains('\\')
        && !name.contains('\0')
        && name
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
    if !fine {
        bail!("the file name `{name}` does not stay inside its folder");
    }
    Ok(())
}

/// `value` with the keys of every object in order, so that equal values have equal text.
pub fn sort_keys(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.into_iter().collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(
                pairs
                    .into_iter()
                    .map(|(k, v)| (k, sort_keys(v)))
                    .collect::<Map<_, _>>(),
            )
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sort_keys).collect()),
        other => other,
    }
}

/// An artifact as a stage sees it: every file with its place on disk, and what it refers to, all the way down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArtifactView {
    /// The artifact's name.
    pub digest: Digest,
    /// What it is.
    #[serde(rename = "type")]
    pub artifact: ArtifactType,
    /// (name in the artifact, path on disk), ordered by name. Read only.
    pub files: Vec<(String, PathBuf)>,
    /// What it refers to.
    pub refs: BTreeMap<String, ArtifactView>,
    /// Facts about it.
    pub summary: BTreeMap<String, Value>,
}

impl ArtifactView {
    /// The place of the file called `name`.
    pub fn file(&self, name: &str) -> Result<&PathBuf> {
        self.find(name).with_context(|| {
            format!(
                "the {} {} has no file `{name}`",
                self.artifact,
                self.digest.short()
            )
        })
    }

    /// The place of the file called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<&PathBuf> {
        self.files
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, path)| path)
    }

    /// The artifact it refers to as `name`.
    pub fn reference(&self, name: &str) -> Result<&ArtifactView> {
        self.refs.get(name).with_context(|| {
            format!(
                "the {} {} refers to no `{name}`",
                self.artifact,
                self.digest.short()
            )
        })
    }
}

/// Types in words: `a dataset or a model`.
pub fn phrase(types: &[ArtifactType]) -> String {
    if types == ArtifactType::ALL {
        return "anything".to_owned();
    }
    let one = |artifact: &ArtifactType| match artifact.name() {
        name if name.ends_with('s') => name.to_owned(),
        name if name.starts_with('a') => format!("an {name}"),
        name => format!("a {name}"),
    };
    types.iter().map(one).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for bad in ["", "/a", "../a", "a/../b", "a//b", "./a", "a\\b", "a/"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("a/b.txt").is_ok());
    }

    #[test]
    fn equal_manifests_have_equal_bytes() {
        let one = Manifest {
            artifact: ArtifactType::Dataset,
            files: vec![],
            refs: BTreeMap::new(),
            summary: [("b".to_owned(), serde_json::json!({"z": 1, "a": 2}))].into(),
        };
        assert_eq!(
            String::from_utf8(one.to_bytes()).unwrap(),
            r#"{"files":[],"refs":{},"summary":{"b":{"a":2,"z":1}},"type":"dataset"}"#
        );
        assert_eq!(Manifest::from_bytes(&one.to_bytes()).unwrap(), one);
    }
}

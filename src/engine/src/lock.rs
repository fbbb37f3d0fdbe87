//! Lock files. A run's `lock.json` maps stages to keys and sources to digests; a recipe's `NAME.lock` pins the remote sources
//! that the recipe itself does not.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::plan::Verdict;

/// `lock.json` of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunLock {
    /// The recipe's name.
    pub recipe: String,
    /// The recipe's file.
    pub path: PathBuf,
    /// `--set` options.
    pub set: Vec<String>,
    /// Node name to what became of it, in the order of the plan.
    pub stages: indexmap::IndexMap<String, StageLock>,
    /// Source as written to what it was.
    pub sources: BTreeMap<String, Digest>,
    /// True when every stage is done, or was skipped by a `stop_if`.
    pub complete: bool,
}

/// What became of one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageLock {
    /// Its kind.
    pub kind: String,
    /// Its key, when it was known.
    pub key: Option<Digest>,
    /// The plan's verdict.
    pub verdict: Verdict,
    /// What became of it, in a word: `hit`, `done`, `failed`, `waiting`, `skipped`.
    pub outcome: String,
    /// Why it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Output name to artifact.
    pub outputs: BTreeMap<String, Digest>,
}

/// `NAME.lock` beside a recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeLock {
    /// The format's version.
    pub levain_lock: u32,
    /// Source as written to its digest.
    pub sources: BTreeMap<String, Digest>,
}

impl RecipeLock {
    /// Where the lock of `recipe` is.
    pub fn path(recipe: &Path) -> PathBuf {
        recipe.with_extension("lock")
    }

    /// Reads it; a recipe without one has an empty lock.
    pub fn read(recipe: &Path) -> Result<Self> {
        let path = Self::path(recipe);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let help = "delete it, and the sources are pinned anew";
                let lock: Self = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{}: not a lock file; {help}", path.display()))?;
                anyhow::ensure!(
                    lock.levain_lock == 1,
                    "{}: lock version {} is unknown; {help}",
                    path.display(),
                    lock.levain_lock
                );
                Ok(lock)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self {
                levain_lock: 1,
                ..Self::default()
            }),
            Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
        }
    }

    /// Writes it whole.
    pub fn write(&self, recipe: &Path) -> Result<()> {
        write_whole(
            &Self::path(recipe),
            &(serde_json::to_string_pretty(self)? + "\n"),
        )
    }
}

impl RunLock {
    /// Writes it whole into the run's folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_whole(
            &folder.join("lock.json"),
            &serde_json::to_string_pretty(self)?,
        )
    }

    /// Reads it from a run's folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("lock.json");
        let bytes =
            std::fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: not the lock of a run", path.display()))
    }
}

/// Writes a file so that readers see the old or the new text, never a part.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let fail = || format!("{} can't be written", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(fail)?;
    file.write_all(text.as_bytes()).with_context(fail)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode)?;
    file.persist(path).map_err(|e| e.error).with_context(fail)?;
    Ok(())
}

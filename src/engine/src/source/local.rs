//! Sources on disk: one file, or a folder with all its files in the order of their names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::location::is_plain;
use super::memo::kind_name;
use super::{Memo, SourceFile};
use crate::diagnostic::nearest;

/// More files than this in one folder are taken for a mistake (a home folder, a file system's root).
const MOST_FILES: usize = 100_000;
/// Folders deeper than this too.
const DEEPEST: usize = 32;

/// What was found at one location.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// The files, in their order.
    pub files: Vec<SourceFile>,
    /// Whether it is one file rather than a folder that may hold one.
    pub single: bool,
    /// What it is called beside other locations of the same source.
    pub label: String,
    /// The commit a hub's revision stood for.
    pub revision: Option<String>,
    /// What was left out and why.
    pub skipped: Vec<String>,
}

/// Reads what is at `text`, relative to `base`. `Ok(None)`: nothing is there; [`missing`] says so at length.
///
/// # Errors
/// It is there and cannot be used: not a regular file or a folder, unreadable, an empty folder, a link out of it.
pub(super) fn find(base: &Path, text: &str, memo: &Memo) -> Result<Option<Found>> {
    let path = base.join(text);
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if is_absent(&error) => {
            if std::fs::symlink_metadata(&path).is_ok() {
                bail!("{text} is a link to something that is not there");
            }
            return Ok(None);
        }
        Err(error) => {
            return Err(error).with_context(|| format!("{}: cannot be read", path.display()));
        }
    };
    let label = match path.file_name().and_then(|name| name.to_str()) {
        Some(name) => name.to_owned(),
        None => String::from("source"),
    };
    if metadata.is_file() {
        let (digest, size) = memo.digest(&path)?;
        let file = SourceFile {
            name: label.clone(),
            path,
            size,
            digest,
        };
        return Ok(Some(Found {
            files: vec![file],
            single: true,
            label,
            ..Found::default()
        }));
    }
    if !metadata.is_dir() {
        bail!(
            "{text} is {}, not a file or a folder: its bytes cannot be pinned; copy them into a file",
            kind_name(metadata.file_type())
        );
    }
    let mut walk = Walk {
        root: std::fs::canonicalize(&path)?,
        names: Vec::new(),
        skipped: Vec::new(),
    };
    walk.folder(&path, "", 0)?;
    walk.names
        .sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
    if walk.names.is_empty() {
        let left_out = match walk.skipped.as_slice() {
            [] => String::new(),
            some => format!(" (left out: {})", some.join("; ")),
        };
        bail!("the folder {text} has no files{left_out}");
    }
    let mut files = Vec::with_capacity(walk.names.len());
    for (name, path) in walk.names {
        let (digest, size) = memo.digest(&path)?;
        files.push(SourceFile {
            name,
            path,
            size,
            digest,
        });
    }
    Ok(Some(Found {
        files,
        single: false,
        label,
        skipped: walk.skipped,
        ..Found::default()
    }))
}

/// Says that there is nothing at `text`, with the nearest name that is there; `alone` when the source is no more than `text`.
pub(super) fn missing(base: &Path, text: &str, alone: bool) -> String {
    let whole = base.join(text);
    // The first part of the path that is not there is the one with the slip.
    let mut known = whole.as_path();
    let mut wrong = known;
    while let Some(parent) = known.parent() {
        wrong = known;
        known = parent;
        if known.as_os_str().is_empty() || known.is_dir() {
            break;
        }
    }
    let folder = if known.as_os_str().is_empty() {
        Path::new(".")
    } else {
        known
    };
    let names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .take(10_000)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    let slip = wrong
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let hint = match nearest(slip, names.iter().map(String::as_str)) {
        Some(name) => format!("the nearest name in {} is `{name}`", folder.display()),
        None => format!("`{slip}` was looked for in {}", folder.display()),
    };
    let what = if alone { "it" } else { text };
    format!("{what} is not there; {hint}")
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

struct Walk {
    root: PathBuf,
    names: Vec<(String, PathBuf)>,
    skipped: Vec<String>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<()> {
        if depth > DEEPEST {
            bail!("{} is more than {DEEPEST} folders deep", folder.display());
        }
        let listing = std::fs::read_dir(folder)
            .with_context(|| format!("{}: cannot be read", folder.display()))?;
        for entry in listing {
            let entry = entry.with_context(|| format!("{}: cannot be read", folder.display()))?;
            let name = match entry.file_name().into_string() {
                Ok(name) => format!("{prefix}{name}"),
                Err(name) => bail!(
                    "{}: the name {name:?} is not UTF-8: rename the file",
                    folder.display()
                ),
            };
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                self.skipped.push(format!("{name} is hidden"));
                continue;
            }
            if !is_plain(&name) {
                bail!(
                    "{}: the name {name:?} cannot be used: rename the file",
                    folder.display()
                );
            }
            self.entry(&entry.path(), entry.file_type()?, name, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        kind: std::fs::FileType,
        name: String,
        depth: usize,
    ) -> Result<()> {
        if kind.is_dir() {
            return self.folder(path, &format!("{name}/"), depth + 1);
        }
        if kind.is_symlink() {
            let target = std::fs::canonicalize(path)
                .with_context(|| format!("{}: a link that leads nowhere", path.display()))?;
            if target.is_dir() {
                self.skipped.push(format!("{name} is a link to a folder"));
                return Ok(());
            }
            if !self.may_hold(&target) {
                bail!(
                    "{} is a link out of the folder, to {}: copy the file there, or name it as a source of its own",
                    path.display(),
                    target.display()
                );
            }
        } else if !kind.is_file() {
            bail!(
                "{} is {}: a folder of a source may only hold files",
                path.display(),
                kind_name(kind)
            );
        }
        if self.names.len() >= MOST_FILES {
            bail!(
                "{} has more than {MOST_FILES} files: name the folder that is meant",
                self.root.display()
            );
        }
        self.names.push((name, path.to_owned()));
        Ok(())
    }

    /// Whether a link's target belongs to the folder: it is inside, or the folder is a snapshot of the hub's own cache,
    /// whose files are links into `blobs` beside `snapshots`.
    fn may_hold(&self, target: &Path) -> bool {
        if target.starts_with(&self.root) {
            return true;
        }
        let snapshots = self
            .root
            .ancestors()
            .find(|folder| folder.file_name().is_some_and(|name| name == "snapshots"));
        snapshots
            .and_then(Path::parent)
            .is_some_and(|repository| target.starts_with(repository.join("blobs")))
    }
}

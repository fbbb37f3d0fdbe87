//! How much a cache holds.

use std::fs;
use std::path::{Path, PathBuf};

/// The folders of a cache.
const FOLDERS: [&str; 9] = [
    "objects",
    "entries",
    "answers",
    "partial",
    "runs",
    "sources",
    "leases",
    "tmp",
    "quarantine",
];

/// What the folders of a cache hold.
pub(in crate::commands) struct Size {
    /// (folder, number of files, bytes).
    pub folders: Vec<(&'static str, usize, u64)>,
}

impl Size {
    /// All bytes.
    pub fn total(&self) -> u64 {
        self.folders.iter().map(|(_, _, bytes)| bytes).sum()
    }
}

/// Measures the cache at `root`.
pub(in crate::commands) fn of(root: &Path) -> Size {
    let folders = FOLDERS.map(|name| {
        let (mut count, mut bytes) = (0, 0);
        walk(&root.join(name), &mut |_, metadata| {
            count += 1;
            bytes += metadata.len();
        });
        (name, count, bytes)
    });
    Size {
        folders: folders.into(),
    }
}

/// Calls `visit` with every file below `folder`. What vanishes meanwhile, or can't be read, is left out.
pub(super) fn walk(folder: &Path, visit: &mut dyn FnMut(PathBuf, &fs::Metadata)) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            walk(&entry.path(), visit);
        } else {
            visit(entry.path(), &metadata);
        }
    }
}

/// The digest that a file below `objects` or `entries` is named by: `ab/cdef…`.
pub(super) fn digest_of(path: &Path) -> Option<engine::digest::Digest> {
    let name = path.file_name()?.to_str()?;
    let head = path.parent()?.file_name()?.to_str()?;
    format!("{head}{name}").parse().ok()
}

//! Sources: files, folders, hub repositories, addresses and packages, each resolved to one digest before planning.
//!
//! ```text
//! text ── location::Location ── Resolver ──► local.rs            files on disk
//!                                     └────► hub, pypi, http     bytes from outside ──► BlobStore
//! ```
//!
//! A source that was fetched is a list of blobs in the store, and a small note that says which location gave which
//! blobs, so that the next run finds them without the network. Nothing of this is ever part of a key but the digest.

mod address;
mod archive;
mod client;
mod download;
mod failure;
mod hub;
mod index;
mod local;
mod location;
mod memo;
mod network;
mod note;
mod pypi;
mod resolver;
mod url;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub use location::{HubLocation, Location, PypiLocation, SourceSpec, parse_spec};
pub use memo::Memo;
pub use network::{Network, Pip, PipConfig};
pub use resolver::{Progress, Resolver};
pub use url::Url;

/// One file of a resolved source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// The name inside the source: relative, `/`-separated, never with `.` or `..`.
    pub name: String,
    /// Where the bytes are: a file of the user's, or a blob of the store (whose own name says nothing).
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// blake3 of the bytes.
    pub digest: Digest,
}

/// A source that was found: its digest and its files.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the key of a stage sees: [`digest_of`] the files.
    pub digest: Digest,
    /// The files; those of a folder sorted by name, several files in the order in which they were written.
    pub files: Vec<SourceFile>,
    /// The alternative that answered, as text without secrets.
    pub location: String,
    /// Whether the bytes came from outside. They are then blobs of the store, which nobody edits.
    pub remote: bool,
    /// The commit that a hub repository's revision stood for.
    pub revision: Option<String>,
    /// What was left out, with the reason (hidden files, links to folders).
    pub skipped: Vec<String>,
}

/// Where fetched bytes are kept. The cache implements it.
pub trait BlobStore {
    /// The path of a blob that is present.
    fn path_of(&self, digest: &Digest) -> Option<PathBuf>;
    /// Takes over a file of [`BlobStore::temp_dir`] or [`BlobStore::partial_dir`], whose bytes have this digest.
    /// The file may be moved away or left; its bytes are not written to any more.
    fn import(&self, file: &Path, digest: &Digest) -> Result<PathBuf>;
    /// A private folder on the store's filesystem, removed when dropped.
    fn temp_dir(&self) -> Result<tempfile::TempDir>;
    /// A folder on the store's filesystem that outlives the process, for downloads that a later run resumes.
    /// Files in it that nobody touched for a week may be collected.
    fn partial_dir(&self) -> Result<PathBuf>;
    /// A small file that [`BlobStore::write_note`] wrote.
    fn read_note(&self, name: &str) -> Option<Vec<u8>>;
    /// Creates or replaces a small file in one step. Names are of `[a-z0-9.-]`.
    fn write_note(&self, name: &str, bytes: &[u8]) -> Result<()>;
}

/// A file as the digest of a source sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name inside the source.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// blake3 of the bytes.
    pub digest: Digest,
}

impl From<&SourceFile> for Entry {
    fn from(file: &SourceFile) -> Self {
        Entry {
            name: file.name.clone(),
            size: file.size,
            digest: file.digest,
        }
    }
}

/// The digest of a list of files (a folder: sorted by name in bytes; several files: in the order written):
/// blake3 over the bytes `levain-files-1\n`, the number of files, and for each file the length of its name, the name,
/// its size and the 32 bytes of its blake3. Numbers are unsigned, 8 bytes, little-endian.
///
/// A source of one single file is not a list: its digest is the blake3 of its bytes, as `b3sum` prints it.
pub fn digest_of(entries: &[Entry]) -> Digest {
    let mut bytes = b"levain-files-1\n".to_vec();
    bytes.extend((entries.len() as u64).to_le_bytes());
    for entry in entries {
        bytes.extend((entry.name.len() as u64).to_le_bytes());
        bytes.extend(entry.name.as_bytes());
        bytes.extend(entry.size.to_le_bytes());
        bytes.extend(entry.digest.as_bytes());
    }
    Digest::of_bytes(&bytes)
}

/// Fails if a file of the source is not any more what it was when the source was resolved. Called before a stage and
/// after it: what a stage made of a file that changed under it is never published.
///
/// # Errors
/// Names the first file that is gone, unreadable or different.
pub fn recheck(resolved: &Resolved, memo: &Memo) -> Result<()> {
    for file in &resolved.files {
        if resolved.remote {
            // Blobs are immutable; what can happen to them is that they vanish or are cut.
            match std::fs::metadata(&file.path) {
                Ok(found) if found.len() == file.size => continue,
                Ok(_) => bail!(
                    "{}: the blob of {} in the cache is damaged: run again to fetch it anew",
                    resolved.location,
                    file.name
                ),
                Err(error) => bail!(
                    "{}: the blob of {} left the cache while it was used ({error}): run again to fetch it",
                    resolved.location,
                    file.name
                ),
            }
        }
        let (digest, _) = memo.digest(&file.path)?;
        if digest != file.digest {
            bail!(
                "{} changed while it was used (blake3 was {}, is {}): nothing made of it was kept; run again",
                file.path.display(),
                file.digest.short(),
                digest.short()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by the Python package blake3 1.0.11:
    /// ```python
    /// import blake3, struct
    /// u = lambda n: struct.pack('<Q', n)
    /// files = [('a.json', b'[]'), ('b/c.txt', b'')]
    /// b = b'levain-files-1\n' + u(len(files))
    /// for n, x in files: b += u(len(n)) + n.encode() + u(len(x)) + blake3.blake3(x).digest()
    /// print(blake3.blake3(b).hexdigest())
    /// ```
    #[test]
    fn the_digest_of_a_list_is_the_one_written_down() {
        let entry = |name: &str, bytes: &[u8]| Entry {
            name: name.into(),
            size: bytes.len() as u64,
            digest: Digest::of_bytes(bytes),
        };
        let list = [entry("a.json", b"[]"), entry("b/c.txt", b"")];
        assert_eq!(
            digest_of(&list).to_string(),
            "cc72d66adc88deb1f1655ecc1d480658f1c218824cff1e73aa394889b5c82b39"
        );
    }
}

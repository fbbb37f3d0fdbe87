//! Notes: which blobs a location gave when it was fetched, so that they are found again without the network.

use serde::{Deserialize, Serialize};

use super::local::Found;
use super::{BlobStore, Entry, Location, SourceFile, digest_of};
use crate::digest::Digest;

/// What is remembered of a location that was fetched.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// The form of this file.
    version: u32,
    /// The location without secrets, for people.
    location: String,
    /// See [`Found::single`].
    single: bool,
    label: String,
    /// The commit a hub's revision stood for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    files: Vec<Entry>,
}

fn name_of(location: &Location) -> String {
    format!(
        "location-{}.json",
        &Digest::of_bytes(location.identity().as_bytes()).to_string()[..32]
    )
}

/// Writes down what `location` gave.
pub(super) fn write(
    store: &dyn BlobStore,
    location: &Location,
    found: &Found,
) -> anyhow::Result<()> {
    let note = Note {
        version: 1,
        location: location.to_string(),
        single: found.single,
        label: found.label.clone(),
        revision: found.revision.clone(),
        files: found.files.iter().map(Entry::from).collect(),
    };
    store.write_note(&name_of(location), &serde_json::to_vec_pretty(&note)?)
}

/// What `location` gave when it was last fetched, if all its blobs are still there.
pub(super) fn read(store: &dyn BlobStore, location: &Location) -> Option<Found> {
    let note: Note = serde_json::from_slice(&store.read_note(&name_of(location))?).ok()?;
    if note.version != 1 || note.files.is_empty() {
        return None;
    }
    Some(Found {
        files: present(store, &note.files)?,
        single: note.single,
        label: note.label,
        revision: note.revision,
        skipped: Vec::new(),
    })
}

/// Writes down which files a digest stands for, whatever location they came from.
pub(super) fn write_list(
    store: &dyn BlobStore,
    digest: &Digest,
    files: &[SourceFile],
) -> anyhow::Result<()> {
    let entries: Vec<Entry> = files.iter().map(Entry::from).collect();
    store.write_note(
        &format!("files-{digest}.json"),
        &serde_json::to_vec_pretty(&entries)?,
    )
}

/// The files of a known digest of several files, if all their blobs are there.
pub(super) fn read_list(store: &dyn BlobStore, digest: &Digest) -> Option<Vec<SourceFile>> {
    let entries: Vec<Entry> =
        serde_json::from_slice(&store.read_note(&format!("files-{digest}.json"))?).ok()?;
    // The note is no authority: its list must have the digest that was asked for.
    (digest_of(&entries) == *digest).then(|| present(store, &entries))?
}

fn present(store: &dyn BlobStore, entries: &[Entry]) -> Option<Vec<SourceFile>> {
    entries
        .iter()
        .map(|entry| {
            Some(SourceFile {
                name: entry.name.clone(),
                path: store.path_of(&entry.digest)?,
                size: entry.size,
                digest: entry.digest,
            })
        })
        .collect()
}

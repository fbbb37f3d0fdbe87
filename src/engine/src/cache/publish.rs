//! From a stage's private folder to artifacts under a key: hash, sync, link, and one entry as the last step.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Cache, Entry};
use crate::artifact::{FileEntry, Manifest, check_name};
use crate::digest::Digest;
use crate::job::{Draft, Drafts, Reference};
use crate::record::Record;

/// What came of publishing.
#[derive(Debug)]
pub struct Published {
    /// The entry that stands.
    pub entry: Entry,
    /// Whether it names other outputs than those that were just made.
    pub differs: bool,
}

/// Where and how an entry was made.
pub type Provenance = BTreeMap<String, Value>;

impl Cache {
    /// Publishes what a stage made in `out`. The entry that stands under the record's key afterwards is this one, or that of
    /// whoever was first; `replace` lets a recorded answer take the place of the one before.
    pub fn publish(
        &self,
        record: &Record,
        drafts: &Drafts,
        out: &Path,
        provenance: Provenance,
        replace: bool,
    ) -> Result<Published> {
        let mut done = BTreeMap::new();
        for name in drafts.keys() {
            self.publish_output(name, drafts, out, &mut done, 0)?;
        }
        let mut reaches = BTreeMap::new();
        let mut tokenizers = BTreeMap::new();
        for (name, digest) in &done {
            self.reach(*digest, &mut reaches)?;
            if let Some(tokenizer) = self.manifest(*digest)?.refs.get("tokenizer") {
                tokenizers.insert(name.clone(), *tokenizer);
            }
        }
        let entry = Entry {
            record: Arc::new(record.clone()),
            outputs: done,
            reaches: reaches.into_iter().collect(),
            tokenizers,
            provenance,
        };
        let stands = self.write_entry(record.key(), &entry, replace)?;
        Ok(Published {
            differs: stands.outputs != entry.outputs,
            entry: stands,
        })
    }

    fn publish_output(
        &self,
        name: &str,
        drafts: &Drafts,
        out: &Path,
        done: &mut BTreeMap<String, Digest>,
        depth: usize,
    ) -> Result<Digest> {
        if let Some(digest) = done.get(name) {
            return Ok(*digest);
        }
        if depth > drafts.len() {
            bail!("the outputs refer to each other in a circle");
        }
        let draft = drafts.get(name).with_context(|| {
            format!("an output refers to `{name}`, which the stage did not make")
        })?;
        let digest = self.publish_draft(draft, drafts, out, done, depth)?;
        done.insert(name.to_owned(), digest);
        Ok(digest)
    }

    fn publish_draft(
        &self,
        draft: &Draft,
        drafts: &Drafts,
        out: &Path,
        done: &mut BTreeMap<String, Digest>,
        depth: usize,
    ) -> Result<Digest> {
        let mut refs = BTreeMap::new();
        for (name, reference) in &draft.refs {
            let digest = match reference {
                Reference::Artifact(digest) => *digest,
                Reference::Output(output) => {
                    self.publish_output(output, drafts, out, done, depth + 1)?
                }
                Reference::Inline(inner) => {
                    self.publish_draft(inner, drafts, out, done, depth + 1)?
                }
            };
            refs.insert(name.clone(), digest);
        }
        let mut files = Vec::new();
        for (name, path) in &draft.files {
            check_name(name)?;
            files.push(self.publish_file(name, path, out)?);
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        if files.windows(2).any(|w| w[0].name == w[1].name) {
            bail!("an output has the same file twice");
        }
        let manifest = Manifest {
            artifact: draft.artifact,
            files,
            refs,
            summary: draft.summary.clone(),
        };
        self.put(&manifest.to_bytes())
    }

    fn publish_file(&self, name: &str, path: &Path, out: &Path) -> Result<FileEntry> {
        let metadata = fs::symlink_metadata(path)
            .with_context(|| format!("the stage did not write {}", path.display()))?;
        let inside = path.starts_with(out);
        if !metadata.is_file() && (inside || !fs::metadata(path)?.is_file()) {
            bail!("{} is not a plain file", path.display());
        }
        // A blob of this cache has its digest for a name: it is as good as it was for a hit.
        if let Some(digest) = self.digest_of(path)
            && self.has(digest, metadata.len())
        {
            return Ok(FileEntry {
                name: name.to_owned(),
                size: metadata.len(),
                digest,
            });
        }
        let (digest, size) =
            Digest::of_file(path).with_context(|| format!("{} can't be read", path.display()))?;
        if !self.has(digest, size) {
            if inside {
                self.adopt(path, digest)?;
            } else {
                let copy =
                    tempfile::NamedTempFile::new_in(self.root().join("tmp"))?.into_temp_path();
                // Shares blocks where the filesystem can.
                fs::copy(path, &copy).with_context(|| {
                    format!("{} can't be copied into the cache", path.display())
                })?;
                if Digest::of_file(&copy)?.0 != digest {
                    bail!("{} changed while it was read; run again", path.display());
                }
                self.adopt(&copy, digest)?;
            }
        }
        Ok(FileEntry {
            name: name.to_owned(),
            size,
            digest,
        })
    }
}

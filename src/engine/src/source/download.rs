//! Downloads: one file, resumed where an earlier try stopped, its length and its published digest checked.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use super::BlobStore;
use super::client::{Answer, Ask, Client};
use super::failure::{Failure, Tries};
use crate::digest::Digest;

/// What to download.
pub(super) struct Job {
    /// Where from. Headers of its own for the range are added.
    pub ask: Ask,
    /// What tells these bytes from others: names the partial file.
    pub identity: String,
    /// Whether the address always gives the same bytes (a commit, a published digest), so that a partial file may be
    /// continued without asking the server whether it changed.
    pub fixed: bool,
    /// The size, when it is known beforehand.
    pub size: Option<u64>,
    /// The published sha256, in hexadecimal digits.
    pub sha256: Option<String>,
    /// The commit that the hub must be speaking of.
    pub commit: Option<String>,
}

/// A file that came whole.
pub(super) struct Downloaded {
    part: Part,
    /// Its size in bytes.
    pub size: u64,
}

impl Downloaded {
    /// Where it is, until this value is dropped or imported.
    pub(super) fn path(&self) -> &Path {
        &self.part.path
    }

    /// blake3 of the bytes.
    pub(super) fn digest(&self) -> Result<Digest> {
        Ok(super::Memo::none().digest(&self.part.path)?.0)
    }

    /// Hands the bytes, which have this digest, to the store and removes the partial file.
    pub(super) fn import(self, store: &dyn BlobStore, digest: &Digest) -> Result<PathBuf> {
        let path = store.import(&self.part.path, digest)?;
        self.part.remove();
        Ok(path)
    }

    /// Throws the bytes away.
    pub(super) fn discard(self) {
        self.part.remove();
    }
}

/// Downloads `job`, telling `progress` the bytes so far and the size.
///
/// # Errors
/// The address, the status and the cause; what came so far is kept for the next run.
pub(super) fn download(
    client: &Client,
    store: &dyn BlobStore,
    job: &Job,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<Downloaded, Failure> {
    let broken = |error: anyhow::Error| Failure::lasting(format!("{}: {error:#}", job.ask.url));
    let mut part =
        Part::open(&store.partial_dir().map_err(broken)?, &job.identity).map_err(broken)?;
    let mut tries = Tries::new(client.network());
    let mut sha256 = job.sha256.clone();
    let mut restarted = false;
    let mut furthest = 0;
    loop {
        let resumed = part.length().map_err(broken)? > 0;
        match attempt(client, job, &mut part, &mut sha256, progress) {
            Ok(size) => {
                let verdict = verify(&mut part, sha256.as_deref()).map_err(broken)?;
                let Some(found) = verdict else {
                    return Ok(Downloaded { part, size });
                };
                part.clear().map_err(broken)?;
                if restarted || !resumed {
                    part.remove();
                    return Err(Failure::lasting(format!(
                        "{}: the bytes are not the published ones (sha256 {found}, published {}): damaged or replaced on the way",
                        job.ask.url,
                        sha256.unwrap_or_default()
                    )));
                }
                // The first half may be of an older file: once more, from the start.
                restarted = true;
            }
            Err(failure) => {
                // Only a connection that came further than all before it is progress: one that begins anew and breaks
                // at the same place would otherwise be tried for ever.
                let length = part.length().map_err(broken)?;
                if length > furthest {
                    furthest = length;
                    tries.progress();
                }
                if let Err(failure) = tries.pause(failure) {
                    if length == 0 {
                        part.remove();
                    }
                    return Err(failure);
                }
            }
        }
    }
}

/// One connection's worth. The size once the file is whole.
fn attempt(
    client: &Client,
    job: &Job,
    part: &mut Part,
    sha256: &mut Option<String>,
    progress: &dyn Fn(u64, Option<u64>),
) -> Result<u64, Failure> {
    let broken = |error: anyhow::Error| Failure::lasting(format!("{}: {error:#}", job.ask.url));
    let mut have = part.length().map_err(broken)?;
    let validator = part.validator();
    if have > 0 && (job.size.is_some_and(|size| have > size) || !job.fixed && validator.is_none()) {
        part.clear().map_err(broken)?;
        have = 0;
    }
    if have > 0 && job.size == Some(have) {
        return Ok(have);
    }
    let mut ask = job.ask.clone();
    // Compressed bytes could neither be counted nor continued.
    ask.headers.push(("accept-encoding", "identity".into()));
    if have > 0 {
        ask.headers.push(("range", format!("bytes={have}-")));
        if let Some(validator) = validator.filter(|_| !job.fixed) {
            ask.headers.push(("if-range", validator));
        }
    }
    let answer = match client.once(&ask) {
        Err(failure) if failure.status == Some(416) && have > 0 => {
            part.clear().map_err(broken)?;
            return Err(Failure::passing(failure.message));
        }
        answer => answer?,
    };
    let total = if answer.status.as_u16() == 206 {
        let (start, total) = content_range(&answer).ok_or_else(|| {
            Failure::lasting(format!(
                "{}: a part of the file without its place",
                answer.url
            ))
        })?;
        if start != have {
            part.clear().map_err(broken)?;
            return Err(Failure::passing(format!(
                "{}: the wrong part of the file came",
                answer.url
            )));
        }
        total
    } else {
        if have > 0 {
            part.clear().map_err(broken)?;
            have = 0;
        }
        answer.body.content_length()
    };
    if let (Some(expected), Some(total)) = (job.size, total)
        && expected != total
    {
        return Err(Failure::lasting(format!(
            "{}: {total} bytes are offered, {expected} were announced",
            answer.url
        )));
    }
    if let (Some(asked), Some(given)) = (&job.commit, answer.header_on_the_way("x-repo-commit"))
        && asked != given
    {
        return Err(Failure::lasting(format!(
            "{}: the hub answers with commit {given}, not {asked}",
            answer.url
        )));
    }
    // The hub tells the sha256 of large files in the redirect to where they are kept.
    if let Some(tag) = answer
        .header_on_the_way("x-linked-etag")
        .map(|tag| tag.trim_start_matches("W/").trim_matches('"'))
        && tag.len() == 64
        && tag.bytes().all(|b| b.is_ascii_hexdigit())
        && sha256.is_none()
    {
        *sha256 = Some(tag.to_ascii_lowercase());
    }
    let tag = answer
        .header("etag")
        .filter(|tag| !tag.starts_with("W/"))
        .or(answer.header("last-modified"));
    part.set_validator(tag.map(str::to_owned)).map_err(broken)?;
    let total = total.or(job.size);
    let url = answer.url.clone();
    let mut reader = answer.body.into_reader();
    let mut buffer = vec![0; 256 << 10];
    part.file
        .seek(SeekFrom::Start(have))
        .map_err(|error| broken(error.into()))?;
    progress(have, total);
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => {
                return Err(Failure::passing(format!(
                    "{url}: the connection broke after {have} bytes: {error}"
                )));
            }
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        part.file
            .write_all(bytes)
            .with_context(|| format!("{} cannot be written", part.path.display()))
            .map_err(broken)?;
        have += read as u64;
        if total.is_some_and(|total| have > total) {
            part.clear().map_err(broken)?;
            return Err(Failure::lasting(format!(
                "{url}: more bytes came than were announced"
            )));
        }
        progress(have, total);
    }
    match total {
        Some(total) if have < total => Err(Failure::passing(format!(
            "{url}: the connection ended after {have} of {total} bytes"
        ))),
        _ => Ok(have),
    }
}

/// `bytes 5-9/10` → (5, Some(10)).
fn content_range(answer: &Answer) -> Option<(u64, Option<u64>)> {
    let (range, total) = answer
        .header("content-range")?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    Some((start, total.parse().ok()))
}

/// The sha256 found, if it is not the published one.
fn verify(part: &mut Part, published: Option<&str>) -> Result<Option<String>> {
    let Some(published) = published else {
        return Ok(None);
    };
    part.file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = part.file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
    let found: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((!found.eq_ignore_ascii_case(published)).then_some(found))
}

/// A partial file, locked so that two processes never write into one; beside it, what the server called that version.
struct Part {
    file: File,
    path: PathBuf,
    tag: PathBuf,
}

impl Part {
    fn open(folder: &Path, identity: &str) -> Result<Part> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        let name = &Digest::of_bytes(identity.as_bytes()).to_string()[..32];
        let mut path = folder.join(format!("{name}.part"));
        for turn in 0..100 {
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path);
            let (file, readable) = match opened {
                Ok(file) => (file, false),
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    let file = File::open(&path);
                    (
                        file.with_context(|| format!("{} cannot be written", path.display()))?,
                        true,
                    )
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("{} cannot be written", path.display()));
                }
            };
            // Where a filesystem knows no locks, its one user is trusted.
            if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
                // Somebody else is at it. Rather than wait for a process that may hang, use a file of our own.
                path = folder.join(format!("{name}-{}-{turn}.part", std::process::id()));
                continue;
            }
            let metadata = file.metadata()?;
            if readable || metadata.nlink() > 1 || metadata.permissions().readonly() {
                // It was handed to the store by a process that died before it removed this name: the bytes are a
                // blob's by now and may not be touched.
                if metadata.nlink() > 0 {
                    std::fs::remove_file(&path).ok();
                }
                continue;
            }
            // The one who had it may have moved the file away between our opening and our locking it.
            let named = std::fs::metadata(&path).map(|m| m.ino()).ok();
            if named == Some(metadata.ino()) {
                let tag = path.with_extension("tag");
                return Ok(Part { file, path, tag });
            }
        }
        bail!("{} is taken by other processes", path.display())
    }

    fn length(&self) -> Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn clear(&mut self) -> Result<()> {
        self.set_validator(None)?;
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        Ok(())
    }

    fn validator(&self) -> Option<String> {
        std::fs::read_to_string(&self.tag).ok()
    }

    fn set_validator(&self, tag: Option<String>) -> Result<()> {
        match tag {
            Some(tag) => std::fs::write(&self.tag, tag)?,
            None => match std::fs::remove_file(&self.tag) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            },
        }
        Ok(())
    }

    /// Removes what is left of it, before the lock goes. The store may have moved the file away already.
    fn remove(self) {
        for path in [&self.path, &self.tag] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::debug!(path = %path.display(), %error, "a partial file stays");
                }
                _ => {}
            }
        }
    }
}

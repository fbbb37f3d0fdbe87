//! The memo of digests: a file that did not change since it was hashed is not hashed again.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::digest::Digest;

/// A file written less than this before it was hashed may be written again without a change of its times, on
/// filesystems whose clock is coarse; what is learned of it is not remembered.
const YOUNG_NANOSECONDS: i128 = 2_000_000_000;

/// No line of the memo is longer.
const LINE_BYTES: usize = 256;

/// (device, inode, size, modification time, change time) → digest, one small file per path. It only saves reading:
/// it is never part of a key, and a memo that cannot be read or written is no error.
#[derive(Debug, Clone)]
pub struct Memo {
    folder: Option<PathBuf>,
}

/// What tells that a file is the one that was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: i128,
    changed: i128,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        let nanoseconds = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn is_young(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as i128);
        // Times in the future are as little to be trusted.
        now - self.modified.max(self.changed) < YOUNG_NANOSECONDS
    }

    fn line(&self, digest: &Digest) -> String {
        format!(
            "1 {} {} {} {} {} {digest}\n",
            self.device, self.inode, self.size, self.modified, self.changed
        )
    }
}

impl Memo {
    /// A memo in a folder of the cache, which is made when it is first needed.
    pub fn new(folder: impl Into<PathBuf>) -> Memo {
        Memo {
            folder: Some(folder.into()),
        }
    }

    /// A memo that remembers nothing.
    pub fn none() -> Memo {
        Memo { folder: None }
    }

    /// The digest and the size in bytes of a regular file.
    ///
    /// # Errors
    /// It is missing, not a regular file (a pipe is not waited for), unreadable, or keeps changing while it is read.
    pub fn digest(&self, path: &Path) -> Result<(Digest, u64)> {
        let (file, mut metadata) = open_regular(path)?;
        for _ in 0..3 {
            let before = Stamp::of(&metadata);
            if let Some(digest) = self.recall(path, &before) {
                return Ok((digest, before.size));
            }
            let (digest, size) = hash(path)?;
            metadata = file.metadata()?;
            let after = Stamp::of(&metadata);
            // The path may name another file by now, which is as good as a change.
            let named = std::fs::metadata(path).map(|m| Stamp::of(&m)).ok();
            if before == after && named == Some(after) && size == after.size {
                if !after.is_young() {
                    self.remember(path, &after, &digest);
                }
                return Ok((digest, size));
            }
        }
        bail!(
            "{} changes while it is read: wait until nothing writes to it",
            path.display()
        )
    }

    fn entry(&self, path: &Path) -> Option<PathBuf> {
        let whole = std::path::absolute(path).ok()?;
        let name = Digest::of_bytes(whole.as_os_str().as_encoded_bytes()).to_string();
        Some(self.folder.as_ref()?.join(&name[..32]))
    }

    fn recall(&self, path: &Path, stamp: &Stamp) -> Option<Digest> {
        let mut text = String::with_capacity(LINE_BYTES);
        let entry = File::open(self.entry(path)?).ok()?;
        entry
            .take(LINE_BYTES as u64)
            .read_to_string(&mut text)
            .ok()?;
        let digest = text.trim_end().rsplit(' ').next()?.parse().ok()?;
        (stamp.line(&digest) == text).then_some(digest)
    }

    fn remember(&self, path: &Path, stamp: &Stamp, digest: &Digest) {
        let write = || -> Option<()> {
            let entry = self.entry(path)?;
            let folder = entry.parent()?;
            std::fs::create_dir_all(folder).ok()?;
            let mut file = tempfile::NamedTempFile::new_in(folder).ok()?;
            file.write_all(stamp.line(digest).as_bytes()).ok()?;
            file.persist(entry).ok()?;
            Some(())
        };
        if write().is_none() && self.folder.is_some() {
            tracing::debug!(path = %path.display(), "the digest could not be remembered");
        }
    }
}

/// Opens a regular file for reading. A pipe is refused without waiting for its writer.
pub(super) fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .with_context(|| format!("{}: cannot be read", path.display()))?;
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        bail!(
            "{} is {}, not a regular file: its bytes cannot be pinned; copy them into a file",
            path.display(),
            kind_name(kind)
        );
    }
    Ok((file, metadata))
}

/// What a thing on disk is, in a message.
pub(super) fn kind_name(kind: std::fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () if kind.is_symlink() => "a link",
        () => "something else",
    }
}

/// Reads the file rather than mapping it: a file of the user's that is cut while it is mapped would kill the process.
fn hash(path: &Path) -> Result<(Digest, u64)> {
    let (mut file, _) = open_regular(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("{}: cannot be read", path.display()))?;
        if read == 0 {
            break;
        }
        match buffer.get(..read) {
            Some(bytes) if read >= 256 << 10 => hasher.update_rayon(bytes),
            Some(bytes) => hasher.update(bytes),
            None => bail!("{}: a read of {read} bytes", path.display()),
        };
    }
    let size = hasher.count();
    Ok((Digest::from_bytes(*hasher.finalize().as_bytes()), size))
}

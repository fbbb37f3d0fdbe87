//! Blobs, manifests and entries on disk.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::Entry;
use super::folder::Folder;
use crate::artifact::{ArtifactView, Manifest};
use crate::digest::Digest;

/// Every blob carries this modification time, so that one that was edited in place is noticed by a `stat`.
const BLOB_TIME: Duration = Duration::from_secs(1);

const README: &str = include_str!("README.md");

/// A cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    objects: Folder,
    pub(super) entries: Folder,
}

/// Where the cache is: the option, then the environment's `LEVAIN_CACHE`, then the nearest folder `cache` with a Levain
/// `README.md` in the recipe's folder or above it, then a new folder `cache` beside the recipe.
pub fn locate(option: Option<&Path>, environment: Option<&Path>, recipe_folder: &Path) -> PathBuf {
    if let Some(path) = option.or(environment) {
        return path.to_owned();
    }
    let start = recipe_folder
        .canonicalize()
        .unwrap_or_else(|_| recipe_folder.to_owned());
    let first_line = README.lines().next().unwrap_or("");
    for folder in start.ancestors() {
        let candidate = folder.join("cache");
        if fs::read_to_string(candidate.join("README.md"))
            .is_ok_and(|text| text.lines().next() == Some(first_line))
        {
            return candidate;
        }
    }
    start.join("cache")
}

impl Cache {
    /// Opens the cache at `root`, laying it out when it is new.
    pub fn open(root: &Path) -> Result<Self> {
        let make = || -> std::io::Result<()> {
            for folder in [
                "objects",
                "entries",
                "answers",
                "leases",
                "partial",
                "runs",
                "sources",
                "tmp",
                "quarantine",
            ] {
                fs::create_dir_all(root.join(folder))?;
            }
            if !root.join("README.md").exists() {
                fs::write(root.join("README.md"), README)?;
            }
            if !root.join("CACHEDIR.TAG").exists() {
                fs::write(
                    root.join("CACHEDIR.TAG"),
                    "Signature: 8a477f597d28d172789f06886806bc55\n",
                )?;
            }
            Ok(())
        };
        // A cache that can only be read is of use as long as every stage is a hit.
        match make() {
            Ok(()) => {}
            Err(_) if root.join("entries").is_dir() => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("the cache {} can't be made; name another with `--cache DIR` or LEVAIN_CACHE", root.display())
                });
            }
        }
        let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let open = |name: &str| {
            let path = root.join(name);
            Folder::open(path.clone()).with_context(|| format!("{} can't be read", path.display()))
        };
        Ok(Self {
            objects: open("objects")?,
            entries: open("entries")?,
            root,
        })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A new private folder on the cache's filesystem, removed when dropped.
    pub fn private_folder(&self) -> Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix("work-").tempdir_in(self.root.join("tmp")).with_context(|| {
            format!("the cache {} can't be written; name another with `--cache DIR` or LEVAIN_CACHE", self.root.display())
        })
    }

    /// The folder for snapshots of the computation `partial`, made when missing.
    pub fn snapshots(&self, partial: Digest) -> Result<PathBuf> {
        let path = self.root.join("partial").join(partial.to_string());
        fs::create_dir_all(&path).with_context(|| format!("{} can't be made", path.display()))?;
        Ok(path)
    }

    /// The folder for answers to the questions `asked`, which may not be there yet.
    pub fn answers(&self, asked: Digest) -> PathBuf {
        self.root.join("answers").join(asked.to_string())
    }

    /// The folder for runs.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Where the blob `digest` is, or would be.
    pub fn object_path(&self, digest: Digest) -> PathBuf {
        self.objects.path_of(digest)
    }

    /// The digest of the blob that lies at `path`, when that is the place of one.
    pub(super) fn digest_of(&self, path: &Path) -> Option<Digest> {
        let below = path.strip_prefix(self.root.join("objects")).ok()?;
        let digest = below.to_str()?.replacen('/', "", 1).parse().ok()?;
        (self.object_path(digest) == path).then_some(digest)
    }

    /// Whether the blob is there with its size and untouched. A touched blob is hashed: a damaged one is quarantined.
    pub fn has(&self, digest: Digest, size: u64) -> bool {
        let Ok(found) = self.objects.look(digest) else {
            return false;
        };
        if u64::try_from(found.st_size) == Ok(size)
            && u64::try_from(found.st_mtime) == Ok(BLOB_TIME.as_secs())
            && found.st_mtime_nsec == 0
        {
            return true;
        }
        let path = self.object_path(digest);
        match Digest::of_file(&path) {
            Ok((found, length)) if found == digest && length == size => {
                let _ = seal(&path);
                true
            }
            Ok(_) => {
                self.quarantine(digest);
                false
            }
            Err(_) => false,
        }
    }

    /// Sets a damaged blob aside, so that what needs it becomes a miss.
    pub fn quarantine(&self, digest: Digest) {
        let path = self.object_path(digest);
        let to = self.root.join("quarantine").join(digest.to_string());
        tracing::warn!(
            "the blob {} is damaged and was moved to {}",
            digest.short(),
            to.display()
        );
        if fs::rename(&path, &to).is_err() {
            let _ = fs::remove_file(&path);
        }
    }

    /// A blob's bytes, verified.
    pub fn read(&self, digest: Digest) -> Result<Vec<u8>> {
        let bytes = fs::read(self.object_path(digest))
            .with_context(|| format!("the cache has no blob {}", digest.short()))?;
        if Digest::of_bytes(&bytes) != digest {
            self.quarantine(digest);
            bail!(
                "the blob {} was damaged; it was set aside, run again to make it anew",
                digest.short()
            );
        }
        Ok(bytes)
    }

    /// The manifest of an artifact, verified.
    pub fn manifest(&self, artifact: Digest) -> Result<Manifest> {
        Manifest::from_bytes(&self.read(artifact)?)
    }

    /// The artifact with the places of all its files, and of everything that it refers to.
    pub fn view(&self, artifact: Digest) -> Result<ArtifactView> {
        let manifest = self.manifest(artifact)?;
        let mut files = Vec::new();
        for file in &manifest.files {
            if !self.has(file.digest, file.size) {
                bail!(
                    "the blob of `{}` in the {} {} is gone; run again to make it anew",
                    file.name,
                    manifest.artifact,
                    artifact.short()
                );
            }
            files.push((file.name.clone(), self.object_path(file.digest)));
        }
        let refs = manifest
            .refs
            .iter()
            .map(|(name, digest)| Ok((name.clone(), self.view(*digest)?)))
            .collect::<Result<_>>()?;
        Ok(ArtifactView {
            digest: artifact,
            artifact: manifest.artifact,
            files,
            refs,
            summary: manifest.summary,
        })
    }

    /// Every blob that `artifact` reaches, its own manifest included: (digest, size).
    pub fn reach(
        &self,
        artifact: Digest,
        out: &mut std::collections::BTreeMap<Digest, u64>,
    ) -> Result<()> {
        if out.contains_key(&artifact) {
            return Ok(());
        }
        let bytes = self.read(artifact)?;
        out.insert(artifact, bytes.len() as u64);
        let manifest = Manifest::from_bytes(&bytes)?;
        out.extend(manifest.files.iter().map(|f| (f.digest, f.size)));
        manifest.refs.values().try_for_each(|r| self.reach(*r, out))
    }

    /// Puts a file that lies on the cache's filesystem in its place as a blob.
    pub fn adopt(&self, file: &Path, digest: Digest) -> Result<PathBuf> {
        let to = self.object_path(digest);
        let folder = to.parent().context("a blob has a folder")?;
        fs::create_dir_all(folder)
            .with_context(|| format!("{} can't be made", folder.display()))?;
        seal(file)?;
        fs::File::open(file)?.sync_all()?;
        match fs::hard_link(file, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let size = fs::metadata(file)?.len();
                if !self.has(digest, size) {
                    // The one that was there is damaged and gone by now.
                    fs::hard_link(file, &to).or_else(|e| {
                        if e.kind() == std::io::ErrorKind::AlreadyExists {
                            Ok(())
                        } else {
                            Err(e)
                        }
                    })?;
                }
            }
            Err(error) => {
                return Err(error).with_context(|| format!("{} can't be written", to.display()));
            }
        }
        let _ = fs::remove_file(file);
        fs::File::open(folder)?.sync_all()?;
        Ok(to)
    }

    /// Stores bytes as a blob.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of_bytes(bytes);
        if self.has(digest, bytes.len() as u64) {
            return Ok(digest);
        }
        let mut file = tempfile::NamedTempFile::new_in(self.root.join("tmp"))
            .context("the cache can't be written")?;
        file.write_all(bytes)?;
        let (_, path) = file.keep()?;
        self.adopt(&path, digest)?;
        Ok(digest)
    }

    /// Writes an entry, create-only unless `replace`: whoever comes second gets the first one's. An entry whose blobs are gone is
    /// replaced.
    pub(super) fn write_entry(&self, key: Digest, entry: &Entry, replace: bool) -> Result<Entry> {
        let to = self.entries.path_of(key);
        let folder = to.parent().context("an entry has a folder")?;
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(self.root.join("tmp"))?;
        file.write_all(&serde_json::to_vec(entry)?)?;
        // For whoever shares the cache, as blobs are.
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        match fs::hard_link(file.path(), &to) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                match self.hit(key).filter(|_| !replace) {
                    Some(first) => return Ok(first),
                    None => {
                        file.persist(&to).map_err(|e| e.error)?;
                    }
                }
            }
            Err(error) => {
                return Err(error).with_context(|| format!("{} can't be written", to.display()));
            }
        }
        fs::File::open(folder)?.sync_all()?;
        Ok(entry.clone())
    }
}

/// Read only, with the time that says nobody touched it since.
fn seal(path: &Path) -> Result<()> {
    let file = fs::File::options()
        .write(true)
        .open(path)
        .or_else(|_| fs::File::open(path))?;
    file.set_modified(SystemTime::UNIX_EPOCH + BLOB_TIME)
        .with_context(|| format!("{}: its time can't be set", path.display()))?;
    file.set_permissions(fs::Permissions::from_mode(0o444))?;
    Ok(())
}

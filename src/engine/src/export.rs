//! Artifacts written into folders of the user: `outputs` of a recipe and `levain export`.
//!
//! A folder of `outputs` belongs to the recipe: a file in it, [`MARK`], lists what was written there. Nothing else in it is ever touched,
//! and a folder with files and without the list is somebody else's.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::artifact::{ArtifactType, ArtifactView};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::recipe::Format;

/// The file beside an exported adapter, or a head alone, that says which base it was made for. PEFT leaves it alone.
pub const BASE: &str = "levain_base.json";

/// What an exported adapter or head was made for, in [`BASE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The artifact of the weights under the adapter, or of the model under the head.
    pub artifact: Digest,
    /// The contents of its files of weights, in their order: the same model in another type has the same.
    pub weights: Vec<Digest>,
}

impl Base {
    /// The base of a model with an adapter, and the model that the files of a classifier leave out; none of another artifact.
    fn of(cache: &Cache, view: &ArtifactView) -> Result<Option<Base>> {
        let base = match view.artifact {
            ArtifactType::Classifier => left_out(view),
            _ => view.refs.get("base").map(|_| innermost(view)),
        };
        let Some(base) = base else {
            return Ok(None);
        };
        let files = cache.manifest(base.digest)?.files;
        let mut weights: Vec<Digest> = files
            .iter()
            .filter(|file| is_weights(&file.name))
            .map(|file| file.digest)
            .collect();
        weights.sort_unstable();
        let artifact = base.digest;
        Ok(Some(Base { artifact, weights }))
    }
}

/// The weights under all adapters of a model.
fn innermost(model: &ArtifactView) -> &ArtifactView {
    let mut base = model;
    while let Some(inner) = base.refs.get("base") {
        base = inner;
    }
    base
}

/// The model that the files of a classifier leave out: the base of its adapter, or of a head alone the model whose vectors it takes.
fn left_out(classifier: &ArtifactView) -> Option<&ArtifactView> {
    let model = classifier.refs.get("model")?;
    let has = |name: &str| classifier.files.iter().any(|(own, _)| own == name);
    let weights = classifier.files.iter().filter(|(name, _)| is_weights(name));
    if has("adapter_config.json") {
        return Some(innermost(model));
    }
    (weights.count() == 1).then_some(model)
}

/// Whether a file of a model holds weights.
pub fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

/// What a file of an export holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A blob on disk.
    Blob(PathBuf),
    /// Bytes that are made for the export.
    Made(Vec<u8>),
}

impl Content {
    fn digest(&self) -> Result<Digest> {
        match self {
            Content::Blob(blob) => {
                let (digest, _) = Digest::of_file(blob)
                    .with_context(|| format!("{} can't be read", blob.display()))?;
                Ok(digest)
            }
            Content::Made(bytes) => Ok(Digest::of_bytes(bytes)),
        }
    }

    fn write(&self, to: &Path) -> io::Result<()> {
        match self {
            Content::Blob(blob) => fs::copy(blob, to).map(drop),
            Content::Made(bytes) => fs::write(to, bytes),
        }
    }
}

/// The files that an artifact has in the given form, by name.
pub fn files(
    cache: &Cache,
    view: &ArtifactView,
    format: Format,
) -> Result<BTreeMap<String, Content>> {
    let blob = |(name, path): &(String, PathBuf)| (name.clone(), Content::Blob(path.clone()));
    let mut files: BTreeMap<_, _> = view.files.iter().map(blob).collect();
    match format {
        Format::Peft if !files.contains_key("adapter_config.json") => {
            bail!(
                "this {} has no adapter, so it can't be written as `peft`",
                view.artifact
            )
        }
        Format::Peft if files.contains_key("adapter.safetensors") => {
            bail!(
                "this {} has bottleneck adapters, which PEFT does not know: leave `format` out, and the files are those that Python's package \
                 `adapters` opens",
                view.artifact
            )
        }
        Format::Peft | Format::Files => {}
    }
    if let Some(base) = Base::of(cache, view)? {
        let text = serde_json::to_string_pretty(&base)? + "\n";
        files.insert(BASE.to_owned(), Content::Made(text.into_bytes()));
    }
    let tokenizer = view.refs.get("tokenizer").filter(|_| {
        matches!(
            view.artifact,
            ArtifactType::Model | ArtifactType::RewardModel | ArtifactType::Classifier
        )
    });
    if let Some(tokenizer) = tokenizer {
        files.extend(tokenizer.files.iter().map(blob));
    }
    Ok(files)
}

/// The list of what was written into a folder of `outputs`.
pub const MARK: &str = ".levain-output.json";

/// What was written: name → content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    files: BTreeMap<String, Digest>,
}

impl Written {
    /// The list in a folder; an empty one where there are no files yet.
    fn read(folder: &Path) -> Result<Written> {
        let path = folder.join(MARK);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{} is no list of an output's files: remove it",
                    path.display()
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                ensure!(
                    !has_files(folder)?,
                    "{} has files that no output of a recipe wrote: name another folder, or move them away",
                    folder.display()
                );
                Ok(Written::default())
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                Err(error).with_context(|| format!("{} can't be written", folder.display()))
            }
            Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
        }
    }

    /// Replaces the list as a whole. What a kill leaves of it begins with its name, and so is known to be ours.
    fn write(&self, folder: &Path) -> Result<()> {
        let fail = || format!("{} can't be written", folder.join(MARK).display());
        let mut file = tempfile::Builder::new()
            .prefix(MARK)
            .tempfile_in(folder)
            .with_context(fail)?;
        writeln!(file, "{}", serde_json::to_string_pretty(self)?).with_context(fail)?;
        file.as_file()
            .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .with_context(fail)?;
        let kept = file.persist(folder.join(MARK)).map_err(|e| e.error);
        kept.map(drop).with_context(fail)
    }
}

/// Whether anything but folders and our own list lies in it.
fn has_files(folder: &Path) -> Result<bool> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            return Err(error).with_context(|| format!("{} can't be read", folder.display()));
        }
    };
    for entry in entries {
        let entry = entry?;
        let ours = entry.file_name().to_string_lossy().starts_with(MARK);
        if !ours && !entry.file_type()?.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses a folder that a link takes out of `root`.
fn check_inside(root: &Path, folder: &Path) -> Result<()> {
    let mut there: PathBuf = folder.to_owned();
    while fs::symlink_metadata(&there).is_err() && there.pop() {}
    let real = there
        .canonicalize()
        .with_context(|| format!("{} leads nowhere", there.display()))?;
    let root = root
        .canonicalize()
        .with_context(|| format!("{} can't be read", root.display()))?;
    ensure!(
        real.starts_with(&root),
        "{} leads out of the recipe's folder, to {}: `levain export` writes anywhere",
        folder.display(),
        real.display()
    );
    Ok(())
}

/// Brings the folder `to` of an output, relative to `root`, up to date: writes what is missing or was changed, removes what an earlier
/// artifact left there unchanged, and touches nothing else. Returns how many files were written.
///
/// Errors when the folder holds files of somebody else, and when a link takes it out of `root`.
pub fn restore_output(
    cache: &Cache,
    artifact: Digest,
    format: Format,
    root: &Path,
    to: &str,
) -> Result<usize> {
    let folder = root.join(to);
    check_inside(root, &folder)?;
    let before = Written::read(&folder)?;
    let view = cache.view(artifact)?;
    let mut now = Written::default();
    for (name, content) in files(cache, &view, format)? {
        let digest = content.digest()?;
        let path = folder.join(&name);
        let foreign = !before.files.contains_key(&name) && fs::symlink_metadata(&path).is_ok();
        ensure!(
            !foreign,
            "{} was not written by this recipe: move it away, or name another folder",
            path.display()
        );
        now.files.insert(name, digest);
    }
    // Before the files: whatever a killed run leaves is known to be its own.
    let mut both = before.clone();
    both.files
        .extend(now.files.iter().map(|(n, d)| (n.clone(), *d)));
    if both != before {
        fs::create_dir_all(&folder)
            .with_context(|| format!("{} can't be made", folder.display()))?;
        both.write(&folder)?;
    }
    let written = restore(cache, artifact, format, &folder)?;
    for (name, digest) in before
        .files
        .iter()
        .filter(|(name, _)| !now.files.contains_key(*name))
    {
        let path = folder.join(name);
        if Digest::of_file(&path).is_ok_and(|(found, _)| found == *digest) {
            fs::remove_file(&path)
                .with_context(|| format!("{} can't be removed", path.display()))?;
        }
    }
    if both != now {
        now.write(&folder)?;
    }
    Ok(written)
}

/// Writes `artifact` to `folder`, whole files only, touching none that is already right. Returns how many were written.
pub fn restore(cache: &Cache, artifact: Digest, format: Format, folder: &Path) -> Result<usize> {
    let view = cache.view(artifact)?;
    let fail = || format!("{} can't be written", folder.display());
    fs::create_dir_all(folder).with_context(fail)?;
    let mut written = 0;
    for (name, content) in files(cache, &view, format)? {
        let to = folder.join(&name);
        let wanted = content.digest()?;
        let same = fs::symlink_metadata(&to).is_ok_and(|m| m.is_file())
            && Digest::of_file(&to).is_ok_and(|(d, _)| d == wanted);
        if same {
            continue;
        }
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(fail)?;
        }
        let copy =
            tempfile::NamedTempFile::new_in(to.parent().unwrap_or(folder)).with_context(fail)?;
        content.write(copy.path()).with_context(fail)?;
        // Blobs are read only; what the user gets is theirs to change.
        fs::set_permissions(
            copy.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o644),
        )?;
        copy.persist(&to).map_err(|e| e.error).with_context(fail)?;
        written += 1;
    }
    Ok(written)
}

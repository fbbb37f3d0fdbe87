//! Artifacts written into folders of the user: `outputs` of a recipe and `levain export`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::artifact::{ArtifactType, ArtifactView};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::recipe::Format;

/// The files that `artifact` has in the given form: name → blob on disk.
pub fn files(view: &ArtifactView, format: Format) -> Result<BTreeMap<String, std::path::PathBuf>> {
    let mut files: BTreeMap<_, _> = view.files.iter().cloned().collect();
    match format {
        Format::Peft if !files.contains_key("adapter_config.json") => {
            bail!(
                "this {} has no adapter, so it can't be written as `peft`",
                view.artifact
            )
        }
        Format::Files | Format::Peft => {}
    }
    let tokenizer = view.refs.get("tokenizer").filter(|_| {
        matches!(
            view.artifact,
            ArtifactType::Model | ArtifactType::RewardModel
        )
    });
    if let Some(tokenizer) = tokenizer {
        files.extend(tokenizer.files.iter().cloned());
    }
    Ok(files)
}

/// Writes `artifact` to `folder`, whole files only, touching none that is already right. Returns how many were written.
pub fn restore(cache: &Cache, artifact: Digest, format: Format, folder: &Path) -> Result<usize> {
    let view = cache.view(artifact)?;
    let fail = || format!("{} can't be written", folder.display());
    fs::create_dir_all(folder).with_context(fail)?;
    let mut written = 0;
    for (name, blob) in files(&view, format)? {
        let to = folder.join(&name);
        let (wanted, _) =
            Digest::of_file(&blob).with_context(|| format!("{} can't be read", blob.display()))?;
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
        fs::copy(&blob, copy.path()).with_context(fail)?;
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

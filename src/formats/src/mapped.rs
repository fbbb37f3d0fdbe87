//! A whole file mapped into memory, read only.

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The bytes of a file and its path, which every error about them names.
pub(crate) struct Mapped {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl Mapped {
    /// Maps a regular, non-empty file.
    pub(crate) fn open(path: &Path) -> Result<Mapped> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        let metadata = file
            .metadata()
            .with_context(|| format!("cannot read {shown}"))?;
        ensure!(
            metadata.is_file(),
            "{shown} is not a file; name the model file itself"
        );
        ensure!(
            metadata.len() > 0,
            "{shown} is empty; fetch or write it again"
        );
        // SAFETY: the map is only read. Nobody may cut the file short while it is mapped (the process
        // would be killed): objects in the cache are immutable and replaced by rename, never in place.
        let map = unsafe { memmap2::Mmap::map(&file) }
            .with_context(|| format!("cannot map {shown} into memory"))?;
        Ok(Mapped {
            path: path.to_owned(),
            map,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "Mapped({}, {} bytes)",
            self.path.display(),
            self.map.len()
        )
    }
}

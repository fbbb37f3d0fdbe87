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

    /// Tells the system that these bytes will not be read again soon, so that a large file that was read does not count as memory in use.
    pub(crate) fn release(&self, range: std::ops::Range<usize>) {
        // SAFETY: pages of a read-only map of a file that nobody changes come back from the file with the same bytes. It is only advice:
        // where it is refused, nothing is lost.
        let _ = unsafe {
            self.map.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                range.start,
                range.len(),
            )
        };
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

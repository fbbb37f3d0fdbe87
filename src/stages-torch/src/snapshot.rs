//! Snapshots of a long stage: folders `step-N`, complete once they have their final name; the newest wins.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The snapshots of one computation.
pub(crate) struct Snapshots {
    folder: PathBuf,
    /// Written, and not yet known to be whole.
    pending: Option<(PathBuf, PathBuf)>,
}

impl Snapshots {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            pending: None,
        }
    }

    /// The newest complete snapshot.
    pub(crate) fn newest(&self) -> Option<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(&self.folder)
            .ok()?
            .flatten()
            .map(|e| e.path())
            .collect();
        found.retain(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("step-"))
        });
        found.sort();
        found.pop()
    }

    /// A private folder for the snapshot after `step`.
    pub(crate) fn begin(&mut self, step: usize) -> PathBuf {
        let private = self
            .folder
            .join(format!("writing-{}-{step}", std::process::id()));
        self.pending = Some((
            private.clone(),
            self.folder.join(format!("step-{step:010}")),
        ));
        private
    }

    /// Gives the folder of the last [`begin`](Self::begin) its final name, now that all of it is written, and removes older ones.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let Some((private, name)) = self.pending.take() else {
            return Ok(());
        };
        for entry in
            fs::read_dir(&private).with_context(|| format!("{} is not there", private.display()))?
        {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        let older: Vec<PathBuf> = fs::read_dir(&self.folder)?
            .flatten()
            .map(|e| e.path())
            .filter(|p| *p != private)
            .collect();
        fs::rename(&private, &name)
            .with_context(|| format!("{} can't be written", name.display()))?;
        fs::File::open(&self.folder)?.sync_all()?;
        for path in older.iter().filter(|p| **p != name) {
            let _ = fs::remove_dir_all(path);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_finished_snapshot_counts_and_the_newest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut snapshots = Snapshots::new(folder.path());
        let one = snapshots.begin(9);
        fs::create_dir(&one).unwrap();
        fs::write(one.join("state"), "9").unwrap();
        assert_eq!(snapshots.newest(), None);
        snapshots.finish().unwrap();
        assert!(snapshots.newest().unwrap().ends_with("step-0000000009"));
        let two = snapshots.begin(10);
        fs::create_dir(&two).unwrap();
        assert!(snapshots.newest().unwrap().ends_with("step-0000000009"));
        snapshots.finish().unwrap();
        assert!(snapshots.newest().unwrap().ends_with("step-0000000010"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

//! Snapshots of a long stage: folders `step-N`, complete once they have their final name; the newest wins. Each lists the digests of
//! its files: what goes on from other bytes than were written would end with a wrong result under a right key.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use engine::digest::Digest;

/// File name to digest, of all other files in a snapshot.
const DIGESTS: &str = "digests.json";

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

    /// The newest complete snapshot. One that is damaged is removed, and `damaged` is told why.
    pub(crate) fn newest(&self, damaged: &mut dyn FnMut(&str)) -> Option<PathBuf> {
        let mut found: Vec<(String, PathBuf)> = fs::read_dir(&self.folder)
            .ok()?
            .flatten()
            .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
            .filter(|(name, _)| name.starts_with("step-"))
            .collect();
        found.sort();
        while let Some((name, path)) = found.pop() {
            let Err(error) = whole(&path) else {
                return Some(path);
            };
            let step = name["step-".len()..].trim_start_matches('0');
            damaged(&format!(
                "the snapshot after step {step} is damaged and is not used: {error:#}"
            ));
            let _ = fs::remove_dir_all(&path);
        }
        None
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
        let mut digests = BTreeMap::new();
        for entry in
            fs::read_dir(&private).with_context(|| format!("{} is not there", private.display()))?
        {
            let entry = entry?;
            fs::File::open(entry.path())?.sync_all()?;
            let (digest, _) = Digest::of_file(&entry.path())?;
            digests.insert(entry.file_name().to_string_lossy().into_owned(), digest);
        }
        let list = private.join(DIGESTS);
        fs::write(&list, serde_json::to_vec(&digests)?)
            .and_then(|()| fs::File::open(&list)?.sync_all())
            .with_context(|| format!("{} can't be written", list.display()))?;
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

/// Whether every file of a snapshot is there as it was written.
fn whole(folder: &Path) -> Result<()> {
    let list = fs::read(folder.join(DIGESTS))
        .with_context(|| format!("{} has no {DIGESTS}", folder.display()))?;
    let digests: BTreeMap<String, Digest> =
        serde_json::from_slice(&list).with_context(|| format!("{}/{DIGESTS}", folder.display()))?;
    ensure!(!digests.is_empty(), "{} lists no files", folder.display());
    for (name, wanted) in digests {
        let path = folder.join(name);
        let (found, _) =
            Digest::of_file(&path).with_context(|| format!("{} can't be read", path.display()))?;
        ensure!(
            found == wanted,
            "{} is not as it was written",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(snapshots: &Snapshots) -> (Option<PathBuf>, Vec<String>) {
        let mut damaged = Vec::new();
        let found = snapshots.newest(&mut |why| damaged.push(why.to_owned()));
        (found, damaged)
    }

    fn write(snapshots: &mut Snapshots, step: usize) {
        let folder = snapshots.begin(step);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("state"), step.to_string()).unwrap();
    }

    #[test]
    fn only_a_finished_snapshot_counts_and_the_newest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut snapshots = Snapshots::new(folder.path());
        write(&mut snapshots, 9);
        assert_eq!(newest(&snapshots), (None, vec![]));
        snapshots.finish().unwrap();
        let found = |snapshots: &Snapshots, name: &str| {
            let (found, damaged) = newest(snapshots);
            assert_eq!(damaged, [""; 0]);
            assert!(found.unwrap().ends_with(name));
        };
        found(&snapshots, "step-0000000009");
        write(&mut snapshots, 10);
        found(&snapshots, "step-0000000009");
        snapshots.finish().unwrap();
        found(&snapshots, "step-0000000010");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_snapshot_is_told_and_removed() {
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 4] = [
            ("not as it was written", |f| {
                fs::write(f.join("state"), "8").unwrap()
            }),
            ("can't be read", |f| {
                fs::remove_file(f.join("state")).unwrap()
            }),
            ("has no digests.json", |f| {
                fs::remove_file(f.join(DIGESTS)).unwrap()
            }),
            ("lists no files", |f| {
                fs::write(f.join(DIGESTS), "{}").unwrap()
            }),
        ];
        for (words, damage) in damages {
            let folder = tempfile::tempdir().unwrap();
            let mut snapshots = Snapshots::new(folder.path());
            write(&mut snapshots, 90);
            snapshots.finish().unwrap();
            damage(&folder.path().join("step-0000000090"));
            let (found, damaged) = newest(&snapshots);
            assert_eq!((found, damaged.len()), (None, 1));
            assert!(
                damaged[0].starts_with("the snapshot after step 90 is damaged")
                    && damaged[0].contains(words),
                "{damaged:?}"
            );
            assert_eq!(newest(&snapshots), (None, vec![]));
        }
    }
}

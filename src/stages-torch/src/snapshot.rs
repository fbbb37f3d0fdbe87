//! Snapshots of a long stage: folders `step-N`, complete once they have their final name; the newest wins. Each lists the digests of
//! its files, and what equal bytes depend on besides the inputs: what goes on from other bytes than were written would end with a
//! wrong result under a right key, and what goes on with another number of threads with bytes that no run makes twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use engine::digest::Digest;
use serde::{Deserialize, Serialize};

/// The file that certifies a snapshot.
const CERTIFICATE: &str = "certificate.json";

/// What is written into [`CERTIFICATE`].
#[derive(Serialize, Deserialize)]
struct Certificate {
    /// File name to digest, of all other files.
    files: BTreeMap<String, Digest>,
    made_with: Circumstances,
}

/// What equal bytes depend on besides the inputs, by name: threads, device, `micro_batch`.
pub(crate) type Circumstances = BTreeMap<String, String>;

/// The snapshots of one computation.
pub(crate) struct Snapshots {
    folder: PathBuf,
    made_with: Circumstances,
    /// Written, and not yet known to be whole.
    pending: Option<(PathBuf, PathBuf)>,
}

impl Snapshots {
    pub(crate) fn new(folder: &Path, made_with: Circumstances) -> Self {
        Self {
            folder: folder.to_owned(),
            made_with,
            pending: None,
        }
    }

    /// The newest complete snapshot. One that can't be gone on from is removed, and `refused` is told why.
    pub(crate) fn newest(&self, refused: &mut dyn FnMut(&str)) -> Option<PathBuf> {
        let mut found: Vec<(String, PathBuf)> = fs::read_dir(&self.folder)
            .ok()?
            .flatten()
            .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
            .filter(|(name, _)| name.starts_with("step-"))
            .collect();
        found.sort();
        while let Some((name, path)) = found.pop() {
            let step = name["step-".len()..].trim_start_matches('0');
            match whole(&path) {
                Ok(made_with) if made_with == self.made_with => return Some(path),
                Ok(made_with) => {
                    let other = difference(&made_with, &self.made_with);
                    refused(&format!(
                        "the snapshot after step {step} is not used: it was made with {other}"
                    ));
                }
                Err(error) => refused(&format!(
                    "the snapshot after step {step} is damaged and is not used: {error:#}"
                )),
            }
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
        let mut files = BTreeMap::new();
        list(&private, "", &mut files)?;
        let certificate = Certificate {
            files,
            made_with: self.made_with.clone(),
        };
        let path = private.join(CERTIFICATE);
        fs::write(&path, serde_json::to_vec(&certificate)?)
            .and_then(|()| fs::File::open(&path)?.sync_all())
            .with_context(|| format!("{} can't be written", path.display()))?;
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

/// Writes all files of a folder and of those in it through to the disk, and lists their digests.
fn list(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Digest>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("{} is not there", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.insert(name, Digest::of_file(&entry.path())?.0);
        }
        fs::File::open(entry.path())?.sync_all()?;
    }
    Ok(())
}

/// What a snapshot was made with, when every file of it is there as it was written.
fn whole(folder: &Path) -> Result<Circumstances> {
    let text = fs::read(folder.join(CERTIFICATE))
        .with_context(|| format!("{} has no {CERTIFICATE}", folder.display()))?;
    let certificate: Certificate = serde_json::from_slice(&text)
        .with_context(|| format!("{}/{CERTIFICATE}", folder.display()))?;
    ensure!(
        !certificate.files.is_empty(),
        "{} lists no files",
        folder.display()
    );
    for (name, wanted) in certificate.files {
        let path = folder.join(name);
        let (found, _) =
            Digest::of_file(&path).with_context(|| format!("{} can't be read", path.display()))?;
        ensure!(
            found == wanted,
            "{} is not as it was written",
            path.display()
        );
    }
    Ok(certificate.made_with)
}

/// `threads 1 instead of 2`, for everything that differs.
fn difference(before: &Circumstances, now: &Circumstances) -> String {
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let word =
        |made: &Circumstances, name: &String| made.get(name).map_or("none", |v| v).to_owned();
    let all = names
        .into_iter()
        .filter(|name| before.get(*name) != now.get(*name))
        .map(|name| {
            format!(
                "{name} {} instead of {}",
                word(before, name),
                word(now, name)
            )
        });
    all.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(snapshots: &Snapshots) -> (Option<PathBuf>, Vec<String>) {
        let mut damaged = Vec::new();
        let found = snapshots.newest(&mut |why| damaged.push(why.to_owned()));
        (found, damaged)
    }

    fn with_threads(folder: &Path, threads: usize) -> Snapshots {
        Snapshots::new(folder, [("threads".to_owned(), threads.to_string())].into())
    }

    fn write(snapshots: &mut Snapshots, step: usize) {
        let folder = snapshots.begin(step);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("state"), step.to_string()).unwrap();
    }

    #[test]
    fn only_a_finished_snapshot_counts_and_the_newest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut snapshots = with_threads(folder.path(), 2);
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
    fn a_snapshot_of_other_circumstances_is_told_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut snapshots = with_threads(folder.path(), 1);
        write(&mut snapshots, 90);
        snapshots.finish().unwrap();
        let said =
            "the snapshot after step 90 is not used: it was made with threads 1 instead of 2";
        let other = with_threads(folder.path(), 2);
        assert_eq!(newest(&other), (None, vec![said.to_owned()]));
        assert_eq!(newest(&snapshots), (None, vec![]));
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
            ("has no certificate.json", |f| {
                fs::remove_file(f.join(CERTIFICATE)).unwrap()
            }),
            ("lists no files", |f| {
                fs::write(f.join(CERTIFICATE), r#"{"files": {}, "made_with": {}}"#).unwrap()
            }),
        ];
        for (words, damage) in damages {
            let folder = tempfile::tempdir().unwrap();
            let mut snapshots = with_threads(folder.path(), 2);
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

//! Runs of the past: their folders in the cache, their locks, their logs.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::iter::once;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use engine::diagnostic::SourceText;
use engine::event::{Event, What};
use engine::lock::RunLock;

/// The end of a log that is read to find its last event.
const TAIL: u64 = 64 << 10;

/// One run.
pub(crate) struct Run {
    /// Its folder's name.
    pub id: String,
    /// Its folder.
    pub folder: PathBuf,
    /// When it began.
    pub begun: SystemTime,
}

/// Every run in `runs`, oldest first.
pub(crate) fn runs(runs: &Path) -> Result<Vec<Run>> {
    let mut list = Vec::new();
    let entries = match fs::read_dir(runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(list),
        Err(error) => {
            return Err(error).with_context(|| format!("{} can't be read", runs.display()));
        }
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("{} can't be read", runs.display()))?;
        if entry.path().is_dir() {
            let id = entry.file_name().to_string_lossy().into_owned();
            list.push(Run {
                begun: begun(&id, &entry.path()),
                id,
                folder: entry.path(),
            });
        }
    }
    list.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(list)
}

/// A run's name begins with the milliseconds since 1970.
fn begun(id: &str, folder: &Path) -> SystemTime {
    let digits = id
        .split('-')
        .next()
        .filter(|d| d.len() == 13)
        .and_then(|d| d.parse().ok());
    match digits {
        Some(milliseconds) => UNIX_EPOCH + Duration::from_millis(milliseconds),
        None => fs::metadata(folder)
            .and_then(|m| m.modified())
            .unwrap_or(UNIX_EPOCH),
    }
}

impl Run {
    /// What became of its stages; none of a run that was killed.
    pub fn lock(&self) -> Option<RunLock> {
        RunLock::read(&self.folder).ok()
    }

    /// What it was told: its recipe, by its whole path, and the options; nothing of a run without a lock.
    pub fn sources(&self) -> Vec<SourceText> {
        let (Some(lock), Ok(recipe)) = (
            self.lock(),
            fs::read_to_string(self.folder.join("recipe.yaml")),
        ) else {
            return Vec::new();
        };
        let text = |name: &str, text: String| SourceText {
            name: name.to_owned(),
            text,
        };
        let options = lock.set.into_iter().map(|option| text("--set", option));
        once(text(&lock.path.to_string_lossy(), recipe))
            .chain(options)
            .collect()
    }

    /// Its recipe's name.
    pub fn recipe(&self) -> String {
        // `<milliseconds>-<name>-<process>`.
        let inner = self
            .id
            .split_once('-')
            .and_then(|(_, rest)| rest.rsplit_once('-'))
            .map(|(name, _)| name);
        inner.unwrap_or(&self.id).to_owned()
    }

    /// The whole log. A last line that a kill cut off is left out.
    pub fn events(&self) -> Result<Vec<Event>> {
        let path = self.folder.join("events.jsonl");
        let text = fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().count();
        let mut events = Vec::with_capacity(lines);
        for (number, line) in text.lines().enumerate() {
            match serde_json::from_str(line) {
                Ok(event) => events.push(event),
                Err(_) if number + 1 == lines => break,
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("{}:{}: not an event", path.display(), number + 1)
                    });
                }
            }
        }
        Ok(events)
    }

    /// Its last event, when it came to its end.
    pub fn end(&self) -> Option<What> {
        let mut file = fs::File::open(self.folder.join("events.jsonl")).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
            .ok()?;
        let mut tail = Vec::new();
        file.take(TAIL).read_to_end(&mut tail).ok()?;
        let text = String::from_utf8_lossy(&tail);
        let event: Event = serde_json::from_str(text.lines().last()?).ok()?;
        matches!(event.what, What::Ended { .. }).then_some(event.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_cut_off_is_read_up_to_there() {
        let folder = tempfile::tempdir().unwrap();
        let one = folder.path().join("1700000000123-my-recipe-42");
        fs::create_dir(&one).unwrap();
        let line = r#"{"at":5,"event":"ended","ran":1,"hits":0,"failed":0,"waiting":0,"skipped":0,"milliseconds":5}"#;
        fs::write(one.join("events.jsonl"), format!("{line}\n{{\"at\":7,\"ev")).unwrap();
        let found = runs(folder.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].recipe(), "my-recipe");
        assert_eq!(
            found[0].begun,
            UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)
        );
        assert_eq!(found[0].events().unwrap().len(), 1);
        assert!(found[0].end().is_none());
        fs::write(one.join("events.jsonl"), format!("{line}\n")).unwrap();
        assert!(found[0].end().is_some());
        fs::write(one.join("events.jsonl"), format!("nonsense\n{line}\n")).unwrap();
        assert!(
            found[0]
                .events()
                .unwrap_err()
                .to_string()
                .ends_with("events.jsonl:1: not an event")
        );
    }
}

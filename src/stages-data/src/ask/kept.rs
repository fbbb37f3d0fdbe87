//! The answers so far, in a file that outlives the run: they cost money or time, and can't be made again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use engine::digest::Digest;
use engine::job::ANSWERS;
use serde::{Deserialize, Serialize};

/// An answer that could be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The question.
    pub id: Digest,
    /// What was answered, word for word.
    pub answer: String,
    /// Requests that were made again before it.
    #[serde(default)]
    pub retries: u32,
    /// Tokens of the question, as far as they are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
}

/// The answers so far. Whoever gets one hands it over at once.
pub(super) struct Kept {
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    answers: HashMap<Digest, Answer>,
}

impl Kept {
    /// Opens the answers in `folder`, of which those stay that `good` takes. Lines that can't be read, as the last one after a kill,
    /// are taken out; the number of them comes along.
    pub fn open(folder: &Path, good: impl Fn(&Answer) -> bool) -> Result<(Kept, usize)> {
        let path = folder.join(ANSWERS);
        let why = || format!("{}: the answers so far", path.display());
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(why),
        };
        let whole = bytes.is_empty() || bytes.ends_with(b"\n");
        let mut text = Vec::new();
        let mut answers = HashMap::new();
        let mut damaged = 0;
        for line in bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            match serde_json::from_slice::<Answer>(line) {
                Ok(answer) if good(&answer) => {
                    text.extend_from_slice(line);
                    text.push(b'\n');
                    answers.insert(answer.id, answer);
                }
                _ => damaged += 1,
            }
        }
        if damaged > 0 || !whole {
            // What is appended next must not join a line that is torn.
            let fresh = folder.join("answers.new");
            let mut file = File::create(&fresh).with_context(why)?;
            file.write_all(&text)
                .and_then(|()| file.sync_all())
                .and_then(|()| std::fs::rename(&fresh, &path))
                .with_context(why)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(why)?;
        // Without this a file that was just made may be gone after a power cut, with what was paid for.
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .with_context(why)?;
        let inner = Mutex::new(Inner { file, answers });
        Ok((Kept { inner }, damaged))
    }

    /// Keeps an answer; when this returns it is on the disk. Says how many there are.
    pub fn add(&self, answer: Answer) -> Result<usize> {
        let line = serde_json::to_string(&answer)? + "\n";
        let mut inner = self.lock();
        inner
            .file
            .write_all(line.as_bytes())
            .and_then(|()| inner.file.sync_data())
            .context("an answer can't be kept: is the disk full?")?;
        inner.answers.insert(answer.id, answer);
        Ok(inner.answers.len())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().answers.len()
    }

    /// Whether a question is answered.
    pub fn has(&self, id: Digest) -> bool {
        self.lock().answers.contains_key(&id)
    }

    /// All of them.
    pub fn into_answers(self) -> HashMap<Digest, Answer> {
        let inner = self.inner.into_inner();
        inner.unwrap_or_else(PoisonError::into_inner).answers
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(number: u8) -> Answer {
        Answer {
            id: Digest::of_bytes(&[number]),
            answer: format!("{number}\nA"),
            retries: 0,
            prompt_tokens: Some(3),
            completion_tokens: None,
        }
    }

    #[test]
    fn a_line_that_a_kill_has_torn_costs_one_answer() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Kept::open(folder.path(), |_| true).unwrap();
        let (kept, damaged) = open();
        assert_eq!(damaged, 0);
        for number in 0..3 {
            assert_eq!(kept.add(answer(number)).unwrap(), usize::from(number) + 1);
        }
        drop(kept);
        let path = folder.path().join(ANSWERS);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 9]).unwrap();
        let (kept, damaged) = open();
        assert_eq!((kept.len(), damaged), (2, 1));
        kept.add(answer(7)).unwrap();
        drop(kept);
        // A line that is whole but for its end counts.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.trim_end()).unwrap();
        let (kept, damaged) = open();
        assert_eq!((kept.len(), damaged), (3, 0));
        kept.add(answer(8)).unwrap();
        drop(kept);
        let answers = open().0.into_answers();
        let mut numbers: Vec<_> = answers.values().map(|a| a.answer.as_str()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, ["0\nA", "1\nA", "7\nA", "8\nA"]);
        assert_eq!(answers[&answer(7).id], answer(7));
    }

    #[test]
    fn answers_that_are_none_are_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, _) = Kept::open(folder.path(), |_| true).unwrap();
        kept.add(answer(1)).unwrap();
        kept.add(answer(2)).unwrap();
        drop(kept);
        let (kept, damaged) = Kept::open(folder.path(), |a| a.answer.starts_with('2')).unwrap();
        assert_eq!((kept.len(), damaged), (1, 1));
        assert!(kept.has(answer(2).id) && !kept.has(answer(1).id));
    }
}

//! The file of one annotator's answers: a line for each, written and synced before the next question is asked.
//!
//! `{"id":"…","ranks":[1,2]}` is an answer about the members of a comparison in their order, `{"id":"…","ranks":null}` one that was
//! skipped, `{"id":"…","undone":true}` takes the last one about that comparison back. A line that a kill cut off is the last one: it is
//! not read, and whoever writes next removes it. A lock on the file keeps a second writer away.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use data::comparison::{Answer, Comparisons};
use serde::{Deserialize, Serialize};

/// The file of an annotator's answers.
pub fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.jsonl"))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    /// Given, and a list or `null`, unless the line takes an answer back.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "given"
    )]
    ranks: Option<Answer>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    undone: bool,
}

/// `null` is an answer here, and not one that is missing.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Answer>, D::Error> {
    Answer::deserialize(deserializer).map(Some)
}

/// What somebody has answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// By the comparison's id; also of comparisons that are no longer asked.
    answers: BTreeMap<String, Answer>,
    /// The ids in the order in which they were answered.
    history: Vec<String>,
    /// Whether the last line was cut off.
    pub torn: bool,
    /// The bytes of all whole lines.
    whole: u64,
}

impl Answers {
    /// Reads a file; without one there is no answer.
    ///
    /// Errors name the line that is not one of such a file, or whose answer does not fit its comparison.
    pub fn read(path: &Path, comparisons: &Comparisons) -> Result<Answers> {
        match fs::read(path) {
            Ok(bytes) => Self::parse(&bytes, path, comparisons),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Answers::default()),
            Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
        }
    }

    fn parse(bytes: &[u8], path: &Path, comparisons: &Comparisons) -> Result<Answers> {
        let counts: BTreeMap<&str, usize> = comparisons
            .all
            .iter()
            .map(|c| (c.id.as_str(), c.members.len()))
            .collect();
        let whole = bytes
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        let mut answers = Answers {
            torn: whole < bytes.len(),
            whole: whole as u64,
            ..Answers::default()
        };
        for (index, line) in bytes[..whole].split_inclusive(|b| *b == b'\n').enumerate() {
            let place = || format!("{}:{}", path.display(), index + 1);
            let line: Line = serde_json::from_slice(line)
                .with_context(|| format!("{}: this is no answer", place()))?;
            match line.ranks {
                Some(answer) if !line.undone => {
                    let count = counts.get(line.id.as_str());
                    ensure!(
                        count.is_none_or(|count| answer.fits(*count)),
                        "{}: the ranks do not fit the comparison {}",
                        place(),
                        line.id
                    );
                    answers.set(&line.id, answer);
                }
                None if line.undone => drop(answers.take_back(&line.id)),
                _ => bail!("{}: an answer has `ranks`, or it is `undone`", place()),
            }
        }
        Ok(answers)
    }

    /// The answer about a comparison.
    pub fn get(&self, id: &str) -> Option<&Answer> {
        self.answers.get(id)
    }

    /// The answers in the order of the comparisons; none where one is open.
    pub fn in_order(&self, comparisons: &Comparisons) -> Vec<Option<&Answer>> {
        comparisons.all.iter().map(|c| self.get(&c.id)).collect()
    }

    fn set(&mut self, id: &str, answer: Answer) {
        self.history.retain(|known| known != id);
        self.history.push(id.to_owned());
        self.answers.insert(id.to_owned(), answer);
    }

    fn take_back(&mut self, id: &str) -> Option<Answer> {
        self.history.retain(|known| known != id);
        self.answers.remove(id)
    }
}

/// The one who writes somebody's answers.
pub struct Writer {
    file: File,
    path: PathBuf,
    answers: Answers,
}

impl Writer {
    /// Opens the file of `name` in `folder`, both made when missing, and locks it; none when somebody else holds the lock. A line that
    /// was cut off is removed; `answers().torn` tells of it.
    ///
    /// Errors of the file system, and those of [`Answers::read`].
    pub fn open(folder: &Path, name: &str, comparisons: &Comparisons) -> Result<Option<Writer>> {
        fs::create_dir_all(folder)
            .with_context(|| format!("{} can't be made", folder.display()))?;
        let path = path(folder, name);
        let cant = || format!("{} can't be written", path.display());
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(cant)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{} can't be locked", path.display()));
            }
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(cant)?;
        let answers = Answers::parse(&bytes, &path, comparisons)?;
        file.set_len(answers.whole).with_context(cant)?;
        file.seek(SeekFrom::End(0)).with_context(cant)?;
        file.sync_all().with_context(cant)?;
        // The file's name is to survive as well, and that of its folder.
        for folder in [Some(folder), folder.parent()].into_iter().flatten() {
            File::open(folder)
                .and_then(|f| f.sync_all())
                .with_context(cant)?;
        }
        Ok(Some(Writer {
            file,
            path,
            answers,
        }))
    }

    /// What was answered so far.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Adds answers, by the ids of their comparisons. They are on the disk when this returns.
    pub fn add(&mut self, answers: Vec<(String, Answer)>) -> Result<()> {
        let mut lines = Vec::new();
        for (id, answer) in &answers {
            let line = Line {
                id: id.clone(),
                ranks: Some(answer.clone()),
                undone: false,
            };
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
        }
        self.append(&lines)?;
        for (id, answer) in answers {
            self.answers.set(&id, answer);
        }
        Ok(())
    }

    /// Takes the last answer back, and says which comparison it was about; none when there is no answer to one of `comparisons`.
    pub fn undo(&mut self, comparisons: &Comparisons) -> Result<Option<usize>> {
        let asked = |id: &String| Some((id.clone(), comparisons.find(id)?));
        let Some((id, place)) = self.answers.history.iter().rev().find_map(asked) else {
            return Ok(None);
        };
        let line = Line {
            id: id.clone(),
            ranks: None,
            undone: true,
        };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        self.append(&bytes)?;
        self.answers.take_back(&id);
        Ok(Some(place))
    }

    fn append(&mut self, lines: &[u8]) -> Result<()> {
        let written = self
            .file
            .write_all(lines)
            .and_then(|()| self.file.sync_data());
        written.with_context(|| format!("{} can't be written", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use data::Prompt;
    use data::candidates::{Candidate, Candidates};
    use data::comparison::Ask;

    use super::*;

    fn comparisons() -> Comparisons {
        let candidate = |text: &str| Candidate {
            text: text.to_owned(),
            score: None,
            from: vec![0],
        };
        let group = |prompt: &str| Candidates {
            prompt: Prompt::Text(prompt.to_owned()),
            all: vec![candidate("a"), candidate("b")],
        };
        let groups = vec![group("p"), group("q"), group("r")];
        Comparisons::new(groups, Ask::Pairs, "?", None, 1).unwrap()
    }

    fn ranks(ranks: [usize; 2]) -> Answer {
        Answer::Ranked(ranks.into())
    }

    #[test]
    fn answers_are_read_as_they_were_written_and_taken_back_in_turn() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let comparisons = comparisons();
        let id = |place: usize| comparisons.all[place].id.clone();
        let open = || {
            Writer::open(&folder, "anna", &comparisons)
                .unwrap()
                .unwrap()
        };
        let mut writer = open();
        writer.add(vec![(id(2), ranks([1, 2]))]).unwrap();
        writer
            .add(vec![(id(0), Answer::Skipped), (id(1), ranks([1, 1]))])
            .unwrap();
        let read = || Answers::read(&path(&folder, "anna"), &comparisons).unwrap();
        assert_eq!(
            read().in_order(&comparisons),
            [
                Some(&Answer::Skipped),
                Some(&ranks([1, 1])),
                Some(&ranks([1, 2]))
            ]
        );
        drop(writer);
        // The order in which they were given outlives the one who gave them.
        let mut writer = open();
        let undone: Vec<_> = (0..4).map(|_| writer.undo(&comparisons).unwrap()).collect();
        assert_eq!(undone, [Some(1), Some(0), Some(2), None]);
        assert_eq!(read().in_order(&comparisons), [None, None, None]);
        writer.add(vec![(id(0), ranks([2, 1]))]).unwrap();
        assert_eq!(read().get(&id(0)), Some(&ranks([2, 1])));
    }

    #[test]
    fn one_writes_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let comparisons = comparisons();
        let open = |name| Writer::open(folder.path(), name, &comparisons).unwrap();
        let first = open("anna");
        assert!(first.is_some() && open("anna").is_none() && open("ben").is_some());
        drop(first);
        assert!(open("anna").is_some());
    }

    #[test]
    fn a_file_cut_off_anywhere_keeps_every_whole_line_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let comparisons = comparisons();
        let path = path(folder.path(), "anna");
        let mut writer = Writer::open(folder.path(), "anna", &comparisons)
            .unwrap()
            .unwrap();
        for comparison in &comparisons.all {
            writer
                .add(vec![(comparison.id.clone(), ranks([1, 2]))])
                .unwrap();
        }
        drop(writer);
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let lines = bytes[..length].iter().filter(|b| **b == b'\n').count();
            let torn = length > 0 && bytes[length - 1] != b'\n';
            let read = Answers::read(&path, &comparisons).unwrap();
            assert_eq!((read.answers.len(), read.torn), (lines, torn), "{length}");
            let mut writer = Writer::open(folder.path(), "anna", &comparisons)
                .unwrap()
                .unwrap();
            assert_eq!(writer.answers(), &read);
            for comparison in &comparisons.all[lines..] {
                writer
                    .add(vec![(comparison.id.clone(), ranks([1, 2]))])
                    .unwrap();
            }
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn lines_that_nobody_wrote_are_named() {
        let comparisons = comparisons();
        let message = |text: &str| {
            let text = format!("{text}\n");
            let read = Answers::parse(text.as_bytes(), Path::new("anna.jsonl"), &comparisons);
            format!("{:#}", read.unwrap_err())
        };
        let id = &comparisons.all[0].id;
        let fine = format!("{{\"id\":\"{id}\",\"ranks\":null}}\n");
        for (line, why) in [
            ("{}".to_owned(), "this is no answer"),
            ("[1]".to_owned(), "this is no answer"),
            (format!("{{\"id\":\"{id}\"}}"), "an answer has `ranks`"),
            (
                format!("{{\"id\":\"{id}\",\"ranks\":[1,2],\"undone\":true}}"),
                "an answer has `ranks`",
            ),
            (
                format!("{{\"id\":\"{id}\",\"ranks\":[1,3]}}"),
                "the ranks do not fit",
            ),
            (
                format!("{{\"id\":\"{id}\",\"ranks\":[1,2,3]}}"),
                "the ranks do not fit",
            ),
        ] {
            let said = message(&(fine.clone() + &line));
            assert!(
                said.starts_with("anna.jsonl:2: ") && said.contains(why),
                "{said}"
            );
        }
        // One that is no longer asked is nobody's mistake.
        let other = b"{\"id\":\"other\",\"ranks\":[1,2,3]}\n";
        assert!(Answers::parse(other, Path::new("a"), &comparisons).is_ok());
    }
}

//! A program as a judge: questions into its standard input, answers out of its standard output, a JSON line each.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use data::candidates::Candidates;
use data::judging::{Shown, Verdict, in_range};
use engine::event::Level;
use engine::job::{Cancelled, Reporter};
use serde_json::{Value, json};

use super::kept::{Answer, Kept};
use super::questions::Question;
use super::request::beginning;

/// A line that is longer is none.
const LONGEST_LINE: u64 = 1 << 20;
/// So many of the last lines of standard error are shown.
const LAST_LINES: usize = 8;
/// A program that has answered everything may go on for so long before it is ended.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether the run shall stop.
const LOOK: Duration = Duration::from_millis(50);

/// A program that runs; it is ended when this is dropped.
struct Running {
    child: Child,
    /// Lines of standard output; a failure to read them comes as one.
    lines: Receiver<std::io::Result<Vec<u8>>>,
    /// The last lines of standard error.
    errors: Arc<Mutex<VecDeque<String>>>,
    /// Closed when standard error is.
    errors_over: Receiver<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command's words, started in `folder`, which should be empty, with these lines on standard input.
fn start(words: &[String], folder: &Path, input: String) -> Result<Running> {
    let (name, arguments) = words.split_first().context("a program without a name")?;
    let mut child = Command::new(name)
        .args(arguments)
        .current_dir(folder)
        // Python keeps what it writes to a pipe until there is much of it: an answer would come late, and be lost with the program.
        .env("PYTHONUNBUFFERED", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!("the program `{name}` can't be started: is it installed, and found in PATH?")
        })?;
    let taken = "BUG: a pipe is taken twice";
    let mut stdin = child.stdin.take().context(taken)?;
    let stdout = child.stdout.take().context(taken)?;
    let stderr = child.stderr.take().context(taken)?;
    // Threads of their own: a program may read everything before it answers, or answer before it has read everything. They end with
    // the pipes, which grandchildren may hold longer than we want to wait.
    std::thread::spawn(move || {
        // One that ends early is told by its answers.
        let _ = stdin.write_all(input.as_bytes());
    });
    let (sender, lines) = channel();
    std::thread::spawn(move || read_lines(stdout, &sender));
    let errors: Arc<Mutex<VecDeque<String>>> = Arc::default();
    let (over, errors_over) = channel();
    let last = errors.clone();
    std::thread::spawn(move || {
        keep_last(stderr, &last);
        drop(over);
    });
    Ok(Running {
        child,
        lines,
        errors,
        errors_over,
    })
}

/// Sends every line without its end.
fn read_lines(stdout: impl Read, sender: &Sender<std::io::Result<Vec<u8>>>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = reader
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line);
        let over = !matches!(read, Ok(1..));
        let sent = match read {
            Ok(0) => break,
            Ok(_) => sender.send(Ok(line)),
            Err(error) => sender.send(Err(error)),
        };
        if over || sent.is_err() {
            break;
        }
    }
}

/// Keeps the last lines of a stream.
fn keep_last(stderr: impl Read, last: &Mutex<VecDeque<String>>) {
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        let read = reader
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) {
            return;
        }
        let text: String = String::from_utf8_lossy(&line)
            .trim_end()
            .chars()
            .take(300)
            .collect();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(text);
    }
}

impl Running {
    /// An error with the last lines that the program wrote for people.
    fn blame(&self, message: &str) -> anyhow::Error {
        // A program that has just ended may have said why; one that goes on has said what it has said.
        let _ = self.errors_over.recv_timeout(Duration::from_millis(500));
        let lines = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return anyhow!("{message}; it wrote nothing to standard error");
        }
        let lines: String = lines.iter().map(|line| format!("\n  {line}")).collect();
        anyhow!("{message}; its standard error ends with{lines}")
    }

    /// How it ended, if it does so soon.
    fn ended(&mut self) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(None) if begun.elapsed() < Duration::from_secs(5) => std::thread::sleep(LOOK),
                status => return status.ok().flatten(),
            }
        }
    }
}

/// A program and how it is asked.
pub(super) struct Program<'a> {
    /// The command.
    pub words: Vec<String>,
    /// An empty folder to start it in.
    pub folder: &'a Path,
    /// How long it may be silent.
    pub silence: Duration,
    /// The least and the greatest score.
    pub range: (f64, f64),
    pub cx: &'a dyn Reporter,
}

impl Program<'_> {
    /// Asks every question and keeps each answer as it comes; `told` is called with the number of those that are kept.
    ///
    /// # Errors
    /// It can't be started, is silent for too long, ends too early, or writes what is no answer to a question of ours.
    pub fn ask_all(
        &self,
        groups: &[Candidates],
        questions: &[Question],
        kept: &Kept,
        told: &dyn Fn(usize),
    ) -> Result<()> {
        let input = questions.iter().map(|q| question_line(groups, q)).collect();
        let mut running = start(&self.words, self.folder, input)?;
        let name = self.words.join(" ");
        let mut open: HashMap<String, &Question> = questions
            .iter()
            .map(|question| (question.id.to_string(), question))
            .collect();
        let mut heard = Instant::now();
        loop {
            let limit = match open.is_empty() {
                true => self.silence.min(GRACE),
                false => self.silence,
            };
            self.cx.check()?;
            match running.lines.recv_timeout(LOOK) {
                Ok(Ok(line)) => {
                    heard = Instant::now();
                    if line.trim_ascii().is_empty() {
                        continue;
                    }
                    let answer = self
                        .read(&line, &mut open, kept)
                        .map_err(|error| running.blame(&format!("`{name}`: {error:#}")))?;
                    told(kept.add(answer)?);
                }
                Ok(Err(error)) => {
                    return Err(running.blame(&format!("`{name}` can't be read: {error}")));
                }
                Err(RecvTimeoutError::Timeout) if heard.elapsed() < limit => {}
                Err(RecvTimeoutError::Timeout) if open.is_empty() => {
                    let text =
                        format!("`{name}` has answered everything and did not end: it was ended");
                    self.cx.note(Level::Warning, &text);
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = self.silence.as_secs_f64();
                    return Err(running.blame(&format!(
                        "`{name}` has written nothing for {seconds} s, and {} of {} questions are open; `timeout_seconds` says how long \
                         it may be silent",
                        open.len(),
                        questions.len()
                    )));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = running.ended();
        // Ctrl-C reaches a program at the terminal as well.
        if self.cx.cancelled() {
            return Err(Cancelled.into());
        }
        let ended = match status {
            Some(status) => format!("ended ({status})"),
            None => "closed its standard output".to_owned(),
        };
        if !open.is_empty() {
            let message = format!(
                "`{name}` {ended} with {} of {} questions open",
                open.len(),
                questions.len()
            );
            return Err(running.blame(&message));
        }
        if status.is_some_and(|status| !status.success()) {
            let text = format!("`{name}` has answered everything and then {ended}");
            self.cx.note(Level::Warning, &text);
        }
        Ok(())
    }

    /// A line as the answer to one of the open questions, which it closes.
    fn read(
        &self,
        line: &[u8],
        open: &mut HashMap<String, &Question>,
        kept: &Kept,
    ) -> Result<Answer> {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        let expected = |question: Option<&Question>| match question.map(|q| q.b.is_some()) {
            Some(true) => r#"{"id": …, "winner": "a"}, with "b" or "tie" for others, was expected"#,
            Some(false) => r#"{"id": …, "score": 7} was expected"#,
            None => "an answer is a JSON object with the `id` of its question",
        };
        let value: Option<Value> = serde_json::from_str(text).ok();
        let id = value.as_ref().and_then(|value| value["id"].as_str());
        let Some(id) = id else {
            bail!("{}, and it wrote {}", expected(None), beginning(text));
        };
        let Some(question) = open.get(id) else {
            let again = id.parse().is_ok_and(|id| kept.has(id));
            let why = if again {
                "is answered already"
            } else {
                "is no question"
            };
            bail!("the `id` {} {why}", beginning(id));
        };
        read_answer(text, question.b.is_some(), self.range).with_context(|| {
            format!("it wrote {}; {}", beginning(text), expected(Some(question)))
        })?;
        let answer = Answer {
            id: question.id,
            answer: text.to_owned(),
            retries: 0,
            prompt_tokens: None,
            completion_tokens: None,
        };
        open.remove(id);
        Ok(answer)
    }
}

/// A question as a program reads it.
fn question_line(groups: &[Candidates], question: &Question) -> String {
    let (id, prompt) = (question.id.to_string(), question.prompt(groups));
    let line = match question.shown(groups) {
        Shown::Two { a, b } => json!({ "id": id, "prompt": prompt, "a": a, "b": b }),
        Shown::One(completion) => json!({ "id": id, "prompt": prompt, "completion": completion }),
    };
    format!("{line}\n")
}

/// What a program's line says.
///
/// # Errors
/// It has no winner, or no score in the range.
pub(super) fn read_answer(line: &str, pairwise: bool, range: (f64, f64)) -> Result<Verdict> {
    let value: Value = serde_json::from_str(line).context("not JSON")?;
    if pairwise {
        return match value["winner"].as_str() {
            Some("a") => Ok(Verdict::First),
            Some("b") => Ok(Verdict::Second),
            Some("tie") => Ok(Verdict::Tie),
            Some(other) => bail!("the winner {} is none", beginning(other)),
            None => bail!("there is no `winner`"),
        };
    }
    ensure!(value["score"].is_number(), "there is no number `score`");
    let score = value["score"].as_f64().unwrap_or(f64::NAN);
    Ok(Verdict::Score(in_range(score, range)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_answer_or_an_error() {
        let range = (0.0, 1.0);
        let pair = |line: &str| read_answer(line, true, range).ok();
        assert_eq!(pair(r#"{"id": "x", "winner": "a"}"#), Some(Verdict::First));
        assert_eq!(
            pair(r#"{"winner": "b", "why": "it is shorter"}"#),
            Some(Verdict::Second)
        );
        assert_eq!(pair(r#"{"winner": "tie"}"#), Some(Verdict::Tie));
        for none in [
            "a",
            r#"{"winner": "A"}"#,
            r#"{"winner": 1}"#,
            r#"{"score": 1}"#,
            "[]",
        ] {
            assert_eq!(pair(none), None, "{none}");
        }
        let score = |line: &str| read_answer(line, false, range).ok();
        assert_eq!(score(r#"{"score": 0.5}"#), Some(Verdict::Score(0.5)));
        assert_eq!(score(r#"{"score": 1}"#), Some(Verdict::Score(1.0)));
        for none in [
            "0.5",
            r#"{"score": "0.5"}"#,
            r#"{"score": 1.5}"#,
            r#"{"score": NaN}"#,
            r#"{"score": null}"#,
            r#"{"winner": "a"}"#,
        ] {
            assert_eq!(score(none), None, "{none}");
        }
    }
}

//! Questions and answers, one at a time: at a terminal with keys, else a line for each answer.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use data::comparison::{Answer, Shown, answer::choices};
use stages_data::label::Labelling;
use stages_data::label::log::Writer;

use super::keys::Keys;
use super::page;
use crate::context::{Context, width};
use crate::failure::Failure;

/// Asks `name` for every answer that is missing, until all are there, or standard input ends, or the person leaves.
pub(super) fn ask(
    labelling: &Labelling,
    writer: &mut Writer,
    name: &str,
    context: &Context,
) -> Result<()> {
    let mut desk = Questions {
        labelling,
        writer,
        shown: labelling.comparisons.shown_to(name),
        again: None,
    };
    match std::io::stdin().is_terminal() {
        true => desk.live(context),
        false => desk.lines(),
    }
}

struct Questions<'a> {
    labelling: &'a Labelling,
    writer: &'a mut Writer,
    shown: Vec<Shown>,
    /// The comparison whose answer was just taken back: it is asked about next.
    again: Option<usize>,
}

/// What came of one line.
enum Step {
    Next,
    Leave,
}

impl Questions<'_> {
    /// The next comparison without an answer, by its place among those shown.
    fn next(&self) -> Option<usize> {
        let again = self.again.into_iter();
        again.chain(0..self.shown.len()).find(|place| {
            let comparison = &self.labelling.comparisons.all[self.shown[*place].comparison];
            self.writer.answers().get(&comparison.id).is_none()
        })
    }

    /// Does what a word says. `Err` says why it can't be.
    fn take(&mut self, word: &str) -> Result<Result<Step, String>> {
        match word {
            "q" | "Q" => return Ok(Ok(Step::Leave)),
            "u" | "U" => {
                let Some(comparison) = self.writer.undo(&self.labelling.comparisons)? else {
                    return Ok(Err("there is no answer to take back".to_owned()));
                };
                self.again = self.shown.iter().position(|s| s.comparison == comparison);
                return Ok(Ok(Step::Next));
            }
            _ => {}
        }
        let Some(place) = self.next() else {
            return Ok(Err("everything is answered already".to_owned()));
        };
        let shown = &self.shown[place];
        let answer = match Answer::parse(word, shown.order.len()) {
            Ok(answer) => answer.of_members(&shown.order),
            Err(message) => {
                return Ok(Err(format!(
                    "{message}; `u` takes the last answer back, `q` leaves"
                )));
            }
        };
        let id = self.labelling.comparisons.all[shown.comparison].id.clone();
        self.writer.add(vec![(id, answer)])?;
        self.again = None;
        Ok(Ok(Step::Next))
    }

    /// Every line is one answer. The first that is none ends it; those before it are kept.
    fn lines(&mut self) -> Result<()> {
        for (index, line) in std::io::stdin().lock().lines().enumerate() {
            let line = line.context("standard input can't be read")?;
            if line.trim().is_empty() {
                continue;
            }
            match self.take(line.trim())? {
                Ok(Step::Next) => {}
                Ok(Step::Leave) => break,
                Err(message) => {
                    return Err(Failure::usage(format_args!(
                        "line {}: {message}; the answers before it are kept",
                        index + 1
                    )));
                }
            }
        }
        Ok(())
    }

    /// At a terminal: a page for each question.
    fn live(&mut self, context: &Context) -> Result<()> {
        let all = self.shown.len();
        while let Some(place) = self.next() {
            let shown = &self.shown[place];
            let done = all - self.open();
            let comparison = &self.labelling.comparisons.all[shown.comparison];
            context.print(&page::page(
                &self.labelling.params.question,
                (done + 1, all),
                &self.labelling.comparisons.groups[comparison.group].prompt,
                &self.labelling.comparisons.texts(shown),
                width(),
                context.out,
            ))?;
            let count = shown.order.len();
            let words = format!(
                "{}; `u` takes the last answer back, `q` leaves",
                choices(count)
            );
            // Of two completions a key is an answer.
            let mut keys = if count == 2 { Keys::open() } else { None };
            loop {
                prompt(context, &words)?;
                let Some(word) = read(&mut keys)? else {
                    context.print("\n")?;
                    return Ok(());
                };
                if word.is_empty() {
                    continue;
                }
                match self.take(&word)? {
                    Ok(Step::Next) => break,
                    Ok(Step::Leave) => {
                        context.print("\n")?;
                        return Ok(());
                    }
                    Err(message) => context.say(&format!("\n{message}\n")),
                }
            }
            context.print("\n")?;
        }
        Ok(())
    }

    fn open(&self) -> usize {
        let all = &self.labelling.comparisons.all;
        let is_open =
            |c: &&data::comparison::Comparison| self.writer.answers().get(&c.id).is_none();
        all.iter().filter(is_open).count()
    }
}

/// One key where keys are read, else a line; none at the end of input.
fn read(keys: &mut Option<Keys>) -> Result<Option<String>> {
    if let Some(keys) = keys {
        return keys.next();
    }
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    match read.context("standard input can't be read")? {
        0 => Ok(None),
        _ => Ok(Some(line.trim().to_owned())),
    }
}

fn prompt(context: &Context, words: &str) -> Result<()> {
    let mut err = std::io::stderr().lock();
    write!(err, "{} {} ", context.err.dim(words), context.err.cyan("›"))
        .and_then(|()| err.flush())
        .context("standard error can't be written")
}

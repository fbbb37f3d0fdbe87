//! How a run goes, on standard error: the reader of the event stream that a person watches.

mod lines;
mod live;
mod track;

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::diagnostic::{Place, Problem, SourceText, draw};
use engine::event::{Event, Level, Sink, What};
use engine::plan::Verdict;
use indicatif::MultiProgress;

use crate::style::Style;
use crate::units;
use lines::Lines;
use live::Live;
use track::Track;

/// More hits than this are told in one line.
const HITS: usize = 30;

/// All lines that change, of whichever command: what is said goes above them.
pub(crate) static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
/// Whether there may be lines that change.
static LIVE: AtomicBool = AtomicBool::new(false);

/// Writes to standard error, above the lines that change. Failing to say something is not a failure.
pub(crate) fn say(text: &str) {
    let write = || {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    };
    if LIVE.load(Ordering::Relaxed) {
        BARS.suspend(write)
    } else {
        write()
    }
}

/// Says that lines may change from now on.
pub(crate) fn go_live() {
    LIVE.store(true, Ordering::Relaxed);
}

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Only failures and warnings.
    Quiet,
    /// What a person wants to see.
    Usual,
    /// Remarks and samples too.
    More,
}

/// The reader.
pub(crate) struct Terminal {
    style: Style,
    detail: Detail,
    /// Node name → kind, since not every event carries it.
    kinds: HashMap<String, String>,
    /// The recipe and the options, to draw where failures are.
    sources: Vec<SourceText>,
    /// Width of the column of names.
    width: usize,
    /// Running nodes.
    tracks: HashMap<String, Track>,
    display: Box<dyn Display>,
    /// Static lines that are not written yet: many hits make one write.
    pending: String,
    hits: usize,
    folded: bool,
    planned: HashMap<String, Verdict>,
}

/// Where lines go: a terminal whose lines change, or a stream whose do not.
trait Display: Send {
    /// Lines that stay.
    fn print(&mut self, text: &str);
    /// A node began to run.
    fn start(&mut self, track: &Track, style: Style);
    /// A running node told how far it is.
    fn update(&mut self, track: &Track, at: u64);
    /// A node does not run any more.
    fn end(&mut self, name: &str);
}

impl Terminal {
    /// A reader for standard error. `kinds` maps node names to kinds; `plain` asks for lines even on a terminal.
    pub fn new(kinds: HashMap<String, String>, style: Style, detail: Detail, plain: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let live = std::io::stderr().is_terminal() && !plain && !dumb && detail != Detail::Quiet;
        let display: Box<dyn Display> = match live {
            true => Box::new(Live::new()),
            false => Box::new(Lines::new(Box::new(say), detail != Detail::Quiet)),
        };
        Self::with(kinds, style, detail, display)
    }

    fn with(
        kinds: HashMap<String, String>,
        style: Style,
        detail: Detail,
        display: Box<dyn Display>,
    ) -> Self {
        let width = kinds
            .keys()
            .map(|n| crate::table::visible(n))
            .max()
            .unwrap_or(8)
            .clamp(8, 28);
        Self {
            style,
            detail,
            kinds,
            sources: Vec::new(),
            width,
            tracks: HashMap::new(),
            display,
            pending: String::new(),
            hits: 0,
            folded: false,
            planned: HashMap::new(),
        }
    }

    /// A reader that writes plain lines to `write`, for runs that are over.
    pub fn replay(
        kinds: HashMap<String, String>,
        style: Style,
        detail: Detail,
        write: Box<dyn FnMut(&str) + Send>,
    ) -> Self {
        Self::with(kinds, style, detail, Box::new(Lines::new(write, true)))
    }

    /// The same, which draws where in these texts failures are.
    pub fn pointing_into(mut self, sources: Vec<SourceText>) -> Self {
        self.sources = sources;
        self
    }

    /// One static line: sign, name, kind, what became of it.
    fn line(&mut self, sign: &str, name: &str, rest: &str) {
        let kind = self.kinds.get(name).map_or("", String::as_str);
        let shown = crate::table::pad(name, self.width);
        // Preparations stand back: nobody wrote them.
        let shown = if name.contains(" › ") {
            self.style.dim(&shown)
        } else {
            shown
        };
        let kind = self.style.dim(&crate::table::pad(kind, 14));
        let line = format!("{sign} {shown}  {kind}  {rest}");
        self.pending.push_str(line.trim_end());
        self.pending.push('\n');
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            let text = std::mem::take(&mut self.pending);
            if self.detail != Detail::Quiet {
                self.display.print(&text);
            }
        }
    }

    /// Writes what must be seen even with `-q`.
    fn insist(&mut self, text: &str) {
        self.flush();
        self.display.print(text);
    }

    fn took(&self, name: &str, milliseconds: u64) -> String {
        let end = self
            .tracks
            .get(name)
            .and_then(Track::last_words)
            .map(|w| format!("  {}", self.style.dim(&w)));
        format!("{}{}", units::time(milliseconds), end.unwrap_or_default())
    }

    fn planned(&mut self, stages: &[(String, Verdict)]) {
        self.planned = stages.iter().cloned().collect();
        let cached = stages.iter().filter(|(_, v)| *v == Verdict::Cached).count();
        self.folded = cached > HITS;
        self.width = stages
            .iter()
            .map(|(n, _)| crate::table::visible(n))
            .max()
            .unwrap_or(8)
            .clamp(8, 28);
        if self.folded {
            let line = format!(
                "{} {} in the cache\n",
                self.style.green("="),
                units::plural(cached, "stage")
            );
            self.pending.push_str(&line);
        }
    }

    fn hit(&mut self, name: &str) {
        self.hits += 1;
        let verdict = self.planned.get(name).copied();
        if self.folded && verdict == Some(Verdict::Cached) {
            return;
        }
        let words = match verdict {
            Some(Verdict::MayRun) => "cached: its inputs came out as before",
            _ => "cached",
        };
        let sign = self.style.green("=");
        let words = self.style.dim(words);
        self.line(&sign, name, &words);
    }

    fn stage(&mut self, name: &str, at: u64, what: &What) {
        match what {
            What::Started { kind, .. } => {
                self.flush();
                self.kinds
                    .entry(name.to_owned())
                    .or_insert_with(|| kind.clone());
                let track = Track::new(name, kind, at, self.width);
                self.display.start(&track, self.style);
                self.tracks.insert(name.to_owned(), track);
            }
            What::Hit { .. } => self.hit(name),
            What::Progress {
                done,
                total,
                unit,
                rate,
            } => {
                let track = self.tracks.entry(name.to_owned()).or_insert_with(|| {
                    let track = Track::new(name, "", at, self.width);
                    self.display.start(&track, self.style);
                    track
                });
                track.progress(at, *done, *total, unit, rate.clone());
                self.display.update(track, at);
            }
            What::Metrics { values, .. } => {
                if let Some(track) = self.tracks.get_mut(name) {
                    track.metrics(values);
                    self.display.update(track, at);
                }
            }
            What::Sample { title, text } => {
                if self.detail == Detail::More {
                    let text = crate::table::wrap(text, 100, 8).join("\n    ");
                    self.pending.push_str(&format!(
                        "  {name}: {title}\n    {}\n",
                        self.style.dim(&text)
                    ));
                    self.flush();
                }
            }
            What::Note { level, text } => self.note(Some(name), *level, text),
            What::Waiting { reason } => {
                let sign = self.style.yellow("…");
                self.line(&sign, name, &format!("waiting: {reason}"));
                self.over(name);
            }
            What::Finished { milliseconds, .. } => {
                let words = self.took(name, *milliseconds);
                let sign = self.style.green("✓");
                self.line(&sign, name, &words);
                self.over(name);
            }
            What::Failed { error, place } => {
                let began = self
                    .tracks
                    .get(name)
                    .map(|t| format!(" after {}", units::time(at.saturating_sub(t.began))));
                let sign = self.style.red("✗");
                let words = self
                    .style
                    .red(&format!("failed{}", began.unwrap_or_default()));
                self.over_quietly(name);
                self.line(&sign, name, &words);
                let text = self.failure(name, error, place.as_ref());
                if self.detail == Detail::Quiet {
                    self.pending.clear();
                    self.insist(&format!("{text}\n"));
                } else {
                    let indented = text.lines().map(|line| format!("    {line}\n"));
                    self.pending.extend(indented);
                    self.flush();
                }
            }
            What::Skipped { reason } => {
                let sign = self.style.dim("–");
                let words = self.style.dim(&format!("skipped: {reason}"));
                self.line(&sign, name, &words);
                self.over(name);
            }
            What::Planned { .. } | What::Ended { .. } => {}
        }
    }

    /// What failed, and why: drawn at its place as `levain check` draws mistakes, where the text that it is in is known.
    fn failure(&self, name: &str, error: &str, place: Option<&Place>) -> String {
        let code = match name.starts_with("outputs.") {
            true => "output-failed",
            false => "stage-failed",
        };
        let problem = Problem {
            code,
            message: format!("`{name}`: {}", error.trim_end()),
            span: place.map(Place::span),
            others: Vec::new(),
            help: None,
        };
        let drawn = draw(&problem, &self.sources, self.style.color);
        match place.filter(|place| place.text(&self.sources).is_none()) {
            Some(place) => format!("{drawn}\n --> {place}"),
            None => drawn,
        }
    }

    fn note(&mut self, name: Option<&str>, level: Level, text: &str) {
        let about = name.map(|n| format!("{n}: ")).unwrap_or_default();
        match level {
            Level::Warning => {
                let line = format!("{} {about}{text}\n", self.style.yellow("warning:"));
                self.insist(&line);
            }
            Level::Info if self.detail != Detail::Quiet => {
                self.pending.push_str(&format!(
                    "  {}\n",
                    self.style.dim(&format!("{about}{text}"))
                ));
                self.flush();
            }
            Level::Info => {}
        }
    }

    fn over_quietly(&mut self, name: &str) {
        self.tracks.remove(name);
        self.display.end(name);
    }

    fn over(&mut self, name: &str) {
        self.over_quietly(name);
        self.flush();
    }
}

impl Sink for Terminal {
    fn emit(&mut self, event: &Event) {
        match (&event.stage, &event.what) {
            (Some(name), what) => self.stage(name, event.at, what),
            (None, What::Planned { stages, .. }) => self.planned(stages),
            (None, What::Note { level, text }) => self.note(None, *level, text),
            (None, What::Ended { .. }) => {
                for name in std::mem::take(&mut self.tracks).into_keys() {
                    self.display.end(&name);
                }
                self.flush();
            }
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests;

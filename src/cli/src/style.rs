//! Colours, when they are wanted.

use std::io::IsTerminal;

use engine::plan::Verdict;

use crate::options::ColorChoice;

/// Paints, or leaves as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Style {
    /// Whether to paint.
    pub color: bool,
}

impl Style {
    /// The style of a stream: asked for, or told by the stream and the environment (`NO_COLOR`, `TERM=dumb`).
    pub fn of(choice: ColorChoice, stream: &impl IsTerminal) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let color = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => stream.is_terminal() && !set("NO_COLOR") && !dumb,
        };
        Self { color }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub fn cyan(self, text: &str) -> String {
        self.paint("36", text)
    }

    /// Green text on two shades, so that neighbouring tokens are told apart.
    pub fn shaded(self, code: &str, text: &str) -> String {
        self.paint(code, text)
    }

    /// A verdict in its colour.
    pub fn verdict(self, verdict: Verdict, text: &str) -> String {
        match verdict {
            Verdict::Cached => self.green(text),
            Verdict::WillRun => self.yellow(text),
            Verdict::MayRun => self.cyan(text),
            Verdict::Skipped => self.dim(text),
        }
    }
}

/// A verdict in words.
pub(crate) fn verdict_words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Cached => "cached",
        Verdict::WillRun => "will run",
        Verdict::MayRun => "may run",
        Verdict::Skipped => "skipped",
    }
}

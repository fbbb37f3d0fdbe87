//! Lines that stay, for logs and pipes: one at a start, one at an end, and progress every few seconds.

use std::collections::HashMap;

use super::Display;
use super::track::Track;
use crate::style::Style;

/// Milliseconds between two lines of progress of one node.
const EVERY: u64 = 5000;

/// Lines to `write`.
pub(super) struct Lines {
    write: Box<dyn FnMut(&str) + Send>,
    progress: bool,
    told: HashMap<String, u64>,
}

impl Lines {
    /// Lines to `write`; without `progress`, only what is printed.
    pub fn new(write: Box<dyn FnMut(&str) + Send>, progress: bool) -> Self {
        Self {
            write,
            progress,
            told: HashMap::new(),
        }
    }
}

impl Display for Lines {
    fn print(&mut self, text: &str) {
        (self.write)(text);
    }

    fn start(&mut self, track: &Track, style: Style) {
        self.told.insert(track.name.clone(), track.began);
        if self.progress && !track.kind.is_empty() {
            let name = crate::table::pad(&track.name, track.width);
            (self.write)(&format!(
                "{} {name}  {}  begins\n",
                style.cyan("·"),
                style.dim(&crate::table::pad(&track.kind, 14))
            ));
        }
    }

    fn update(&mut self, track: &Track, at: u64) {
        let last = self.told.get(&track.name).copied().unwrap_or(0);
        if self.progress && at >= last.saturating_add(EVERY) {
            self.told.insert(track.name.clone(), at);
            (self.write)(&format!("  {}: {}\n", track.name, track.words(at)));
        }
    }

    fn end(&mut self, name: &str) {
        self.told.remove(name);
    }
}

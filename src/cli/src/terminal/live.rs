//! Lines that change, on a terminal: one for each running node, below everything that stays.

use std::collections::HashMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::track::Track;
use super::{BARS, Display, go_live, say};
use crate::context::terminal_width;
use crate::style::Style;
use crate::table::{pad, visible};

/// The lines of running nodes.
pub(super) struct Live {
    bars: HashMap<String, ProgressBar>,
    color: bool,
}

impl Live {
    pub fn new() -> Self {
        go_live();
        Self {
            bars: HashMap::new(),
            color: false,
        }
    }
}

/// Columns that the words of a running node want: `120/600 steps, 1,730 tokens/s, loss 1.2345, 9 min 40 s left`.
const WORDS: usize = 62;
/// The shortest and the longest bar.
const BAR: (usize, usize) = (6, 24);

/// The template of a line whose prefix takes `prefix` columns; `known` when the length of the work is.
fn template(known: bool, prefix: usize, color: bool) -> ProgressStyle {
    let columns = terminal_width(libc::STDERR_FILENO).unwrap_or(80);
    let bar = columns
        .saturating_sub(prefix + WORDS + 6)
        .clamp(BAR.0, BAR.1);
    let text = match (known, color) {
        (true, true) => {
            format!("{{spinner:.cyan}} {{prefix}}  {{bar:{bar}.cyan/dim}} {{wide_msg}}")
        }
        (true, false) => format!("{{spinner}} {{prefix}}  {{bar:{bar}}} {{wide_msg}}"),
        (false, true) => "{spinner:.cyan} {prefix}  {elapsed:.dim} {wide_msg}".to_owned(),
        (false, false) => "{spinner} {prefix}  {elapsed} {wide_msg}".to_owned(),
    };
    let style =
        ProgressStyle::with_template(&text).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("━╸─").tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
}

/// The kind stands in the line that stays; one that changes needs the room. A long name of another node pads none.
fn prefix_width(track: &Track) -> usize {
    track.width.min(16).max(visible(&track.name))
}

impl Display for Live {
    fn print(&mut self, text: &str) {
        say(text);
    }

    fn start(&mut self, track: &Track, style: Style) {
        self.color = style.color;
        let bar = BARS.add(ProgressBar::no_length());
        bar.set_style(template(false, prefix_width(track), style.color));
        bar.set_prefix(pad(&track.name, prefix_width(track)));
        bar.enable_steady_tick(Duration::from_millis(100));
        self.bars.insert(track.name.clone(), bar);
    }

    fn update(&mut self, track: &Track, at: u64) {
        let Some(bar) = self.bars.get(&track.name) else {
            return;
        };
        if track.total > 0 && bar.length() != Some(track.total) {
            if bar.length().is_none() {
                bar.set_style(template(true, prefix_width(track), self.color));
            }
            bar.set_length(track.total);
        }
        bar.set_position(track.done);
        bar.set_message(track.words(at));
    }

    fn end(&mut self, name: &str) {
        if let Some(bar) = self.bars.remove(name) {
            bar.finish_and_clear();
            BARS.remove(&bar);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        for bar in self.bars.values() {
            bar.finish_and_clear();
        }
    }
}

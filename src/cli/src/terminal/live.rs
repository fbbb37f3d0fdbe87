//! Lines that change, on a terminal: one for each running node, below everything that stays.

use std::collections::HashMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::track::Track;
use super::{BARS, Display, go_live, say};
use crate::style::Style;

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

/// The template of a line; `known` when the length of the work is.
fn template(known: bool, color: bool) -> ProgressStyle {
    let text = match (known, color) {
        (true, true) => "{spinner:.cyan} {prefix}  {bar:20.cyan/dim} {wide_msg}",
        (true, false) => "{spinner} {prefix}  {bar:20} {wide_msg}",
        (false, true) => "{spinner:.cyan} {prefix}  {elapsed:>4.dim} {wide_msg}",
        (false, false) => "{spinner} {prefix}  {elapsed:>4} {wide_msg}",
    };
    let style = ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("━╸─").tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
}

impl Display for Live {
    fn print(&mut self, text: &str) {
        say(text);
    }

    fn start(&mut self, track: &Track, style: Style) {
        self.color = style.color;
        let bar = BARS.add(ProgressBar::no_length());
        bar.set_style(template(false, style.color));
        let kind = if track.kind.is_empty() {
            String::new()
        } else {
            format!("  {}", style.dim(&crate::table::pad(&track.kind, 14)))
        };
        bar.set_prefix(format!(
            "{}{kind}",
            crate::table::pad(&track.name, track.width)
        ));
        bar.enable_steady_tick(Duration::from_millis(100));
        self.bars.insert(track.name.clone(), bar);
    }

    fn update(&mut self, track: &Track, at: u64) {
        let Some(bar) = self.bars.get(&track.name) else {
            return;
        };
        if track.total > 0 && bar.length() != Some(track.total) {
            if bar.length().is_none() {
                bar.set_style(template(true, self.color));
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

//! A running node: how far it is, how fast, how long it still takes.

use std::collections::BTreeMap;

use engine::event::number_text;

use crate::units;

/// What is known of a running node.
#[derive(Clone, Debug)]
pub(crate) struct Track {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// When it began, in milliseconds of the run.
    pub began: u64,
    /// Width of the column of names.
    pub width: usize,
    /// Units done.
    pub done: u64,
    /// Units in all; 0 when unknown.
    pub total: u64,
    unit: String,
    rate: Option<(f64, String)>,
    /// Rates times the milliseconds for which they held, and these milliseconds.
    paced: (f64, f64),
    /// The last report, in milliseconds of the run.
    told: u64,
    /// The first report: a resumed stage does not begin at 0.
    first: Option<(u64, u64)>,
    /// The number that says how it goes, with its name: the loss of a training, the score of a policy.
    headline: Option<(&'static str, f64)>,
}

impl Track {
    pub fn new(name: &str, kind: &str, at: u64, width: usize) -> Self {
        Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            began: at,
            width,
            done: 0,
            total: 0,
            unit: String::new(),
            rate: None,
            paced: (0.0, 0.0),
            told: at,
            first: None,
            headline: None,
        }
    }

    pub fn progress(
        &mut self,
        at: u64,
        done: u64,
        total: u64,
        unit: &str,
        rate: Option<(f64, String)>,
    ) {
        // A stage with several parts (load, train) counts each anew.
        if unit != self.unit || done < self.done {
            self.first = None;
            self.paced = (0.0, 0.0);
        }
        self.first.get_or_insert((at, done));
        (self.done, self.total) = (done, total);
        unit.clone_into(&mut self.unit);
        if let Some((rate, _)) = &rate {
            // At least something, for stages that are done within a millisecond.
            let spent = at.saturating_sub(self.told).max(1) as f64;
            self.paced.0 += rate * spent;
            self.paced.1 += spent;
        }
        self.told = at;
        self.rate = rate;
    }

    pub fn metrics(&mut self, values: &BTreeMap<String, f64>) {
        let named = |name: &'static str| values.get(name).map(|value| (name, *value));
        self.headline = named("score").or(named("loss")).or(self.headline);
    }

    /// `12/60 steps, 730 tokens/s, loss 1.2345, 40 s left`.
    pub fn words(&self, at: u64) -> String {
        let mut parts = Vec::new();
        if !self.unit.is_empty() {
            parts.push(match (self.unit.as_str(), self.total) {
                ("bytes", 0) => units::bytes(self.done),
                ("bytes", total) => {
                    format!("{} of {}", units::bytes(self.done), units::bytes(total))
                }
                (unit, 0) => format!("{} {unit}", units::count(self.done)),
                (unit, total) => {
                    format!("{}/{} {unit}", units::count(self.done), units::count(total))
                }
            });
        }
        if let Some((rate, unit)) = &self.rate {
            parts.push(format!("{} {unit}", units::rate(*rate)));
        }
        parts.extend(self.headline_words());
        if let Some(left) = self.left(at) {
            parts.push(format!("{} left", units::time(left)));
        }
        parts.join(", ")
    }

    /// What is worth keeping in its last line: the mean speed and the headline.
    pub fn last_words(&self) -> Option<String> {
        let rate = self
            .rate
            .as_ref()
            .map(|(_, unit)| format!("{} {unit}", units::rate(self.paced.0 / self.paced.1)));
        let words: Vec<String> = rate.into_iter().chain(self.headline_words()).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    fn headline_words(&self) -> Option<String> {
        let (name, value) = self.headline?;
        Some(format!("{name} {}", number_text(value)))
    }

    /// Milliseconds left at the pace since the first report; nothing before a pace is known.
    fn left(&self, at: u64) -> Option<u64> {
        let (first_at, first_done) = self.first?;
        let done = self.done.checked_sub(first_done).filter(|d| *d > 0)?;
        let rest = self.total.checked_sub(self.done).filter(|r| *r > 0)?;
        let spent = at.checked_sub(first_at).filter(|s| *s >= 1000)?;
        // Whole seconds: anything finer only flickers.
        Some(((spent as f64 * rest as f64 / done as f64) as u64 / 1000).max(1) * 1000)
    }
}

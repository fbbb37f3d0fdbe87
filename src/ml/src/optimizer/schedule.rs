//! The learning rate over the steps, exactly as transformers' `get_*_schedule_with_warmup`.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The curve after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Stays.
    Constant,
    /// Falls to zero in a line.
    Linear,
    /// Falls to zero in half a cosine.
    Cosine,
}

/// A learning rate for every step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The curve after the warm-up.
    pub shape: Shape,
    /// The largest learning rate.
    pub peak: f64,
    /// Steps over which it rises from zero, in a line: the first step has zero then.
    pub warmup: usize,
    /// All steps.
    pub total: usize,
}

impl Schedule {
    /// The learning rate of step `step`, counted from zero.
    pub fn rate(&self, step: usize) -> f64 {
        let (step, warmup, total) = (step as f64, self.warmup as f64, self.total as f64);
        let factor = if step < warmup {
            step / warmup.max(1.0)
        } else {
            match self.shape {
                Shape::Constant => 1.0,
                Shape::Linear => ((total - step) / (total - warmup).max(1.0)).max(0.0),
                Shape::Cosine => {
                    let progress = (step - warmup) / (total - warmup).max(1.0);
                    (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
                }
            }
        };
        self.peak * factor
    }
}

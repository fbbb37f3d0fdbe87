//! Optimizers with states that can be saved, and schedules of the learning rate.

mod adamw;
mod schedule;

pub use adamw::{AdamW, Options};
pub use schedule::{Schedule, Shape};

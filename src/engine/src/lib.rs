//! Recipe text → typed recipe → plan → schedule → cache → events. It knows no stage kind and no tensor.

pub mod artifact;
pub mod cache;
pub mod contract;
pub mod diagnostic;
pub mod digest;
pub mod estimate;
pub mod event;
pub mod explain;
pub mod export;
pub mod job;
pub mod known;
pub mod lock;
pub mod manual;
pub mod metric;
pub mod peek;
pub mod plan;
pub mod programs;
pub mod recipe;
pub mod record;
pub mod schedule;
pub mod schema;
pub mod session;
pub mod shell;
pub mod source;
pub mod worker;

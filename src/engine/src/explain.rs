//! Why a node runs: the difference between its record and the one it had when it was last made.

use anyhow::Result;

use crate::plan::{Standing, Verdict};
use crate::record::Record;
use crate::session::Session;

/// What `why` says of a node.
#[derive(Debug)]
pub struct Why {
    /// The node.
    pub name: String,
    /// The verdict.
    pub verdict: Verdict,
    /// In a sentence.
    pub reason: String,
    /// (name, before, after) for each item of the record that differs from the last run's.
    pub changes: Vec<(String, Option<String>, Option<String>)>,
}

/// Explains node `index`, given what is known of every node.
pub fn why(session: &Session, standings: &[Standing], index: usize) -> Result<Why> {
    let node = &session.plan.nodes[index];
    let standing = &standings[index];
    // A run that was stopped or failed on the way made nothing here: the one before it may have.
    let before = session.past_runs().find_map(|lock| {
        let key = lock.stages.get(&node.name)?.key?;
        session.cache.entry(key).map(|e| e.record)
    });
    let changes = match (&standing.record, &before) {
        (Some(now), Some(before)) => now.difference(before),
        _ => Vec::new(),
    };
    let reason = match standing.verdict {
        Verdict::Cached => "its outputs are in the cache".to_owned(),
        Verdict::Skipped => standing.reason.clone(),
        Verdict::MayRun => {
            let changed: Vec<_> = session.plan.needs(index).into_iter().filter(|n| standings[*n].verdict.open()).collect();
            let names: Vec<_> = changed.iter().map(|n| format!("`{}`", session.plan.nodes[*n].name)).collect();
            format!("it depends on {}, and runs unless the new outputs equal the old ones", names.join(", "))
        }
        Verdict::WillRun if before.is_none() => format!("{}; it has not run in this recipe before", standing.reason),
        Verdict::WillRun if changes.is_empty() && standing.record.is_some() => {
            "its record is the same as in the last run, but its outputs are not in the cache (never finished, deleted, or damaged)".to_owned()
        }
        Verdict::WillRun => format!("{}; what changed since the last run:", standing.reason),
    };
    Ok(Why {
        name: node.name.clone(),
        verdict: standing.verdict,
        reason,
        changes,
    })
}

/// The record, a line each, for people.
pub fn record_lines(record: &Record) -> Vec<(String, String)> {
    record
        .items()
        .map(|(name, item)| (name.to_owned(), crate::record::text(item)))
        .collect()
}

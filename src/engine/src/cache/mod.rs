//! The content-addressed cache. Its layout is described in `cache/README.md`.

mod lease;
mod publish;
mod store;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use lease::{Lease, Taken};
pub use publish::{Provenance, Published};
pub use store::{Cache, locate};

use crate::digest::Digest;
use crate::record::Record;

/// What is known under a key. Written once, never overwritten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The stage's record: its key is the entry's name.
    pub record: Record,
    /// Output name to artifact.
    pub outputs: BTreeMap<String, Digest>,
    /// Every blob that the outputs reach through their references: (digest, size).
    pub reaches: Vec<(Digest, u64)>,
    /// The tokenizer of each output that is a model, so that plans need not read manifests.
    pub tokenizers: BTreeMap<String, Digest>,
    /// Where and how it was made. Left out where an entry is read, since plans read thousands; [`Cache::provenance`] reads it.
    #[serde(default, deserialize_with = "passed_over")]
    pub provenance: Provenance,
}

fn passed_over<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Provenance, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| Provenance::new())
}

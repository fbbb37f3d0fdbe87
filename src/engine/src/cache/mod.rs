//! The content-addressed cache. Its layout is described in `cache/README.md`.

mod folder;
mod hit;
mod lease;
mod publish;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};

pub use lease::{Lease, Taken};
pub use publish::{Provenance, Published};
pub use store::{Cache, locate};

use crate::digest::Digest;
use crate::record::Record;

/// What is known under a key. Written once, never overwritten.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// The stage's record: its key is the entry's name.
    #[serde(serialize_with = "record")]
    pub record: Arc<Record>,
    /// Output name to artifact.
    pub outputs: BTreeMap<String, Digest>,
    /// Every blob that the outputs reach through their references: (digest, size).
    pub reaches: Vec<(Digest, u64)>,
    /// The tokenizer of each output that is a model, so that plans need not read manifests.
    pub tokenizers: BTreeMap<String, Digest>,
    /// Where and how it was made. Left out where an entry is read, since plans read thousands; [`Cache::provenance`] reads it.
    pub provenance: Provenance,
}

fn record<S: Serializer>(record: &Record, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(record, serializer)
}

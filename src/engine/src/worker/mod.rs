//! The worker: the process that runs tensor stages. Both sides of its protocol, JSON lines on standard input and output.

mod client;
mod server;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use client::{Conversation, Worker, locate};
pub(crate) use server::flatten as server_flatten;
pub use server::{Channel, Service, serve};

use crate::artifact::ArtifactView;
use crate::event::What;
use crate::job::{Drafts, Job};

/// Raised when the lines change.
pub const PROTOCOL: u32 = 2;

/// The first line of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the worker.
    pub protocol: u32,
    /// The build that the worker comes from.
    pub build: String,
    /// (kind, version) of every kind that it runs, in order.
    pub kinds: Vec<(String, u32)>,
    /// What decides the last bits: libtorch's version, the CPU's capability.
    pub numerics: BTreeMap<String, String>,
    /// Devices that it can use, `cpu` first.
    pub devices: Vec<String>,
    /// Dtypes that are fast here, for `doctor`.
    pub dtypes: Vec<String>,
}

/// A line to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a stage.
    Run(Box<Job>),
    /// Stop the running stage; it writes a snapshot first.
    Cancel,
    /// Begin a conversation with a model.
    Talk(Box<Talk>),
    /// The next words of the person.
    Say(String),
}

/// What a conversation needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Talk {
    /// The model.
    pub model: ArtifactView,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Thread count.
    pub threads: usize,
    /// Temperature, length and the like.
    pub params: Map<String, Value>,
}

/// A line from the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The first line.
    Hello(Hello),
    /// An event of the running stage.
    Event(What),
    /// The stage is done.
    Done(Drafts),
    /// The stage failed.
    Failed(String),
    /// The stage failed because of one of its words, a field or a port.
    FailedAbout {
        /// The word.
        word: String,
        /// The cause and the way out.
        error: String,
    },
    /// The stage stopped because it was asked to.
    Cancelled,
    /// The stage waits for a person.
    Waiting(String),
    /// A piece of an answer.
    Piece(String),
    /// The answer is complete; the conversation waits for the next words.
    Said,
    /// A line that is none of these: nothing that follows it can be trusted.
    #[serde(skip)]
    Garbled(String),
}

static BUILD: std::sync::OnceLock<&str> = std::sync::OnceLock::new();

/// Says, once and first of all, what this program was built from.
pub fn name_build(digest: &'static str) {
    let _ = BUILD.set(digest);
}

/// The build of this program: a worker of another build is refused.
pub fn build_id() -> String {
    let digest = BUILD.get().copied().unwrap_or("library");
    format!("{} ({digest})", env!("CARGO_PKG_VERSION"))
}

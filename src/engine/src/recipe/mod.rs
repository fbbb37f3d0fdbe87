//! Recipes: text and options → a checked recipe in which every word is known and every reference leads somewhere.

mod bind;
mod fields;
pub(crate) mod inputs;
mod matrix;
mod metrics;
mod names;
mod outputs;
mod params;
mod path;
mod read;
mod set;
mod stop_if;
mod unroll;
pub mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::contract::Contract;
use crate::diagnostic::Span;
use crate::source::SourceSpec;

pub use read::{check_text, is_device, read};
pub use stop_if::StopIf;
pub use unroll::derive;

/// A recipe without mistakes that its text alone can show.
#[derive(Debug)]
pub struct Recipe {
    /// `name`, or the file's stem.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The recipe's seed, for stages that draw and have none of their own.
    pub seed: u64,
    /// Where tensors live, when the recipe says so.
    pub device: Option<String>,
    /// The run's thread count, when the recipe pins it.
    pub threads: Option<usize>,
    /// The stages, in the order of the file.
    pub stages: Vec<Stage>,
    /// Folders to fill at the end of every run.
    pub outputs: Vec<Export>,
    /// What names lead to.
    pub(crate) names: names::Names,
    /// The recipe's text and the options', for messages that point into them.
    pub sources: Vec<crate::diagnostic::SourceText>,
}

impl Recipe {
    /// The folder that relative paths start from.
    pub fn folder(&self) -> &Path {
        self.path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
    }

    /// The stage that a person names, with the output where one is named. Several of a repeat that may stop early: the last one
    /// that ran is meant.
    pub fn find(&self, name: &str) -> Option<Vec<(usize, String)>> {
        match self.names.find(0, name).ok()? {
            names::Found::One(pick) => {
                let spots = pick.from.into_iter().map(|spot| (spot.stage, spot.output));
                Some(spots.collect())
            }
            names::Found::Many(_) | names::Found::Broken => None,
        }
    }
}

/// One stage, resolved: parameters after defaults, references by index.
pub struct Stage {
    /// Its name; inside a group `align[2].tuned`.
    pub name: String,
    /// Where the name stands.
    pub span: Span,
    /// What it is.
    pub contract: &'static Contract,
    /// Every field after defaults; sources as written.
    pub params: Map<String, Value>,
    /// Source fields.
    pub sources: BTreeMap<&'static str, SourceSpec>,
    /// Port name to what feeds it. An optional port that is not given is absent.
    pub inputs: BTreeMap<&'static str, Binding>,
    /// What has it skipped: the `stop_if` of each repeat around it, after the round before its own.
    pub guards: Vec<Guard>,
    /// Where each word's value stands.
    pub spans: BTreeMap<String, Span>,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage")
            .field("name", &self.name)
            .field("kind", &self.contract.kind)
            .field("params", &self.params)
            .field("inputs", &self.inputs)
            .finish_non_exhaustive()
    }
}

/// A `stop_if` after one round.
#[derive(Clone, Debug)]
pub struct Guard {
    /// The metrics that it looks at.
    pub metrics: Pick<Target>,
    /// What it says.
    pub stop: Arc<StopIf>,
}

/// What feeds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// One output.
    One(Pick<Target>),
    /// Several, named, in the order of the file.
    Many(Vec<(String, Pick<Target>)>),
}

impl Binding {
    /// Every output that it may be.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        let (one, many) = match self {
            Self::One(pick) => (Some(pick), None),
            Self::Many(list) => (None, Some(list)),
        };
        let many = many.into_iter().flatten().map(|(_, pick)| pick);
        one.into_iter().chain(many).flat_map(|pick| &pick.from)
    }
}

/// One thing; or of several, in the order of their rounds, the last one that was not skipped by a `stop_if`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick<T> {
    /// At least one.
    pub from: Vec<T>,
    /// Whether it is left out of a list, rather than missed, when all of it was skipped.
    pub optional: bool,
}

impl<T> Pick<T> {
    /// This one.
    pub fn one(it: T) -> Self {
        Self {
            from: vec![it],
            optional: false,
        }
    }

    /// The same of other things.
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> Pick<U> {
        Pick {
            from: self.from.into_iter().map(change).collect(),
            optional: self.optional,
        }
    }
}

/// One output of one stage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Index of the stage.
    pub stage: usize,
    /// Name of its output.
    pub output: &'static str,
}

/// An entry of `outputs`.
#[derive(Clone, Debug)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// Where the name stands.
    pub span: Span,
    /// What is written.
    pub from: Pick<Target>,
    /// In which form.
    pub format: Format,
    /// The folder, as written.
    pub to: String,
}

/// The form of an exported artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The artifact's own files.
    Files,
    /// An adapter as Python's PEFT loads it, with the tokenizer.
    Peft,
}

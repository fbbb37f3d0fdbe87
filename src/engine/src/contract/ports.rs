//! What goes into a stage and what comes out of it: ports, outputs, and work that is done before.

use serde_json::{Map, Value};

use super::checks::Foresight;
use crate::artifact::ArtifactType;

/// An input.
pub struct Port {
    /// The key in the recipe.
    pub name: &'static str,
    /// What it takes.
    pub accepts: &'static [ArtifactType],
    /// How many.
    pub arity: Arity,
    /// The layouts of a dataset that it can use (`summary.layout`); empty when any will do.
    pub layouts: &'static [&'static str],
    /// What for.
    pub doc: &'static str,
}

/// How many artifacts a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Exactly one.
    One,
    /// One or none.
    Optional,
    /// One, or a list, or a mapping from names, with at least one entry.
    Many,
    /// One, which has no name here, or a list or a mapping from names: a lone artifact's stage may be renamed, and nothing runs.
    OneOrMany,
    /// The same, or none.
    Any,
}

impl Arity {
    /// Whether it must be given.
    pub fn is_required(self) -> bool {
        !matches!(self, Self::Optional | Self::Any)
    }

    /// Whether it may hold several.
    pub fn takes_several(self) -> bool {
        matches!(self, Self::Many | Self::OneOrMany | Self::Any)
    }

    /// Whether one alone has no name.
    pub fn is_nameless_alone(self) -> bool {
        self != Self::Many
    }
}

/// An output.
#[derive(Clone, Copy)]
pub struct Output {
    /// The word after the dot in `stage.output`.
    pub name: &'static str,
    /// What it is.
    pub gives: Gives,
    /// The port whose tokenizer this model keeps, so that work on tokens need not wait for the model.
    pub keeps_tokenizer_of: Option<&'static str>,
    /// The names of the numbers in its summary, when it is metrics and they can be told beforehand.
    pub metrics: Option<MetricNames>,
    /// Those of them that are the same whatever happens, so that a limit for them decides nothing.
    pub constant: Option<MetricNames>,
    /// What can be told of it before it is made, for the estimates of the stages behind.
    pub foreseen: Option<Foresight>,
    /// What it holds.
    pub doc: &'static str,
}

/// What an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// An artifact of this type, made by the stage.
    New(ArtifactType),
    /// The very artifact that this port holds, or one of those that it holds, whatever it is.
    Same(&'static str),
}

/// The names of metrics, from the parameters and from the names in each port that takes several artifacts.
pub type MetricNames = fn(&Map<String, Value>, &dyn Fn(&str) -> Vec<String>) -> Vec<String>;

impl Output {
    /// An artifact that the stage makes.
    pub const fn new(name: &'static str, artifact: ArtifactType, doc: &'static str) -> Self {
        Self {
            name,
            gives: Gives::New(artifact),
            keeps_tokenizer_of: None,
            metrics: None,
            constant: None,
            foreseen: None,
            doc,
        }
    }

    /// An artifact of `port`, handed on as it is.
    pub const fn same(name: &'static str, port: &'static str, doc: &'static str) -> Self {
        Self {
            gives: Gives::Same(port),
            ..Self::new(name, ArtifactType::Dataset, doc)
        }
    }

    /// The same with the tokenizer of the model in `port`.
    pub const fn keeps_tokenizer_of(self, port: &'static str) -> Self {
        Self {
            keeps_tokenizer_of: Some(port),
            ..self
        }
    }

    /// The same with the names of its numbers.
    pub const fn metrics(self, names: MetricNames) -> Self {
        Self {
            metrics: Some(names),
            ..self
        }
    }

    /// The same with the names of its numbers that are always the same.
    pub const fn constant(self, names: MetricNames) -> Self {
        Self {
            constant: Some(names),
            ..self
        }
    }

    /// The same with what can be told of it before it is made.
    pub const fn foreseen(self, foresight: Foresight) -> Self {
        Self {
            foreseen: Some(foresight),
            ..self
        }
    }

    /// Whether it is always of this type.
    pub fn is(&self, artifact: ArtifactType) -> bool {
        self.gives == Gives::New(artifact)
    }

    /// The port whose artifact it hands on.
    pub fn handed_on(&self) -> Option<&'static str> {
        match self.gives {
            Gives::Same(port) => Some(port),
            Gives::New(_) => None,
        }
    }
}

/// Work with a key of its own: a node `owner › name` of a hidden kind.
pub struct Preparation {
    /// The name after the `›`.
    pub name: &'static str,
    /// The hidden kind that does it.
    pub kind: &'static str,
    /// Fills each of the hidden kind's ports.
    pub inputs: &'static [(&'static str, From)],
    /// The owner's fields that are handed on, under the same names. They are left out of the owner's own record.
    pub fields: &'static [&'static str],
    /// The owner's ports that it needs no longer: only what was made of them matters.
    pub replaces: &'static [&'static str],
}

/// Where a preparation's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The artifact of the owner's port.
    Port(&'static str),
    /// The tokenizer of the model in the owner's port. Of a port with several models, one preparation each.
    TokenizerOf(&'static str),
    /// The artifact of the first port, or where that is not given of the second.
    PortOr(&'static str, &'static str),
    /// What an earlier preparation of the owner made.
    Preparation(&'static str),
}

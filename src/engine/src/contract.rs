//! Contracts: what a kind is. One static value declares its parameters, ports, outputs, defaults and words; the reader, the
//! manual, the JSON Schema, the records and the keys are all made from it.

mod checks;
mod fields;
mod list;
mod ports;

pub use checks::{
    Check, CheckInputs, Estimate, Foresight, Inputs, LayoutOf, Rows, Summary, no_check,
};
pub use fields::{Choice, Class, Field, FieldType, Literal, Need, SCRIPT, command};
pub use list::{Contracts, Trial};
pub use ports::{Arity, From, Gives, MetricNames, Output, Port, Preparation};

use serde_json::{Map, Value};

/// What a kind of stage is.
pub struct Contract {
    /// The word after `kind:`.
    pub kind: &'static str,
    /// Raised whenever equal inputs may give other outputs than before; part of every key.
    pub version: u32,
    /// One sentence.
    pub about: &'static str,
    /// More, in Markdown: what it computes, with its formula and source.
    pub manual: &'static str,
    /// A stage as one would write it.
    pub example: &'static str,
    /// Where it runs.
    pub pool: Pool,
    /// Whether equal inputs give equal bytes.
    pub repeatable: Repeatable,
    /// Parameters.
    pub fields: &'static [Field],
    /// Inputs.
    pub ports: &'static [Port],
    /// Outputs; the first is the one that a bare stage name means.
    pub outputs: &'static [Output],
    /// Work with a key of its own, done before the stage and shared by all that need the same.
    pub preparations: &'static [Preparation],
    /// The layout of the rows that it makes, where it can be told before it runs.
    pub layout: Option<LayoutOf>,
    /// What no single field can say: (field, message) for every combination that makes no sense.
    pub check: Check,
    /// What fields and inputs can't say together. Asked when the recipe is read, and again when something is known of rows and models.
    pub check_inputs: Option<CheckInputs>,
    /// Peak memory in bytes from the parameters and what is known of the inputs, when it can be told.
    pub memory: Option<Estimate>,
}

/// The named resource that a kind takes one unit of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pool {
    /// Inside `levain`, several at a time.
    Cpu,
    /// In the worker, one at a time: torch's random state and thread settings are global to a process.
    Torch,
}

/// Whether equal inputs give equal bytes within a numerics class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeatable {
    /// They do.
    Deterministic,
    /// A person, a program or a remote endpoint answers: the answer is recorded.
    Recorded,
}

impl Contract {
    /// The field called `name`.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// The port called `name`.
    pub fn port(&self, name: &str) -> Option<&'static Port> {
        self.ports.iter().find(|p| p.name == name)
    }

    /// The output called `name`, or the first for the empty name.
    pub fn output(&self, name: &str) -> Option<&'static Output> {
        if name.is_empty() {
            self.outputs.first()
        } else {
            self.outputs.iter().find(|o| o.name == name)
        }
    }

    /// The command that a stage with these parameters runs, as the recipe writes it; none for most kinds, and where none is given.
    pub fn program(&self, params: &Map<String, Value>) -> Option<String> {
        self.fields.iter().find_map(|field| {
            let FieldType::Program { script } = field.ty else {
                return None;
            };
            let words = params.get(field.name)?.as_array()?;
            let script = params.get(script).filter(|value| !value.is_null());
            let words = words.iter().filter_map(Value::as_str).map(str::to_owned);
            let script = script.map(|value| match value {
                Value::String(place) => place.clone(),
                other => other.to_string(),
            });
            Some(command(words, script).join(" "))
        })
    }

    /// Every word that may stand in a stage of this kind.
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        ["kind"]
            .into_iter()
            .chain(self.ports.iter().map(|p| p.name))
            .chain(self.fields.iter().map(|f| f.name))
    }
}

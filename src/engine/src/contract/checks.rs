//! What a contract says of parameters and inputs together: what does not fit, what comes of them, what it takes.

use serde_json::{Map, Value};

/// Looks at all parameters together.
pub type Check = fn(&Map<String, Value>) -> Vec<(&'static str, String)>;

/// Looks at all parameters together with what feeds the ports: (field or port, message) for what does not go together.
pub type CheckInputs = fn(&Map<String, Value>, &Inputs<'_>) -> Vec<(&'static str, String)>;

/// A stage's rows, from its parameters and the rows in each port, as far as they are known.
pub type LayoutOf = fn(&Map<String, Value>, &dyn Fn(&str) -> Option<Rows>) -> Option<Rows>;

/// What is known of rows before they are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Their layout.
    pub layout: String,
    /// The columns of the layout that no row fills.
    pub empty: Vec<&'static str>,
}

impl Rows {
    /// Rows of a layout of which nothing else is known.
    pub fn of(layout: impl Into<String>) -> Self {
        Self {
            layout: layout.into(),
            empty: Vec::new(),
        }
    }

    /// The same, of which no row fills `column`.
    pub fn without(mut self, column: &'static str) -> Self {
        self.empty.push(column);
        self
    }
}

/// What is known of a stage's inputs before it runs.
pub struct Inputs<'a> {
    /// The names of what is in a port. What has no name there is called like the port, as it is when the stage runs.
    pub names: &'a dyn Fn(&str) -> Vec<String>,
    /// (stage, its rows) for everything in a port of whose rows something is known.
    pub rows: &'a dyn Fn(&str) -> Vec<(String, Rows)>,
    /// (stage, what is known of its artifact) for everything in a port of which something is known.
    pub known: &'a dyn Fn(&str) -> Vec<(String, Summary)>,
}

/// What is known of an artifact: its summary and more of its content, or as much of that as can be told before it is made. What is null is
/// known not to be there; of what is missing nothing is known.
pub type Summary = std::collections::BTreeMap<String, Value>;

/// Estimates bytes from parameters and (port or preparation, what is known of an artifact in it).
pub type Estimate = fn(&Map<String, Value>, &[(&str, &Summary)]) -> Option<u64>;

/// What can be told of an output before it is made, from the same.
pub type Foresight = fn(&Map<String, Value>, &[(&str, &Summary)]) -> Option<Summary>;

/// A `check` for kinds whose fields say it all.
pub fn no_check(_: &Map<String, Value>) -> Vec<(&'static str, String)> {
    Vec::new()
}

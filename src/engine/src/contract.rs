//! Contracts: what a kind is. One static value declares its parameters, ports, outputs, defaults and words; the reader, the
//! manual, the JSON Schema, the records and the keys are all made from it.

use serde_json::{Map, Value};

use crate::artifact::ArtifactType;

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

/// What a field may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The result: it is in the record, and so in the key.
    Semantic,
    /// The last bits: equal to tolerance, kept in the provenance, not in the key.
    Numeric,
    /// Nothing: equal bytes.
    Execution,
}

/// One parameter.
pub struct Field {
    /// The key in the recipe.
    pub name: &'static str,
    /// What it may be.
    pub ty: FieldType,
    /// What happens when it is not given.
    pub need: Need,
    /// The value at which it changes nothing: then it is left out of the record, so that a field added later reruns nothing.
    pub neutral: Option<Literal>,
    /// What it may change.
    pub class: Class,
    /// True when raising it continues the same computation (more steps): a snapshot made with less is still of use.
    pub extendable: bool,
    /// Unit, range and effect in a sentence or two.
    pub doc: &'static str,
}

impl Field {
    /// A value as the record has it. Records forget the order of a mapping, so one whose order matters becomes a list of pairs.
    pub fn recorded(&self, value: Value) -> Value {
        match (&self.ty, value) {
            (FieldType::Map { ordered: true, .. }, Value::Object(map)) if !map.is_empty() => map
                .into_iter()
                .map(|(name, value)| Value::Array(vec![name.into(), value]))
                .collect(),
            (_, value) => value,
        }
    }
}

/// What happens when a field is not given.
#[derive(Clone, Copy)]
pub enum Need {
    /// It is an error.
    Required,
    /// It is absent (`null` in the parameters).
    Optional,
    /// It takes this value.
    Default(Literal),
}

/// A constant in a contract.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Literal {
    /// Absent.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A text.
    Text(&'static str),
    /// An empty list.
    EmptyList,
    /// An empty mapping.
    EmptyMap,
}

impl Literal {
    /// The same as a JSON value.
    pub fn value(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(b) => b.into(),
            Self::Integer(i) => i.into(),
            Self::Number(x) => x.into(),
            Self::Text(t) => t.into(),
            Self::EmptyList => Value::Array(Vec::new()),
            Self::EmptyMap => Value::Object(Map::new()),
        }
    }
}

/// What a field may be.
pub enum FieldType {
    /// `true` or `false`.
    Bool,
    /// A whole number between the bounds, both included.
    Integer {
        /// Least.
        min: i64,
        /// Greatest.
        max: i64,
    },
    /// A number between the bounds.
    Number {
        /// Lower bound.
        min: f64,
        /// Upper bound, included.
        max: f64,
        /// Whether the lower bound itself is refused.
        above: bool,
    },
    /// Any text that is not empty.
    Text,
    /// One of some words.
    Choice(&'static [Choice]),
    /// A list.
    List {
        /// Of what.
        of: &'static FieldType,
        /// Least length.
        min: usize,
    },
    /// A mapping from names.
    Map {
        /// To what.
        of: &'static FieldType,
        /// Whether the order of its entries may change the result: then it is part of the record.
        ordered: bool,
    },
    /// The first that fits.
    Either(&'static [FieldType]),
    /// Something outside: a path, an address, a package. Resolved to a digest, which is what the record holds.
    Source,
    /// A program with its arguments, started without a shell, and only in a run in which the user allows it.
    Program {
        /// The source field whose file stands for the word `{script}`, or without that word behind all of them: a file in the
        /// words themselves would be run without its content being in the record.
        script: &'static str,
    },
    /// Where random streams start; the recipe's `seed` when not given.
    Seed,
    /// The name of a number in metrics.
    Metric {
        /// The port of the metrics.
        of: &'static str,
        /// The port to each of whose artifacts such a number belongs; none where there is one number. The port of the metrics itself where
        /// each of them has such a number, or several below names (`tuned.score`), or one by the field's default.
        each: Option<&'static str>,
    },
}

/// A word that a field may be.
pub struct Choice {
    /// The word.
    pub word: &'static str,
    /// What it means.
    pub doc: &'static str,
}

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

/// The words of a [`FieldType::Program`] with the script in its place.
pub fn command(words: impl Iterator<Item = String>, script: Option<String>) -> Vec<String> {
    let mut words: Vec<String> = words.collect();
    let Some(script) = script else {
        return words;
    };
    match words.iter_mut().find(|word| *word == SCRIPT) {
        Some(place) => *place = script,
        None => words.push(script),
    }
    words
}

/// The word of a [`FieldType::Program`] for which its script stands.
pub const SCRIPT: &str = "{script}";

/// Tries what the fields of a kind say in a language that its contract does not know: a pattern, a template.
pub struct Trial {
    /// The kind's name.
    pub kind: &'static str,
    /// (field, message) for what can't be read.
    pub attempt: Check,
    /// The same of what fields mean for the inputs: a name that nothing has.
    pub attempt_inputs: Option<CheckInputs>,
}

/// The contracts that an engine works with.
#[derive(Clone, Copy)]
pub struct Contracts {
    /// Kinds that recipes may name.
    pub kinds: &'static [&'static Contract],
    /// Kinds that only preparations name.
    pub hidden: &'static [&'static Contract],
    /// What is tried when a recipe is read. They come from those who know how kinds run; without them a mistake shows when its
    /// stage runs.
    pub trials: &'static [Trial],
}

impl Contracts {
    /// The contract of a kind that a recipe may name.
    pub fn kind(&self, name: &str) -> Option<&'static Contract> {
        self.kinds.iter().copied().find(|c| c.kind == name)
    }

    /// The contract of any kind.
    pub fn any(&self, name: &str) -> Option<&'static Contract> {
        self.kind(name)
            .or_else(|| self.hidden.iter().copied().find(|c| c.kind == name))
    }

    /// Every (field, message) of a kind's fields that make no sense together, or that can't be read.
    pub fn mistakes(
        &self,
        contract: &Contract,
        params: &Map<String, Value>,
    ) -> Vec<(&'static str, String)> {
        let mut mistakes = (contract.check)(params);
        let own = self.trials.iter().filter(|t| t.kind == contract.kind);
        mistakes.extend(own.flat_map(|trial| (trial.attempt)(params)));
        mistakes
    }

    /// Everything that a kind looks at in its fields and inputs together.
    fn input_checks(&self, contract: &Contract) -> impl Iterator<Item = CheckInputs> {
        let own = self.trials.iter().filter(move |t| t.kind == contract.kind);
        let tried = own.filter_map(|trial| trial.attempt_inputs);
        contract.check_inputs.into_iter().chain(tried)
    }

    /// Whether a kind looks at its fields and inputs together.
    pub fn checks_inputs(&self, contract: &Contract) -> bool {
        self.input_checks(contract).next().is_some()
    }

    /// Every (field or port, message) of fields and inputs that make no sense together.
    pub fn input_mistakes(
        &self,
        contract: &Contract,
        params: &Map<String, Value>,
        inputs: &Inputs<'_>,
    ) -> Vec<(&'static str, String)> {
        let checks = self.input_checks(contract);
        checks.flat_map(|check| check(params, inputs)).collect()
    }

    /// Every contract.
    pub fn all(&self) -> impl Iterator<Item = &'static Contract> {
        self.kinds.iter().chain(self.hidden).copied()
    }

    /// (kind, version) of every contract that runs in `pool`, in order: what a worker must match.
    pub fn versions(&self, pool: Pool) -> Vec<(String, u32)> {
        let mut versions: Vec<_> = self
            .all()
            .filter(|c| c.pool == pool)
            .map(|c| (c.kind.to_owned(), c.version))
            .collect();
        versions.sort();
        versions
    }
}

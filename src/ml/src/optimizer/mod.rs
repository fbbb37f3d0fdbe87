//! Optimizers with states that can be saved, and schedules of the learning rate.
//!
//! A rule says which numbers it keeps of a parameter and how they move it; steps, decay, copies in f32 and snapshots are the same for all.

mod adafactor;
mod adamw;
mod eight_bits;
mod schedule;

pub use adafactor::Adafactor;
pub use adamw::Options;
pub use schedule::{Schedule, Shape};

use crate::params::Params;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use tch::{Kind, Tensor, no_grad};

/// How a parameter follows its gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// AdamW with its moments in f32.
    AdamW(Options),
    /// AdamW with its moments in eight bits.
    AdamW8bit(Options),
    /// Adafactor with a learning rate from outside.
    Adafactor(Adafactor),
}

/// What a rule keeps of a parameter, by name.
type Parts = BTreeMap<&'static str, Tensor>;

/// The state of one parameter.
#[derive(Debug)]
struct State {
    parts: Parts,
    /// The parameter in f32, where it is stored in fewer bits itself.
    master: Option<Tensor>,
}

/// One parameter in one step.
struct Task<'a> {
    /// As the model has it.
    param: &'a Tensor,
    /// In f32 (f64 stays): the parameter's own memory, or the copy that it is rounded from.
    weight: Tensor,
    gradient: &'a Tensor,
    rate: f64,
    /// Decay per unit of rate.
    decay: f64,
    /// Steps with this one.
    steps: u64,
}

impl Task<'_> {
    /// Rounds the weight into the parameter, where they are not one.
    fn round(&self) -> Result<()> {
        if self.param.kind() != self.weight.kind() {
            self.param.detach().f_copy_(&self.weight)?;
        }
        Ok(())
    }
}

/// The type that a parameter is computed in.
fn wide(param: &Tensor) -> Kind {
    match param.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}

impl Rule {
    /// The state of a parameter before its first step.
    fn fresh(&self, param: &Tensor) -> Result<State> {
        let kind = wide(param);
        let parts = match self {
            Rule::AdamW8bit(_) if eight_bits::takes(param) => eight_bits::fresh(param)?,
            Rule::AdamW(_) | Rule::AdamW8bit(_) => adamw::fresh(param)?,
            Rule::Adafactor(_) => adafactor::fresh(param)?,
        };
        Ok(State {
            parts,
            master: (param.kind() != kind).then(|| param.detach().to_kind(kind)),
        })
    }

    fn update(&self, parts: &Parts, task: &Task<'_>) -> Result<()> {
        match self {
            Rule::AdamW8bit(options) if eight_bits::takes(task.param) => {
                eight_bits::update(options, parts, task)
            }
            Rule::AdamW(options) | Rule::AdamW8bit(options) => adamw::update(options, parts, task),
            Rule::Adafactor(options) => adafactor::update(options, parts, task),
        }
    }

    /// Decay per unit of rate.
    fn decay(&self) -> f64 {
        match self {
            Rule::AdamW(options) | Rule::AdamW8bit(options) => options.weight_decay,
            Rule::Adafactor(options) => options.weight_decay,
        }
    }
}

/// The optimizer: states are made at the first step of each parameter.
#[derive(Debug)]
pub struct Optimizer {
    rule: Rule,
    steps: u64,
    states: BTreeMap<String, State>,
    /// Parameters (by name) whose weight is not decayed.
    undecayed: Vec<String>,
    /// What the rate is multiplied with for parameters (by name) that have one of their own.
    factors: BTreeMap<String, f64>,
}

impl Optimizer {
    /// A fresh optimizer; `undecayed` are the names of parameters without weight decay (norms and biases, commonly).
    pub fn new(rule: Rule, undecayed: Vec<String>) -> Optimizer {
        Optimizer {
            rule,
            steps: 0,
            states: BTreeMap::new(),
            undecayed,
            factors: BTreeMap::new(),
        }
    }

    /// The same with factors of the learning rate by the names of parameters; where there is none, it is 1.
    pub fn with_factors(self, factors: BTreeMap<String, f64>) -> Optimizer {
        Optimizer { factors, ..self }
    }

    /// The number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step with the gradients that the parameters hold. A parameter without a gradient stays as it is.
    pub fn step<'a>(
        &mut self,
        params: impl Iterator<Item = (&'a str, &'a Tensor)>,
        rate: f64,
    ) -> Result<()> {
        self.steps += 1;
        no_grad(|| {
            for (name, param) in params {
                let gradient = param.grad();
                if !gradient.defined() {
                    continue;
                }
                let state = match self.states.entry(name.to_owned()) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert(self.rule.fresh(param)?),
                };
                let undecayed = self.undecayed.iter().any(|other| other == name);
                let task = Task {
                    param,
                    weight: match &state.master {
                        Some(master) => master.shallow_clone(),
                        None => param.detach(),
                    },
                    gradient: &gradient,
                    rate: rate * self.factors.get(name).copied().unwrap_or(1.0),
                    decay: if undecayed { 0.0 } else { self.rule.decay() },
                    steps: self.steps,
                };
                let place = || format!("in the step of {name:?}");
                self.rule.update(&state.parts, &task).with_context(place)?;
            }
            Ok(())
        })
    }

    /// The states as named tensors: `<parameter>.<part>`, and `<parameter>.master` where there is one.
    pub fn stored(&self) -> Vec<(String, Tensor)> {
        let mut stored = Vec::new();
        for (name, state) in &self.states {
            for (part, tensor) in &state.parts {
                stored.push((format!("{name}.{part}"), tensor.shallow_clone()));
            }
            if let Some(master) = &state.master {
                stored.push((format!("{name}.master"), master.shallow_clone()));
            }
        }
        stored
    }

    /// Puts saved states back: those that this rule keeps of the parameters `params`.
    pub fn restore(
        &mut self,
        params: &Params,
        steps: u64,
        stored: Vec<(String, Tensor)>,
    ) -> Result<()> {
        let mut found: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (name, tensor) in stored {
            let (param, part) = name.rsplit_once('.').context("a state without a part")?;
            let parts = found.entry(param.to_owned()).or_default();
            parts.insert(part.to_owned(), tensor);
        }
        self.states.clear();
        for (name, mut parts) in found {
            let param = params.get(&name).with_context(|| {
                format!("there is an optimizer state of {name:?}, which the run does not have")
            })?;
            // Fresh only to say which parts there must be, of which type and shape.
            let mut state = self.rule.fresh(param)?;
            let own = state.parts.iter_mut().map(|(part, tensor)| (*part, tensor));
            let own = own.chain(state.master.iter_mut().map(|master| ("master", master)));
            for (part, tensor) in own {
                let stored = parts.remove(part).with_context(|| {
                    format!("the optimizer state of {name:?} is incomplete: {part:?} is missing")
                })?;
                ensure!(
                    stored.size() == tensor.size() && stored.kind() == tensor.kind(),
                    "the optimizer state {name:?}, {part:?} is {:?} of {:?}, but the run's is {:?} of {:?}",
                    stored.size(),
                    stored.kind(),
                    tensor.size(),
                    tensor.kind()
                );
                *tensor = stored;
            }
            ensure!(
                parts.is_empty(),
                "the optimizer state of {name:?} has unknown parts: {:?}",
                parts.keys()
            );
            self.states.insert(name, state);
        }
        self.steps = steps;
        Ok(())
    }
}

//! Optimizers with states that can be saved, and schedules of the learning rate.
//!
//! A rule says which numbers it keeps of a parameter and how they move it; steps, decay, copies in f32 and snapshots are the same for all.

mod adafactor;
mod adamw;
mod eight_bits;
mod schedule;
mod state;

pub use adafactor::Adafactor;
pub use adamw::Options;
pub use schedule::{Schedule, Shape};
pub use state::Home;

use crate::params::Params;
use crate::place::HOST;
use anyhow::{Context, Result, ensure};
use state::{Parts, State};
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
    /// The parameter's steps with this one.
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

/// Whether AdamW in eight bits packs the moments of this parameter; of small tensors it keeps them in f32.
pub fn packs(param: &Tensor) -> bool {
    eight_bits::takes(param)
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
            steps: 0,
        })
    }

    /// The same where it lies between steps.
    fn begun(&self, param: &Tensor, home: Home) -> Result<State> {
        let state = self.fresh(param)?;
        match home {
            Home::Host => state.at_home(param.device()),
            Home::Device => Ok(state),
        }
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
    home: Home,
    steps: u64,
    states: BTreeMap<String, State>,
    /// Parameters (by name) whose weight is not decayed.
    undecayed: Vec<String>,
    /// What the rate is multiplied with for parameters (by name) that have one of their own.
    factors: BTreeMap<String, f64>,
    /// The step, counted from 0, from which on parameters (by name) learn that do not begin at once.
    turns: BTreeMap<String, usize>,
}

impl Optimizer {
    /// A fresh optimizer; `undecayed` are the names of parameters without weight decay (norms and biases, commonly).
    pub fn new(rule: Rule, undecayed: Vec<String>) -> Optimizer {
        Optimizer {
            rule,
            home: Home::default(),
            steps: 0,
            states: BTreeMap::new(),
            undecayed,
            factors: BTreeMap::new(),
            turns: BTreeMap::new(),
        }
    }

    /// The same with factors of the learning rate by the names of parameters; where there is none, it is 1.
    pub fn with_factors(self, factors: BTreeMap<String, f64>) -> Optimizer {
        Optimizer { factors, ..self }
    }

    /// The same with states that lie elsewhere between steps. The numbers are the same.
    pub fn with_home(self, home: Home) -> Optimizer {
        Optimizer { home, ..self }
    }

    /// The same with parameters that begin later: the step, counted from 0, in which they learn first, by their names.
    pub fn with_turns(self, turns: BTreeMap<String, usize>) -> Optimizer {
        Optimizer { turns, ..self }
    }

    /// Before the forward of step `step` (counted from 0): trained parameters whose turn has not come get no gradient, and what is below all
    /// others no backward pass. Without a gradient there is no step for them, no decay and no state.
    pub fn open(&self, params: &Params, step: usize) {
        if self.turns.values().all(|turn| *turn == 0) {
            return;
        }
        for (name, tensor) in params.trained() {
            let turn = self.turns.get(name).copied().unwrap_or(0);
            let _ = tensor.set_requires_grad(turn <= step);
        }
    }

    /// The number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The steps of parameters that have taken fewer than the optimizer has, by name: those that began later. Their corrections count from
    /// their own first step, as in torch.
    pub fn later(&self) -> BTreeMap<String, u64> {
        let states = self.states.iter();
        let fewer = states.filter(|(_, state)| state.steps != self.steps);
        fewer
            .map(|(name, state)| (name.clone(), state.steps))
            .collect()
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
                    Entry::Vacant(entry) => entry.insert(self.rule.begun(param, self.home)?),
                };
                state.steps += 1;
                let away = self.home == Home::Host && param.device() != HOST;
                let visitor = match away {
                    true => Some(state.visiting(param.device())?),
                    false => None,
                };
                let used = visitor.as_ref().unwrap_or(state);
                let undecayed = self.undecayed.iter().any(|other| other == name);
                let task = Task {
                    param,
                    weight: used.weight(param),
                    gradient: &gradient,
                    rate: rate * self.factors.get(name).copied().unwrap_or(1.0),
                    decay: if undecayed { 0.0 } else { self.rule.decay() },
                    steps: used.steps,
                };
                let place = || format!("in the step of {name:?}");
                self.rule.update(&used.parts, &task).with_context(place)?;
                if let Some(visitor) = &visitor {
                    state.take_back(visitor)?;
                }
            }
            Ok(())
        })
    }

    /// The states as named tensors: `<parameter>.<part>`, and `<parameter>.master` where there is one.
    pub fn stored(&self) -> Vec<(String, Tensor)> {
        let mut stored = Vec::new();
        for (name, state) in &self.states {
            for (part, tensor) in state.tensors() {
                stored.push((format!("{name}.{part}"), tensor.shallow_clone()));
            }
        }
        stored
    }

    /// Puts saved states back, wherever the tensors lie: those that this rule keeps of the parameters `params`. `steps` is how many the
    /// optimizer had taken, `later` what [`Optimizer::later`] said then.
    pub fn restore(
        &mut self,
        params: &Params,
        steps: u64,
        later: &BTreeMap<String, u64>,
        stored: Vec<(String, Tensor)>,
    ) -> Result<()> {
        let mut found: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (name, tensor) in stored {
            let (param, part) = name.rsplit_once('.').context("a state without a part")?;
            let parts = found.entry(param.to_owned()).or_default();
            parts.insert(part.to_owned(), tensor);
        }
        for (name, own) in later {
            ensure!(
                found.contains_key(name) && (1..steps).contains(own),
                "{name:?} cannot have taken {own} of {steps} steps: the optimizer's states are not those of its counts"
            );
        }
        self.states.clear();
        for (name, mut parts) in found {
            let param = params.get(&name).with_context(|| {
                format!("there is an optimizer state of {name:?}, which the run does not have")
            })?;
            // Fresh to say which parts there must be, of which type and shape, and where.
            let mut state = self.rule.begun(param, self.home)?;
            for (part, tensor) in state.tensors_mut() {
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
                no_grad(|| tensor.f_copy_(&stored))?;
            }
            ensure!(
                parts.is_empty(),
                "the optimizer state of {name:?} has unknown parts: {:?}",
                parts.keys()
            );
            state.steps = later.get(&name).copied().unwrap_or(steps);
            self.states.insert(name, state);
        }
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in ±1 that look like none.
    fn numbers(count: usize, salt: f64) -> Tensor {
        let number = |i: usize| ((i as f64 + salt) * 12.9898).sin();
        Tensor::from_slice(&(0..count).map(number).collect::<Vec<f64>>())
    }

    #[test]
    fn a_state_that_visits_takes_the_step_of_one_that_stays() {
        let rules = [
            Rule::AdamW(Options::default()),
            Rule::AdamW8bit(Options::default()),
            Rule::Adafactor(Adafactor::default()),
        ];
        for rule in rules {
            for kind in [Kind::Float, Kind::BFloat16] {
                let start = || numbers(5000, 0.3).view([50, 100]).to_kind(kind);
                let (here, there) = (start(), start());
                let (own, kept) = (rule.fresh(&here).unwrap(), rule.fresh(&there).unwrap());
                for steps in 1..4 {
                    let gradient = numbers(5000, steps as f64).view([50, 100]).to_kind(kind);
                    let step = |param: &Tensor, state: &State| {
                        let task = Task {
                            param,
                            weight: state.weight(param),
                            gradient: &gradient,
                            rate: 1e-2,
                            decay: 0.1,
                            steps,
                        };
                        rule.update(&state.parts, &task).unwrap();
                    };
                    step(&here, &own);
                    // Another device is not needed for the way there and back.
                    let visitor = kept.visiting(there.device()).unwrap();
                    step(&there, &visitor);
                    assert!(kept.tensors().zip(visitor.tensors()).any(|(a, b)| a != b));
                    kept.take_back(&visitor).unwrap();
                }
                assert_eq!(here, there, "{rule:?} {kind:?}");
                for ((part, a), (_, b)) in own.tensors().zip(kept.tensors()) {
                    assert_eq!(a, b, "{rule:?} {kind:?} {part}");
                }
            }
        }
    }
}

//! The parameters of a model: ordered by name, each name once, frozen or trained.

use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use tch::Tensor;

/// One parameter; the tensor shares its memory with the model's.
#[derive(Debug)]
pub struct Param {
    /// The model's tensor.
    pub tensor: Tensor,
    /// True if a training run changes it.
    pub trained: bool,
}

/// Parameters by name.
#[derive(Debug, Default)]
pub struct Params {
    entries: BTreeMap<String, Param>,
}

impl Params {
    /// No parameters.
    pub fn new() -> Params {
        Params::default()
    }

    /// Adds a parameter; a name that is there already is an error.
    pub fn add(&mut self, name: &str, tensor: &Tensor, trained: bool) -> Result<()> {
        ensure!(
            !self.entries.contains_key(name),
            "two parameters are called {name:?}"
        );
        let _ = tensor.set_requires_grad(trained);
        let tensor = tensor.shallow_clone();
        self.entries
            .insert(name.to_owned(), Param { tensor, trained });
        Ok(())
    }

    /// Takes a parameter out, for instance an adapter's.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.entries.remove(name).map(|param| param.tensor)
    }

    /// Trains the parameters whose name satisfies the condition, freezes the others, and says how many are trained.
    pub fn train(&mut self, condition: impl Fn(&str) -> bool) -> usize {
        for (name, param) in &mut self.entries {
            param.trained = condition(name);
            let _ = param.tensor.set_requires_grad(param.trained);
        }
        self.trained().count()
    }

    /// The parameter of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.get(name).map(|param| &param.tensor)
    }

    /// All parameters in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.entries
            .iter()
            .map(|(name, param)| (name.as_str(), param))
    }

    /// The names of all parameters, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The trained parameters in the order of their names.
    pub fn trained(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.iter()
            .filter(|(_, param)| param.trained)
            .map(|(name, param)| (name, &param.tensor))
    }

    /// The number of trained numbers and of all numbers.
    pub fn count(&self) -> (usize, usize) {
        self.entries.values().fold((0, 0), |(trained, all), param| {
            let size = param.tensor.numel();
            (trained + if param.trained { size } else { 0 }, all + size)
        })
    }

    /// Drops all gradients.
    pub fn zero_grad(&self) {
        for (_, tensor) in self.trained() {
            let mut tensor = tensor.shallow_clone();
            tensor.zero_grad();
        }
    }
}

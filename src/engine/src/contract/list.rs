//! The contracts that an engine works with.

use serde_json::{Map, Value};

use super::{Check, CheckInputs, Contract, Inputs, Pool};

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

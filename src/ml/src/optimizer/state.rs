//! What an optimizer keeps of one parameter, and where that lies between steps.

use crate::place;
use anyhow::Result;
use std::collections::BTreeMap;
use tch::{Device, Tensor};

/// What a rule keeps of a parameter, by name.
pub(super) type Parts = BTreeMap<&'static str, Tensor>;

/// Where states lie between steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// Beside their parameters.
    #[default]
    Device,
    /// In the host's memory. For its step a state visits the device of its parameter, one at a time, and goes back: QLoRA's paged optimizer
    /// (Dettmers et al., arXiv 2305.14314), with copies in the place of page faults. Parameters that lie in the host's memory have theirs
    /// beside them either way.
    Host,
}

/// The state of one parameter.
#[derive(Debug)]
pub(super) struct State {
    pub parts: Parts,
    /// The parameter in f32, where it is stored in fewer bits itself.
    pub master: Option<Tensor>,
    /// Steps that the parameter has taken: those in which it had a gradient.
    pub steps: u64,
}

impl State {
    /// Every tensor, with its name.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let parts = self.parts.iter().map(|(part, tensor)| (*part, tensor));
        parts.chain(self.master.iter().map(|master| ("master", master)))
    }

    /// The same, to be replaced.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        let parts = self.parts.iter_mut().map(|(part, tensor)| (*part, tensor));
        parts.chain(self.master.iter_mut().map(|master| ("master", master)))
    }

    /// The numbers that a step changes: the parameter's own memory, or the copy that it is rounded from.
    pub fn weight(&self, param: &Tensor) -> Tensor {
        match &self.master {
            Some(master) => master.shallow_clone(),
            None => param.detach(),
        }
    }

    /// The same state in the host's memory, from where `device` fetches it.
    pub fn at_home(mut self, device: Device) -> Result<State> {
        for (_, tensor) in self.tensors_mut() {
            *tensor = place::on_host(tensor, device)?;
        }
        Ok(self)
    }

    /// A copy on `device`.
    pub fn visiting(&self, device: Device) -> Result<State> {
        let copied = |tensor: &Tensor| -> Result<Tensor> {
            let mut copy = Tensor::f_empty(tensor.size(), (tensor.kind(), device))?;
            copy.f_copy_(tensor)?;
            Ok(copy)
        };
        let parts = self.parts.iter();
        Ok(State {
            parts: parts
                .map(|(part, tensor)| Ok((*part, copied(tensor)?)))
                .collect::<Result<_>>()?,
            master: self.master.as_ref().map(copied).transpose()?,
            steps: self.steps,
        })
    }

    /// Takes over the numbers of a visitor that a step has changed.
    pub fn take_back(&self, visitor: &State) -> Result<()> {
        for ((_, own), (_, changed)) in self.tensors().zip(visitor.tensors()) {
            own.shallow_clone().f_copy_(changed)?;
        }
        Ok(())
    }
}

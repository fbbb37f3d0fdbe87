//! AdamW (Loshchilov and Hutter 2019) with torch's order of operations, states in f32 and named. On the CPU the operations are one pass over
//! the memory (`cpp/adamw.cpp`).

use crate::torch;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use tch::{Kind, Tensor, no_grad};

/// The settings; the defaults are torch's, without decay.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second mean.
    pub eps: f64,
    /// Decoupled decay of the weights, per unit of learning rate.
    pub weight_decay: f64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// The state of one parameter.
#[derive(Debug)]
struct State {
    mean: Tensor,
    square: Tensor,
    /// The parameter in f32, where it is stored in fewer bits itself.
    master: Option<Tensor>,
}

/// The optimizer: states are made at the first step of each parameter.
#[derive(Debug)]
pub struct AdamW {
    options: Options,
    steps: u64,
    states: BTreeMap<String, State>,
    /// Parameters (by name) whose weight is not decayed.
    undecayed: Vec<String>,
}

impl AdamW {
    /// A fresh optimizer; `undecayed` are the names of parameters without weight decay (norms and biases, commonly).
    pub fn new(options: Options, undecayed: Vec<String>) -> AdamW {
        AdamW {
            options,
            steps: 0,
            states: BTreeMap::new(),
            undecayed,
        }
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
        let Options {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.options;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let correction1 = 1.0 - beta1.powi(power);
        let correction2 = 1.0 - beta2.powi(power);
        no_grad(|| {
            for (name, param) in params {
                let gradient = param.grad();
                if !gradient.defined() {
                    continue;
                }
                let kind = match param.kind() {
                    Kind::Double => Kind::Double,
                    _ => Kind::Float,
                };
                let state = self.states.entry(name.to_owned()).or_insert_with(|| State {
                    mean: Tensor::zeros(param.size(), (kind, param.device())),
                    square: Tensor::zeros(param.size(), (kind, param.device())),
                    master: (param.kind() != kind).then(|| param.detach().to_kind(kind)),
                });
                let mut weight = match &state.master {
                    Some(master) => master.shallow_clone(),
                    None => param.detach(),
                };
                let decay = if self.undecayed.iter().any(|other| other == name) {
                    0.0
                } else {
                    weight_decay
                };
                let keep = 1.0 - rate * decay;
                if torch::fused(param) && torch::fused(&gradient) {
                    torch::adamw(
                        [
                            &param.detach(),
                            &weight,
                            &gradient,
                            &state.mean,
                            &state.square,
                        ],
                        keep,
                        [1.0 - beta1, 1.0 - beta2],
                        (correction2.sqrt(), eps),
                        -rate / correction1,
                    )?;
                    continue;
                }
                let gradient = gradient.to_kind(kind);
                // The order of torch.optim.adamw's loop over single tensors.
                let _ = weight.f_mul_scalar_(keep)?;
                let _ = state.mean.f_lerp_(&gradient, 1.0 - beta1)?;
                let _ = state.square.f_mul_scalar_(beta2)?;
                let squares = &gradient * &gradient;
                let _ = state.square.f_add_(&(squares * (1.0 - beta2)))?;
                let root = state.square.sqrt() / correction2.sqrt() + eps;
                let _ = weight.f_add_(&((&state.mean / root) * (-rate / correction1)))?;
                if state.master.is_some() {
                    param.detach().f_copy_(&weight)?;
                }
            }
            Ok(())
        })
    }

    /// The states as named tensors: `<parameter>.mean`, `.square`, and `.master` where there is one.
    pub fn stored(&self) -> Vec<(String, Tensor)> {
        let mut stored = Vec::new();
        for (name, state) in &self.states {
            stored.push((format!("{name}.mean"), state.mean.shallow_clone()));
            stored.push((format!("{name}.square"), state.square.shallow_clone()));
            if let Some(master) = &state.master {
                stored.push((format!("{name}.master"), master.shallow_clone()));
            }
        }
        stored
    }

    /// Puts saved states back.
    pub fn restore(&mut self, steps: u64, stored: Vec<(String, Tensor)>) -> Result<()> {
        let mut parts: BTreeMap<String, [Option<Tensor>; 3]> = BTreeMap::new();
        for (name, tensor) in stored {
            let (param, part) = name.rsplit_once('.').context("a state without a part")?;
            let index = match part {
                "mean" => 0,
                "square" => 1,
                "master" => 2,
                other => bail!("the optimizer state {name:?} has the unknown part {other:?}"),
            };
            parts.entry(param.to_owned()).or_default()[index] = Some(tensor);
        }
        self.states.clear();
        for (name, [mean, square, master]) in parts {
            let (Some(mean), Some(square)) = (mean, square) else {
                bail!("the optimizer state of {name:?} is incomplete");
            };
            ensure!(
                mean.size() == square.size(),
                "the optimizer state of {name:?} has two shapes"
            );
            self.states.insert(
                name,
                State {
                    mean,
                    square,
                    master,
                },
            );
        }
        self.steps = steps;
        Ok(())
    }
}

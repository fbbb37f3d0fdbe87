//! AdamW (Loshchilov and Hutter 2019) with torch's order of operations, states in f32. On the CPU the operations are one pass over the memory
//! (`cpp/adamw.cpp`).

use super::{Parts, Task, wide};
use crate::torch;
use anyhow::Result;
use tch::Tensor;

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

impl Options {
    /// What the two means are divided by after so many steps, since they began at zero.
    pub(super) fn corrections(&self, steps: u64) -> [f64; 2] {
        let power = i32::try_from(steps).unwrap_or(i32::MAX);
        [self.beta1, self.beta2].map(|beta| 1.0 - beta.powi(power))
    }
}

/// Both means of a parameter, zero.
pub(super) fn fresh(param: &Tensor) -> Result<Parts> {
    let zeros = || Tensor::f_zeros(param.size(), (wide(param), param.device()));
    Ok(Parts::from([("mean", zeros()?), ("square", zeros()?)]))
}

/// One step of one parameter.
pub(super) fn update(options: &Options, parts: &Parts, task: &Task<'_>) -> Result<()> {
    let Options {
        beta1, beta2, eps, ..
    } = *options;
    let [correction1, correction2] = options.corrections(task.steps);
    let keep = 1.0 - task.rate * task.decay;
    let (mut mean, mut square) = (
        parts["mean"].shallow_clone(),
        parts["square"].shallow_clone(),
    );
    if torch::fused(task.param) && torch::fused(task.gradient) {
        // Rounds into the parameter on its way.
        return torch::adamw(
            [
                &task.param.detach(),
                &task.weight,
                task.gradient,
                &mean,
                &square,
            ],
            keep,
            [1.0 - beta1, 1.0 - beta2],
            (correction2.sqrt(), eps),
            -task.rate / correction1,
        );
    }
    let mut weight = task.weight.shallow_clone();
    let gradient = task.gradient.to_kind(weight.kind());
    // The order of torch.optim.adamw's loop over single tensors.
    let _ = weight.f_mul_scalar_(keep)?;
    let _ = mean.f_lerp_(&gradient, 1.0 - beta1)?;
    let _ = square.f_mul_scalar_(beta2)?;
    let squares = &gradient * &gradient;
    let _ = square.f_add_(&(squares * (1.0 - beta2)))?;
    let root = square.sqrt() / correction2.sqrt() + eps;
    let _ = weight.f_add_(&((&mean / root) * (-task.rate / correction1)))?;
    task.round()
}

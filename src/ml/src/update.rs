//! The update: gradients are added up, clipped, and turned into a step.

use crate::optimizer::{Optimizer, Schedule};
use crate::params::Params;
use anyhow::{Result, ensure};
use tch::{Kind, Tensor, no_grad};

/// Owns the optimizer and the schedule; knows no batch and no epoch.
#[derive(Debug)]
pub struct Updater {
    /// The optimizer with its states.
    pub optimizer: Optimizer,
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// The largest global norm of the gradients; none: they are not clipped.
    pub clip: Option<f64>,
}

/// What a step was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The learning rate.
    pub rate: f64,
    /// The global norm of the gradients before clipping.
    pub norm: f64,
}

impl Updater {
    /// Adds the gradients of `loss`, a scalar.
    pub fn add(&mut self, loss: &Tensor) -> Result<()> {
        loss.f_backward()?;
        Ok(())
    }

    /// The step number `step` (counted from zero): clip, step, and forget the gradients. A norm that is not finite is an
    /// error and changes nothing.
    pub fn step(&mut self, params: &Params, step: usize) -> Result<Update> {
        let norm = clip(params, self.clip)?;
        let rate = self.schedule.rate(step);
        self.optimizer.step(params.trained(), rate)?;
        params.zero_grad();
        Ok(Update { rate, norm })
    }
}

/// The 2-norm of all gradients together; with a limit they are scaled by `limit / (norm + 1e-6)` if that is below 1, as
/// torch's `clip_grad_norm_` does.
pub fn clip(params: &Params, limit: Option<f64>) -> Result<f64> {
    no_grad(|| {
        let gradients: Vec<Tensor> = params
            .trained()
            .map(|(_, tensor)| tensor.grad())
            .filter(Tensor::defined)
            .collect();
        ensure!(
            !gradients.is_empty(),
            "no parameter has a gradient: nothing is trained"
        );
        let norms: Vec<Tensor> = gradients
            .iter()
            .map(|gradient| match gradient.kind() {
                Kind::Double => gradient.norm(),
                _ => gradient.norm_scalaropt_dtype(2.0, Kind::Float),
            })
            .collect();
        let total = Tensor::f_stack(&norms, 0)?.norm();
        let norm = total.double_value(&[]);
        ensure!(
            norm.is_finite(),
            "the gradients are not finite (norm {norm}): a smaller learning rate, a longer warm-up or clipping helps"
        );
        if let Some(limit) = limit {
            let factor = (limit / (total + 1e-6)).clamp_max(1.0);
            for mut gradient in gradients {
                let _ = gradient.f_mul_(&factor.to_kind(gradient.kind()))?;
            }
        }
        Ok(norm)
    })
}

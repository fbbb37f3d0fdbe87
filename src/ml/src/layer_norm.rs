//! LayerNorm (Ba et al., arXiv 1607.06450): a row moved to mean 0 and scaled to variance 1, then scaled and moved.

use anyhow::Result;
use tch::Tensor;

/// `weight · (x − mean(x)) / √(var(x) + eps) + bias`, mean and variance of each row in f32 (f64 stays).
#[derive(Debug)]
pub struct LayerNorm {
    /// `[width]`.
    pub weight: Tensor,
    /// `[width]`.
    pub bias: Tensor,
    /// Keeps the root away from zero.
    pub eps: f64,
}

impl LayerNorm {
    /// The same norm, held once.
    pub fn shallow_clone(&self) -> LayerNorm {
        LayerNorm {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
            eps: self.eps,
        }
    }

    /// `x [.., width]` → the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.weight.size();
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        Ok(x.f_layer_norm(width, weight, bias, self.eps, false)?)
    }
}

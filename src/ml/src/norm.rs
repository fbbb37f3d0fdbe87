//! RMSNorm: a row divided by its root mean square, then scaled.

use crate::torch;
use anyhow::Result;
use tch::{Kind, Tensor};

/// `weight · x / √(mean(x²) + eps)`, the quotient in f32 and rounded to the type of x, as Llama has it.
#[derive(Debug)]
pub struct Norm {
    /// `[width]`.
    pub weight: Tensor,
    /// Keeps the root away from zero.
    pub eps: f64,
}

impl Norm {
    /// The same norm, held once.
    pub fn shallow_clone(&self) -> Norm {
        Norm {
            weight: self.weight.shallow_clone(),
            eps: self.eps,
        }
    }

    /// `x [.., width]` → the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if torch::fused(x) && self.weight.kind() == x.kind() {
            torch::rms_norm(x, &self.weight, self.eps)
        } else {
            Ok(self.plain(x))
        }
    }

    /// The same as a composition of libtorch's operators.
    pub fn plain(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let wide = if kind == Kind::Double {
            x.shallow_clone()
        } else {
            x.to_kind(Kind::Float)
        };
        let mean = wide
            .square()
            .mean_dim([-1i64].as_slice(), true, None::<Kind>);
        &self.weight * (wide * (mean + self.eps).rsqrt()).to_kind(kind)
    }
}

//! DoRA (Liu et al. 2024, arXiv 2402.09353): each row of `weight + scale · B A` gets a length of its own, which is trained.

use crate::linear::{Weight, product};
use crate::lora::Lora;
use crate::no_grad;
use anyhow::Result;
use tch::{Kind, Tensor};

/// What a LoRA adapter has besides its factors when it is DoRA.
#[derive(Debug)]
pub struct Dora {
    /// PEFT's `lora_magnitude_vector`: the lengths of the rows, `[out]`, in the type of the factors.
    pub magnitude: Tensor,
    /// Squared lengths of the rows of the frozen weight, `[out]`, f64: taken once, since that needs all of its values.
    squares: Tensor,
}

/// A row of zeros keeps its length of 0, instead of becoming 0 / 0.
const SMALLEST: f64 = 1e-60;

impl Dora {
    /// Magnitudes for a linear's weight; without any they are the lengths of its rows, at which a change of zero changes nothing.
    pub fn new(weight: &Weight, kind: Kind, magnitude: Option<Tensor>) -> Result<Dora> {
        let squares = no_grad(|| squares(weight))?;
        let magnitude = match magnitude {
            Some(magnitude) => magnitude,
            None => squares.f_sqrt()?.to_kind(kind),
        };
        Ok(Dora { magnitude, squares })
    }

    /// The same, held once.
    pub fn shallow_clone(&self) -> Dora {
        Dora {
            magnitude: self.magnitude.shallow_clone(),
            squares: self.squares.shallow_clone(),
        }
    }

    /// What each output is multiplied with: magnitude / ‖row of weight + change‖, `[out]`. The length in the denominator is a constant
    /// in the backward pass (section 4.3 of the paper), as in PEFT.
    pub fn factor(&self, lora: &Lora, weight: &Weight) -> Result<Tensor> {
        let norm = no_grad(|| self.norm(lora, weight))?;
        Ok(self.magnitude.f_div(&norm)?)
    }

    /// The lengths of the rows of `weight + scale · B A`. For a row w of the weight and the row b of B
    /// ‖w + s b A‖² = ‖w‖² + 2 s b · (A w) + s² b (A A^T) b^T, so that no matrix of the weight's size is made.
    pub fn norm(&self, lora: &Lora, weight: &Weight) -> Result<Tensor> {
        let wide = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double);
        let crossed = wide(&product(&lora.down.detach(), weight)?).f_tr()? * (2.0 * lora.scale);
        let (down, up) = (wide(&lora.down), wide(&lora.up));
        let gram = down.f_matmul(&down.f_tr()?)? * (lora.scale * lora.scale);
        let change = (crossed + up.f_matmul(&gram)?) * &up;
        let change = change.f_sum_dim_intlist(1i64, false, None::<Kind>)?;
        let squares = (&self.squares + change).f_clamp_min(SMALLEST)?;
        Ok(squares.f_sqrt()?.to_kind(lora.down.kind()))
    }
}

fn squares(weight: &Weight) -> Result<Tensor> {
    // As the products see the values: in f32, or in f64 where the model is.
    let kind = match weight.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let values = weight.values(kind)?.detach().to_kind(Kind::Double);
    Ok(values
        .f_square()?
        .f_sum_dim_intlist(1i64, false, None::<Kind>)?)
}

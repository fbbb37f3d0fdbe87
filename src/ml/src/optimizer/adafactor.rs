//! Adafactor (Shazeer and Stern, arXiv 1804.04235) as `transformers.optimization.Adafactor` has it with a learning rate from outside
//! (`scale_parameter=False, relative_step=False`, no first moment): of a matrix the second moment is kept as the means of its rows and
//! columns only.

use super::{Parts, Task, wide};
use anyhow::Result;
use tch::{Kind, Tensor};

/// Added to squared gradients.
const EPS: f64 = 1e-30;

/// The settings; the defaults are the paper's, without decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// The root mean square that a change is scaled down to, before the learning rate.
    pub clip: f64,
    /// The second moment's decay in step t is 1 − t to this power.
    pub decay_rate: f64,
    /// Decay of the weights, per unit of learning rate.
    pub weight_decay: f64,
}

impl Default for Adafactor {
    fn default() -> Adafactor {
        Adafactor {
            clip: 1.0,
            decay_rate: -0.8,
            weight_decay: 0.0,
        }
    }
}

/// The second moment of a vector, or the means of a matrix's: zero.
pub(super) fn fresh(param: &Tensor) -> Result<Parts> {
    let options = (wide(param), param.device());
    let size = param.size();
    let Some((&columns, rows)) = size.split_last().filter(|(_, rows)| !rows.is_empty()) else {
        return Ok(Parts::from([(
            "square",
            Tensor::f_zeros(&size[..], options)?,
        )]));
    };
    let mut across = rows[..rows.len() - 1].to_vec();
    across.push(columns);
    Ok(Parts::from([
        ("rows", Tensor::f_zeros(rows, options)?),
        ("columns", Tensor::f_zeros(across, options)?),
    ]))
}

/// One step of one parameter.
pub(super) fn update(options: &Adafactor, parts: &Parts, task: &Task<'_>) -> Result<()> {
    let keep = 1.0 - (task.steps as f64).powf(options.decay_rate);
    let moved = |part: &str, fresh: Tensor| -> Result<Tensor> {
        let mut moment = parts[part].shallow_clone();
        let _ = moment.f_mul_scalar_(keep)?;
        let _ = moment.f_add_(&(fresh * (1.0 - keep)))?;
        Ok(moment)
    };
    let mut weight = task.weight.shallow_clone();
    let gradient = task.gradient.to_kind(weight.kind());
    let squares = gradient.f_square()? + EPS;
    let change = if parts.contains_key("rows") {
        let mean = |dim: i64| squares.f_mean_dim([dim].as_slice(), false, None::<Kind>);
        let rows = moved("rows", mean(-1)?)?;
        let columns = moved("columns", mean(-2)?)?;
        // The outer product of both over the mean of all, and its inverse root.
        let share = &rows / rows.f_mean_dim([-1i64].as_slice(), true, None::<Kind>)?;
        let (down, across) = (share.f_rsqrt()?, columns.f_rsqrt()?);
        down.f_unsqueeze(-1)? * across.f_unsqueeze(-2)? * gradient
    } else {
        moved("square", squares)?.f_rsqrt()? * gradient
    };
    let size = change.f_norm()? / (change.numel() as f64).sqrt();
    let change = change / (size / options.clip).f_clamp_min(1.0)?;
    let _ = weight.f_mul_scalar_(1.0 - task.rate * task.decay)?;
    let _ = weight.f_sub_(&(change * task.rate))?;
    task.round()
}

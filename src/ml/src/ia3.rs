//! (IA)³ (Liu et al. 2022, arXiv 2205.05638): a trained number for each output of a linear, or for each input of a feedforward one.

use crate::adapter::{self, Adapter};
use crate::linear::Linear;
use crate::params::Params;
use crate::place::HOST;
use crate::tensors;
use anyhow::{Context, Result};
use formats::peft::{Ia3Config, stored_key};
use formats::tensors::Weights;
use tch::{Kind, Tensor};

/// The numbers of one linear, in f32 (f64 under a f64 model).
#[derive(Debug)]
pub struct Ia3 {
    /// PEFT's `ia3_l`: `[out, 1]`, or `[1, in]` of a feedforward linear.
    pub scale: Tensor,
    /// Its inputs are scaled instead of its outputs.
    pub feedforward: bool,
}

impl Ia3 {
    /// The same, held once.
    pub fn shallow_clone(&self) -> Ia3 {
        Ia3 {
            scale: self.scale.shallow_clone(),
            ..*self
        }
    }

    /// Rows of inputs or outputs, each column times its number, in their type; the product is taken in f32.
    pub fn scaled(&self, x: &Tensor) -> Result<Tensor> {
        let scale = self.scale.f_view(-1i64)?;
        Ok(x.f_mul(&scale)?.to_kind(x.kind()))
    }

    /// The weight that does the same, in the type of the numbers. The bias of a linear whose outputs are scaled is scaled as well
    /// (`merged_bias`).
    pub fn merged(&self, weight: &Tensor) -> Result<Tensor> {
        Ok(weight.to_kind(self.scale.kind()).f_mul(&self.scale)?)
    }

    /// The bias `[out]` of a linear whose outputs are scaled that does the same, in the type of the numbers.
    pub fn merged_bias(&self, bias: &Tensor) -> Result<Tensor> {
        let scale = self.scale.f_view(-1i64)?;
        Ok(bias.to_kind(scale.kind()).f_mul(&scale)?)
    }

    /// Whether it changes nothing: every number is one.
    pub fn is_identity(&self) -> bool {
        let away = self.scale.detach() - 1.0;
        away.abs().max().double_value(&[]) == 0.0
    }
}

/// The shape of a linear's numbers.
fn shape(linear: &Linear, feedforward: bool) -> [i64; 2] {
    let (input, output) = linear.extents();
    match feedforward {
        true => [1, input],
        false => [output, 1],
    }
}

fn attach_with(
    linears: Vec<&mut Linear>,
    config: &Ia3Config,
    params: &mut Params,
    mut first: impl FnMut(&Linear, [i64; 2]) -> Result<Tensor>,
) -> Result<Vec<String>> {
    let names: Vec<&str> = linears.iter().map(|linear| linear.name.as_str()).collect();
    let chosen = config.modules(&names)?;
    for linear in linears {
        let found = chosen.iter().find(|(module, _)| *module == linear.name);
        let Some((_, feedforward)) = found else {
            continue;
        };
        let scale = first(linear, shape(linear, *feedforward))?;
        let ia3 = Ia3 {
            scale: adapter::placed(linear, &scale),
            feedforward: *feedforward,
        };
        adapter::put(linear, Adapter::Ia3(ia3), params)?;
    }
    Ok(chosen.into_iter().map(|(module, _)| module).collect())
}

/// Attaches fresh adapters, all ones, which are trained; gives the names of the changed modules.
pub fn attach(
    linears: Vec<&mut Linear>,
    config: &Ia3Config,
    params: &mut Params,
) -> Result<Vec<String>> {
    attach_with(linears, config, params, |_, shape| {
        Ok(Tensor::ones(shape, (Kind::Float, HOST)))
    })
}

/// Attaches a stored adapter (PEFT's names). A tensor that is missing, has another shape or fits no module is an error.
pub fn attach_stored(
    linears: Vec<&mut Linear>,
    config: &Ia3Config,
    weights: &Weights,
    params: &mut Params,
) -> Result<Vec<String>> {
    let chosen = attach_with(linears, config, params, |linear, shape| {
        let key = stored_key(weights, &linear.name, "ia3_l");
        tensors::read(weights, &key, &shape, Kind::Float, HOST)
            .context("an (IA)³ adapter holds a number for each input of a feedforward module, and for each output of another")
    })?;
    let known: Vec<String> = chosen
        .iter()
        .map(|module| stored_key(weights, module, "ia3_l"))
        .collect();
    adapter::check_known(weights, &config.modules_to_save, |name| {
        known.iter().any(|key| key == name)
    })?;
    Ok(chosen)
}

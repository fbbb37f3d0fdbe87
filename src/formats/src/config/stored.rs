//! The tensors of a model of either architecture as a file has them: under its names, and quantized or not.

use super::{BertParts, ModelConfig};
use crate::quantized;
use crate::tensors::Weights;
use anyhow::Result;
use std::collections::HashSet;

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTensor {
    /// Its name here.
    pub name: String,
    /// Its name in the file; `name` where the file does not have it.
    pub stored: String,
    /// Its extents, row-major, before it was quantized.
    pub shape: Vec<usize>,
    /// Whether it is the weight of a linear, which may be quantized.
    pub linear: bool,
}

impl ModelTensor {
    /// How the file has it: all but the weights of linears are dense. All parts of a quantized one are there with their types and
    /// lengths, or it is an error that says what does not fit.
    pub fn storage(&self, weights: &Weights) -> Result<quantized::Linear> {
        match self.shape[..] {
            [out, input] if self.linear => quantized::linear(weights, &self.stored, [out, input]),
            _ => Ok(quantized::Linear::Dense),
        }
    }
}

/// Tensors of these shapes, of which those of `linears` (path, outputs, inputs) are weights of linears, under the names that `stored` finds.
pub(super) fn named(
    shapes: Vec<(String, Vec<usize>)>,
    linears: &[(String, usize, usize)],
    stored: impl Fn(&str) -> Option<String>,
) -> Vec<ModelTensor> {
    let modules: HashSet<&str> = linears.iter().map(|(module, ..)| module.as_str()).collect();
    let tensors = shapes.into_iter().map(|(name, shape)| ModelTensor {
        stored: stored(&name).unwrap_or_else(|| name.clone()),
        linear: name
            .strip_suffix(".weight")
            .is_some_and(|module| modules.contains(module)),
        name,
        shape,
    });
    tensors.collect()
}

impl ModelConfig {
    /// The tensors of a file: of an encoder with what it has beside its layers. Whether all of them are there, `check` says.
    pub fn tensors_in(&self, weights: &Weights) -> Vec<ModelTensor> {
        match self {
            ModelConfig::Llama(config) => config.tensors_from(config.tensor_shapes()),
            ModelConfig::Bert(config) => config.tensors_in(weights, BertParts::of(weights)),
        }
    }

    /// The linears of a file that may be quantized and have adapters: module path here, outputs, inputs. Those of the layers come first
    /// (`linear_shapes`), then an encoder's pooler and the linear of its head for masked tokens, where they are there.
    pub fn linears_in(&self, weights: &Weights) -> Vec<(String, usize, usize)> {
        match self {
            ModelConfig::Llama(config) => config.linear_shapes(),
            ModelConfig::Bert(config) => {
                let mut linears = config.linear_shapes();
                linears.extend(config.outside_shapes(BertParts::of(weights)));
                linears
            }
        }
    }

    /// Whether a linear of the file is quantized.
    pub fn is_quantized(&self, weights: &Weights) -> Result<bool> {
        for tensor in self.tensors_in(weights) {
            if tensor.storage(weights)? != quantized::Linear::Dense {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

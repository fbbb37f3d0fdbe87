//! Where a model's parameters come from: files, another model, or what a caller makes; and how each gets its name and place.

use crate::layer_norm::LayerNorm;
use crate::linear::{Linear, Weight};
use crate::norm::Norm;
use crate::params::Params;
use crate::place::{HOST, Place};
use crate::tensors;
use anyhow::{Context, Result, bail, ensure};
use formats::tensors::Weights;
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor};

/// Gives the parameters of a model by their names and shapes.
pub trait Source {
    /// The tensor of this name.
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor>;

    /// The weight of a linear, which may be stored in another way.
    fn weight(&mut self, name: &str, shape: [i64; 2]) -> Result<Weight> {
        Ok(Weight::Dense(self.tensor(name, &shape)?))
    }
}

impl<F: FnMut(&str, &[i64]) -> Result<Tensor>> Source for F {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self(name, shape)
    }
}

/// The files of a model; remembers what was read.
pub(crate) struct Files<'a> {
    pub weights: &'a Weights,
    pub kind: Kind,
    pub read: BTreeSet<String>,
}

impl Source for Files<'_> {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.read.insert(name.to_owned());
        let tensor = tensors::read(self.weights, name, shape, self.kind, HOST)?;
        self.weights.release(name);
        Ok(tensor)
    }

    fn weight(&mut self, name: &str, shape: [i64; 2]) -> Result<Weight> {
        self.read.insert(name.to_owned());
        let weight = tensors::read_weight(self.weights, name, shape, self.kind, HOST)?;
        if weight.is_quantized() {
            self.read.extend(formats::quantized::parts(name));
        }
        self.weights.release(name);
        Ok(weight)
    }
}

/// The weights of another model of the same shape, which are then held once.
pub(crate) struct Shared<'a> {
    pub params: &'a Params,
    pub linears: BTreeMap<String, &'a Weight>,
}

impl Source for Shared<'_> {
    fn tensor(&mut self, name: &str, _: &[i64]) -> Result<Tensor> {
        let tensor = self.params.get(name);
        Ok(tensor
            .with_context(|| format!("BUG: no {name:?}"))?
            .shallow_clone())
    }

    fn weight(&mut self, name: &str, _: [i64; 2]) -> Result<Weight> {
        let weight = self.linears.get(name);
        Ok(weight
            .with_context(|| format!("BUG: no {name:?}"))?
            .shallow_clone())
    }
}

/// Takes parameters from a source and names them.
pub(crate) struct Builder<'a> {
    pub source: &'a mut dyn Source,
    pub place: Place,
    pub params: &'a mut Params,
}

impl Builder<'_> {
    /// A parameter of this name and shape, frozen.
    pub fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.source.tensor(name, shape)?;
        ensure!(
            tensor.size() == shape,
            "{name:?} has the shape {:?}, but the model's config asks for {shape:?}",
            tensor.size()
        );
        let tensor = tensor
            .f_to_device(self.place.device)?
            .f_to_kind(self.place.kind)?;
        self.params.add(name, &tensor, false)?;
        Ok(tensor)
    }

    /// RMSNorm's weight.
    pub fn norm(&mut self, name: &str, width: i64, eps: f64) -> Result<Norm> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        Ok(Norm { weight, eps })
    }

    /// LayerNorm's weight and bias.
    pub fn layer_norm(&mut self, name: &str, width: i64, eps: f64) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: self.tensor(&format!("{name}.weight"), &[width])?,
            bias: self.tensor(&format!("{name}.bias"), &[width])?,
            eps,
        })
    }

    /// A linear layer, `[output, input]`.
    pub fn linear(&mut self, name: &str, input: i64, output: i64, bias: bool) -> Result<Linear> {
        let full = format!("{name}.weight");
        let weight = match self.source.weight(&full, [output, input])? {
            Weight::Dense(tensor) => {
                let tensor = tensor
                    .f_to_device(self.place.device)?
                    .f_to_kind(self.place.kind)?;
                ensure!(
                    tensor.size() == [output, input],
                    "{full:?} has the shape {:?}, but the model's config asks for [{output}, {input}]",
                    tensor.size()
                );
                self.params.add(&full, &tensor, false)?;
                Weight::Dense(tensor)
            }
            // Packed weights are no parameters: nothing trains them.
            packed => packed.to_device(self.place.device)?,
        };
        let bias = match bias {
            true => Some(self.tensor(&format!("{name}.bias"), &[output])?),
            false => None,
        };
        Ok(Linear::new(name, weight, bias))
    }
}

/// A tensor in the files that the config does not ask for means that they do not belong together.
pub(crate) fn check_unread(weights: &Weights, read: &BTreeSet<String>, tied: bool) -> Result<()> {
    let unknown: Vec<&str> = weights
        .infos()
        .map(|info| info.name.as_str())
        .filter(|name| !read.contains(*name))
        .filter(|name| !name.ends_with("rotary_emb.inv_freq") && *name != "rope_freqs.weight")
        .filter(|name| !(tied && *name == "lm_head.weight"))
        .filter(|name| *name != crate::reward::HEAD)
        .take(4)
        .collect();
    if !unknown.is_empty() {
        bail!(
            "the weights hold tensors that the model's config does not ask for: {}; the config belongs to another model, or says too few layers",
            unknown.join(", ")
        );
    }
    Ok(())
}

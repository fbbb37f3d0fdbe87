//! Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2020, arXiv 2005.00052): a small network behind a part of a
//! layer, kept as AdapterHub's package `adapters` keeps it.

use crate::linear::Pass;
use crate::llama::Llama;
use crate::params::Params;
use crate::place::{HOST, Place};
use crate::reward::HEAD;
use crate::{tensors, torch};
use anyhow::{Result, ensure};
use formats::peft::{BOTTLENECK_PARTS, Behind, BottleneckConfig, NonLinearity};
use formats::tensors::Weights;
use std::collections::BTreeSet;
use tch::{Kind, Tensor};

/// The adapter behind one part of a layer, in f32 (f64 under a f64 model).
#[derive(Debug)]
pub struct Bottleneck {
    /// Its path, for instance `model.layers.0.output_adapters.adapters.bottleneck`.
    pub name: String,
    /// `adapter_down.0.weight`: `[bottleneck, hidden]`.
    pub down: Tensor,
    /// `adapter_down.0.bias`: `[bottleneck]`.
    pub down_bias: Tensor,
    /// `adapter_up.weight`: `[hidden, bottleneck]`.
    pub up: Tensor,
    /// `adapter_up.bias`: `[hidden]`.
    pub up_bias: Tensor,
    /// What is between the two.
    pub non_linearity: NonLinearity,
    /// What its output is multiplied with.
    pub scaling: f64,
    /// It reads the residual stream, what the part of the layer made included, instead of the latter alone.
    pub on_stream: bool,
}

impl Bottleneck {
    /// The same adapter, held once.
    pub fn shallow_clone(&self) -> Bottleneck {
        Bottleneck {
            name: self.name.clone(),
            down: self.down.shallow_clone(),
            down_bias: self.down_bias.shallow_clone(),
            up: self.up.shallow_clone(),
            up_bias: self.up_bias.shallow_clone(),
            ..*self
        }
    }

    /// Its tensors, in the order of [`BOTTLENECK_PARTS`].
    pub fn tensors(&self) -> [&Tensor; 4] {
        [&self.down, &self.down_bias, &self.up, &self.up_bias]
    }

    /// Its parameters by their names.
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let parts = BOTTLENECK_PARTS.iter().zip(self.tensors());
        let named = parts.map(|(part, tensor)| (format!("{}.{part}", self.name), tensor));
        named.collect()
    }

    /// `scaling · (f(x down^T + down_bias) up^T + up_bias)`, in the type of the adapter, or in bf16 where that is multiplied natively.
    pub fn change(&self, x: &Tensor) -> Result<Tensor> {
        let kind = match torch::multiplies_bf16(x) {
            true => x.kind(),
            false => self.down.kind(),
        };
        let [down, down_bias, up, up_bias] = self.tensors().map(|tensor| tensor.to_kind(kind));
        let low = x.to_kind(kind).f_linear(&down, Some(&down_bias))?;
        let low = match self.non_linearity {
            NonLinearity::Relu => low.f_relu()?,
            NonLinearity::Swish => low.f_silu()?,
            NonLinearity::Gelu => low.f_gelu("none")?,
            NonLinearity::GeluNew => low.f_gelu("tanh")?,
            NonLinearity::Tanh => low.f_tanh()?,
        };
        let change = low.f_linear(&up, Some(&up_bias))?;
        match self.scaling == 1.0 {
            true => Ok(change),
            false => Ok(change * self.scaling),
        }
    }

    /// `x + made + change`, for the residual stream x `[tokens, hidden]` and what a part of the layer made of it; in the type of x. The change is
    /// that of `x + made`, or of `made` alone.
    pub fn added(&self, x: &Tensor, made: &Tensor) -> Result<Tensor> {
        let sum = x.f_add(made)?;
        let change = match self.on_stream {
            true => self.change(&sum)?,
            false => self.change(made)?,
        };
        Ok(sum.f_add(&change)?.to_kind(x.kind()))
    }

    /// Whether it changes nothing: no number of `adapter_up` is another than 0.
    pub fn is_identity(&self) -> bool {
        let largest = |tensor: &Tensor| tensor.detach().abs().max().double_value(&[]);
        largest(&self.up) == 0.0 && largest(&self.up_bias) == 0.0
    }
}

/// The residual stream with what a part of the layer made of it, and with what this adapter makes of that, if the pass uses it.
pub(crate) fn joined(
    pass: Pass,
    x: &Tensor,
    made: Tensor,
    adapter: Option<&Bottleneck>,
) -> Result<Tensor> {
    match adapter.filter(|_| pass.adapters) {
        Some(adapter) => adapter.added(x, &made),
        None => Ok(x + made),
    }
}

/// Whether a parameter of this name is a bottleneck adapter's.
pub(crate) fn is_parameter(name: &str) -> bool {
    let mut places = [Behind::Attention, Behind::FeedForward].into_iter();
    places.any(|behind| name.contains(&format!(".{}.adapters.", behind.word())))
}

/// A tensor of an adapter where the model is, in f32, or in f64 under a f64 model.
fn placed(place: Place, tensor: &Tensor) -> Tensor {
    let kind = match place.kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let tensor = tensor.to_device(place.device);
    tensor.to_kind(kind).contiguous()
}

/// Attaches adapters, which are trained and start as `first` says, which gives a tensor by its name and shape. Gives the paths of the adapters.
/// A model of another width, or one with adapters there already, is an error.
pub fn attach(
    model: &mut Llama,
    config: &BottleneckConfig,
    params: &mut Params,
    mut first: impl FnMut(&str, &[i64]) -> Result<Tensor>,
) -> Result<Vec<String>> {
    let hidden = model.config.hidden_size;
    ensure!(
        config.hidden_size == hidden,
        "the adapter is for a model of width {}, and this one's is {hidden}: it belongs to another model",
        config.hidden_size
    );
    let place = model.place;
    let mut names = Vec::new();
    for (layer, slots) in model.bottlenecks_mut().into_iter().enumerate() {
        for (behind, slot) in slots {
            if !config.places().contains(&behind) {
                continue;
            }
            let name = config.module(layer, behind);
            ensure!(slot.is_none(), "{name}: there is an adapter already");
            let mut part = |index: usize| -> Result<Tensor> {
                let shape: Vec<i64> = (config.shapes()[index].iter())
                    .map(|&extent| extent as i64)
                    .collect();
                let tensor = first(&format!("{name}.{}", BOTTLENECK_PARTS[index]), &shape)?;
                Ok(placed(place, &tensor))
            };
            let adapter = Bottleneck {
                down: part(0)?,
                down_bias: part(1)?,
                up: part(2)?,
                up_bias: part(3)?,
                non_linearity: config.non_linearity,
                scaling: config.scaling,
                on_stream: config.original_ln_before,
                name: name.clone(),
            };
            for (name, tensor) in adapter.parameters() {
                params.add(&name, tensor, true)?;
            }
            *slot = Some(adapter);
            names.push(name);
        }
    }
    Ok(names)
}

/// Attaches stored adapters (the names of the package `adapters`). A tensor that is missing, has another shape or fits no adapter is an error.
pub fn attach_stored(
    model: &mut Llama,
    config: &BottleneckConfig,
    weights: &Weights,
    params: &mut Params,
) -> Result<Vec<String>> {
    let mut known = BTreeSet::new();
    let names = attach(model, config, params, |name, shape| {
        known.insert(name.to_owned());
        tensors::read(weights, name, shape, Kind::Float, HOST)
    })?;
    for info in weights.infos() {
        let head = config.is_scored() && info.name == HEAD;
        ensure!(
            head || known.contains(&info.name),
            "the adapter's tensor {:?} belongs to no place of its adapter_config.json",
            info.name
        );
    }
    Ok(names)
}

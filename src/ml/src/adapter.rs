//! What may change a model after its weights were loaded, a linear, a layer, or what stands before every row, and what all kinds of it have in
//! common: names, files, going away.

use crate::bottleneck::{self, Bottleneck};
use crate::ia3::{self, Ia3};
use crate::linear::{Linear, Weight};
use crate::llama::Llama;
use crate::lora::{self, Lora};
use crate::params::Params;
use crate::soft;
use crate::tensors;
use anyhow::{Context, Result, bail, ensure};
use formats::peft::{PROMPT_EMBEDDINGS, PeftConfig, concerns, parameter_name, tensor_key};
use formats::tensors::Weights;
use std::borrow::Cow;
use std::path::Path;
use tch::{Kind, Tensor};

/// The change of one linear.
#[derive(Debug)]
pub enum Adapter {
    /// LoRA, and DoRA.
    Lora(Lora),
    /// (IA)³.
    Ia3(Ia3),
}

/// The names of LoRA's parts, in the order of its tensors.
const LORA_PARTS: [&str; 3] = ["lora_A", "lora_B", "lora_magnitude_vector"];
/// The name of (IA)³'s only part.
const IA3_PART: &str = "ia3_l";

impl Adapter {
    /// The same change, held once.
    pub fn shallow_clone(&self) -> Adapter {
        match self {
            Adapter::Lora(lora) => Adapter::Lora(lora.shallow_clone()),
            Adapter::Ia3(ia3) => Adapter::Ia3(ia3.shallow_clone()),
        }
    }

    /// Its tensors by PEFT's names of them.
    pub fn parts(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Adapter::Lora(lora) => LORA_PARTS.into_iter().zip(lora.tensors()).collect(),
            Adapter::Ia3(ia3) => vec![(IA3_PART, &ia3.scale)],
        }
    }

    /// The weight that does what this weight does with the change, in the type of the adapter.
    pub fn merged(&self, weight: &Tensor) -> Result<Tensor> {
        match self {
            Adapter::Lora(lora) => lora.merged(weight),
            Adapter::Ia3(ia3) => ia3.merged(weight),
        }
    }

    /// Whether it changes nothing of this weight yet.
    pub fn is_identity(&self, weight: &Weight) -> Result<bool> {
        match self {
            Adapter::Lora(lora) => lora.is_identity(weight),
            Adapter::Ia3(ia3) => Ok(ia3.is_identity()),
        }
    }
}

/// Whether a parameter of this name is an adapter's.
pub fn is_parameter(name: &str) -> bool {
    let parts = LORA_PARTS.into_iter().chain([IA3_PART]);
    let mut all = parts.map(|part| parameter_name("", part));
    name == soft::PARAMETER || bottleneck::is_parameter(name) || all.any(|end| name.ends_with(&end))
}

/// The name of a parameter in files: PEFT puts something before the paths of its adapters' linears.
pub fn file_name(name: &str) -> Cow<'_, str> {
    let mut parts = LORA_PARTS.into_iter().chain([IA3_PART]);
    let key = parts.find_map(|part| {
        let module = name.strip_suffix(parameter_name("", part).as_str())?;
        Some(tensor_key(module, part))
    });
    key.map_or(Cow::Borrowed(name), Cow::Owned)
}

/// Whether the model does with its adapters what it does without them, as it does with most fresh ones; virtual tokens always change it.
pub fn is_identity(model: &Llama) -> Result<bool> {
    for linear in model.linears() {
        if let Some(adapter) = &linear.adapter
            && !adapter.is_identity(&linear.weight)?
        {
            return Ok(false);
        }
    }
    let bottlenecks = model.bottlenecks();
    Ok(model.soft.is_none() && bottlenecks.iter().all(|adapter| adapter.is_identity()))
}

/// A tensor of an adapter where its linear is, in f32, or in f64 under a f64 model.
pub(crate) fn placed(linear: &Linear, tensor: &Tensor) -> Tensor {
    let kind = match linear.weight.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let tensor = tensor.to_device(linear.weight.device());
    tensor.to_kind(kind).contiguous()
}

/// Gives a linear its adapter, whose tensors become trained parameters.
pub(crate) fn put(linear: &mut Linear, adapter: Adapter, params: &mut Params) -> Result<()> {
    ensure!(
        linear.adapter.is_none(),
        "{} has an adapter already",
        linear.name
    );
    for (part, tensor) in adapter.parts() {
        params.add(&parameter_name(&linear.name, part), tensor, true)?;
    }
    linear.adapter = Some(adapter);
    Ok(())
}

/// Every tensor of an adapter's file is one of its own or of a module that is saved whole.
pub(crate) fn check_known(
    weights: &Weights,
    modules_to_save: &[String],
    own: impl Fn(&str) -> bool,
) -> Result<()> {
    for info in weights.infos() {
        let saved = |module: &String| info.name == format!("base_model.model.{module}.weight");
        ensure!(
            own(&info.name) || modules_to_save.iter().any(saved),
            "the adapter's tensor {:?} belongs to no target of its adapter_config.json",
            info.name
        );
    }
    Ok(())
}

/// Attaches a stored adapter of the kind that its settings say.
pub fn attach_stored(
    model: &mut Llama,
    config: &PeftConfig,
    weights: &Weights,
    params: &mut Params,
) -> Result<Vec<String>> {
    match config {
        PeftConfig::Bottleneck(config) => bottleneck::attach_stored(model, config, weights, params),
        PeftConfig::Soft(config) => soft::attach_stored(model, config, weights, params),
        _ => attach_to(model.linears_mut(), config, weights, params),
    }
}

/// The same for the linears of any model, those outside of layers among them, as far as the file is about them.
pub fn attach_to(
    mut linears: Vec<&mut Linear>,
    config: &PeftConfig,
    weights: &Weights,
    params: &mut Params,
) -> Result<Vec<String>> {
    linears.retain(|linear| concerns(weights, &linear.name));
    match config {
        PeftConfig::Lora(config) => lora::attach_stored(linears, config, weights, params),
        PeftConfig::Ia3(config) => ia3::attach_stored(linears, config, weights, params),
        PeftConfig::Bottleneck(_) | PeftConfig::Soft(_) => {
            bail!(
                "this adapter is for language models (Llama), and the model is an encoder; `lora` and `ia3` take both"
            )
        }
    }
}

/// Takes the adapters off and forgets their parameters.
pub fn detach(model: &mut Llama, params: &mut Params) {
    if model.soft.take().is_some() {
        params.remove(soft::PARAMETER);
    }
    for linear in model.linears_mut() {
        if let Some(adapter) = linear.adapter.take() {
            for (part, _) in adapter.parts() {
                params.remove(&parameter_name(&linear.name, part));
            }
        }
    }
    for (_, slot) in model.bottlenecks_mut().into_iter().flatten() {
        for (name, _) in slot.take().iter().flat_map(Bottleneck::parameters) {
            params.remove(&name);
        }
    }
}

/// The adapter's tensors, f32, under the names that its files have: PEFT's, or those of the package `adapters`.
pub fn stored(model: &Llama) -> Vec<(String, Tensor)> {
    let mut stored = stored_of(&model.linears());
    for adapter in model.bottlenecks() {
        for (name, tensor) in adapter.parameters() {
            stored.push((name, tensor.detach().to_kind(Kind::Float)));
        }
    }
    if let Some(soft) = &model.soft {
        let plain = soft.tensor().detach().to_kind(Kind::Float);
        stored.push((PROMPT_EMBEDDINGS.to_owned(), plain));
    }
    stored
}

/// The same of the adapters on these linears.
pub fn stored_of(linears: &[&Linear]) -> Vec<(String, Tensor)> {
    stored_as(linears, |module| module)
}

/// The same where the file has another path of each module.
pub(crate) fn stored_as(linears: &[&Linear], path: impl Fn(&str) -> &str) -> Vec<(String, Tensor)> {
    let mut stored = Vec::new();
    for linear in linears {
        for (part, tensor) in linear.adapter.iter().flat_map(Adapter::parts) {
            let plain = tensor.detach().to_kind(Kind::Float);
            stored.push((tensor_key(path(&linear.name), part), plain));
        }
    }
    stored
}

/// Writes the adapter's tensors as the file that `PeftConfig::weights_file` names; the config is `PeftConfig::save`.
pub fn save(model: &Llama, path: &Path) -> Result<()> {
    let stored = stored(model);
    ensure!(!stored.is_empty(), "there is no adapter to save");
    tensors::write(path, &stored, &[("format", "pt")])
        .with_context(|| format!("while saving the adapter to {}", path.display()))
}

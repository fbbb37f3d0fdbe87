//! An adapter's file against the base that it is put on: every tensor that the settings ask for, in its shape, and no other.

use super::{
    AdapterConfig, BottleneckConfig, CONFIG_FILE, Ia3Config, PREFIX, PROMPT_EMBEDDINGS, PeftConfig,
    SoftConfig, concerns, match_targets, stored_key,
};
use crate::config::{LlamaConfig, ModelConfig};
use crate::tensors::{Stored, Weights};
use anyhow::{Result, bail, ensure};
use std::collections::HashSet;

/// Problems that an error names; of the others it tells the number.
const SHOWN: usize = 12;

impl PeftConfig {
    /// Compares an adapter's file with these settings and the shape of a base, whose linears (path, outputs, inputs) `linears_in` gives: all
    /// tensors are there, in their shapes and as numbers of weights, and no others. Gives the adapted modules in the order of the layers; all
    /// problems are named in one error.
    pub fn check(
        &self,
        weights: &Weights,
        base: &ModelConfig,
        linears: &[(String, usize, usize)],
    ) -> Result<Vec<String>> {
        match (self, base) {
            (PeftConfig::Lora(config), _) => config.check(weights, linears),
            (PeftConfig::Ia3(config), _) => config.check(weights, linears),
            (PeftConfig::Bottleneck(config), ModelConfig::Llama(base)) => {
                config.check(weights, base)
            }
            (PeftConfig::Soft(config), ModelConfig::Llama(base)) => config.check(weights, base),
            (_, ModelConfig::Bert(_)) => bail!(
                "adapters of this kind are for language models (Llama), and the base is an encoder; LoRA and (IA)³ go on both"
            ),
        }
    }

    /// Where the base that it was trained on came from, as its settings say.
    pub fn base_model(&self) -> Option<&str> {
        let name = match self {
            PeftConfig::Lora(config) => &config.base_model_name_or_path,
            PeftConfig::Ia3(config) => &config.base_model_name_or_path,
            PeftConfig::Bottleneck(_) => &None,
            PeftConfig::Soft(config) => &config.base_model_name_or_path,
        };
        name.as_deref().filter(|name| !name.is_empty())
    }

    /// What the adapted model is for, such as `CAUSAL_LM`.
    pub fn task(&self) -> Option<&str> {
        match self {
            PeftConfig::Lora(config) => config.task_type.as_deref(),
            PeftConfig::Ia3(config) => config.task_type.as_deref(),
            PeftConfig::Bottleneck(config) => config.is_scored().then_some("SEQ_CLS"),
            PeftConfig::Soft(config) => config.task_type.as_deref(),
        }
    }

    /// Modules that are stored whole beside the adapter.
    pub fn saved(&self) -> &[String] {
        match self {
            PeftConfig::Lora(config) => &config.modules_to_save,
            PeftConfig::Ia3(config) => &config.modules_to_save,
            PeftConfig::Bottleneck(_) => &[],
            PeftConfig::Soft(config) => &config.modules_to_save,
        }
    }
}

impl AdapterConfig {
    /// Compares an adapter's weights with the linears of its base (path, outputs, inputs): each targeted
    /// linear has both matrices in the right shape, and nothing else is there. Returns the adapted
    /// modules in the order of `linears`; all problems are named in one error.
    pub fn check(
        &self,
        weights: &Weights,
        linears: &[(String, usize, usize)],
    ) -> Result<Vec<String>> {
        let names = concerned(weights, linears);
        let targets = match_targets(&self.target_modules, &names)?;
        let key = |module: &str, part: &str| stored_key(weights, module, part);
        let mut expected = Vec::new();
        for (module, out, input) in linears.iter().filter(|linear| targets.contains(&linear.0)) {
            expected.push((key(module, "lora_A"), vec![self.r, *input]));
            expected.push((key(module, "lora_B"), vec![*out, self.r]));
            if self.use_dora {
                expected.push((key(module, "lora_magnitude_vector"), vec![*out]));
            }
        }
        compare(weights, &expected, &self.modules_to_save)?;
        Ok(targets)
    }
}

impl Ia3Config {
    /// The same for (IA)³: a number for each output of a targeted linear, or for each input of a feedforward one.
    pub fn check(
        &self,
        weights: &Weights,
        linears: &[(String, usize, usize)],
    ) -> Result<Vec<String>> {
        let names = concerned(weights, linears);
        let modules = self.modules(&names)?;
        let mut expected = Vec::new();
        for (module, out, input) in linears {
            let Some((_, feedforward)) = modules.iter().find(|(name, _)| name == module) else {
                continue;
            };
            let shape = match *feedforward {
                true => vec![1, *input],
                false => vec![*out, 1],
            };
            expected.push((stored_key(weights, module, "ia3_l"), shape));
        }
        compare(weights, &expected, &self.modules_to_save)?;
        Ok(modules.into_iter().map(|(module, _)| module).collect())
    }
}

impl BottleneckConfig {
    /// The same for bottleneck adapters, which stand in every layer.
    pub fn check(&self, weights: &Weights, base: &LlamaConfig) -> Result<Vec<String>> {
        ensure!(
            self.hidden_size == base.hidden_size,
            "{CONFIG_FILE}: hidden_size is {}, and the base is {} wide",
            self.hidden_size,
            base.hidden_size
        );
        let layers = base.num_hidden_layers;
        compare(weights, &self.tensor_shapes(layers), &[])?;
        let places = self.places();
        let modules = (0..layers).flat_map(|layer| places.iter().map(move |place| (layer, *place)));
        Ok(modules
            .map(|(layer, place)| self.module(layer, place))
            .collect())
    }
}

impl SoftConfig {
    /// The same for virtual tokens, which are one tensor.
    pub fn check(&self, weights: &Weights, base: &LlamaConfig) -> Result<Vec<String>> {
        let expected = [(PROMPT_EMBEDDINGS.to_owned(), self.shape(base)?.to_vec())];
        compare(weights, &expected, &self.modules_to_save)?;
        Ok(self.modules(base))
    }
}

/// The paths of the linears that the file may be about.
fn concerned<'a>(weights: &Weights, linears: &'a [(String, usize, usize)]) -> Vec<&'a str> {
    let names = linears.iter().map(|linear| linear.0.as_str());
    names.filter(|name| concerns(weights, name)).collect()
}

/// The tensors of an adapter's file against those that are expected; tensors of the modules in `saved` may be there besides.
fn compare(weights: &Weights, expected: &[(String, Vec<usize>)], saved: &[String]) -> Result<()> {
    let mut problems = Vec::new();
    let mut known = HashSet::new();
    for (key, shape) in expected {
        match weights.get(key) {
            None => problems.push(format!("{key} is missing")),
            Some(info) if info.shape != *shape => problems.push(format!(
                "{key} has the shape {:?}, expected {shape:?}",
                info.shape
            )),
            Some(info) => {
                if let Stored::Plain(dtype) = info.stored
                    && !dtype.is_float()
                {
                    problems.push(format!("{key} holds {dtype}, not numbers of a weight"));
                }
            }
        }
        known.insert(key.as_str());
    }
    for info in weights.infos() {
        let path = info.name.strip_prefix(PREFIX).unwrap_or(&info.name);
        let whole = saved.iter().any(|module| path.contains(module.as_str()));
        if !known.contains(info.name.as_str()) && !whole {
            problems.push(format!("{} is not expected", info.name));
        }
    }
    let mut types: Vec<&str> = (weights.infos())
        .filter_map(|info| match info.stored {
            Stored::Plain(dtype) => Some(dtype.name()),
            Stored::Gguf(_) => None,
        })
        .collect();
    types.sort_unstable();
    types.dedup();
    if types.len() > 1 {
        problems.push(format!(
            "its tensors are of several types, {}: an adapter is saved in one",
            types.join(" and ")
        ));
    }
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    let paths = weights.paths();
    let shown = paths
        .first()
        .map_or("?".into(), |path| path.to_string_lossy());
    bail!(
        "{shown}: the adapter does not fit the base model and {CONFIG_FILE}:\n  {}",
        problems.join("\n  ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::tensor_key;
    use super::*;
    use crate::Dtype;
    use serde_json::json;
    use std::path::Path;

    /// A base of one layer, 8 wide, with 6 inside its MLP and 4 outputs of keys and values.
    fn base() -> ModelConfig {
        let settings = json!({
            "model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
        });
        ModelConfig::from_json(&settings.to_string(), Path::new("base")).unwrap()
    }

    /// What the check says of a file of zeros under these names, types and shapes.
    fn checked(config: &PeftConfig, tensors: &[(&str, Dtype, &[usize])]) -> Result<Vec<String>> {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, dtype, shape)| {
                let (module, part) = name.rsplit_once(' ').unwrap();
                let module = format!("model.layers.0.{module}");
                let bytes = vec![0u8; shape.iter().product::<usize>() * dtype.size()];
                (tensor_key(&module, part), *dtype, shape.to_vec(), bytes)
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter_model.safetensors");
        crate::safetensors::write_file(&path, &tensors, &[("format", "pt")]).unwrap();
        let base = base();
        config.check(&Weights::open(&path).unwrap(), &base, &base.linear_shapes())
    }

    fn said(config: &PeftConfig, tensors: &[(&str, Dtype, &[usize])]) -> String {
        checked(config, tensors).unwrap_err().to_string()
    }

    #[test]
    fn numbers_of_outputs_and_of_inputs_are_told_apart() {
        let ia3 = PeftConfig::Ia3(Ia3Config::default());
        let key = ("self_attn.k_proj ia3_l", Dtype::F32, &[4, 1][..]);
        let value = ("self_attn.v_proj ia3_l", Dtype::F32, &[4, 1][..]);
        let down = ("mlp.down_proj ia3_l", Dtype::F32, &[1, 6][..]);
        let modules = checked(&ia3, &[key, value, down]).unwrap();
        assert_eq!(modules.len(), 3);
        assert!(modules[2].ends_with("mlp.down_proj"), "{modules:?}");
        let outward = ("mlp.down_proj ia3_l", Dtype::F32, &[8, 1][..]);
        let found = said(&ia3, &[key, value, outward]);
        assert!(
            found.contains("down_proj.ia3_l has the shape [8, 1], expected [1, 6]"),
            "{found}"
        );
        let found = said(&ia3, &[key, down]);
        assert!(found.contains("v_proj.ia3_l is missing"), "{found}");
        let half = ("mlp.down_proj ia3_l", Dtype::BF16, &[1, 6][..]);
        let found = said(&ia3, &[key, value, half]);
        assert!(found.contains("several types, BF16 and F32"), "{found}");
        let codes = ("self_attn.v_proj ia3_l", Dtype::I8, &[4, 1][..]);
        let found = said(&ia3, &[key, codes, down]);
        assert!(found.contains("v_proj.ia3_l holds I8"), "{found}");
    }

    #[test]
    fn lengths_belong_to_dora_only() {
        let of = |use_dora: bool| {
            PeftConfig::Lora(AdapterConfig {
                r: 2,
                use_dora,
                target_modules: vec!["v_proj".to_owned()],
                ..AdapterConfig::default()
            })
        };
        let down = ("self_attn.v_proj lora_A", Dtype::F32, &[2, 8][..]);
        let up = ("self_attn.v_proj lora_B", Dtype::F32, &[4, 2][..]);
        let length = (
            "self_attn.v_proj lora_magnitude_vector",
            Dtype::F32,
            &[4][..],
        );
        assert!(checked(&of(false), &[down, up]).is_ok());
        assert!(checked(&of(true), &[down, up, length]).is_ok());
        let found = said(&of(true), &[down, up]);
        assert!(
            found.contains("lora_magnitude_vector is missing"),
            "{found}"
        );
        let found = said(&of(false), &[down, up, length]);
        assert!(
            found.contains("lora_magnitude_vector is not expected"),
            "{found}"
        );
    }
}

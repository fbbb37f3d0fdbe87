//! An adapter's file against the base that it is put on: every tensor that the settings ask for, in its shape, and no other.

use super::{AdapterConfig, CONFIG_FILE, Ia3Config, PREFIX, PeftConfig, match_targets, tensor_key};
use crate::config::LlamaConfig;
use crate::tensors::{Stored, Weights};
use anyhow::{Result, bail};
use std::collections::HashSet;

/// Problems that an error names; of the others it tells the number.
const SHOWN: usize = 12;

impl PeftConfig {
    /// Compares an adapter's file with these settings and the shape of a base: all tensors are there, in their shapes and as numbers of
    /// weights, and no others. Gives the adapted modules in the order of the layers; all problems are named in one error.
    pub fn check(&self, weights: &Weights, base: &LlamaConfig) -> Result<Vec<String>> {
        let linears = base.linear_shapes();
        match self {
            PeftConfig::Lora(config) => config.check(weights, &linears),
            PeftConfig::Ia3(config) => config.check(weights, &linears),
        }
    }

    /// Where the base that it was trained on came from, as its settings say.
    pub fn base_model(&self) -> Option<&str> {
        let name = match self {
            PeftConfig::Lora(config) => &config.base_model_name_or_path,
            PeftConfig::Ia3(config) => &config.base_model_name_or_path,
        };
        name.as_deref().filter(|name| !name.is_empty())
    }

    /// What the adapted model is for, such as `CAUSAL_LM`.
    pub fn task(&self) -> Option<&str> {
        match self {
            PeftConfig::Lora(config) => config.task_type.as_deref(),
            PeftConfig::Ia3(config) => config.task_type.as_deref(),
        }
    }

    /// Modules that are stored whole beside the adapter.
    pub fn saved(&self) -> &[String] {
        match self {
            PeftConfig::Lora(config) => &config.modules_to_save,
            PeftConfig::Ia3(config) => &config.modules_to_save,
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
        let names: Vec<&str> = linears.iter().map(|linear| linear.0.as_str()).collect();
        let targets = match_targets(&self.target_modules, &names)?;
        let mut expected = Vec::new();
        for (module, out, input) in linears.iter().filter(|linear| targets.contains(&linear.0)) {
            expected.push((tensor_key(module, "lora_A"), vec![self.r, *input]));
            expected.push((tensor_key(module, "lora_B"), vec![*out, self.r]));
            if self.use_dora {
                expected.push((tensor_key(module, "lora_magnitude_vector"), vec![*out]));
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
        let names: Vec<&str> = linears.iter().map(|linear| linear.0.as_str()).collect();
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
            expected.push((tensor_key(module, "ia3_l"), shape));
        }
        compare(weights, &expected, &self.modules_to_save)?;
        Ok(modules.into_iter().map(|(module, _)| module).collect())
    }
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

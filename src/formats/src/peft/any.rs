//! Settings of an adapter of any kind that is supported, by the `peft_type` of its file.

use super::bottleneck::{self, BOTTLENECK_WEIGHTS_FILE, BottleneckConfig};
use super::{AdapterConfig, Ia3Config, MAXIMUM_CONFIG, PREFIX, SoftConfig, WEIGHTS_FILE, soft};
use crate::json;
use crate::tensors::Weights;
use anyhow::{Result, bail};
use std::path::Path;

/// The settings of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub enum PeftConfig {
    /// LoRA, and DoRA.
    Lora(AdapterConfig),
    /// (IA)³.
    Ia3(Ia3Config),
    /// Bottleneck adapters, whose files are those of the package `adapters`.
    Bottleneck(BottleneckConfig),
    /// Virtual tokens: prompt tuning and prefix tuning.
    Soft(SoftConfig),
}

impl PeftConfig {
    /// Reads the file at `path`; a kind of adapter that is not supported is an error.
    pub fn open(path: &Path) -> Result<PeftConfig> {
        let text = json::read_text(path, MAXIMUM_CONFIG)?;
        let object = json::parse_object(&text, path)?;
        if bottleneck::is_of_adapters(&object) {
            let config = BottleneckConfig::from_json(&text, path)?;
            return Ok(PeftConfig::Bottleneck(config));
        }
        match object.get("peft_type").and_then(|kind| kind.as_str()) {
            Some("LORA") => Ok(PeftConfig::Lora(AdapterConfig::from_json(&text, path)?)),
            Some("IA3") => Ok(PeftConfig::Ia3(Ia3Config::from_json(&text, path)?)),
            Some("PROMPT_TUNING" | "PREFIX_TUNING") => {
                Ok(PeftConfig::Soft(SoftConfig::from_json(&text, path)?))
            }
            other => bail!(
                "{}: peft_type is {:?}; supported are \"LORA\", \"IA3\", \"PROMPT_TUNING\" and \"PREFIX_TUNING\"",
                path.display(),
                other.unwrap_or_default()
            ),
        }
    }

    /// Writes them as PEFT does.
    pub fn save(&self, path: &Path) -> Result<()> {
        match self {
            PeftConfig::Lora(config) => config.save(path),
            PeftConfig::Ia3(config) => config.save(path),
            PeftConfig::Bottleneck(config) => config.save(path),
            PeftConfig::Soft(config) => config.save(path),
        }
    }

    /// The name of the file with the tensors.
    pub fn weights_file(&self) -> &'static str {
        match self {
            PeftConfig::Lora(_) | PeftConfig::Ia3(_) | PeftConfig::Soft(_) => WEIGHTS_FILE,
            PeftConfig::Bottleneck(_) => BOTTLENECK_WEIGHTS_FILE,
        }
    }

    /// Opens the tensors in a folder that Python wrote; where they are a pickle it says how to write them anew.
    pub fn open_weights(&self, folder: &Path) -> Result<Weights> {
        if let PeftConfig::Bottleneck(_) = self {
            bottleneck::refuse_pickle(folder)?;
        }
        Weights::open(&folder.join(self.weights_file()))
    }

    /// The name in that file of a parameter that is stored whole beside the adapter. What PEFT wraps a model in that is changed inside is
    /// not around one that only gets virtual tokens.
    pub fn saved_key(&self, name: &str) -> String {
        match self {
            PeftConfig::Lora(_) | PeftConfig::Ia3(_) => format!("{PREFIX}{name}"),
            PeftConfig::Bottleneck(_) => name.to_owned(),
            PeftConfig::Soft(_) => soft::saved_key(name),
        }
    }

    /// The same for a model of another task, with modules that are stored whole beside the adapter.
    pub fn for_task(self, task: &str, saved: &[&str]) -> PeftConfig {
        let task_type = Some(task.to_owned());
        let modules_to_save = saved.iter().map(|name| (*name).to_owned()).collect();
        match self {
            PeftConfig::Lora(config) => PeftConfig::Lora(AdapterConfig {
                task_type,
                modules_to_save,
                ..config
            }),
            PeftConfig::Ia3(config) => PeftConfig::Ia3(Ia3Config {
                task_type,
                modules_to_save,
                ..config
            }),
            PeftConfig::Bottleneck(config) if task == "SEQ_CLS" => {
                PeftConfig::Bottleneck(config.scored())
            }
            other @ PeftConfig::Bottleneck(_) => other,
            PeftConfig::Soft(config) => PeftConfig::Soft(SoftConfig {
                task_type,
                modules_to_save,
                ..config
            }),
        }
    }
}

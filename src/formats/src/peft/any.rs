//! Settings of an adapter of any kind that is supported, by the `peft_type` of its file.

use super::{AdapterConfig, Ia3Config, MAXIMUM_CONFIG, PREFIX, SoftConfig, soft};
use crate::json;
use anyhow::{Result, bail};
use std::path::Path;

/// The settings of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub enum PeftConfig {
    /// LoRA, and DoRA.
    Lora(AdapterConfig),
    /// (IA)³.
    Ia3(Ia3Config),
    /// Virtual tokens: prompt tuning and prefix tuning.
    Soft(SoftConfig),
}

impl PeftConfig {
    /// Reads the file at `path`; a kind of adapter that is not supported is an error.
    pub fn open(path: &Path) -> Result<PeftConfig> {
        let text = json::read_text(path, MAXIMUM_CONFIG)?;
        let object = json::parse_object(&text, path)?;
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
            PeftConfig::Soft(config) => config.save(path),
        }
    }

    /// PEFT's name of a parameter that is stored whole beside the adapter: what wraps a model that is changed inside is not around one
    /// that only gets virtual tokens.
    pub fn saved_key(&self, parameter: &str) -> String {
        match self {
            PeftConfig::Soft(_) => soft::saved_key(parameter),
            _ => format!("{PREFIX}{parameter}"),
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
            PeftConfig::Soft(config) => PeftConfig::Soft(SoftConfig {
                task_type,
                modules_to_save,
                ..config
            }),
        }
    }
}

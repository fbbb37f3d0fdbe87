//! The settings of an (IA)³ adapter: a number for each output of a linear, or for each input where it is a feedforward one.

use super::fields::{Fields, written_modules};
use super::{MAXIMUM_CONFIG, PEFT_VERSION, match_targets};
use crate::json;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The settings of an (IA)³ adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Ia3Config {
    /// The modules, by their last names or full paths, or `all-linear`.
    pub target_modules: Vec<String>,
    /// Those among them whose inputs are scaled instead of the outputs.
    pub feedforward_modules: Vec<String>,
    /// What the model is for, usually `CAUSAL_LM`.
    pub task_type: Option<String>,
    /// Modules that are stored whole beside the adapter.
    pub modules_to_save: Vec<String>,
    /// Where the base model came from.
    pub base_model_name_or_path: Option<String>,
    /// True in stored adapters: PEFT loads them frozen.
    pub inference_mode: bool,
}

/// What PEFT adapts in a Llama.
pub const IA3_TARGETS: [&str; 3] = ["down_proj", "k_proj", "v_proj"];
/// What is a feedforward module of a Llama for PEFT.
pub const IA3_FEEDFORWARD: &str = "down_proj";

impl Default for Ia3Config {
    fn default() -> Ia3Config {
        Ia3Config {
            target_modules: IA3_TARGETS.map(str::to_owned).into(),
            feedforward_modules: vec![IA3_FEEDFORWARD.to_owned()],
            task_type: Some("CAUSAL_LM".to_owned()),
            modules_to_save: Vec::new(),
            base_model_name_or_path: None,
            inference_mode: true,
        }
    }
}

/// Fields that are read, and those that say nothing about what the stored adapter computes.
const KNOWN: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "feedforward_modules",
    "inference_mode",
    "init_ia3_weights",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
];

impl Ia3Config {
    /// Reads the text of an adapter_config.json, which messages call `path`; see [`super::AdapterConfig::from_json`].
    pub fn from_json(text: &str, path: &Path) -> Result<Ia3Config> {
        let object = json::parse_object(text, path)?;
        from_object(&object).map_err(|error| anyhow!("{}: {error:#}", path.display()))
    }

    /// Reads the file at `path`.
    pub fn open(path: &Path) -> Result<Ia3Config> {
        Ia3Config::from_json(&json::read_text(path, MAXIMUM_CONFIG)?, path)
    }

    /// The content of adapter_config.json: all fields that PEFT writes, in its order.
    pub fn to_json(&self) -> Value {
        let saved = (!self.modules_to_save.is_empty()).then_some(&self.modules_to_save);
        json!({
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "feedforward_modules": written_modules(&self.feedforward_modules),
            "inference_mode": self.inference_mode,
            "init_ia3_weights": true,
            "modules_to_save": saved,
            "peft_type": "IA3",
            "peft_version": PEFT_VERSION,
            "revision": null,
            "target_modules": written_modules(&self.target_modules),
            "task_type": self.task_type,
        })
    }

    /// Writes `to_json` to `path`, indented as PEFT does.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.to_json())?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The adapted modules in the order of `linears`, each with whether it is a feedforward one.
    pub fn modules<M: AsRef<str>>(&self, linears: &[M]) -> Result<Vec<(String, bool)>> {
        let targets = match_targets(&self.target_modules, linears)?;
        let fed = match &self.feedforward_modules[..] {
            [] => Vec::new(),
            patterns => match_targets(patterns, linears).context("feedforward modules")?,
        };
        // As PEFT has it: a name that adapts nothing is a mistake.
        let lost = fed.iter().find(|module| !targets.contains(module));
        ensure!(
            lost.is_none(),
            "{} is among the feedforward modules, but not among the targets: name it there, too",
            lost.map_or("", String::as_str)
        );
        Ok(targets
            .into_iter()
            .map(|module| {
                let feedforward = fed.contains(&module);
                (module, feedforward)
            })
            .collect())
    }
}

fn from_object(object: &Map<String, Value>) -> Result<Ia3Config> {
    let fields = Fields(object);
    let kind = fields.text("peft_type")?.unwrap_or_default();
    ensure!(
        kind == "IA3",
        "peft_type is {kind:?}; supported here is \"IA3\""
    );
    let config = Ia3Config {
        target_modules: fields.modules("target_modules")?,
        feedforward_modules: match fields.get("feedforward_modules") {
            // What PEFT takes for a Llama when it loads such a file.
            None => vec![IA3_FEEDFORWARD.to_owned()],
            Some(_) => fields.modules("feedforward_modules")?,
        },
        task_type: fields.text("task_type")?,
        modules_to_save: fields.list("modules_to_save")?,
        base_model_name_or_path: fields.text("base_model_name_or_path")?,
        inference_mode: fields.flag("inference_mode")?,
    };
    ensure!(
        !config.target_modules.is_empty(),
        "target_modules is empty; list the adapted modules"
    );
    fields.refuse_unknown(&KNOWN, &config.to_json())?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, value: Value) -> Result<Ia3Config> {
        let mut config = Ia3Config::default().to_json();
        config[key] = value;
        Ia3Config::from_json(&config.to_string(), Path::new("some/adapter_config.json"))
    }

    #[test]
    fn settings_are_read_as_they_are_written_and_strangers_are_refused() {
        let config = Ia3Config::default();
        assert_eq!(with("revision", Value::Null).unwrap(), config);
        let implied = with("feedforward_modules", Value::Null).unwrap();
        assert_eq!(implied.feedforward_modules, ["down_proj"]);
        let none = with("feedforward_modules", json!([])).unwrap();
        assert!(none.feedforward_modules.is_empty());
        for (key, value) in [
            ("peft_type", json!("LORA")),
            ("target_modules", json!(".*_proj")),
            ("target_modules", json!([])),
            ("exclude_modules", json!(["q_proj"])),
            ("fan_in_fan_out", json!(true)),
            ("feedforward_modules", json!(7)),
            ("a_later_invention", json!(0.5)),
        ] {
            let message = with(key, value).unwrap_err().to_string();
            assert!(
                message.starts_with("some/adapter_config.json: "),
                "{message}"
            );
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn feedforward_modules_are_targets() {
        let linears = ["0.k_proj", "0.v_proj", "0.up_proj", "0.down_proj"];
        let found = Ia3Config::default().modules(&linears).unwrap();
        let wanted = [
            ("0.k_proj", false),
            ("0.v_proj", false),
            ("0.down_proj", true),
        ];
        assert_eq!(found, wanted.map(|(module, fed)| (module.to_owned(), fed)));
        let strange = Ia3Config {
            feedforward_modules: vec!["up_proj".to_owned()],
            ..Ia3Config::default()
        };
        let message = strange.modules(&linears).unwrap_err().to_string();
        assert!(message.contains("0.up_proj"), "{message}");
    }
}

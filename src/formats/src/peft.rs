//! Adapters as PEFT 0.21 stores them: adapter_config.json and the names of the tensors.

mod targets;

pub use targets::{ALL_LINEAR, match_targets};

use crate::json;
use crate::tensors::Weights;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The name of the settings file of an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The name of the weights file of an adapter.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The version of PEFT whose format is written.
const PEFT_VERSION: &str = "0.21.2";
/// The largest settings file that is read, in bytes.
const MAXIMUM_CONFIG: u64 = 16 << 20;
/// What PEFT puts before the module path of every tensor.
const PREFIX: &str = "base_model.model.";

/// The settings of a LoRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// The rank.
    pub r: usize,
    /// The numerator of the scale.
    pub lora_alpha: f64,
    /// The share of the adapter's inputs that is dropped in training.
    pub lora_dropout: f64,
    /// The modules, by their last names or full paths, or `all-linear`.
    pub target_modules: Vec<String>,
    /// Divide by the square root of the rank instead of by the rank.
    pub use_rslora: bool,
    /// Weight-decomposed LoRA, with a magnitude for each output.
    pub use_dora: bool,
    /// Which biases are trained; only `none` is supported.
    pub bias: String,
    /// What the model is for, usually `CAUSAL_LM`.
    pub task_type: Option<String>,
    /// Modules that are stored whole beside the adapter.
    pub modules_to_save: Vec<String>,
    /// Where the base model came from.
    pub base_model_name_or_path: Option<String>,
    /// True in stored adapters: PEFT loads them frozen.
    pub inference_mode: bool,
}

impl Default for AdapterConfig {
    fn default() -> AdapterConfig {
        AdapterConfig {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Vec::new(),
            use_rslora: false,
            use_dora: false,
            bias: "none".to_owned(),
            task_type: Some("CAUSAL_LM".to_owned()),
            modules_to_save: Vec::new(),
            base_model_name_or_path: None,
            inference_mode: true,
        }
    }
}

/// Keys whose value says nothing about what the stored adapter computes.
const HARMLESS: [&str; 15] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "layers_pattern",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "init_lora_weights",
];

impl AdapterConfig {
    /// What the product of B and A is multiplied with.
    pub fn scale(&self) -> f64 {
        let rank = self.r as f64;
        self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Reads the text of an adapter_config.json, which messages call `path`. A setting that is not known
    /// and not neutral (null, false, empty) is refused by name, since it may change what the adapter does.
    pub fn from_json(text: &str, path: &Path) -> Result<AdapterConfig> {
        let object = json::parse_object(text, path)?;
        from_object(&object).map_err(|error| anyhow!("{}: {error:#}", path.display()))
    }

    /// Reads the file at `path`.
    pub fn open(path: &Path) -> Result<AdapterConfig> {
        AdapterConfig::from_json(&json::read_text(path, MAXIMUM_CONFIG)?, path)
    }

    /// The content of adapter_config.json: all fields that PEFT writes, in its order.
    pub fn to_json(&self) -> Value {
        let number = |number: f64| {
            if number.fract() == 0.0 && number.abs() < 1e15 {
                json!(number as i64)
            } else {
                json!(number)
            }
        };
        let mut targets = self.target_modules.clone();
        targets.sort();
        // PEFT resolves the word only when it stands alone, not in a list.
        let targets = match &targets[..] {
            [only] if only == ALL_LINEAR => json!(only),
            _ => json!(targets),
        };
        let saved = (!self.modules_to_save.is_empty()).then_some(&self.modules_to_save);
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": {},
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": self.bias,
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": self.inference_mode,
            "init_lora_weights": true,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": number(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": saved,
            "monteclora_config": null,
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "qalora_group_size": 16,
            "r": self.r,
            "rank_pattern": {},
            "revision": null,
            "target_modules": targets,
            "target_parameters": null,
            "task_type": self.task_type,
            "trainable_token_indices": null,
            "use_bdlora": null,
            "use_dora": self.use_dora,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
            "velora_config": null,
        })
    }

    /// Writes `to_json` to `path`, indented as PEFT does.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.to_json())?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

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
        let mut problems = Vec::new();
        let mut expected = std::collections::HashSet::new();
        for (module, out, input) in linears.iter().filter(|linear| targets.contains(&linear.0)) {
            let mut shapes = vec![
                (lora_key(module, "lora_A"), vec![self.r, *input]),
                (lora_key(module, "lora_B"), vec![*out, self.r]),
            ];
            if self.use_dora {
                shapes.push((lora_key(module, "lora_magnitude_vector"), vec![*out]));
            }
            for (key, shape) in shapes {
                match weights.get(&key) {
                    None => problems.push(format!("{key} is missing")),
                    Some(info) if info.shape != shape => problems.push(format!(
                        "{key} has the shape {:?}, expected {shape:?}",
                        info.shape
                    )),
                    Some(_) => {}
                }
                expected.insert(key);
            }
        }
        for info in weights.infos() {
            let saved = |module: &String| {
                let path = info.name.strip_prefix(PREFIX).unwrap_or(&info.name);
                path.contains(module.as_str())
            };
            if !expected.contains(&info.name) && !self.modules_to_save.iter().any(saved) {
                problems.push(format!("{} is not expected", info.name));
            }
        }
        if problems.is_empty() {
            return Ok(targets);
        }
        let more = problems.len().saturating_sub(12);
        problems.truncate(12);
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
}

fn from_object(object: &Map<String, Value>) -> Result<AdapterConfig> {
    let get = |key: &str| object.get(key).filter(|value| !value.is_null());
    let text = |key: &str| -> Result<Option<String>> {
        match get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(value) => bail!("{key} should be text, but is {value}"),
        }
    };
    let flag = |key: &str| -> Result<bool> {
        match get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => bail!("{key} should be true or false, but is {value}"),
        }
    };
    let number = |key: &str, default: f64| -> Result<f64> {
        match get(key) {
            None => Ok(default),
            Some(value) => (value.as_f64())
                .filter(|number| number.is_finite())
                .ok_or_else(|| anyhow!("{key} should be a number, but is {value}")),
        }
    };
    let list = |key: &str| -> Result<Vec<String>> {
        let items = match get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(value) => bail!("{key} should be a list of names, but is {value}"),
        };
        let names: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
        let names = names.ok_or_else(|| anyhow!("{key} should be a list of names"))?;
        Ok(names.into_iter().map(str::to_owned).collect())
    };
    let kind = text("peft_type")?.unwrap_or_default();
    ensure!(
        kind == "LORA",
        "peft_type is {kind:?}; supported is \"LORA\""
    );
    let target_modules = match get("target_modules") {
        Some(Value::String(word)) if word == ALL_LINEAR => vec![ALL_LINEAR.to_owned()],
        Some(Value::String(pattern)) => bail!(
            "target_modules is the regular expression {pattern:?}, which is not supported; list the module names"
        ),
        _ => list("target_modules")?,
    };
    let rank = match get("r") {
        None => 8,
        Some(value) => (value.as_u64())
            .filter(|rank| (1..=1 << 20).contains(rank))
            .ok_or_else(|| anyhow!("r should be a whole number of at least 1, but is {value}"))?,
    };
    let config = AdapterConfig {
        r: usize::try_from(rank)?,
        lora_alpha: number("lora_alpha", 8.0)?,
        lora_dropout: number("lora_dropout", 0.0)?,
        target_modules,
        use_rslora: flag("use_rslora")?,
        use_dora: flag("use_dora")?,
        bias: text("bias")?.unwrap_or_else(|| "none".to_owned()),
        task_type: text("task_type")?,
        modules_to_save: list("modules_to_save")?,
        base_model_name_or_path: text("base_model_name_or_path")?,
        inference_mode: flag("inference_mode")?,
    };
    ensure!(
        !config.target_modules.is_empty(),
        "target_modules is empty; list the adapted modules"
    );
    ensure!(
        config.bias == "none",
        "bias is {:?}; supported is \"none\"",
        config.bias
    );
    ensure!(
        (0.0..1.0).contains(&config.lora_dropout),
        "lora_dropout is {}; it should be at least 0 and less than 1",
        config.lora_dropout
    );
    refuse_unknown(object, &config)?;
    Ok(config)
}

/// Refuses initializations that change the base model, and every unknown setting that is not neutral.
fn refuse_unknown(object: &Map<String, Value>, config: &AdapterConfig) -> Result<()> {
    if let Some(Value::String(initialization)) = object.get("init_lora_weights") {
        // The others (gaussian, eva, orthogonal) only choose where training starts.
        let changes_base = ["pissa", "olora", "corda", "loftq", "lora_ga", "mica"];
        ensure!(
            !changes_base
                .iter()
                .any(|name| initialization.starts_with(name)),
            "init_lora_weights is {initialization:?}, which changes the base model's weights; convert the adapter to plain LoRA with PEFT first"
        );
    }
    let written = config.to_json();
    for (key, value) in object {
        let neutral = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        // Fields of `AdapterConfig` are those that `to_json` fills with something.
        let known = HARMLESS.contains(&key.as_str())
            || matches!(
                key.as_str(),
                "r" | "lora_alpha"
                    | "lora_dropout"
                    | "target_modules"
                    | "use_rslora"
                    | "use_dora"
                    | "bias"
                    | "task_type"
                    | "modules_to_save"
                    | "base_model_name_or_path"
                    | "inference_mode"
            );
        if !neutral && !known {
            let word = match written.get(key) {
                Some(_) => "which is not supported",
                None => "which is not known here and may change what the adapter does",
            };
            bail!("{key} is {value}, {word}");
        }
    }
    Ok(())
}

/// The name of an adapter's tensor: `part` is `lora_A`, `lora_B` or `lora_magnitude_vector`.
///
/// `base_model.model.<module>.lora_A.weight`; the magnitude has no `.weight` in PEFT's files.
pub fn lora_key(module: &str, part: &str) -> String {
    let ending = if part == "lora_magnitude_vector" {
        ""
    } else {
        ".weight"
    };
    format!("{PREFIX}{module}.{part}{ending}")
}

/// The module and the part (`lora_A`, `lora_B`, `lora_magnitude_vector`) that a tensor's name speaks of.
pub fn parse_lora_key(key: &str) -> Option<(&str, &str)> {
    let path = key.strip_prefix(PREFIX)?;
    let path = match path.strip_suffix(".weight") {
        Some(path) => path,
        None => path.strip_suffix(".lora_magnitude_vector").map(|_| path)?,
    };
    let (module, part) = path.rsplit_once('.')?;
    let weighted = matches!(part, "lora_A" | "lora_B") && key.ends_with(".weight");
    let magnitude = part == "lora_magnitude_vector" && !key.ends_with(".weight");
    (!module.is_empty() && (weighted || magnitude)).then_some((module, part))
}

//! Adapters as PEFT 0.21 stores them: adapter_config.json and the names of the tensors. Bottleneck adapters, which PEFT has not, are kept as
//! AdapterHub's package `adapters` has them.

mod any;
mod bottleneck;
mod check;
mod fields;
mod ia3;
mod soft;
mod targets;

pub use any::PeftConfig;
pub use bottleneck::{
    BOTTLENECK_PARTS, BOTTLENECK_WEIGHTS_FILE, Behind, BottleneckConfig, NonLinearity,
};
pub use ia3::{IA3_FEEDFORWARD, IA3_TARGETS, Ia3Config};
pub use soft::{PROMPT_EMBEDDINGS, SoftConfig, SoftKind};
pub use targets::{ALL_LINEAR, choose_targets, match_targets};

use crate::config::bert::{OUTSIDE, bare_name};
use crate::json;
use crate::tensors::Weights;
use anyhow::{Context, Result, anyhow, ensure};
use fields::{Fields, written_modules};
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

/// Fields that are read, and those that say nothing about what the stored adapter computes.
const KNOWN: [&str; 26] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
    "bias",
    "task_type",
    "modules_to_save",
    "base_model_name_or_path",
    "inference_mode",
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
            "target_modules": written_modules(&self.target_modules),
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
}

fn from_object(object: &Map<String, Value>) -> Result<AdapterConfig> {
    let fields = Fields(object);
    let kind = fields.text("peft_type")?.unwrap_or_default();
    ensure!(
        kind == "LORA",
        "peft_type is {kind:?}; supported is \"LORA\""
    );
    let rank = match fields.get("r") {
        None => 8,
        Some(value) => (value.as_u64())
            .filter(|rank| (1..=1 << 20).contains(rank))
            .ok_or_else(|| {
                anyhow!(
                    "r should be a whole number from 1 to {}, but is {value}",
                    1 << 20
                )
            })?,
    };
    let config = AdapterConfig {
        r: usize::try_from(rank)?,
        lora_alpha: fields.number("lora_alpha", 8.0)?,
        lora_dropout: fields.number("lora_dropout", 0.0)?,
        target_modules: fields.modules("target_modules")?,
        use_rslora: fields.flag("use_rslora")?,
        use_dora: fields.flag("use_dora")?,
        bias: fields.text("bias")?.unwrap_or_else(|| "none".to_owned()),
        task_type: fields.text("task_type")?,
        modules_to_save: fields.list("modules_to_save")?,
        base_model_name_or_path: fields.text("base_model_name_or_path")?,
        inference_mode: fields.flag("inference_mode")?,
    };
    ensure!(
        config.lora_alpha > 0.0,
        "lora_alpha is {}; it should be above 0",
        config.lora_alpha
    );
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
    refuse_base_changes(object)?;
    fields.refuse_unknown(&KNOWN, &config.to_json())?;
    Ok(config)
}

/// Refuses initializations that change the base model.
fn refuse_base_changes(object: &Map<String, Value>) -> Result<()> {
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
    Ok(())
}

/// The name of an adapter's tensor: `part` is `lora_A`, `lora_B`, `lora_magnitude_vector` or `ia3_l`.
pub fn tensor_key(module: &str, part: &str) -> String {
    format!("{PREFIX}{}", parameter_name(module, part))
}

/// The name that a file has for such a tensor of a model with linears of Hugging Face's names: an adapter on an encoder alone, PEFT's on
/// `AutoModel`, has none of the `bert.` that others have before its paths.
pub fn stored_key(weights: &Weights, module: &str, part: &str) -> String {
    let bare = tensor_key(bare_name(module), part);
    match weights.get(&bare) {
        Some(_) => bare,
        None => tensor_key(module, part),
    }
}

/// Whether an adapter's file may be about this linear. Those of an encoder outside of its layers are meant by names such as `dense` or
/// `all-linear` only where the model that was adapted had them: it holds tensors for them then.
pub fn concerns(weights: &Weights, module: &str) -> bool {
    let holds = |part: &&str| weights.get(&stored_key(weights, module, part)).is_some();
    !OUTSIDE.contains(&module) || ["lora_A", "ia3_l"].iter().any(holds)
}

/// The name of an adapter's tensor without what PEFT puts before it: `<module>.lora_A.weight`. Magnitudes and (IA)³'s numbers have no
/// `.weight` in PEFT's files.
pub fn parameter_name(module: &str, part: &str) -> String {
    let ending = match part {
        "lora_A" | "lora_B" => ".weight",
        _ => "",
    };
    format!("{module}.{part}{ending}")
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

//! The settings of virtual tokens, prompt tuning and prefix tuning: how many there are, and what stands for each.

use super::fields::Fields;
use super::{CONFIG_FILE, MAXIMUM_CONFIG, PEFT_VERSION};
use crate::config::LlamaConfig;
use crate::json;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The name of the only tensor in the file of virtual tokens.
pub const PROMPT_EMBEDDINGS: &str = "prompt_embeddings";
/// What PEFT puts before the module path of a tensor that is stored whole beside virtual tokens.
const SAVED: &str = "base_model.";
/// The most virtual tokens.
const MAXIMUM: u64 = 1 << 20;

/// What a virtual token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftKind {
    /// Prompt tuning: an embedding.
    Prompt,
    /// Prefix tuning: keys and values in every layer.
    Prefix,
}

impl SoftKind {
    /// PEFT's word for it.
    pub fn peft_type(self) -> &'static str {
        match self {
            SoftKind::Prompt => "PROMPT_TUNING",
            SoftKind::Prefix => "PREFIX_TUNING",
        }
    }
}

/// The settings of virtual tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftConfig {
    /// What a virtual token is.
    pub kind: SoftKind,
    /// How many there are, at least one.
    pub num_virtual_tokens: usize,
    /// Of a prompt the width of an embedding; of a prefix that of all keys in a layer. None, here and below: the model's.
    pub token_dim: Option<usize>,
    /// Of a prompt the model's heads, though it has nothing to do with them; of a prefix the key heads.
    pub num_attention_heads: Option<usize>,
    /// The model's layers.
    pub num_layers: Option<usize>,
    /// What the model is for, usually `CAUSAL_LM`.
    pub task_type: Option<String>,
    /// Modules that are stored whole beside the virtual tokens.
    pub modules_to_save: Vec<String>,
    /// Where the base model came from.
    pub base_model_name_or_path: Option<String>,
    /// True in stored adapters: PEFT loads them frozen.
    pub inference_mode: bool,
}

/// Fields that are read, and those that say nothing about what the stored tokens compute: where a training started, and a projection,
/// which PEFT has made before it stores a prefix.
const KNOWN: [&str; 20] = [
    "auto_mapping",
    "base_model_name_or_path",
    "encoder_hidden_size",
    "inference_mode",
    "init_weights",
    "modules_to_save",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "peft_type",
    "peft_version",
    "prefix_projection",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "revision",
    "task_type",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
];

impl SoftConfig {
    /// Settings of so many virtual tokens before this model.
    pub fn new(kind: SoftKind, num_virtual_tokens: usize, model: &LlamaConfig) -> SoftConfig {
        let (width, heads) = width_and_heads(kind, model);
        SoftConfig {
            kind,
            num_virtual_tokens,
            token_dim: Some(width),
            num_attention_heads: Some(heads),
            num_layers: Some(model.num_hidden_layers),
            task_type: Some("CAUSAL_LM".to_owned()),
            modules_to_save: Vec::new(),
            base_model_name_or_path: None,
            inference_mode: true,
        }
    }

    /// Reads the text of an adapter_config.json, which messages call `path`; see [`super::AdapterConfig::from_json`].
    pub fn from_json(text: &str, path: &Path) -> Result<SoftConfig> {
        let object = json::parse_object(text, path)?;
        from_object(&object).map_err(|error| anyhow!("{}: {error:#}", path.display()))
    }

    /// Reads the file at `path`.
    pub fn open(path: &Path) -> Result<SoftConfig> {
        SoftConfig::from_json(&json::read_text(path, MAXIMUM_CONFIG)?, path)
    }

    /// The content of adapter_config.json: all fields that PEFT writes, in its order. Where the training started is not among them: PEFT
    /// would look for the tokenizer of a text.
    pub fn to_json(&self) -> Value {
        let saved = (!self.modules_to_save.is_empty()).then_some(&self.modules_to_save);
        let peft_type = self.kind.peft_type();
        match self.kind {
            SoftKind::Prompt => json!({
                "auto_mapping": null,
                "base_model_name_or_path": self.base_model_name_or_path,
                "inference_mode": self.inference_mode,
                "modules_to_save": saved,
                "num_attention_heads": self.num_attention_heads,
                "num_layers": self.num_layers,
                "num_transformer_submodules": 1,
                "num_virtual_tokens": self.num_virtual_tokens,
                "peft_type": peft_type,
                "peft_version": PEFT_VERSION,
                "prompt_tuning_init": "RANDOM",
                "prompt_tuning_init_text": null,
                "revision": null,
                "task_type": self.task_type,
                "token_dim": self.token_dim,
                "tokenizer_kwargs": null,
                "tokenizer_name_or_path": null,
            }),
            SoftKind::Prefix => json!({
                "auto_mapping": null,
                "base_model_name_or_path": self.base_model_name_or_path,
                "encoder_hidden_size": self.token_dim,
                "inference_mode": self.inference_mode,
                "init_weights": null,
                "modules_to_save": saved,
                "num_attention_heads": self.num_attention_heads,
                "num_layers": self.num_layers,
                "num_transformer_submodules": 1,
                "num_virtual_tokens": self.num_virtual_tokens,
                "peft_type": peft_type,
                "peft_version": PEFT_VERSION,
                "prefix_projection": false,
                "revision": null,
                "task_type": self.task_type,
                "token_dim": self.token_dim,
            }),
        }
    }

    /// Writes `to_json` to `path`, indented as PEFT does.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.to_json())?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The shape of [`PROMPT_EMBEDDINGS`] before this model: virtual tokens, and of a prompt the hidden width, of a prefix layers · 2 · key
    /// heads · head size. Errors where the settings are those of another model, or leave it no position for a text.
    pub fn shape(&self, model: &LlamaConfig) -> Result<[usize; 2]> {
        let count = self.num_virtual_tokens;
        ensure!(
            count < model.max_position_embeddings,
            "{count} virtual tokens leave no room for a text: the model has {} positions",
            model.max_position_embeddings
        );
        let fits = |name: &str, found: Option<usize>, wanted: usize| {
            ensure!(
                found.is_none_or(|found| found == wanted),
                "{CONFIG_FILE}: {name} is {}, but the model's config asks for {wanted}: the virtual tokens belong to another model",
                found.unwrap_or_default()
            );
            Ok(())
        };
        let layers = model.num_hidden_layers;
        let (width, heads) = width_and_heads(self.kind, model);
        fits("token_dim", self.token_dim, width)?;
        fits("num_attention_heads", self.num_attention_heads, heads)?;
        fits("num_layers", self.num_layers, layers)?;
        match self.kind {
            SoftKind::Prompt => Ok([count, width]),
            SoftKind::Prefix => Ok([count, layers * 2 * width]),
        }
    }

    /// The modules that see the virtual tokens first: the layers, through their embeddings or each by itself.
    pub fn modules(&self, model: &LlamaConfig) -> Vec<String> {
        match self.kind {
            SoftKind::Prompt => vec!["model.embed_tokens".to_owned()],
            SoftKind::Prefix => (0..model.num_hidden_layers)
                .map(|layer| format!("model.layers.{layer}.self_attn"))
                .collect(),
        }
    }

    /// Whether a tensor of this name belongs into the file.
    pub fn knows(&self, name: &str) -> bool {
        let saved = |module: &String| name == saved_key(&format!("{module}.weight"));
        name == PROMPT_EMBEDDINGS || self.modules_to_save.iter().any(saved)
    }
}

/// What PEFT takes for `token_dim` and `num_attention_heads`.
fn width_and_heads(kind: SoftKind, model: &LlamaConfig) -> (usize, usize) {
    match kind {
        SoftKind::Prompt => (model.hidden_size, model.num_attention_heads),
        SoftKind::Prefix => (model.key_value_width(), model.num_key_value_heads),
    }
}

/// PEFT's name of a parameter that is stored whole beside virtual tokens.
pub(super) fn saved_key(parameter: &str) -> String {
    format!("{SAVED}{parameter}")
}

fn from_object(object: &Map<String, Value>) -> Result<SoftConfig> {
    let fields = Fields(object);
    let kind = match fields.text("peft_type")?.as_deref() {
        Some("PROMPT_TUNING") => SoftKind::Prompt,
        Some("PREFIX_TUNING") => SoftKind::Prefix,
        other => bail!(
            "peft_type is {:?}; supported here are \"PROMPT_TUNING\" and \"PREFIX_TUNING\"",
            other.unwrap_or_default()
        ),
    };
    let count = |key: &str| -> Result<Option<usize>> {
        let Some(value) = fields.get(key) else {
            return Ok(None);
        };
        let number = value
            .as_u64()
            .filter(|number| (1..=MAXIMUM).contains(number));
        let number = number.ok_or_else(|| {
            anyhow!("{key} should be a whole number from 1 to {MAXIMUM}, but is {value}")
        })?;
        Ok(Some(usize::try_from(number)?))
    };
    let config = SoftConfig {
        kind,
        num_virtual_tokens: count("num_virtual_tokens")?
            .context("num_virtual_tokens is missing")?,
        token_dim: count("token_dim")?,
        num_attention_heads: count("num_attention_heads")?,
        num_layers: count("num_layers")?,
        task_type: fields.text("task_type")?,
        modules_to_save: fields.list("modules_to_save")?,
        base_model_name_or_path: fields.text("base_model_name_or_path")?,
        inference_mode: fields.flag("inference_mode")?,
    };
    fields.flag("prefix_projection")?;
    let parts = count("num_transformer_submodules")?.unwrap_or(1);
    ensure!(
        parts == 1,
        "num_transformer_submodules is {parts}; supported is 1, a model that is a decoder alone"
    );
    fields.refuse_unknown(&KNOWN, &config.to_json())?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> LlamaConfig {
        let text = r#"{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
            "tie_word_embeddings": true, "hidden_act": "silu"}"#;
        LlamaConfig::from_json(text, Path::new("tiny")).unwrap()
    }

    fn with(kind: SoftKind, key: &str, value: Value) -> Result<SoftConfig> {
        let mut config = SoftConfig::new(kind, 5, &model()).to_json();
        config[key] = value;
        SoftConfig::from_json(&config.to_string(), Path::new("some/adapter_config.json"))
    }

    #[test]
    fn settings_are_read_as_they_are_written_and_strangers_are_refused() {
        for kind in [SoftKind::Prompt, SoftKind::Prefix] {
            let config = SoftConfig::new(kind, 5, &model());
            assert_eq!(with(kind, "revision", Value::Null).unwrap(), config);
            // Where a training started, and how: what is stored is what came of it.
            for (key, value) in [
                ("prompt_tuning_init", json!("TEXT")),
                ("prompt_tuning_init_text", json!("Answer kindly.")),
                ("tokenizer_name_or_path", json!("some/model")),
                ("prefix_projection", json!(true)),
                ("encoder_hidden_size", json!(7)),
                ("init_weights", json!("zero")),
            ] {
                assert_eq!(with(kind, key, value).unwrap(), config, "{key}");
            }
            for (key, value) in [
                ("peft_type", json!("LORA")),
                ("num_virtual_tokens", json!(0)),
                ("num_virtual_tokens", Value::Null),
                ("num_virtual_tokens", json!(2.5)),
                ("token_dim", json!("wide")),
                ("num_transformer_submodules", json!(2)),
                ("prefix_projection", json!("perhaps")),
                ("num_frozen_tokens", json!(1)),
                ("a_later_invention", json!(0.5)),
            ] {
                let message = with(kind, key, value).unwrap_err().to_string();
                assert!(
                    message.starts_with("some/adapter_config.json: ") && message.contains(key),
                    "{message}"
                );
            }
        }
    }

    #[test]
    fn shapes_are_those_of_the_model() {
        let model = model();
        let shape = |config: SoftConfig| config.shape(&model);
        let prompt = SoftConfig::new(SoftKind::Prompt, 5, &model);
        assert_eq!(shape(prompt.clone()).unwrap(), [5, 32]);
        let prefix = SoftConfig::new(SoftKind::Prefix, 5, &model);
        // Three layers of keys and values of two heads of twelve.
        assert_eq!(shape(prefix).unwrap(), [5, 3 * 2 * 24]);
        // What PEFT leaves open is the model's; what it says of another model is told with both numbers.
        for (kind, key, wrong, right) in [
            (SoftKind::Prompt, "token_dim", 48, 32),
            (SoftKind::Prompt, "num_attention_heads", 2, 4),
            (SoftKind::Prompt, "num_layers", 7, 3),
            (SoftKind::Prefix, "token_dim", 48, 24),
            (SoftKind::Prefix, "num_attention_heads", 4, 2),
            (SoftKind::Prefix, "num_layers", 2, 3),
        ] {
            let usual = shape(SoftConfig::new(kind, 5, &model)).unwrap();
            let said = |value: Value| shape(with(kind, key, value).unwrap());
            assert_eq!(said(Value::Null).unwrap(), usual, "{key}");
            assert_eq!(said(json!(right)).unwrap(), usual, "{key}");
            let message = said(json!(wrong)).unwrap_err().to_string();
            let numbers = format!("{key} is {wrong}, but the model's config asks for {right}");
            assert!(message.contains(&numbers), "{message}");
        }
        let many = SoftConfig {
            num_virtual_tokens: 64,
            ..prompt
        };
        let message = shape(many).unwrap_err().to_string();
        assert!(message.contains("no room"), "{message}");
    }

    #[test]
    fn heads_beside_virtual_tokens_have_their_own_names() {
        let judge = SoftConfig {
            modules_to_save: vec!["classifier".to_owned(), "score".to_owned()],
            ..SoftConfig::new(SoftKind::Prompt, 5, &model())
        };
        assert!(judge.knows("prompt_embeddings") && judge.knows("base_model.score.weight"));
        assert!(!judge.knows("base_model.model.score.weight") && !judge.knows("prompt"));
    }
}

//! The settings of bottleneck adapters as AdapterHub's package `adapters` stores them: adapter_config.json, and the names of the tensors in
//! adapter.safetensors.

mod parse;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};
use std::path::Path;

use super::MAXIMUM_CONFIG;
use crate::json;

/// The name of the weights file of a bottleneck adapter.
pub const BOTTLENECK_WEIGHTS_FILE: &str = "adapter.safetensors";
/// What `adapters` writes unless it is asked for safetensors: a pickle.
const PICKLE: &str = "pytorch_adapter.bin";
/// The version of the package whose format is written.
const VERSION: &str = "adapters.1.3.0";
/// The classes of models whose adapters are read; the second is a reward model.
const MODEL_CLASSES: [&str; 3] = [CAUSAL, SCORED, "LlamaAdapterModel"];
const CAUSAL: &str = "LlamaForCausalLM";
const SCORED: &str = "LlamaForSequenceClassification";
/// The names of an adapter's tensors below its module: `[bottleneck, hidden]`, `[bottleneck]`, `[hidden, bottleneck]`, `[hidden]`.
pub const BOTTLENECK_PARTS: [&str; 4] = [
    "adapter_down.0.weight",
    "adapter_down.0.bias",
    "adapter_up.weight",
    "adapter_up.bias",
];

/// What is between the two projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonLinearity {
    /// max(0, x).
    Relu,
    /// x · sigmoid(x), also called SiLU.
    Swish,
    /// x · Φ(x).
    Gelu,
    /// The same with the approximation by tanh.
    GeluNew,
    /// tanh(x).
    Tanh,
}

impl NonLinearity {
    /// The one that the package calls so.
    pub fn parse(word: &str) -> Result<NonLinearity> {
        Ok(match word.to_lowercase().as_str() {
            "relu" => NonLinearity::Relu,
            "swish" | "silu" => NonLinearity::Swish,
            "gelu" => NonLinearity::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => NonLinearity::GeluNew,
            "tanh" => NonLinearity::Tanh,
            _ => bail!(
                "non_linearity is {word:?}, which is not supported; supported are relu, swish, gelu, gelu_new and tanh"
            ),
        })
    }

    /// The package's word for it.
    pub fn word(self) -> &'static str {
        match self {
            NonLinearity::Relu => "relu",
            NonLinearity::Swish => "swish",
            NonLinearity::Gelu => "gelu",
            NonLinearity::GeluNew => "gelu_new",
            NonLinearity::Tanh => "tanh",
        }
    }
}

/// The part of a layer that an adapter stands behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Attention.
    Attention,
    /// The feed-forward part.
    FeedForward,
}

impl Behind {
    /// The package's name of the adapters there.
    pub fn word(self) -> &'static str {
        match self {
            Behind::Attention => "attention_adapters",
            Behind::FeedForward => "output_adapters",
        }
    }
}

/// The settings of the bottleneck adapters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct BottleneckConfig {
    /// What the adapter is called; a part of its tensors' names.
    pub name: String,
    /// The width of the base model.
    pub hidden_size: usize,
    /// What the model is for, by the name of its class.
    pub model_class: String,
    /// Where the base model came from, perhaps empty.
    pub model_name: String,
    /// There is an adapter after attention.
    pub mh_adapter: bool,
    /// There is an adapter after the feed-forward part.
    pub output_adapter: bool,
    /// The width of the model divided by that of the bottleneck.
    pub reduction_factor: f64,
    /// What is between the two projections.
    pub non_linearity: NonLinearity,
    /// The adapter reads the residual stream with what the part of the layer made added to it, instead of the latter alone.
    pub original_ln_before: bool,
    /// What the adapter's output is multiplied with.
    pub scaling: f64,
}

impl BottleneckConfig {
    /// Houlsby's form (`DoubleSeqBnConfig`): after attention and after the feed-forward part, on what these made.
    pub fn houlsby(hidden_size: usize) -> BottleneckConfig {
        BottleneckConfig {
            name: "bottleneck".to_owned(),
            hidden_size,
            model_class: CAUSAL.to_owned(),
            model_name: String::new(),
            mh_adapter: true,
            output_adapter: true,
            reduction_factor: 16.0,
            non_linearity: NonLinearity::Swish,
            original_ln_before: false,
            scaling: 1.0,
        }
    }

    /// Pfeiffer's form (`SeqBnConfig`): after the feed-forward part alone, on the residual stream.
    pub fn pfeiffer(hidden_size: usize) -> BottleneckConfig {
        BottleneckConfig {
            mh_adapter: false,
            non_linearity: NonLinearity::Relu,
            original_ln_before: true,
            ..BottleneckConfig::houlsby(hidden_size)
        }
    }

    /// The same for a reward model, whose head stands beside the adapter.
    pub fn scored(self) -> BottleneckConfig {
        BottleneckConfig {
            model_class: SCORED.to_owned(),
            ..self
        }
    }

    /// Whether the adapter is one of a reward model.
    pub fn is_scored(&self) -> bool {
        self.model_class == SCORED
    }

    /// The width of the bottleneck, as Python's `hidden_size // reduction_factor` gives it, and at least 1.
    pub fn width(&self) -> usize {
        let hidden = self.hidden_size as f64;
        let whole = (hidden - hidden % self.reduction_factor) / self.reduction_factor;
        (whole.round() as usize).max(1)
    }

    /// Where a layer has adapters, in the order of the forward.
    pub fn places(&self) -> Vec<Behind> {
        let attention = self.mh_adapter.then_some(Behind::Attention);
        let feed_forward = self.output_adapter.then_some(Behind::FeedForward);
        attention.into_iter().chain(feed_forward).collect()
    }

    /// The path of the adapter behind a part of a layer.
    pub fn module(&self, layer: usize, behind: Behind) -> String {
        let (word, name) = (behind.word(), &self.name);
        format!("model.layers.{layer}.{word}.adapters.{name}")
    }

    /// The shapes of an adapter's tensors, in the order of [`BOTTLENECK_PARTS`].
    pub fn shapes(&self) -> [Vec<usize>; 4] {
        let (hidden, width) = (self.hidden_size, self.width());
        [
            vec![width, hidden],
            vec![width],
            vec![hidden, width],
            vec![hidden],
        ]
    }

    /// Every tensor of the adapters of a model with so many layers, with its shape.
    pub fn tensor_shapes(&self, layers: usize) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        for layer in 0..layers {
            for behind in self.places() {
                let module = self.module(layer, behind);
                let parts = BOTTLENECK_PARTS.iter().zip(self.shapes());
                all.extend(parts.map(|(part, shape)| (format!("{module}.{part}"), shape)));
            }
        }
        all
    }

    /// Reads the text of an adapter_config.json, which messages call `path`. A setting that would change what the adapter does and is
    /// not supported is refused by name.
    pub fn from_json(text: &str, path: &Path) -> Result<BottleneckConfig> {
        let object = json::parse_object(text, path)?;
        parse::from_object(&object).map_err(|error| anyhow!("{}: {error:#}", path.display()))
    }

    /// Reads the file at `path`.
    pub fn open(path: &Path) -> Result<BottleneckConfig> {
        BottleneckConfig::from_json(&json::read_text(path, MAXIMUM_CONFIG)?, path)
    }

    /// The content of adapter_config.json: all fields that the package writes, in its order.
    pub fn to_json(&self) -> Value {
        json!({
            "config": self.method(),
            "hidden_size": self.hidden_size,
            "model_class": self.model_class,
            "model_name": self.model_name,
            "model_type": "llama",
            "name": self.name,
            "version": VERSION,
        })
    }

    /// The fields of the adapter itself.
    fn method(&self) -> Value {
        let factor = match self.reduction_factor.fract() == 0.0 {
            true => json!(self.reduction_factor as u64),
            false => json!(self.reduction_factor),
        };
        json!({
            "adapter_residual_before_ln": false,
            "cross_adapter": false,
            "dropout": 0.0,
            "factorized_phm_W": true,
            "factorized_phm_rule": false,
            "hypercomplex_nonlinearity": "glorot-uniform",
            "init_weights": "bert",
            "init_weights_seed": null,
            "inv_adapter": null,
            "inv_adapter_reduction_factor": null,
            "is_parallel": false,
            "learn_phm": true,
            "leave_out": [],
            "ln_after": false,
            "ln_before": false,
            "mh_adapter": self.mh_adapter,
            "non_linearity": self.non_linearity.word(),
            "original_ln_after": true,
            "original_ln_before": self.original_ln_before,
            "output_adapter": self.output_adapter,
            "phm_bias": true,
            "phm_c_init": "normal",
            "phm_dim": 4,
            "phm_init_range": 0.0001,
            "phm_layer": false,
            "phm_rank": 1,
            "reduction_factor": factor,
            "residual_before_ln": true,
            "scaling": self.scaling,
            "shared_W_phm": false,
            "shared_phm_rule": true,
            "stochastic_depth": 0.0,
            "use_gating": false,
        })
    }

    /// Writes `to_json` to `path`, indented as the package does.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.to_json())?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Whether an adapter_config.json is one of the package `adapters`: PEFT's have a `peft_type`, these keep what the adapter is in `config`.
pub(super) fn is_of_adapters(object: &Map<String, Value>) -> bool {
    !object.contains_key("peft_type") && object.get("config").is_some_and(Value::is_object)
}

/// Refuses a folder in which the package left a pickle and no safetensors.
pub(super) fn refuse_pickle(folder: &Path) -> Result<()> {
    if folder.join(PICKLE).exists() && !folder.join(BOTTLENECK_WEIGHTS_FILE).exists() {
        bail!(
            "{} holds the adapter as a pickle, {PICKLE}, which is never loaded: load it in Python and save it again with \
             `model.save_adapter(folder, name, use_safetensors=True)`",
            folder.display()
        );
    }
    Ok(())
}

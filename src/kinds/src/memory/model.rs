//! The widths of a model, and what a step of its training takes.

use std::path::Path;

use engine::contract::Summary;
use formats::choice::OUTPUT;
use formats::config::bert;
use formats::peft::ALL_LINEAR;
use formats::{BertParts, ModelConfig, patterns};
use serde_json::Value;

use super::chosen::{Chosen, Rule, Task};
use super::{ADAPTER, CONFIG, CONFIGURATION, MASKED_HEAD, QUANTIZED};

/// Rows of logits that exist at a time: `ml::loss::CHUNK`.
pub const CHUNK: u64 = 256;
/// The packed rows of a product, at most (`kBlockBytes` in `src/ml/cpp/gemm.cpp`).
const PACKED: f64 = (32 << 20) as f64;
/// Panels and sums of the threads of a product (`kSumsBytes` and `kPass` there).
const PANELS: f64 = (4 << 20) as f64;
/// Bytes of a number in f32.
pub(super) const F32: f64 = 4.0;

/// A linear layer.
pub(super) struct Linear {
    pub name: String,
    pub out: f64,
    pub input: f64,
}

impl Linear {
    pub fn values(&self) -> f64 {
        self.out * self.input
    }

    /// Whether a pattern of `lora` or `quantize` means it.
    pub fn matches(&self, pattern: &str) -> bool {
        pattern == ALL_LINEAR || patterns::matches(pattern, &self.name)
    }
}

/// The word of a summary for bottleneck adapters.
pub(super) const BOTTLENECK: &str = "bottleneck";

/// Whether tensors of the model are codes.
pub(super) fn holds_codes(known: &Summary) -> bool {
    let stored = known.get("stored").and_then(Value::as_object);
    stored.is_some_and(|stored| stored.contains_key("U8") || stored.contains_key("I8"))
}

/// An adapter of any kind.
pub(super) struct Adapter {
    /// Numbers in it.
    trainable: f64,
    rank: f64,
    drops: bool,
    /// Bytes that its part of a layer keeps of a token, where it is a part of its own.
    pub kept: f64,
}

/// The widths of a model, in numbers; all in f64, which no product of them leaves.
pub(super) struct Model {
    config: ModelConfig,
    /// What an encoder has beside its layers.
    parts: BertParts,
    pub layers: f64,
    pub hidden: f64,
    pub heads: f64,
    pub query: f64,
    pub key: f64,
    pub inner: f64,
    pub vocabulary: f64,
    pub parameters: f64,
    /// Bytes of one number of weights and activations.
    pub size: f64,
    /// Bytes of the weights, where they are quantized.
    packed: Option<f64>,
    pub adapter: Option<Adapter>,
}

impl Model {
    pub fn of(known: &Summary) -> Option<Self> {
        let text = known.get(CONFIGURATION)?.to_string();
        let config = ModelConfig::from_json(&text, Path::new(CONFIG)).ok()?;
        let number = |name: &str| known.get(name).and_then(Value::as_f64);
        let has = |name: &str| known.get(name).and_then(Value::as_bool) == Some(true);
        let is = |name: &str| known.get(name).is_some_and(Value::is_string);
        let parts = BertParts {
            pooler: has("pooler"),
            head: has(MASKED_HEAD),
        };
        let [layers, hidden, heads, query, key, inner] = match &config {
            ModelConfig::Llama(config) => [
                config.num_hidden_layers,
                config.hidden_size,
                config.num_attention_heads,
                config.query_width(),
                config.key_value_width(),
                config.intermediate_size,
            ],
            ModelConfig::Bert(config) => [
                config.num_hidden_layers,
                config.hidden_size,
                config.num_attention_heads,
                config.hidden_size,
                config.hidden_size,
                config.intermediate_size,
            ],
        }
        .map(|width| width as f64);
        let adapter = match known.get(ADAPTER).filter(|word| word.is_string()) {
            // What it reads, and its inside before and after the non-linearity.
            Some(word) if word == BOTTLENECK => Some(Adapter {
                trainable: number("trainable")?,
                rank: number("width")?,
                drops: false,
                kept: number("modules")? / layers * F32 * (hidden + 2.0 * number("width")?),
            }),
            Some(_) => Some(Adapter {
                trainable: number("trainable")?,
                // Only an adapter that may drop inputs has a rank that counts.
                rank: number("r").unwrap_or(1.0),
                drops: number("dropout").is_some_and(|p| p > 0.0),
                kept: 0.0,
            }),
            None => None,
        };
        Some(Self {
            parts,
            layers,
            hidden,
            heads,
            query,
            key,
            inner,
            vocabulary: config.vocab_size() as f64,
            parameters: match &config {
                ModelConfig::Llama(_) => number("parameters")?,
                ModelConfig::Bert(config) => config.parameter_count(parts) as f64,
            },
            size: match known.get("dtype")? == "f32" {
                true => F32,
                false => 2.0,
            },
            packed: match holds_codes(known) || is(QUANTIZED) {
                true => Some(number("bytes")?),
                false => None,
            },
            adapter,
            config,
        })
    }

    /// Numbers of a token's embedding, and of its keys and values in all layers.
    pub fn of_token(&self) -> (f64, f64) {
        (self.hidden, 2.0 * self.layers * self.key)
    }

    /// The linear layers of the blocks.
    pub fn linears(&self) -> Vec<Linear> {
        let shapes = self.config.linear_shapes().into_iter();
        shapes
            .map(|(name, out, input)| Linear {
                name,
                out: out as f64,
                input: input as f64,
            })
            .collect()
    }

    /// The parameters: names and numbers.
    pub fn tensors(&self) -> Vec<(String, f64)> {
        let shapes = match &self.config {
            ModelConfig::Llama(config) => config.tensor_shapes(),
            ModelConfig::Bert(config) => config.tensor_shapes(self.parts),
        };
        let shapes = shapes.into_iter();
        shapes
            .map(|(name, shape)| (name, shape.iter().map(|extent| *extent as f64).product()))
            .collect()
    }

    /// Whether logits of words are made with the parameter of this name, by more than the states.
    pub fn makes_logits(&self, name: &str) -> bool {
        match &self.config {
            ModelConfig::Llama(config) if config.tie_word_embeddings => {
                name == "model.embed_tokens.weight"
            }
            ModelConfig::Llama(_) => name == OUTPUT,
            // The bias is a column of the matrix then.
            ModelConfig::Bert(_) => {
                name == "bert.embeddings.word_embeddings.weight"
                    || name.strip_prefix(bert::MASKED_HEAD) == Some(".bias")
            }
        }
    }

    /// Bytes of the step of a training on `tokens` tokens at once; none where quantized weights would have to be trained, and where the model
    /// is not one for the task.
    pub fn step(
        &self,
        tokens: f64,
        checkpointing: bool,
        task: &Task,
        chosen: &Chosen,
        rule: &Rule,
    ) -> Option<f64> {
        if self.adapter.is_none() && self.packed.is_some() && !chosen.alone {
            return None;
        }
        let weights = self.packed.unwrap_or(self.parameters * self.size);
        // A layer below all that is trained keeps nothing.
        let layers = self.adapter.as_ref().map_or(chosen.layers, |_| self.layers);
        let head = self.adapter.is_none() && chosen.head;
        let (program, activations) = match (&self.config, task) {
            (ModelConfig::Llama(_), Task::Words | Task::Scores | Task::Texts { .. }) => self
                .language(
                    tokens,
                    checkpointing,
                    layers,
                    matches!(task, Task::Words),
                    head,
                ),
            (ModelConfig::Bert(_), Task::Masked { .. } | Task::Texts { .. }) => {
                self.encoder(tokens, checkpointing, layers, task, head)
            }
            _ => return None,
        };
        // The optimizer's turn comes when the activations are gone.
        let update = match self.adapter {
            Some(_) => 0.0,
            None => chosen.largest * rule.passing,
        };
        Some(program + weights + self.trained(chosen, rule) + activations.max(update))
    }

    /// What belongs to trained numbers from the first step on. Gradients are of the type of their parameters and stay between steps, since they
    /// are filled with zeros and not freed; moments are in f32, and weights in 16 bits are rounded from a master in f32. An adapter and a head
    /// of the stage's own are in f32 themselves.
    fn trained(&self, chosen: &Chosen, rule: &Rule) -> f64 {
        let own = F32 + F32 + rule.moments;
        let rest = match &self.adapter {
            Some(adapter) => adapter.trainable * own,
            None => {
                let master = if self.size < F32 { F32 } else { 0.0 };
                chosen.numbers * (self.size + master + rule.moments)
            }
        };
        rest + chosen.own * own
    }

    /// Where the adapter of a layer drops numbers of what its linears read: those numbers, in all of them. Of the numbers of an adapter about a
    /// half are its A, `rank` for each input.
    pub fn dropped(&self) -> Option<f64> {
        let adapter = self.adapter.as_ref().filter(|adapter| adapter.drops)?;
        Some(adapter.trainable / adapter.rank.max(1.0) / 2.0 / self.layers)
    }

    /// What a product takes for a moment: its rows as they are packed, at most `depth` numbers of a token, and what its threads hold.
    pub fn products(&self, tokens: f64, depth: f64) -> f64 {
        (F32 * tokens * depth).min(PACKED) + PANELS
    }

    /// A chunk of logits of so many rows and, where the matrix that makes them is trained, its gradient in f32, that times the outer one, and the
    /// same rounded.
    pub fn logits(&self, rows: f64, width: f64, head: bool) -> f64 {
        let rounded = if self.size < F32 { self.size } else { 0.0 };
        let gradient = match head {
            true => self.vocabulary * width * (2.0 * F32 + rounded),
            false => 0.0,
        };
        F32 * rows.min(CHUNK as f64) * self.vocabulary + gradient
    }
}

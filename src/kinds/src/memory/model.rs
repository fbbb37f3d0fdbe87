//! The widths of a model, and what a step of its training takes.

use engine::contract::Summary;
use serde_json::Value;

use super::{ADAPTER, QUANTIZED};

/// Rows of logits that exist at a time: `ml::loss::CHUNK`.
pub const CHUNK: u64 = 256;
/// The program with libtorch and a tokenizer, before a model is loaded.
const PROGRAM: f64 = 350e6;
/// What the allocator holds for a byte of activations in use: it keeps freed memory, whose pieces do not fit each other. Of the step of
/// `make bench-sft` 0.80 GB are activations by the sum below, and 0.99 GB what was measured less all the rest.
const SLACK: f64 = 1.2;
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

    /// Whether a pattern of `lora` or `quantize` means it: some whole parts of its name, in which `*` stands for anything.
    pub fn matches(&self, pattern: &str) -> bool {
        let parts: Vec<&str> = self.name.split('.').collect();
        let mut runs =
            (0..parts.len()).flat_map(|from| (from + 1..=parts.len()).map(move |to| from..to));
        pattern == "all-linear" || runs.any(|run| covers(pattern, &parts[run].join(".")))
    }
}

/// The word of a summary for bottleneck adapters.
pub(super) const BOTTLENECK: &str = "bottleneck";

/// Whether the text is the pattern with something for each `*`.
fn covers(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(end)
}

/// Whether tensors of the model are codes.
pub(super) fn holds_codes(known: &Summary) -> bool {
    let stored = known.get("stored").and_then(Value::as_object);
    stored.is_some_and(|stored| stored.contains_key("U8") || stored.contains_key("I8"))
}

/// An adapter of any kind.
struct Adapter {
    /// Numbers in it.
    trainable: f64,
    rank: f64,
    drops: bool,
    /// Bytes that its part of a layer keeps of a token, where it is a part of its own.
    kept: f64,
}

/// What a training without an adapter chooses of its model (`ml::choice`).
pub(super) struct Chosen {
    /// Trained numbers.
    numbers: f64,
    /// Numbers of the largest trained tensor.
    largest: f64,
    /// Layers that keep something for the way back: the lowest trained one and all above it.
    layers: f64,
    /// Whether the matrix that makes logits is trained.
    head: bool,
}

/// What an optimizer keeps of a trained number, and what it makes of it for a moment (`ml::optimizer`).
pub(super) struct Rule {
    /// Bytes of moments for each trained number.
    moments: f64,
    /// Bytes for each number of the tensor whose step it is.
    passing: f64,
}

impl Rule {
    /// By the word of the field `optimizer`.
    pub fn of(word: Option<&str>) -> Self {
        match word {
            // Codes, and scales in f32 of 256 values. In its step a tensor's weight and gradient are copied as f32, the codes of both moments as
            // they are, and the new weight is copied back.
            Some("adamw_8bit") => Self {
                moments: 2.0 * (1.0 + F32 / 256.0),
                passing: 3.0 * F32 + 2.0,
            },
            // Of a matrix a row and a column. In its step the gradient is in f32, its squares, the change, and the change scaled down.
            Some("adafactor") => Self {
                moments: 0.0,
                passing: 4.0 * F32,
            },
            // One pass over the memory; but the norm of the gradients takes each of them in f32.
            _ => Self {
                moments: 2.0 * F32,
                passing: F32,
            },
        }
    }
}

/// The widths of a model, in numbers; all in f64, which no product of them leaves.
pub(super) struct Model {
    layers: f64,
    hidden: f64,
    heads: f64,
    query: f64,
    key: f64,
    inner: f64,
    vocabulary: f64,
    pub parameters: f64,
    /// Bytes of one number of weights and activations.
    pub size: f64,
    /// Bytes of the weights, where they are quantized.
    packed: Option<f64>,
    adapter: Option<Adapter>,
}

impl Model {
    pub fn of(known: &Summary) -> Option<Self> {
        // The sums below are those of a Llama's step.
        if known.get("architecture").is_some_and(|name| name == "bert") {
            return None;
        }
        let number = |name: &str| known.get(name).and_then(Value::as_f64);
        let heads = known.get("heads")?;
        let (query_heads, key_heads) = (heads.get(0)?.as_f64()?, heads.get(1)?.as_f64()?);
        let hidden = number("hidden")?;
        let head = number("head_dim").unwrap_or(hidden / query_heads);
        let is = |name: &str| known.get(name).is_some_and(Value::is_string);
        let packed = holds_codes(known) || is(QUANTIZED);
        let adapter = match known.get(ADAPTER).filter(|word| word.is_string()) {
            // What it reads, and its inside before and after the non-linearity.
            Some(word) if word == BOTTLENECK => Some(Adapter {
                trainable: number("trainable")?,
                rank: number("width")?,
                drops: false,
                kept: number("modules")? / number("layers")?.max(1.0)
                    * F32
                    * (hidden + 2.0 * number("width")?),
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
            layers: number("layers")?,
            hidden,
            heads: query_heads,
            query: query_heads * head,
            key: key_heads * head,
            inner: number("intermediate")?,
            vocabulary: number("vocabulary")?,
            parameters: number("parameters")?,
            size: if known.get("dtype")? == "f32" {
                F32
            } else {
                2.0
            },
            packed: match packed {
                true => Some(number("bytes")?),
                false => None,
            },
            adapter,
        })
    }

    /// Numbers of a token's embedding, and of its keys and values in all layers.
    pub fn of_token(&self) -> (f64, f64) {
        (self.hidden, 2.0 * self.layers * self.key)
    }

    /// The linear layers of the blocks.
    pub fn linears(&self) -> Vec<Linear> {
        let parts = [
            ("self_attn.q_proj", self.query, self.hidden),
            ("self_attn.k_proj", self.key, self.hidden),
            ("self_attn.v_proj", self.key, self.hidden),
            ("self_attn.o_proj", self.hidden, self.query),
            ("mlp.gate_proj", self.inner, self.hidden),
            ("mlp.up_proj", self.inner, self.hidden),
            ("mlp.down_proj", self.hidden, self.inner),
        ];
        let layers = 0..self.layers as usize;
        layers
            .flat_map(|layer| {
                parts.map(|(part, out, input)| Linear {
                    name: format!("model.layers.{layer}.{part}"),
                    out,
                    input,
                })
            })
            .collect()
    }

    /// Bytes of the step of a training on `tokens` tokens at once; none where quantized weights would have to be trained.
    pub fn step(
        &self,
        tokens: f64,
        checkpointing: bool,
        logits: bool,
        chosen: &Chosen,
        rule: &Rule,
    ) -> Option<f64> {
        if self.adapter.is_none() && self.packed.is_some() {
            return None;
        }
        let weights = self.packed.unwrap_or(self.parameters * self.size);
        let kept = self.kept(tokens);
        let state = tokens * self.hidden * self.size;
        // A layer below all that is trained keeps nothing.
        let layers = self.adapter.as_ref().map_or(chosen.layers, |_| self.layers);
        let (behind, inside) = match checkpointing {
            true => (layers * state, kept + self.inside(tokens)),
            false => (layers * kept, self.inside(tokens)),
        };
        let head = self.adapter.is_none() && chosen.head;
        let activations = behind + inside.max(self.loss(tokens, logits, head));
        // The optimizer's turn comes when the activations are gone.
        let update = match self.adapter {
            Some(_) => 0.0,
            None => chosen.largest * rule.passing,
        };
        let most = (SLACK * activations).max(update);
        Some(PROGRAM + weights + self.trained(chosen, rule) + most)
    }

    /// What belongs to trained numbers from the first step on. Gradients are of the type of their parameters and stay between steps, since they
    /// are filled with zeros and not freed; moments are in f32, and weights in 16 bits are rounded from a master in f32. An adapter is in f32
    /// itself.
    fn trained(&self, chosen: &Chosen, rule: &Rule) -> f64 {
        match &self.adapter {
            Some(adapter) => adapter.trainable * (F32 + F32 + rule.moments),
            None => {
                let master = if self.size < F32 { F32 } else { 0.0 };
                chosen.numbers * (self.size + master + rule.moments)
            }
        }
    }

    /// What the field `train` chooses; what is named by patterns counts as everything, since names are not known here.
    pub fn chosen(&self, train: Option<&Value>, logits: bool) -> Chosen {
        let norms = |layers: f64| (2.0 * layers + 1.0) * self.hidden;
        let words = self.vocabulary * self.hidden;
        match train {
            Some(Value::String(word)) if word == "norms" => Chosen {
                numbers: norms(self.layers),
                largest: self.hidden,
                layers: self.layers,
                head: false,
            },
            Some(Value::String(word)) if word == "head" => {
                // A head for rewards or labels is a few rows, and no logits are made of it.
                let numbers = if logits { words } else { self.hidden };
                Chosen {
                    numbers,
                    largest: numbers,
                    layers: 0.0,
                    head: logits,
                }
            }
            Some(Value::Object(by)) => {
                let count = by.get("last_layers").and_then(Value::as_f64);
                let count = count.unwrap_or(self.layers).min(self.layers);
                let linear: f64 = self.linears().iter().map(Linear::values).sum();
                // A head that is not the embedding.
                let head = (self.parameters - linear - norms(self.layers) - words).max(0.0);
                Chosen {
                    numbers: linear * count / self.layers.max(1.0) + norms(count) + head,
                    largest: head.max(self.inner * self.hidden),
                    layers: count,
                    head: head > 0.0,
                }
            }
            _ => Chosen {
                numbers: self.parameters,
                largest: words.max(self.inner * self.hidden),
                layers: self.layers,
                head: true,
            },
        }
    }

    /// What a layer keeps for the way back: the states before attention and before the feed-forward part, q and k after their
    /// rotation, v, what attention gave with a sum for each head, gate and up. Norms, and silu(gate) · up, are made again.
    fn kept(&self, tokens: f64) -> f64 {
        let numbers = 2.0 * (self.hidden + self.query + self.key + self.inner);
        let adapter = self.adapter.as_ref().map_or(0.0, |adapter| adapter.kept);
        let own = tokens * (self.size * numbers + F32 * self.heads + adapter);
        let Some(adapter) = self.adapter.as_ref().filter(|adapter| adapter.drops) else {
            return own;
        };
        // Each adapter then keeps its own input in f32, and what comes before a product is kept, too.
        // Of the numbers of an adapter about a half are its A, `rank` for each input.
        let inputs = adapter.trainable / adapter.rank.max(1.0) / 2.0 / self.layers.max(1.0);
        let made = inputs.min(2.0 * self.hidden + self.inner);
        own + tokens * (F32 * inputs + self.size * made)
    }

    /// What the way back through a layer takes beside: the product that is made again and the gradients of both its factors, or the
    /// gradients of keys and values in f32 for each query head; and the rows of a product as they are packed.
    fn inside(&self, tokens: f64) -> f64 {
        let forward = self.size * (4.0 * self.inner + 2.0 * self.hidden);
        let attention =
            2.0 * F32 * self.query + self.size * (2.0 * self.query + 2.0 * self.key + self.hidden);
        tokens * forward.max(attention) + self.products(tokens)
    }

    fn products(&self, tokens: f64) -> f64 {
        let depth = (2.0 * self.inner).max(self.query + 2.0 * self.key);
        (F32 * tokens * depth).min(PACKED) + PANELS
    }

    /// The last states and their gradient in f32, a chunk of logits; where the head is trained (`head`) its gradient in f32, that times the outer
    /// one, and the same rounded. The gradient of an embedding that is the head, too, comes when the activations of all layers are gone.
    fn loss(&self, tokens: f64, logits: bool, head: bool) -> f64 {
        let states = tokens * self.hidden * (2.0 * self.size + F32);
        if !logits {
            return states;
        }
        let chunk = F32 * tokens.min(CHUNK as f64) * self.vocabulary;
        let rounded = if self.size < F32 { self.size } else { 0.0 };
        let gradient = match head {
            true => self.vocabulary * self.hidden * (2.0 * F32 + rounded),
            false => 0.0,
        };
        states + chunk + gradient + self.products(tokens)
    }
}

//! What tensors a Llama configuration asks for, and whether a model file has them.

use super::LlamaConfig;
use super::stored::{ModelTensor, named};
use crate::quantized;
use crate::tensors::{Stored, Weights};
use anyhow::{Result, bail};
use std::collections::HashSet;

/// The name of the head of a reward model, as transformers' `LlamaForSequenceClassification` has it.
pub const REWARD_HEAD: &str = "score.weight";
/// The name of the head for words.
const WORD_HEAD: &str = "lm_head.weight";
/// Problems listed in one error; more are counted.
const MAXIMUM_LISTED: usize = 12;

impl LlamaConfig {
    /// Width of the query projection's output.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the key and of the value projection's output.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The linears inside the blocks: module path, outputs, inputs; in the order of the layers. The
    /// output head is not among them (see `head_shape`).
    pub fn linear_shapes(&self) -> Vec<(String, usize, usize)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let parts = [
            ("self_attn.q_proj", self.query_width(), hidden),
            ("self_attn.k_proj", self.key_value_width(), hidden),
            ("self_attn.v_proj", self.key_value_width(), hidden),
            ("self_attn.o_proj", hidden, self.query_width()),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ];
        let layers = 0..self.num_hidden_layers;
        layers
            .flat_map(|layer| {
                parts.map(|(part, out, input)| (format!("model.layers.{layer}.{part}"), out, input))
            })
            .collect()
    }

    /// The output head's module path, outputs and inputs; with tied embeddings its weight is the embedding's.
    pub fn head_shape(&self) -> (String, usize, usize) {
        ("lm_head".to_owned(), self.vocab_size, self.hidden_size)
    }

    /// The tensors that a model file must hold: names and row-major shapes.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, vocabulary) = (self.hidden_size, self.vocab_size);
        let mut shapes = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![vocabulary, hidden],
            ),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        for layer in 0..self.num_hidden_layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                shapes.push((format!("model.layers.{layer}.{norm}.weight"), vec![hidden]));
            }
        }
        for (module, out, input) in self.linear_shapes() {
            let bias = if module.contains(".mlp.") {
                self.mlp_bias
            } else {
                self.attention_bias
            };
            if bias {
                shapes.push((format!("{module}.bias"), vec![out]));
            }
            shapes.push((format!("{module}.weight"), vec![out, input]));
        }
        if !self.tie_word_embeddings {
            shapes.push((WORD_HEAD.to_owned(), vec![vocabulary, hidden]));
        }
        shapes
    }

    /// The tensors of a reward model of this shape: a head of one row in the place of that for words.
    pub fn reward_model_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = self.tensor_shapes();
        shapes.retain(|(name, _)| name != WORD_HEAD);
        shapes.push((REWARD_HEAD.to_owned(), vec![1, self.hidden_size]));
        shapes
    }

    /// Numbers in all tensors; a tied head is counted once.
    pub fn parameter_count(&self) -> u64 {
        count(&self.tensor_shapes())
    }

    /// Numbers in all tensors of a reward model.
    pub fn reward_model_parameter_count(&self) -> u64 {
        count(&self.reward_model_shapes())
    }

    /// Compares with a model file: every expected tensor is there with its shape, and nothing else
    /// is. All problems are named in one error.
    pub fn check(&self, weights: &Weights) -> Result<()> {
        self.compare(weights, self.tensor_shapes())
    }

    /// The same with the file of a reward model.
    pub fn check_reward_model(&self, weights: &Weights) -> Result<()> {
        self.compare(weights, self.reward_model_shapes())
    }

    fn compare(&self, weights: &Weights, shapes: Vec<(String, Vec<usize>)>) -> Result<()> {
        // Old files store the rotary frequencies, and some the tied head a second time: both are computed from the rest, so they carry
        // nothing.
        let redundant = |name: &str, shape: &[usize]| {
            name.ends_with(".self_attn.rotary_emb.inv_freq")
                || (name == WORD_HEAD
                    && self.tie_word_embeddings
                    && shape == [self.vocab_size, self.hidden_size])
        };
        let way_out = "Take the config and the weights of the same model.";
        compare(weights, &self.tensors_from(shapes), &redundant, way_out)
    }

    /// Tensors of these shapes under their own names.
    pub(super) fn tensors_from(&self, shapes: Vec<(String, Vec<usize>)>) -> Vec<ModelTensor> {
        named(shapes, &self.linear_shapes(), |_| None)
    }
}

/// Compares the tensors of a model with its file: all are there, in their shapes and as numbers of weights or soundly quantized, and no
/// others but those that are `redundant` (name, shape). One error names all problems, with a way out where nothing is damaged.
pub(super) fn compare(
    weights: &Weights,
    tensors: &[ModelTensor],
    redundant: &dyn Fn(&str, &[usize]) -> bool,
    way_out: &str,
) -> Result<()> {
    let mut problems = Vec::new();
    let mut damaged = false;
    let mut known = HashSet::new();
    for tensor in tensors {
        let (name, shape) = (&tensor.stored, &tensor.shape);
        known.insert(name.clone());
        let Some(info) = weights.get(name) else {
            problems.push(format!("{name} is missing"));
            continue;
        };
        if let ([out, input], true) = (&shape[..], tensor.linear) {
            match quantized::sound_linear(weights, name, [*out, *input]) {
                Ok(quantized::Linear::Dense) => {}
                Ok(stored) => {
                    known.extend(quantized::own_parts(name, &stored));
                    continue;
                }
                Err(error) => {
                    damaged = true;
                    // The outermost part names file and weight, which this error does itself.
                    let why = error.chain().skip(1).map(ToString::to_string);
                    let why: Vec<String> = why.collect();
                    problems.push(format!("{name}: {}", why.join(": ")));
                    known.extend(quantized::parts(name));
                    continue;
                }
            }
        }
        if info.shape != *shape {
            problems.push(format!(
                "{name} has the shape {:?}, expected {shape:?}",
                info.shape
            ));
        } else if let Stored::Plain(dtype) = info.stored
            && !dtype.is_float()
        {
            problems.push(format!("{name} holds {dtype}, not numbers of a weight"));
        }
    }
    for info in weights.infos() {
        if !known.contains(&info.name) && !redundant(&info.name, &info.shape) {
            problems.push(format!(
                "{} of shape {:?} is not expected",
                info.name, info.shape
            ));
        }
    }
    let way_out = match damaged {
        true => {
            "Take the config and the weights of the same model; if they are, fetch the files again, or quantize the model again."
        }
        false => way_out,
    };
    report(weights, problems, way_out)
}

/// One error of all problems, if there are any; more than a dozen are counted.
fn report(weights: &Weights, mut problems: Vec<String>, way_out: &str) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(MAXIMUM_LISTED);
    problems.truncate(MAXIMUM_LISTED);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    let paths = weights.paths();
    let shown = paths
        .first()
        .map_or("?".into(), |path| path.to_string_lossy());
    bail!(
        "{shown}: the weights do not fit the config:\n  {}\n{way_out}",
        problems.join("\n  ")
    )
}

/// Numbers in tensors of these shapes.
pub(super) fn count(shapes: &[(String, Vec<usize>)]) -> u64 {
    let product = |shape: &Vec<usize>| shape.iter().map(|&n| n as u64).product::<u64>();
    shapes.iter().map(|(_, shape)| product(shape)).sum()
}

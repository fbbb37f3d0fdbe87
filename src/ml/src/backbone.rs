//! A model under a head of its own: token ids in, a state for each token out, whichever architecture makes it.

use crate::adapter;
use crate::bert::Bert;
use crate::kv_cache::Segments;
use crate::linear::{Linear, Pass};
use crate::llama::{Inputs, Llama};
use crate::place::Place;
use anyhow::{Result, bail};
use tch::Tensor;

/// A model of either architecture.
#[derive(Debug)]
pub enum Backbone {
    /// A language model: a token's state knows what stands before it.
    Llama(Llama),
    /// An encoder: a token's state knows the whole row.
    Bert(Bert),
}

impl Backbone {
    /// Where it lives.
    pub fn place(&self) -> Place {
        match self {
            Backbone::Llama(model) => model.place,
            Backbone::Bert(model) => model.place,
        }
    }

    /// The width of a state.
    pub fn hidden_size(&self) -> usize {
        match self {
            Backbone::Llama(model) => model.config.hidden_size,
            Backbone::Bert(model) => model.config.hidden_size,
        }
    }

    /// The longest row in tokens.
    pub fn positions(&self) -> usize {
        match self {
            Backbone::Llama(model) => model.positions(Pass::eval()),
            Backbone::Bert(model) => model.config.max_position_embeddings,
        }
    }

    /// Whether a token's state knows what stands behind it.
    pub fn is_encoder(&self) -> bool {
        matches!(self, Backbone::Bert(_))
    }

    /// Token ids of rows, one after the other, as `[tokens]`, i64. An id outside of the vocabulary is an error.
    pub fn tokens(&self, ids: &[i64]) -> Result<Tensor> {
        match self {
            Backbone::Llama(model) => model.tokens(ids),
            Backbone::Bert(model) => model.tokens(ids),
        }
    }

    /// The last states `[tokens, hidden]`, after the final norm. Errors for rows longer than [`Backbone::positions`].
    pub fn hidden(&self, pass: Pass, tokens: &Tensor, segments: &Segments) -> Result<Tensor> {
        match self {
            Backbone::Llama(model) => model.hidden(pass, Inputs::Tokens(tokens), segments, None),
            Backbone::Bert(model) => model.hidden(pass, tokens, segments),
        }
    }

    /// BERT's pooler, `tanh(W x + b)`, on states `[rows, hidden]` of first tokens. An error where there is none.
    pub fn pooled(&self, states: &Tensor) -> Result<Tensor> {
        match self {
            Backbone::Llama(_) => bail!(
                "the model is a Llama, which has no pooler: take the state of the last token, or the mean of all"
            ),
            Backbone::Bert(model) => model.pooled(states),
        }
    }

    /// Values of quantized weights, which are no parameters.
    pub fn packed_values(&self) -> usize {
        match self {
            Backbone::Llama(model) => model.packed_values(),
            Backbone::Bert(model) => model.packed_values(),
        }
    }

    /// In training, computes the inside of each layer again in the backward pass instead of keeping it.
    pub fn set_checkpointing(&mut self, on: bool) {
        match self {
            Backbone::Llama(model) => model.checkpointing = on,
            Backbone::Bert(model) => model.checkpointing = on,
        }
    }

    /// Every linear that may have an adapter, in the order of the layers.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Backbone::Llama(model) => model.linears(),
            Backbone::Bert(model) => model.all_linears(),
        }
    }

    /// The tensors of its adapter, f32, under the names of its files; none without one. With `classified` the names are those under a
    /// classifier's head: see [`Bert::adapter_tensors`].
    pub fn adapter_tensors(&self, classified: bool) -> Vec<(String, Tensor)> {
        match self {
            Backbone::Llama(model) => adapter::stored(model),
            Backbone::Bert(model) => model.adapter_tensors(classified),
        }
    }
}

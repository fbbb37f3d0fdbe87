//! Llama (Touvron et al. 2023) with grouped queries, in the paper's order, under Hugging Face's names.

mod block;

use crate::attend::Heads;
use crate::bottleneck::Bottleneck;
use crate::kv_cache::{KvCache, Segments};
use crate::linear::{self, Linear, Pass};
use crate::norm::Norm;
use crate::params::Params;
use crate::place::Place;
use crate::rope::Rope;
use crate::soft::Soft;
use crate::source::{Builder, Files, Shared, Source, check_unread};
use crate::torch;
use anyhow::{Result, bail, ensure};
use block::{Before, Block};
use formats::config::LlamaConfig;
use formats::peft::Behind;
use formats::tensors::Weights;
use std::collections::BTreeSet;
use tch::{Kind, Tensor};

/// What goes into the first layer.
#[derive(Clone, Copy, Debug)]
pub enum Inputs<'a> {
    /// Token ids: `[tokens]`, i64.
    Tokens(&'a Tensor),
    /// Embeddings: `[tokens, hidden]`.
    Embeddings(&'a Tensor),
}

/// The model.
#[derive(Debug)]
pub struct Llama {
    /// The shape.
    pub config: LlamaConfig,
    /// Where it lives.
    pub place: Place,
    /// In training keep only what goes into each layer, and compute its inside again in the backward pass: the same numbers.
    pub checkpointing: bool,
    /// Virtual tokens before every row, attached after loading.
    pub soft: Option<Soft>,
    embed_tokens: Tensor,
    layers: Vec<Block>,
    norm: Norm,
    /// Only without tied embeddings.
    lm_head: Option<Tensor>,
    rope: Rope,
}

impl Llama {
    /// Reads the weights; every parameter is added to `params` under its name, frozen.
    pub fn load(
        config: &LlamaConfig,
        weights: &Weights,
        place: Place,
        params: &mut Params,
    ) -> Result<Llama> {
        let mut source = Files {
            weights,
            kind: place.kind,
            read: BTreeSet::new(),
        };
        // A reward model has a head of its own in the place of the one for words.
        let scored = weights.get(crate::reward::HEAD).is_some();
        let tied =
            config.tie_word_embeddings || (scored && weights.get("lm_head.weight").is_none());
        let config = LlamaConfig {
            tie_word_embeddings: tied,
            ..config.clone()
        };
        let model = Llama::build(&config, place, params, &mut source)?;
        check_unread(weights, &source.read, tied)?;
        Ok(model)
    }

    /// A model on the very weights of `other`, whose parameters are `theirs`: nothing may train them.
    pub fn beside(other: &Llama, theirs: &Params, params: &mut Params) -> Result<Llama> {
        let linears = other.linears().into_iter();
        let mut source = Shared {
            params: theirs,
            linears: linears
                .map(|linear| (format!("{}.weight", linear.name), &linear.weight))
                .collect(),
        };
        Llama::build(&other.config, other.place, params, &mut source)
    }

    /// Values of quantized weights, which are no parameters.
    pub fn packed_values(&self) -> usize {
        linear::packed_values(&self.linears())
    }

    /// True if a linear's weight is quantized.
    pub fn is_quantized(&self) -> bool {
        self.linears()
            .iter()
            .any(|linear| linear.weight.is_quantized())
    }

    /// Builds the model from any source of tensors.
    pub fn build(
        config: &LlamaConfig,
        place: Place,
        params: &mut Params,
        source: &mut dyn Source,
    ) -> Result<Llama> {
        let extent = |value: usize| i64::try_from(value);
        let hidden = extent(config.hidden_size)?;
        let words = extent(config.vocab_size)?;
        ensure!(
            config.num_key_value_heads > 0
                && config
                    .num_attention_heads
                    .is_multiple_of(config.num_key_value_heads),
            "{} query heads cannot share {} key heads evenly",
            config.num_attention_heads,
            config.num_key_value_heads
        );
        let mut builder = Builder {
            source,
            place,
            params,
        };
        let embed_tokens = builder.tensor("model.embed_tokens.weight", &[words, hidden])?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            layers.push(Block::build(&mut builder, config, index)?);
        }
        let norm = builder.norm("model.norm", hidden, config.rms_norm_eps)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(builder.tensor("lm_head.weight", &[words, hidden])?),
        };
        Ok(Llama {
            config: config.clone(),
            place,
            checkpointing: false,
            soft: None,
            embed_tokens,
            layers,
            norm,
            lm_head,
            rope: Rope::new(config, place.device)?,
        })
    }

    fn heads(&self) -> Heads {
        Heads {
            query: self.config.num_attention_heads as i64,
            key: self.config.num_key_value_heads as i64,
            size: self.config.head_dim as i64,
        }
    }

    /// An empty cache for `rows` sequences of at most `capacity` tokens, virtual ones not counted.
    pub fn cache(&self, rows: usize, capacity: usize) -> KvCache {
        let width = self.config.num_key_value_heads * self.config.head_dim;
        let room = (self.virtual_tokens(Pass::eval()), capacity);
        KvCache::new(self.layers.len(), rows, room, width, self.place)
    }

    /// How many virtual tokens stand before every row.
    fn virtual_tokens(&self, pass: Pass) -> usize {
        let soft = self.soft(pass).map_or(0, Soft::tokens);
        usize::try_from(soft).unwrap_or(0)
    }

    /// The virtual tokens, if this pass uses them.
    fn soft(&self, pass: Pass) -> Option<&Soft> {
        self.soft.as_ref().filter(|_| pass.adapters)
    }

    /// The most tokens of a row: the model's positions, less those of virtual tokens.
    pub fn positions(&self, pass: Pass) -> usize {
        let all = self.config.max_position_embeddings;
        all.saturating_sub(self.virtual_tokens(pass))
    }

    /// Rows of token ids, one after the other, as a tensor.
    pub fn tokens(&self, ids: &[i64]) -> Result<Tensor> {
        let words = self.config.vocab_size as i64;
        if let Some(id) = ids.iter().find(|id| !(0..words).contains(id)) {
            bail!(
                "the token {id} is not in the vocabulary of {words}: the tokenizer belongs to another model"
            );
        }
        Ok(Tensor::from_slice(ids).to_device(self.place.device))
    }

    /// The last hidden states `[tokens, hidden]`, after the final norm, of the new tokens of each row. With a cache the
    /// segments are those of `KvCache::segments`, the new tokens join it, and there is no gradient.
    pub fn hidden(
        &self,
        pass: Pass,
        inputs: Inputs<'_>,
        segments: &Segments,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let given = match inputs {
            Inputs::Tokens(tokens) => tokens.size()[0],
            Inputs::Embeddings(embeddings) => embeddings.size()[0],
        };
        ensure!(
            given == segments.tokens(),
            "{given} tokens were given for rows of {} in all",
            segments.tokens()
        );
        let longest = segments.filled.iter().copied().max().unwrap_or(0);
        let positions = i64::try_from(self.positions(pass))?;
        ensure!(
            longest <= positions,
            "a row of {longest} tokens is longer than the model's {positions} positions{}: lower `max_length`, leave longer rows out, or take \
             a model with more positions",
            match self.virtual_tokens(pass) {
                0 => String::new(),
                count => format!(" behind {count} virtual tokens"),
            }
        );
        let mut x = match inputs {
            Inputs::Tokens(tokens) => {
                Tensor::f_embedding(&self.embed_tokens, tokens, -1, false, false)?
            }
            Inputs::Embeddings(embeddings) => embeddings.shallow_clone(),
        };
        let soft = self.soft(pass);
        let count = soft.map_or(0, Soft::tokens);
        if let Some(cache) = cache.as_deref_mut() {
            let fresh = cache.begin(segments, count)?;
            if let Some(soft) = soft {
                soft.begin(self, pass, cache, &fresh)?;
            }
        }
        // Embeddings of virtual tokens go through the layers as a row that all others see; in a cache they have been there already.
        let ahead = match soft {
            Some(Soft::Prompt(embeddings)) if cache.is_none() => {
                x = Tensor::f_cat(&[&embeddings.f_to_kind(x.kind())?, &x], 0)?;
                count
            }
            _ => 0,
        };
        let moved = match soft {
            Some(_) => Some(segments.behind(count, ahead > 0)?),
            None => None,
        };
        let rows = moved.as_ref().unwrap_or(segments);
        x = self.through(pass, x, rows, soft, cache.as_deref_mut())?;
        if let Some(cache) = cache {
            cache.advance(segments);
        }
        self.norm.forward(&x.f_narrow(0, ahead, given)?)
    }

    /// `x [tokens, hidden]` through every layer.
    fn through(
        &self,
        pass: Pass,
        mut x: Tensor,
        segments: &Segments,
        soft: Option<&Soft>,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let heads = self.heads();
        let (width, kind) = (heads.key * heads.size, x.kind());
        let again = pass.train && self.checkpointing && cache.is_none();
        for (index, layer) in self.layers.iter().enumerate() {
            // A layer below everything that is trained has no way back, and keeps nothing as it is.
            let prefix = soft.map(Soft::tensor).filter(|t| t.requires_grad());
            let anchor = || {
                layer
                    .anchor(&x)
                    .or_else(|| prefix.map(Tensor::shallow_clone))
            };
            x = match again.then(anchor).flatten() {
                Some(anchor) => {
                    let (layer, rope) = (layer.shallow_clone(), self.rope.shallow_clone());
                    let (segments, soft) =
                        (segments.shallow_clone(), soft.map(Soft::shallow_clone));
                    let run = move |x: &Tensor| {
                        let before = Before::rows(soft.as_ref(), index, width, kind)?;
                        layer.forward(heads, &rope, pass, x, &segments, before)
                    };
                    torch::checkpoint(&x, &anchor, Box::new(run))?
                }
                None => {
                    let before = match cache.as_deref_mut() {
                        Some(cache) => Before::Cached(index, cache),
                        None => Before::rows(soft, index, width, kind)?,
                    };
                    layer.forward(heads, &self.rope, pass, &x, segments, before)?
                }
            };
        }
        Ok(x)
    }

    /// The matrix that turns hidden states into logits, `[vocabulary, hidden]`.
    pub fn head(&self) -> &Tensor {
        match &self.lm_head {
            Some(head) => head,
            None => &self.embed_tokens,
        }
    }

    /// Logits in f32 (f64 stays) of hidden states `[rows, hidden]`: for few rows; losses go through `loss`.
    pub fn logits(&self, pass: Pass, hidden: &Tensor) -> Result<Tensor> {
        let head = self.head();
        let wide = if hidden.kind() == Kind::Double {
            hidden.shallow_clone()
        } else {
            hidden.to_kind(Kind::Float)
        };
        if torch::fused_linear(&wide, &torch::Stored::dense(head)) {
            let map = torch::Map {
                weight: torch::Stored::dense(head),
                bias: None,
                change: None,
            };
            return Ok(
                torch::linear(&wide, torch::Before::Nothing, &[map], pass.decode)?.remove(0),
            );
        }
        if torch::multiplies_bf16(hidden) && head.kind() == hidden.kind() {
            return Ok(hidden.f_linear(head, None::<&Tensor>)?.to_kind(Kind::Float));
        }
        Ok(wide.f_linear(&head.to_kind(wide.kind()), None::<&Tensor>)?)
    }

    /// Every linear but the output head, in the order of the layers: where adapters go.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.layers
            .iter_mut()
            .flat_map(Block::linears_mut)
            .collect()
    }

    /// The same, to read.
    pub fn linears(&self) -> Vec<&Linear> {
        self.layers.iter().flat_map(Block::linears).collect()
    }

    /// The bottleneck adapters, in the order of the layers.
    pub fn bottlenecks(&self) -> Vec<&Bottleneck> {
        self.layers.iter().flat_map(Block::bottlenecks).collect()
    }

    /// Where each layer may have one.
    pub(crate) fn bottlenecks_mut(&mut self) -> Vec<[(Behind, &mut Option<Bottleneck>); 2]> {
        self.layers.iter_mut().map(Block::bottlenecks_mut).collect()
    }
}

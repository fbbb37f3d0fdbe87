//! BERT (Devlin et al. 2018, arXiv 1810.04805): the encoder, its pooler and its head for masked tokens, in the paper's order, under
//! Hugging Face's names. A text is one sentence, A. There is no dropout: what a configuration says of it is left out, as for Llama.

use crate::adapter;
use crate::attend::{self, Heads};
use crate::kv_cache::Segments;
use crate::layer_norm::LayerNorm;
use crate::linear::{self, Input, Linear, Pass, Weight};
use crate::loss::{self, CrossEntropy};
use crate::params::Params;
use crate::place::Place;
use crate::random::Stream;
use crate::source::{Builder, Files, Source};
use crate::torch;
use anyhow::{Context, Result, bail, ensure};
use formats::config::bert::{MASKED_HEAD, OUTSIDE, bare_name, stored_name};
use formats::config::{BertConfig, BertParts};
use formats::tensors::Weights;
use std::collections::BTreeSet;
use tch::{Kind, Tensor};

/// The deviation of a fresh head's matrix, as BERT begins.
const DEVIATION: f64 = 0.02;

/// One layer: attention and a feed-forward part, each followed by a residual sum and its norm.
#[derive(Debug)]
struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl Block {
    /// The same layer, held once.
    fn shallow_clone(&self) -> Block {
        Block {
            query: self.query.shallow_clone(),
            key: self.key.shallow_clone(),
            value: self.value.shallow_clone(),
            attention_output: self.attention_output.shallow_clone(),
            attention_norm: self.attention_norm.shallow_clone(),
            intermediate: self.intermediate.shallow_clone(),
            output: self.output.shallow_clone(),
            output_norm: self.output_norm.shallow_clone(),
        }
    }

    fn linears(&self) -> [&Linear; 6] {
        [
            &self.query,
            &self.key,
            &self.value,
            &self.attention_output,
            &self.intermediate,
            &self.output,
        ]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 6] {
        [
            &mut self.query,
            &mut self.key,
            &mut self.value,
            &mut self.attention_output,
            &mut self.intermediate,
            &mut self.output,
        ]
    }

    /// A tensor with a gradient: x itself, or any trained number of the layer.
    fn anchor(&self, x: &Tensor) -> Option<Tensor> {
        let norms = [&self.attention_norm, &self.output_norm];
        let norms = norms
            .into_iter()
            .flat_map(|norm| [&norm.weight, &norm.bias]);
        let linears = self.linears().into_iter().flat_map(Linear::tensors);
        std::iter::once(x)
            .chain(norms)
            .chain(linears)
            .find(|tensor| tensor.requires_grad())
            .map(Tensor::shallow_clone)
    }

    /// `x [tokens, hidden]` → the same shape.
    fn forward(&self, heads: Heads, pass: Pass, x: &Tensor, segments: &Segments) -> Result<Tensor> {
        let qkv = Linear::group(pass, Input::Plain(x), [&self.query, &self.key, &self.value])?;
        let seen = attend::attend_whole(heads, &qkv[0], &qkv[1], &qkv[2], segments)?;
        drop(qkv);
        let seen = self.attention_output.forward(pass, Input::Plain(&seen))?;
        let x = self.attention_norm.forward(&(seen + x))?;
        let inner = self.intermediate.forward(pass, Input::Plain(&x))?;
        let inner = inner.f_gelu("none")?;
        let out = self.output.forward(pass, Input::Plain(&inner))?;
        self.output_norm.forward(&(out + &x))
    }
}

/// What turns the state of a token into logits: a dense layer, GELU and a norm; then the word embedding and a bias.
#[derive(Debug)]
struct MaskedHead {
    dense: Linear,
    norm: LayerNorm,
    /// `[vocabulary]`.
    bias: Tensor,
}

impl MaskedHead {
    fn build(builder: &mut Builder<'_>, config: &BertConfig) -> Result<MaskedHead> {
        let hidden = i64::try_from(config.hidden_size)?;
        let at = |name: &str| format!("{MASKED_HEAD}.{name}");
        Ok(MaskedHead {
            dense: builder.linear(&at("transform.dense"), hidden, hidden, true)?,
            norm: builder.layer_norm(&at("transform.LayerNorm"), hidden, config.layer_norm_eps)?,
            bias: builder.tensor(&at("bias"), &[i64::try_from(config.vocab_size)?])?,
        })
    }

    fn transformed(&self, pass: Pass, states: &Tensor) -> Result<Tensor> {
        let inner = self.dense.forward(pass, Input::Plain(states))?;
        self.norm.forward(&inner.f_gelu("none")?)
    }
}

/// The encoder.
#[derive(Debug)]
pub struct Bert {
    /// The shape.
    pub config: BertConfig,
    /// Where it lives.
    pub place: Place,
    /// In training keep only what goes into each layer, and compute its inside again in the backward pass: the same numbers.
    pub checkpointing: bool,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor,
    embeddings_norm: LayerNorm,
    layers: Vec<Block>,
    pooler: Option<Box<Linear>>,
    head: Option<Box<MaskedHead>>,
}

/// The files of an encoder, whatever their names are.
struct Named<'a>(Files<'a>);

impl Source for Named<'_> {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let stored = stored_name(self.0.weights, name);
        self.0.tensor(stored.as_deref().unwrap_or(name), shape)
    }

    fn weight(&mut self, name: &str, shape: [i64; 2]) -> Result<Weight> {
        let stored = stored_name(self.0.weights, name);
        self.0.weight(stored.as_deref().unwrap_or(name), shape)
    }
}

impl Bert {
    /// Reads the weights; every parameter is added to `params` under its name in `BertForMaskedLM`, frozen. Quantized weights stay packed and
    /// are no parameters.
    pub fn load(
        config: &BertConfig,
        weights: &Weights,
        place: Place,
        params: &mut Params,
    ) -> Result<Bert> {
        let parts = config.check(weights)?;
        let mut source = Named(Files {
            weights,
            kind: place.kind,
            read: BTreeSet::new(),
        });
        let model = Bert::build(config, parts, place, params, &mut source)?;
        // In libtorch's attention a row of few tokens whose scores are no numbers comes out as zeros, so nobody would see it later.
        for (name, param) in params.iter() {
            ensure!(
                param.tensor.isfinite().all().int64_value(&[]) == 1,
                "the tensor {name:?} holds numbers that are not finite: the file is damaged, or the model's training diverged"
            );
        }
        Ok(model)
    }

    /// Builds the encoder with these parts from any source of tensors.
    pub fn build(
        config: &BertConfig,
        parts: BertParts,
        place: Place,
        params: &mut Params,
        source: &mut dyn Source,
    ) -> Result<Bert> {
        let extent = |value: usize| i64::try_from(value);
        let (hidden, inner) = (
            extent(config.hidden_size)?,
            extent(config.intermediate_size)?,
        );
        let eps = config.layer_norm_eps;
        let mut builder = Builder {
            source,
            place,
            params,
        };
        let mut embeddings = |name: &str, rows: usize| -> Result<Tensor> {
            let name = format!("bert.embeddings.{name}_embeddings.weight");
            builder.tensor(&name, &[i64::try_from(rows)?, hidden])
        };
        let word_embeddings = embeddings("word", config.vocab_size)?;
        let position_embeddings = embeddings("position", config.max_position_embeddings)?;
        let token_type_embeddings = embeddings("token_type", config.type_vocab_size)?;
        let embeddings_norm = builder.layer_norm("bert.embeddings.LayerNorm", hidden, eps)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let at = |name: &str| format!("bert.encoder.layer.{i}.{name}");
            let mut key = builder.linear(&at("attention.self.key"), hidden, hidden, true)?;
            // It adds the same to all scores of a query, so that nothing depends on it: its gradient is zero, and what rounding makes of
            // that must not reach an optimizer, which would divide it by its size.
            key.bias = key.bias.map(|bias| bias.detach());
            layers.push(Block {
                query: builder.linear(&at("attention.self.query"), hidden, hidden, true)?,
                key,
                value: builder.linear(&at("attention.self.value"), hidden, hidden, true)?,
                attention_output: builder.linear(
                    &at("attention.output.dense"),
                    hidden,
                    hidden,
                    true,
                )?,
                attention_norm: builder.layer_norm(
                    &at("attention.output.LayerNorm"),
                    hidden,
                    eps,
                )?,
                intermediate: builder.linear(&at("intermediate.dense"), hidden, inner, true)?,
                output: builder.linear(&at("output.dense"), inner, hidden, true)?,
                output_norm: builder.layer_norm(&at("output.LayerNorm"), hidden, eps)?,
            });
        }
        let pooler = match parts.pooler {
            true => {
                let linear = builder.linear(OUTSIDE[0], hidden, hidden, true)?;
                Some(Box::new(linear))
            }
            false => None,
        };
        let head = match parts.head {
            true => Some(Box::new(MaskedHead::build(&mut builder, config)?)),
            false => None,
        };
        Ok(Bert {
            config: config.clone(),
            place,
            checkpointing: false,
            word_embeddings,
            position_embeddings,
            token_type_embeddings,
            embeddings_norm,
            layers,
            pooler,
            head,
        })
    }

    /// Whether there is a head for masked tokens.
    pub fn has_masked_head(&self) -> bool {
        self.head.is_some()
    }

    /// Puts a fresh head for masked tokens on an encoder that has none: the matrix from N(0, 0.02²), drawn from the stream
    /// `init cls.predictions.transform.dense.weight` of the seed, the norm 1 and 0, every bias 0. Its parameters are frozen.
    pub fn attach_masked_head(&mut self, seed: u64, params: &mut Params) -> Result<()> {
        ensure!(
            self.head.is_none(),
            "the encoder has a head for masked tokens already"
        );
        let mut fresh = |name: &str, shape: &[i64]| -> Result<Tensor> {
            let count = usize::try_from(shape.iter().product::<i64>())?;
            let mut numbers = vec![0f32; count];
            if name.ends_with("dense.weight") {
                Stream::new(seed, &format!("init {name}")).fill_normal(&mut numbers);
                for number in &mut numbers {
                    *number = (f64::from(*number) * DEVIATION) as f32;
                }
            } else if name.ends_with("LayerNorm.weight") {
                numbers.fill(1.0);
            }
            Ok(Tensor::f_from_slice(&numbers)?.f_view(shape)?)
        };
        let mut builder = Builder {
            source: &mut fresh,
            place: self.place,
            params,
        };
        let head = MaskedHead::build(&mut builder, &self.config)?;
        self.head = Some(Box::new(head));
        Ok(())
    }

    fn heads(&self) -> Heads {
        let heads = self.config.num_attention_heads as i64;
        Heads {
            query: heads,
            key: heads,
            size: self.config.head_dim() as i64,
        }
    }

    /// Rows of token ids, one after the other, as a tensor.
    pub fn tokens(&self, ids: &[i64]) -> Result<Tensor> {
        let words = self.config.vocab_size as i64;
        if let Some(id) = ids.iter().find(|id| !(0..words).contains(id)) {
            bail!(
                "the token {id} is not in the vocabulary of {words}: the tokenizer belongs to another model"
            );
        }
        Ok(Tensor::f_from_slice(ids)?.f_to_device(self.place.device)?)
    }

    /// The last states `[tokens, hidden]` of each row, which sees itself in both directions and nothing else.
    pub fn hidden(&self, pass: Pass, tokens: &Tensor, segments: &Segments) -> Result<Tensor> {
        ensure!(
            tokens.numel() as i64 == segments.tokens(),
            "{} tokens were given for rows of {} in all",
            tokens.numel(),
            segments.tokens()
        );
        let longest = segments.filled.iter().copied().max().unwrap_or(0);
        let positions = self.config.max_position_embeddings as i64;
        ensure!(
            longest <= positions,
            "a row of {longest} tokens is longer than the encoder's {positions} positions: lower `max_length`, or take an encoder with more \
             positions"
        );
        let look = |table: &Tensor, at: &Tensor| Tensor::f_embedding(table, at, -1, false, false);
        let words = look(&self.word_embeddings, tokens)?;
        let sentence = self.token_type_embeddings.f_select(0, 0)?;
        let places = look(&self.position_embeddings, &segments.positions)?;
        let mut x = self
            .embeddings_norm
            .forward(&(words.f_add(&sentence)? + places))?;
        let heads = self.heads();
        let again = pass.train && self.checkpointing;
        for layer in &self.layers {
            // A layer below everything that is trained has no way back, and keeps nothing as it is.
            let anchor = again.then(|| layer.anchor(&x)).flatten();
            x = match &anchor {
                Some(anchor) => {
                    let (layer, segments) = (layer.shallow_clone(), segments.shallow_clone());
                    let run = move |x: &Tensor| layer.forward(heads, pass, x, &segments);
                    torch::checkpoint(&x, anchor, Box::new(run))?
                }
                None => layer.forward(heads, pass, &x, segments)?,
            };
        }
        Ok(x)
    }

    /// `tanh(W x + b)` of states `[rows, hidden]`, those of the first token of each text: what the prediction of the next sentence was
    /// trained on. An error where there is no pooler.
    pub fn pooled(&self, states: &Tensor) -> Result<Tensor> {
        let pooler = self.pooler.as_ref().context(
            "the encoder has no pooler (`bert.pooler.dense`), as one that was saved for masked tokens only: take the state of the first \
             token as it is, or the mean of all",
        )?;
        let pooled = pooler.forward(Pass::eval(), Input::Plain(states))?;
        Ok(pooled.f_tanh()?)
    }

    fn masked_head(&self) -> Result<&MaskedHead> {
        let head = self.head.as_deref();
        head.context("the encoder has no head for masked tokens (`cls.predictions`)")
    }

    /// Logits `[rows, vocabulary]` of the tokens under states `[rows, hidden]`, f32 (f64 stays): for few rows; losses go through
    /// `masked_cross_entropy`.
    pub fn masked_logits(&self, pass: Pass, states: &Tensor) -> Result<Tensor> {
        let head = self.masked_head()?;
        let inner = head.transformed(pass, states)?;
        let kind = match inner.kind() {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        let (inner, words) = (inner.to_kind(kind), self.word_embeddings.to_kind(kind));
        Ok(inner.f_linear(&words, Some(&head.bias.to_kind(kind)))?)
    }

    /// The cross entropy of `targets [rows]` under states `[rows, hidden]`, in chunks of `chunk` rows of logits.
    pub fn masked_cross_entropy(
        &self,
        pass: Pass,
        states: &Tensor,
        targets: &Tensor,
        chunk: i64,
    ) -> Result<CrossEntropy> {
        let head = self.masked_head()?;
        let inner = head.transformed(pass, states)?;
        // The bias is one more column of the embedding, and of the states a one.
        let one = inner.f_ones_like()?.f_narrow(1, 0, 1)?;
        let inner = Tensor::f_cat(&[inner, one], 1)?;
        let bias = head.bias.f_unsqueeze(1)?;
        let words = Tensor::f_cat(&[&self.word_embeddings, &bias], 1)?;
        loss::cross_entropy(&inner, &words, targets, chunk)
    }

    /// Every linear of the layers, in their order: where adapters go that are made here.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.layers
            .iter_mut()
            .flat_map(Block::linears_mut)
            .collect()
    }

    /// The same with those outside of the layers, the pooler's and that of the head for masked tokens: where an adapter from elsewhere may be.
    pub fn all_linears_mut(&mut self) -> Vec<&mut Linear> {
        let pooler = self.pooler.as_deref_mut();
        let head = self.head.as_deref_mut().map(|head| &mut head.dense);
        let layers = self.layers.iter_mut().flat_map(Block::linears_mut);
        layers.chain(pooler).chain(head).collect()
    }

    /// The linears of the layers, to read.
    pub fn linears(&self) -> Vec<&Linear> {
        self.layers.iter().flat_map(Block::linears).collect()
    }

    /// All linears, to read.
    pub fn all_linears(&self) -> Vec<&Linear> {
        let head = self.head.as_deref().map(|head| &head.dense);
        let layers = self.layers.iter().flat_map(Block::linears);
        layers.chain(self.pooler.as_deref()).chain(head).collect()
    }

    /// Values of quantized weights, which are no parameters.
    pub fn packed_values(&self) -> usize {
        linear::packed_values(&self.all_linears())
    }

    /// The tensors of its adapter, f32, under the names that its files have: those of PEFT on the class that transformers opens the encoder with,
    /// which begin with `bert.` unless it is an encoder alone, without a head for masked tokens. With `classified` they are those under a
    /// classifier's head.
    pub fn adapter_tensors(&self, classified: bool) -> Vec<(String, Tensor)> {
        let bare = !classified && self.head.is_none();
        adapter::stored_as(&self.all_linears(), |module| match bare {
            true => bare_name(module),
            false => module,
        })
    }
}

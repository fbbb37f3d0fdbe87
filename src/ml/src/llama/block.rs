//! One layer of Llama: attention and the feed-forward part, each on a normed residual stream.

use crate::attend::{self, Heads};
use crate::bottleneck::{Bottleneck, joined};
use crate::kv_cache::{KvCache, Segments};
use crate::linear::{Input, Linear, Pass};
use crate::norm::Norm;
use crate::rope::Rope;
use crate::soft::Soft;
use crate::source::Builder;
use anyhow::Result;
use formats::config::LlamaConfig;
use formats::peft::Behind;
use tch::{Kind, Tensor};

/// What the new tokens of a layer see before their own row.
pub(super) enum Before<'a> {
    /// Nothing.
    Nothing,
    /// Keys and values `[virtual tokens, width]`, the same before every row.
    Virtual(Tensor, Tensor),
    /// What lies in the layer of this index of a cache.
    Cached(usize, &'a mut KvCache),
}

impl Before<'_> {
    /// What virtual tokens are to rows without a cache.
    pub(super) fn rows(
        soft: Option<&Soft>,
        index: usize,
        width: i64,
        kind: Kind,
    ) -> Result<Before<'static>> {
        let Some(soft) = soft else {
            return Ok(Before::Nothing);
        };
        Ok(match soft.layer(index, width, kind)? {
            Some((keys, values)) => Before::Virtual(keys, values),
            None => Before::Nothing,
        })
    }
}

/// One layer.
#[derive(Debug)]
pub(super) struct Block {
    input_layernorm: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// What is attached behind attention.
    attention_adapter: Option<Bottleneck>,
    post_attention_layernorm: Norm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    /// What is attached behind the feed-forward part.
    output_adapter: Option<Bottleneck>,
}

impl Block {
    /// The layer of this index.
    pub(super) fn build(
        builder: &mut Builder<'_>,
        config: &LlamaConfig,
        index: usize,
    ) -> Result<Block> {
        let extent = |value: usize| i64::try_from(value);
        let hidden = extent(config.hidden_size)?;
        let inner = extent(config.intermediate_size)?;
        let query = extent(config.num_attention_heads)? * extent(config.head_dim)?;
        let key = extent(config.num_key_value_heads)? * extent(config.head_dim)?;
        let eps = config.rms_norm_eps;
        let (bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        let at = |name: &str| format!("model.layers.{index}.{name}");
        Ok(Block {
            input_layernorm: builder.norm(&at("input_layernorm"), hidden, eps)?,
            q_proj: builder.linear(&at("self_attn.q_proj"), hidden, query, bias)?,
            k_proj: builder.linear(&at("self_attn.k_proj"), hidden, key, bias)?,
            v_proj: builder.linear(&at("self_attn.v_proj"), hidden, key, bias)?,
            o_proj: builder.linear(&at("self_attn.o_proj"), query, hidden, bias)?,
            attention_adapter: None,
            post_attention_layernorm: builder.norm(&at("post_attention_layernorm"), hidden, eps)?,
            gate_proj: builder.linear(&at("mlp.gate_proj"), hidden, inner, mlp_bias)?,
            up_proj: builder.linear(&at("mlp.up_proj"), hidden, inner, mlp_bias)?,
            down_proj: builder.linear(&at("mlp.down_proj"), inner, hidden, mlp_bias)?,
            output_adapter: None,
        })
    }

    /// The same layer, held once.
    pub(super) fn shallow_clone(&self) -> Block {
        let same = |adapter: &Option<Bottleneck>| adapter.as_ref().map(Bottleneck::shallow_clone);
        Block {
            input_layernorm: self.input_layernorm.shallow_clone(),
            q_proj: self.q_proj.shallow_clone(),
            k_proj: self.k_proj.shallow_clone(),
            v_proj: self.v_proj.shallow_clone(),
            o_proj: self.o_proj.shallow_clone(),
            attention_adapter: same(&self.attention_adapter),
            post_attention_layernorm: self.post_attention_layernorm.shallow_clone(),
            gate_proj: self.gate_proj.shallow_clone(),
            up_proj: self.up_proj.shallow_clone(),
            down_proj: self.down_proj.shallow_clone(),
            output_adapter: same(&self.output_adapter),
        }
    }

    /// Its linears, in order.
    pub(super) fn linears(&self) -> [&Linear; 7] {
        [
            &self.q_proj,
            &self.k_proj,
            &self.v_proj,
            &self.o_proj,
            &self.gate_proj,
            &self.up_proj,
            &self.down_proj,
        ]
    }

    /// The same, to change.
    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [
            &mut self.q_proj,
            &mut self.k_proj,
            &mut self.v_proj,
            &mut self.o_proj,
            &mut self.gate_proj,
            &mut self.up_proj,
            &mut self.down_proj,
        ]
    }

    /// Its bottleneck adapters.
    pub(super) fn bottlenecks(&self) -> impl Iterator<Item = &Bottleneck> {
        let slots = [&self.attention_adapter, &self.output_adapter];
        slots.into_iter().flatten()
    }

    /// Where it may have one.
    pub(super) fn bottlenecks_mut(&mut self) -> [(Behind, &mut Option<Bottleneck>); 2] {
        [
            (Behind::Attention, &mut self.attention_adapter),
            (Behind::FeedForward, &mut self.output_adapter),
        ]
    }

    /// A tensor with a gradient: x itself, or any trained number of the layer.
    pub(super) fn anchor(&self, x: &Tensor) -> Option<Tensor> {
        let norms = [&self.input_layernorm, &self.post_attention_layernorm];
        let linears = self.linears().into_iter().flat_map(Linear::tensors);
        std::iter::once(x)
            .chain(norms.map(|norm| &norm.weight))
            .chain(linears)
            .chain(self.bottlenecks().flat_map(Bottleneck::tensors))
            .find(|tensor| tensor.requires_grad())
            .map(Tensor::shallow_clone)
    }

    /// `x [tokens, hidden]` → the same shape.
    pub(super) fn forward(
        &self,
        heads: Heads,
        rope: &Rope,
        pass: Pass,
        x: &Tensor,
        segments: &Segments,
        before: Before<'_>,
    ) -> Result<Tensor> {
        let qkv = Linear::group(
            pass,
            Input::Normed(&self.input_layernorm, x),
            [&self.q_proj, &self.k_proj, &self.v_proj],
        )?;
        let q = rope.forward(&qkv[0], &segments.positions, heads.query)?;
        let k = rope.forward(&qkv[1], &segments.positions, heads.key)?;
        let seen = match before {
            Before::Cached(index, cache) => {
                let cached = cache.append(index, &k, &qkv[2], segments)?;
                attend::attend_cached(heads, &q, cached, segments)?
            }
            Before::Virtual(keys, values) => {
                let keys = Tensor::f_cat(&[&keys, &k], 0)?;
                let values = Tensor::f_cat(&[&values, &qkv[2]], 0)?;
                attend::attend(heads, &q, &keys, &values, segments)?
            }
            Before::Nothing => attend::attend(heads, &q, &k, &qkv[2], segments)?,
        };
        drop((q, k, qkv));
        let made = self.o_proj.forward(pass, Input::Plain(&seen))?;
        let x = joined(pass, x, made, self.attention_adapter.as_ref())?;
        let inner = Linear::group(
            pass,
            Input::Normed(&self.post_attention_layernorm, &x),
            [&self.gate_proj, &self.up_proj],
        )?;
        let inner = Input::Gated {
            gate: &inner[0],
            up: &inner[1],
        };
        let made = self.down_proj.forward(pass, inner)?;
        joined(pass, &x, made, self.output_adapter.as_ref())
    }
}

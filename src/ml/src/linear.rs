//! The linear map: how its weight is stored, and an adapter that changes it.

use crate::lora::Lora;
use crate::norm::Norm;
use crate::place::HOST;
pub use crate::quantized::Weight;
use crate::torch;
use anyhow::Result;
use tch::{Kind, Tensor};

/// What a forward is for: the first argument of every forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Training: dropout is on.
    pub train: bool,
    /// The adapters count; without them the model is its base.
    pub adapters: bool,
    /// One new token in each row of a cache: the kernel that reads weights where they lie.
    pub decode: bool,
    /// What the dropout masks of this forward are drawn from.
    pub draw: u64,
    /// Tokens of the same draw that went through before this forward: a token's mask does not depend on the micro-batch it is in.
    pub first: usize,
}

impl Pass {
    /// A training forward whose dropout masks are drawn from `draw`.
    pub fn train(draw: u64) -> Pass {
        Pass {
            train: true,
            adapters: true,
            decode: false,
            draw,
            first: 0,
        }
    }

    /// A forward without dropout, with adapters.
    pub fn eval() -> Pass {
        Pass {
            train: false,
            adapters: true,
            decode: false,
            draw: 0,
            first: 0,
        }
    }

    /// The same for what follows these many tokens of the same draw.
    pub fn after(self, tokens: usize) -> Pass {
        Pass {
            first: tokens,
            ..self
        }
    }

    /// The same without adapters: the base model.
    pub fn without_adapters(self) -> Pass {
        Pass {
            adapters: false,
            ..self
        }
    }
}

/// What a linear gets; whatever comes before its product is made again in the backward pass instead of being kept.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// `x [rows, in]`.
    Plain(&'a Tensor),
    /// A norm of x.
    Normed(&'a Norm, &'a Tensor),
    /// `silu(gate) · up`.
    Gated {
        /// `[rows, in]`.
        gate: &'a Tensor,
        /// `[rows, in]`.
        up: &'a Tensor,
    },
}

impl Input<'_> {
    /// The x that is multiplied.
    pub fn made(self) -> Result<Tensor> {
        match self {
            Input::Plain(x) => Ok(x.shallow_clone()),
            Input::Normed(norm, x) => norm.forward(x),
            Input::Gated { gate, up } if torch::fused(gate) => torch::silu_mul(gate, up),
            Input::Gated { gate, up } => Ok(gate.silu() * up),
        }
    }
}

/// `y = x · weight^T + bias`, perhaps changed by an adapter.
#[derive(Debug)]
pub struct Linear {
    /// The module's path, for instance `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The stored weight.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// The change, attached after loading.
    pub adapter: Option<Lora>,
}

impl Linear {
    /// A linear without an adapter.
    pub fn new(name: &str, weight: Weight, bias: Option<Tensor>) -> Linear {
        Linear {
            name: name.to_owned(),
            weight,
            bias,
            adapter: None,
        }
    }

    /// The same linear, held once.
    pub fn shallow_clone(&self) -> Linear {
        Linear {
            name: self.name.clone(),
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            adapter: self.adapter.as_ref().map(Lora::shallow_clone),
        }
    }

    /// Every tensor that may be trained.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let weight = match &self.weight {
            Weight::Dense(weight) => Some(weight),
            _ => None,
        };
        let adapter = self.adapter.iter().flat_map(|lora| [&lora.down, &lora.up]);
        weight
            .into_iter()
            .chain(&self.bias)
            .chain(adapter)
            .collect()
    }

    /// The extents of x and y.
    pub fn extents(&self) -> (i64, i64) {
        let (out, input) = self.weight.extents();
        (input, out)
    }

    /// `weight`, which stands for this linear's own, with the adapter's change in it, in the type of the change; none without an
    /// adapter.
    pub fn merged(&self, weight: &Tensor) -> Option<Tensor> {
        self.adapter.as_ref().map(|lora| lora.merged(weight))
    }

    /// The adapter, if this pass uses it.
    fn adapter(&self, pass: Pass) -> Option<&Lora> {
        self.adapter.as_ref().filter(|_| pass.adapters)
    }

    /// `x [rows, in]` → `[rows, out]`.
    pub fn forward(&self, pass: Pass, input: Input<'_>) -> Result<Tensor> {
        Ok(Linear::group(pass, input, [self])?.remove(0))
    }

    /// Several linears of the same input, which is then read and kept once.
    pub fn group<const N: usize>(
        pass: Pass,
        input: Input<'_>,
        linears: [&Linear; N],
    ) -> Result<Vec<Tensor>> {
        let drops = linears
            .iter()
            .any(|linear| linear.adapter(pass).is_some_and(|lora| lora.drops(pass)));
        let (x, before) = match input {
            // With dropout x itself is needed twice, so it is made and kept.
            _ if drops => (input.made()?, torch::Before::Nothing),
            Input::Plain(x) => (x.shallow_clone(), torch::Before::Nothing),
            Input::Normed(norm, x) => (
                x.shallow_clone(),
                torch::Before::Norm(&norm.weight, norm.eps),
            ),
            Input::Gated { gate, up } => (gate.shallow_clone(), torch::Before::Gate(up)),
        };
        let x = &x;
        let fused = linears
            .iter()
            .all(|linear| torch::fused_linear(x, &linear.weight.stored()));
        if !fused {
            let x = &input.made()?;
            return linears.iter().map(|linear| linear.plain(pass, x)).collect();
        }
        let maps = linears.map(|linear| torch::Map {
            weight: linear.weight.stored(),
            bias: linear.bias.as_ref(),
            change: linear
                .adapter(pass)
                .filter(|lora| !lora.drops(pass))
                .map(|lora| (&lora.down, &lora.up, lora.scale)),
        });
        let mut results = torch::linear(x, before, &maps, pass.decode)?;
        for (y, linear) in results.iter_mut().zip(linears) {
            if let Some(lora) = linear.adapter(pass).filter(|lora| lora.drops(pass)) {
                *y = lora.added(pass, &linear.name, x, y)?;
            }
        }
        Ok(results)
    }

    /// The same as a composition of libtorch's operators: other devices, f64, and what the fused one is tested against.
    pub fn plain(&self, pass: Pass, x: &Tensor) -> Result<Tensor> {
        let through_f32 = x.device() == HOST
            && self.weight.kind() == Kind::BFloat16
            && x.kind() == Kind::BFloat16
            && !torch::multiplies_bf16(x);
        let wide = match through_f32 {
            true => x.to_kind(Kind::Float),
            false => x.shallow_clone(),
        };
        let y = match &self.weight {
            Weight::Dense(weight) => {
                wide.f_linear(&weight.to_kind(wide.kind()), None::<&Tensor>)?
            }
            packed => torch::unpacked_product(&wide, &packed.stored())?,
        };
        let y = match &self.bias {
            Some(bias) => y + bias.to_kind(wide.kind()),
            None => y,
        };
        let y = y.to_kind(x.kind());
        match self.adapter(pass) {
            Some(lora) => lora.added(pass, &self.name, x, &y),
            None => Ok(y),
        }
    }
}

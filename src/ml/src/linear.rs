//! The linear map: how its weight is stored, and an adapter that changes it.

use crate::adapter::Adapter;
use crate::ia3::Ia3;
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
    pub adapter: Option<Adapter>,
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
            adapter: self.adapter.as_ref().map(Adapter::shallow_clone),
        }
    }

    /// Every tensor that may be trained.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let weight = match &self.weight {
            Weight::Dense(weight) => Some(weight),
            _ => None,
        };
        let parts = self.adapter.iter().flat_map(Adapter::parts);
        weight
            .into_iter()
            .chain(&self.bias)
            .chain(parts.map(|(_, tensor)| tensor))
            .collect()
    }

    /// The extents of x and y.
    pub fn extents(&self) -> (i64, i64) {
        let (out, input) = self.weight.extents();
        (input, out)
    }

    /// `weight`, which stands for this linear's own, with the adapter's change in it, in the type of the change; none without an
    /// adapter. The change of the bias is `merged_bias`.
    pub fn merged(&self, weight: &Tensor) -> Result<Option<Tensor>> {
        let adapter = self.adapter.as_ref();
        adapter.map(|adapter| adapter.merged(weight)).transpose()
    }

    /// `bias`, which stands for this linear's own, with the adapter's change in it; none where the adapter leaves it as it is, as all do but
    /// (IA)³ on the outputs.
    pub fn merged_bias(&self, bias: &Tensor) -> Result<Option<Tensor>> {
        match &self.adapter {
            Some(Adapter::Ia3(ia3)) if !ia3.feedforward => ia3.merged_bias(bias).map(Some),
            _ => Ok(None),
        }
    }

    /// The adapter, if this pass uses it.
    fn adapter(&self, pass: Pass) -> Option<&Adapter> {
        self.adapter.as_ref().filter(|_| pass.adapters)
    }

    /// The same where it is LoRA.
    pub fn lora(&self, pass: Pass) -> Option<&Lora> {
        match self.adapter(pass) {
            Some(Adapter::Lora(lora)) => Some(lora),
            _ => None,
        }
    }

    /// The same where it is (IA)³ on the inputs.
    fn scales_input(&self, pass: Pass) -> Option<&Ia3> {
        match self.adapter(pass) {
            Some(Adapter::Ia3(ia3)) if ia3.feedforward => Some(ia3),
            _ => None,
        }
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
        if linears.iter().any(|l| l.scales_input(pass).is_some()) {
            // Each has an x of its own.
            let x = input.made()?;
            let forward = |linear: &&Linear| match linear.scales_input(pass) {
                Some(ia3) => {
                    let x = ia3.scaled(&x)?;
                    linear.forward(pass.without_adapters(), Input::Plain(&x))
                }
                None => linear.forward(pass, Input::Plain(&x)),
            };
            return linears.iter().map(forward).collect();
        }
        let drops = linears
            .iter()
            .any(|linear| linear.lora(pass).is_some_and(|lora| lora.drops(pass)));
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
            bias: linear.early_bias(pass),
            change: linear
                .lora(pass)
                .filter(|lora| !lora.drops(pass))
                .map(|lora| (&lora.down, &lora.up, lora.scale)),
        });
        let results = torch::linear(x, before, &maps, pass.decode)?;
        let results = results.into_iter().zip(linears);
        results
            .map(|(y, linear)| match linear.adapter(pass) {
                Some(Adapter::Lora(lora)) if lora.drops(pass) => {
                    linear.after_dropout(pass, lora, x, y)
                }
                Some(Adapter::Lora(lora)) => linear.rescaled(lora, y),
                Some(Adapter::Ia3(ia3)) => ia3.scaled(&y),
                None => Ok(y),
            })
            .collect()
    }

    /// The same as a composition of libtorch's operators: other devices, f64, and what the fused one is tested against.
    pub fn plain(&self, pass: Pass, x: &Tensor) -> Result<Tensor> {
        if let Some(ia3) = self.scales_input(pass) {
            return self.plain(pass.without_adapters(), &ia3.scaled(x)?);
        }
        let y = wide_product(x, &self.weight)?;
        let y = match self.early_bias(pass) {
            Some(bias) => {
                let kind = y.kind();
                y + bias.to_kind(kind)
            }
            None => y,
        };
        let y = y.to_kind(x.kind());
        match self.adapter(pass) {
            Some(Adapter::Lora(lora)) if lora.drops(pass) => self.after_dropout(pass, lora, x, y),
            Some(Adapter::Lora(lora)) => self.rescaled(lora, lora.added(x, &y)?),
            Some(Adapter::Ia3(ia3)) => ia3.scaled(&y),
            None => Ok(y),
        }
    }

    /// The bias, unless DoRA scales the product first.
    fn early_bias(&self, pass: Pass) -> Option<&Tensor> {
        let later = |lora: &Lora| lora.dora.is_some() && !lora.drops(pass);
        self.bias
            .as_ref()
            .filter(|_| !self.lora(pass).is_some_and(later))
    }

    /// What DoRA makes of `x · (weight + change)^T`, the bias included; with plain LoRA that is the result already.
    fn rescaled(&self, lora: &Lora, y: Tensor) -> Result<Tensor> {
        let Some(dora) = &lora.dora else {
            return Ok(y);
        };
        let scaled = y.f_mul(&dora.factor(lora, &self.weight)?)?;
        let scaled = match &self.bias {
            Some(bias) => scaled.f_add(bias)?,
            None => scaled,
        };
        Ok(scaled.to_kind(y.kind()))
    }

    /// y of the whole x with the change of the x that elements are dropped from. DoRA adds, as in PEFT, what its scale makes of that x:
    /// (factor − 1) · x' weight^T + factor · change.
    fn after_dropout(&self, pass: Pass, lora: &Lora, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let x = &lora.dropped(pass, &self.name, x)?;
        let Some(dora) = &lora.dora else {
            return lora.added(x, &y);
        };
        let factor = dora.factor(lora, &self.weight)?;
        let more = product(x, &self.weight)?.f_mul(&(&factor - 1.0))?;
        let more = more.f_add(&lora.change(x)?.f_mul(&factor)?)?;
        Ok(y.f_add(&more)?.to_kind(y.kind()))
    }
}

/// Values of quantized weights among these.
pub(crate) fn packed_values(linears: &[&Linear]) -> usize {
    let packed = linears.iter().filter(|linear| linear.weight.is_quantized());
    packed
        .map(|linear| {
            let (input, output) = linear.extents();
            (input * output) as usize
        })
        .sum()
}

/// `x · weight^T` in the type of x, by whatever is fastest.
pub(crate) fn product(x: &Tensor, weight: &Weight) -> Result<Tensor> {
    if torch::fused_linear(x, &weight.stored()) {
        let map = torch::Map {
            weight: weight.stored(),
            bias: None,
            change: None,
        };
        return Ok(torch::linear(x, torch::Before::Nothing, &[map], false)?.remove(0));
    }
    Ok(wide_product(x, weight)?.to_kind(x.kind()))
}

/// `x · weight^T` by libtorch's operators; in f32 where bf16 is not multiplied natively.
fn wide_product(x: &Tensor, weight: &Weight) -> Result<Tensor> {
    let through_f32 = x.device() == HOST
        && weight.kind() == Kind::BFloat16
        && x.kind() == Kind::BFloat16
        && !torch::multiplies_bf16(x);
    let wide = match through_f32 {
        true => x.to_kind(Kind::Float),
        false => x.shallow_clone(),
    };
    match weight {
        Weight::Dense(weight) => Ok(wide.f_linear(&weight.to_kind(wide.kind()), None::<&Tensor>)?),
        packed => torch::unpacked_product(&wide, &packed.stored()),
    }
}

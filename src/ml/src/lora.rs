//! LoRA: a linear's weight changed by `scale · B A`, attached by module name after loading, kept as PEFT keeps it; with magnitudes it is
//! DoRA.

use crate::adapter::{self, Adapter};
use crate::dora::Dora;
use crate::linear::{Linear, Pass, Weight};
use crate::params::Params;
use crate::place::HOST;
use crate::random::Stream;
use crate::{tensors, torch};
use anyhow::{Result, ensure};
use formats::config::bert::bare_name;
use formats::peft::{AdapterConfig, match_targets, parse_lora_key, stored_key};
use formats::tensors::Weights;
use tch::{Kind, Tensor};

/// The low-rank change of one linear, in f32 (f64 under a f64 model).
#[derive(Debug)]
pub struct Lora {
    /// PEFT's `lora_A.weight`: `[r, in]`.
    pub down: Tensor,
    /// PEFT's `lora_B.weight`: `[out, r]`.
    pub up: Tensor,
    /// alpha / r, or alpha / √r.
    pub scale: f64,
    /// The probability that an element of x is dropped on this path in training.
    pub dropout: f64,
    /// DoRA's magnitudes.
    pub dora: Option<Dora>,
}

impl Lora {
    /// The same change, held once.
    pub fn shallow_clone(&self) -> Lora {
        Lora {
            down: self.down.shallow_clone(),
            up: self.up.shallow_clone(),
            dora: self.dora.as_ref().map(Dora::shallow_clone),
            ..*self
        }
    }

    /// True if this pass drops elements.
    pub fn drops(&self, pass: Pass) -> bool {
        pass.train && self.dropout > 0.0
    }

    /// Its tensors, which may be trained.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let magnitude = self.dora.as_ref().map(|dora| &dora.magnitude);
        [&self.down, &self.up]
            .into_iter()
            .chain(magnitude)
            .collect()
    }

    /// x as this path gets it: with elements dropped in training.
    pub fn dropped(&self, pass: Pass, name: &str, x: &Tensor) -> Result<Tensor> {
        if !self.drops(pass) {
            return Ok(x.shallow_clone());
        }
        // A mask of its own for every linear of every forward, whatever the order of evaluation.
        let seed = Stream::new(pass.draw, &format!("dropout {name}")).next_u64();
        let columns = x.size().last().copied().unwrap_or(1);
        torch::dropout(x, self.dropout, seed, pass.first as i64 * columns)
    }

    /// `scale · (x A^T) B^T`, in the type of the factors, or in bf16 where that is multiplied natively.
    pub fn change(&self, x: &Tensor) -> Result<Tensor> {
        if torch::multiplies_bf16(x) {
            let low = x.f_matmul(&self.down.to_kind(x.kind()).tr())?;
            let up = (&self.up * self.scale).to_kind(x.kind());
            return Ok(low.f_matmul(&up.tr())?);
        }
        let low = x.to_kind(self.down.kind()).f_matmul(&self.down.tr())?;
        Ok(low.f_matmul(&self.up.tr())? * self.scale)
    }

    /// `y + scale · (x A^T) B^T` in the type of y.
    pub fn added(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(y.f_add(&self.change(x)?)?.to_kind(y.kind()))
    }

    /// `weight + scale · B A` in the type of the factors, with DoRA its rows scaled to their magnitudes.
    pub fn merged(&self, weight: &Tensor) -> Result<Tensor> {
        let changed = weight.to_kind(self.down.kind()) + self.up.f_matmul(&self.down)? * self.scale;
        let Some(dora) = &self.dora else {
            return Ok(changed);
        };
        let factor = dora.factor(self, &Weight::Dense(weight.shallow_clone()))?;
        Ok(changed * factor.f_unsqueeze(1)?)
    }

    /// Whether it changes nothing of this weight yet.
    pub fn is_identity(&self, weight: &Weight) -> Result<bool> {
        let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
        if largest(&self.up) != 0.0 {
            return Ok(false);
        }
        match &self.dora {
            None => Ok(true),
            // Lengths that others took are rounded otherwise.
            Some(dora) => {
                let away = dora.factor(self, weight)?.detach() - 1.0;
                Ok(largest(&away) <= 1e-6)
            }
        }
    }
}

/// What an adapter of one linear starts from.
struct Start {
    down: Tensor,
    up: Tensor,
    /// Of DoRA, where they are known.
    magnitude: Option<Tensor>,
}

/// Which of the model's linears the config targets.
fn targets(linears: &[&mut Linear], config: &AdapterConfig) -> Result<Vec<String>> {
    let modules: Vec<&str> = linears.iter().map(|linear| linear.name.as_str()).collect();
    match_targets(&config.target_modules, &modules)
}

fn attach_with(
    mut linears: Vec<&mut Linear>,
    config: &AdapterConfig,
    params: &mut Params,
    mut first: impl FnMut(&Linear, i64) -> Result<Start>,
) -> Result<Vec<String>> {
    ensure!(config.r > 0, "the rank of a LoRA adapter is at least 1");
    ensure!(
        (0.0..1.0).contains(&config.lora_dropout),
        "lora_dropout {} is not in [0, 1)",
        config.lora_dropout
    );
    let chosen = targets(&linears, config)?;
    let rank = i64::try_from(config.r)?;
    for linear in &mut linears {
        if !chosen.contains(&linear.name) {
            continue;
        }
        let start = first(linear, rank)?;
        let down = adapter::placed(linear, &start.down);
        let magnitude = start
            .magnitude
            .map(|tensor| adapter::placed(linear, &tensor));
        let dora = match config.use_dora {
            true => Some(Dora::new(&linear.weight, down.kind(), magnitude)?),
            false => None,
        };
        let lora = Lora {
            up: adapter::placed(linear, &start.up),
            down,
            scale: config.scale(),
            dropout: config.lora_dropout,
            dora,
        };
        adapter::put(linear, Adapter::Lora(lora), params)?;
    }
    Ok(chosen)
}

/// Attaches fresh adapters: A uniform in ±1/√in (PEFT's kaiming with a = √5), drawn from the stream `init <module>` of the
/// seed, B zero, magnitudes the lengths of the weight's rows. They are trained; gives the names of the changed modules.
pub fn attach(
    linears: Vec<&mut Linear>,
    config: &AdapterConfig,
    seed: u64,
    params: &mut Params,
) -> Result<Vec<String>> {
    attach_with(linears, config, params, |linear, rank| {
        let (input, output) = linear.extents();
        let bound = 1.0 / (input as f64).sqrt();
        let mut stream = Stream::new(seed, &format!("init {}", linear.name));
        let count = usize::try_from(rank * input)?;
        let numbers: Vec<f32> = (0..count)
            .map(|_| ((stream.uniform() * 2.0 - 1.0) * bound) as f32)
            .collect();
        let down = Tensor::from_slice(&numbers).view([rank, input]);
        let up = Tensor::zeros([output, rank], (Kind::Float, HOST));
        Ok(Start {
            down,
            up,
            magnitude: None,
        })
    })
}

/// Attaches a stored adapter (PEFT's names). A tensor that is missing, has another shape or fits no module is an error.
pub fn attach_stored(
    linears: Vec<&mut Linear>,
    config: &AdapterConfig,
    weights: &Weights,
    params: &mut Params,
) -> Result<Vec<String>> {
    let chosen = attach_with(linears, config, params, |linear, rank| {
        let (input, output) = linear.extents();
        let read = |part: &str, shape: &[i64]| {
            let key = stored_key(weights, &linear.name, part);
            tensors::read(weights, &key, shape, Kind::Float, HOST)
        };
        Ok(Start {
            down: read("lora_A", &[rank, input])?,
            up: read("lora_B", &[output, rank])?,
            magnitude: match config.use_dora {
                true => Some(read("lora_magnitude_vector", &[output])?),
                false => None,
            },
        })
    })?;
    adapter::check_known(weights, &config.modules_to_save, |name| {
        parse_lora_key(name).is_some_and(|(module, part)| {
            let of_config = config.use_dora || part != "lora_magnitude_vector";
            of_config
                && chosen
                    .iter()
                    .any(|name| name == module || bare_name(name) == module)
        })
    })?;
    Ok(chosen)
}

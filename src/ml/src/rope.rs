//! Rotary positions with Llama's layout: the first and the second half of a head turn together.

use crate::place::HOST;
use crate::torch;
use anyhow::{Result, ensure};
use formats::config::{LlamaConfig, RopeScaling};
use std::f64::consts::TAU;
use tch::{Device, Kind, Tensor};

/// Tables of cosines and sines in f32, `[positions, head_dim / 2]`.
#[derive(Debug)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    positions: i64,
}

impl Rope {
    /// The same tables, held once.
    pub fn shallow_clone(&self) -> Rope {
        Rope {
            cos: self.cos.shallow_clone(),
            sin: self.sin.shallow_clone(),
            positions: self.positions,
        }
    }

    /// The tables for a config, computed in f32 in the order of transformers.
    pub fn new(config: &LlamaConfig, device: Device) -> Result<Rope> {
        let size = i64::try_from(config.head_dim)?;
        ensure!(
            size > 0 && size % 2 == 0,
            "a head size of {size} cannot be turned in halves: it must be even"
        );
        let f32 = (Kind::Float, HOST);
        let exponents = Tensor::arange_start_step(0, size, 2, (Kind::Int64, HOST))
            .to_kind(Kind::Float)
            / size as f64;
        let mut frequencies = Tensor::pow_scalar(config.rope_theta, &exponents).reciprocal();
        match config.rope_scaling {
            None => {}
            Some(RopeScaling::Linear { factor }) => frequencies /= factor,
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => {
                let old = original_max_position_embeddings as f64;
                let waves = frequencies.reciprocal() * TAU;
                let scaled = frequencies
                    .where_self(&waves.le(old / low_freq_factor), &(&frequencies / factor));
                let smooth = (waves.reciprocal() * old - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                let rest: Tensor = 1.0 - &smooth;
                let smoothed: Tensor = rest * &scaled / factor + &smooth * &scaled;
                let medium = waves
                    .ge(old / high_freq_factor)
                    .logical_and(&waves.le(old / low_freq_factor));
                frequencies = smoothed.where_self(&medium, &scaled);
            }
        }
        let positions = i64::try_from(config.max_position_embeddings)?;
        let angles = Tensor::arange(positions, f32).unsqueeze(1) * frequencies.unsqueeze(0);
        Ok(Rope {
            cos: angles.cos().contiguous().to_device(device),
            sin: angles.sin().contiguous().to_device(device),
            positions,
        })
    }

    /// The number of positions in the tables.
    pub fn positions(&self) -> i64 {
        self.positions
    }

    /// Turns `x [tokens, heads · size]` by `positions [tokens]`.
    pub fn forward(&self, x: &Tensor, positions: &Tensor, heads: i64) -> Result<Tensor> {
        if torch::fused(x) {
            torch::rope(x, &self.cos, &self.sin, positions, heads)
        } else {
            Ok(self.plain(x, positions, heads))
        }
    }

    /// The same as a composition of libtorch's operators.
    pub fn plain(&self, x: &Tensor, positions: &Tensor, heads: i64) -> Tensor {
        let kind = x.kind();
        let wide = if kind == Kind::Double {
            kind
        } else {
            Kind::Float
        };
        let (tokens, width) = (x.size()[0], x.size()[1]);
        let halves = x.to_kind(wide).view([tokens, heads, 2, width / heads / 2]);
        let (first, second) = (halves.select(2, 0), halves.select(2, 1));
        let table = |table: &Tensor| table.index_select(0, positions).unsqueeze(1).to_kind(wide);
        let (cos, sin) = (table(&self.cos), table(&self.sin));
        let turned = Tensor::stack(
            &[
                &first * &cos - &second * &sin,
                &second * &cos + &first * &sin,
            ],
            2,
        );
        turned.reshape([tokens, width]).to_kind(kind)
    }
}

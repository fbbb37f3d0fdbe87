//! Weights in four or eight bits, and what all ways of storing a weight have in common.

use crate::torch::{self, Stored};
use anyhow::Result;
use formats::nf4;
use tch::{Device, Kind, Tensor};

/// How the weight of a linear is stored.
#[derive(Debug)]
pub enum Weight {
    /// As it is: `[out, in]`.
    Dense(Tensor),
    /// Four bits a value.
    Nf4(Nf4),
    /// Eight bits a value.
    Int8(Int8),
}

/// A weight in NF4 (Dettmers et al. 2023, arXiv 2305.14314) as bitsandbytes stores it: blocks along its rows one after the other, each
/// with a scale.
#[derive(Debug)]
pub struct Nf4 {
    /// Outputs and inputs.
    pub extents: (i64, i64),
    /// Two codes a byte, the first in the high half: u8, `[values / 2]`, rounded up.
    pub codes: Tensor,
    /// What the sixteen codes stand for, f32.
    pub table: Tensor,
    /// Values to a scale.
    pub block: i64,
    /// The scale of each block, f32; of nested scales that of each of their blocks.
    pub scales: Tensor,
    /// Scales in eight bits (double quantization).
    pub nested: Option<Nested>,
    /// What a value is rounded to when it is unpacked: f32, f16 or bf16.
    pub kind: Kind,
}

/// Scales in eight bits: scale i is `table[codes[i]] · scales[i / block] + offset`.
#[derive(Debug)]
pub struct Nested {
    /// u8, one for each scale.
    pub codes: Tensor,
    /// What the 256 codes stand for, f32.
    pub table: Tensor,
    /// Scales to a scale of theirs.
    pub block: i64,
    /// Added to each.
    pub offset: f64,
}

/// A weight in eight bits: `codes · scale` of its row.
#[derive(Debug)]
pub struct Int8 {
    /// i8, `[out, in]`.
    pub codes: Tensor,
    /// f32, `[out]`: the largest magnitude of each row over 127.
    pub scales: Tensor,
    /// What a value is rounded to when it is unpacked: f32, f16 or bf16.
    pub kind: Kind,
}

fn rounding(kind: Kind) -> i64 {
    match kind {
        Kind::BFloat16 => 1,
        Kind::Half => 2,
        _ => 0,
    }
}

impl Nf4 {
    /// What `formats::nf4::quantize` made of a weight `[out, in]` of the type `kind`, in blocks of `block`.
    pub fn new(weight: &nf4::Quantized, block: usize, extents: (i64, i64), kind: Kind) -> Nf4 {
        let (scales, nested) = match &weight.scales {
            nf4::Scales::Plain(scales) => (Tensor::from_slice(scales), None),
            nf4::Scales::Nested {
                codes,
                scales,
                offset,
            } => {
                let nested = Nested {
                    codes: Tensor::from_slice(codes),
                    table: Tensor::from_slice(&nf4::dynamic_map(true)),
                    block: nf4::NESTED_BLOCK as i64,
                    offset: f64::from(*offset),
                };
                (Tensor::from_slice(scales), Some(nested))
            }
        };
        Nf4 {
            extents,
            codes: Tensor::from_slice(&weight.codes),
            table: Tensor::from_slice(&nf4::TABLE),
            block: block as i64,
            scales,
            nested,
            kind,
        }
    }
}

impl Weight {
    /// Outputs and inputs.
    pub fn extents(&self) -> (i64, i64) {
        match self {
            Weight::Dense(weight) => (weight.size()[0], weight.size()[1]),
            Weight::Nf4(weight) => weight.extents,
            Weight::Int8(weight) => (weight.codes.size()[0], weight.codes.size()[1]),
        }
    }

    /// The type of its values.
    pub fn kind(&self) -> Kind {
        match self {
            Weight::Dense(weight) => weight.kind(),
            Weight::Nf4(weight) => weight.kind,
            Weight::Int8(weight) => weight.kind,
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Weight::Dense(weight) => weight.device(),
            Weight::Nf4(weight) => weight.codes.device(),
            Weight::Int8(weight) => weight.codes.device(),
        }
    }

    /// The same weight, held once.
    pub fn shallow_clone(&self) -> Weight {
        self.map(Tensor::shallow_clone)
    }

    /// On another device.
    pub fn to_device(&self, device: Device) -> Result<Weight> {
        Ok(self.map(|tensor| tensor.to_device(device)))
    }

    fn map(&self, change: impl Fn(&Tensor) -> Tensor) -> Weight {
        match self {
            Weight::Dense(weight) => Weight::Dense(change(weight)),
            Weight::Nf4(weight) => Weight::Nf4(Nf4 {
                codes: change(&weight.codes),
                table: change(&weight.table),
                scales: change(&weight.scales),
                nested: weight.nested.as_ref().map(|nested| Nested {
                    codes: change(&nested.codes),
                    table: change(&nested.table),
                    ..*nested
                }),
                ..*weight
            }),
            Weight::Int8(weight) => Weight::Int8(Int8 {
                codes: change(&weight.codes),
                scales: change(&weight.scales),
                ..*weight
            }),
        }
    }

    /// True unless it is dense.
    pub fn is_quantized(&self) -> bool {
        !matches!(self, Weight::Dense(_))
    }

    /// The weight as the operators see it.
    pub fn stored(&self) -> Stored<'_> {
        match self {
            Weight::Dense(weight) => Stored::dense(weight),
            Weight::Nf4(weight) => {
                let mut tensors = vec![&weight.codes, &weight.scales, &weight.table];
                let (mut flag, mut block, mut offset) = (torch::NF4, 0, 0.0);
                if let Some(nested) = &weight.nested {
                    tensors.extend([&nested.codes, &nested.table]);
                    (flag, block, offset) = (flag | torch::NESTED, nested.block, nested.offset);
                }
                let (out, input) = weight.extents;
                Stored {
                    tensors,
                    flag,
                    shape: [out, input, weight.block, block, rounding(weight.kind)],
                    offset,
                }
            }
            Weight::Int8(weight) => {
                let (out, input) = self.extents();
                Stored {
                    tensors: vec![&weight.codes, &weight.scales],
                    flag: torch::INT8,
                    shape: [out, input, 0, 0, rounding(weight.kind)],
                    offset: 0.0,
                }
            }
        }
    }

    /// The values `[out, in]` as `kind`: for one weight at a time, since of a quantized one it is a copy of full size.
    pub fn values(&self, kind: Kind) -> Result<Tensor> {
        match self {
            Weight::Dense(weight) => Ok(weight.to_kind(kind)),
            _ => Ok(torch::dequantized(&self.stored(), kind)?.to_kind(kind)),
        }
    }
}

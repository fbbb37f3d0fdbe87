//! Block quantizations of ggml and their conversion to f32, bit for bit as the `gguf` package does it.

use crate::dtype::{Dtype, element_count, f16_to_f32};
use anyhow::{Result, anyhow, bail, ensure};

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // The names of the format.
pub enum Quantization {
    /// Single precision numbers.
    F32,
    /// Half precision numbers.
    F16,
    /// Brain floating point numbers.
    BF16,
    /// Blocks of 32: a half precision scale and minimum, then 4-bit numbers.
    Q4_1,
    /// Blocks of 32: a half precision scale, then signed 8-bit numbers.
    Q8_0,
}

/// Numbers in one block of Q4_1 and Q8_0.
const BLOCK: usize = 32;

/// The types of ggml that are not supported, for messages.
const OTHER_TYPES: [(u32, &str); 30] = [
    (2, "Q4_0"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl Quantization {
    /// Every quantization that can be read.
    pub const ALL: [Quantization; 5] = [
        Quantization::F32,
        Quantization::F16,
        Quantization::BF16,
        Quantization::Q4_1,
        Quantization::Q8_0,
    ];

    /// The number of `enum ggml_type`.
    pub fn id(self) -> u32 {
        match self {
            Quantization::F32 => 0,
            Quantization::F16 => 1,
            Quantization::Q4_1 => 3,
            Quantization::Q8_0 => 8,
            Quantization::BF16 => 30,
        }
    }

    /// The name in ggml, for instance `Q4_1`.
    pub fn name(self) -> &'static str {
        match self {
            Quantization::F32 => "F32",
            Quantization::F16 => "F16",
            Quantization::BF16 => "BF16",
            Quantization::Q4_1 => "Q4_1",
            Quantization::Q8_0 => "Q8_0",
        }
    }

    /// The quantization with the number of `enum ggml_type`; others are refused by name.
    pub fn from_id(id: u32) -> Result<Quantization> {
        if let Some(known) = Quantization::ALL.into_iter().find(|known| known.id() == id) {
            return Ok(known);
        }
        let name = OTHER_TYPES
            .iter()
            .find(|(other, _)| *other == id)
            .map_or("a type unknown to ggml", |(_, name)| *name);
        bail!(
            "it is stored as {name} (ggml type {id}), which cannot be read; take a file quantized to one of {}",
            Quantization::ALL.map(Quantization::name).join(", ")
        );
    }

    /// Numbers in one block; 1 where numbers are stored one by one.
    pub fn block_len(self) -> usize {
        match self {
            Quantization::F32 | Quantization::F16 | Quantization::BF16 => 1,
            Quantization::Q4_1 | Quantization::Q8_0 => BLOCK,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Quantization::F32 => 4,
            Quantization::F16 | Quantization::BF16 => 2,
            Quantization::Q4_1 => 4 + BLOCK / 2,
            Quantization::Q8_0 => 2 + BLOCK,
        }
    }

    /// Bytes of a tensor whose extents are `extents`, the fastest first as in the file.
    pub(super) fn bytes_of(self, extents: &[usize]) -> Result<u64> {
        let row = extents.first().copied().unwrap_or(1);
        ensure!(
            row % self.block_len() == 0,
            "a row of {row} numbers is not made of whole blocks of {}",
            self.block_len()
        );
        (element_count(extents))
            .and_then(|count| (count / self.block_len()).checked_mul(self.block_bytes()))
            .map(|size| size as u64)
            .ok_or_else(|| anyhow!("the tensor is larger than any file"))
    }
}

/// Converts stored `bytes` to f32, as `gguf.dequantize` does. The lengths must agree.
pub fn dequantize(quantization: Quantization, bytes: &[u8], output: &mut [f32]) -> Result<()> {
    let blocks = output.len() / quantization.block_len();
    ensure!(
        blocks * quantization.block_len() == output.len()
            && blocks.checked_mul(quantization.block_bytes()) == Some(bytes.len()),
        "{} bytes of {} are not {} numbers",
        bytes.len(),
        quantization.name(),
        output.len()
    );
    match quantization {
        Quantization::F32 => Dtype::F32.to_f32(bytes, output)?,
        Quantization::F16 => Dtype::F16.to_f32(bytes, output)?,
        Quantization::BF16 => Dtype::BF16.to_f32(bytes, output)?,
        Quantization::Q4_1 => {
            let (stored, _) = bytes.as_chunks::<{ 4 + BLOCK / 2 }>();
            let (numbers, _) = output.as_chunks_mut::<BLOCK>();
            for (from, to) in stored.iter().zip(numbers) {
                let scale = f16_to_f32(u16::from_le_bytes([from[0], from[1]]));
                let minimum = f16_to_f32(u16::from_le_bytes([from[2], from[3]]));
                // The low halves of the 16 bytes are the first 16 numbers, the high halves the last.
                for (index, byte) in from[4..].iter().enumerate() {
                    to[index] = scale * f32::from(byte & 0x0f) + minimum;
                    to[index + BLOCK / 2] = scale * f32::from(byte >> 4) + minimum;
                }
            }
        }
        Quantization::Q8_0 => {
            let (stored, _) = bytes.as_chunks::<{ 2 + BLOCK }>();
            let (numbers, _) = output.as_chunks_mut::<BLOCK>();
            for (from, to) in stored.iter().zip(numbers) {
                let scale = f16_to_f32(u16::from_le_bytes([from[0], from[1]]));
                for (number, byte) in to.iter_mut().zip(&from[2..]) {
                    *number = scale * f32::from(*byte as i8);
                }
            }
        }
    }
    Ok(())
}

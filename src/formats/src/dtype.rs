//! The number formats of stored tensors and their conversion to f32.

use anyhow::{Result, bail, ensure};

/// The number format of a plainly stored tensor, with the names that safetensors uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an F32.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl Dtype {
    /// Every number format that can be read and written.
    pub const ALL: [Dtype; 10] = [
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U8,
        Dtype::Bool,
    ];

    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    /// The name in a safetensors header, for instance `BF16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "F64",
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::I64 => "I64",
            Dtype::I32 => "I32",
            Dtype::I16 => "I16",
            Dtype::I8 => "I8",
            Dtype::U8 => "U8",
            Dtype::Bool => "BOOL",
        }
    }

    /// The format with this safetensors name; the error lists the names that are known.
    pub fn parse(name: &str) -> Result<Dtype> {
        match Dtype::ALL.into_iter().find(|dtype| dtype.name() == name) {
            Some(dtype) => Ok(dtype),
            None => bail!(
                "unknown dtype {name:?}; supported are {}",
                Dtype::ALL.map(Dtype::name).join(", ")
            ),
        }
    }

    /// True for the four floating point formats.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    /// Converts little-endian `bytes` into `output`, which must have as many numbers. F64 is rounded to
    /// nearest; the others are exact. Integers are refused: they are not weights.
    pub fn to_f32(self, bytes: &[u8], output: &mut [f32]) -> Result<()> {
        ensure!(
            output.len().checked_mul(self.size()) == Some(bytes.len()),
            "{} numbers of {} need {} bytes each, but there are {} bytes",
            output.len(),
            self.name(),
            self.size(),
            bytes.len()
        );
        match self {
            Dtype::F64 => convert(bytes, output, |b| f64::from_le_bytes(b) as f32),
            Dtype::F32 => convert(bytes, output, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, output, |b| f16_to_f32(u16::from_le_bytes(b))),
            Dtype::BF16 => convert(bytes, output, |b| bf16_to_f32(u16::from_le_bytes(b))),
            _ => bail!(
                "the numbers are {}, which are not weights; read them as bytes",
                self.name()
            ),
        }
        Ok(())
    }

    /// `value` as a number of this format has it: rounded to nearest, the even one of two, for F16 and BF16, and unchanged for the others.
    pub fn rounded(self, value: f32) -> f32 {
        match self {
            Dtype::BF16 => bf16_to_f32(f32_to_bf16(value)),
            Dtype::F16 => rounded_to_f16(value),
            _ => value,
        }
    }

    /// The little-endian bytes of `numbers` as F32 or, rounded to nearest even, BF16.
    pub fn from_f32(self, numbers: &[f32]) -> Result<Vec<u8>> {
        match self {
            Dtype::F32 => Ok(numbers.iter().flat_map(|n| n.to_le_bytes()).collect()),
            Dtype::BF16 => Ok(numbers
                .iter()
                .flat_map(|n| f32_to_bf16(*n).to_le_bytes())
                .collect()),
            _ => bail!("weights are not written as {}", self.name()),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

fn convert<const SIZE: usize>(bytes: &[u8], output: &mut [f32], one: impl Fn([u8; SIZE]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<SIZE>();
    for (to, from) in output.iter_mut().zip(numbers) {
        *to = one(*from);
    }
}

/// The number of items of a tensor, or `None` where a product of its extents leaves `usize`. Zero extents
/// are passed over in that check, so that strides in any order are safe afterwards.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    let product =
        (shape.iter()).try_fold(1usize, |count, &extent| count.checked_mul(extent.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { product })
}

/// The f32 with the value of the half precision number `bits`. Integer arithmetic only, so that the
/// payload of a NaN survives as it does in NumPy; a hardware conversion would quiet it.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits & 0x3ff);
    let magnitude = match (exponent, fraction) {
        (0, 0) => 0,
        (0, _) => {
            // A subnormal: shift the leading one up to the implicit place.
            let shift = fraction.leading_zeros() - 21;
            ((113 - shift) << 23) | (((fraction << shift) & 0x3ff) << 13)
        }
        (0x1f, _) => 0x7f80_0000 | (fraction << 13),
        _ => ((exponent + 112) << 23) | (fraction << 13),
    };
    f32::from_bits(sign | magnitude)
}

/// The bits of the bfloat16 number nearest to `value`, the even one of two; a NaN stays one.
#[inline]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The half precision number nearest to `value`, the even one of two; what is too large becomes infinite.
fn rounded_to_f16(value: f32) -> f32 {
    /// The smallest half that is not subnormal, and the distance of subnormal ones.
    const NORMAL: f32 = 6.103_515_6e-5;
    const STEP: f32 = 5.960_464_5e-8;
    if !value.is_finite() {
        return value;
    }
    if value.abs() < NORMAL {
        return (value / STEP).round_ties_even() * STEP;
    }
    let bits = value.to_bits();
    let nearest = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff);
    match nearest.abs() > 65504.0 {
        true => f32::INFINITY.copysign(value),
        false => nearest,
    }
}

/// The f32 with the value of the bfloat16 number `bits`.
#[inline]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_unknown_ones_list_the_known() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::parse(dtype.name()).unwrap(), dtype);
        }
        let message = Dtype::parse("F8_E4M3").unwrap_err().to_string();
        assert!(
            message.contains("F8_E4M3") && message.contains("BF16"),
            "{message}"
        );
    }

    #[test]
    fn every_half_is_its_definition() {
        for bits in 0..=u16::MAX {
            let exponent = i32::from(bits >> 10) & 0x1f;
            let fraction = f64::from(bits & 0x3ff);
            let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
            let value = f16_to_f32(bits);
            match exponent {
                0x1f if fraction == 0.0 => assert_eq!(f64::from(value), sign * f64::INFINITY),
                0x1f => assert!(value.is_nan()),
                0 => assert_eq!(f64::from(value), sign * fraction * 2f64.powi(-24)),
                _ => assert_eq!(
                    f64::from(value),
                    sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15)
                ),
            }
            assert_eq!(value.is_sign_negative(), sign < 0.0);
        }
    }

    #[test]
    fn rounding_to_a_half_takes_the_nearest_and_of_two_the_even_one() {
        for bits in 0..0x7bffu16 {
            let (half, next) = (f16_to_f32(bits), f16_to_f32(bits + 1));
            let middle = (half + next) / 2.0;
            let even = if bits.is_multiple_of(2) { half } else { next };
            let (below, above) = (middle.next_down(), middle.next_up());
            for (value, wanted) in [(half, half), (middle, even), (below, half), (above, next)] {
                assert_eq!(Dtype::F16.rounded(value), wanted, "{value:e}");
                assert_eq!(Dtype::F16.rounded(-value), -wanted, "{value:e}");
            }
        }
        assert_eq!(Dtype::F16.rounded(65519.0), 65504.0);
        assert_eq!(Dtype::F16.rounded(65520.0), f32::INFINITY);
        assert!(Dtype::F16.rounded(f32::NAN).is_nan());
        assert_eq!(Dtype::BF16.rounded(1.0 + 1.0 / 512.0), 1.0);
        assert_eq!(Dtype::F32.rounded(0.1), 0.1);
    }

    #[test]
    fn lengths_and_integers_are_refused() {
        assert!(Dtype::F32.to_f32(&[0; 7], &mut [0.0; 2]).is_err());
        assert!(Dtype::I32.to_f32(&[0; 8], &mut [0.0; 2]).is_err());
    }
}

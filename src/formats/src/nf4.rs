//! NF4 to the bit as bitsandbytes has it: blocks of values along the flat row-major weight, each with its largest magnitude as its scale,
//! and, with double quantization, those scales in eight bits.
//!
//! Sources: Dettmers et al., *QLoRA*, arXiv 2305.14314; bitsandbytes 0.50, `functional.py` and `backends/default/ops.py`.

use anyhow::{Result, bail, ensure};

/// What the sixteen codes stand for: quantiles of the normal distribution, scaled to [-1, 1].
pub const TABLE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The sizes of a block that bitsandbytes takes.
pub const BLOCKS: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Scales that share a scale of their own.
pub const NESTED_BLOCK: usize = 256;

/// The code of zero.
const ZERO: u8 = 7;

/// A quantized weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// Two codes a byte, the first in the high half; a last odd one beside the code of zero.
    pub codes: Vec<u8>,
    /// The scale of each block.
    pub scales: Scales,
}

/// The scales of the blocks.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// As they are.
    Plain(Vec<f32>),
    /// In eight bits: scale i is `table[codes[i]] · scales[i / NESTED_BLOCK] + offset`.
    Nested {
        /// One code for each block.
        codes: Vec<u8>,
        /// The scale of each block of scales.
        scales: Vec<f32>,
        /// The mean of all scales.
        offset: f32,
    },
}

/// Quantizes `values` in blocks of `block`, on `threads` threads, with double quantization if `nested`. The result does not depend on the
/// number of threads. A value that is not finite is an error that says which.
pub fn quantize(values: &[f32], block: usize, nested: bool, threads: usize) -> Result<Quantized> {
    ensure!(
        BLOCKS.contains(&block),
        "blocks of {block} values; bitsandbytes takes {BLOCKS:?}"
    );
    ensure!(!values.is_empty(), "there is nothing to quantize");
    let blocks = values.len().div_ceil(block);
    let mut codes = vec![0u8; values.len().div_ceil(2)];
    let mut scales = vec![0f32; blocks];
    let share = blocks.div_ceil(threads.max(1));
    let parts = values
        .chunks(share * block)
        .zip(codes.chunks_mut(share * block / 2))
        .zip(scales.chunks_mut(share));
    let finite = std::thread::scope(|scope| {
        let running: Vec<_> = parts
            .map(|((values, codes), scales)| {
                scope.spawn(move || quantize_blocks(values, block, codes, scales))
            })
            .collect();
        running.into_iter().all(|part| part.join().unwrap_or(false))
    });
    if !finite {
        let at = values.iter().position(|value| !value.is_finite());
        let at = at.unwrap_or_default();
        bail!(
            "value {at} is {}; only finite values can be quantized",
            values[at]
        );
    }
    let scales = match nested {
        true => nest(&scales),
        false => Scales::Plain(scales),
    };
    Ok(Quantized { codes, scales })
}

/// False if a value is not finite.
fn quantize_blocks(values: &[f32], block: usize, codes: &mut [u8], scales: &mut [f32]) -> bool {
    let mut nibbles = vec![0u8; block];
    let blocks = values.chunks(block).zip(codes.chunks_mut(block / 2));
    for ((values, codes), scale) in blocks.zip(scales) {
        let largest = largest_magnitude(values);
        if !largest.is_finite() {
            return false;
        }
        *scale = largest;
        let nibbles = &mut nibbles[..values.len().next_multiple_of(2)];
        nibbles.fill(ZERO);
        if largest > 0.0 {
            let inverse = 1.0 / largest;
            if inverse.is_finite() {
                round(values, |value| value * inverse, nibbles);
            } else {
                // The inverse of so small a scale is infinite.
                round(values, |value| value / largest, nibbles);
            }
        }
        for (code, pair) in codes.iter_mut().zip(nibbles.as_chunks::<2>().0) {
            *code = pair[0] << 4 | pair[1];
        }
    }
    true
}

/// The largest magnitude, or a NaN or infinity if there is one.
fn largest_magnitude(values: &[f32]) -> f32 {
    // Magnitudes are ordered as their bits are, NaN above infinity: a maximum of integers misses none.
    let bits = values.iter().map(|value| value.to_bits() & 0x7fff_ffff);
    f32::from_bits(bits.max().unwrap_or(0))
}

/// The number of borders between neighbouring codes that each scaled value lies above; on a border the lower code is taken.
fn round(values: &[f32], scaled: impl Fn(f32) -> f32, codes: &mut [u8]) {
    const BORDERS: [f32; 15] = borders();
    for (code, value) in codes.iter_mut().zip(values) {
        let value = scaled(*value);
        let mut above = 0u32;
        for border in BORDERS {
            above += u32::from(value > border);
        }
        *code = above as u8;
    }
}

const fn borders() -> [f32; 15] {
    let mut borders = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        borders[i] = (TABLE[i] + TABLE[i + 1]) / 2.0;
        i += 1;
    }
    borders
}

/// Eight bits for each scale: its distance from the mean of all, in blocks, to the nearest code of `dynamic_map`.
fn nest(scales: &[f32]) -> Scales {
    let sum: f64 = scales.iter().map(|scale| f64::from(*scale)).sum();
    let offset = (sum / scales.len() as f64) as f32;
    let table = dynamic_map(true);
    let mut codes = Vec::with_capacity(scales.len());
    let mut largest = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK));
    for block in scales.chunks(NESTED_BLOCK) {
        let distances: Vec<f32> = block.iter().map(|scale| scale - offset).collect();
        let scale = largest_magnitude(&distances);
        let inverse = 1.0 / scale;
        for distance in distances {
            let scaled = match (scale > 0.0, inverse.is_finite()) {
                (false, _) => 0.0,
                (true, true) => (distance * inverse).clamp(-1.0, 1.0),
                (true, false) => distance / scale,
            };
            codes.push(nearest(&table, scaled));
        }
        largest.push(scale);
    }
    Scales::Nested {
        codes,
        scales: largest,
        offset,
    }
}

/// The index of the nearest of 256 rising values; on a border the lower one.
pub fn nearest(table: &[f32; 256], value: f32) -> u8 {
    let (mut low, mut high) = (0usize, 255usize);
    while low < high {
        let middle = usize::midpoint(low, high);
        if value > (table[middle] + table[middle + 1]) / 2.0 {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low as u8
}

/// bitsandbytes' `create_dynamic_map`: 256 rising values in [-1, 1] (or [0, 1] unsigned) that are dense near zero; the first set bit after the
/// sign says the power of ten, the bits behind it the place within it.
pub fn dynamic_map(signed: bool) -> [f32; 256] {
    const EXPONENTS: usize = 7;
    let mut values: Vec<f32> = Vec::with_capacity(256);
    for i in 0..EXPONENTS {
        let items = (1usize << if signed { i } else { i + 1 }) + 1;
        let borders = linspace(items);
        let power = 10f64.powi(i as i32 - (EXPONENTS as i32 - 1)) as f32;
        for pair in borders.windows(2) {
            let value = power * ((pair[0] + pair[1]) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.extend([0.0, 1.0]);
    values.sort_by(f32::total_cmp);
    let mut table = [1.0; 256];
    table[..values.len().min(256)].copy_from_slice(&values[..values.len().min(256)]);
    table
}

/// `torch.linspace(0.1, 1, items)` in f32: from both ends to the middle, each product and sum rounded once.
fn linspace(items: usize) -> Vec<f32> {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / (items - 1) as f32;
    (0..items)
        .map(|i| {
            if i < items / 2 {
                step.mul_add(i as f32, start)
            } else {
                (-step).mul_add((items - 1 - i) as f32, end)
            }
        })
        .collect()
}

/// The scale of each block.
pub fn scales_of(scales: &Scales) -> Vec<f32> {
    match scales {
        Scales::Plain(scales) => scales.clone(),
        Scales::Nested {
            codes,
            scales,
            offset,
        } => {
            let table = dynamic_map(true);
            let scale = |(i, code): (usize, &u8)| {
                table[usize::from(*code)] * scales[i / NESTED_BLOCK] + offset
            };
            codes.iter().enumerate().map(scale).collect()
        }
    }
}

/// Code `i` of packed ones.
#[inline]
pub fn code(codes: &[u8], i: usize) -> usize {
    usize::from(codes[i / 2] >> (if i.is_multiple_of(2) { 4 } else { 0 }) & 15)
}

/// The `count` values that a quantized weight stands for, before they are rounded to a type.
pub fn dequantize(weight: &Quantized, block: usize, count: usize) -> Vec<f32> {
    let scales = scales_of(&weight.scales);
    (0..count)
        .map(|i| TABLE[code(&weight.codes, i)] * scales[i / block])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maps_are_those_of_bitsandbytes() {
        let map = dynamic_map(true);
        assert!(map.is_sorted() && map[127] == 0.0 && map[255] == 1.0);
        assert!((map[0] + 0.992_968_7).abs() < 1e-6, "{}", map[0]);
        let unsigned = dynamic_map(false);
        assert!(unsigned.is_sorted() && unsigned[0] == 0.0 && unsigned[255] == 1.0);
    }

    #[test]
    fn a_value_on_a_border_takes_the_lower_code_and_zeros_stay_zero() {
        let mut values = vec![0.0f32; 32];
        values[0] = 1.0;
        values[1] = (TABLE[8] + TABLE[9]) / 2.0;
        values[2] = -1.0;
        let weight = quantize(&values, 32, false, 1).unwrap();
        assert_eq!(weight.codes[..2], [0xf8, 0x07]);
        let zeros = quantize(&[0.0; 64], 64, true, 2).unwrap();
        assert!(zeros.codes.iter().all(|code| *code == 0x77));
        assert!(dequantize(&zeros, 64, 64).iter().all(|value| *value == 0.0));
    }

    #[test]
    fn what_is_not_finite_is_refused_by_its_place() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            let mut values = vec![0.5f32; 300];
            values[217] = bad;
            let message = quantize(&values, 64, true, 2).unwrap_err().to_string();
            assert!(message.contains("value 217"), "{message}");
        }
        assert!(quantize(&[1.0], 48, true, 1).is_err());
        assert!(quantize(&[], 64, true, 1).is_err());
    }

    #[test]
    fn errors_are_bounded_by_half_the_widest_gap_and_order_is_kept() {
        let mut state = 7u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.0
        };
        let widest = TABLE.windows(2).map(|p| p[1] - p[0]).fold(0.0, f32::max);
        for count in [1, 2, 63, 64, 65, 127, 1000, 4097] {
            let values: Vec<f32> = (0..count).map(|_| draw()).collect();
            for block in [32, 64, 256] {
                let weight = quantize(&values, block, false, 3).unwrap();
                assert_eq!(weight, quantize(&values, block, false, 1).unwrap());
                let back = dequantize(&weight, block, count);
                let scales = scales_of(&weight.scales);
                for (i, (value, found)) in values.iter().zip(&back).enumerate() {
                    let bound = scales[i / block] * widest / 2.0 * 1.000_01;
                    assert!((value - found).abs() <= bound, "{value} {found}");
                }
                for (values, found) in values.chunks(block).zip(back.chunks(block)) {
                    for i in 1..values.len() {
                        let order = values[i - 1].total_cmp(&values[i]);
                        let kept = found[i - 1].total_cmp(&found[i]);
                        assert!(kept == order || found[i - 1] == found[i]);
                    }
                }
            }
        }
    }
}

//! The values of a linear's weight, however it is stored.

use super::{Linear, beside, linear, part};
use crate::tensors::Weights;
use crate::{Dtype, nf4};
use anyhow::{Result, ensure};

/// The values `[out, in]` of the weight `name` as a model of the type `dtype` computes with them: a dense one rounded to that type, a
/// quantized one unpacked.
pub fn values(weights: &Weights, name: &str, shape: [usize; 2], dtype: Dtype) -> Result<Vec<f32>> {
    let [out, input] = shape;
    let count = out * input;
    // The lengths of all parts fit: `linear` has seen to it.
    match linear(weights, name, shape)? {
        Linear::Dense => {
            let values = weights.read_f32(name)?;
            ensure!(
                values.len() == count,
                "the weight {name:?} has {} values, but the model's config asks for {out} × {input}; the config belongs to another model",
                values.len()
            );
            Ok(values.into_iter().map(|v| dtype.rounded(v)).collect())
        }
        Linear::Nf4(state) => {
            let absmax = part(name, "absmax");
            let scales: Vec<f32> = match state.nested {
                None => weights.read_f32(&absmax)?,
                Some((block, offset)) => {
                    let map = weights.read_f32(&part(name, "nested_quant_map"))?;
                    let outer = weights.read_f32(&part(name, "nested_absmax"))?;
                    let codes = weights.bytes(&absmax)?.iter().enumerate();
                    let scale = |(i, code): (usize, &u8)| {
                        map[usize::from(*code)] * outer[i / block] + offset as f32
                    };
                    codes.map(scale).collect()
                }
            };
            let table = weights.read_f32(&part(name, "quant_map"))?;
            let codes = weights.bytes(name)?;
            let value = |i: usize| {
                let value = table[nf4::code(codes, i)] * scales[i / state.block];
                state.dtype.rounded(value)
            };
            Ok((0..count).map(value).collect())
        }
        Linear::Int8 => {
            let largest = weights.read_f32(&beside(name, "SCB"))?;
            let codes = weights.bytes(name)?.iter().enumerate();
            let value = |(i, code): (usize, &u8)| {
                dtype.rounded(f32::from(*code as i8) * (largest[i / input] / 127.0))
            };
            Ok(codes.map(value).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{State, int8_tensors, nf4_tensors, to_int8};
    use super::*;
    use crate::safetensors;

    /// What is read of a file with these tensors.
    fn read(
        tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)],
        shape: [usize; 2],
        dtype: Dtype,
    ) -> Result<Vec<f32>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        safetensors::write_file(&path, tensors, &[]).unwrap();
        values(&Weights::open(&path).unwrap(), "w.weight", shape, dtype)
    }

    #[test]
    fn every_way_of_storing_a_weight_is_unpacked() {
        let shape = [7, 37];
        let numbers: Vec<f32> = (0..7 * 37).map(|i| (i as f32 * 0.7).sin()).collect();
        let name = "w.weight";
        let bytes = Dtype::F32.from_f32(&numbers).unwrap();
        let dense = [(name.to_owned(), Dtype::F32, shape.to_vec(), bytes)];
        assert_eq!(read(&dense, shape, Dtype::F32).unwrap(), numbers);
        let rounded: Vec<f32> = numbers.iter().map(|n| Dtype::BF16.rounded(*n)).collect();
        assert_eq!(read(&dense, shape, Dtype::BF16).unwrap(), rounded);
        assert!(read(&dense, [7, 38], Dtype::F32).is_err());
        for nested in [false, true] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let packed = nf4::quantize(&numbers, 32, nested, 1).unwrap();
                let wanted = nf4::dequantize(&packed, 32, numbers.len());
                let wanted: Vec<f32> = wanted.into_iter().map(|n| dtype.rounded(n)).collect();
                let state = State {
                    block: 32,
                    dtype,
                    shape,
                    nested: match &packed.scales {
                        nf4::Scales::Plain(_) => None,
                        nf4::Scales::Nested { offset, .. } => {
                            Some((nf4::NESTED_BLOCK, f64::from(*offset)))
                        }
                    },
                };
                let tensors = nf4_tensors(name, packed, &state);
                assert_eq!(read(&tensors, shape, Dtype::F32).unwrap(), wanted);
            }
        }
        let (codes, largest) = to_int8(&numbers, 37).unwrap();
        let tensors = int8_tensors(name, shape, codes, &largest);
        let found = read(&tensors, shape, Dtype::F32).unwrap();
        for (i, (value, number)) in found.iter().zip(&numbers).enumerate() {
            assert!((value - number).abs() <= largest[i / 37] / 253.0, "{i}");
        }
    }
}

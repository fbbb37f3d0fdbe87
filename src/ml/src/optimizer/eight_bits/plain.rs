//! The same step composed of libtorch's operators, for devices that have no loop of ours. Operators follow the order of the loop and nothing is
//! fused, so that on the CPU both give the same codes and scales to the bit, and weights but for the last bits: libtorch's square root is not
//! always the nearest number.

use super::{BLOCK, CODES, Code, Options, Parts, TINY, Task};
use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// One step of one parameter.
pub(super) fn update(options: &Options, parts: &Parts, task: &Task<'_>) -> Result<()> {
    let [correction1, correction2] = options.corrections(task.steps);
    let [signed, unsigned] = &*CODES;
    let gradient = in_rows(&task.gradient.f_to_kind(Kind::Float)?)?;
    let first = unpacked(signed, &parts["mean"], &parts["mean_scales"])?;
    let first = first * options.beta1 + &gradient * (1.0 - options.beta1);
    let second = unpacked(unsigned, &parts["square"], &parts["square_scales"])?;
    let squares = &gradient * &gradient;
    let second = second * options.beta2 + squares * (1.0 - options.beta2);
    let root = second.f_sqrt()? / correction2.sqrt() + options.eps;
    let change = (&first / root) * (-task.rate / correction1);
    let mut weight = task.weight.shallow_clone();
    let _ = weight.f_mul_scalar_(1.0 - task.rate * task.decay)?;
    let _ = weight.f_add_(&without_filling(&change, &weight)?)?;
    pack(signed, &first, &parts["mean"], &parts["mean_scales"])?;
    pack(unsigned, &second, &parts["square"], &parts["square_scales"])?;
    task.round()
}

/// A table on a device.
fn table(values: &[f32], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(values)?.f_to_device(device)?)
}

/// A tensor's numbers in order, a block to a row, `[blocks, BLOCK]`; the last row is filled up with zeros.
fn in_rows(tensor: &Tensor) -> Result<Tensor> {
    let block = BLOCK as i64;
    let flat = tensor.f_flatten(0, -1)?;
    let missing = (flat.numel().next_multiple_of(BLOCK) - flat.numel()) as i64;
    let whole = match missing {
        0 => flat,
        _ => flat.f_constant_pad_nd([0, missing])?,
    };
    Ok(whole.f_view([-1, block])?)
}

/// The numbers of rows of blocks in the shape of `like`, without what filled the last row up.
fn without_filling(rows: &Tensor, like: &Tensor) -> Result<Tensor> {
    let flat = rows.f_flatten(0, -1)?;
    let own = flat.f_narrow(0, 0, i64::try_from(like.numel())?)?;
    Ok(own.f_reshape(like.size())?)
}

/// What codes stand for, `[blocks, BLOCK]`.
fn unpacked(code: &Code, codes: &Tensor, scales: &Tensor) -> Result<Tensor> {
    let index = codes.f_flatten(0, -1)?.f_to_kind(Kind::Int)?;
    let values = table(&code.values, codes.device())?.f_index_select(0, &index)?;
    Ok(in_rows(&values)?.f_mul(&scales.f_unsqueeze(1)?)?)
}

/// Gives values `[blocks, BLOCK]` their codes, and each block its scale. A value's code is the number of borders below it: on a border the lower
/// code is taken.
fn pack(code: &Code, values: &Tensor, codes: &Tensor, scales: &Tensor) -> Result<()> {
    let largest = values.f_abs()?.f_amax([1i64], true)?;
    let inverse = largest.f_clamp_min(f64::from(TINY))?.f_reciprocal()?;
    let scaled = values.f_mul(&inverse)?.f_clamp(-1.0, 1.0)?;
    let borders = table(&code.borders[..255], values.device())?;
    let found = scaled.f_bucketize(&borders, true, false)?;
    let found = without_filling(&found, codes)?;
    codes.shallow_clone().f_copy_(&found)?;
    scales.shallow_clone().f_copy_(&largest.f_squeeze_dim(1)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{fresh, in_blocks};
    use super::*;
    use crate::tensors::bytes;

    /// Numbers in ±scale that look like none.
    fn numbers(count: usize, salt: usize, scale: f64) -> Tensor {
        let number = |i: usize| (((i * 31 + salt * 7919) % 104_729) as f64 * 12.9898).sin() * scale;
        Tensor::from_slice(&(0..count).map(number).collect::<Vec<f64>>())
    }

    #[test]
    fn operators_give_the_codes_of_the_loop() {
        // Whole blocks, and nineteen of which the last is short.
        for shape in [[64i64, 128], [37, 131]] {
            for kind in [Kind::Float, Kind::BFloat16] {
                let count = (shape[0] * shape[1]) as usize;
                let start = || numbers(count, 0, 0.5).view(shape).to_kind(kind);
                let (one, two) = (start(), start());
                let master = |param: &Tensor| match kind {
                    Kind::Float => param.shallow_clone(),
                    _ => param.to_kind(Kind::Float),
                };
                let (wide_one, wide_two) = (master(&one), master(&two));
                let (looped, composed) = (fresh(&one).unwrap(), fresh(&two).unwrap());
                let options = Options::default();
                for steps in 1..8u64 {
                    // Blocks of zeros, of very small and of large numbers.
                    let gradient = numbers(count, steps as usize, 0.1);
                    let size = |i: usize| [1.0, 0.0, 1e-12, 30.0, 1e-22][i / BLOCK % 5];
                    let sizes: Vec<f64> = (0..count).map(size).collect();
                    let gradient = gradient * Tensor::from_slice(&sizes);
                    let gradient = gradient.view(shape).to_kind(kind);
                    let task = |param, weight: &Tensor| Task {
                        param,
                        weight: weight.shallow_clone(),
                        gradient: &gradient,
                        rate: 1e-2,
                        decay: 0.1,
                        steps,
                    };
                    in_blocks(&options, &looped, &task(&one, &wide_one)).unwrap();
                    update(&options, &composed, &task(&two, &wide_two)).unwrap();
                    let what = format!("{kind:?} {shape:?} step {steps}");
                    for (part, tensor) in &looped {
                        let (a, b) = (bytes(tensor).unwrap(), bytes(&composed[part]).unwrap());
                        assert!(a == b, "{what}: {part}");
                    }
                    let apart = (&wide_one - &wide_two).abs().max().double_value(&[]);
                    assert!(apart < 1e-6, "{what}: weights are {apart:e} apart");
                    let rounded = two.to_kind(Kind::Float) - &wide_two;
                    let most = rounded.abs().max().double_value(&[]);
                    assert!(most < 1e-2, "{what}: {most:e} between weight and master");
                }
            }
        }
    }

    #[test]
    fn a_code_is_the_nearest_and_on_a_border_the_lower() {
        for code in &*CODES {
            let near = |value: f32| [value.next_down(), value, value.next_up()];
            let all = code.borders[..255].iter().chain(&code.values);
            let mut values: Vec<f32> = all.copied().flat_map(near).collect();
            values.retain(|value| value.abs() <= 1.0);
            // The largest of every block is 1, so that nothing is scaled.
            let mut blocks = Vec::new();
            for part in values.chunks(BLOCK - 1) {
                blocks.push(1.0);
                blocks.extend_from_slice(part);
                blocks.resize(blocks.len().next_multiple_of(BLOCK), 0.0);
            }
            let count = blocks.len() as i64;
            let rows = Tensor::from_slice(&blocks).view([-1, BLOCK as i64]);
            let codes = Tensor::zeros([count], (Kind::Uint8, rows.device()));
            let scales = Tensor::zeros([count / BLOCK as i64], (Kind::Float, rows.device()));
            pack(code, &rows, &codes, &scales).unwrap();
            let found = Vec::<u8>::try_from(&codes).unwrap();
            for (value, found) in blocks.iter().zip(found) {
                assert_eq!(found, code.nearest(*value), "{value}");
            }
        }
    }
}

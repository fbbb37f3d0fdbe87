//! AdamW with its moments in eight bits (Dettmers et al., arXiv 2110.02861), as bitsandbytes' `AdamW8bit` has it: blocks of 256 values along the
//! flat parameter, each with its largest magnitude in f32, and for each value the nearest code of the dynamic map, signed for the mean of gradients
//! and unsigned for that of their squares. Each step unpacks the moments, moves them and the weight in f32, and packs the moments. A tensor of
//! fewer than 4096 values keeps its moments in f32. On the CPU that is one loop over blocks; elsewhere it is composed of libtorch's operators.

mod plain;

use super::{Options, Parts, Task};
use crate::place::{self, HOST};
use anyhow::Result;
use formats::nf4::{dynamic_map, nearest};
use std::sync::LazyLock;
use tch::kind::Element;
use tch::{Kind, Tensor};

/// Values to a scale.
const BLOCK: usize = 256;
/// Tensors with fewer values are not packed.
const LEAST: usize = 4096;
/// Below it a scale's inverse is not finite; bitsandbytes' bound.
const TINY: f32 = 1e-38;

/// The codes of the mean and of the square.
static CODES: LazyLock<[Code; 2]> = LazyLock::new(|| [Code::new(true), Code::new(false)]);

/// What 256 codes stand for, and a short way from a value to the nearest.
struct Code {
    values: [f32; 256],
    /// Above `borders[i]` code i is not the nearest.
    borders: [f32; 256],
    /// By the upper half of a value's bits, a code that is not above the nearest. A search from the middle for each value would take
    /// longer than all the rest of the step.
    start: Vec<u8>,
}

impl Code {
    fn new(signed: bool) -> Code {
        let values = dynamic_map(signed);
        let mut borders = [f32::INFINITY; 256];
        for (border, pair) in borders.iter_mut().zip(values.windows(2)) {
            *border = (pair[0] + pair[1]) / 2.0;
        }
        let first = |high: u16| {
            let code = |low: u32| nearest(&values, f32::from_bits((u32::from(high) << 16) | low));
            code(0).min(code(0xffff))
        };
        Code {
            values,
            borders,
            start: (0..=u16::MAX).map(first).collect(),
        }
    }

    fn nearest(&self, value: f32) -> u8 {
        let mut code = self.start[(value.to_bits() >> 16) as usize];
        while value > self.borders[usize::from(code)] {
            code += 1;
        }
        code
    }

    /// Gives values their codes, and says the scale of their block.
    fn pack(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let largest = values
            .iter()
            .fold(0f32, |most, value| most.max(value.abs()));
        let inverse = 1.0 / largest.max(TINY);
        for (code, value) in codes.iter_mut().zip(values) {
            *code = self.nearest((value * inverse).clamp(-1.0, 1.0));
        }
        largest
    }
}

/// Whether a parameter's moments are packed. f64 is there for comparisons and stays whole.
pub(super) fn takes(param: &Tensor) -> bool {
    param.numel() >= LEAST && param.kind() != Kind::Double
}

/// Both means of a parameter, zero: a code for each value, and the scales of the blocks.
pub(super) fn fresh(param: &Tensor) -> Result<Parts> {
    let blocks = i64::try_from(param.numel().div_ceil(BLOCK))?;
    let codes = || Tensor::f_zeros(param.size(), (Kind::Uint8, param.device()));
    let scales = || Tensor::f_zeros([blocks], (Kind::Float, param.device()));
    Ok(Parts::from([
        ("mean", codes()?),
        ("mean_scales", scales()?),
        ("square", codes()?),
        ("square_scales", scales()?),
    ]))
}

/// The numbers of a step in f32.
#[derive(Clone, Copy)]
struct Settings {
    betas: [f32; 2],
    gains: [f32; 2],
    keep: f32,
    root: f32,
    eps: f32,
    rate: f32,
}

/// One moment of some blocks: codes and scales.
type Moment<'a> = (&'a mut [u8], &'a mut [f32]);

/// One step of one parameter.
pub(super) fn update(options: &Options, parts: &Parts, task: &Task<'_>) -> Result<()> {
    match task.weight.device() == HOST {
        true => in_blocks(options, parts, task),
        false => plain::update(options, parts, task),
    }
}

/// The step on the CPU. What becomes of a block does not depend on the number of threads.
fn in_blocks(options: &Options, parts: &Parts, task: &Task<'_>) -> Result<()> {
    let [correction1, correction2] = options.corrections(task.steps);
    let settings = Settings {
        betas: [options.beta1 as f32, options.beta2 as f32],
        gains: [(1.0 - options.beta1) as f32, (1.0 - options.beta2) as f32],
        keep: (1.0 - task.rate * task.decay) as f32,
        root: correction2.sqrt() as f32,
        eps: options.eps as f32,
        rate: (-task.rate / correction1) as f32,
    };
    let mut weight: Vec<f32> = taken(&task.weight)?;
    let gradient: Vec<f32> = taken(task.gradient)?;
    let mut means: Vec<u8> = taken(&parts["mean"])?;
    let mut mean_scales: Vec<f32> = taken(&parts["mean_scales"])?;
    let mut squares: Vec<u8> = taken(&parts["square"])?;
    let mut square_scales: Vec<f32> = taken(&parts["square_scales"])?;
    let share = mean_scales.len().div_ceil(place::threads().max(1)).max(1);
    let span = share * BLOCK;
    std::thread::scope(|scope| {
        let weights = weight.chunks_mut(span).zip(gradient.chunks(span));
        let first = means.chunks_mut(span).zip(mean_scales.chunks_mut(share));
        let second = squares
            .chunks_mut(span)
            .zip(square_scales.chunks_mut(share));
        for ((weights, first), second) in weights.zip(first).zip(second) {
            scope.spawn(move || step(settings, weights, first, second));
        }
    });
    put(&task.weight, &weight)?;
    put(&parts["mean"], &means)?;
    put(&parts["mean_scales"], &mean_scales)?;
    put(&parts["square"], &squares)?;
    put(&parts["square_scales"], &square_scales)?;
    task.round()
}

/// The step of some blocks.
fn step(
    settings: Settings,
    (weight, gradient): (&mut [f32], &[f32]),
    (means, mean_scales): Moment<'_>,
    (squares, square_scales): Moment<'_>,
) {
    let [signed, unsigned] = &*CODES;
    let ([beta1, beta2], [gain1, gain2]) = (settings.betas, settings.gains);
    let (mut first, mut second) = ([0f32; BLOCK], [0f32; BLOCK]);
    let weights = weight.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
    let means = means.chunks_mut(BLOCK).zip(mean_scales);
    let squares = squares.chunks_mut(BLOCK).zip(square_scales);
    for ((weights, (means, mean_scale)), (squares, square_scale)) in weights.zip(means).zip(squares)
    {
        let (weight, gradient) = weights;
        let count = weight.len();
        let moments = first.iter_mut().zip(&mut second);
        let codes = means.iter().zip(squares.iter());
        let all = weight.iter_mut().zip(gradient).zip(codes).zip(moments);
        for (((w, g), (mean, square)), (m, v)) in all {
            *m = beta1 * (signed.values[usize::from(*mean)] * *mean_scale) + gain1 * g;
            *v = beta2 * (unsigned.values[usize::from(*square)] * *square_scale) + gain2 * (g * g);
            *w = settings.keep * *w
                + settings.rate * (*m / (v.sqrt() / settings.root + settings.eps));
        }
        *mean_scale = signed.pack(&first[..count], means);
        *square_scale = unsigned.pack(&second[..count], squares);
    }
}

/// A tensor's numbers, row-major.
fn taken<T: Element + Copy>(tensor: &Tensor) -> Result<Vec<T>> {
    Ok(Vec::<T>::try_from(tensor.f_flatten(0, -1)?)?)
}

/// Writes numbers into a tensor.
fn put<T: Element>(tensor: &Tensor, numbers: &[T]) -> Result<()> {
    let numbers = Tensor::f_from_slice(numbers)?.f_reshape(tensor.size())?;
    tensor.detach().f_copy_(&numbers)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_way_finds_the_nearest_code() {
        for code in &*CODES {
            let near = |value: f32| [value.next_down(), value, value.next_up()];
            let borders = code.borders[..255].iter().chain(&code.values);
            let lattice =
                (0..=u16::MAX).map(|high| f32::from_bits((u32::from(high) << 16) | 0x1234));
            let all = borders.copied().flat_map(near).chain(lattice);
            for value in all.filter(|value| value.is_finite()) {
                let wanted = nearest(&code.values, value);
                assert_eq!(code.nearest(value), wanted, "{value}");
            }
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        let mut codes = [0u8; BLOCK];
        let scale = CODES[0].pack(&[0.0; BLOCK], &mut codes);
        assert_eq!((scale, codes), (0.0, [127; BLOCK]));
    }
}

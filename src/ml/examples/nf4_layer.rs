//! Measures a linear whose weight is quantized to NF4 with double quantization, for scripts/bench/nf4.py: prints one JSON object.
//!
//! `nf4_layer INPUTS OUTPUTS [bf16|f32] [threads] [quantizations] [passes]`: INPUTS is a safetensors file with `weight [out, in]`,
//! `x [rows, in]` and `gradient [rows, out]` in bf16; OUTPUTS gets the packed codes, and what comes out of the linear in this type.

use anyhow::{Context, Result, bail, ensure};
use formats::nf4::{self, Quantized};
use formats::{Dtype, safetensors};
use ml::linear::Input;
use ml::quantized::Nf4;
use ml::{Kind, Linear, Pass, Tensor, Weight, place, tensors, torch};
use std::path::Path;
use std::time::Instant;

/// Values to a scale.
const BLOCK: usize = 64;

/// A matrix of a file: its extents and its bytes.
fn matrix<'a>(file: &'a safetensors::File, name: &str) -> Result<([usize; 2], &'a [u8])> {
    let found = file.entries().iter().find(|entry| entry.name == name);
    let entry = found.with_context(|| format!("{}: no {name}", file.path().display()))?;
    ensure!(
        entry.dtype == Dtype::BF16,
        "{name} holds {}, not BF16",
        entry.dtype
    );
    match entry.shape[..] {
        [rows, columns] => Ok(([rows, columns], file.bytes(entry)?)),
        _ => bail!("{name} is no matrix: its shape is {:?}", entry.shape),
    }
}

/// The same as a tensor of its own.
fn tensor(file: &safetensors::File, name: &str, kind: Kind) -> Result<Tensor> {
    let ([rows, columns], bytes) = matrix(file, name)?;
    let shape = [i64::try_from(rows)?, i64::try_from(columns)?];
    Ok(Tensor::f_from_data_size(bytes, &shape, Kind::BFloat16)?.f_to_kind(kind)?)
}

/// What is measured first: from the bytes of a bf16 weight to its codes.
fn quantize(bytes: &[u8], threads: usize) -> Result<Quantized> {
    let mut values = vec![0f32; bytes.len() / Dtype::BF16.size()];
    Dtype::BF16.to_f32(bytes, &mut values)?;
    nf4::quantize(&values, BLOCK, true, threads)
}

/// What is measured second: y, and the gradient to x where that to y is ones, so that nothing but the linear is computed.
fn pass(linear: &Linear, x: &Tensor) -> Result<[Tensor; 2]> {
    let y = linear.forward(Pass::eval(), Input::Plain(x))?;
    let gradient = Tensor::f_run_backward(&[&y], &[x], false, false)?.remove(0);
    Ok([y.detach(), gradient])
}

/// What the last call made, and the seconds of all calls but the first, which warms up.
fn timed<T>(repeats: usize, work: impl Fn() -> Result<T>) -> Result<(T, Vec<f64>)> {
    let mut made = work()?;
    let mut seconds = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        drop(made);
        let began = Instant::now();
        made = work()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok((made, seconds))
}

/// Bytes that the system counts for this process under a name of `/proc/self/status`, where there is one.
fn counted(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [inputs, outputs, rest @ ..] = &arguments[..] else {
        bail!("usage: nf4_layer INPUTS OUTPUTS [bf16|f32] [threads] [quantizations] [passes]");
    };
    let number = |index: usize, default: usize| -> Result<usize> {
        rest.get(index).map_or(Ok(default), |text| {
            text.parse().with_context(|| format!("{text} is no number"))
        })
    };
    let kind = match rest.first().map_or("bf16", String::as_str) {
        "bf16" => Kind::BFloat16,
        "f32" => Kind::Float,
        other => bail!("unknown dtype {other:?}: it is bf16 or f32"),
    };
    let threads = number(1, std::thread::available_parallelism()?.get())?;
    let (quantizations, passes) = (number(2, 3)?, number(3, 5)?);
    place::set_threads(threads);

    let file = safetensors::File::open(Path::new(inputs))?;
    let ([out, input], bytes) = matrix(&file, "weight")?;
    let (quantized, quantize_seconds) = timed(quantizations, || quantize(bytes, threads))?;
    let extents = (i64::try_from(out)?, i64::try_from(input)?);
    let packed = Nf4::new(&quantized, BLOCK, extents, kind);
    let codes = packed.codes.shallow_clone();
    let nested = packed.nested.as_ref().context("the scales are plain")?;
    let scale_codes = nested.codes.shallow_clone();
    let x = tensor(&file, "x", kind)?.set_requires_grad(true);
    let gradient = tensor(&file, "gradient", kind)?;
    let linear = Linear::new("layer", Weight::Nf4(packed), None);

    // From here on it is what a worker does; what was quantized is no part of it.
    drop((file, quantized));
    torch::keep_memory();
    torch::release_memory();
    let before = counted("VmRSS:");
    // The word for the kernel: forget the peak.
    let forgotten = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let ([y, of_ones], pass_seconds) = timed(passes, || pass(&linear, &x))?;
    let peak = counted("VmHWM:").filter(|_| forgotten);

    // Once more with a gradient that tells rows and columns apart.
    let again = linear.forward(Pass::eval(), Input::Plain(&x))?;
    let sum = (again * gradient).f_sum(Kind::Float)?;
    let of_gradient = Tensor::f_run_backward(&[&sum], &[&x], false, false)?.remove(0);
    let written = [
        ("codes", codes),
        ("scale_codes", scale_codes),
        ("y", y),
        ("of_ones", of_ones),
        ("of_gradient", of_gradient),
    ];
    let written = written.map(|(name, tensor)| (name.to_owned(), tensor));
    tensors::write(Path::new(outputs), &written, &[])?;
    println!(
        "{}",
        serde_json::json!({
            "quantize": quantize_seconds,
            "passes": pass_seconds,
            "before": before,
            "peak": peak,
        })
    );
    Ok(())
}

//! The C++ operators, safe to call: every argument is checked on the other side and a C++ exception comes back as an error.

mod checkpoint;

pub use checkpoint::{Piece, checkpoint};

use crate::place::HOST;
use anyhow::{Result, anyhow};
use std::ffi::{CStr, c_char, c_int};
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn levain_error() -> *const c_char;
    fn levain_version() -> *const c_char;
    fn levain_capability(to: *mut c_char, size: usize) -> c_int;
    fn levain_kernels() -> c_int;
    fn levain_native_bf16() -> c_int;
    fn levain_keep_memory();
    fn levain_release_memory();
    fn levain_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        before: i64,
        eps: f64,
        tensors: *const *const C_tensor,
        count: usize,
        flags: *const i64,
        shapes: *const i64,
        scales: *const f64,
        maps: usize,
        few: c_int,
    ) -> c_int;
    fn levain_dequantized(
        out: *mut *mut C_tensor,
        tensors: *const *const C_tensor,
        count: usize,
        flag: i64,
        shape: *const i64,
        offset: f64,
        kind: c_int,
    ) -> c_int;
    fn levain_unpacked_product(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        tensors: *const *const C_tensor,
        count: usize,
        flag: i64,
        shape: *const i64,
        offset: f64,
    ) -> c_int;
    fn levain_dropout(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        probability: f64,
        seed: i64,
        first: i64,
    ) -> c_int;
    fn levain_adamw(
        stored: *const C_tensor,
        weight: *const C_tensor,
        gradient: *const C_tensor,
        mean: *const C_tensor,
        square: *const C_tensor,
        settings: *const f64,
    ) -> c_int;
    fn levain_rms_norm(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        eps: f64,
    ) -> c_int;
    fn levain_silu_mul(
        out: *mut *mut C_tensor,
        gate: *const C_tensor,
        up: *const C_tensor,
    ) -> c_int;
    fn levain_rope(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        positions: *const C_tensor,
        heads: i64,
    ) -> c_int;
    fn levain_attend(
        out: *mut *mut C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        lengths: *const i64,
        keys: *const i64,
        rows: usize,
        heads: i64,
        groups: i64,
        scale: f64,
    ) -> c_int;
    fn levain_attend_cached(
        out: *mut *mut C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        lengths: *const i64,
        rows: *const i64,
        filled: *const i64,
        count: usize,
        heads: i64,
        groups: i64,
        scale: f64,
    ) -> c_int;
    fn levain_cross_entropy(
        out: *mut *mut C_tensor,
        hidden: *const C_tensor,
        head: *const C_tensor,
        targets: *const C_tensor,
        chunk: i64,
        way: i64,
    ) -> c_int;
    fn levain_log_probabilities(
        out: *mut *mut C_tensor,
        hidden: *const C_tensor,
        head: *const C_tensor,
        targets: *const C_tensor,
        chunk: i64,
        way: i64,
        statistics: c_int,
    ) -> c_int;
}

/// The message of the last failed call in this thread, as an error of the operator `name`.
fn failure(name: &str) -> anyhow::Error {
    // SAFETY: the pointer is to a thread-local string that lives as long as the thread and is copied here.
    let message = unsafe { CStr::from_ptr(levain_error()) };
    anyhow!("libtorch, in {name}: {}", message.to_string_lossy())
}

/// Calls an operator with room for `count` results.
fn call(
    name: &str,
    count: usize,
    run: impl FnOnce(*mut *mut C_tensor) -> c_int,
) -> Result<Vec<Tensor>> {
    let mut out: Vec<*mut C_tensor> = vec![std::ptr::null_mut(); count];
    if run(out.as_mut_ptr()) != 0 {
        return Err(failure(name));
    }
    // SAFETY: on success every pointer is a fresh tensor that nothing else owns.
    Ok(out
        .into_iter()
        .map(|tensor| unsafe { Tensor::from_ptr(tensor) })
        .collect())
}

fn one(name: &str, run: impl FnOnce(*mut *mut C_tensor) -> c_int) -> Result<Tensor> {
    let mut results = call(name, 1, run)?;
    results.pop().ok_or_else(|| failure(name))
}

/// The version of libtorch that this program was compiled for.
pub fn version() -> String {
    // SAFETY: a string literal.
    unsafe { CStr::from_ptr(levain_version()) }
        .to_string_lossy()
        .into_owned()
}

/// Which C++ operators this program was compiled with.
pub const OPERATORS: &str = env!("LEVAIN_OPERATORS");

/// The instruction set that libtorch chose for this processor, for instance `AVX2`.
pub fn capability() -> String {
    let mut name: [c_char; 64] = [0; 64];
    // SAFETY: at most the given size is written, with a zero at the end.
    if unsafe { levain_capability(name.as_mut_ptr(), name.len()) } != 0 {
        return "unknown".to_owned();
    }
    unsafe { CStr::from_ptr(name.as_ptr()) }
        .to_string_lossy()
        .into_owned()
}

/// True where the processor has units that multiply bf16 matrices (AMX); elsewhere bf16 products go through f32.
pub fn native_bf16() -> bool {
    // SAFETY: a question to the processor.
    unsafe { levain_native_bf16() == 1 }
}

/// True for a bf16 tensor on a device that multiplies bf16 itself.
pub fn multiplies_bf16(x: &Tensor) -> bool {
    x.kind() == Kind::BFloat16 && (x.device() != HOST || native_bf16())
}

/// Memory that is freed stays with the process, which makes the next step of a training run much faster.
pub fn keep_memory() {
    // SAFETY: sets options of the allocator.
    unsafe { levain_keep_memory() }
}

/// Gives freed memory back to the system, for a worker that waits.
pub fn release_memory() {
    // SAFETY: asks the allocator.
    unsafe { levain_release_memory() }
}

/// True if the fused row-wise operators and attention take tensors like this one.
pub fn fused(x: &Tensor) -> bool {
    // SAFETY: a question to the processor.
    x.device() == HOST
        && matches!(x.kind(), Kind::BFloat16 | Kind::Float)
        && unsafe { levain_kernels() == 1 }
}

/// True if the fused linear takes this x with this weight and is faster than libtorch's product.
pub fn fused_linear(x: &Tensor, weight: &Stored<'_>) -> bool {
    let first = weight.tensors[0];
    let known = if weight.is_quantized() {
        first.device() == HOST
    } else {
        fused(first)
    };
    fused(x) && known && !multiplies_bf16(x)
}

/// A weight as the operators see it.
pub struct Stored<'a> {
    /// The weight; or codes and scales (int8); or codes, scales, table and perhaps nested scales and their table (NF4).
    pub tensors: Vec<&'a Tensor>,
    /// Which of them there are.
    pub flag: i64,
    /// Outputs, inputs, values to a scale, scales to a nested scale, what values are rounded to (0 f32, 1 bf16, 2 f16).
    pub shape: [i64; 5],
    /// What is added to nested scales.
    pub offset: f64,
}

/// The weight is NF4.
pub const NF4: i64 = 4;
/// Its scales are quantized themselves.
pub const NESTED: i64 = 8;
/// The weight is int8.
pub const INT8: i64 = 16;

impl<'a> Stored<'a> {
    /// A weight as it is: `[out, in]`, f32 or bf16.
    pub fn dense(weight: &'a Tensor) -> Stored<'a> {
        let size = weight.size();
        let extent = |index: usize| size.get(index).copied().unwrap_or(0);
        Stored {
            tensors: vec![weight],
            flag: 0,
            shape: [extent(0), extent(1), 0, 0, 0],
            offset: 0.0,
        }
    }

    /// True for NF4 and int8.
    pub fn is_quantized(&self) -> bool {
        self.flag & (NF4 | INT8) != 0
    }

    fn pointers(&self) -> Vec<*const C_tensor> {
        let pointers = self.tensors.iter().map(|tensor| tensor.as_ptr());
        pointers.collect()
    }
}

/// The values of a quantized weight, `[out, in]`, as f32, f64 or else bf16.
pub fn dequantized(weight: &Stored<'_>, kind: Kind) -> Result<Tensor> {
    let pointers = weight.pointers();
    let kind = match kind {
        Kind::Float => 0,
        Kind::Double => 2,
        _ => 1,
    };
    // SAFETY: the tensors live through the call, and the counts are those of the vectors.
    one("dequantized", |out| unsafe {
        levain_dequantized(
            out,
            pointers.as_ptr(),
            pointers.len(),
            weight.flag,
            weight.shape.as_ptr(),
            weight.offset,
            kind,
        )
    })
}

/// `x · weight^T` for a quantized weight by libtorch's product: it is unpacked in the forward and again in the backward pass.
pub fn unpacked_product(x: &Tensor, weight: &Stored<'_>) -> Result<Tensor> {
    let pointers = weight.pointers();
    // SAFETY: the tensors live through the call, and the counts are those of the vectors.
    one("unpacked_product", |out| unsafe {
        levain_unpacked_product(
            out,
            x.as_ptr(),
            pointers.as_ptr(),
            pointers.len(),
            weight.flag,
            weight.shape.as_ptr(),
            weight.offset,
        )
    })
}

/// One map of [`linear`].
pub struct Map<'a> {
    /// The weight.
    pub weight: Stored<'a>,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
    /// `(A [rank, in], B [out, rank], scale)` in f32: the weight is read as `weight + scale · B A`.
    pub change: Option<(&'a Tensor, &'a Tensor, f64)>,
}

/// What happens to x before [`linear`] multiplies it; made again in the backward pass instead of being kept.
#[derive(Clone, Copy)]
pub enum Before<'a> {
    /// Nothing.
    Nothing,
    /// RMSNorm with this weight and eps.
    Norm(&'a Tensor, f64),
    /// `silu(x)` times this.
    Gate(&'a Tensor),
}

/// Linear maps of one `x [rows, in]`, with sums in f32 and the type of x as the type of the results; gradients to
/// x, weights, biases and both factors of the changes. `few` takes the kernel for decoding, which reads the weights once
/// where they lie.
pub fn linear(x: &Tensor, before: Before<'_>, maps: &[Map<'_>], few: bool) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    let (kind, eps) = match before {
        Before::Nothing => (0, 0.0),
        Before::Norm(weight, eps) => {
            tensors.push(weight.as_ptr());
            (1, eps)
        }
        Before::Gate(up) => {
            tensors.push(up.as_ptr());
            (2, 0.0)
        }
    };
    let (mut flags, mut shapes, mut scales) = (Vec::new(), Vec::new(), Vec::new());
    for map in maps {
        tensors.extend(map.weight.tensors.iter().map(|tensor| tensor.as_ptr()));
        shapes.extend(map.weight.shape);
        let mut flag = map.weight.flag;
        if let Some(bias) = map.bias {
            tensors.push(bias.as_ptr());
            flag |= 1;
        }
        if let Some((down, up, scale)) = map.change {
            tensors.push(down.as_ptr());
            tensors.push(up.as_ptr());
            scales.push(scale);
            flag |= 2;
        } else {
            scales.push(0.0);
        }
        scales.push(map.weight.offset);
        flags.push(flag);
    }
    // SAFETY: the tensors live through the call, and the counts are those of the vectors.
    call("linear", maps.len(), |out| unsafe {
        levain_linear(
            out,
            x.as_ptr(),
            kind,
            eps,
            tensors.as_ptr(),
            tensors.len(),
            flags.as_ptr(),
            shapes.as_ptr(),
            scales.as_ptr(),
            maps.len(),
            c_int::from(few),
        )
    })
}

/// x with each element zero with this probability and the others divided by what is left: a function of the seed and the
/// element's index only, counted from `first` on.
pub fn dropout(x: &Tensor, probability: f64, seed: u64, first: i64) -> Result<Tensor> {
    // SAFETY: x lives through the call.
    one("dropout", |out| unsafe {
        levain_dropout(out, x.as_ptr(), probability, seed as i64, first)
    })
}

/// RMSNorm over the last dimension.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    // SAFETY: the tensors live through the call.
    one("rms_norm", |out| unsafe {
        levain_rms_norm(out, x.as_ptr(), weight.as_ptr(), eps)
    })
}

/// A step of AdamW in place, in one pass over the memory: with g the gradient, m the `mean` and s the `square`, m ← m + `gains[0]` (g − m),
/// s ← (1 − `gains[1]`) s + `gains[1]` g², w ← `keep` w + `rate` m / (√s / `root` + `eps`). `weight` is f32: the parameter itself or, where that
/// is bf16, the numbers that it is rounded from.
pub fn adamw(
    [stored, weight, gradient, mean, square]: [&Tensor; 5],
    keep: f64,
    gains: [f64; 2],
    (root, eps): (f64, f64),
    rate: f64,
) -> Result<()> {
    let settings = [keep, gains[0], 1.0 - gains[1], gains[1], root, eps, rate];
    // SAFETY: the tensors live through the call, which checks their types and sizes; there are seven settings.
    let code = unsafe {
        levain_adamw(
            stored.as_ptr(),
            weight.as_ptr(),
            gradient.as_ptr(),
            mean.as_ptr(),
            square.as_ptr(),
            settings.as_ptr(),
        )
    };
    if code != 0 {
        return Err(failure("adamw"));
    }
    Ok(())
}

/// `silu(gate) · up`.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensors live through the call.
    one("silu_mul", |out| unsafe {
        levain_silu_mul(out, gate.as_ptr(), up.as_ptr())
    })
}

/// Rotary positions of `x [tokens, heads · size]`, with f32 tables `[positions, size / 2]`.
pub fn rope(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    heads: i64,
) -> Result<Tensor> {
    // SAFETY: the tensors live through the call.
    one("rope", |out| unsafe {
        levain_rope(
            out,
            x.as_ptr(),
            cos.as_ptr(),
            sin.as_ptr(),
            positions.as_ptr(),
            heads,
        )
    })
}

/// Causal attention of rows of these lengths that lie one after the other; k and v are of the tokens that each row sees,
/// `keys[i]` for row i, of which the last are its own.
pub fn attend(
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    (lengths, keys): (&[i64], &[i64]),
    (heads, groups): (i64, i64),
    scale: f64,
) -> Result<Tensor> {
    anyhow::ensure!(
        lengths.len() == keys.len(),
        "attend: {} lengths, {} of what is seen",
        lengths.len(),
        keys.len()
    );
    // SAFETY: the tensors and the slices live through the call and have equal lengths.
    one("attend", |out| unsafe {
        levain_attend(
            out,
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            lengths.as_ptr(),
            keys.as_ptr(),
            lengths.len(),
            heads,
            groups,
            scale,
        )
    })
}

/// Causal attention of the newest tokens of some cache rows: row `rows[i]` holds `filled[i]` tokens, of which the last
/// `lengths[i]` are those of q. No gradient.
pub fn attend_cached(
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    (lengths, rows, filled): (&[i64], &[i64], &[i64]),
    (heads, groups): (i64, i64),
    scale: f64,
) -> Result<Tensor> {
    anyhow::ensure!(
        lengths.len() == rows.len() && rows.len() == filled.len(),
        "attend: {} lengths, {} rows, {} fillings",
        lengths.len(),
        rows.len(),
        filled.len()
    );
    // SAFETY: the tensors and the slices live through the call and have equal lengths.
    one("attend", |out| unsafe {
        levain_attend_cached(
            out,
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            lengths.as_ptr(),
            rows.as_ptr(),
            filled.as_ptr(),
            lengths.len(),
            heads,
            groups,
            scale,
        )
    })
}

/// Who multiplies in [`cross_entropy`] and [`log_probabilities`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// libtorch in f32 (f64 stays): every device.
    Wide,
    /// The kernels of this crate; see [`fused_linear`].
    Kernels,
    /// libtorch in the type of the hidden states, for processors with native bf16.
    Native,
}

/// `[sum of losses, log-probability of each target, target was the largest logit]` of `softmax(hidden head^T)`.
pub fn cross_entropy(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    chunk: i64,
    way: Way,
) -> Result<[Tensor; 3]> {
    // SAFETY: the tensors live through the call.
    let results = call("cross_entropy", 3, |out| unsafe {
        levain_cross_entropy(
            out,
            hidden.as_ptr(),
            head.as_ptr(),
            targets.as_ptr(),
            chunk,
            way as i64,
        )
    })?;
    results
        .try_into()
        .map_err(|_| anyhow!("cross_entropy gave another number of results"))
}

/// `[log-probability of each target, entropy, log of the sum of squared probabilities]` of the rows of
/// `softmax(hidden head^T)`; the first two have a gradient for each row, the last two are empty without `statistics`.
pub fn log_probabilities(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    chunk: i64,
    way: Way,
    statistics: bool,
) -> Result<[Tensor; 3]> {
    // SAFETY: the tensors live through the call.
    let results = call("log_probabilities", 3, |out| unsafe {
        levain_log_probabilities(
            out,
            hidden.as_ptr(),
            head.as_ptr(),
            targets.as_ptr(),
            chunk,
            way as i64,
            c_int::from(statistics),
        )
    })?;
    results
        .try_into()
        .map_err(|_| anyhow!("log_probabilities gave another number of results"))
}

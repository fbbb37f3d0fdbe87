//! Pieces of a model whose inside is computed twice instead of being kept.

use super::one;
use anyhow::Result;
use std::ffi::{c_int, c_void};
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn levain_checkpoint(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        anchor: *const C_tensor,
        run: unsafe extern "C" fn(*mut c_void, *const C_tensor) -> *mut C_tensor,
        drop: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
    ) -> c_int;
}

/// A piece of a model as [`checkpoint`] calls it.
pub type Piece = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// `piece(x)`, whose inside is computed again in the backward pass instead of being kept: the same numbers for one more forward.
/// `anchor` is any trained parameter, or x itself where that has a gradient.
pub fn checkpoint(x: &Tensor, anchor: &Tensor, piece: Piece) -> Result<Tensor> {
    let context = Box::into_raw(Box::new(piece)).cast::<c_void>();
    // SAFETY: the tensors live through the call; the context is freed by the other side, once, in either case.
    one("checkpoint", |out| unsafe {
        levain_checkpoint(
            out,
            x.as_ptr(),
            anchor.as_ptr(),
            run_piece,
            drop_piece,
            context,
        )
    })
}

unsafe extern "C" fn run_piece(context: *mut c_void, x: *const C_tensor) -> *mut C_tensor {
    // SAFETY: the context is the box that `checkpoint` made, and x lives through the call.
    let (piece, x) = unsafe {
        let piece = &*context.cast::<Piece>();
        (piece, Tensor::clone_from_ptr(x.cast_mut()))
    };
    // Nothing may unwind into C++.
    let run = std::panic::AssertUnwindSafe(|| piece(&x));
    match std::panic::catch_unwind(run) {
        Ok(Ok(y)) => {
            let mut y = std::mem::ManuallyDrop::new(y);
            y.as_mut_ptr()
        }
        _ => std::ptr::null_mut(),
    }
}

unsafe extern "C" fn drop_piece(context: *mut c_void) {
    // SAFETY: the box of `checkpoint`, freed once.
    drop(unsafe { Box::from_raw(context.cast::<Piece>()) });
}

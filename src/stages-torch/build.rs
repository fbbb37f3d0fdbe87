//! Gives this crate's own test programs the place of libtorch (the root's `build.rs` does it for the worker).

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    let named = env::var_os("LIBTORCH_LIB").or_else(|| env::var_os("LIBTORCH"));
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let link = named.map_or_else(|| here.join("../../.libtorch"), PathBuf::from);
    println!(
        "cargo:rerun-if-changed={}",
        link.join("build-version").display()
    );
    // Where libtorch is missing, torch-sys has stopped the build before this.
    let library = link.join("lib");
    let folder = library.canonicalize().unwrap_or(library);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    let cuda = folder.join("libtorch_cuda.so");
    if cuda.exists() {
        // The CUDA backend registers itself when loaded; nothing calls it, and the linker would drop it.
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed");
        println!("cargo:rustc-link-arg={}", cuda.display());
        println!("cargo:rustc-link-arg=-Wl,--pop-state");
    }
}

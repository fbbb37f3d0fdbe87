//! Gives both programs the digest of what they are built from, and the worker the place of libtorch, so that it starts in a plain
//! shell.
//!
//! A `-sys` crate's rpath does not reach the programs that depend on it; this script adds it to `levain-worker` alone,
//! and `levain` stays free of libtorch. Without the feature `torch` there is nothing to do.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs, process};

/// Said where libtorch is wanted and is not there.
const MISSING: &str = "libtorch is not set up in this checkout: run `make setup` (once per machine), \
     or build `levain` alone with `cargo build --no-default-features`";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=Cargo.lock");
    let mut sources = DefaultHasher::new();
    fs::read("Cargo.lock")
        .unwrap_or_default()
        .hash(&mut sources);
    digest(Path::new("src"), &mut sources);
    println!("cargo:rustc-env=LEVAIN_BUILD={:016x}", sources.finish());
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    if env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    let link = root();
    // Set-up touches this file when it lays the link anew; the link's own time is not what cargo looks at.
    println!(
        "cargo:rerun-if-changed={}",
        link.join("build-version").display()
    );
    let named = link.join("lib");
    let Ok(resolved) = named.canonicalize() else {
        println!("cargo:warning={MISSING} (looked at {})", named.display());
        eprintln!("error: {MISSING} (looked at {})", named.display());
        process::exit(1);
    };
    // First the folder in the cache directory, so that a moved checkout's programs still start; then the link, so
    // that they start when set-up has put another libtorch in its place.
    for folder in [resolved.as_path(), named.as_path()] {
        say(&format!("-Wl,-rpath,{}", folder.display()));
    }
    keep_cuda(&resolved);
}

/// Adds the files below a folder, in order: programs of other sources do not work together.
fn digest(folder: &Path, hasher: &mut DefaultHasher) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            digest(&path, hasher);
        } else {
            (&path, fs::read(&path).unwrap_or_default()).hash(hasher);
        }
    }
}

/// The folder of libtorch: what LIBTORCH_LIB or LIBTORCH name (`.cargo/config.toml` sets the latter), else the link.
fn root() -> PathBuf {
    let named = env::var_os("LIBTORCH_LIB").or_else(|| env::var_os("LIBTORCH"));
    let checkout = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    named.map_or_else(|| checkout.join(".libtorch"), PathBuf::from)
}

/// The CUDA backend registers itself when its library is loaded; no symbol of it is called, and so a linker that
/// drops what is not needed would drop it.
fn keep_cuda(folder: &Path) {
    let library = folder.join("libtorch_cuda.so");
    if library.exists() {
        say("-Wl,--push-state,--no-as-needed");
        say(&library.display().to_string());
        say("-Wl,--pop-state");
    }
}

/// Adds an argument to the link of `levain-worker`.
fn say(argument: &str) {
    println!("cargo:rustc-link-arg-bin=levain-worker={argument}");
}

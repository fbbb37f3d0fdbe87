//! Compiles the C++ operators against libtorch and tells this crate's tests where libtorch is.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::{env, fs};

/// A number that changes with the files of a folder.
fn digest(folder: &str) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
    paths.sort();
    let mut hasher = DefaultHasher::new();
    for path in paths {
        (&path, fs::read(&path).unwrap_or_default()).hash(&mut hasher);
    }
    hasher.finish()
}

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=cpp");
    let root = PathBuf::from(env::var("LIBTORCH").unwrap_or_default());
    // Set-up touches this file when it lays the link anew.
    println!(
        "cargo:rerun-if-changed={}",
        root.join("build-version").display()
    );
    let include = root.join("include");
    let api = include.join("torch/csrc/api/include");
    if !include.join("ATen/ATen.h").is_file() || !api.is_dir() {
        println!(
            "cargo:error=libtorch's headers are not at {}: run `make setup`, which fetches libtorch and lays the link .libtorch",
            include.display()
        );
        std::process::exit(1);
    }
    // In the crate's metadata: cargo links programs anew only where the metadata of a crate between has changed, which a changed
    // static library alone does not do.
    println!("cargo:rustc-env=LEVAIN_OPERATORS={:016x}", digest("cpp"));
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64");

    // The operators first: a static library must stand before the one that it needs.
    let mut operators = cc::Build::new();
    operators
        .cpp(true)
        .std("c++20")
        .opt_level(2)
        .warnings(false)
        .include("cpp")
        .flag("-isystem")
        .flag(include.display().to_string())
        .flag("-isystem")
        .flag(api.display().to_string())
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .files(
            ["blocks", "checkpoint", "interface", "linear", "loss"]
                .map(|name| format!("cpp/{name}.cpp")),
        );
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        operators.flag("-fopenmp");
    }
    if x86 {
        operators.define("LEVAIN_AVX2", None);
    }
    operators.compile("levain_operators");

    // Only these files may use AVX2, and the next two AVX-512: they are called after a look at the processor.
    let mut kernels = cc::Build::new();
    kernels.cpp(true).std("c++20").opt_level(3).include("cpp");
    if x86 {
        kernels.flag("-mavx2").flag("-mfma").flag("-mf16c").files(
            ["adamw", "attend", "gemm", "rows", "weight"].map(|name| format!("cpp/{name}.cpp")),
        );
    } else {
        kernels.file("cpp/absent.cpp");
    }
    if x86 {
        // Before the kernels that call it.
        let mut wide = cc::Build::new();
        wide.cpp(true).std("c++20").opt_level(3).include("cpp");
        // GCC 12 takes its own undefined vectors for a mistake.
        wide.flag_if_supported("-Wno-maybe-uninitialized");
        wide.flag_if_supported("-Wno-uninitialized");
        wide.flag("-mavx512f")
            .flag("-mavx512bw")
            .flag("-mf16c")
            .flag("-mfma");
        wide.files(["gemm512", "rows512", "weight512"].map(|name| format!("cpp/{name}.cpp")));
        kernels.objects(wide.compile_intermediates());
    }
    kernels.compile("levain_kernels");

    let library = root.join("lib");
    let library = library.canonicalize().unwrap_or(library);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", library.display());
    // For the tests on a GPU; why it has to be said is told in the build script of the programs.
    let cuda = library.join("libtorch_cuda.so");
    if cuda.exists() {
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed");
        println!("cargo:rustc-link-arg={}", cuda.display());
        println!("cargo:rustc-link-arg=-Wl,--pop-state");
    }
}

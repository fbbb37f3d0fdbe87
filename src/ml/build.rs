//! Compiles the C++ operators against libtorch and tells this crate's tests where libtorch is.

use std::env;
use std::path::PathBuf;

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
        .files(["blocks", "interface", "linear", "loss"].map(|name| format!("cpp/{name}.cpp")));
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        operators.flag("-fopenmp");
    }
    if x86 {
        operators.define("LEVAIN_AVX2", None);
    }
    operators.compile("levain_operators");

    // Only these files may use AVX2: they are called after a look at the processor.
    let mut kernels = cc::Build::new();
    kernels.cpp(true).std("c++20").opt_level(3).include("cpp");
    if x86 {
        kernels
            .flag("-mavx2")
            .flag("-mfma")
            .files(["attend", "gemm", "rows"].map(|name| format!("cpp/{name}.cpp")));
    } else {
        kernels.file("cpp/absent.cpp");
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

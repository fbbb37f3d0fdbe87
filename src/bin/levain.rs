//! `levain`: the program that a person types. All of it is in the library `cli`; libtorch is in neither.

fn main() -> std::process::ExitCode {
    engine::worker::name_build(env!("LEVAIN_BUILD"));
    cli::main()
}

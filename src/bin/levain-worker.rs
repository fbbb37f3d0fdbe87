//! The worker: runs tensor stages for `levain`; the only program that links libtorch.

fn main() -> std::process::ExitCode {
    engine::worker::name_build(env!("LEVAIN_BUILD"));
    if std::env::args().nth(1).as_deref() != Some("serve") {
        eprintln!(
            "levain-worker runs tensor stages for `levain`, which starts it; there is nothing to do by hand"
        );
        return std::process::ExitCode::from(2);
    }
    match engine::worker::serve(&stages_torch::service()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

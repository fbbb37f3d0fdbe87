//! `levain completions`: words for the shell.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::context::Context;
use crate::failure::Status;
use crate::options::Options;

/// Print a script that completes `levain` in your shell
///
/// For bash: `levain completions bash > ~/.local/share/bash-completion/completions/levain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Options::command(), "levain", &mut script);
    context.print(&String::from_utf8_lossy(&script))?;
    Ok(Status::Done)
}

//! `levain completions`: words for the shell.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

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
    /// Print JSON: the shell and its script
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Options::command(), "levain", &mut script);
    let script = String::from_utf8_lossy(&script);
    if args.json {
        context.print_json(&json!({ "shell": args.shell.to_string(), "script": script }))?;
    } else {
        context.print(&script)?;
    }
    Ok(Status::Done)
}

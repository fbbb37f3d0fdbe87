//! The commands, one file each.

mod cache;
mod chat;
mod check;
mod completions;
mod doctor;
mod export;
mod fetch;
mod graph;
mod init;
mod kinds;
mod label;
mod plan;
mod run;
mod runs;
mod schema;
mod show;
mod why;

#[cfg(test)]
mod tests;

use anyhow::Result;
use clap::Subcommand;

use crate::context::Context;
use crate::failure::Status;

/// What `levain` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(init::Args),
    Check(check::Args),
    Plan(plan::Args),
    Run(run::Args),
    Label(label::Args),
    Why(why::Args),
    Show(show::Args),
    Chat(chat::Args),
    Export(export::Args),
    Runs(runs::Args),
    Graph(graph::Args),
    Fetch(fetch::Args),
    Kinds(kinds::Args),
    Schema(schema::Args),
    Cache(cache::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
}

/// Does what `command` says.
pub(crate) fn run(command: &Command, context: &Context) -> Result<Status> {
    match command {
        Command::Init(args) => init::run(args, context),
        Command::Check(args) => check::run(args, context),
        Command::Plan(args) => plan::run(args, context),
        Command::Run(args) => run::run(args, context),
        Command::Label(args) => label::run(args, context),
        Command::Why(args) => why::run(args, context),
        Command::Show(args) => show::run(args, context),
        Command::Chat(args) => chat::run(args, context),
        Command::Export(args) => export::run(args, context),
        Command::Runs(args) => runs::run(args, context),
        Command::Graph(args) => graph::run(args, context),
        Command::Fetch(args) => fetch::run(args, context),
        Command::Kinds(args) => kinds::run(args, context),
        Command::Schema(args) => schema::run(args, context),
        Command::Cache(args) => cache::run(args, context),
        Command::Doctor(args) => doctor::run(args, context),
        Command::Completions(args) => completions::run(args, context),
    }
}

impl Command {
    /// Whether its answer is for programs: then what goes wrong is told as JSON as well.
    pub(crate) fn json(&self) -> bool {
        match self {
            Command::Check(args) => args.json,
            Command::Plan(args) => args.json,
            Command::Run(args) => args.json,
            Command::Label(args) => args.json,
            Command::Why(args) => args.json,
            Command::Show(args) => args.json,
            Command::Export(args) => args.json,
            Command::Graph(args) => args.json,
            Command::Fetch(args) => args.json,
            Command::Runs(args) => args.json(),
            Command::Kinds(args) => args.json,
            Command::Cache(args) => args.json(),
            Command::Doctor(args) => args.json,
            // These can't fail with `--json`, or do not have it.
            Command::Init(_) | Command::Chat(_) | Command::Schema(_) | Command::Completions(_) => {
                false
            }
        }
    }
}

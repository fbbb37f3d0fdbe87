//! `levain cache`: where the cache is, how large, what can go, whether it is whole.

mod gc;
pub(super) mod size;
mod verify;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use crate::context::Context;
use crate::failure::Status;
use crate::{table, units};

/// Look at the cache, and tidy it up
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Print where it is
    Path,
    /// Print how much it holds
    Size {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Gc(gc::Args),
    Verify(verify::Args),
}

impl Args {
    /// Whether the answer is for programs.
    pub(super) fn json(&self) -> bool {
        match &self.command {
            CacheCommand::Path => false,
            CacheCommand::Size { json } => *json,
            CacheCommand::Gc(args) => args.json,
            CacheCommand::Verify(args) => args.json,
        }
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    match &args.command {
        CacheCommand::Path => {
            context.print(&format!(
                "{}\n",
                context.cache_folder(std::path::Path::new(".")).display()
            ))?;
            Ok(Status::Done)
        }
        CacheCommand::Size { json } => print_size(*json, context),
        CacheCommand::Gc(args) => gc::run(args, context),
        CacheCommand::Verify(args) => verify::run(args, context),
    }
}

fn print_size(as_json: bool, context: &Context) -> Result<Status> {
    let cache = context.existing_cache()?;
    let size = size::of(cache.root());
    if as_json {
        let folders: serde_json::Map<_, _> = size
            .folders
            .iter()
            .map(|(name, count, bytes)| {
                (
                    (*name).to_owned(),
                    json!({ "files": count, "bytes": bytes }),
                )
            })
            .collect();
        context.print_json(
            &json!({ "path": cache.root(), "bytes": size.total(), "folders": folders }),
        )?;
        return Ok(Status::Done);
    }
    let mut rows: Vec<Vec<String>> = size
        .folders
        .iter()
        .map(|(name, count, bytes)| {
            vec![
                (*name).to_owned(),
                units::plural(*count, "file"),
                units::bytes(*bytes),
            ]
        })
        .collect();
    rows.push(vec![
        context.out.bold("in all"),
        String::new(),
        context.out.bold(&units::bytes(size.total())),
    ]);
    context.print(&format!(
        "{}\n{}",
        cache.root().display(),
        table::columns(&rows, &[1, 2], "  ")
    ))?;
    Ok(Status::Done)
}

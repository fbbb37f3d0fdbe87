//! `levain export`: an artifact into a folder.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde_json::json;

use crate::context::Context;
use crate::failure::{Failure, Status};
use crate::options::RecipeArgs;
use crate::units;

/// Write what a stage made into a folder
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The stage, or `stage.output`
    #[arg(value_name = "STAGE")]
    stage: String,
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// In which form
    #[arg(long, value_enum, default_value_t = Format::Files)]
    format: Format,
    /// Write into a folder that is not empty: files of the same name are replaced, others stay
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The form of an exported artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The artifact's own files.
    Files,
    /// An adapter as Python's PEFT loads it, with the tokenizer.
    Peft,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let session = context.open(&args.recipe)?;
    let digest = super::show::artifact(&session, &args.stage)?.1;
    let folder = &args.folder;
    let occupied = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => {
            return Err(error).with_context(|| format!("{} can't be read", folder.display()));
        }
    };
    if occupied && !args.force {
        return Err(Failure::usage(format_args!(
            "{} is not empty: name another folder, or add `--force` to write into it",
            folder.display()
        )));
    }
    let format = match args.format {
        Format::Files => engine::recipe::Format::Files,
        Format::Peft => engine::recipe::Format::Peft,
    };
    let view = session.cache.view(digest)?;
    let files = engine::export::files(&session.cache, &view, format)
        .map_err(|error| Failure::usage(format_args!("`{}`: {error:#}", args.stage)))?;
    let written = engine::export::restore(&session.cache, digest, format, folder)?;
    if args.json {
        let names: Vec<_> = files.keys().collect();
        context.print_json(
            &json!({ "artifact": digest, "folder": folder, "files": names, "written": written }),
        )?;
        return Ok(Status::Done);
    }
    context.print(&format!(
        "{}: {} of {} {}\n",
        folder.display(),
        units::plural(files.len(), "file"),
        view.artifact,
        digest.short()
    ))?;
    Ok(Status::Done)
}

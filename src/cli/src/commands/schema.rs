//! `levain schema`: the JSON Schema of recipes.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::failure::Status;

/// The schema's file name, as recipes name it to editors.
pub(crate) const FILE: &str = "recipe.schema.json";

/// Print the JSON Schema of recipes, for editors
///
/// Name it in a recipe's first line: `# yaml-language-server: $schema=recipe.schema.json`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write `recipe.schema.json` into this folder instead
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Print JSON, which the schema is in any case
    #[arg(long = "json", conflicts_with = "write")]
    _json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let text = text(context);
    match &args.write {
        None => context.print(&text)?,
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("{} can't be made", folder.display()))?;
            let path = folder.join(FILE);
            engine::lock::write_whole(&path, &text)?;
            context.say(&format!("wrote {}\n", path.display()));
        }
    }
    Ok(Status::Done)
}

/// The schema as it is checked in.
pub(crate) fn text(context: &Context) -> String {
    format!("{:#}\n", engine::schema::recipe_schema(context.contracts()))
}

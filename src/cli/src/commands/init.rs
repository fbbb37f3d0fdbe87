//! `levain init`: a first recipe.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::schema;
use crate::context::Context;
use crate::failure::{Failure, Status};

/// Write a first recipe, with the schema that helps an editor
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder to write into
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// Which recipe
    #[arg(long, value_enum, default_value_t = Bundle::Quickstart)]
    from: Bundle,
}

/// A recipe that comes with Levain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bundle {
    /// Fine-tune a small model and see the difference.
    Quickstart,
    /// The cache at work, within seconds and without tensors.
    CacheTour,
}

impl Bundle {
    fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Quickstart => (
                "quickstart.yaml",
                include_str!("../../../../recipes/quickstart.yaml"),
            ),
            Self::CacheTour => (
                "cache-tour.yaml",
                include_str!("../../../../recipes/cache-tour.yaml"),
            ),
        }
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let (name, text) = args.from.file();
    let folder = &args.folder;
    let path = folder.join(name);
    // What is to be typed next reads better without `./`.
    let path = path.strip_prefix(".").map_or(path.clone(), Path::to_owned);
    if path.exists() {
        return Err(Failure::usage(format_args!(
            "{} is there already and stays as it is: name another folder, or remove it first",
            path.display()
        )));
    }
    std::fs::create_dir_all(folder)
        .with_context(|| format!("{} can't be made", folder.display()))?;
    engine::lock::write_whole(&path, &moved(text, name, &path))?;
    let schema_path = folder.join(schema::FILE);
    if !schema_path.exists() {
        engine::lock::write_whole(&schema_path, &schema::text(context))?;
    }
    let style = context.out;
    let shown = path.display();
    context.print(&format!(
        "wrote {shown} and {}\n\nType next:\n  {}   what would run, and why\n  {}    run it\n",
        schema_path.display(),
        style.bold(&format!("levain plan {shown}")),
        style.bold(&format!("levain run {shown}")),
    ))?;
    Ok(Status::Done)
}

/// The recipe as it reads in its new place: the schema lies beside it, and what the comments say to type names it.
fn moved(text: &str, name: &str, path: &Path) -> String {
    let line = |line: &str| match line.trim_start().starts_with("# yaml-language-server:") {
        true => format!("# yaml-language-server: $schema={}\n", schema::FILE),
        false => line.replace(&format!("recipes/{name}"), &path.display().to_string()),
    };
    text.split_inclusive('\n').map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundled_recipes_have_no_mistakes_that_their_text_shows() {
        for bundle in Bundle::value_variants() {
            let (name, text) = bundle.file();
            let read = engine::recipe::check_text(
                name.as_ref(),
                moved(text, name, name.as_ref()),
                &[],
                ::kinds::contracts(),
            );
            assert!(read.is_ok(), "{}", read.unwrap_err());
        }
    }
}

//! The command line's words: global options, the list of commands, and the page that `--help` prints.

use std::path::PathBuf;

use anyhow::Result;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, ValueEnum};

use engine::recipe::{Recipe, is_device};

use crate::commands::Command;
use crate::failure::Failure;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Printed at the end of `levain --help`; `docs/commands.md` says the same.
pub(crate) const AFTER_HELP: &str = "\
Exit codes:
  0    all is well
  1    a stage failed, or `doctor` or `cache verify` found something wrong
  2    the command line, the recipe or the first rows of its data have a mistake
  3    a stage waits for a person
  4    the cache, the disk, the network or the worker failed
  130  interrupted: running stages wrote a snapshot first

Environment:
  LEVAIN_CACHE           another cache (as --cache)
  LEVAIN_WORKER          another worker
  LEVAIN_LOG             diagnostics, such as `debug` or `engine=trace`; wins over -v
  LEVAIN_ALLOW_PROGRAMS  1 lets recipes start programs (as run --allow-programs)
  NO_COLOR               no colours

Begin with `levain init`; `levain doctor` says what is missing.";

/// A declarative pipeline engine for fine-tuning language models.
///
/// A recipe (YAML) describes stages; Levain checks it, says what would run and why, runs only what changed, and keeps every
/// result.
#[derive(Debug, Parser)]
#[command(name = "levain", version, after_help = AFTER_HELP, styles = STYLES, max_term_width = 100)]
#[command(
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Options {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Global {
    /// The cache's folder [default: LEVAIN_CACHE, else the nearest Levain `cache` in or above the recipe's folder, else a new
    /// one beside the recipe]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub cache: Option<PathBuf>,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN", help_heading = "Global options")]
    pub color: ColorChoice,
    /// Tell more on standard error (-v, -vv)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// Tell nothing but failures on standard error
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A recipe and what is changed in it.
#[derive(Args, Clone, Debug)]
pub(crate) struct RecipeArgs {
    /// The recipe's file
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Set a value of the recipe, such as `params.lr=1e-4` or `sft.epochs=2`; may be given several times
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

/// Where tensors live: the option, else the recipe, else the environment's `LEVAIN_DEVICE`, else the processor.
pub(crate) fn device(option: Option<&str>, recipe: &Recipe) -> Result<String> {
    let environment = || {
        std::env::var("LEVAIN_DEVICE")
            .ok()
            .filter(|d| !d.is_empty())
    };
    let found = option.map(ToOwned::to_owned);
    let device = found.or_else(|| recipe.device.clone()).or_else(environment);
    match device {
        Some(wrong) if !is_device(&wrong) => Err(Failure::usage(format_args!(
            "`{wrong}` is not a device: write `cpu`, `cuda` or `cuda:0`"
        ))),
        found => Ok(found.unwrap_or_else(|| "cpu".to_owned())),
    }
}

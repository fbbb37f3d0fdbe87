//! `levain run`: bring every stage up to date.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use anyhow::Result;
use engine::diagnostic::Problems;
use engine::event::Sink;
use engine::schedule::{self, RunOptions};
use engine::source::Network;

use super::fetch::fetch;
use super::why::find;
use crate::context::{Context, looks};
use crate::failure::{Failure, Status};
use crate::interrupt::{self, AT_REST, STOP, WorkBegins};
use crate::options::{RecipeArgs, device};
use crate::summary;
use crate::tensorboard::TensorBoard;
use crate::terminal::{Detail, Terminal};

/// Run what is not in the cache, and restore the recipe's outputs
///
/// Sources that are not here are fetched first. Ctrl-C stops: running stages write a snapshot, and the next run goes on from there.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Only these stages, with what they need [default: all]
    #[arg(value_name = "STAGE")]
    stages: Vec<String>,
    /// Run this stage even when the cache has it; may be given several times
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Where tensors live: cpu, cuda or cuda:0
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Threads of tensor stages; equal bytes are promised for equal counts
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=4096))]
    threads: Option<u16>,
    /// After a failure go on with stages that need nothing of it
    #[arg(long)]
    keep_going: bool,
    /// Fetch nothing: a source that is not here is an error
    #[arg(long)]
    offline: bool,
    /// Let stages start the programs that the recipe names; `levain check` lists them [default: LEVAIN_ALLOW_PROGRAMS]
    #[arg(long)]
    allow_programs: bool,
    /// Tell how it goes in lines, even on a terminal
    #[arg(long)]
    plain: bool,
    /// Print one JSON object at the end, and nothing else, on standard output
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let mut session = context.open(&args.recipe)?;
    for name in args.stages.iter().chain(&args.force) {
        find(&session, name)?;
    }
    let device = device(args.device.as_deref(), &session.recipe)?;
    let allow_programs = args.allow_programs || allowed_by_environment()?;
    session.about(&args.stages);
    interrupt::watch();
    AT_REST.store(true, Ordering::SeqCst);
    prepare_sources(&mut session, args, context)?;
    let kinds: HashMap<String, String> = session
        .plan
        .nodes
        .iter()
        .map(|n| (n.name.clone(), n.contract.kind.to_owned()))
        .collect();
    let options = RunOptions {
        targets: args.stages.clone(),
        force: args.force.clone(),
        device: Some(device),
        threads: args.threads.map(usize::from),
        keep_going: args.keep_going,
        implementations: stages_data::implementations(),
        looks: looks(),
        allow_programs,
        worker: engine::worker::locate(),
        stop: &STOP,
        network: Network::from_env(),
    };
    let sources = session.recipe.sources.clone();
    let begun = SystemTime::now();
    let detail = match (context.quiet, context.verbose) {
        (true, _) => Detail::Quiet,
        (false, 0) => Detail::Usual,
        _ => Detail::More,
    };
    let sinks = |folder: Option<&Path>| -> Vec<Box<dyn Sink>> {
        let terminal = Terminal::new(kinds, context.err, detail, args.plain);
        let terminal = terminal.pointing_into(sources);
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(WorkBegins), Box::new(terminal)];
        sinks
            .extend(folder.map(|f| {
                Box::new(TensorBoard::new(f.join("tensorboard"), begun)) as Box<dyn Sink>
            }));
        sinks
    };
    let outcome = schedule::run(&mut session, &options, Box::new(sinks)).map_err(blame)?;
    if args.json {
        context.print_json(&summary::to_json(&session, &outcome))?;
    } else {
        context.print(&summary::text(&session, &outcome, context))?;
    }
    let status = summary::status(&outcome);
    // The program ends here: taking a thousand stages apart piece by piece takes a tenth of the time that planning them did.
    std::mem::forget((session, outcome));
    Ok(status)
}

/// Whether `LEVAIN_ALLOW_PROGRAMS` lets recipes run programs: a slip in a permission must not count as one.
fn allowed_by_environment() -> Result<bool> {
    let name = "LEVAIN_ALLOW_PROGRAMS";
    let value = std::env::var_os(name).unwrap_or_default();
    match value.to_str() {
        Some("1") => Ok(true),
        Some("" | "0") => Ok(false),
        _ => Err(Failure::usage(format_args!(
            "{name} is 1 (recipes may run programs) or 0, not {value:?}"
        ))),
    }
}

/// The recipe is fine: whatever goes wrong outside of stages is the machine's, but for what its data turned out to be, and for
/// programs that nobody has allowed.
fn blame(error: anyhow::Error) -> anyhow::Error {
    let told = |problems: &Problems| {
        engine::peek::found_all(problems) || engine::programs::all_refused(problems)
    };
    match error.downcast_ref::<Problems>() {
        Some(problems) if told(problems) => error,
        _ => Failure::machine(error),
    }
}

fn prepare_sources(
    session: &mut engine::session::Session,
    args: &Args,
    context: &Context,
) -> Result<()> {
    let missing = session.missing();
    if args.offline && !missing.is_empty() {
        let list: String = missing.iter().map(|s| format!("\n  {s}")).collect();
        return Err(Failure::machine(anyhow::anyhow!(
            "these sources are not here, and `--offline` forbids to fetch them; run once without it:{list}"
        )));
    }
    fetch(session, context, args.plain)
}

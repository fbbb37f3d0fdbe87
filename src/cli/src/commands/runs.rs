//! `levain runs`: runs of the past.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use engine::event::{Sink, What};
use serde_json::json;

use crate::context::Context;
use crate::failure::{Failure, Status};
use crate::log::{Run, runs};
use crate::tensorboard::TensorBoard;
use crate::terminal::{Detail, Terminal};
use crate::{table, units};

/// List the runs in the cache, newest last; `runs show ID` prints one again
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Only runs of this recipe: its file or its name
    #[arg(value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// How many of the newest
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<RunsCommand>,
}

#[derive(Debug, Subcommand)]
enum RunsCommand {
    /// Print a run again, from its log
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The run: its id, the beginning of it, or `last`
    #[arg(value_name = "ID")]
    id: String,
    /// Write its TensorBoard files again, below this folder
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
    /// Print its events as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Whether the answer is for programs.
    pub(super) fn json(&self) -> bool {
        match &self.command {
            Some(RunsCommand::Show(args)) => args.json,
            None => self.json,
        }
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    if let Some(RunsCommand::Show(show_args)) = &args.command {
        return show(show_args, context);
    }
    let folder = match &args.recipe {
        Some(recipe) if recipe.is_file() => recipe
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .map(|p| p.to_owned()),
        _ => None,
    };
    let cache = context.cache_folder(&folder.unwrap_or_else(|| PathBuf::from(".")));
    let wanted_path = args.recipe.as_ref().and_then(|r| r.canonicalize().ok());
    let wanted_name = args.recipe.as_ref().map(|r| r.display().to_string());
    let mut list = Vec::new();
    for run in runs(&cache.join("runs"))?.into_iter().rev() {
        let lock = run.lock();
        let recipe = lock
            .as_ref()
            .map_or_else(|| run.recipe(), |l| l.recipe.clone());
        let fits = match (&wanted_path, &wanted_name) {
            (_, None) => true,
            (Some(path), _) => lock.as_ref().is_some_and(|l| l.path == *path),
            (None, Some(name)) => recipe == *name,
        };
        if fits {
            list.push((run, recipe));
        }
        if list.len() == args.limit {
            break;
        }
    }
    list.reverse();
    if args.json {
        let value: Vec<_> = list
            .iter()
            .map(|(run, recipe)| {
                let end = run.end();
                json!({ "id": run.id, "folder": run.folder, "recipe": recipe, "begun": units::date(run.begun), "outcome": outcome(run, end.as_ref()), "end": end })
            })
            .collect();
        context.print_json(&value.into())?;
        return Ok(Status::Done);
    }
    if list.is_empty() {
        context.print(&format!("no runs in {}\n", cache.display()))?;
        return Ok(Status::Done);
    }
    let style = context.out;
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|(run, recipe)| {
            let end = run.end();
            let word = outcome(run, end.as_ref());
            let word = match word {
                "done" => style.green(word),
                "failed" => style.red(word),
                _ => style.yellow(word),
            };
            let (counts, time) = match end {
                Some(What::Ended {
                    ran,
                    hits,
                    failed,
                    milliseconds,
                    ..
                }) => (
                    format!("{ran} ran, {hits} cached, {failed} failed"),
                    units::time(milliseconds),
                ),
                _ => (String::new(), String::new()),
            };
            vec![
                run.id.clone(),
                style.bold(recipe),
                units::date(run.begun),
                word,
                counts,
                time,
            ]
        })
        .collect();
    context.print(&table::columns(&rows, &[], ""))?;
    Ok(Status::Done)
}

/// What became of a run, in a word.
fn outcome(run: &Run, end: Option<&What>) -> &'static str {
    // What a `stop_if` skips is as it should be.
    let complete = || run.lock().is_some_and(|lock| lock.complete);
    match end {
        Some(What::Ended { failed, .. }) if *failed > 0 => "failed",
        Some(What::Ended { waiting, .. }) if *waiting > 0 => "waiting",
        Some(What::Ended { skipped, .. }) if *skipped > 0 && !complete() => "stopped",
        Some(_) => "done",
        None => "unfinished",
    }
}

fn show(args: &ShowArgs, context: &Context) -> Result<Status> {
    let cache = context.existing_cache()?;
    let run = find(runs(&cache.runs())?, &args.id)?;
    let events = run.events()?;
    if let Some(folder) = &args.tensorboard {
        let mut sink = TensorBoard::new(folder.clone(), run.begun);
        events.iter().for_each(|event| sink.emit(event));
        context.say(&format!(
            "wrote TensorBoard files to {}\n",
            folder.display()
        ));
        return Ok(Status::Done);
    }
    if args.json {
        context.print_json(&serde_json::to_value(&events)?)?;
        return Ok(Status::Done);
    }
    let lock = run.lock();
    let kinds: HashMap<String, String> = lock
        .iter()
        .flat_map(|l| &l.stages)
        .map(|(name, stage)| (name.clone(), stage.kind.clone()))
        .collect();
    let (sender, receiver) = std::sync::mpsc::channel::<String>();
    let mut terminal = Terminal::replay(
        kinds,
        context.out,
        Detail::More,
        Box::new(move |text| drop(sender.send(text.to_owned()))),
    );
    terminal = terminal.pointing_into(run.sources());
    events.iter().for_each(|event| terminal.emit(event));
    drop(terminal);
    let mut text = format!(
        "{} {}, {}\n",
        context.out.bold(&run.id),
        run.recipe(),
        units::date(run.begun)
    );
    receiver.iter().for_each(|line| text.push_str(&line));
    let end = events.last().map(|e| &e.what);
    text.push_str(&match end {
        Some(What::Ended { ran, hits, failed, waiting, skipped, milliseconds }) => format!(
            "{ran} ran, {hits} cached, {failed} failed, {waiting} waiting, {skipped} skipped in {}\n",
            units::time(*milliseconds)
        ),
        _ => "the run did not come to its end\n".to_owned(),
    });
    context.print(&text)?;
    Ok(Status::Done)
}

fn find(list: Vec<Run>, id: &str) -> Result<Run> {
    let fits = |run: &Run| run.id == id || run.id.starts_with(id);
    let count = list.iter().filter(|r| fits(r)).count();
    let found = match count {
        1 => list.into_iter().find(fits),
        0 if id == "last" => list.into_iter().next_back(),
        0 => None,
        _ => {
            return Err(Failure::usage(format_args!(
                "{count} runs begin with `{id}`: write more of it; `levain runs` lists them"
            )));
        }
    };
    found.ok_or_else(|| {
        Failure::usage(format_args!(
            "there is no run `{id}`; `levain runs` lists them"
        ))
    })
}

//! `levain fetch`: sources from outside, fetched and pinned; also what `run` does first.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use engine::session::Session;
use engine::source::{Network, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::context::Context;
use crate::failure::{Failure, Status};
use crate::options::RecipeArgs;
use crate::terminal::{BARS, go_live, say};
use crate::units;

/// Fetch the sources that are not here, and pin them in the recipe's lock file
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Print the sources with their digests as JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let mut session = context.open(&args.recipe)?;
    let missing = session.missing();
    fetch(&mut session, context, false)?;
    let mut sources: Vec<_> = session
        .sources
        .values()
        .map(|r| {
            (
                r.location.clone(),
                r.digest,
                r.files.iter().map(|f| f.size).sum::<u64>(),
            )
        })
        .collect();
    sources.sort();
    sources.dedup();
    if args.json {
        let list: Vec<_> = sources
            .iter()
            .map(
                |(place, digest, size)| json!({ "source": place, "digest": digest, "bytes": size }),
            )
            .collect();
        context.print_json(&json!({ "fetched": missing, "sources": list }))?;
        return Ok(Status::Done);
    }
    let rows: Vec<Vec<String>> = sources
        .iter()
        .map(|(place, digest, size)| {
            vec![
                context.out.dim(&digest.short()),
                units::bytes(*size),
                place.clone(),
            ]
        })
        .collect();
    let mut text = crate::table::columns(&rows, &[1], "");
    text.push_str(&match missing.len() {
        0 => "every source was here already\n".to_owned(),
        count => format!("{} fetched\n", units::plural(count, "source")),
    });
    context.print(&text)?;
    Ok(Status::Done)
}

/// Fetches what is missing and pins what is not pinned yet, with bars on a terminal and a line now and then elsewhere.
pub(crate) fn fetch(session: &mut Session, context: &Context, plain: bool) -> Result<()> {
    if session.missing().is_empty() && !session.has_unpinned() {
        return Ok(());
    }
    let meter = Meter::new(context, plain);
    let result = session.fetch(&Network::from_env(), &|progress| meter.update(&progress));
    meter.end(result.is_ok());
    // What is wrong is drawn at its place in the recipe, but the network is at fault.
    result.map_err(Failure::machine)
}

/// The file's own name: a line has no room for the whole place.
fn short(location: &str) -> &str {
    let trimmed = location.trim_end_matches('/');
    trimmed.rsplit(['/', '#']).next().unwrap_or(trimmed)
}

/// Bars or lines, one for each location.
struct Meter<'a> {
    context: &'a Context,
    live: bool,
    bars: Mutex<HashMap<String, ProgressBar>>,
    told: Mutex<HashMap<String, (Instant, u64)>>,
}

impl<'a> Meter<'a> {
    fn new(context: &'a Context, plain: bool) -> Self {
        let live = std::io::stderr().is_terminal() && !plain && !context.quiet;
        if live {
            go_live();
        }
        Self {
            context,
            live,
            bars: Mutex::default(),
            told: Mutex::default(),
        }
    }

    fn update(&self, progress: &Progress<'_>) {
        if self.live {
            self.bar(progress)
        } else {
            self.line(progress)
        }
    }

    fn bar(&self, progress: &Progress<'_>) {
        let mut bars = self
            .bars
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let bar = bars.entry(progress.location.to_owned()).or_insert_with(|| {
            let bar = BARS.add(ProgressBar::no_length());
            let text = "  {bar:12.cyan/dim} {decimal_bytes:>9} of {decimal_total_bytes:<9} {decimal_bytes_per_sec:>11} {eta:>4}  {wide_msg}";
            let style = ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("━╸─"));
            bar.set_message(short(progress.location).to_owned());
            // What earlier runs fetched is no part of the rate.
            bar.set_position(progress.done);
            bar.reset_eta();
            bar
        });
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
    }

    fn line(&self, progress: &Progress<'_>) {
        if self.context.quiet {
            return;
        }
        let mut told = self
            .told
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let due = told
            .get(progress.location)
            .is_none_or(|(last, _)| now.duration_since(*last) >= Duration::from_secs(5));
        if !due {
            return;
        }
        let before = told.insert(progress.location.to_owned(), (now, progress.done));
        let total = progress
            .total
            .map(|t| format!(" of {}", units::bytes(t)))
            .unwrap_or_default();
        let rate = before.map(|(then, done)| {
            let seconds = now.duration_since(then).as_secs_f64().max(1e-3);
            format!(
                ", {}/s",
                units::bytes((progress.done.saturating_sub(done) as f64 / seconds) as u64)
            )
        });
        say(&format!(
            "  fetching {}: {}{total}{}\n",
            progress.location,
            units::bytes(progress.done),
            rate.unwrap_or_default()
        ));
    }

    fn end(&self, fine: bool) {
        let bars = std::mem::take(
            &mut *self
                .bars
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for (location, bar) in bars {
            let size = bar.position();
            bar.finish_and_clear();
            BARS.remove(&bar);
            if fine {
                self.context.say(&format!(
                    "{} fetched {location} ({})\n",
                    self.context.err.green("✓"),
                    units::bytes(size)
                ));
            }
        }
    }
}

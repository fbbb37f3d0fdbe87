//! Runs a plan. The approach:
//!
//! - Every wanted node whose needs are done becomes ready; its record is then known, and a hit makes it done at once.
//! - A ready node without a hit queues for its pool: `cpu` runs inside this process, several at a time; `torch` runs in the
//!   worker, one at a time.
//! - A thread per running node takes the key's lease, runs the stage in a private folder, and publishes what it made.
//! - What a node needs and did not get makes it skipped; with `keep_going` the rest of the plan goes on.
//! - What a `stop_if` skips is no failure: who takes the last round that ran takes an earlier one.

mod events;
mod node;
mod scheduler;
pub mod state;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::contract::Pool;
use crate::diagnostic::Place;
use crate::event::{Level, Sink, What};
use crate::job::Implementation;
use crate::known::Looks;
use crate::lock::{RunLock, StageLock};
use crate::plan::{Known, Standing, Unknown};
use crate::session::Session;
use crate::source::Network;
use crate::worker::Worker;

use events::{Hub, LogFile};
use scheduler::Scheduler;
use state::State;

/// What a run may be told.
pub struct RunOptions<'a> {
    /// The stages to bring up to date, with what they need; empty for all.
    pub targets: Vec<String>,
    /// Stages to run even when the cache has them.
    pub force: Vec<String>,
    /// Overrides the recipe's `device`.
    pub device: Option<String>,
    /// Overrides the recipe's `threads`.
    pub threads: Option<usize>,
    /// Whether stages that need no failed one go on.
    pub keep_going: bool,
    /// How the kinds run that run inside this process.
    pub implementations: &'static [Implementation],
    /// How sources and artifacts are looked at beforehand.
    pub looks: Looks,
    /// Whether stages may start programs that the recipe names: a recipe from a stranger must never run a command by itself.
    pub allow_programs: bool,
    /// Where the worker is.
    pub worker: PathBuf,
    /// Set to stop: running stages write a snapshot first.
    pub stop: &'a AtomicBool,
    /// How sources are fetched.
    pub network: Network,
}

/// What came of a run.
pub struct Outcome {
    /// The run's folder in the cache, when it could be made.
    pub folder: Option<PathBuf>,
    /// What became of each node.
    pub lock: RunLock,
    /// Nodes that ran to their end.
    pub ran: usize,
    /// Nodes found in the cache.
    pub hits: usize,
    /// Nodes that failed.
    pub failed: usize,
    /// Nodes that wait for a person.
    pub waiting: usize,
    /// Nodes that did not run.
    pub skipped: usize,
    /// Whether the run was stopped.
    pub cancelled: bool,
    /// What failed, in that order.
    pub failures: Vec<Failure>,
    /// Folders of `outputs`.
    pub exports: Vec<Exported>,
    /// How long it took.
    pub milliseconds: u64,
    /// What was known of the nodes: whoever ends the program next need not take it apart.
    _known: Vec<Standing>,
}

/// A stage, a preparation or an output that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The node's name, or `outputs.NAME`.
    pub stage: String,
    /// The cause and the way out.
    pub error: String,
    /// Where the recipe says what failed.
    pub place: Option<Place>,
}

impl Failure {
    /// The event that tells it.
    fn told(&self) -> What {
        What::Failed {
            error: self.error.clone(),
            place: self.place.clone(),
        }
    }
}

/// One entry of `outputs` after a run.
pub struct Exported {
    /// Its name.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
    /// How many files were written; 0 when all was there.
    pub written: usize,
}

/// Makes the readers of a run's events from the run's folder, when there is one.
pub type MakeSinks<'a> = Box<dyn FnOnce(Option<&Path>) -> Vec<Box<dyn Sink>> + 'a>;

/// Runs the session's plan. `sinks` is given the run's folder, when there is one.
pub fn run(
    session: &mut Session,
    options: &RunOptions<'_>,
    sinks: MakeSinks<'_>,
) -> Result<Outcome> {
    let wanted = wanted(session, &options.targets)?;
    let force: Vec<usize> = options
        .force
        .iter()
        .map(|name| find(session, name))
        .collect::<Result<_>>()?;
    let folder = run_folder(session);
    let mut all = sinks(folder.as_deref());
    if let Some(folder) = &folder {
        all.insert(0, Box::new(LogFile::new(folder)));
        std::fs::write(folder.join("recipe.yaml"), &session.recipe.sources[0].text)
            .context("the run's folder can't be written")?;
    }
    let hub = Hub::new(all);
    if !session.missing().is_empty() || session.has_unpinned() {
        let last = Mutex::new(std::time::Instant::now() - Duration::from_secs(1));
        session.fetch(&options.network, &|p| {
            let mut last = last
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if last.elapsed() > Duration::from_millis(100) {
                *last = std::time::Instant::now();
                let name = format!("fetch {}", p.location);
                hub.emit(
                    Some(&name),
                    What::Progress {
                        done: p.done,
                        total: p.total.unwrap_or(0),
                        unit: "bytes".to_owned(),
                        rate: None,
                    },
                );
            }
        })?;
    }
    let standings = session
        .plan
        .standings(&session.cache, &session.sources, &|i| force.contains(&i));
    if !options.allow_programs {
        crate::programs::refuse(session, |i| wanted[i] && standings[i].verdict.open())
            .inspect_err(|_| forget(&folder))?;
    }
    // What a look at rows and models shows to be wrong stops the run before any work. Where all is cached it was right.
    if (0..standings.len()).any(|i| wanted[i] && standings[i].verdict.open()) {
        crate::peek::look(session, &standings, &options.looks).inspect_err(|_| forget(&folder))?;
    }
    let planned = session
        .plan
        .order
        .iter()
        .filter(|i| wanted[**i])
        .map(|i| (session.plan.nodes[*i].name.clone(), standings[*i].verdict));
    hub.emit(
        None,
        What::Planned {
            recipe: session.recipe.name.clone(),
            stages: planned.collect(),
        },
    );

    // A worker that is missing or of another build is refused before any work.
    let tensors = |i: usize| {
        wanted[i]
            && session.plan.nodes[i].contract.pool == Pool::Torch
            && standings[i].verdict.open()
    };
    let worker = match (0..standings.len()).any(tensors) {
        true => Some(
            Worker::start(&options.worker, &session.contracts.versions(Pool::Torch))
                .inspect_err(|_| forget(&folder))?,
        ),
        false => None,
    };
    let mut scheduler = Scheduler::new(session, options, &hub, standings, force, worker);
    scheduler.run(&wanted);
    let Scheduler {
        states,
        entries,
        records,
        standings,
        failures,
        hits,
        reasons,
        stopped,
        ..
    } = scheduler;

    let mut lock = RunLock {
        recipe: session.recipe.name.clone(),
        path: session
            .recipe
            .path
            .canonicalize()
            .unwrap_or_else(|_| session.recipe.path.clone()),
        set: session.set.clone(),
        complete: (0..wanted.len())
            .all(|i| !wanted[i] || stopped[i] || states.get(i) == State::Done),
        ..RunLock::default()
    };
    for &index in session.plan.order.iter().filter(|i| wanted[**i]) {
        let node = &session.plan.nodes[index];
        let outcome = match states.get(index) {
            State::Done if hits[index] => "hit",
            State::Done => "done",
            State::Failed => "failed",
            State::Waiting => "waiting",
            _ => "skipped",
        };
        let entry = StageLock {
            kind: node.contract.kind.to_owned(),
            key: records[index].as_ref().map(|r| r.key()),
            verdict: standings[index].verdict,
            outcome: outcome.to_owned(),
            reason: reasons[index].clone(),
            outputs: entries[index]
                .as_ref()
                .map(|e| e.outputs.clone())
                .unwrap_or_default(),
        };
        lock.stages.insert(node.name.clone(), entry);
    }
    lock.sources = session
        .sources
        .values()
        .map(|r| (r.location.clone(), r.digest))
        .collect();
    let mut failures = failures;
    let known = |node: usize| match (&entries[node], &reasons[node]) {
        (Some(entry), _) => Known::Done(entry),
        (None, Some(reason)) if stopped[node] => Known::Stopped(reason),
        _ => Known::Open,
    };
    let exports = restore_outputs(session, &known, &hub, &mut failures);
    if let Some(folder) = &folder {
        lock.write(folder)?;
    }
    let hit_count = hits.iter().filter(|h| **h).count();
    let outcome = Outcome {
        folder,
        ran: states.count(State::Done) - hit_count,
        hits: hit_count,
        failed: failures.len(),
        waiting: states.count(State::Waiting),
        skipped: states.count(State::Skipped),
        cancelled: options.stop.load(Ordering::SeqCst),
        failures,
        exports,
        milliseconds: hub.milliseconds(),
        lock,
        _known: standings,
    };
    hub.emit(
        None,
        What::Ended {
            ran: outcome.ran,
            hits: outcome.hits,
            failed: outcome.failed,
            waiting: outcome.waiting,
            skipped: outcome.skipped,
            milliseconds: outcome.milliseconds,
        },
    );
    Ok(outcome)
}

/// Nothing happened: there is no run to speak of.
fn forget(folder: &Option<PathBuf>) {
    folder.iter().for_each(|f| drop(std::fs::remove_dir_all(f)));
}

/// Which nodes a run is about: the targets and what they need.
fn wanted(session: &Session, targets: &[String]) -> Result<Vec<bool>> {
    let plan = &session.plan;
    if targets.is_empty() {
        return Ok(vec![true; plan.nodes.len()]);
    }
    let targets = targets
        .iter()
        .map(|name| find(session, name))
        .collect::<Result<_>>()?;
    Ok(plan.with_needs(targets))
}

fn find(session: &Session, name: &str) -> Result<usize> {
    let Some((index, _)) = session.find(name).filter(|(_, output)| output.is_empty()) else {
        let near =
            crate::diagnostic::nearest(name, session.plan.nodes.iter().map(|n| n.name.as_str()));
        bail!(
            "there is no stage `{name}`{}",
            near.map(|w| format!("; did you mean `{w}`?"))
                .unwrap_or_default()
        );
    };
    Ok(index)
}

/// A new folder under `runs`, named so that names sort by time. Without one the run is not logged, and goes on.
fn run_folder(session: &Session) -> Option<PathBuf> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let name = format!(
        "{:013}-{}-{}",
        now.as_millis(),
        session
            .recipe
            .name
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-"),
        std::process::id()
    );
    let folder = session.cache.runs().join(name);
    match std::fs::create_dir(&folder) {
        Ok(()) => Some(folder),
        Err(error) => {
            tracing::warn!("the run is not logged: {}: {error}", folder.display());
            None
        }
    }
}

fn restore_outputs<'a>(
    session: &Session,
    known: &dyn Fn(usize) -> Known<'a>,
    hub: &Hub,
    failures: &mut Vec<Failure>,
) -> Vec<Exported> {
    let mut exports = Vec::new();
    for export in &session.recipe.outputs {
        let pick = export.from.clone().map(crate::plan::whole);
        let artifact = match session.plan.digest(&pick, known) {
            Ok(artifact) => artifact,
            Err(Unknown::Stopped(reason)) => {
                let (name, to) = (format!("outputs.{}", export.name), &export.to);
                let note = What::Note {
                    level: Level::Info,
                    text: format!("`{to}` is left as it is: {reason}"),
                };
                hub.emit(Some(&name), note);
                continue;
            }
            // That something failed has been said.
            Err(_) => continue,
        };
        let folder = session.recipe.folder().join(&export.to);
        let (root, to) = (session.recipe.folder(), &export.to);
        match crate::export::restore_output(&session.cache, artifact, export.format, root, to) {
            Ok(written) => exports.push(Exported {
                name: export.name.clone(),
                folder,
                written,
            }),
            Err(error) => {
                let failure = Failure {
                    stage: format!("outputs.{}", export.name),
                    error: format!("{error:#}"),
                    place: Place::of(export.span, &session.recipe.sources),
                };
                hub.emit(Some(&failure.stage), failure.told());
                failures.push(failure);
            }
        }
    }
    exports
}

//! A kitchen for tests of the engine: a folder with a recipe, a cache, and toy kinds that take no time.

#![allow(dead_code)] // each test program uses a part of it

pub mod control;
pub mod kinds;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use engine::cache::Cache;
use engine::contract::Contracts;
use engine::digest::Digest;
use engine::event::{Event, Sink, What};
use engine::plan::Verdict;
use engine::schedule::{Outcome, RunOptions};
use engine::session::Session;
use engine::source::Network;

/// What a run is told beside the recipe.
pub struct Told {
    pub targets: Vec<&'static str>,
    pub force: Vec<&'static str>,
    pub set: Vec<&'static str>,
    pub device: Option<&'static str>,
    pub threads: Option<usize>,
    pub keep_going: bool,
    pub contracts: Contracts,
    pub stop: Arc<AtomicBool>,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            force: Vec::new(),
            set: Vec::new(),
            device: None,
            threads: None,
            keep_going: false,
            contracts: kinds::contracts(),
            stop: Arc::default(),
        }
    }
}

/// A folder with a recipe and a cache.
pub struct Kitchen {
    folder: tempfile::TempDir,
}

/// What came of a run.
pub struct Ran {
    pub outcome: Outcome,
    pub events: Vec<Event>,
}

struct Log(Arc<Mutex<Vec<Event>>>);

impl Sink for Log {
    fn emit(&mut self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Kitchen {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file beside the recipe.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    pub fn cache(&self) -> Cache {
        Cache::open(&self.path().join("cache")).unwrap()
    }

    /// The recipe `text` with its plan. The header is put before it.
    pub fn open(&self, text: &str, told: &Told) -> Session {
        self.open_in(text, told, self.cache())
    }

    pub fn open_in(&self, text: &str, told: &Told, cache: Cache) -> Session {
        // Each session has a file of its own, so that several may be at work at once.
        let path = self
            .path()
            .join(format!("recipe-{:?}.yaml", std::thread::current().id()));
        let whole = if text.contains("levain:") {
            text.to_owned()
        } else {
            format!("levain: 1\nname: test\nstages:\n{text}")
        };
        fs::write(&path, whole).unwrap();
        let set: Vec<String> = told.set.iter().map(|s| (*s).to_owned()).collect();
        Session::open(&path, &set, told.contracts, cache).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Runs the recipe.
    pub fn run(&self, text: &str, told: &Told) -> Ran {
        run(&mut self.open(text, told), told)
    }

    /// The plan, a line for each node: `name verdict`.
    pub fn plan(&self, text: &str, told: &Told) -> String {
        let session = self.open(text, told);
        let standings = session.standings();
        let lines = session
            .plan
            .nodes
            .iter()
            .zip(&standings)
            .map(|(n, s)| format!("{} {}\n", n.name, verdict(s.verdict)));
        lines.collect()
    }

    /// The place of the only file of an output.
    pub fn blob(&self, outcome: &Outcome, stage: &str, output: &str) -> PathBuf {
        self.cache()
            .view(artifact(outcome, stage, output))
            .unwrap()
            .files[0]
            .1
            .clone()
    }

    /// The text of the only file of an output.
    pub fn text(&self, outcome: &Outcome, stage: &str, output: &str) -> String {
        fs::read_to_string(self.blob(outcome, stage, output)).unwrap()
    }

    /// Files under a folder of the cache, as relative paths.
    pub fn files(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path().join("cache").join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path)
                } else {
                    found.push(path)
                }
            }
        }
        found.sort();
        found
    }
}

/// Runs a session's plan.
pub fn run(session: &mut Session, told: &Told) -> Ran {
    try_run(session, told).unwrap_or_else(|e| panic!("{e:#}"))
}

/// The same, when the run itself may fail.
pub fn try_run(session: &mut Session, told: &Told) -> anyhow::Result<Ran> {
    let options = RunOptions {
        looks: engine::known::Looks::NONE,
        targets: told.targets.iter().map(|s| (*s).to_owned()).collect(),
        force: told.force.iter().map(|s| (*s).to_owned()).collect(),
        device: told.device.map(ToOwned::to_owned),
        threads: told.threads,
        keep_going: told.keep_going,
        implementations: kinds::IMPLEMENTATIONS,
        allow_programs: false,
        worker: PathBuf::from("no-worker"),
        stop: &told.stop,
        network: Network::from_env(),
    };
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    let outcome = engine::schedule::run(
        session,
        &options,
        Box::new(move |_| vec![Box::new(Log(log)) as Box<dyn Sink>]),
    )?;
    let events = events.lock().unwrap().clone();
    Ok(Ran { outcome, events })
}

impl Ran {
    /// What became of each stage, a line each in the order of the recipe, and of each failure.
    pub fn text(&self) -> String {
        let mut lines: Vec<String> = self
            .outcome
            .lock
            .stages
            .iter()
            .map(|(name, stage)| format!("{name} {}\n", stage.outcome))
            .collect();
        lines.sort();
        lines.extend(
            self.outcome
                .failures
                .iter()
                .map(|failure| format!("! {}: {}\n", failure.stage, failure.error)),
        );
        lines.concat()
    }

    /// The events without what differs from run to run, a line each.
    pub fn log(&self) -> String {
        let line = |event: &Event| {
            let stage = event
                .stage
                .as_ref()
                .map(|s| format!("{s} "))
                .unwrap_or_default();
            let what = match &event.what {
                What::Planned { recipe, stages } => {
                    let stages: Vec<_> = stages
                        .iter()
                        .map(|(n, v)| format!("{n} {}", verdict(*v)))
                        .collect();
                    format!("planned {recipe}: {}", stages.join(", "))
                }
                What::Started { kind, .. } => format!("started {kind}"),
                What::Hit { .. } => "hit".to_owned(),
                What::Progress {
                    done, total, unit, ..
                } => format!("progress {done}/{total} {unit}"),
                What::Metrics { step, .. } => format!("metrics {step}"),
                What::Sample { title, .. } => format!("sample {title}"),
                What::Note { text, .. } => format!("note {text}"),
                What::Waiting { reason } => format!("waiting {reason}"),
                What::Finished { outputs, .. } => format!(
                    "finished {}",
                    outputs.keys().cloned().collect::<Vec<_>>().join(", ")
                ),
                What::Failed { error, .. } => format!("failed {error}"),
                What::Skipped { reason } => format!("skipped {reason}"),
                What::Ended {
                    ran,
                    hits,
                    failed,
                    waiting,
                    skipped,
                    ..
                } => {
                    format!(
                        "ended: {ran} ran, {hits} hits, {failed} failed, {waiting} waiting, {skipped} skipped"
                    )
                }
            };
            format!("{stage}{what}\n")
        };
        self.events.iter().map(line).collect()
    }

    /// How many stages began to work.
    pub fn started(&self) -> usize {
        self.events
            .iter()
            .filter(|e| matches!(e.what, What::Started { .. }))
            .count()
    }

    /// Output digests of every stage.
    pub fn digests(&self) -> Vec<(String, String, Digest)> {
        let stages = self.outcome.lock.stages.iter();
        let mut list: Vec<_> = stages
            .flat_map(|(n, s)| {
                s.outputs
                    .iter()
                    .map(move |(o, d)| (n.clone(), o.clone(), *d))
            })
            .collect();
        list.sort();
        list
    }
}

/// The artifact of an output after a run.
pub fn artifact(outcome: &Outcome, stage: &str, output: &str) -> Digest {
    outcome.lock.stages[stage].outputs[output]
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Cached => "cached",
        Verdict::WillRun => "will run",
        Verdict::MayRun => "may run",
        Verdict::Skipped => "skipped",
    }
}

/// Compares two texts of several lines, of which the wanted one is indented as the test's source is.
#[track_caller]
pub fn same(found: &str, wanted: &str) {
    let tidy = |text: &str| {
        text.lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .map(|l| format!("{l}\n"))
            .collect::<String>()
    };
    let (found, wanted) = (tidy(found), tidy(wanted));
    assert!(found == wanted, "found:\n{found}\nwanted:\n{wanted}");
}

/// Three stages, one after the other.
pub const CHAIN: &str = "  a: { kind: say, text: Flour }\n  b: { kind: lower, data: a }\n  c: { kind: lower, data: b }\n";

/// The one door: the plan of a recipe in a kitchen, what its run makes of every stage, and that a second run finds all of it.
#[track_caller]
pub fn check(kitchen: &Kitchen, recipe: &str, plan: &str, outcome: &str) -> Ran {
    let told = Told::default();
    same(&kitchen.plan(recipe, &told), plan);
    let ran = kitchen.run(recipe, &told);
    same(&ran.text(), outcome);
    if ran.outcome.lock.complete {
        let again = kitchen.run(recipe, &told);
        assert_eq!(
            again.started(),
            0,
            "a second run works again:\n{}",
            again.log()
        );
        assert_eq!(again.digests(), ran.digests());
    }
    ran
}

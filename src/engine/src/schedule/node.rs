//! One node at work: lease, inputs, private folder, the stage itself, publishing.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use super::RunOptions;
use super::events::Hub;
use crate::artifact::ArtifactView;
use crate::cache::{Entry, Lease, Provenance, Taken};
use crate::contract::{Class, Gives, Pool, Repeatable};
use crate::digest::Digest;
use crate::event::{Level, What};
use crate::job::{
    About as _, AboutWord, Cancelled, Draft, Drafts, Input, Job, Reference, Reporter,
};
use crate::plan::Content;
use crate::record::Record;
use crate::session::Session;
use crate::source;
use crate::worker::{Worker, server_flatten};

/// A node and all it needs to run.
pub(super) struct Work<'a> {
    pub session: &'a Session,
    pub options: &'a RunOptions<'a>,
    pub hub: &'a Hub,
    pub index: usize,
    pub record: Arc<Record>,
    pub forced: bool,
    pub inputs: BTreeMap<String, Content>,
    pub worker: Arc<Mutex<Option<Worker>>>,
}

/// What a thread sends when its node is over.
pub(super) struct Ended {
    pub index: usize,
    pub result: Result<Finished>,
}

/// A node whose outputs are in the cache.
pub(super) struct Finished {
    pub entry: Entry,
    /// Somebody else made them meanwhile.
    pub hit: bool,
    pub milliseconds: u64,
}

struct Speaker<'a> {
    hub: &'a Hub,
    name: &'a str,
    stop: &'a std::sync::atomic::AtomicBool,
}

impl Reporter for Speaker<'_> {
    fn emit(&self, what: What) {
        self.hub.emit(Some(self.name), what);
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl Work<'_> {
    pub(super) fn run(&self) -> Result<Finished> {
        let key = self.record.key();
        let _lease = match self.wait_for_lease(key)? {
            Ok(lease) => lease,
            Err(entry) => {
                return Ok(Finished {
                    entry: *entry,
                    hit: true,
                    milliseconds: 0,
                });
            }
        };
        let start = Instant::now();
        let node = &self.session.plan.nodes[self.index];
        self.hub.emit(
            Some(&node.name),
            What::Started {
                kind: node.contract.kind.to_owned(),
                key,
            },
        );
        // Said before the first stage already; here it holds whatever happened since.
        if !self.options.allow_programs
            && let Some(program) = node.contract.program(&node.params)
        {
            let error = anyhow!("it runs the program `{program}`, which this run does not allow");
            return Err(match crate::programs::field(node.contract) {
                Some(field) => AboutWord::of(field, error),
                None => error,
            });
        }
        self.check_sources()?;
        let out = self.session.cache.private_folder()?;
        let job = self.job(out.path())?;
        let speaker = Speaker {
            hub: self.hub,
            name: &node.name,
            stop: self.options.stop,
        };
        let (drafts, made) = match node.contract.pool {
            Pool::Cpu => (self.run_here(&job, &speaker)?, Provenance::new()),
            Pool::Torch => self.run_in_worker(&job, &speaker)?,
        };
        self.check_sources()?;
        self.check_drafts(&drafts, &job)?;
        let milliseconds = start.elapsed().as_millis() as u64;
        let provenance = self.provenance(&job, made, milliseconds);
        // Asking a person or an endpoint again is what forcing a recorded stage is for.
        let replace = self.forced && node.contract.repeatable == Repeatable::Recorded;
        let published =
            self.session
                .cache
                .publish(&self.record, &drafts, out.path(), provenance, replace)?;
        if published.differs {
            let text = "its bytes are not those that the cache has for the same record, and those stay: made on another machine, with \
                        another number of threads, or not reproducible";
            speaker.emit(What::Note {
                level: Level::Warning,
                text: text.to_owned(),
            });
        }
        let entry = published.entry;
        if let Some(snapshots) = &job.snapshots {
            let _ = std::fs::remove_dir_all(snapshots);
        }
        Ok(Finished {
            entry,
            hit: false,
            milliseconds,
        })
    }

    /// The lease, or the entry that its holder made meanwhile.
    fn wait_for_lease(&self, key: Digest) -> Result<std::result::Result<Lease, Box<Entry>>> {
        let mut said = false;
        loop {
            let taken = self.session.cache.lease(key);
            if let Some(entry) = self.session.cache.hit(key).filter(|_| !self.forced) {
                return Ok(Err(Box::new(entry)));
            }
            match taken {
                Taken::Ours(lease) => return Ok(Ok(lease)),
                Taken::Theirs => {
                    if self.options.stop.load(Ordering::SeqCst) {
                        return Err(Cancelled.into());
                    }
                    if !std::mem::replace(&mut said, true) {
                        let text = "another process works on the same; waiting for it".to_owned();
                        let name = &self.session.plan.nodes[self.index].name;
                        self.hub.emit(
                            Some(name),
                            What::Note {
                                level: Level::Info,
                                text,
                            },
                        );
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Inputs from outside are compared before and after: what changed meanwhile is not published.
    fn check_sources(&self) -> Result<()> {
        let memo = self.session.memo();
        for field in self.session.plan.nodes[self.index].sources.keys() {
            if let Some(resolved) = self.session.sources.get(&(self.index, *field)) {
                source::recheck(resolved, memo).about(field)?;
            }
        }
        Ok(())
    }

    fn job(&self, out: &std::path::Path) -> Result<Job> {
        let node = &self.session.plan.nodes[self.index];
        let cache = &self.session.cache;
        let mut inputs = BTreeMap::new();
        for (name, digest) in &self.inputs {
            let input = match digest {
                Content::One(digest) => Input::One(Box::new(cache.view(*digest)?)),
                Content::Many(list) => Input::Many(
                    list.iter()
                        .map(|(n, d)| Ok((n.clone(), cache.view(*d)?)))
                        .collect::<Result<_>>()?,
                ),
            };
            check_layouts(node.contract, name, &input).about(name)?;
            inputs.insert(name.clone(), input);
        }
        let sources = self
            .session
            .files(self.index)
            .context("BUG: a running node has an unknown source")?;
        // Answers that were given are kept like the state of a training.
        let outlives =
            node.contract.pool == Pool::Torch || node.contract.repeatable == Repeatable::Recorded;
        let snapshots = outlives
            .then(|| cache.snapshots(self.session.plan.partial(self.index, &self.record)))
            .transpose()?;
        let answers = (node.contract.repeatable == Repeatable::Recorded)
            .then(|| cache.answers(self.session.plan.asked(self.index, &self.record)));
        let recipe = &self.session.recipe;
        Ok(Job {
            stage: node.name.clone(),
            recipe: self.session.typed(),
            kind: node.contract.kind.to_owned(),
            version: node.contract.version,
            params: node.params.clone(),
            inputs,
            sources,
            out: out.to_owned(),
            snapshots,
            answers,
            device: self
                .options
                .device
                .clone()
                .or_else(|| recipe.device.clone())
                .unwrap_or_else(|| "cpu".to_owned()),
            threads: self
                .options
                .threads
                .or(recipe.threads)
                .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        })
    }

    fn run_here(&self, job: &Job, speaker: &dyn Reporter) -> Result<Drafts> {
        let implementation = self
            .options
            .implementations
            .iter()
            .find(|i| i.kind == job.kind);
        let implementation = implementation
            .with_context(|| format!("BUG: the kind `{}` has no implementation", job.kind))?;
        server_flatten(catch_unwind(AssertUnwindSafe(|| {
            (implementation.run)(job, speaker)
        })))
    }

    fn run_in_worker(&self, job: &Job, speaker: &dyn Reporter) -> Result<(Drafts, Provenance)> {
        let mut slot = self
            .worker
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if slot.as_mut().is_none_or(|w| !w.alive()) {
            *slot = Some(Worker::start(
                &self.options.worker,
                &self.session.contracts.versions(Pool::Torch),
            )?);
        }
        let worker = slot.as_mut().context("BUG: no worker")?;
        let counted = worker.count_memory();
        let result = worker.run(job, speaker);
        let mut made = Provenance::new();
        if let Some(peak) = worker.peak_memory().filter(|_| counted) {
            made.insert("peak_memory".to_owned(), json!(peak));
        }
        let mut class = json!(worker.hello().numerics);
        class["device"] = json!(job.device);
        class["threads"] = json!(job.threads);
        made.insert("numerics".to_owned(), class);
        if result.is_err() && !worker.alive() {
            *slot = None;
        }
        Ok((result?, made))
    }

    /// A stage makes what its contract says, no more and no less.
    fn check_drafts(&self, drafts: &Drafts, job: &Job) -> Result<()> {
        let contract = self.session.plan.nodes[self.index].contract;
        for name in drafts.keys() {
            if contract.output(name).is_none() {
                bail!(
                    "BUG: `{}` made `{name}`, which its contract does not have",
                    contract.kind
                );
            }
        }
        for output in contract.outputs {
            let Some(draft) = drafts.get(output.name) else {
                bail!(
                    "BUG: `{}` did not make its output `{}`",
                    contract.kind,
                    output.name
                )
            };
            match output.gives {
                Gives::New(artifact) if draft.artifact != artifact => bail!(
                    "BUG: the output `{}` of `{}` is a {}, not a {artifact}",
                    output.name,
                    contract.kind,
                    draft.artifact,
                ),
                Gives::Same(port) if !job.views(port).any(|view| *draft == Draft::of(view)) => {
                    bail!(
                        "BUG: the output `{}` of `{}` is none of `{port}`",
                        output.name,
                        contract.kind
                    )
                }
                _ => {}
            }
            if let Some(port) = output.keeps_tokenizer_of {
                let wanted = job.input(port)?.reference("tokenizer")?.digest;
                if draft.refs.get("tokenizer") != Some(&Reference::Artifact(wanted)) {
                    bail!(
                        "BUG: the output `{}` of `{}` does not keep the tokenizer of `{port}`",
                        output.name,
                        contract.kind
                    );
                }
            }
        }
        Ok(())
    }

    fn provenance(&self, job: &Job, made: Provenance, milliseconds: u64) -> Provenance {
        let node = &self.session.plan.nodes[self.index];
        let loose: serde_json::Map<_, _> = node
            .contract
            .fields
            .iter()
            .filter(|f| f.class != Class::Semantic)
            .filter_map(|f| {
                job.params
                    .get(f.name)
                    .map(|v| (f.name.to_owned(), v.clone()))
            })
            .collect();
        let mut provenance = made;
        provenance.insert("levain".to_owned(), json!(crate::worker::build_id()));
        provenance.insert("milliseconds".to_owned(), json!(milliseconds));
        provenance.insert("parameters".to_owned(), loose.into());
        provenance
    }
}

/// A dataset has a layout that its port can use.
fn check_layouts(contract: &crate::contract::Contract, name: &str, input: &Input) -> Result<()> {
    let Some(port) = contract.port(name).filter(|p| !p.layouts.is_empty()) else {
        return Ok(());
    };
    let views: Vec<&ArtifactView> = match input {
        Input::One(view) => vec![view],
        Input::Many(list) => list.iter().map(|(_, v)| v).collect(),
    };
    for view in views {
        let layout = view
            .summary
            .get("layout")
            .and_then(|l| l.as_str())
            .unwrap_or("unknown");
        if !port.layouts.contains(&layout) {
            bail!(
                "`{name}` takes rows laid out as {}, and these are `{layout}`",
                port.layouts.join(", ")
            );
        }
    }
    Ok(())
}

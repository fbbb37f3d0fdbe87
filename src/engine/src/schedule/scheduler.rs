//! The loop of a run: which node is ready, queued, running, over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::events::Hub;
use super::node::{self, Ended, Work};
use super::state::{State, States};
use super::{Failure, RunOptions};
use crate::cache::Entry;
use crate::contract::Pool;
use crate::digest::Digest;
use crate::event::{Level, What};
use crate::job::AboutWord;
use crate::plan::{Content, Feed, Known, Standing, Unknown, Verdict};
use crate::record::Record;
use crate::session::Session;
use crate::worker::Worker;

/// The state of a run.
pub(super) struct Scheduler<'a> {
    session: &'a Session,
    options: &'a RunOptions<'a>,
    hub: &'a Hub,
    pub(super) standings: Vec<Standing>,
    force: Vec<usize>,
    pub(super) states: States,
    pub(super) entries: Vec<Option<Arc<Entry>>>,
    pub(super) records: Vec<Option<Arc<Record>>>,
    pub(super) hits: Vec<bool>,
    pub(super) failures: Vec<Failure>,
    /// Why nodes were skipped: that a `stop_if` held is no failure.
    pub(super) reasons: Vec<Option<String>>,
    pub(super) stopped: Vec<bool>,
    /// Nodes that are over, and whose dependents do not know yet. A list: a chain may be longer than the stack is deep.
    over: VecDeque<usize>,
    dependents: Vec<Vec<usize>>,
    /// How many of its needs each node still waits for.
    missing: Vec<usize>,
    queues: BTreeMap<Pool, VecDeque<usize>>,
    running: BTreeMap<Pool, usize>,
    /// Keys of running nodes.
    at_work: BTreeSet<Digest>,
    worker: Arc<Mutex<Option<Worker>>>,
}

impl<'a> Scheduler<'a> {
    /// Nothing has happened yet.
    pub(super) fn new(
        session: &'a Session,
        options: &'a RunOptions<'a>,
        hub: &'a Hub,
        standings: Vec<Standing>,
        force: Vec<usize>,
        worker: Option<Worker>,
    ) -> Self {
        let count = session.plan.nodes.len();
        Self {
            session,
            options,
            hub,
            records: standings.iter().map(|s| s.record.clone()).collect(),
            entries: vec![None; count],
            hits: vec![false; count],
            standings,
            force,
            states: States::new(count),
            failures: Vec::new(),
            reasons: vec![None; count],
            stopped: vec![false; count],
            over: VecDeque::new(),
            dependents: session.plan.dependents(),
            missing: vec![0; count],
            queues: BTreeMap::new(),
            running: BTreeMap::new(),
            at_work: BTreeSet::new(),
            worker: Arc::new(Mutex::new(worker)),
        }
    }

    fn places(&self, pool: Pool) -> usize {
        match pool {
            Pool::Cpu => std::thread::available_parallelism().map_or(1, usize::from),
            Pool::Torch => 1,
        }
    }

    /// Brings every wanted node to its end.
    pub(super) fn run(&mut self, wanted: &[bool]) {
        let order = self.session.plan.order.clone();
        for index in order.into_iter().filter(|i| wanted[*i]) {
            self.states.set(index, State::Want);
            let needs = self.session.plan.needs(index);
            let waits = |need: &&usize| !self.settled(**need);
            self.missing[index] = needs.iter().filter(waits).count();
            if needs.iter().any(|need| self.gone(*need).is_some()) {
                self.skip(index, "something it needs is not there");
            } else if self.missing[index] == 0 {
                self.ready(index);
            }
            self.tell();
        }
        std::thread::scope(|scope| {
            let (sender, receiver): (Sender<Ended>, Receiver<Ended>) = channel();
            loop {
                if self.stopping() {
                    self.skip_queued();
                    self.tell();
                }
                self.start_queued(scope, &sender);
                if self.running.values().all(|n| *n == 0) {
                    break;
                }
                match receiver.recv_timeout(Duration::from_millis(200)) {
                    Ok(ended) => self.ended(ended),
                    Err(_) => continue,
                }
            }
        });
        // What was wanted and never became ready waits for something that did not happen.
        for (index, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
            if !self.states.get(index).is_final() {
                self.skip(index, "the run was stopped");
                self.tell();
            }
        }
    }

    /// Whether what needs `index` waits for it no longer: its outputs are there, or it is known that there will be none.
    fn settled(&self, index: usize) -> bool {
        self.states.get(index) == State::Done || self.stopped[index]
    }

    /// Why what needs `index` can't run, when it is over without outputs.
    fn gone(&self, index: usize) -> Option<String> {
        let name = &self.session.plan.nodes[index].name;
        match self.states.get(index) {
            State::Failed => Some(format!("`{name}` failed")),
            State::Waiting => Some(format!("`{name}` waits")),
            State::Skipped if !self.stopped[index] => Some(format!("`{name}` did not run")),
            _ => None,
        }
    }

    /// Tells the dependents of all that is over, and theirs.
    fn tell(&mut self) {
        while let Some(index) = self.over.pop_front() {
            let gone = self.gone(index);
            // A node is over once.
            for dependent in std::mem::take(&mut self.dependents[index]) {
                match &gone {
                    _ if self.states.get(dependent) != State::Want => {}
                    Some(reason) => self.skip(dependent, reason),
                    None => {
                        self.missing[dependent] -= 1;
                        if self.missing[dependent] == 0 {
                            self.ready(dependent);
                        }
                    }
                }
            }
        }
    }

    fn known(&self, index: usize) -> Known<'_> {
        match (&self.entries[index], &self.reasons[index]) {
            (Some(entry), _) => Known::Done(entry),
            (None, Some(reason)) if self.stopped[index] => Known::Stopped(reason),
            _ => Known::Open,
        }
    }

    fn stopping(&self) -> bool {
        self.options.stop.load(Ordering::SeqCst)
            || (!self.options.keep_going && !self.failures.is_empty())
    }

    /// Everything that `index` needs is done: now its record is known.
    fn ready(&mut self, index: usize) {
        self.states.set(index, State::Ready);
        let standing = &self.standings[index];
        if standing.verdict == Verdict::Cached {
            self.entries[index] = standing.entry.clone();
            self.finish_hit(index);
            return;
        }
        let (session, known) = (self.session, |node: usize| self.known(node));
        match session
            .plan
            .record(index, &session.cache, &session.sources, &known)
        {
            Ok(record) => {
                let forced = self.force.contains(&index);
                let hit = if forced {
                    None
                } else {
                    self.session.cache.hit(record.key())
                };
                self.records[index] = Some(Arc::new(record));
                if let Some(entry) = hit {
                    self.entries[index] = Some(Arc::new(entry));
                    self.finish_hit(index);
                    return;
                }
                self.states.set(index, State::Queued);
                self.queues
                    .entry(self.session.plan.nodes[index].contract.pool)
                    .or_default()
                    .push_back(index);
            }
            Err(Unknown::Stopped(reason)) => {
                self.stopped[index] = true;
                self.skip(index, &reason);
            }
            Err(Unknown::Metric(reason)) => self.fail(index, reason, None),
            Err(unknown) => {
                let error = format!("its inputs are not known: {unknown:?}");
                self.fail(index, error, None)
            }
        }
    }

    fn finish_hit(&mut self, index: usize) {
        self.hits[index] = true;
        let key = self.records[index].as_ref().map(|r| r.key());
        if let Some(key) = key {
            self.hub.emit(
                Some(&self.session.plan.nodes[index].name),
                What::Hit { key },
            );
        }
        self.done(index);
    }

    fn done(&mut self, index: usize) {
        self.states.set(index, State::Done);
        self.over.push_back(index);
    }

    fn start_queued<'scope>(
        &mut self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        sender: &Sender<Ended>,
    ) where
        'a: 'scope,
    {
        for pool in [Pool::Cpu, Pool::Torch] {
            while self.running.get(&pool).copied().unwrap_or(0) < self.places(pool) {
                let Some(index) = self.next_of(pool) else {
                    break;
                };
                self.at_work
                    .extend(self.records[index].as_ref().map(|r| r.key()));
                self.states.set(index, State::Running);
                *self.running.entry(pool).or_insert(0) += 1;
                let record = self.records[index]
                    .clone()
                    .expect("BUG: a queued node has a record");
                let work = Work {
                    session: self.session,
                    options: self.options,
                    hub: self.hub,
                    index,
                    record,
                    forced: self.force.contains(&index),
                    inputs: self.inputs(index),
                    worker: self.worker.clone(),
                };
                let sender = sender.clone();
                scope.spawn(move || {
                    let result = work.run();
                    let _ = sender.send(Ended { index, result });
                });
            }
        }
    }

    /// Takes the first node of a queue whose key nobody in this run works on: one that has it as well finds the result.
    fn next_of(&mut self, pool: Pool) -> Option<usize> {
        let (records, at_work) = (&self.records, &self.at_work);
        let queue = self.queues.get_mut(&pool)?;
        let free = |index: &usize| {
            let key = records[*index].as_ref().map(|r| r.key());
            key.is_none_or(|key| !at_work.contains(&key))
        };
        let place = queue.iter().position(free)?;
        queue.remove(place)
    }

    fn inputs(&self, index: usize) -> BTreeMap<String, Content> {
        let (plan, known) = (&self.session.plan, |node: usize| self.known(node));
        let content = |feed: &Feed| {
            plan.content(feed, &known)
                .expect("BUG: an input of a ready node is unknown")
        };
        let inputs = plan.nodes[index].inputs.iter();
        inputs
            .map(|(name, feed)| (name.clone(), content(feed)))
            .collect()
    }

    fn ended(&mut self, ended: Ended) {
        let index = ended.index;
        let name = self.session.plan.nodes[index].name.clone();
        if let Some(key) = self.records[index].as_ref().map(|r| r.key()) {
            self.at_work.remove(&key);
        }
        *self
            .running
            .entry(self.session.plan.nodes[index].contract.pool)
            .or_insert(1) -= 1;
        match ended.result {
            Ok(node::Finished {
                entry,
                hit,
                milliseconds,
            }) => {
                if hit {
                    self.hits[index] = true;
                    self.hub.emit(
                        Some(&name),
                        What::Hit {
                            key: entry.record.key(),
                        },
                    );
                } else {
                    self.hub.emit(
                        Some(&name),
                        What::Finished {
                            outputs: entry.outputs.clone(),
                            milliseconds,
                        },
                    );
                }
                self.entries[index] = Some(Arc::new(entry));
                self.done(index);
            }
            Err(error) if error.is::<crate::job::Cancelled>() => {
                self.skip(index, "stopped; it goes on from its last snapshot")
            }
            Err(error) => match error.downcast_ref::<crate::job::Waiting>() {
                Some(waiting) => {
                    self.hub.emit(
                        Some(&name),
                        What::Waiting {
                            reason: waiting.reason.clone(),
                        },
                    );
                    self.reasons[index] = Some(waiting.reason.clone());
                    self.states.set(index, State::Waiting);
                    self.over.push_back(index);
                }
                None => {
                    let word = AboutWord::word(&error);
                    self.fail(index, format!("{error:#}"), word)
                }
            },
        }
        self.tell();
    }

    /// A node failed; `word` is the field or port that the error is about, where that is known.
    fn fail(&mut self, index: usize, error: String, word: Option<&str>) {
        let failure = Failure {
            stage: self.session.plan.nodes[index].name.clone(),
            error,
            place: self.session.place(index, word),
        };
        self.hub.emit(Some(&failure.stage), failure.told());
        self.failures.push(failure);
        self.states.set(index, State::Failed);
        self.over.push_back(index);
    }

    fn skip(&mut self, index: usize, reason: &str) {
        let name = self.session.plan.nodes[index].name.clone();
        self.hub.emit(
            Some(&name),
            What::Skipped {
                reason: reason.to_owned(),
            },
        );
        self.states.set(index, State::Skipped);
        self.reasons[index] = Some(reason.to_owned());
        self.over.push_back(index);
    }

    fn skip_queued(&mut self) {
        let queued: Vec<usize> = self.queues.values_mut().flat_map(std::mem::take).collect();
        for index in queued {
            self.skip(index, "the run was stopped");
        }
        self.hub_note_stop();
    }

    fn hub_note_stop(&self) {
        static SAID: AtomicBool = AtomicBool::new(false);
        let running: usize = self.running.values().sum();
        if running > 0 && !SAID.swap(true, Ordering::SeqCst) {
            let text = format!(
                "stopping: {running} running {} first",
                if running == 1 {
                    "stage finishes its step"
                } else {
                    "stages finish their steps"
                }
            );
            self.hub.emit(
                None,
                What::Note {
                    level: Level::Info,
                    text,
                },
            );
        }
    }
}

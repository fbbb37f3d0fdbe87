//! The plan: stages and their preparations as a graph, each with its verdict.

mod build;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) use build::whole;

use crate::cache::{Cache, Entry};
use crate::contract::{Class, Contract, Pool};
use crate::digest::Digest;
use crate::recipe::{Pick, StopIf};
use crate::record::{Item, Record};
use crate::source::{Resolved, SourceSpec};

/// What a plan says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its outputs are in the cache.
    Cached,
    /// It has to run.
    WillRun,
    /// It depends on outputs that are not there yet; it runs unless they turn out as before.
    MayRun,
    /// It does not run: a `stop_if` before it holds.
    Skipped,
}

impl Verdict {
    /// Whether it runs, or may.
    pub fn open(self) -> bool {
        matches!(self, Self::WillRun | Self::MayRun)
    }
}

/// A stage or a preparation.
pub struct Node {
    /// `sft`, or `sft › tokens`.
    pub name: String,
    /// The stage that a preparation belongs to.
    pub owner: Option<usize>,
    /// What it is.
    pub contract: &'static Contract,
    /// Every field after defaults.
    pub params: Map<String, Value>,
    /// Source fields.
    pub sources: BTreeMap<&'static str, SourceSpec>,
    /// Port, or name of a preparation, to what feeds it.
    pub inputs: BTreeMap<String, Feed>,
    /// What has it skipped: metrics that a `stop_if` looks at.
    pub guards: Vec<(Pick<Edge>, Arc<StopIf>)>,
    /// Fields whose effect reaches the stage only through a preparation.
    handed_on: Vec<&'static str>,
}

impl Node {
    /// Every edge into it: of its inputs, and of what may have it skipped.
    pub fn edges(&self) -> impl Iterator<Item = &Edge> {
        let guards = self.guards.iter().flat_map(|(pick, _)| &pick.from);
        self.inputs.values().flat_map(Feed::edges).chain(guards)
    }
}

/// What feeds an input.
#[derive(Clone, Debug)]
pub enum Feed {
    /// One artifact.
    One(Pick<Edge>),
    /// Several, named.
    Many(Vec<(String, Pick<Edge>)>),
}

impl Feed {
    /// Each artifact that it is.
    pub fn picks(&self) -> Vec<&Pick<Edge>> {
        match self {
            Self::One(pick) => vec![pick],
            Self::Many(list) => list.iter().map(|(_, pick)| pick).collect(),
        }
    }

    /// Every edge, those included that wait in case of a `stop_if`.
    pub fn edges(&self) -> Vec<&Edge> {
        let picks = self.picks().into_iter();
        picks.flat_map(|pick| &pick.from).collect()
    }
}

/// The artifacts of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// One.
    One(Digest),
    /// Several, named; what was skipped is left out.
    Many(Vec<(String, Digest)>),
}

/// An output of another node, or its tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Index of the node.
    pub node: usize,
    /// Name of its output.
    pub output: &'static str,
    /// The tokenizer of that output instead of the output itself.
    pub tokenizer: bool,
}

/// Every node of a recipe with an order in which they can run.
pub struct Plan {
    /// Stages first, in the order of the recipe; then preparations.
    pub nodes: Vec<Node>,
    /// Indices of nodes: everything comes after what it needs.
    pub order: Vec<usize>,
}

/// What is known of a node before it runs.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The verdict.
    pub verdict: Verdict,
    /// The record, when every input is known.
    pub record: Option<Arc<Record>>,
    /// What the cache has.
    pub entry: Option<Arc<Entry>>,
    /// Why it has to run, or may have to.
    pub reason: String,
}

impl Standing {
    /// The same for a node that needs it.
    pub fn known(&self) -> Known<'_> {
        match (&self.entry, self.verdict) {
            (Some(entry), _) => Known::Done(entry),
            (None, Verdict::Skipped) => Known::Stopped(&self.reason),
            (None, _) => Known::Open,
        }
    }
}

/// What a node knows of one that it needs.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// Its outputs are in the cache.
    Done(&'a Entry),
    /// It is skipped: why.
    Stopped(&'a str),
    /// It has not run yet.
    Open,
}

/// Node index and source field to what the source resolved to.
pub type Sources = BTreeMap<(usize, &'static str), Resolved>;

impl Plan {
    /// The index of the node called `name`; `sft/tokens` may be written for `sft › tokens`.
    pub fn find(&self, name: &str) -> Option<usize> {
        let wanted = name.replace('/', " › ");
        self.nodes
            .iter()
            .position(|n| n.name == wanted || n.name == name)
    }

    /// What is known of every node, without running anything.
    pub fn standings(
        &self,
        cache: &Cache,
        sources: &Sources,
        force: &(dyn Fn(usize) -> bool + Sync),
    ) -> Vec<Standing> {
        let needs: Vec<usize> = (0..self.nodes.len()).map(|i| self.needs(i).len()).collect();
        let walk = Walk {
            plan: self,
            cache,
            sources,
            force,
            found: needs.iter().map(|_| OnceLock::new()).collect(),
            waiting: needs.iter().map(|n| AtomicUsize::new(*n)).collect(),
            dependents: self.dependents(),
        };
        let roots = (0..self.nodes.len()).filter(|i| needs[*i] == 0);
        rayon::scope(|scope| {
            for index in roots {
                let walk = &walk;
                scope.spawn(move |scope| walk.from(index, scope));
            }
        });
        let found = walk.found.into_iter();
        found
            .map(|s| s.into_inner().expect("BUG: a node was not looked up"))
            .collect()
    }

    /// The nodes that need each node.
    pub fn dependents(&self) -> Vec<Vec<usize>> {
        let mut dependents = vec![Vec::new(); self.nodes.len()];
        for index in 0..self.nodes.len() {
            for need in self.needs(index) {
                dependents[need].push(index);
            }
        }
        dependents
    }

    /// What is known of one node, when everything that it needs is in `found`.
    fn standing(
        &self,
        index: usize,
        cache: &Cache,
        sources: &Sources,
        forced: bool,
        found: &[OnceLock<Standing>],
    ) -> Standing {
        let known = |node: usize| found[node].get().map_or(Known::Open, Standing::known);
        let (verdict, record, entry, reason) = match self.record(index, cache, sources, &known) {
            Ok(record) if forced => (
                Verdict::WillRun,
                Some(Arc::new(record)),
                None,
                "forced".to_owned(),
            ),
            Ok(record) => {
                let record = Arc::new(record);
                match cache.hit_of(&record) {
                    Some(entry) => (Verdict::Cached, Some(record), Some(entry), String::new()),
                    None => {
                        let reason = "nothing in the cache has its record".to_owned();
                        (Verdict::WillRun, Some(record), None, reason)
                    }
                }
            }
            Err(Unknown::Source(field)) => {
                let reason = format!("its `{field}` is not fetched yet");
                (Verdict::WillRun, None, None, reason)
            }
            Err(Unknown::Input(name)) => {
                (Verdict::MayRun, None, None, format!("depends on `{name}`"))
            }
            Err(Unknown::Stopped(reason)) => (Verdict::Skipped, None, None, reason),
            Err(Unknown::Metric(reason)) => (Verdict::WillRun, None, None, reason),
        };
        Standing {
            verdict,
            record,
            entry: entry.map(Arc::new),
            reason,
        }
    }

    /// The record of a node, from the content of its inputs, unless a `stop_if` has it skipped.
    pub fn record<'a>(
        &self,
        index: usize,
        cache: &Cache,
        sources: &Sources,
        known: &dyn Fn(usize) -> Known<'a>,
    ) -> Result<Record, Unknown> {
        let node = &self.nodes[index];
        for (metrics, stop) in &node.guards {
            let artifact = self.digest(metrics, known)?;
            let held = cache
                .manifest(artifact)
                .and_then(|manifest| stop.holds(&manifest.summary));
            match held {
                Ok(None) => {}
                Ok(Some(reason)) => return Err(Unknown::Stopped(reason)),
                Err(error) => {
                    let (group, round) = (&stop.group, stop.round);
                    return Err(Unknown::Metric(format!(
                        "whether `{group}` stops after round {round} can't be told: {error:#}"
                    )));
                }
            }
        }
        let mut record = Record::default();
        record.add("kind", Item::Value(node.contract.kind.into()));
        record.add("version", Item::Value(node.contract.version.into()));
        for field in node.contract.fields {
            if node.sources.contains_key(field.name) {
                let resolved = sources
                    .get(&(index, field.name))
                    .ok_or_else(|| Unknown::Source(field.name.to_owned()))?;
                record.add(
                    format!("source.{}", field.name),
                    Item::Digest(resolved.digest),
                );
                continue;
            }
            let value = node.params.get(field.name).cloned().unwrap_or(Value::Null);
            let neutral = field.neutral.is_some_and(|n| n.value() == value) || value.is_null();
            if field.class == Class::Semantic && !neutral && !node.handed_on.contains(&field.name) {
                record.add(
                    format!("param.{}", field.name),
                    Item::Value(field.recorded(value)),
                );
            }
        }
        for (name, feed) in &node.inputs {
            let item = match self.content(feed, known)? {
                Content::One(digest) => Item::Digest(digest),
                Content::Many(list) => Item::Named(list),
            };
            record.add(format!("input.{name}"), item);
        }
        Ok(record)
    }

    /// The record without the fields that only continue the computation: what snapshots are filed under.
    pub fn partial(&self, index: usize, record: &Record) -> Digest {
        let fields = self.nodes[index].contract.fields;
        record
            .filtered(|name| {
                let field = name
                    .strip_prefix("param.")
                    .and_then(|n| fields.iter().find(|f| f.name == n));
                !field.is_some_and(|f| f.extendable)
            })
            .key()
    }

    /// What answers to the questions of a node are filed under: the record without the fields that only ask for more of them, and
    /// without the version of the kind. Answers name their questions, so that one that is no longer asked is not taken for another.
    pub fn asked(&self, index: usize, record: &Record) -> Digest {
        let fields = self.nodes[index].contract.fields;
        let more = |name: &str| {
            let field = name.strip_prefix("param.");
            fields.iter().any(|f| f.extendable && Some(f.name) == field)
        };
        record
            .filtered(|name| name != "version" && !more(name))
            .key()
    }

    /// The artifacts of an input.
    pub fn content<'a>(
        &self,
        feed: &Feed,
        known: &dyn Fn(usize) -> Known<'a>,
    ) -> Result<Content, Unknown> {
        let list = match feed {
            Feed::One(pick) => return self.digest(pick, known).map(Content::One),
            Feed::Many(list) => list,
        };
        let mut found = Vec::with_capacity(list.len());
        let mut stopped = None;
        for (name, pick) in list {
            match self.digest(pick, known) {
                Ok(digest) => found.push((name.clone(), digest)),
                Err(Unknown::Stopped(reason)) if pick.optional => stopped = Some(reason),
                Err(unknown) => return Err(unknown),
            }
        }
        match stopped {
            Some(reason) if found.is_empty() => Err(Unknown::Stopped(reason)),
            _ => Ok(Content::Many(found)),
        }
    }

    /// The artifact of an output, of the last one that was not skipped.
    pub fn digest<'a>(
        &self,
        pick: &Pick<Edge>,
        known: &dyn Fn(usize) -> Known<'a>,
    ) -> Result<Digest, Unknown> {
        let edge = self.edge(pick, known)?;
        let found = match known(edge.node) {
            Known::Done(entry) if edge.tokenizer => entry.tokenizers.get(edge.output),
            Known::Done(entry) => entry.outputs.get(edge.output),
            _ => None,
        };
        let missing = || Unknown::Input(self.nodes[edge.node].name.clone());
        found.copied().ok_or_else(missing)
    }

    /// The edge that counts: the last one whose node was not skipped.
    pub fn edge<'a, 'p>(
        &self,
        pick: &'p Pick<Edge>,
        known: &dyn Fn(usize) -> Known<'a>,
    ) -> Result<&'p Edge, Unknown> {
        let mut why = "";
        for edge in pick.from.iter().rev() {
            match known(edge.node) {
                Known::Done(_) => return Ok(edge),
                Known::Stopped(reason) => why = reason,
                Known::Open => return Err(Unknown::Input(self.nodes[edge.node].name.clone())),
            }
        }
        Err(Unknown::Stopped(why.to_owned()))
    }

    /// Whether anything in the plan runs in the worker.
    pub fn needs_worker(&self) -> bool {
        self.nodes.iter().any(|n| n.contract.pool == Pool::Torch)
    }

    /// Which nodes are some targets or needed by them.
    pub fn with_needs(&self, targets: Vec<usize>) -> Vec<bool> {
        let mut wanted = vec![false; self.nodes.len()];
        let mut queue = targets;
        while let Some(index) = queue.pop() {
            if !std::mem::replace(&mut wanted[index], true) {
                queue.extend(self.needs(index));
            }
        }
        wanted
    }

    /// The node names that `index` needs directly, each once.
    pub fn needs(&self, index: usize) -> Vec<usize> {
        let mut list: Vec<usize> = self.nodes[index].edges().map(|e| e.node).collect();
        list.sort_unstable();
        list.dedup();
        list
    }
}

/// The way through a plan that finds out what is known of each node. A key needs the outputs before it; whatever does not need
/// each other is looked up at once, since it is mostly waiting for the file system.
struct Walk<'a> {
    plan: &'a Plan,
    cache: &'a Cache,
    sources: &'a Sources,
    force: &'a (dyn Fn(usize) -> bool + Sync),
    found: Vec<OnceLock<Standing>>,
    /// How many of its needs are not found yet, for each node.
    waiting: Vec<AtomicUsize>,
    dependents: Vec<Vec<usize>>,
}

impl<'a> Walk<'a> {
    /// Finds out about a node and about those that waited for it alone: the first on this thread, the others wherever there is
    /// one without work.
    fn from<'s>(&'s self, start: usize, scope: &rayon::Scope<'s>) {
        let mut next = Some(start);
        while let Some(index) = next.take() {
            let forced = (self.force)(index);
            let standing = self
                .plan
                .standing(index, self.cache, self.sources, forced, &self.found);
            let first = self.found[index].set(standing).is_ok();
            assert!(first, "BUG: a node is looked up twice");
            for &dependent in &self.dependents[index] {
                // Whoever takes the last of its needs away sees what was found of all the others.
                if self.waiting[dependent].fetch_sub(1, Ordering::AcqRel) > 1 {
                    continue;
                }
                match next {
                    None => next = Some(dependent),
                    Some(_) => scope.spawn(move |scope| self.from(dependent, scope)),
                }
            }
        }
    }
}

/// Why a record can't be told yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// A source that would have to be fetched.
    Source(String),
    /// An input whose node has not run.
    Input(String),
    /// It is skipped: why.
    Stopped(String),
    /// What a `stop_if` looks at is not there: why.
    Metric(String),
}

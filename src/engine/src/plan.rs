//! The plan: stages and their preparations as a graph, each with its verdict.

use std::collections::BTreeMap;
use std::sync::Arc;

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cache::{Cache, Entry};
use crate::contract::{Class, Contract, Contracts, From, Pool};
use crate::digest::Digest;
use crate::recipe::{Binding, Recipe, Target};
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
    /// Fields whose effect reaches the stage only through a preparation.
    handed_on: Vec<&'static str>,
}

/// What feeds an input.
#[derive(Clone, Debug)]
pub enum Feed {
    /// One artifact.
    One(Edge),
    /// Several, named.
    Many(Vec<(String, Edge)>),
}

impl Feed {
    /// Every edge.
    pub fn edges(&self) -> Vec<&Edge> {
        match self {
            Self::One(edge) => vec![edge],
            Self::Many(list) => list.iter().map(|(_, e)| e).collect(),
        }
    }
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

/// Node index and source field to what the source resolved to.
pub type Sources = BTreeMap<(usize, &'static str), Resolved>;

impl Plan {
    /// Unrolls `recipe` into nodes and orders them. The recipe has been checked: there are no cycles.
    pub fn new(recipe: &Recipe, contracts: Contracts) -> Self {
        let mut nodes: Vec<Node> = recipe
            .stages
            .iter()
            .map(|stage| Node {
                name: stage.name.clone(),
                owner: None,
                contract: stage.contract,
                params: stage.params.clone(),
                sources: stage.sources.clone(),
                inputs: stage
                    .inputs
                    .iter()
                    .map(|(port, binding)| ((*port).to_owned(), feed(binding)))
                    .collect(),
                handed_on: Vec::new(),
            })
            .collect();
        for owner in 0..recipe.stages.len() {
            for preparation in recipe.stages[owner].contract.preparations {
                let hidden = contracts
                    .any(preparation.kind)
                    .expect("BUG: a preparation names no kind");
                prepare(recipe, &mut nodes, owner, preparation, hidden);
            }
        }
        let order = order(&nodes);
        Self { nodes, order }
    }

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
        let mut found: Vec<Option<Standing>> = vec![None; self.nodes.len()];
        for level in self.levels() {
            // A key needs the outputs before it, so only nodes that need nothing of each other can be looked up at once. It is
            // mostly waiting for the file system, a thousand stages at a time.
            let standings: Vec<Standing> = level
                .par_iter()
                .with_min_len(16)
                .map(|&index| self.standing(index, cache, sources, force(index), &found))
                .collect();
            for (index, standing) in level.into_iter().zip(standings) {
                found[index] = Some(standing);
            }
        }
        found
            .into_iter()
            .map(|s| s.expect("BUG: the order misses a node"))
            .collect()
    }

    /// Nodes in groups: each needs only nodes of the groups before its own.
    fn levels(&self) -> Vec<Vec<usize>> {
        let mut depth = vec![0; self.nodes.len()];
        let mut levels: Vec<Vec<usize>> = Vec::new();
        for &index in &self.order {
            let below = self.needs(index).into_iter().map(|need| depth[need] + 1);
            depth[index] = below.max().unwrap_or(0);
            if levels.len() == depth[index] {
                levels.push(Vec::new());
            }
            levels[depth[index]].push(index);
        }
        levels
    }

    /// What is known of one node, when everything that it needs is in `found`.
    fn standing(
        &self,
        index: usize,
        cache: &Cache,
        sources: &Sources,
        forced: bool,
        found: &[Option<Standing>],
    ) -> Standing {
        let entries = |node: usize| found[node].as_ref().and_then(|s| s.entry.as_deref());
        let (verdict, record, entry, reason) = match self.record(index, sources, &entries) {
            Ok(record) => match Some(record.key()).filter(|_| !forced) {
                None => (Verdict::WillRun, Some(record), None, "forced".to_owned()),
                Some(key) => match cache.hit(key) {
                    Some(entry) => (Verdict::Cached, Some(record), Some(entry), String::new()),
                    None => {
                        let reason = "nothing in the cache has its record".to_owned();
                        (Verdict::WillRun, Some(record), None, reason)
                    }
                },
            },
            Err(Unknown::Source(field)) => {
                let reason = format!("its `{field}` is not fetched yet");
                (Verdict::WillRun, None, None, reason)
            }
            Err(Unknown::Input(name)) => {
                (Verdict::MayRun, None, None, format!("depends on `{name}`"))
            }
        };
        Standing {
            verdict,
            record: record.map(Arc::new),
            entry: entry.map(Arc::new),
            reason,
        }
    }

    /// The record of a node, from the content of its inputs.
    pub fn record<'a>(
        &self,
        index: usize,
        sources: &Sources,
        entries: &dyn Fn(usize) -> Option<&'a Entry>,
    ) -> Result<Record, Unknown> {
        let node = &self.nodes[index];
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
            let digest = |edge: &Edge| {
                self.digest(edge, entries)
                    .ok_or_else(|| Unknown::Input(self.nodes[edge.node].name.clone()))
            };
            let item = match feed {
                Feed::One(edge) => Item::Digest(digest(edge)?),
                Feed::Many(list) => Item::Named(
                    list.iter()
                        .map(|(n, e)| Ok((n.clone(), digest(e)?)))
                        .collect::<Result<_, Unknown>>()?,
                ),
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

    /// The artifact that an edge names, when its node's outputs are known.
    pub fn digest<'a>(
        &self,
        edge: &Edge,
        entries: &dyn Fn(usize) -> Option<&'a Entry>,
    ) -> Option<Digest> {
        let entry = entries(edge.node)?;
        if edge.tokenizer {
            entry.tokenizers.get(edge.output).copied()
        } else {
            entry.outputs.get(edge.output).copied()
        }
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
        let mut list: Vec<usize> = self.nodes[index]
            .inputs
            .values()
            .flat_map(Feed::edges)
            .map(|e| e.node)
            .collect();
        list.sort_unstable();
        list.dedup();
        list
    }
}

/// Why a record can't be told yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// A source that would have to be fetched.
    Source(String),
    /// An input whose node has not run.
    Input(String),
}

fn feed(binding: &Binding) -> Feed {
    match binding {
        Binding::One(target) => Feed::One(whole(target)),
        Binding::Many(list) => {
            Feed::Many(list.iter().map(|(n, t)| (n.clone(), whole(t))).collect())
        }
    }
}

fn whole(target: &Target) -> Edge {
    Edge {
        node: target.stage,
        output: target.output,
        tokenizer: false,
    }
}

/// The node whose output carries the tokenizer of `target`: kinds that keep their input's tokenizer are seen through, so that
/// tokenizing waits for no training.
fn tokenizer_of(recipe: &Recipe, target: &Target) -> Edge {
    let mut target = target.clone();
    loop {
        let stage = &recipe.stages[target.stage];
        let keeps = stage
            .contract
            .output(target.output)
            .and_then(|o| o.keeps_tokenizer_of);
        match keeps.and_then(|port| stage.inputs.get(port)) {
            Some(Binding::One(next)) => target = next.clone(),
            _ => {
                return Edge {
                    node: target.stage,
                    output: target.output,
                    tokenizer: true,
                };
            }
        }
    }
}

fn prepare(
    recipe: &Recipe,
    nodes: &mut Vec<Node>,
    owner: usize,
    preparation: &'static crate::contract::Preparation,
    hidden: &'static Contract,
) {
    let stage = &recipe.stages[owner];
    let named: Vec<&str> = preparation
        .inputs
        .iter()
        .find_map(|(_, from)| match from {
            From::TokenizerOf(port) => match stage.inputs.get(port) {
                Some(Binding::Many(list)) => Some(list.iter().map(|(n, _)| n.as_str()).collect()),
                _ => None,
            },
            From::Port(_) => None,
        })
        .unwrap_or_default();
    let params: Map<String, Value> = hidden
        .fields
        .iter()
        .map(|f| {
            (
                f.name.to_owned(),
                stage.params.get(f.name).cloned().unwrap_or(Value::Null),
            )
        })
        .collect();
    let mut make = |element: Option<&str>| -> Option<Edge> {
        let mut inputs = BTreeMap::new();
        for (port, from) in preparation.inputs {
            let edge = match from {
                From::Port(name) => match stage.inputs.get(name)? {
                    Binding::One(target) => whole(target),
                    Binding::Many(list) => {
                        whole(&list.iter().find(|(n, _)| Some(n.as_str()) == element)?.1)
                    }
                },
                From::TokenizerOf(name) => match stage.inputs.get(name)? {
                    Binding::One(target) => tokenizer_of(recipe, target),
                    Binding::Many(list) => tokenizer_of(
                        recipe,
                        &list.iter().find(|(n, _)| Some(n.as_str()) == element)?.1,
                    ),
                },
            };
            inputs.insert((*port).to_owned(), Feed::One(edge));
        }
        let suffix = element.map(|e| format!("[{e}]")).unwrap_or_default();
        let name = format!("{} › {}{suffix}", stage.name, preparation.name);
        let output = hidden
            .outputs
            .first()
            .expect("BUG: a hidden kind without output")
            .name;
        nodes.push(Node {
            name,
            owner: Some(owner),
            contract: hidden,
            params: params.clone(),
            sources: BTreeMap::new(),
            inputs,
            handed_on: Vec::new(),
        });
        Some(Edge {
            node: nodes.len() - 1,
            output,
            tokenizer: false,
        })
    };
    let made = if named.is_empty() {
        make(None).map(Feed::One)
    } else {
        let list: Vec<_> = named
            .iter()
            .filter_map(|n| make(Some(n)).map(|e| ((*n).to_owned(), e)))
            .collect();
        Some(Feed::Many(list))
    };
    // An optional port that is not given needs no preparation.
    if let Some(feed) = made {
        nodes[owner]
            .inputs
            .insert(preparation.name.to_owned(), feed);
        nodes[owner].handed_on.extend(preparation.fields);
        for port in preparation.replaces {
            nodes[owner].inputs.remove(*port);
        }
    }
}

fn order(nodes: &[Node]) -> Vec<usize> {
    let mut graph = DiGraph::<usize, ()>::with_capacity(nodes.len(), nodes.len() * 2);
    // Inserted backwards: petgraph's order is a reversed post-order, which then comes out close to the recipe's own.
    let mut ids = vec![NodeIndex::new(0); nodes.len()];
    for i in (0..nodes.len()).rev() {
        ids[i] = graph.add_node(i);
    }
    for (i, node) in nodes.iter().enumerate() {
        for edge in node.inputs.values().flat_map(Feed::edges) {
            graph.add_edge(ids[edge.node], ids[i], ());
        }
    }
    toposort(&graph, None)
        .expect("BUG: a checked recipe has no cycles")
        .into_iter()
        .map(|id| graph[id])
        .collect()
}

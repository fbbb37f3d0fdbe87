//! From a recipe to nodes: its stages, their preparations, and an order in which all can run.

use std::collections::BTreeMap;
use std::sync::Arc;

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::{Map, Value};

use super::{Edge, Feed, Node, Plan};
use crate::contract::{Contract, Contracts, From};
use crate::recipe::{Binding, Guard, Pick, Recipe, StopIf, Target};

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
                guards: stage.guards.iter().map(guard).collect(),
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
}

fn feed(binding: &Binding) -> Feed {
    let edges = |pick: &Pick<Target>| pick.clone().map(whole);
    match binding {
        Binding::One(pick) => Feed::One(edges(pick)),
        Binding::Many(list) => {
            Feed::Many(list.iter().map(|(n, p)| (n.clone(), edges(p))).collect())
        }
    }
}

/// The edge to an output.
pub(crate) fn whole(target: Target) -> Edge {
    Edge {
        node: target.stage,
        output: target.output,
        tokenizer: false,
    }
}

fn guard(guard: &Guard) -> (Pick<Edge>, Arc<StopIf>) {
    (guard.metrics.clone().map(whole), guard.stop.clone())
}

/// The node whose output carries the tokenizer of `target`: kinds that keep their input's tokenizer are seen through, so that
/// tokenizing waits for no training.
fn tokenizer_of(recipe: &Recipe, target: Target) -> Edge {
    let mut target = target;
    loop {
        let stage = &recipe.stages[target.stage];
        let keeps = stage
            .contract
            .output(target.output)
            .and_then(|o| o.keeps_tokenizer_of.or(o.handed_on()));
        match keeps.and_then(|port| stage.inputs.get(port)) {
            Some(Binding::One(Pick { from, .. })) if from.len() == 1 => target = from[0].clone(),
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

/// The same for a pick. Rounds that train one model on all lead to one tokenizer, whichever of them is the last.
fn tokenizers_of(recipe: &Recipe, pick: &Pick<Target>) -> Pick<Edge> {
    let mut edges = pick.clone().map(|target| tokenizer_of(recipe, target));
    edges.from.dedup();
    edges
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
            _ => None,
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
    let mut make = |element: Option<&str>| -> Option<Pick<Edge>> {
        let mut inputs = BTreeMap::new();
        let mut guards = nodes[owner].guards.clone();
        let mut optional = false;
        for (port, from) in preparation.inputs {
            let name = match from {
                From::Port(name) | From::TokenizerOf(name) => name,
                From::PortOr(name, other) => match stage.inputs.contains_key(name) {
                    true => name,
                    false => other,
                },
                From::Preparation(name) => {
                    let feed = nodes[owner].inputs.get(*name)?.clone();
                    inputs.insert((*port).to_owned(), feed);
                    continue;
                }
            };
            let pick = match stage.inputs.get(name)? {
                Binding::One(pick) => pick,
                Binding::Many(list) => &list.iter().find(|(n, _)| Some(n.as_str()) == element)?.1,
            };
            // Of what is skipped nothing is prepared, even where the tokenizer is seen through.
            for own in recipe.stages[pick.from[0].stage].guards.iter().map(guard) {
                if !guards.contains(&own) {
                    guards.push(own);
                }
            }
            optional |= pick.optional;
            let edges = match from {
                From::TokenizerOf(_) => tokenizers_of(recipe, pick),
                _ => pick.clone().map(whole),
            };
            inputs.insert((*port).to_owned(), Feed::One(edges));
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
            guards,
            handed_on: Vec::new(),
        });
        let edge = Edge {
            node: nodes.len() - 1,
            output,
            tokenizer: false,
        };
        Some(Pick {
            from: vec![edge],
            optional,
        })
    };
    let made = if named.is_empty() {
        make(None).map(Feed::One)
    } else {
        let list: Vec<_> = named
            .iter()
            .filter_map(|n| make(Some(n)).map(|pick| ((*n).to_owned(), pick)))
            .collect();
        Some(Feed::Many(list))
    };
    // An optional port that is not given needs no preparation.
    if let Some(feed) = made {
        for port in preparation.replaces {
            nodes[owner].inputs.remove(*port);
        }
        nodes[owner]
            .inputs
            .insert(preparation.name.to_owned(), feed);
        nodes[owner].handed_on.extend(preparation.fields);
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
        for edge in node.edges() {
            graph.add_edge(ids[edge.node], ids[i], ());
        }
    }
    toposort(&graph, None)
        .expect("BUG: a checked recipe has no cycles")
        .into_iter()
        .map(|id| graph[id])
        .collect()
}

//! Peak memory before anything runs: what is known of artifacts is handed down the plan, to the stages that can tell from it what
//! they will need.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value};

use crate::artifact::{ArtifactType, ArtifactView};
use crate::contract::{Gives, Output, Summary};
use crate::peek::Sources;
use crate::plan::{Edge, Node, Standing, Verdict};
use crate::session::Session;

/// What an estimate may ask of an artifact that is there.
pub type Facts = fn(&ArtifactView) -> Summary;

/// Looks at the sources of a kind for what its artifact will say; where its output is foreseen, too, for what that is told from, as the
/// input [`GLANCED`].
pub struct Glance {
    /// The kind's name.
    pub kind: &'static str,
    /// The look.
    pub look: Ahead,
}

/// Parameters, and the files of each source field → what will be known of the artifact.
pub type Ahead = fn(&Map<String, Value>, &Sources) -> Result<Summary>;

/// The peak memory of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Nobody estimates it: it will not run, or its kind does not say.
    Untold,
    /// It will be told when more of its inputs is known.
    Unknown,
    /// Bytes.
    Bytes(u64),
}

/// What a glance told, among the inputs of a kind that foresees its output as well.
pub const GLANCED: &str = "source";

/// Node and output → what is known of the artifact.
type Known = BTreeMap<(usize, &'static str), Summary>;

/// The peak memory of every node that runs, or may. Only what feeds such nodes is looked at.
pub fn memory(
    session: &Session,
    standings: &[Standing],
    facts: Facts,
    glances: &[Glance],
) -> Vec<Memory> {
    let plan = &session.plan;
    let mut told = vec![Memory::Untold; plan.nodes.len()];
    let asked = |index: usize| {
        let estimate = plan.nodes[index].contract.memory;
        estimate.filter(|_| standings[index].verdict.open())
    };
    let targets: Vec<usize> = (0..plan.nodes.len())
        .filter(|index| asked(*index).is_some())
        .collect();
    if targets.is_empty() {
        return told;
    }
    let wanted = plan.with_needs(targets);
    let mut known = Known::new();
    for &index in plan.order.iter().filter(|index| wanted[**index]) {
        let node = &plan.nodes[index];
        let inputs = inputs_of(node, standings, &known);
        if let Some(estimate) = asked(index) {
            told[index] = match estimate(&node.params, &inputs) {
                Some(bytes) => Memory::Bytes(bytes),
                None => Memory::Unknown,
            };
        }
        let made: Vec<_> = (node.contract.outputs.iter())
            .filter(|output| matters(output))
            .filter_map(|output| {
                let entry = &standings[index];
                let summary = output_of(session, index, entry, output, &inputs, facts, glances)?;
                Some(((index, output.name), summary))
            })
            .collect();
        known.extend(made);
    }
    told
}

/// Whether an estimate looks at such an artifact: at models and tokens, not at rows and numbers.
fn matters(output: &Output) -> bool {
    use ArtifactType::{Adapter, Model, RewardModel, Tokens};
    match output.gives {
        Gives::New(artifact) => matches!(artifact, Model | RewardModel | Adapter | Tokens),
        Gives::Same(_) => true,
    }
}

/// (port or preparation, what is known of an artifact in it).
fn inputs_of<'a>(
    node: &'a Node,
    standings: &[Standing],
    known: &'a Known,
) -> Vec<(&'a str, &'a Summary)> {
    let mut list = Vec::new();
    for (name, feed) in &node.inputs {
        for pick in feed.picks() {
            let runs = |edge: &&Edge| standings[edge.node].verdict != Verdict::Skipped;
            let edge = pick.from.iter().rev().find(runs);
            let summary = edge
                .filter(|edge| !edge.tokenizer)
                .and_then(|edge| known.get(&(edge.node, edge.output)));
            list.extend(summary.map(|summary| (name.as_str(), summary)));
        }
    }
    list
}

/// What is known of an output: of the artifact in the cache, else of what it will be made of.
fn output_of(
    session: &Session,
    index: usize,
    standing: &Standing,
    output: &Output,
    inputs: &[(&str, &Summary)],
    facts: Facts,
    glances: &[Glance],
) -> Option<Summary> {
    let node = &session.plan.nodes[index];
    if let Some(entry) = &standing.entry {
        let digest = entry.outputs.get(output.name)?;
        return session.cache.view(*digest).ok().map(|view| facts(&view));
    }
    if let Some(port) = output.handed_on() {
        let same = inputs.iter().find(|(name, _)| *name == port);
        return same.map(|(_, summary)| (*summary).clone());
    }
    // What is wrong with the files is told when the stage runs.
    let glanced = match glances.iter().find(|g| g.kind == node.contract.kind) {
        Some(glance) => Some((glance.look)(&node.params, &session.files(index)?).ok()?),
        None => None,
    };
    let Some(foresee) = output.foreseen else {
        return glanced;
    };
    // An adapter from outside is more than its files: it is on a base.
    let mut all = inputs.to_vec();
    all.extend(glanced.iter().map(|summary| (GLANCED, summary)));
    foresee(&node.params, &all)
}

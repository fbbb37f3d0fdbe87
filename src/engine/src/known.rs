//! What is known of artifacts before they are made: of those in the cache by a look at them, of sources by a look at the heads of their
//! files, of the rest by what it will be made of, handed down the plan.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value};

use crate::artifact::{ArtifactType, ArtifactView};
use crate::contract::{Gives, Output, Summary};
use crate::peek::{Peek, Sources};
use crate::plan::{Edge, Feed, Node, Standing, Verdict};
use crate::recipe::Pick;
use crate::session::Session;

/// What may be asked of an artifact that is there.
pub type Facts = fn(&ArtifactView) -> Summary;

/// Looks at the parameters and the sources of a kind for what its artifact will say.
pub struct Glance {
    /// The kind's name.
    pub kind: &'static str,
    /// The look.
    pub look: Ahead,
}

/// Parameters, and the files of each source field → what will be known of the artifact.
pub type Ahead = fn(&Map<String, Value>, &Sources) -> Result<Summary>;

/// The ways to look ahead that an engine is given.
#[derive(Clone, Copy)]
pub struct Looks {
    /// At the first rows of sources.
    pub peeks: &'static [Peek],
    /// At the heads of models.
    pub glances: &'static [Glance],
    /// At artifacts in the cache.
    pub facts: Facts,
}

impl Looks {
    /// Nobody looks.
    pub const NONE: Self = Self {
        peeks: &[],
        glances: &[],
        facts: |_| Summary::new(),
    };
}

/// Node and output → what is known of the artifact.
pub(crate) type Known = BTreeMap<(usize, &'static str), Summary>;

/// What is known of the outputs of `targets` and of all that they need.
pub(crate) fn known(
    session: &Session,
    standings: &[Standing],
    targets: Vec<usize>,
    looks: &Looks,
) -> Known {
    let plan = &session.plan;
    let mut known = Known::new();
    if targets.is_empty() {
        return known;
    }
    let wanted = plan.with_needs(targets);
    for &index in plan.order.iter().filter(|index| wanted[**index]) {
        let outputs = plan.nodes[index].contract.outputs.iter();
        let made: Vec<_> = outputs
            .filter(|output| matters(output))
            .filter_map(|output| {
                let summary = output_of(session, index, standings, output, &known, looks)?;
                Some(((index, output.name), summary))
            })
            .collect();
        known.extend(made);
    }
    known
}

/// Whether anybody asks of such an artifact: of models and tokens, not of rows and numbers.
fn matters(output: &Output) -> bool {
    use ArtifactType::{Adapter, Classifier, Model, RewardModel, Tokens};
    match output.gives {
        Gives::New(artifact) => {
            matches!(
                artifact,
                Model | RewardModel | Adapter | Classifier | Tokens
            )
        }
        Gives::Same(_) => true,
    }
}

/// (port or preparation, what is known of an artifact in it).
pub(crate) fn inputs_of<'a>(
    node: &'a Node,
    standings: &[Standing],
    known: &'a Known,
) -> Vec<(&'a str, &'a Summary)> {
    let mut list = Vec::new();
    for (name, feed) in &node.inputs {
        let picks = feed.picks().into_iter();
        let found = picks.filter_map(|pick| of(pick, standings, known));
        list.extend(found.map(|summary| (name.as_str(), summary)));
    }
    list
}

/// What is known of one artifact of an input: of rounds, the last that is not skipped.
fn of<'a>(pick: &Pick<Edge>, standings: &[Standing], known: &'a Known) -> Option<&'a Summary> {
    let runs = |edge: &&Edge| standings[edge.node].verdict != Verdict::Skipped;
    let edge = pick.from.iter().rev().find(runs)?;
    if edge.tokenizer {
        return None;
    }
    known.get(&(edge.node, edge.output))
}

/// What is known of all artifacts of an input alike: any of them may be the one that is handed on.
fn common(feed: &Feed, standings: &[Standing], known: &Known) -> Option<Summary> {
    let picks = feed.picks().into_iter();
    let mut all = picks.map(|pick| of(pick, standings, known));
    let mut same = all.next()??.clone();
    for other in all {
        let other = other?;
        same.retain(|name, value| other.get(name) == Some(value));
    }
    Some(same)
}

/// What is known of an output: of the artifact in the cache, else of what it will be made of and what its sources say.
fn output_of(
    session: &Session,
    index: usize,
    standings: &[Standing],
    output: &Output,
    known: &Known,
    looks: &Looks,
) -> Option<Summary> {
    let node = &session.plan.nodes[index];
    if let Some(entry) = &standings[index].entry {
        let digest = entry.outputs.get(output.name)?;
        let view = session.cache.view(*digest).ok();
        return view.map(|view| (looks.facts)(&view));
    }
    if let Some(port) = output.handed_on() {
        return common(node.inputs.get(port)?, standings, known);
    }
    let inputs = inputs_of(node, standings, known);
    let foreseen = output
        .foreseen
        .and_then(|foresee| foresee(&node.params, &inputs));
    let glance = looks.glances.iter().find(|g| g.kind == node.contract.kind);
    // What is wrong with the files is told when the stage runs.
    let seen = glance.and_then(|glance| (glance.look)(&node.params, &session.files(index)?).ok());
    match (foreseen, seen) {
        (Some(mut all), Some(seen)) => {
            all.extend(seen);
            Some(all)
        }
        (foreseen, seen) => foreseen.or(seen),
    }
}

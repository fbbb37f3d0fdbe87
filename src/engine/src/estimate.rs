//! Peak memory before anything runs, from what is known of the artifacts that stages will be given.

use crate::known::{Looks, inputs_of, known};
use crate::plan::Standing;
use crate::session::Session;

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

/// The peak memory of every node that runs, or may. Only what feeds such nodes is looked at.
pub fn memory(session: &Session, standings: &[Standing], looks: &Looks) -> Vec<Memory> {
    let plan = &session.plan;
    let mut told = vec![Memory::Untold; plan.nodes.len()];
    let asked = |index: usize| {
        let estimate = plan.nodes[index].contract.memory;
        estimate.filter(|_| standings[index].verdict.open())
    };
    let targets: Vec<usize> = (0..plan.nodes.len())
        .filter(|index| asked(*index).is_some())
        .collect();
    let known = known(session, standings, targets.clone(), looks);
    for index in targets {
        let node = &plan.nodes[index];
        let inputs = inputs_of(node, standings, &known);
        told[index] = match asked(index).and_then(|estimate| estimate(&node.params, &inputs)) {
            Some(bytes) => Memory::Bytes(bytes),
            None => Memory::Unknown,
        };
    }
    told
}

//! Fields against what feeds the ports: what a stage could say only when it runs, though the recipe shows it already.

use super::{Binding, Stage};
use crate::contract::{Contracts, Inputs, Rows, Summary};
use crate::diagnostic::Problem;

/// (stage, what is known of it) for each that feeds a port.
type Of<'a, T> = &'a dyn Fn(&str) -> Vec<(String, T)>;

/// What `stage` says that does not go with its inputs, of whose rows and artifacts something is known.
pub(crate) fn check(
    stage: &Stage,
    contracts: Contracts,
    code: &'static str,
    rows: Of<'_, Rows>,
    known: Of<'_, Summary>,
) -> Vec<Problem> {
    let names = |port: &str| match stage.inputs.get(port) {
        None => Vec::new(),
        Some(Binding::One(_)) => vec![port.to_owned()],
        Some(Binding::Many(list)) => list.iter().map(|(name, _)| name.clone()).collect(),
    };
    let inputs = Inputs {
        names: &names,
        rows,
        known,
    };
    contracts
        .input_mistakes(stage.contract, &stage.params, &inputs)
        .into_iter()
        .map(|(name, message)| {
            let span = stage.spans.get(name).copied().unwrap_or(stage.span);
            Problem::at(code, span, message)
        })
        .collect()
}

/// The same when nothing is known of them. What was given for a port and could not be read has been said, and is not missing.
pub(super) fn check_names(stage: &Stage, contracts: Contracts) -> Vec<Problem> {
    let ports = stage.contract.ports.iter();
    let lost = |name: &str| stage.spans.contains_key(name) && !stage.inputs.contains_key(name);
    if ports.map(|port| port.name).any(lost) {
        return Vec::new();
    }
    check(stage, contracts, "out-of-range", &|_| Vec::new(), &|_| {
        Vec::new()
    })
}

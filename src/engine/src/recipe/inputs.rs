//! Fields against what feeds the ports: what a stage could say only when it runs, though the recipe shows it already.

use super::{Binding, Stage};
use crate::contract::{Inputs, Rows};
use crate::diagnostic::Problem;

/// What `stage` says that does not go with its inputs, of whose rows `rows` is known: (stage, its rows) for each in a port.
pub(crate) fn check(
    stage: &Stage,
    code: &'static str,
    rows: &dyn Fn(&str) -> Vec<(String, Rows)>,
) -> Vec<Problem> {
    let Some(check) = stage.contract.check_inputs else {
        return Vec::new();
    };
    let names = |port: &str| match stage.inputs.get(port) {
        None => Vec::new(),
        Some(Binding::One(_)) => vec![port.to_owned()],
        Some(Binding::Many(list)) => list.iter().map(|(name, _)| name.clone()).collect(),
    };
    let inputs = Inputs {
        names: &names,
        rows,
    };
    check(&stage.params, &inputs)
        .into_iter()
        .map(|(name, message)| {
            let span = stage.spans.get(name).copied().unwrap_or(stage.span);
            Problem::at(code, span, message)
        })
        .collect()
}

/// The same when nothing is known of rows. What was given for a port and could not be read has been said, and is not missing.
pub(super) fn check_names(stage: &Stage) -> Vec<Problem> {
    let ports = stage.contract.ports.iter();
    let lost = |name: &str| stage.spans.contains_key(name) && !stage.inputs.contains_key(name);
    if ports.map(|port| port.name).any(lost) {
        return Vec::new();
    }
    check(stage, "out-of-range", &|_| Vec::new())
}

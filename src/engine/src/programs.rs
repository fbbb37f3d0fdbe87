//! Programs that recipes name. They run only where the user allows it: reading or running somebody else's recipe must not start
//! a command by itself.

use anyhow::Result;

use crate::contract::{Contract, FieldType};
use crate::diagnostic::{Problem, Problems};
use crate::session::Session;

const NOT_ALLOWED: &str = "program-not-allowed";

/// Whether all of these are programs that were refused.
pub fn all_refused(problems: &Problems) -> bool {
    problems.problems.iter().all(|p| p.code == NOT_ALLOWED)
}

/// (node, command) of every node that runs a program.
pub fn of(session: &Session) -> Vec<(usize, String)> {
    let nodes = session.plan.nodes.iter().enumerate();
    nodes
        .filter_map(|(index, node)| Some((index, node.contract.program(&node.params)?)))
        .collect()
}

/// The field of a kind that names a program.
pub(crate) fn field(contract: &Contract) -> Option<&'static str> {
    let mut fields = contract.fields.iter();
    let found = fields.find(|field| matches!(field.ty, FieldType::Program { .. }));
    found.map(|field| field.name)
}

/// Refuses to run the programs of the nodes that `runs` tells.
///
/// # Errors
/// [`Problems`]: each program with its place in the recipe and the way to allow it.
pub(crate) fn refuse(session: &Session, runs: impl Fn(usize) -> bool) -> Result<()> {
    let problem = |(index, command): (usize, String)| {
        let node = &session.plan.nodes[index];
        let message = format!(
            "the stage `{}` runs the program `{command}`, and nobody has allowed it",
            node.name
        );
        let stage = session.recipe.stages.get(node.owner.unwrap_or(index));
        let span = stage.map(|stage| {
            let own = field(node.contract).and_then(|field| stage.spans.get(field));
            own.copied().unwrap_or(stage.span)
        });
        Problem {
            code: NOT_ALLOWED,
            message,
            span,
            others: Vec::new(),
            help: Some(
                "look at what it does; `levain run --allow-programs`, or LEVAIN_ALLOW_PROGRAMS=1 in the environment, lets it run"
                    .to_owned(),
            ),
        }
    };
    let problems: Vec<Problem> = of(session)
        .into_iter()
        .filter(|(index, _)| runs(*index))
        .map(problem)
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Problems::new(session.recipe.sources.clone(), problems).into())
}

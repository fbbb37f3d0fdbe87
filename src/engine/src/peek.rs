//! What shows of datasets before anything runs: the layout of rows, from the first rows of a source or from the cache, handed on to
//! the stages that keep it; and the inputs that can't use it.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value};

use crate::artifact::ArtifactType;
use crate::contract::{Contract, Output};
use crate::diagnostic::{Problem, Problems};
use crate::job::SourceFile;
use crate::plan::{Feed, Standing};
use crate::recipe::Target;
use crate::session::Session;

/// Looks at the beginning of a kind's sources.
pub struct Peek {
    /// The kind's name.
    pub kind: &'static str,
    /// The look.
    pub look: Look,
}

/// Parameters, and the files of each source field → what shows.
pub type Look = fn(&Map<String, Value>, &Sources) -> Result<Seen>;

/// Source field → its files.
pub type Sources = BTreeMap<String, Vec<SourceFile>>;

/// What shows of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The layout of its rows.
    pub layout: String,
    /// In words: `alpaca rows, kept as prompt-completion`.
    pub words: String,
}

const MISMATCH: &str = "layout-mismatch";
const FIRST_ROWS: &str = "first-rows";

/// Whether all of these mistakes were found by a look: they are the recipe's or its data's, not the machine's.
pub fn found_all(problems: &Problems) -> bool {
    let codes = problems.problems.iter().map(|p| p.code);
    codes.into_iter().all(|c| c == MISMATCH || c == FIRST_ROWS)
}

/// Looks at every dataset that can be told of.
///
/// # Errors
/// [`Problems`]: a source whose first rows can't be read, an input that can't use the layout of what feeds it.
pub fn look(
    session: &Session,
    standings: &[Standing],
    peeks: &[Peek],
) -> Result<Vec<Option<Seen>>> {
    let nodes = &session.plan.nodes;
    let mut seen: Vec<Option<Seen>> = vec![None; nodes.len()];
    let mut problems = Vec::new();
    for &index in &session.plan.order {
        let node = &nodes[index];
        if let Some(entry) = &standings[index].entry {
            seen[index] = node
                .contract
                .outputs
                .first()
                .filter(|o| o.is(ArtifactType::Dataset) || o.handed_on().is_some())
                .and_then(|o| entry.outputs.get(o.name))
                .and_then(|digest| session.cache.manifest(*digest).ok())
                .and_then(|manifest| Some(manifest.summary.get("layout")?.as_str()?.to_owned()))
                .map(|layout| Seen {
                    words: format!("{layout}, as the cache has it"),
                    layout,
                });
        } else if let Some(peek) = peeks.iter().find(|p| p.kind == node.contract.kind) {
            let files = session.files(index);
            match files.map(|f| (peek.look)(&node.params, &f)).transpose() {
                Ok(found) => seen[index] = found,
                Err(error) => problems.push(problem(session, index, &error).ok_or(error)?),
            }
        } else {
            let of = |port: &str| fed(node.inputs.get(port)?, &seen);
            seen[index] = match (node.contract.layout, handed_on(node.contract)) {
                (Some(layout), _) => layout(&node.params, &|port| Some(of(port)?.layout))
                    .map(|layout| told(layout, node.inputs.values(), &seen)),
                (None, Some(port)) => of(port),
                (None, None) => None,
            };
        }
    }
    for stage in &session.recipe.stages {
        for port in stage
            .contract
            .ports
            .iter()
            .filter(|p| !p.layouts.is_empty())
        {
            let targets: Vec<&Target> = stage
                .inputs
                .get(port.name)
                .map(|binding| binding.targets().collect())
                .unwrap_or_default();
            for target in targets {
                let Some(found) = &seen[target.stage] else {
                    continue;
                };
                if !port.layouts.contains(&found.layout.as_str()) {
                    let message = format!(
                        "`{}` takes rows laid out as {}, and those of `{}` are {}",
                        port.name,
                        port.layouts.join(", "),
                        nodes[target.stage].name,
                        found.words
                    );
                    let span = stage.spans.get(port.name).copied().unwrap_or(stage.span);
                    problems.push(Problem::at(MISMATCH, span, message));
                }
            }
        }
    }
    if problems.is_empty() {
        return Ok(seen);
    }
    Err(Problems::new(session.recipe.sources.clone(), problems).into())
}

/// What shows of an input. One of several may come through: it shows when they are alike.
fn fed(feed: &Feed, seen: &[Option<Seen>]) -> Option<Seen> {
    let mut all = feed.edges().into_iter().map(|edge| &seen[edge.node]);
    let first = all.next().cloned().flatten();
    first.filter(|f| all.all(|other| other.as_ref().is_some_and(|o| o.layout == f.layout)))
}

/// A layout in the words of the input that has it, if one has: `alpaca, kept as messages`.
fn told<'a>(layout: String, inputs: impl Iterator<Item = &'a Feed>, seen: &[Option<Seen>]) -> Seen {
    let mut alike = inputs.filter_map(|feed| fed(feed, seen));
    alike.find(|found| found.layout == layout).unwrap_or(Seen {
        words: layout.clone(),
        layout,
    })
}

/// The port whose artifact a kind hands on.
fn handed_on(contract: &Contract) -> Option<&'static str> {
    contract.outputs.first().and_then(Output::handed_on)
}

/// A look that failed, at the place of the stage's source.
fn problem(session: &Session, index: usize, error: &anyhow::Error) -> Option<Problem> {
    let stage = session.recipe.stages.get(index)?;
    let field = session.plan.nodes[index].sources.keys().next()?;
    let span = stage.spans.get(*field).copied().unwrap_or(stage.span);
    Some(Problem::at(FIRST_ROWS, span, format!("{error:#}")))
}

//! What shows of datasets before anything runs: the layout of rows, from the first rows of a source or from the cache, handed on to
//! the stages that keep it; and the inputs that can't use it, with the fields that do not go with it or with what is known of models.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value};

use crate::artifact::ArtifactType;
use crate::contract::{Contract, Output, Rows, Summary};
use crate::diagnostic::{Problem, Problems};
use crate::job::SourceFile;
use crate::known::{Looks, known};
use crate::plan::{Feed, Node, Standing};
use crate::recipe::{Binding, Target, inputs};
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
    /// Its rows.
    pub rows: Rows,
    /// In words: `alpaca rows, kept as prompt-completion`.
    pub words: String,
}

const MISMATCH: &str = "layout-mismatch";
const FIRST_ROWS: &str = "first-rows";
const MODEL: &str = "model-mismatch";

/// Whether all of these mistakes were found by a look: they are the recipe's or its data's, not the machine's.
pub fn found_all(problems: &Problems) -> bool {
    let codes = problems.problems.iter().map(|p| p.code);
    codes
        .into_iter()
        .all(|c| [MISMATCH, FIRST_ROWS, MODEL].contains(&c))
}

/// Looks at every dataset that can be told of, and at the models that feed what will run.
///
/// # Errors
/// [`Problems`]: a source whose first rows can't be read, an input that can't use the layout of what feeds it, fields and models that do
/// not go together.
pub fn look(session: &Session, standings: &[Standing], looks: &Looks) -> Result<Vec<Option<Seen>>> {
    let nodes = &session.plan.nodes;
    let mut seen: Vec<Option<Seen>> = vec![None; nodes.len()];
    let mut problems = Vec::new();
    for &index in &session.plan.order {
        let node = &nodes[index];
        let is_cached = standings[index].entry.is_some();
        let shown = match looks.peeks.iter().find(|p| p.kind == node.contract.kind) {
            Some(peek) => {
                let files = session.files(index);
                match files.map(|f| (peek.look)(&node.params, &f)).transpose() {
                    Ok(found) => found,
                    // Rows that were read before are as they should be.
                    Err(_) if is_cached => None,
                    Err(error) => {
                        problems.push(problem(session, index, &error).ok_or(error)?);
                        None
                    }
                }
            }
            None => by_inputs(node, &seen),
        };
        seen[index] = match is_cached {
            true => kept(session, node, &standings[index], shown),
            false => shown,
        };
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
                if !port.layouts.contains(&found.rows.layout.as_str()) {
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
        let rows = |port: &str| -> Vec<(String, Rows)> {
            let targets = stage.inputs.get(port).into_iter();
            targets
                .flat_map(Binding::targets)
                .filter_map(|target| {
                    let found = seen[target.stage].as_ref()?;
                    Some((nodes[target.stage].name.clone(), found.rows.clone()))
                })
                .collect()
        };
        let contracts = session.contracts;
        problems.extend(inputs::check(stage, contracts, MISMATCH, &rows, &|_| {
            Vec::new()
        }));
    }
    problems.extend(look_at_models(session, standings, looks));
    if problems.is_empty() {
        return Ok(seen);
    }
    Err(Problems::new(session.recipe.sources.clone(), problems).into())
}

/// What does not go with the models that feed the stages that run, or may. Where all is cached it was right.
fn look_at_models(session: &Session, standings: &[Standing], looks: &Looks) -> Vec<Problem> {
    let (stages, contracts) = (&session.recipe.stages, session.contracts);
    let targets: Vec<usize> = (0..stages.len())
        .filter(|index| standings[*index].verdict.open())
        .filter(|index| contracts.checks_inputs(stages[*index].contract))
        .collect();
    let known = known(session, standings, targets.clone(), looks);
    let mut problems = Vec::new();
    for index in targets {
        let stage = &stages[index];
        let models = |port: &str| -> Vec<(String, Summary)> {
            let targets = stage.inputs.get(port).into_iter();
            targets
                .flat_map(Binding::targets)
                .filter_map(|target| {
                    let found = known.get(&(target.stage, target.output))?;
                    Some((stages[target.stage].name.clone(), found.clone()))
                })
                .collect()
        };
        let rows = |_: &str| Vec::new();
        problems.extend(inputs::check(stage, contracts, MODEL, &rows, &models));
    }
    problems
}

/// What shows of a stage that has not run, by what feeds it.
fn by_inputs(node: &Node, seen: &[Option<Seen>]) -> Option<Seen> {
    let of = |port: &str| fed(node.inputs.get(port)?, seen);
    match (node.contract.layout, handed_on(node.contract)) {
        (Some(layout), _) => layout(&node.params, &|port| Some(of(port)?.rows))
            .map(|rows| told(rows, node.inputs.values(), seen)),
        (None, Some(port)) => of(port),
        (None, None) => None,
    }
}

/// What the cache has of a dataset. It tells the layout; what else was `shown` holds where that is the same.
fn kept(session: &Session, node: &Node, standing: &Standing, shown: Option<Seen>) -> Option<Seen> {
    let output = node.contract.outputs.first()?;
    if !output.is(ArtifactType::Dataset) && output.handed_on().is_none() {
        return None;
    }
    let digest = standing.entry.as_ref()?.outputs.get(output.name)?;
    let manifest = session.cache.manifest(*digest).ok()?;
    let layout = manifest.summary.get("layout")?.as_str()?;
    let rows = shown.map(|found| found.rows);
    Some(Seen {
        rows: rows
            .filter(|rows| rows.layout == layout)
            .unwrap_or_else(|| Rows::of(layout)),
        words: format!("{layout}, as the cache has it"),
    })
}

/// What shows of an input. One of several may come through: it shows when they are alike.
fn fed(feed: &Feed, seen: &[Option<Seen>]) -> Option<Seen> {
    let edges = feed.edges().into_iter();
    let all: Option<Vec<&Seen>> = edges.map(|edge| seen[edge.node].as_ref()).collect();
    let all = all?;
    let (first, others) = all.split_first()?;
    if others.iter().any(|o| o.rows.layout != first.rows.layout) {
        return None;
    }
    let mut found = Seen::clone(first);
    let empty = &mut found.rows.empty;
    empty.retain(|column| others.iter().all(|o| o.rows.empty.contains(column)));
    Some(found)
}

/// Rows in the words of the input that has their layout, if one has: `alpaca, kept as messages`.
fn told<'a>(rows: Rows, inputs: impl Iterator<Item = &'a Feed>, seen: &[Option<Seen>]) -> Seen {
    let mut alike = inputs.filter_map(|feed| fed(feed, seen));
    let alike = alike.find(|found| found.rows.layout == rows.layout);
    Seen {
        words: alike.map_or_else(|| rows.layout.clone(), |found| found.words),
        rows,
    }
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

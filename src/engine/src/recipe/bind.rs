//! References: which output feeds which port, with their types; and cycles.

use std::collections::BTreeMap;

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;

use super::names::{Found, Names, Spot};
use super::read::{key_span, wrong_type};
use super::yaml::{Key, Node, NodeKind};
use super::{Binding, Stage, Target};
use crate::artifact::ArtifactType;
use crate::contract::{Arity, Contract, Output, Port};
use crate::diagnostic::{Problem, Span, nearest};

/// Reads every port of `body`.
pub(super) fn read(
    body: &Node,
    key: &Key,
    contract: &'static Contract,
    names: &Names,
    scope: usize,
    problems: &mut Vec<Problem>,
) -> BTreeMap<&'static str, Binding> {
    let place = Place { names, scope, key };
    let mut inputs = BTreeMap::new();
    for port in contract.ports {
        let given = body
            .get(port.name)
            .filter(|n| !matches!(n.kind, NodeKind::Null));
        match given {
            Some(node) => {
                if let Some(binding) = place.port(port, node, problems) {
                    inputs.insert(port.name, binding);
                }
            }
            None if port.arity == Arity::Optional => {}
            None => {
                let message = format!("the stage `{}` needs `{}`", key.name, port.name);
                let help = place
                    .stages_that_give(port)
                    .unwrap_or_else(|| format!("it takes {}", phrase(port.accepts)));
                problems.push(Problem::at("missing-field", key_span(key), message).help(help));
            }
        }
    }
    inputs
}

/// The stage whose ports are read.
struct Place<'a> {
    names: &'a Names,
    scope: usize,
    key: &'a Key,
}

impl Place<'_> {
    fn port(
        &self,
        port: &'static Port,
        node: &Node,
        problems: &mut Vec<Problem>,
    ) -> Option<Binding> {
        match (&node.kind, port.arity) {
            (NodeKind::Text(text), Arity::One | Arity::Optional) => {
                let mut list = self.targets(port, node, problems)?;
                if list.len() > 1 {
                    let message = format!(
                        "`{text}` is {} outputs, and `{}` takes one",
                        list.len(),
                        port.name
                    );
                    let one = format!("choose one, such as `{}`", self.full(&list[0].1));
                    problems.push(Problem::at("bad-reference", node.span, message).help(one));
                    return None;
                }
                list.pop().map(|(_, target)| Binding::One(target))
            }
            (NodeKind::Text(text), Arity::Many) => {
                let mut list = self.targets(port, node, problems)?;
                if let [(label, _)] = list.as_mut_slice()
                    && label.is_empty()
                {
                    label.clone_from(text);
                }
                Some(Binding::Many(list))
            }
            (NodeKind::List(items), Arity::Many) if !items.is_empty() => {
                let mut list: Vec<(String, Target)> = Vec::new();
                let mut fine = true;
                for item in items {
                    match (&item.kind, self.targets(port, item, problems)) {
                        (NodeKind::Text(text), Some(found)) => {
                            list.extend(found.into_iter().map(|(label, target)| match label {
                                label if label.is_empty() => (text.clone(), target),
                                _ => (self.full(&target), target),
                            }));
                        }
                        _ => fine = false,
                    }
                }
                fine.then_some(Binding::Many(list))
            }
            (NodeKind::Map(pairs), Arity::Many) if !pairs.is_empty() => {
                let mut list = Vec::new();
                let mut fine = true;
                for (name, item) in pairs {
                    match self.targets(port, item, problems) {
                        Some(found) => {
                            list.extend(found.into_iter().map(|(label, target)| match label {
                                label if label.is_empty() => (name.name.clone(), target),
                                label => (format!("{}[{label}]", name.name), target),
                            }))
                        }
                        None => fine = false,
                    }
                }
                fine.then_some(Binding::Many(list))
            }
            (NodeKind::List(_) | NodeKind::Map(_), Arity::Many) => {
                let message = format!("`{}` names nothing", port.name);
                problems
                    .push(Problem::at("empty", node.span, message).help("name at least one stage"));
                None
            }
            (_, Arity::Many) => {
                problems.push(wrong_type(
                    port.name,
                    "a stage's name, a list of them or a mapping to them",
                    node,
                ));
                None
            }
            _ => {
                problems.push(wrong_type(port.name, "a stage's name", node));
                None
            }
        }
    }

    /// The outputs that a reference leads to, with the labels of rounds or cells; one without any has an empty label.
    fn targets(
        &self,
        port: &'static Port,
        node: &Node,
        problems: &mut Vec<Problem>,
    ) -> Option<Vec<(String, Target)>> {
        let NodeKind::Text(text) = &node.kind else {
            problems.push(wrong_type(port.name, "a stage's name", node));
            return None;
        };
        let spots = match self.names.find(self.scope, text) {
            Ok(Found::One(spot)) => vec![(String::new(), spot)],
            Ok(Found::Many(list)) => list,
            Ok(Found::Broken) => return None,
            Err(miss) => {
                let help = match (miss.help, miss.span) {
                    (Some(help), _) => Some(help),
                    (None, Some(_)) => Some("name a stage".to_owned()),
                    (None, None) => self.stages_that_give(port),
                };
                let help = help.unwrap_or_else(|| {
                    format!(
                        "`{}` takes the name of a stage that gives {}",
                        port.name,
                        phrase(port.accepts)
                    )
                });
                let span = miss.span.unwrap_or(node.span);
                problems.push(Problem::at("bad-reference", span, miss.message).help(help));
                return None;
            }
        };
        spots
            .into_iter()
            .map(|(label, spot)| Some((label, self.target(port, text, &spot, node, problems)?)))
            .collect()
    }

    fn target(
        &self,
        port: &'static Port,
        text: &str,
        spot: &Spot,
        node: &Node,
        problems: &mut Vec<Problem>,
    ) -> Option<Target> {
        let found = output_of(self.names, spot, node.span, problems)?;
        let (full, contract) = &self.names.stages[spot.stage];
        let contract = (*contract)?;
        if spot.output.is_empty()
            && contract.outputs.len() > 1
            && contract.outputs[0].artifact == contract.outputs[1].artifact
        {
            let names: Vec<_> = contract
                .outputs
                .iter()
                .map(|o| format!("`{text}.{}`", o.name))
                .collect();
            let message = format!("`{full}` has several outputs of the same type");
            problems.push(
                Problem::at("bad-reference", node.span, message)
                    .help(format!("say which: {}", names.join(" or "))),
            );
            return None;
        }
        if !port.accepts.contains(&found.artifact) {
            let message = format!(
                "`{}` takes {}, and `{text}` is {}",
                port.name,
                phrase(port.accepts),
                phrase(&[found.artifact])
            );
            let stem = text
                .strip_suffix(&format!(".{}", spot.output))
                .filter(|_| !spot.output.is_empty())
                .unwrap_or(text);
            let fitting = contract
                .outputs
                .iter()
                .find(|o| port.accepts.contains(&o.artifact));
            let help = fitting
                .map(|o| format!("`{stem}.{}` would fit", o.name))
                .or_else(|| self.stages_that_give(port));
            problems.push(Problem::at("type-mismatch", node.span, message).maybe_help(help));
            return None;
        }
        Some(Target {
            stage: spot.stage,
            output: found.name,
        })
    }

    /// How a target is named from everywhere.
    fn full(&self, target: &Target) -> String {
        self.names.full(&Spot {
            stage: target.stage,
            output: target.output.to_owned(),
        })
    }

    /// The stages that could stand in a port.
    fn stages_that_give(&self, port: &Port) -> Option<String> {
        let gives = |contract: &Contract| {
            contract
                .outputs
                .iter()
                .any(|o| port.accepts.contains(&o.artifact))
        };
        let others = self.names.stages_in(self.scope);
        let fitting: Vec<_> = others
            .into_iter()
            .filter(|(name, contract)| *name != self.key.name && gives(contract))
            .map(|(name, _)| format!("`{name}`"))
            .take(5)
            .collect();
        (!fitting.is_empty()).then(|| {
            format!(
                "stages that give {}: {}",
                phrase(port.accepts),
                fitting.join(", ")
            )
        })
    }
}

/// The output that a spot means. A stage whose kind is unknown, which has been said, is passed over.
pub(super) fn output_of(
    names: &Names,
    spot: &Spot,
    span: Span,
    problems: &mut Vec<Problem>,
) -> Option<&'static Output> {
    let (name, contract) = &names.stages[spot.stage];
    let contract = (*contract)?;
    let found = contract.output(&spot.output);
    if found.is_none() {
        let known: Vec<_> = contract.outputs.iter().map(|o| o.name).collect();
        let message = format!(
            "the stage `{name}` of kind `{}` has no output `{}`",
            contract.kind, spot.output
        );
        let help = match nearest(&spot.output, known.iter().copied()) {
            Some(word) => format!("did you mean `{name}.{word}`?"),
            None if known.is_empty() => "it has no outputs".to_owned(),
            None => format!("its outputs are {}", known.join(", ")),
        };
        problems.push(Problem::at("bad-reference", span, message).help(help));
    }
    found
}

/// Types of artifacts with their articles.
pub(super) fn phrase(types: &[ArtifactType]) -> String {
    let one = |artifact: &ArtifactType| match artifact.name() {
        name if name.ends_with('s') => name.to_owned(),
        name if name.starts_with('a') => format!("an {name}"),
        name => format!("a {name}"),
    };
    types.iter().map(one).collect::<Vec<_>>().join(" or ")
}

/// Stages that wait for each other.
pub(super) fn check_cycles(stages: &[Stage], problems: &mut Vec<Problem>) {
    let mut graph = DiGraph::<usize, ()>::new();
    let nodes: Vec<_> = (0..stages.len()).map(|i| graph.add_node(i)).collect();
    for (i, stage) in stages.iter().enumerate() {
        for target in stage.inputs.values().flat_map(Binding::targets) {
            if target.stage < stages.len() {
                graph.add_edge(nodes[target.stage], nodes[i], ());
            }
        }
    }
    for component in tarjan_scc(&graph) {
        let own = component.len() == 1 && graph.find_edge(component[0], component[0]).is_some();
        if component.len() < 2 && !own {
            continue;
        }
        let mut members: Vec<usize> = component.iter().map(|n| graph[*n]).collect();
        members.sort_unstable();
        let names: Vec<_> = members.iter().map(|i| stages[*i].name.as_str()).collect();
        let message = match names.as_slice() {
            [one] => format!("`{one}` needs its own output"),
            _ => format!("these stages wait for each other: {}", names.join(", ")),
        };
        let help = if own {
            "a stage uses what other stages give"
        } else {
            "one of them has to do without what the others give"
        };
        let mut problem = Problem::at("cycle", stages[members[0]].span, message).help(help);
        for i in &members[1..] {
            problem = problem.other(stages[*i].span, "part of the cycle");
        }
        problems.push(problem);
    }
}

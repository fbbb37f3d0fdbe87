//! References: which output feeds which port, with their types; and cycles.

use std::collections::BTreeMap;

use petgraph::algo::kosaraju_scc;
use petgraph::graph::DiGraph;

use super::names::{Found, Named, Names, Spot};
use super::read::{key_span, wrong_type};
use super::yaml::{Key, Node, NodeKind};
use super::{Binding, Pick, Stage, Target};
use crate::artifact::{ArtifactType, phrase};
use crate::contract::{Arity, Contract, Output, Port};
use crate::diagnostic::{Problem, Span, nearest};

/// Reads every port of `body`.
pub(super) fn read(
    body: &Node,
    key: &Key,
    contract: &'static Contract,
    names: &Names,
    stage: usize,
    problems: &mut Vec<Problem>,
) -> BTreeMap<&'static str, Binding> {
    let handed_on = contract.outputs.iter().find(|o| o.handed_on().is_some());
    let place = Place {
        names,
        scope: names.stages[stage].scope,
        key,
        handed_on: handed_on.and_then(|output| {
            let artifact = names.artifact(stage, output)?;
            Some((output.handed_on()?, artifact))
        }),
    };
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
            None if !port.arity.is_required() => {}
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

/// The metrics of a `stop_if`.
const STOP_IF: Port = Port {
    name: "metrics",
    accepts: &[ArtifactType::Metrics],
    arity: Arity::One,
    layouts: &[],
    doc: "what a `stop_if` looks at",
};

/// Reads the metrics of the `stop_if` of the group `key`.
pub(super) fn metrics(
    node: &Node,
    key: &Key,
    names: &Names,
    scope: usize,
    problems: &mut Vec<Problem>,
) -> Option<Pick<Target>> {
    let place = Place {
        names,
        scope,
        key,
        handed_on: None,
    };
    match place.port(&STOP_IF, node, problems)? {
        Binding::One(pick) => Some(pick),
        Binding::Many(_) => None,
    }
}

/// The stage, or the group, whose ports are read.
struct Place<'a> {
    names: &'a Names,
    scope: usize,
    key: &'a Key,
    /// The port whose artifact it hands on, and the type of the first in it: all are of one type.
    handed_on: Option<(&'static str, ArtifactType)>,
}

impl Place<'_> {
    fn port(&self, port: &Port, node: &Node, problems: &mut Vec<Problem>) -> Option<Binding> {
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
            (NodeKind::Text(text), many) => {
                let mut list = self.targets(port, node, problems)?;
                if many.is_nameless_alone() && list.len() == 1 {
                    return list.pop().map(|(_, target)| Binding::One(target));
                }
                if let [(label, _)] = list.as_mut_slice()
                    && label.is_empty()
                {
                    label.clone_from(text);
                }
                Some(Binding::Many(list))
            }
            (NodeKind::List(items), many) if many.takes_several() && !items.is_empty() => {
                let mut list: Vec<(String, Pick<Target>)> = Vec::new();
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
            (NodeKind::Map(pairs), many) if many.takes_several() && !pairs.is_empty() => {
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
            (NodeKind::List(_) | NodeKind::Map(_), many) if many.takes_several() => {
                let message = format!("`{}` names nothing", port.name);
                problems
                    .push(Problem::at("empty", node.span, message).help("name at least one stage"));
                None
            }
            (_, many) if many.takes_several() => {
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
        port: &Port,
        node: &Node,
        problems: &mut Vec<Problem>,
    ) -> Option<Vec<(String, Pick<Target>)>> {
        let NodeKind::Text(text) = &node.kind else {
            problems.push(wrong_type(port.name, "a stage's name", node));
            return None;
        };
        let spots = match self.names.find(self.scope, text) {
            Ok(Found::One(pick)) => vec![(String::new(), pick)],
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
        let mut found = Vec::new();
        for (label, pick) in spots {
            let targets: Option<Vec<Target>> = pick
                .from
                .iter()
                .map(|spot| self.target(port, text, spot, node, problems))
                .collect();
            let pick = Pick {
                from: targets?,
                optional: pick.optional,
            };
            found.push((label, pick));
        }
        Some(found)
    }

    fn target(
        &self,
        port: &Port,
        text: &str,
        spot: &Spot,
        node: &Node,
        problems: &mut Vec<Problem>,
    ) -> Option<Target> {
        let found = output_of(self.names, spot, node.span, problems)?;
        let Named { name, contract, .. } = &self.names.stages[spot.stage];
        let contract = (*contract)?;
        if spot.output.is_empty()
            && contract.outputs.len() > 1
            && contract.outputs[0].gives == contract.outputs[1].gives
            && self
                .names
                .artifact(spot.stage, found)
                .is_none_or(|a| port.accepts.contains(&a))
        {
            let names: Vec<_> = contract
                .outputs
                .iter()
                .map(|o| format!("`{text}.{}`", o.name))
                .collect();
            let message = format!("`{name}` has several outputs of the same type");
            problems.push(
                Problem::at("bad-reference", node.span, message)
                    .help(format!("say which: {}", names.join(" or "))),
            );
            return None;
        }
        let target = Target {
            stage: spot.stage,
            output: found.name,
        };
        // Stages that hand on to each other in a circle have no type: they are told as a circle.
        let Some(artifact) = self.names.artifact(spot.stage, found) else {
            return Some(target);
        };
        if let Some((_, first)) = self
            .handed_on
            .filter(|(p, a)| *p == port.name && *a != artifact)
        {
            let message = format!(
                "`{}` takes artifacts of one type: the first is {}, and `{text}` is {}",
                port.name,
                phrase(&[first]),
                phrase(&[artifact])
            );
            let help = "name outputs of one type";
            problems.push(Problem::at("type-mismatch", node.span, message).help(help));
            return None;
        }
        if !port.accepts.contains(&artifact) {
            let message = format!(
                "`{}` takes {}, and `{text}` is {}",
                port.name,
                phrase(port.accepts),
                phrase(&[artifact])
            );
            let stem = text
                .strip_suffix(&format!(".{}", spot.output))
                .filter(|_| !spot.output.is_empty())
                .unwrap_or(text);
            let fitting = contract
                .outputs
                .iter()
                .find(|o| port.accepts.iter().any(|a| o.is(*a)));
            let help = fitting
                .map(|o| format!("`{stem}.{}` would fit", o.name))
                .or_else(|| self.stages_that_give(port));
            problems.push(Problem::at("type-mismatch", node.span, message).maybe_help(help));
            return None;
        }
        Some(target)
    }

    /// How a target is named from everywhere.
    fn full(&self, pick: &Pick<Target>) -> String {
        let target = pick.from.last().expect("BUG: a pick of nothing");
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
                .any(|o| port.accepts.iter().any(|a| o.is(*a)))
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
    let Named { name, contract, .. } = &names.stages[spot.stage];
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

/// Stages that wait for each other.
pub(super) fn check_cycles(stages: &[Stage], problems: &mut Vec<Problem>) {
    let mut graph = DiGraph::<usize, ()>::new();
    let nodes: Vec<_> = (0..stages.len()).map(|i| graph.add_node(i)).collect();
    for (i, stage) in stages.iter().enumerate() {
        let guards = stage.guards.iter().flat_map(|guard| &guard.metrics.from);
        for target in stage
            .inputs
            .values()
            .flat_map(Binding::targets)
            .chain(guards)
        {
            if target.stage < stages.len() {
                graph.add_edge(nodes[target.stage], nodes[i], ());
            }
        }
    }
    // Not the algorithm of Tarjan, which calls itself: a chain may be longer than the stack is deep.
    for component in kosaraju_scc(&graph) {
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

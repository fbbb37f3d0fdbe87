//! References: which output feeds which port, with their types; and cycles.

use std::collections::BTreeMap;

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;

use super::read::{key_span, wrong_type};
use super::yaml::{Key, Node, NodeKind};
use super::{Binding, Stage, Target};
use crate::artifact::ArtifactType;
use crate::contract::{Arity, Contract, Port};
use crate::diagnostic::{Problem, nearest};

/// Stage name → (its index, its contract when its kind is known).
pub(super) type Index<'a> = BTreeMap<&'a str, (usize, Option<&'static Contract>)>;

/// Reads every port of `body`.
pub(super) fn read(
    body: &Node,
    key: &Key,
    contract: &'static Contract,
    index: &Index<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<&'static str, Binding> {
    let mut inputs = BTreeMap::new();
    for port in contract.ports {
        let given = body
            .get(port.name)
            .filter(|n| !matches!(n.kind, NodeKind::Null));
        match given {
            Some(node) => {
                if let Some(binding) = read_port(port, node, key, index, problems) {
                    inputs.insert(port.name, binding);
                }
            }
            None if port.arity == Arity::Optional => {}
            None => {
                let message = format!("the stage `{}` needs `{}`", key.name, port.name);
                let help = stages_that_give(port, key, index)
                    .unwrap_or_else(|| format!("it takes {}", phrase(port.accepts)));
                problems.push(Problem::at("missing-field", key_span(key), message).help(help));
            }
        }
    }
    inputs
}

fn read_port(
    port: &'static Port,
    node: &Node,
    key: &Key,
    index: &Index<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Binding> {
    match (&node.kind, port.arity) {
        (NodeKind::Text(_), Arity::One | Arity::Optional) => {
            read_target(port, node, key, index, problems).map(Binding::One)
        }
        (NodeKind::Text(text), Arity::Many) => {
            let target = read_target(port, node, key, index, problems)?;
            Some(Binding::Many(vec![(text.clone(), target)]))
        }
        (NodeKind::List(items), Arity::Many) if !items.is_empty() => {
            let mut list: Vec<(String, Target)> = Vec::new();
            let mut fine = true;
            for item in items {
                match (&item.kind, read_target(port, item, key, index, problems)) {
                    (NodeKind::Text(text), Some(target)) => list.push((text.clone(), target)),
                    _ => fine = false,
                }
            }
            fine.then_some(Binding::Many(list))
        }
        (NodeKind::Map(pairs), Arity::Many) if !pairs.is_empty() => {
            let mut list = Vec::new();
            for (name, item) in pairs {
                if let Some(target) = read_target(port, item, key, index, problems) {
                    list.push((name.name.clone(), target));
                }
            }
            (list.len() == pairs.len()).then_some(Binding::Many(list))
        }
        (NodeKind::List(_) | NodeKind::Map(_), Arity::Many) => {
            let message = format!("`{}` names nothing", port.name);
            problems.push(Problem::at("empty", node.span, message).help("name at least one stage"));
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

fn read_target(
    port: &'static Port,
    node: &Node,
    key: &Key,
    index: &Index<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Target> {
    let NodeKind::Text(text) = &node.kind else {
        problems.push(wrong_type(port.name, "a stage's name", node));
        return None;
    };
    let (name, output) = text.split_once('.').unwrap_or((text, ""));
    let Some((stage, contract)) = index.get(name) else {
        let help = nearest(name, index.keys().copied()).map(|w| format!("did you mean `{w}`?"));
        let help = help.or_else(|| stages_that_give(port, key, index));
        let help = help.unwrap_or_else(|| {
            format!(
                "`{}` takes the name of a stage that gives {}",
                port.name,
                phrase(port.accepts)
            )
        });
        problems.push(
            Problem::at(
                "bad-reference",
                node.span,
                format!("there is no stage `{name}`"),
            )
            .help(help),
        );
        return None;
    };
    let contract = (*contract)?;
    let Some(found) = contract.output(output) else {
        let names: Vec<_> = contract.outputs.iter().map(|o| o.name).collect();
        let message = format!(
            "the stage `{name}` of kind `{}` has no output `{output}`",
            contract.kind
        );
        let help = match nearest(output, names.iter().copied()) {
            Some(word) => format!("did you mean `{name}.{word}`?"),
            None if names.is_empty() => "it has no outputs".to_owned(),
            None => format!("its outputs are {}", names.join(", ")),
        };
        problems.push(Problem::at("bad-reference", node.span, message).help(help));
        return None;
    };
    if output.is_empty()
        && contract.outputs.len() > 1
        && contract.outputs[0].artifact == contract.outputs[1].artifact
    {
        let names: Vec<_> = contract
            .outputs
            .iter()
            .map(|o| format!("`{name}.{}`", o.name))
            .collect();
        let message = format!("`{name}` has several outputs of the same type");
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
        let fitting: Vec<_> = contract
            .outputs
            .iter()
            .filter(|o| port.accepts.contains(&o.artifact))
            .map(|o| o.name)
            .collect();
        let help = fitting
            .first()
            .map(|o| format!("`{name}.{o}` would fit"))
            .or_else(|| stages_that_give(port, key, index));
        problems.push(Problem::at("type-mismatch", node.span, message).maybe_help(help));
        return None;
    }
    Some(Target {
        stage: *stage,
        output: found.name,
    })
}

/// The stages that could stand in a port of the stage `own`.
fn stages_that_give(port: &Port, own: &Key, index: &Index<'_>) -> Option<String> {
    let gives = |contract: &Contract| {
        contract
            .outputs
            .iter()
            .any(|o| port.accepts.contains(&o.artifact))
    };
    let others = index
        .iter()
        .filter(|(name, (_, c))| **name != own.name && c.is_some_and(gives));
    let fitting: Vec<_> = others.map(|(n, _)| format!("`{n}`")).take(5).collect();
    (!fitting.is_empty()).then(|| {
        format!(
            "stages that give {}: {}",
            phrase(port.accepts),
            fitting.join(", ")
        )
    })
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

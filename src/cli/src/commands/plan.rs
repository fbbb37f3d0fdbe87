//! `levain plan`: what would run, and why.

use anyhow::Result;
use engine::estimate::{self, Memory};
use engine::plan::{Plan, Standing, Verdict};
use engine::recipe::{Binding, Pick, Stage, Target};
use engine::session::Session;
use serde_json::{Value, json};

use crate::context::{Context, looks};
use crate::failure::Status;
use crate::options::RecipeArgs;
use crate::style::verdict_words;
use crate::{table, units};

/// Say what a run would do, and why; nothing is run or fetched
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Print the stages as they are after parameters, options and defaults
    #[arg(long)]
    resolved: bool,
    /// Print every stage with verdict, key and output digests as JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let session = context.open(&args.recipe)?;
    if args.resolved {
        let text = if args.json {
            format!("{:#}\n", resolved_json(&session))
        } else {
            resolved(&session)
        };
        context.print(&text)?;
        return Ok(Status::Done);
    }
    let standings = session.standings();
    if args.json {
        context.print_json(&plan_json(&session, &standings))?;
        return Ok(Status::Done);
    }
    let memory = memory(&session, &standings);
    let style = context.out;
    let mut rows = Vec::new();
    for &index in &session.plan.order {
        let (node, standing) = (&session.plan.nodes[index], &standings[index]);
        let key = standing
            .record
            .as_ref()
            .map_or_else(|| "·".to_owned(), |r| r.key().short());
        let dim = |text: &str| {
            if node.owner.is_some() {
                style.dim(text)
            } else {
                text.to_owned()
            }
        };
        rows.push(vec![
            style.verdict(standing.verdict, verdict_words(standing.verdict)),
            dim(&node.name),
            style.dim(node.contract.kind),
            style.dim(&key),
            dim(&with_memory(
                reason(&session.plan, &standings, index),
                memory[index],
            )),
        ]);
    }
    let mut text = table::columns(&rows, &[], "");
    let counted = |verdict| standings.iter().filter(|s| s.verdict == verdict).count();
    let (cached, will, may, skipped) = (
        counted(Verdict::Cached),
        counted(Verdict::WillRun),
        counted(Verdict::MayRun),
        counted(Verdict::Skipped),
    );
    let skipped = match skipped {
        0 => String::new(),
        count => format!(", {} skipped", units::count(count as u64)),
    };
    text.push_str(&format!(
        "\n{}: {} cached, {} will run, {} may run{skipped}\n",
        units::plural(standings.len(), "node"),
        units::count(cached as u64),
        units::count(will as u64),
        units::count(may as u64)
    ));
    text.push_str(&untold(&session.plan, &memory));
    let missing = session.missing();
    if !missing.is_empty() {
        text.push_str("to be fetched first:\n");
        missing
            .iter()
            .for_each(|source| text.push_str(&format!("  {source}\n")));
    }
    let mut programs = engine::programs::of(&session);
    programs.retain(|(index, _)| standings[*index].verdict.open());
    if !programs.is_empty() {
        text.push_str("programs, which run with `levain run --allow-programs` only:\n");
        for (index, program) in &programs {
            let name = &session.plan.nodes[*index].name;
            text.push_str(&format!("  {name}: {program}\n"));
        }
    }
    context.print(&text)?;
    Ok(Status::Done)
}

/// The peak memory of every node.
fn memory(session: &Session, standings: &[Standing]) -> Vec<Memory> {
    estimate::memory(session, standings, &looks())
}

/// What is said of a node, and its memory where that is told.
fn with_memory(reason: String, memory: Memory) -> String {
    match memory {
        Memory::Bytes(count) => format!("{reason}; about {} of memory", units::bytes(count)),
        Memory::Untold | Memory::Unknown => reason,
    }
}

/// Says whose memory is not known yet, and what has to be there first.
fn untold(plan: &Plan, memory: &[Memory]) -> String {
    let nodes = plan.nodes.iter().zip(memory);
    let unknown: Vec<_> = nodes
        .filter(|(_, memory)| **memory == Memory::Unknown)
        .map(|(node, _)| format!("`{}`", node.name))
        .collect();
    match unknown.as_slice() {
        [] => String::new(),
        [name] => format!("the memory of {name} is unknown until its model is here\n"),
        names => format!(
            "the memory of {} is unknown until their models are here\n",
            units::plural(names.len(), "stage")
        ),
    }
}

/// Why a node runs, in a few words.
fn reason(plan: &Plan, standings: &[Standing], index: usize) -> String {
    if standings[index].verdict != Verdict::MayRun {
        return standings[index].reason.clone();
    }
    let open: Vec<_> = plan
        .needs(index)
        .into_iter()
        .filter(|n| standings[*n].verdict.open())
        .collect();
    let names: Vec<_> = open
        .iter()
        .map(|n| format!("`{}`", plan.nodes[*n].name))
        .collect();
    format!("depends on {}", names.join(", "))
}

/// The plan for programs.
fn plan_json(session: &Session, standings: &[Standing]) -> Value {
    let memory = memory(session, standings);
    let stages: Vec<Value> = session
        .plan
        .order
        .iter()
        .map(|&index| {
            let (node, standing) = (&session.plan.nodes[index], &standings[index]);
            json!({
                "name": node.name,
                "kind": node.contract.kind,
                "preparation_of": node.owner.map(|o| session.plan.nodes[o].name.as_str()),
                "verdict": standing.verdict,
                "reason": standing.reason,
                "key": standing.record.as_ref().map(|r| r.key()),
                "outputs": standing.entry.as_ref().map(|e| &e.outputs),
                "memory": match memory[index] {
                    Memory::Bytes(count) => Value::from(count),
                    Memory::Untold | Memory::Unknown => Value::Null,
                },
                "program": node.contract.program(&node.params),
            })
        })
        .collect();
    json!({ "recipe": session.recipe.name, "cache": session.cache.root(), "stages": stages, "fetch": session.missing() })
}

/// What feeds a port, as a recipe writes it.
fn binding(stages: &[Stage], binding: &Binding) -> Value {
    match binding {
        Binding::One(one) => pick(stages, one).into(),
        Binding::Many(list) => Value::Object(
            list.iter()
                .map(|(n, one)| (n.clone(), pick(stages, one).into()))
                .collect(),
        ),
    }
}

/// One output; of those of a repeat that may stop early, all that it may be.
fn pick(stages: &[Stage], pick: &Pick<Target>) -> String {
    let name = |target: &Target| {
        let stage = &stages[target.stage];
        match stage.contract.outputs.len() {
            1 => stage.name.clone(),
            _ => format!("{}.{}", stage.name, target.output),
        }
    };
    let names: Vec<String> = pick.from.iter().map(name).collect();
    match names.as_slice() {
        [one] => one.clone(),
        _ => format!("the last that ran of {}", names.join(", ")),
    }
}

fn resolved_json(session: &Session) -> Value {
    let recipe = &session.recipe;
    let stages: serde_json::Map<String, Value> = recipe
        .stages
        .iter()
        .map(|stage| {
            let mut words = serde_json::Map::new();
            words.insert("kind".to_owned(), stage.contract.kind.into());
            for (port, bound) in &stage.inputs {
                words.insert((*port).to_owned(), binding(&recipe.stages, bound));
            }
            words.extend(
                stage
                    .params
                    .iter()
                    .filter(|(_, v)| !v.is_null())
                    .map(|(k, v)| (k.clone(), v.clone())),
            );
            if !stage.guards.is_empty() {
                let unless = stage.guards.iter().map(|guard| {
                    let metrics = pick(&recipe.stages, &guard.metrics);
                    Value::from(format!("{metrics}: {}", guard.stop.words()))
                });
                words.insert("unless".to_owned(), unless.collect());
            }
            (stage.name.clone(), Value::Object(words))
        })
        .collect();
    json!({ "levain": 1, "name": recipe.name, "seed": recipe.seed, "stages": stages })
}

/// The same as YAML: values in flow style, which is JSON.
fn resolved(session: &Session) -> String {
    let value = resolved_json(session);
    let mut text = format!(
        "levain: 1\nname: {}\nseed: {}\nstages:\n",
        value["name"], value["seed"]
    );
    for (name, words) in value["stages"].as_object().into_iter().flatten() {
        text.push_str(&format!("  {name}:\n"));
        for (word, value) in words.as_object().into_iter().flatten() {
            text.push_str(&format!("    {word}: {value}\n"));
        }
    }
    text
}

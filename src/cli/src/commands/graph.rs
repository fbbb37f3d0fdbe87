//! `levain graph`: the pipeline as a picture in words.

use std::fmt::Write as _;

use anyhow::Result;
use clap::ValueEnum;
use engine::plan::{Edge, Feed, Verdict};
use engine::session::Session;
use serde_json::json;

use crate::context::Context;
use crate::failure::Status;
use crate::options::RecipeArgs;

/// Print the stages and what feeds them as a graph
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The graph's language
    #[arg(long, value_enum, default_value_t = Format::Mermaid)]
    format: Format,
    /// Colour every stage by its verdict
    #[arg(long)]
    verdicts: bool,
    /// Draw preparations too
    #[arg(long)]
    preparations: bool,
    /// Print nodes and edges as JSON
    #[arg(long, conflicts_with = "format")]
    pub(super) json: bool,
}

/// The graph's language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For Markdown pages.
    Mermaid,
    /// For Graphviz.
    Dot,
}

/// What is drawn.
struct Graph {
    /// (index in the plan, name, kind, verdict when asked for).
    nodes: Vec<(usize, String, &'static str, Option<Verdict>)>,
    /// (from, to, what flows).
    edges: Vec<(usize, usize, String)>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let session = context.open(&args.recipe)?;
    let graph = Graph::new(&session, args);
    if args.json {
        let nodes: Vec<_> = graph.nodes.iter().map(|(_, name, kind, verdict)| json!({ "name": name, "kind": kind, "verdict": verdict })).collect();
        let name = |index: usize| session.plan.nodes[index].name.as_str();
        let edges: Vec<_> = graph.edges.iter().map(|(from, to, label)| json!({ "from": name(*from), "to": name(*to), "output": label })).collect();
        context.print_json(&json!({ "nodes": nodes, "edges": edges }))?;
        return Ok(Status::Done);
    }
    context.print(&match args.format {
        Format::Mermaid => graph.mermaid(),
        Format::Dot => graph.dot(&session.recipe.name),
    })?;
    Ok(Status::Done)
}

impl Graph {
    fn new(session: &Session, args: &Args) -> Self {
        let plan = &session.plan;
        let verdicts = args.verdicts.then(|| session.standings());
        let drawn = |index: usize| args.preparations || plan.nodes[index].owner.is_none();
        let nodes = plan
            .order
            .iter()
            .filter(|i| drawn(**i))
            .map(|&i| {
                (
                    i,
                    plan.nodes[i].name.clone(),
                    plan.nodes[i].contract.kind,
                    verdicts.as_ref().map(|v| v[i].verdict),
                )
            })
            .collect();
        let mut edges = Vec::new();
        for &to in plan.order.iter().filter(|i| drawn(**i)) {
            for feed in plan.nodes[to].inputs.values() {
                for edge in feed.edges() {
                    add(session, edge, to, &drawn, &mut edges);
                }
            }
            for edge in plan.nodes[to]
                .guards
                .iter()
                .flat_map(|(pick, _)| &pick.from)
            {
                edges.push((edge.node, to, "stop_if".to_owned()));
            }
        }
        edges.sort();
        edges.dedup();
        Self { nodes, edges }
    }

    fn mermaid(&self) -> String {
        let mut out = "flowchart TD\n".to_owned();
        for (index, name, kind, verdict) in &self.nodes {
            let class = verdict
                .map(|v| format!(":::{}", word(v)))
                .unwrap_or_default();
            let _ = writeln!(
                out,
                "  n{index}[\"{name}<br/><small>{kind}</small>\"]{class}"
            );
        }
        for (from, to, label) in &self.edges {
            let arrow = if label.is_empty() {
                "-->".to_owned()
            } else {
                format!("-->|{label}|")
            };
            let _ = writeln!(out, "  n{from} {arrow} n{to}");
        }
        if self.nodes.iter().any(|n| n.3.is_some()) {
            for verdict in [
                Verdict::Cached,
                Verdict::WillRun,
                Verdict::MayRun,
                Verdict::Skipped,
            ] {
                let (fill, line) = colors(verdict);
                let _ = writeln!(
                    out,
                    "  classDef {} fill:{fill},stroke:{line},color:#000",
                    word(verdict)
                );
            }
        }
        out
    }

    fn dot(&self, name: &str) -> String {
        let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let mut out = format!(
            "digraph \"{}\" {{\n  node [shape=box, style=\"rounded,filled\", fillcolor=\"#ffffff\"];\n",
            quote(name)
        );
        for (index, name, kind, verdict) in &self.nodes {
            let color = verdict
                .map(|v| format!(", fillcolor=\"{}\", color=\"{}\"", colors(v).0, colors(v).1))
                .unwrap_or_default();
            let _ = writeln!(
                out,
                "  n{index} [label=\"{}\\n{kind}\"{color}];",
                quote(name)
            );
        }
        for (from, to, label) in &self.edges {
            let label = if label.is_empty() {
                String::new()
            } else {
                format!(" [label=\"{}\"]", quote(label))
            };
            let _ = writeln!(out, "  n{from} -> n{to}{label};");
        }
        out.push_str("}\n");
        out
    }
}

/// An edge into `to`; one out of a node that is not drawn is replaced by what feeds that node.
fn add(
    session: &Session,
    edge: &Edge,
    to: usize,
    drawn: &dyn Fn(usize) -> bool,
    edges: &mut Vec<(usize, usize, String)>,
) {
    let plan = &session.plan;
    let node = &plan.nodes[edge.node];
    if !drawn(edge.node) {
        node.inputs
            .values()
            .flat_map(Feed::edges)
            .for_each(|inner| add(session, inner, to, drawn, edges));
        return;
    }
    let mut label = if node.contract.outputs.len() > 1 {
        edge.output.to_owned()
    } else {
        String::new()
    };
    if edge.tokenizer {
        label = "tokenizer".to_owned();
        // The model itself says more than its tokenizer.
        if edges
            .iter()
            .any(|(from, other, _)| *from == edge.node && *other == to)
        {
            return;
        }
    }
    edges.push((edge.node, to, label));
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Cached => "cached",
        Verdict::WillRun => "willrun",
        Verdict::MayRun => "mayrun",
        Verdict::Skipped => "skipped",
    }
}

/// Fill and line.
fn colors(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Cached => ("#d3f2d5", "#2e7d32"),
        Verdict::WillRun => ("#fff3c4", "#b28704"),
        Verdict::MayRun => ("#d4ecf7", "#0277bd"),
        Verdict::Skipped => ("#eeeeee", "#757575"),
    }
}

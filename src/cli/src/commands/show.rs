//! `levain show`: what a stage made.

mod dataset;
mod model;
mod token_rows;
mod tokens;

use anyhow::{Context as _, Result};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::cache::Provenance;
use engine::digest::Digest;
use engine::session::Session;
use serde_json::{Value, json};

use super::why::find;
use crate::context::{Context, width};
use crate::failure::{Failure, Status};
use crate::options::RecipeArgs;
use crate::{answers, table, units};

/// Print what a stage made: rows of a dataset, a model's card, metrics, tokens
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The stage, `stage.output`, or a preparation such as `sft/tokens`
    #[arg(value_name = "STAGE")]
    stage: String,
    /// How many rows
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 3)]
    rows: usize,
    /// Draw rows as tokens, coloured by whether they are trained on
    #[arg(long)]
    tokens: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let session = context.open(&args.recipe)?;
    let (node, digest) = if args.tokens {
        tokens::find_tokens(&session, &args.stage)?
    } else {
        artifact(&session, &args.stage)?
    };
    let view = session.cache.view(digest)?;
    let provenance = provenance(&session, node);
    let title = title(&session, node, &view, &provenance, context);
    let print_json = |context, args, view, mut more: Value| {
        more["provenance"] = json!(provenance);
        print_json(context, args, view, more)
    };
    let text = match view.artifact {
        ArtifactType::Dataset => match args.json {
            true => return print_json(context, args, &view, dataset::to_json(&view, args.rows)?),
            false => dataset::text(&view, args.rows, context.out, width())?,
        },
        ArtifactType::Tokens => {
            let tokens = tokens::TokensView::open(&session, node, &view)?;
            match args.json {
                true => return print_json(context, args, &view, tokens.to_json(args.rows)?),
                false => tokens.text(args.rows, context.out)?,
            }
        }
        ArtifactType::Metrics if !args.json => metrics(&view, args.rows, context)?,
        ArtifactType::Metrics => {
            return print_json(
                context,
                args,
                &view,
                json!({ "metrics": read_metrics(&view)? }),
            );
        }
        _ if args.json => return print_json(context, args, &view, json!({})),
        _ => model::card(&view, context.out)?,
    };
    context.print(&format!("{title}{text}"))?;
    Ok(Status::Done)
}

/// The artifact that a person names, and the node that made it.
pub(crate) fn artifact(session: &Session, reference: &str) -> Result<(usize, Digest)> {
    let (node, output) = match session.find(reference) {
        Some(found) => found,
        None => (find(session, reference)?, String::new()),
    };
    let (name, contract) = (
        &session.plan.nodes[node].name,
        session.plan.nodes[node].contract,
    );
    let Some(found) = contract.output(&output) else {
        let names: Vec<_> = contract
            .outputs
            .iter()
            .map(|o| format!("`{name}.{}`", o.name))
            .collect();
        return Err(Failure::usage(format_args!(
            "`{name}` has no output `{output}`; it has {}",
            names.join(", ")
        )));
    };
    let entry = session
        .entry(node)
        .map_err(|error| Failure::usage(format_args!("{error:#}")))?;
    let digest = entry
        .outputs
        .get(found.name)
        .copied()
        .with_context(|| format!("`{name}` did not make `{}`", found.name))?;
    Ok((node, digest))
}

/// Where and how the node's outputs were made.
fn provenance(session: &Session, node: usize) -> Provenance {
    let record = session.standings().swap_remove(node).record;
    record
        .and_then(|record| session.cache.provenance(record.key()))
        .unwrap_or_default()
}

/// `made in 2 min 3 s on cpu, 2 threads, AVX2, libtorch 2.13.0; 1.2 GB of memory at most`, of what is known.
fn making(provenance: &Provenance) -> Option<String> {
    let mut text = format!(
        "made in {}",
        units::time(provenance.get("milliseconds")?.as_u64()?)
    );
    if let Some(class) = provenance.get("numerics") {
        let part = |name: &str| class[name].as_str().map(ToOwned::to_owned);
        let threads = class["threads"].as_u64();
        let parts = [
            part("device"),
            threads.map(|n| units::plural(n as usize, "thread")),
            part("capability"),
            part("libtorch").map(|version| format!("libtorch {version}")),
        ];
        let known: Vec<String> = parts.into_iter().flatten().collect();
        if !known.is_empty() {
            text.push_str(&format!(" on {}", known.join(", ")));
        }
    }
    if let Some(peak) = provenance.get("peak_memory").and_then(|p| p.as_u64()) {
        text.push_str(&format!("; {} of memory at most", units::bytes(peak)));
    }
    Some(text)
}

fn title(
    session: &Session,
    node: usize,
    view: &ArtifactView,
    provenance: &Provenance,
    context: &Context,
) -> String {
    let node = &session.plan.nodes[node];
    let style = context.out;
    let mut text = format!(
        "{} ({}): {} {}\n",
        style.bold(&node.name),
        node.contract.kind,
        view.artifact,
        style.dim(&view.digest.short())
    );
    if node.contract.outputs.len() > 1 {
        let names: Vec<_> = node
            .contract
            .outputs
            .iter()
            .map(|o| format!("{}.{}", node.name, o.name))
            .collect();
        text.push_str(&style.dim(&format!("outputs: {}\n", names.join(", "))));
    }
    if let Some(making) = making(provenance) {
        text.push_str(&style.dim(&format!("{making}\n")));
    }
    text
}

fn print_json(context: &Context, args: &Args, view: &ArtifactView, more: Value) -> Result<Status> {
    let mut value = json!({
        "stage": args.stage,
        "digest": view.digest,
        "type": view.artifact,
        "summary": view.summary,
        "files": view.files.iter().map(|(name, path)| json!({ "name": name, "bytes": size(path), "path": path })).collect::<Vec<_>>(),
        "refs": view.refs.iter().map(|(name, inner)| (name.clone(), json!(inner.digest))).collect::<serde_json::Map<_, _>>(),
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
        all.extend(more);
    }
    context.print_json(&value)?;
    Ok(Status::Done)
}

fn size(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// The artifact's facts, a line each.
fn facts(view: &ArtifactView) -> String {
    let summary: serde_json::Map<String, Value> = view
        .summary
        .iter()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    answers::plain(&Value::Object(summary), "  ")
}

/// The artifact's files with their sizes.
fn files(view: &ArtifactView, indent: &str) -> String {
    let rows: Vec<_> = view
        .files
        .iter()
        .map(|(name, path)| vec![name.clone(), units::bytes(size(path))])
        .collect();
    table::columns(&rows, &[1], indent)
}

fn read_metrics(view: &ArtifactView) -> Result<Value> {
    let path = view.file("metrics.json")?;
    let bytes = std::fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: metrics.json is not JSON", path.display()))
}

fn metrics(view: &ArtifactView, samples: usize, context: &Context) -> Result<String> {
    let value = read_metrics(view)?;
    let mut text = answers::scores(&value, context.out)
        .or_else(|| answers::steps(&value, samples))
        .or_else(|| crate::curves::text(&value, context.out))
        .or_else(|| crate::changes::text(&value, &view.summary, samples))
        .unwrap_or_else(|| answers::plain(&value, "  "));
    if let Some(path) = view.find("samples.jsonl") {
        text.push('\n');
        text.push_str(&answers::samples(path, samples, width(), context.out)?);
    }
    Ok(text)
}

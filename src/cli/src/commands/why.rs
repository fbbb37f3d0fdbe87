//! `levain why`: what changed since the last run.

use anyhow::Result;
use engine::plan::{Edge, Feed, Standing};
use engine::session::Session;
use serde_json::json;

use crate::context::Context;
use crate::failure::{Failure, Status};
use crate::options::RecipeArgs;
use crate::style::verdict_words;
use crate::table;

/// Say why a stage would run: what differs from its record in the last run
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The stage; `sft/tokens` names a preparation
    #[arg(value_name = "STAGE")]
    stage: String,
    /// Print the whole record, the list that the key is made of
    #[arg(long)]
    record: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let session = context.open(&args.recipe)?;
    let index = find(&session, &args.stage)?;
    let standings = session.standings();
    let standing = &standings[index];
    let why = engine::explain::why(&session, &standings, index)?;
    let style = context.out;
    if args.json {
        let changes: Vec<_> = why
            .changes
            .iter()
            .map(|(name, before, after)| json!({ "name": name, "before": before, "after": after }))
            .collect();
        context.print_json(&json!({
            "stage": why.name,
            "verdict": why.verdict,
            "reason": why.reason,
            "changes": changes,
            "key": standing.record.as_ref().map(|r| r.key()),
            "record": standing.record.as_deref().filter(|_| args.record),
        }))?;
        return Ok(Status::Done);
    }
    let words = style.verdict(why.verdict, verdict_words(why.verdict));
    let mut text = format!(
        "{} ({}) {words}: {}\n",
        style.bold(&why.name),
        session.plan.nodes[index].contract.kind,
        why.reason
    );
    for (name, before, after) in &why.changes {
        text.push_str(&format!(
            "  {}\n",
            change(
                &session,
                &standings,
                index,
                name,
                before.as_deref(),
                after.as_deref()
            )
        ));
    }
    if args.record {
        match &standing.record {
            Some(record) => {
                let mut rows: Vec<Vec<String>> = engine::explain::record_lines(record)
                    .into_iter()
                    .map(|(name, value)| vec![style.dim(&name), value])
                    .collect();
                rows.push(vec![style.bold("key"), record.key().to_string()]);
                text.push_str(&format!(
                    "\nIts record:\n{}",
                    table::columns(&rows, &[], "  ")
                ));
            }
            None => text.push_str("\nIts record is not known before its inputs are.\n"),
        }
    }
    context.print(&text)?;
    Ok(Status::Done)
}

/// The node that a person names.
pub(crate) fn find(session: &Session, name: &str) -> Result<usize> {
    let found = session.find(name).filter(|(_, output)| output.is_empty());
    found.map(|(node, _)| node).ok_or_else(|| {
        let near =
            engine::diagnostic::nearest(name, session.plan.nodes.iter().map(|n| n.name.as_str()));
        let names = || {
            session
                .recipe
                .stages
                .iter()
                .take(12)
                .map(|s| format!("`{}`", s.name))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let help = near.map_or_else(
            || format!("; its stages are {}", names()),
            |w| format!("; did you mean `{w}`?"),
        );
        Failure::usage(format_args!(
            "{} has no stage `{name}`{help}",
            session.recipe.path.display()
        ))
    })
}

/// One difference between two records, as a person reads it.
fn change(
    session: &Session,
    standings: &[Standing],
    index: usize,
    name: &str,
    before: Option<&str>,
    after: Option<&str>,
) -> String {
    let text =
        |value: Option<&str>| value.map_or_else(|| absent(session, index, name), ToOwned::to_owned);
    if let Some(field) = name.strip_prefix("param.") {
        return format!("{field} {} → {}", text(before), text(after));
    }
    let digests = match (before, after) {
        (Some(before), Some(after)) => format!("changed ({before} → {after})"),
        (None, Some(after)) => format!("is new ({after})"),
        (Some(before), None) => format!("is gone (was {before})"),
        (None, None) => "is unknown".to_owned(),
    };
    if let Some(port) = name.strip_prefix("input.") {
        let picks = session.plan.nodes[index].inputs.get(port).map(Feed::picks);
        let known = |node: usize| standings[node].known();
        let makers: Vec<String> = picks
            .unwrap_or_default()
            .into_iter()
            .filter_map(|pick| session.plan.edge(pick, &known).ok())
            .map(|edge| maker(session, edge))
            .collect();
        let made = if makers.is_empty() {
            String::new()
        } else {
            format!(", made by {}", makers.join(", "))
        };
        return format!("input {port}: {digests}{made}");
    }
    if let Some(field) = name.strip_prefix("source.") {
        return format!("source {field}: {digests}");
    }
    match name {
        "version" => format!(
            "the kind's version {} → {}: it works differently now",
            text(before),
            text(after)
        ),
        _ => format!("{name} {} → {}", text(before), text(after)),
    }
}

/// What it means that a record has no `name`: the parameter was not given, or has the value at which it changes nothing.
fn absent(session: &Session, index: usize, name: &str) -> String {
    let field = name
        .strip_prefix("param.")
        .and_then(|f| session.plan.nodes[index].contract.field(f));
    match field
        .and_then(|f| f.neutral)
        .map(engine::contract::Literal::value)
    {
        None | Some(serde_json::Value::Null) => "not given".to_owned(),
        Some(serde_json::Value::String(text)) => text,
        Some(value) => value.to_string(),
    }
}

fn maker(session: &Session, edge: &Edge) -> String {
    let node = &session.plan.nodes[edge.node];
    let output = if node.contract.outputs.len() > 1 {
        format!(".{}", edge.output)
    } else {
        String::new()
    };
    let what = if edge.tokenizer {
        "the tokenizer of "
    } else {
        ""
    };
    format!("{what}`{}{output}`", node.name)
}

//! `levain check`: is the recipe right?

use anyhow::Result;
use serde_json::json;

use crate::context::{Context, looks};
use crate::failure::Status;
use crate::options::RecipeArgs;
use crate::units;

/// Check a recipe: every mistake at once, with its place
///
/// Reads the recipe, its references and types, and looks at the sources that are here. Nothing is run or fetched.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Print the mistakes as JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let session = context.open(&args.recipe)?;
    let seen = engine::peek::look(&session, &session.standings(), &looks())?;
    let missing = session.missing();
    let stages = session.recipe.stages.len();
    let preparations = session.plan.nodes.len() - stages;
    if args.json {
        let layouts: serde_json::Map<String, serde_json::Value> = session
            .plan
            .nodes
            .iter()
            .zip(&seen)
            .filter_map(|(node, seen)| {
                Some((node.name.clone(), seen.as_ref()?.rows.layout.clone().into()))
            })
            .collect();
        context.print_json(&json!({
            "problems": [],
            "recipe": session.recipe.name,
            "stages": stages,
            "preparations": preparations,
            "outputs": session.recipe.outputs.len(),
            "layouts": layouts,
            "programs": programs(&session),
            "fetch": missing,
        }))?;
        return Ok(Status::Done);
    }
    let mut counts = vec![units::plural(stages, "stage")];
    if preparations > 0 {
        counts.push(units::plural(preparations, "preparation"));
    }
    if !session.recipe.outputs.is_empty() {
        counts.push(units::plural(session.recipe.outputs.len(), "output"));
    }
    let mut text = format!(
        "{} {}: {}\n",
        context.out.green("OK"),
        session.recipe.path.display(),
        counts.join(", ")
    );
    for (node, seen) in session.plan.nodes.iter().zip(&seen) {
        if let (Some(seen), false) = (seen, node.sources.is_empty()) {
            text.push_str(&format!("  {}: {}\n", node.name, seen.words));
        }
    }
    for (name, program) in programs(&session) {
        text.push_str(&format!(
            "  {name}: runs the program `{}`, with `levain run --allow-programs` only\n",
            program.as_str().unwrap_or_default()
        ));
    }
    if !missing.is_empty() {
        let unknown = if missing.len() == 1 {
            "1 source is"
        } else {
            &format!("{} sources are", missing.len())
        };
        text.push_str(&format!("{unknown} not here yet, so what they hold is unknown; `levain fetch` or `levain run` fetches:\n"));
        missing
            .iter()
            .for_each(|source| text.push_str(&format!("  {source}\n")));
    }
    context.print(&text)?;
    Ok(Status::Done)
}

/// Stage → the program that it runs.
fn programs(session: &engine::session::Session) -> serde_json::Map<String, serde_json::Value> {
    let programs = engine::programs::of(session).into_iter();
    programs
        .map(|(index, program)| (session.plan.nodes[index].name.clone(), program.into()))
        .collect()
}

//! `levain kinds`: the manual of stages.

use anyhow::Result;
use engine::manual;
use serde_json::Value;

use crate::context::Context;
use crate::failure::{Failure, Status};
use crate::table;

/// List the kinds of stages, or print the manual of one
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The kind
    #[arg(value_name = "KIND")]
    kind: Option<String>,
    /// Print all manuals as one page of Markdown
    #[arg(long, conflicts_with_all = ["kind", "json"])]
    markdown: bool,
    /// Print the contracts as JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let contracts = context.contracts();
    if args.markdown {
        context.print(&manual::markdown(contracts))?;
        return Ok(Status::Done);
    }
    let Some(name) = &args.kind else {
        if args.json {
            context.print_json(
                &contracts
                    .kinds
                    .iter()
                    .map(|c| manual::to_json(c))
                    .collect::<Value>(),
            )?;
            return Ok(Status::Done);
        }
        let rows: Vec<_> = contracts
            .kinds
            .iter()
            .map(|c| vec![context.out.bold(c.kind), c.about.to_owned()])
            .collect();
        context.print(&format!(
            "{}\n`levain kinds KIND` prints the manual of one.\n",
            table::columns(&rows, &[], "")
        ))?;
        return Ok(Status::Done);
    };
    let Some(contract) = contracts.any(name) else {
        let near = engine::diagnostic::nearest(name, contracts.kinds.iter().map(|c| c.kind));
        let help = near.map_or_else(
            || "`levain kinds` lists them".to_owned(),
            |w| format!("did you mean `{w}`?"),
        );
        return Err(Failure::usage(format_args!(
            "there is no kind `{name}`; {help}"
        )));
    };
    if args.json {
        context.print_json(&manual::to_json(contract))?;
    } else {
        context.print(&manual::text(contract, crate::context::width().min(100)))?;
    }
    Ok(Status::Done)
}

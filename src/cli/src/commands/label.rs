//! `levain label`: people answer what a stage of the kind `label` asks.

mod ask;
mod files;
mod keys;
mod page;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use engine::plan::{Content, Verdict};
use engine::session::Session;
use engine::shell::quoted;
use serde_json::{Value, json};
use stages_data::label::Labelling;
use stages_data::label::log::{Answers, Writer};

use super::why::find;
use crate::context::Context;
use crate::failure::{Failure, Status};
use crate::options::RecipeArgs;
use crate::{table, units};

/// Ask people which completions are better: what a `label` stage waits for
///
/// Shows a prompt and its completions, and takes `1` or `2` for the better one, `=` when they are equal, `s` to skip, `u` to take the last
/// answer back, `q` to leave; of more than two completions their order, such as `2 1 3` or `2=1 3`. Every answer is on the disk before the
/// next question. When standard input is not a terminal, every line of it is one answer. Ends with 3 while answers are missing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The stage
    #[arg(value_name = "STAGE")]
    stage: String,
    /// Who answers; to be said when the stage has several annotators
    #[arg(long = "as", value_name = "NAME")]
    annotator: Option<String>,
    /// Write what is not answered yet into a file, a JSON object on each line, to be answered elsewhere
    #[arg(long, value_name = "FILE", conflicts_with_all = ["import", "status"])]
    export: Option<PathBuf>,
    /// Read answers from such a file
    #[arg(long, value_name = "FILE", conflicts_with = "status")]
    import: Option<PathBuf>,
    /// Say how far the annotators are and how far they agree, and ask nothing
    #[arg(long)]
    status: bool,
    /// Print JSON; alone it is about the status
    #[arg(long)]
    pub(super) json: bool,
}

/// A stage that asks.
struct Desk<'a> {
    session: &'a Session,
    node: usize,
    labelling: Labelling,
    /// Whether its rows are in the cache, whatever is answered from now on.
    done: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let session = context.open(&args.recipe)?;
    let desk = Desk::open(&session, args)?;
    if let Some(file) = &args.export {
        let name = desk.annotator(args.annotator.as_deref())?;
        let written = files::export(&desk.labelling, &name, file)?;
        match args.json {
            true => context.print_json(&json!({ "file": file, "written": written }))?,
            false => context.print(&format!(
                "{}: {} for {name}\n",
                file.display(),
                units::plural(written, "comparison")
            ))?,
        }
        return Ok(Status::Done);
    }
    let mut more = json!({});
    if let Some(file) = &args.import {
        let name = desk.annotator(args.annotator.as_deref())?;
        let mut writer = desk.writer(&name, context)?;
        let found = files::import(&desk.labelling, &mut writer, &name, file)?;
        match args.json {
            true => more["imported"] = found.to_json(),
            false => context.print(&format!("{}: {}\n", file.display(), found.words()))?,
        }
    } else if !args.status && !args.json {
        let name = desk.annotator(args.annotator.as_deref())?;
        let mut writer = desk.writer(&name, context)?;
        ask::ask(&desk.labelling, &mut writer, &name, context)?;
    }
    desk.tell(args, context, more)
}

impl<'a> Desk<'a> {
    /// Finds the stage and what it asks.
    fn open(session: &'a Session, args: &Args) -> Result<Self> {
        let node = find(session, &args.stage)?;
        let (name, kind) = {
            let node = &session.plan.nodes[node];
            (&node.name, node.contract.kind)
        };
        if kind != "label" {
            let all = session.plan.nodes.iter();
            let asking: Vec<String> = all
                .filter(|node| node.contract.kind == "label")
                .map(|node| format!("`{}`", node.name))
                .collect();
            let help = match asking.is_empty() {
                true => "this recipe has none".to_owned(),
                false => format!("here {}", asking.join(", ")),
            };
            return Err(Failure::usage(format_args!(
                "`{name}` is of the kind `{kind}`; people are asked by stages of the kind `label`: {help}"
            )));
        }
        let standings = session.standings();
        let standing = &standings[node];
        let Some(record) = &standing.record else {
            let reason = &standing.reason;
            return Err(Failure::usage(match standing.verdict {
                Verdict::Skipped => format!("`{name}` does not run: {reason}"),
                _ => format!(
                    "`{name}` has nothing to ask yet: {reason}; `levain run {} {}` runs what is before it",
                    session.recipe.path.display(),
                    args.stage
                ),
            }));
        };
        let known = |node: usize| standings[node].known();
        let feed = session.plan.nodes[node]
            .inputs
            .get("samples")
            .context("BUG: `label` has samples")?;
        let content = session.plan.content(feed, &known);
        let content = content.map_err(|u| anyhow::anyhow!("BUG: samples are not known: {u:?}"))?;
        let (named, list) = match content {
            Content::One(digest) => (false, vec![("samples".to_owned(), digest)]),
            Content::Many(list) => (true, list),
        };
        let views = list
            .into_iter()
            .map(|(name, digest)| Ok((name, session.cache.view(digest)?)))
            .collect::<Result<Vec<_>>>()?;
        let samples: Vec<_> = views
            .iter()
            .map(|(name, view)| (name.as_str(), view))
            .collect();
        let params = Value::Object(session.plan.nodes[node].params.clone());
        let params = serde_json::from_value(params).context("BUG: parameters fit their kind")?;
        let folder = session.cache.answers(session.plan.asked(node, record));
        Ok(Self {
            session,
            node,
            labelling: Labelling::new(params, &samples, named, folder)
                .map_err(|error| Failure::usage(format_args!("`{name}`: {error:#}")))?,
            done: standing.entry.is_some(),
        })
    }

    /// Who answers: the one that was named, or the only one.
    fn annotator(&self, given: Option<&str>) -> Result<String> {
        let all = &self.labelling.annotators;
        let names = || {
            let names: Vec<String> = all.iter().map(|name| format!("`--as {name}`")).collect();
            names.join(" or ")
        };
        match given {
            Some(name) if all.iter().any(|known| known == name) => Ok(name.to_owned()),
            Some(name) => {
                let near = engine::diagnostic::nearest(name, all.iter().map(String::as_str));
                let help = near.map_or_else(
                    || {
                        format!(
                            "say {}, or add the name to the stage's `annotators`",
                            names()
                        )
                    },
                    |near| format!("did you mean `{near}`?"),
                );
                Err(Failure::usage(format_args!(
                    "`{name}` is no annotator of `{}`: {help}",
                    self.name()
                )))
            }
            None => match &all[..] {
                [only] => Ok(only.clone()),
                _ => Err(Failure::usage(format_args!(
                    "`{}` has several annotators: say who you are with {}",
                    self.name(),
                    names()
                ))),
            },
        }
    }

    fn name(&self) -> &str {
        &self.session.plan.nodes[self.node].name
    }

    /// The file of somebody's answers, to be written.
    fn writer(&self, name: &str, context: &Context) -> Result<Writer> {
        let labelling = &self.labelling;
        let Some(writer) = Writer::open(&labelling.folder, name, &labelling.comparisons)? else {
            return Err(Failure::usage(format_args!(
                "somebody is answering as `{name}` just now: wait until they are done, or answer under another name"
            )));
        };
        if writer.answers().torn {
            context.say("The last answer was cut off and is asked for again.\n");
        }
        Ok(writer)
    }

    /// Says how far everybody is, and whether that is enough.
    fn tell(&self, args: &Args, context: &Context, more: Value) -> Result<Status> {
        let labelling = &self.labelling;
        let answers = labelling.answers()?;
        let metrics = labelling.metrics(&answers)?;
        let all = labelling.comparisons.all.len();
        let open: Vec<usize> = answers.iter().map(|own| self.open_of(own)).collect();
        let complete = open.iter().all(|open| *open == 0);
        if args.json {
            let mut value = json!({
                "stage": self.name(),
                "question": labelling.params.question,
                "ask": labelling.params.ask,
                "complete": complete,
                "cached": self.done,
                "open": labelling.annotators.iter().cloned().zip(open.iter().map(|n| json!(n)))
                    .collect::<serde_json::Map<_, _>>(),
                "metrics": metrics,
                "answers": labelling.folder,
            });
            if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
                value.extend(more);
            }
            context.print_json(&value)?;
        } else {
            context.print(&self.text(args, context, &metrics, &open, all))?;
        }
        Ok(if complete {
            Status::Done
        } else {
            Status::Waiting
        })
    }

    fn open_of(&self, own: &Answers) -> usize {
        let answers = own.in_order(&self.labelling.comparisons);
        answers.iter().filter(|answer| answer.is_none()).count()
    }

    fn text(
        &self,
        args: &Args,
        context: &Context,
        metrics: &serde_json::Map<String, Value>,
        open: &[usize],
        all: usize,
    ) -> String {
        let labelling = &self.labelling;
        let style = context.out;
        let mut text = format!(
            "{}: {}\n",
            style.bold(self.name()),
            labelling.params.question
        );
        let rows: Vec<Vec<String>> = labelling
            .annotators
            .iter()
            .zip(open)
            .map(|(name, open)| {
                let counts = &metrics["annotators"][name];
                let part = |word: &str, said: &str| match counts[word].as_u64() {
                    None | Some(0) => String::new(),
                    Some(count) => format!("{} {said}", units::count(count)),
                };
                let done = format!(
                    "{} of {}",
                    units::count((all - open) as u64),
                    units::count(all as u64)
                );
                vec![
                    name.clone(),
                    done,
                    part("ties", "equal"),
                    part("skipped", "skipped"),
                ]
            })
            .collect();
        text.push_str(&table::columns(&rows, &[1, 2, 3], "  "));
        let number = |name: &str| metrics.get(name).and_then(Value::as_f64);
        if let Some(agreement) = number("agreement") {
            let kappa =
                number("kappa").map_or_else(|| "undefined".to_owned(), |k| format!("{k:.2}"));
            let pairs = metrics["pairs"].as_u64().unwrap_or(0) as usize;
            text.push_str(&format!(
                "agreement {:.1} %, kappa {kappa}, over {} that all have answered\n",
                agreement * 100.0,
                units::plural(pairs, "pair")
            ));
        }
        let recipe = self.session.typed();
        let stage = quoted(&args.stage);
        let next = match (
            labelling
                .annotators
                .iter()
                .zip(open)
                .find(|(_, open)| **open > 0),
            self.done,
        ) {
            (Some((name, _)), _) if labelling.annotators.len() > 1 => {
                format!("levain label {recipe} {stage} --as {name}")
            }
            (Some(_), _) => format!("levain label {recipe} {stage}"),
            (None, false) => format!("levain run {recipe}"),
            (None, true) => {
                text.push_str(&format!(
                    "Its rows are in the cache; `levain run {recipe} --force {stage}` makes them anew from the answers.\n"
                ));
                return text;
            }
        };
        text.push_str(&format!("{} {next}\n", style.cyan("Next:")));
        text
    }
}

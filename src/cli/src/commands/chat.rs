//! `levain chat`: talk to a model.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use engine::artifact::ArtifactType;
use engine::contract::Pool;
use engine::worker::{Talk, Worker, locate};
use serde_json::json;

use super::show::artifact;
use crate::context::Context;
use crate::failure::{Failure, Status};
use crate::interrupt::{self, AT_REST, STOP};
use crate::options::{RecipeArgs, device};

/// Talk to a model that a stage made
///
/// Ctrl-C stops an answer, and leaves at the prompt, as Ctrl-D does. When standard input is not a terminal, every line of it is one turn.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The stage, or `stage.output`
    #[arg(value_name = "STAGE")]
    stage: String,
    /// 0 always takes the likeliest token; higher is bolder
    #[arg(long, value_name = "NUMBER", default_value_t = 0.7, value_parser = temperature)]
    temperature: f64,
    /// Tokens of an answer at most
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_new_tokens: u32,
    /// What the model is told before everything else
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Where sampling starts
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
    /// Where tensors live: cpu, cuda or cuda:0
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("a number from 0 to 100".to_owned()),
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status> {
    let session = context.open(&args.recipe)?;
    let (_, digest) = artifact(&session, &args.stage)?;
    let model = session.cache.view(digest)?;
    if model.artifact != ArtifactType::Model {
        return Err(Failure::usage(format_args!(
            "`{}` is a {}; only a model can be talked to",
            args.stage, model.artifact
        )));
    }
    let mut params = serde_json::Map::new();
    params.insert("temperature".to_owned(), json!(args.temperature));
    params.insert("max_new_tokens".to_owned(), json!(args.max_new_tokens));
    params.insert("seed".to_owned(), json!(args.seed));
    if let Some(system) = &args.system {
        params.insert("system".to_owned(), json!(system));
    }
    let device = device(args.device.as_deref(), &session.recipe)?;
    let threads = session
        .recipe
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let worker = Worker::start(&locate(), &context.contracts().versions(Pool::Torch))?;
    let mut talk = worker.talk(&Talk {
        model,
        device,
        threads,
        params,
    })?;

    interrupt::watch();
    let input = std::io::stdin();
    let live = input.is_terminal();
    if live {
        context.say(&format!(
            "Talking to `{}`. Ctrl-C stops an answer, Ctrl-D leaves.\n",
            args.stage
        ));
    }
    let mut line = String::new();
    loop {
        if live {
            prompt(context)?;
        }
        line.clear();
        AT_REST.store(true, Ordering::SeqCst);
        let read = input
            .lock()
            .read_line(&mut line)
            .context("standard input can't be read")?;
        AT_REST.store(false, Ordering::SeqCst);
        if read == 0 {
            break;
        }
        let words = line.trim();
        if words.is_empty() {
            continue;
        }
        STOP.store(false, Ordering::SeqCst);
        let mut last = '\n';
        talk.say(words, &mut |piece| {
            last = piece.chars().next_back().unwrap_or(last);
            context.print(piece).is_ok() && !STOP.load(Ordering::SeqCst)
        })?;
        if last != '\n' {
            context.print("\n")?;
        }
        STOP.store(false, Ordering::SeqCst);
    }
    if live {
        context.print("\n")?;
    }
    Ok(Status::Done)
}

fn prompt(context: &Context) -> Result<()> {
    let mut err = std::io::stderr().lock();
    write!(err, "{} ", context.err.cyan("›"))
        .and_then(|()| err.flush())
        .context("standard error can't be written")
}

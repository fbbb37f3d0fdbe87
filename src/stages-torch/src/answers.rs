//! Answers of a model to the prompts of rows; what `evaluate`, `generate` and `chat` share.

use anyhow::{Context, Result, ensure};
use data::Dataset;
use engine::job::{Cancelled, Reporter};
use ml::generate::{Generated, Options, Prompt, generate};
use ml::sample::Sampling;
use ml::{Llama, Pass};

use crate::model::Loaded;

/// How to answer.
pub(crate) struct Manner {
    pub temperature: f64,
    pub top_k: usize,
    pub top_p: f64,
    pub seed: u64,
    pub max_new_tokens: usize,
    pub batch: usize,
}

impl Manner {
    pub(crate) fn options(&self, loaded: &Loaded) -> Options {
        Options {
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
            },
            seed: self.seed,
            max_new_tokens: self.max_new_tokens,
            eos: loaded.end_tokens(),
            batch: self.batch,
        }
    }
}

/// What a row asks, and what it expects, if it does.
pub(crate) struct Question {
    pub prompt: data::Prompt,
    pub tokens: Vec<i64>,
    pub reference: Option<String>,
}

impl Question {
    /// What is asked, for people.
    pub(crate) fn text(&self) -> &str {
        self.prompt.question()
    }
}

/// What to do where a prompt and its answer do not fit into a model.
pub(crate) const MORE_ROOM: &str =
    "lower `max_new_tokens`, leave longer rows out, or take a model with more positions";

/// The questions of the first `count` rows. One without tokens, or one that leaves no room for an answer of `max_new_tokens`, is an
/// error that names its row.
pub(crate) fn questions(
    loaded: &Loaded,
    dataset: &Dataset,
    count: usize,
    max_new_tokens: usize,
) -> Result<Vec<Question>> {
    let room = room(&loaded.model, max_new_tokens);
    (0..count.min(dataset.len()))
        .map(|index| {
            let row = dataset.row(index)?;
            let (prompt, reference) = row.question();
            let ids = loaded.encoder.encode_prompt(&prompt)?;
            let of = index + 1;
            ensure!(
                !ids.is_empty(),
                "the prompt of row {of} has no tokens: there is nothing to answer"
            );
            ensure!(
                ids.len() <= room,
                "the prompt of row {of} has {} tokens; with max_new_tokens {max_new_tokens} the model has room for {room}: {MORE_ROOM}",
                ids.len()
            );
            Ok(Question {
                tokens: ids.into_iter().map(i64::from).collect(),
                reference: reference.map(str::to_owned),
                prompt,
            })
        })
        .collect()
}

/// Generates, saying how far it is, in the unit of tokens; stops when the run does.
pub(crate) fn answer(
    loaded: &Loaded,
    prompts: &[Prompt],
    options: &Options,
    cx: &dyn Reporter,
) -> Result<Vec<Generated>> {
    let start = std::time::Instant::now();
    let (mut tokens, mut said) = (0u64, start);
    let total = (prompts.len() * options.max_new_tokens) as u64;
    let results = generate(
        &loaded.model,
        Pass::eval(),
        prompts,
        options,
        &mut |_, _| {
            tokens += 1;
            if said.elapsed().as_millis() > 200 {
                said = std::time::Instant::now();
                let rate = Some((
                    tokens as f64 / start.elapsed().as_secs_f64(),
                    "tokens/s".to_owned(),
                ));
                let what = engine::event::What::Progress {
                    done: tokens.min(total),
                    total,
                    unit: "tokens".to_owned(),
                    rate,
                };
                cx.emit(what);
            }
            !cx.cancelled()
        },
    )?;
    if cx.cancelled() {
        return Err(Cancelled.into());
    }
    Ok(results)
}

/// The text of an answer, without the token that ended it.
pub(crate) fn text(loaded: &Loaded, generated: &Generated) -> Result<String> {
    let ids: Vec<u32> = generated
        .tokens
        .iter()
        .map(|t| u32::try_from(*t).context("a token is not negative"))
        .collect::<Result<_>>()?;
    loaded.encoder.decode(&ids, true)
}

/// The longest prompt that leaves room for an answer, in tokens.
pub(crate) fn room(model: &Llama, max_new_tokens: usize) -> usize {
    model.positions(Pass::eval()).saturating_sub(max_new_tokens)
}

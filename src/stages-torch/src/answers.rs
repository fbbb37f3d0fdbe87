//! Answers of a model to the prompts of rows; what `evaluate`, `generate` and `chat` share.

use anyhow::{Context, Result};
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

/// What a row asks, as tokens; what it asks, as text; and what it expects, if it does.
pub(crate) struct Question {
    pub tokens: Vec<i64>,
    pub text: String,
    pub reference: Option<String>,
}

/// The question of row `index`.
pub(crate) fn question(loaded: &Loaded, dataset: &Dataset, index: usize) -> Result<Question> {
    let row = dataset.row(index)?;
    let (prompt, reference) = row.question();
    let tokens = loaded.encoder.encode_prompt(&prompt)?;
    Ok(Question {
        tokens: tokens.into_iter().map(i64::from).collect(),
        text: prompt.question().to_owned(),
        reference: reference.map(str::to_owned),
    })
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
    model
        .config
        .max_position_embeddings
        .saturating_sub(max_new_tokens)
}

//! Reinforcement learning from rewards: what PPO, RLOO and GRPO share. Episodes are sampled, scored by whoever calls, and
//! looked at again by the policy and its reference.

pub mod advantage;
pub mod group;
pub mod ppo;

use crate::completions::{Batch, Row};
use crate::generate::{Options, Prompt, generate};
use crate::linear::Pass;
use crate::llama::Llama;
use crate::random::Stream;
use crate::sample::Sampling;
use anyhow::{Result, bail, ensure};
use tch::{Kind, Tensor, no_grad};

/// A prompt with a sampled completion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Episode {
    /// Prompt and completion.
    pub row: Row,
    /// Which prompt of the data it is.
    pub prompt: usize,
    /// Whether the completion came to its end.
    pub finished: bool,
}

/// Scores episodes: one number each.
pub type Score<'a> = Box<dyn FnMut(&[Episode]) -> Result<Vec<f64>> + 'a>;

/// A row of numbers for each episode.
pub type Rows = Vec<Vec<f64>>;

/// How episodes are sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    /// The seed of the streams `sample <draw>`.
    pub seed: u64,
    /// Temperature, at which log-probabilities are taken as well.
    pub temperature: f64,
    /// The longest completion.
    pub max_new_tokens: usize,
    /// Tokens that end a completion.
    pub eos: Vec<i64>,
    /// Episodes at a time.
    pub batch: usize,
}

/// Samples one completion for each of `prompts` (its index in the data, and its tokens); episode i draws from the stream
/// `sample <first + i>`.
pub fn sample(
    model: &Llama,
    prompts: &[(usize, Vec<i64>)],
    sampler: &Sampler,
    first: u64,
    watch: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<Episode>>> {
    let asked: Vec<Prompt> = (first..)
        .zip(prompts)
        .map(|(draw, (_, tokens))| Prompt {
            tokens: tokens.clone(),
            draw,
        })
        .collect();
    let options = Options {
        sampling: Sampling {
            temperature: sampler.temperature,
            top_k: 0,
            top_p: 1.0,
        },
        seed: sampler.seed,
        max_new_tokens: sampler.max_new_tokens,
        eos: sampler.eos.clone(),
        batch: sampler.batch,
    };
    let mut go = true;
    let generated = generate(model, Pass::eval(), &asked, &options, &mut |_, _| {
        go = watch();
        go
    })?;
    if !go {
        return Ok(None);
    }
    let episodes = prompts
        .iter()
        .zip(generated)
        .map(|((index, prompt), completion)| Episode {
            row: Row {
                tokens: [prompt.as_slice(), &completion.tokens].concat(),
                prompt: prompt.len(),
            },
            prompt: *index,
            finished: completion.finished,
        });
    Ok(Some(episodes.collect()))
}

/// The prompts of update `index`: `count` of them, in an order of their own for each pass over the data, a function of the seed.
pub fn prompts_of(seed: u64, index: usize, count: usize, prompts: usize) -> Vec<usize> {
    let mut chosen = Vec::with_capacity(count);
    let mut at = index * count;
    let mut order: Option<(usize, Vec<usize>)> = None;
    while chosen.len() < count {
        let pass = at / prompts;
        let known = order.take().filter(|(known, _)| *known == pass);
        let (_, permutation) = order.insert(known.unwrap_or_else(|| {
            let name = format!("shuffle {pass}");
            (pass, Stream::new(seed, &name).permutation(prompts))
        }));
        chosen.push(permutation[at % prompts]);
        at += 1;
    }
    chosen
}

/// Where the reference's log-probabilities come from.
#[derive(Clone, Copy, Debug)]
pub enum Reference<'a> {
    /// A model of its own.
    Model(&'a Llama),
    /// The policy without its adapters.
    WithoutAdapters,
}

/// log π of each completion token, for each episode, without gradient; `batch` episodes at a time.
pub fn log_probabilities(
    model: &Llama,
    pass: Pass,
    episodes: &[Episode],
    temperature: f64,
    batch: usize,
) -> Result<Vec<Vec<f64>>> {
    let mut all = Vec::with_capacity(episodes.len());
    for chosen in episodes.chunks(batch.max(1)) {
        let rows: Vec<Row> = chosen.iter().map(|episode| episode.row.clone()).collect();
        let values = no_grad(|| -> Result<Vec<f64>> {
            let rows = Batch::new(model, &rows)?;
            let values = rows.values(model, pass, temperature, false)?;
            Ok(Vec::try_from(
                values.log_probabilities.to_kind(Kind::Double),
            )?)
        })?;
        all.extend(by_row(&values, rows.iter().map(Row::completion)));
    }
    Ok(all)
}

/// The same under the reference of a policy.
pub fn reference_log_probabilities(
    policy: &Llama,
    reference: Reference<'_>,
    episodes: &[Episode],
    temperature: f64,
    batch: usize,
) -> Result<Vec<Vec<f64>>> {
    let (model, pass) = match reference {
        Reference::Model(model) => (model, Pass::eval()),
        Reference::WithoutAdapters => (policy, Pass::eval().without_adapters()),
    };
    log_probabilities(model, pass, episodes, temperature, batch)
}

/// Numbers that lie one after the other as rows of these lengths.
pub fn by_row(values: &[f64], lengths: impl Iterator<Item = usize>) -> Vec<Vec<f64>> {
    let mut start = 0;
    lengths
        .map(|length| {
            let own = values[start..start + length].to_vec();
            start += length;
            own
        })
        .collect()
}

/// Rows of numbers as one tensor like another.
pub(crate) fn flat(rows: &[Vec<f64>], like: &Tensor) -> Tensor {
    let all: Vec<f64> = rows.iter().flatten().copied().collect();
    Tensor::from_slice(&all)
        .to_kind(like.kind())
        .to_device(like.device())
}

/// Scores from outside must be numbers.
pub fn check_scores(scores: &[f64], episodes: usize) -> Result<()> {
    ensure!(
        scores.len() == episodes,
        "{} rewards for {episodes} completions",
        scores.len()
    );
    match scores.iter().position(|score| !score.is_finite()) {
        Some(at) => bail!("the reward of completion {} is {}", at + 1, scores[at]),
        None => Ok(()),
    }
}

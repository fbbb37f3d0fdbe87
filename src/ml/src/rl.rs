//! Reinforcement learning from rewards: what PPO, RLOO and GRPO share. Episodes are sampled, scored by whoever calls, and
//! looked at again by the policy and its reference.

pub mod advantage;
pub mod group;
pub mod ppo;

use crate::completions::{Batch, Row};
use crate::generate::{Generated, Options, Prompt, generate};
use crate::linear::Pass;
use crate::llama::Llama;
use crate::loss::TokenValues;
use crate::params::Params;
use crate::random::Stream;
use crate::sample::Sampling;
use crate::update::Updater;
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

impl Episode {
    /// What a model wrote after the tokens of prompt `prompt`.
    pub fn new(prompt: usize, tokens: Vec<i64>, generated: Generated) -> Episode {
        Episode {
            row: Row {
                prompt: tokens.len(),
                tokens: [tokens, generated.tokens].concat(),
            },
            prompt,
            finished: generated.finished,
        }
    }
}

/// Scores of which those of completions without end lose `penalty`.
pub fn penalized(raw: &[f64], episodes: &[Episode], penalty: f64) -> Vec<f64> {
    let pairs = raw.iter().zip(episodes);
    pairs
        .map(|(score, episode)| score - if episode.finished { 0.0 } else { penalty })
        .collect()
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

/// The policy.
pub struct Actor<'a> {
    /// The model.
    pub model: &'a Llama,
    /// Its parameters, some of them trained.
    pub params: &'a Params,
    /// Its optimizer.
    pub updater: Updater,
    /// Where it came from.
    pub reference: Reference<'a>,
}

/// What comes from outside.
pub struct Data<'a> {
    /// How many prompts there are.
    pub prompts: usize,
    /// The tokens of prompt `i`.
    pub prompt: Box<dyn FnMut(usize) -> Result<Vec<i64>> + 'a>,
    /// The score of each episode.
    pub score: Score<'a>,
    /// Asked with every sampled token: whether to go on.
    pub running: Box<dyn FnMut() -> bool + 'a>,
}

/// An update that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its number, from 1.
    pub index: usize,
    /// All updates.
    pub of: usize,
    /// Tokens that were sampled.
    pub tokens: usize,
    /// What it took.
    pub seconds: f64,
    /// What was measured, by name.
    pub values: Vec<(&'static str, f64)>,
    /// A few episodes, for people.
    pub episodes: Vec<Episode>,
    /// Their scores before shaping.
    pub scores: Vec<f64>,
}

/// What the watcher of a loop of updates is told.
#[derive(Clone, Copy, Debug)]
pub enum Moment<'a> {
    /// An update was made.
    Update(&'a Step),
    /// Sampling was asked to stop: the run stands after so many updates, as if the one at work had not begun.
    Interrupted(usize),
}

/// Samples one completion for each of `prompts`; episode i draws from the stream `sample <first + i>`. None when sampling was
/// asked to stop.
pub fn sample(
    model: &Llama,
    data: &mut Data<'_>,
    prompts: &[usize],
    sampler: &Sampler,
    first: u64,
) -> Result<Option<Vec<Episode>>> {
    let asked = (first..)
        .zip(prompts)
        .map(|(draw, &prompt)| {
            let tokens = (data.prompt)(prompt)?;
            Ok(Prompt { tokens, draw })
        })
        .collect::<Result<Vec<_>>>()?;
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
    let mut running = true;
    let generated = generate(model, Pass::eval(), &asked, &options, &mut |_, _| {
        running = (data.running)();
        running
    })?;
    let episodes = prompts.iter().zip(asked).zip(generated);
    let episodes =
        episodes.map(|((&prompt, asked), generated)| Episode::new(prompt, asked.tokens, generated));
    Ok(running.then(|| episodes.collect()))
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

/// What the policy says of its completions before it learns from them.
#[derive(Debug)]
pub struct Old {
    /// log π_old of each token, for each episode.
    pub log_probabilities: Vec<Vec<f64>>,
    /// The forward that they come from, with its graph.
    pub forward: Option<(Batch, TokenValues)>,
}

/// log π_old. Where the first epoch would make the very same forward again, because its one minibatch is one micro-batch, the forward is
/// kept for it.
pub fn old_log_probabilities(
    model: &Llama,
    episodes: &[Episode],
    temperature: f64,
    batch: usize,
    keep: bool,
    statistics: bool,
) -> Result<Old> {
    if !keep {
        let pass = Pass::eval();
        return Ok(Old {
            log_probabilities: log_probabilities(model, pass, episodes, temperature, batch)?,
            forward: None,
        });
    }
    let rows: Vec<Row> = episodes.iter().map(|episode| episode.row.clone()).collect();
    let all = Batch::new(model, &rows)?;
    let values = all.values(model, Pass::eval(), temperature, statistics)?;
    let old = values.log_probabilities.detach().to_kind(Kind::Double);
    let lengths = rows.iter().map(Row::completion);
    Ok(Old {
        log_probabilities: by_row(&Vec::<f64>::try_from(old)?, lengths),
        forward: Some((all, values)),
    })
}

/// The order in which an epoch goes through `count` episodes. One minibatch has all of them, and leaves them as they are.
pub fn order(seed: u64, name: &str, count: usize, minibatches: usize) -> Vec<usize> {
    match minibatches {
        1 => (0..count).collect(),
        _ => Stream::new(seed, name).permutation(count),
    }
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

//! Policy gradients from groups of completions of the same prompt, without a critic: GRPO (arXiv 2402.03300) with the normalizers
//! of DAPO (2503.14476) and Dr. GRPO (2503.20783), GSPO's ratio (2507.18071), and RLOO (2402.14740); as TRL 1.16 has them.

use super::advantage::{Estimator, GroupScale, leave_one_out, normalize, relative};
use super::{
    Actor, Data, Episode, Moment, Sampler, Step, check_scores, flat, old_log_probabilities, order,
    penalized, prompts_of, reference_log_probabilities, sample,
};
use crate::completions::{Batch, Row};
use crate::fit::Next;
use crate::linear::Pass;
use crate::state::{self, Cursor};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Instant;
use tch::{Kind, Tensor};

/// What the sum over tokens is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalizer {
    /// Each completion by its own length, then by their number (`grpo`).
    Completions,
    /// The tokens of the minibatch (`bnpo`).
    Tokens,
    /// Completions times the longest length (`dr_grpo`).
    Longest,
    /// The tokens of the whole batch, over its minibatches (`dapo`).
    BatchTokens,
}

/// What the ratio of new to old probability is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ratio {
    /// Each token.
    Token,
    /// The geometric mean over the completion's tokens (GSPO).
    Mean,
    /// The whole completion (RLOO).
    Whole,
}

/// The loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Ratios are clipped to 1 − this,
    pub clip_low: f64,
    /// and 1 + this.
    pub clip_high: f64,
    /// The weight of the KL from the reference (estimator k3) in the loss; 0 for none.
    pub beta: f64,
    /// Whether that KL is corrected by the token's ratio.
    pub corrected: bool,
    /// What the ratio is of.
    pub ratio: Ratio,
    /// What the sum is divided by.
    pub normalizer: Normalizer,
}

/// How advantages are made of rewards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Advantages {
    /// Relative to the mean of the group.
    Relative(GroupScale),
    /// Relative to the mean of the others; rewards first lose `beta` times the KL (k1) of the completion.
    LeaveOneOut {
        /// The weight of the KL in the reward.
        beta: f64,
        /// Whether they are then normalized over the batch.
        normalize: bool,
    },
}

/// The rewards of scores: less the penalty of a missing end, then cut to ± `clip`.
pub fn rewards(raw: &[f64], episodes: &[Episode], penalty: f64, clip: Option<f64>) -> Vec<f64> {
    let mut rewards = penalized(raw, episodes, penalty);
    if let Some(limit) = clip {
        rewards
            .iter_mut()
            .for_each(|reward| *reward = reward.clamp(-limit, limit));
    }
    rewards
}

/// The sizes that normalizers need, of a minibatch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sizes {
    /// Completions.
    pub completions: f64,
    /// Tokens that count.
    pub tokens: f64,
    /// The longest completion allowed.
    pub longest: f64,
    /// Tokens of the whole batch over its minibatches.
    pub batch_tokens: f64,
}

/// The loss of some rows of a minibatch: tokens one after the other; `counted` says of each row whether it counts. A sum: the
/// losses of a minibatch's parts add up.
pub fn loss(
    objective: &Objective,
    batch: &Batch,
    new: &Tensor,
    (old, reference): (&Tensor, Option<&Tensor>),
    advantages: &[f64],
    counted: &[bool],
    sizes: &Sizes,
) -> Result<Tensor> {
    let place = |numbers: Vec<f64>| {
        Tensor::from_slice(&numbers)
            .to_kind(new.kind())
            .to_device(new.device())
    };
    let mask = |on: &[bool]| place(on.iter().map(|&on| f64::from(u8::from(on))).collect());
    let own = place(advantages.to_vec());
    let difference = new - old;
    let clipped = |ratio: &Tensor, advantages: &Tensor| {
        let near = ratio.clamp(1.0 - objective.clip_low, 1.0 + objective.clip_high);
        -(ratio * advantages).min_other(&(near * advantages))
    };
    // Numbers of rows at each of their tokens.
    let spread = |rows: &Tensor| -> Result<Tensor> {
        let index = batch.counts().iter().enumerate();
        let index: Vec<i64> = index
            .flat_map(|(row, &count)| std::iter::repeat_n(row as i64, count))
            .collect();
        let index = Tensor::from_slice(&index).to_device(new.device());
        Ok(rows.f_index_select(0, &index)?)
    };
    let mask = spread(&mask(counted))?;
    if objective.ratio == Ratio::Whole {
        // What does not count has the ratio 1: a constant, as TRL has it.
        let each = clipped(&batch.sums(&(difference * mask))?.exp(), &own);
        return Ok(each.sum(None::<Kind>) / sizes.completions);
    }
    let ratio = match objective.ratio {
        Ratio::Mean => spread(&(batch.sums(&difference)? / batch.lengths(new)).exp())?,
        _ => difference.exp(),
    };
    let mut each = clipped(&ratio, &spread(&own)?);
    if let Some(reference) = reference.filter(|_| objective.beta != 0.0) {
        let apart = reference - new;
        let mut kl: Tensor = apart.exp() - &apart - 1.0;
        if objective.corrected {
            kl *= &ratio;
        }
        each += kl * objective.beta;
    }
    let each = each * mask;
    Ok(match objective.normalizer {
        Normalizer::Completions => {
            let means = batch.sums(&each)? / batch.lengths(new);
            means.sum(None::<Kind>) / sizes.completions
        }
        Normalizer::Tokens => each.sum(None::<Kind>) / sizes.tokens.max(1.0),
        Normalizer::Longest => each.sum(None::<Kind>) / (sizes.completions * sizes.longest),
        Normalizer::BatchTokens => each.sum(None::<Kind>) / sizes.batch_tokens.max(1.0),
    })
}

/// The settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How episodes are sampled.
    pub sampler: Sampler,
    /// Updates in all.
    pub updates: usize,
    /// Episodes of an update, a multiple of the group.
    pub batch: usize,
    /// Completions of a prompt.
    pub group: usize,
    /// Minibatches of an epoch.
    pub minibatches: usize,
    /// Epochs of an update.
    pub epochs: usize,
    /// Episodes at once.
    pub micro_batch: usize,
    /// The loss.
    pub objective: Objective,
    /// How advantages are made.
    pub advantages: Advantages,
    /// What a completion without end loses.
    pub missing_eos_penalty: f64,
    /// Whether completions without end are left out of the loss.
    pub mask_truncated: bool,
    /// Rewards are cut to ± this.
    pub reward_clip: Option<f64>,
}

/// Trains; snapshots and `watch` as in [`super::ppo::train`].
pub fn train(
    actor: &mut Actor<'_>,
    data: &mut Data<'_>,
    options: &Options,
    resume: Option<&Path>,
    watch: &mut dyn FnMut(Moment<'_>) -> Result<Next>,
) -> Result<usize> {
    ensure!(data.prompts > 0, "there are no prompts");
    let (group, batch) = (options.group, options.batch);
    ensure!(
        group >= 2 && batch > 0 && batch.is_multiple_of(group * options.minibatches.max(1)),
        "a batch of {batch} completions can't be cut into {} minibatches of whole groups of {group}",
        options.minibatches
    );
    let (seed, prompts) = (options.sampler.seed, data.prompts);
    let mut done = 0;
    if let Some(folder) = resume {
        let cursor = state::restore(folder, actor.params, &mut actor.updater.optimizer)?;
        let wanted = Cursor::new(seed, prompts, batch, cursor.steps);
        ensure!(cursor == wanted, "the snapshot is of another run");
        done = cursor.steps;
    }
    while done < options.updates {
        let began = Instant::now();
        let place = || format!("in update {} of {}", done + 1, options.updates);
        let next = match update(actor, data, options, done).with_context(place)? {
            None => watch(Moment::Interrupted(done))?,
            Some(mut step) => {
                step.seconds = began.elapsed().as_secs_f64();
                done += 1;
                watch(Moment::Update(&step))?
            }
        };
        if let Next::Snapshot(folder) | Next::SnapshotAndStop(folder) = &next {
            let cursor = Cursor::new(seed, prompts, batch, done);
            state::save(folder, actor.params, &actor.updater.optimizer, &cursor)?;
        }
        if matches!(next, Next::Stop | Next::SnapshotAndStop(_)) {
            break;
        }
    }
    Ok(done)
}

/// The advantages of rewards; `kl` is that of each completion (k1).
pub fn advantages(rewards: &[f64], kl: &[f64], group: usize, how: Advantages) -> Vec<f64> {
    match how {
        Advantages::Relative(scale) => relative(rewards, group, scale),
        Advantages::LeaveOneOut {
            beta,
            normalize: whole,
        } => {
            let paid: Vec<f64> = rewards
                .iter()
                .zip(kl)
                .map(|(r, kl)| r - beta * kl)
                .collect();
            let mut advantages = leave_one_out(&paid, group);
            if whole {
                normalize(&mut advantages);
            }
            advantages
        }
    }
}

/// One update. None when sampling was asked to stop; nothing has changed then.
fn update(
    actor: &mut Actor<'_>,
    data: &mut Data<'_>,
    options: &Options,
    index: usize,
) -> Result<Option<Step>> {
    let (sampler, size) = (&options.sampler, options.micro_batch);
    let asked = options.batch / options.group;
    let chosen: Vec<usize> = prompts_of(sampler.seed, index, asked, data.prompts)
        .into_iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt, options.group))
        .collect();
    let draw = (index * options.batch) as u64;
    let Some(episodes) = sample(actor.model, data, &chosen, sampler, draw)? else {
        return Ok(None);
    };
    let raw = (data.score)(&episodes)?;
    check_scores(&raw, episodes.len())?;
    let rewards = rewards(
        &raw,
        &episodes,
        options.missing_eos_penalty,
        options.reward_clip,
    );
    let temperature = sampler.temperature;
    let keep = options.minibatches == 1 && episodes.len() <= size;
    let old = old_log_probabilities(actor.model, &episodes, temperature, size, keep, false)?;
    let (old, mut forward) = (old.log_probabilities, old.forward);
    let reference =
        reference_log_probabilities(actor.model, actor.reference, &episodes, temperature, size)?;
    let kl: Vec<f64> = old
        .iter()
        .zip(&reference)
        .map(|(old, reference)| {
            let pairs = old.iter().zip(reference);
            pairs.map(|(p, r)| Estimator::K1.of(*p, *r)).sum()
        })
        .collect();
    let counted: Vec<bool> = episodes
        .iter()
        .map(|episode| episode.finished || !options.mask_truncated)
        .collect();
    // What does not count pays no KL either.
    let paid: Vec<f64> = kl
        .iter()
        .zip(&counted)
        .map(|(kl, counted)| if *counted { *kl } else { 0.0 })
        .collect();
    let advantages = advantages(&rewards, &paid, options.group, options.advantages);
    let rows: Vec<Row> = episodes.iter().map(|e| e.row.clone()).collect();
    let weights = |chosen: &[usize]| -> f64 {
        let own = chosen.iter().filter(|&&i| counted[i]);
        own.map(|&i| rows[i].completion() as f64).sum()
    };
    let everything: Vec<usize> = (0..rows.len()).collect();
    let batch_tokens = weights(&everything) / options.minibatches as f64;

    actor.params.zero_grad();
    let (mut total, mut norms, mut rate, mut steps) = (0.0, 0.0, 0.0, 0.0);
    for epoch in 0..options.epochs {
        let name = format!("minibatch {index} {epoch}");
        let order = order(sampler.seed, &name, rows.len(), options.minibatches);
        for chosen in order.chunks(rows.len() / options.minibatches) {
            let sizes = Sizes {
                completions: chosen.len() as f64,
                tokens: weights(chosen),
                longest: sampler.max_new_tokens as f64,
                batch_tokens,
            };
            for part in chosen.chunks(size) {
                let own =
                    |all: &[Vec<f64>]| part.iter().map(|&i| all[i].clone()).collect::<Vec<_>>();
                let (batch, found) = match forward.take() {
                    Some(first) => first,
                    None => {
                        let own: Vec<Row> = part.iter().map(|&i| rows[i].clone()).collect();
                        let batch = Batch::new(actor.model, &own)?;
                        let found = batch.values(actor.model, Pass::eval(), temperature, false)?;
                        (batch, found)
                    }
                };
                let new = &found.log_probabilities;
                let sum = loss(
                    &options.objective,
                    &batch,
                    new,
                    (&flat(&own(&old), new), Some(&flat(&own(&reference), new))),
                    &part.iter().map(|&i| advantages[i]).collect::<Vec<_>>(),
                    &part.iter().map(|&i| counted[i]).collect::<Vec<_>>(),
                    &sizes,
                )?;
                total += sum.double_value(&[]);
                actor.updater.add(&sum)?;
            }
            let update = actor.updater.step(actor.params, index)?;
            norms += update.norm;
            rate = update.rate;
            steps += 1.0;
        }
    }
    let n = rows.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
    let tokens: usize = rows.iter().map(Row::completion).sum();
    let equal = rewards
        .chunks(options.group)
        .filter(|group| group.iter().all(|reward| reward == &group[0]))
        .count();
    let ended = episodes.iter().filter(|e| e.finished).count();
    let surprise: f64 = old.iter().flatten().map(|p| -p).sum();
    Ok(Some(Step {
        index: index + 1,
        of: options.updates,
        tokens,
        seconds: 0.0,
        values: vec![
            ("score", mean(&raw)),
            ("kl", mean(&kl)),
            ("loss", total / steps),
            ("entropy", surprise / tokens as f64),
            ("completion_tokens", tokens as f64 / n),
            ("finished", ended as f64 / n),
            ("equal_groups", equal as f64 / (n / options.group as f64)),
            ("grad_norm", norms / steps),
            ("learning_rate", rate),
        ],
        episodes: episodes.into_iter().take(2).collect(),
        scores: raw.into_iter().take(2).collect(),
    }))
}

//! Proximal policy optimization (Schulman et al., arXiv 1707.06347) on whole completions, as RLHF uses it. To be read from top to
//! bottom; the details that matter are numbered here and where they happen. Sources: [Z] Ziegler et al. 2019 and its
//! reproduction *The N Implementation Details of RLHF with PPO*; [N+] Huang et al., arXiv 2403.17031; [S] *Secrets of RLHF*, arXiv
//! 2307.04964 (PPO-max); [T] the last PPO trainer of TRL.
//!
//!  1. Completions are drawn at a temperature from the whole vocabulary, and every log-probability is taken at it. [Z, T]
//!  2. There is no dropout anywhere. [N+]
//!  3. Log-probabilities of the old policy come from the forward that training uses, so that the first ratio is 1. Where the first epoch
//!     is one forward, it is that one, made once.
//!  4. A completion that never ends loses `missing_eos_penalty`. [N+, T]
//!  5. Scores may be normalized or scaled by running moments and clipped. [S]
//!  6. Every token pays `coefficient` times an estimate of the KL from the reference. [Z]
//!  7. The score is paid at the step after the end token, whose value is that of the whole completion, or at the last token
//!     where the length ran out. [T]
//!  8. Rewards may be whitened without moving their mean. [Z]
//!  9. Generalized advantage estimation; returns are advantages plus old values, before whitening. [Z]
//! 10. Advantages are whitened over the batch and may be clipped. [Z, S]
//! 11. Epochs over the batch in minibatches drawn anew; a minibatch is one step of the optimizers, whatever the micro-batch.
//! 12. The policy's loss is clipped on the worse side, a mean over the minibatch's tokens. [Z, T]
//! 13. The value's loss is clipped around the old value; it counts the step after the end as well. [Z, T]
//! 14. An entropy bonus, a language-modelling loss on other rows (PPO-ptx of InstructGPT, arXiv 2203.02155).
//! 15. Policy and critic have optimizers and clipping of their own; TRL's loop did not clip.
//! 16. In the first updates the critic may learn alone. [S]
//! 17. The KL coefficient may follow a target. [Z]
//! 18. An epoch that has moved the policy further than `target_kl` from the old one is the update's last.

use super::advantage::{Estimator, KlControl, Moments, Shaping, gae, whiten};
use super::{
    Actor, Data, Episode, Moment, Rows, Sampler, Step, by_row, check_scores, flat,
    old_log_probabilities, order, penalized, prompts_of, reference_log_probabilities, sample,
};
use crate::completions::{Batch, Row};
use crate::fit::Next;
use crate::linear::Pass;
use crate::llama::Llama;
use crate::loss::{self, TokenValues};
use crate::params::Params;
use crate::random::Stream;
use crate::reward::Head;
use crate::sft;
use crate::state::{self, Cursor};
use crate::update::Updater;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;
use tch::{Kind, Tensor, no_grad};

/// The settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How episodes are sampled.
    pub sampler: Sampler,
    /// Updates in all.
    pub updates: usize,
    /// Episodes of an update.
    pub batch: usize,
    /// Minibatches of an epoch.
    pub minibatches: usize,
    /// Episodes at once: equal to tolerance whatever it is.
    pub micro_batch: usize,
    /// Epochs of an update.
    pub epochs: usize,
    /// γ.
    pub gamma: f64,
    /// λ.
    pub lambda: f64,
    /// The policy's clip range.
    pub clip: f64,
    /// The value's clip range.
    pub value_clip: f64,
    /// The weight of the value's loss.
    pub value_weight: f64,
    /// The weight of the entropy.
    pub entropy_weight: f64,
    /// The estimator of the penalty.
    pub estimator: Estimator,
    /// The penalty's coefficient at the start.
    pub control: KlControl,
    /// What scores go through.
    pub shaping: Shaping,
    /// What a completion without end loses.
    pub missing_eos_penalty: f64,
    /// Detail 8.
    pub whiten_rewards: bool,
    /// Detail 10.
    pub whiten_advantages: bool,
    /// Detail 10.
    pub advantage_clip: Option<f64>,
    /// Detail 16.
    pub critic_warmup: usize,
    /// Detail 18.
    pub target_kl: Option<f64>,
}

/// The critic.
pub struct Critic<'a> {
    /// The model under the head.
    pub model: &'a Llama,
    /// The head.
    pub head: &'a Head,
    /// Its parameters, the head's among them.
    pub params: &'a Params,
    /// Its optimizer.
    pub updater: Updater,
}

/// PPO-ptx: rows whose cross entropy is added to the policy's loss.
pub struct Mixed<'a> {
    /// Its weight.
    pub weight: f64,
    /// How many rows there are.
    pub rows: usize,
    /// Reads row `i`.
    pub read: Box<dyn FnMut(usize) -> Result<sft::Row> + 'a>,
}

/// Episodes with everything that training needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Experience {
    /// The episodes.
    pub rows: Vec<Row>,
    /// log π_old of each token.
    pub old: Vec<Vec<f64>>,
    /// Steps of each episode: its tokens, and the one after the end where it ended before the length ran out.
    pub steps: Vec<usize>,
    /// The old value of each step.
    pub values: Vec<Vec<f64>>,
    /// Of each token.
    pub advantages: Vec<Vec<f64>>,
    /// Of each step.
    pub returns: Vec<Vec<f64>>,
}

/// Steps of an episode (7): its tokens, and the one after the end where it ended before the length of `longest` ran out.
pub fn steps(episode: &Episode, longest: usize) -> usize {
    let tokens = episode.row.completion();
    tokens + usize::from(episode.finished && tokens < longest)
}

/// Rewards of each step: penalties (6), the score at the last step (7).
pub fn rewards(
    policy: &[f64],
    reference: &[f64],
    steps: usize,
    score: f64,
    estimator: Estimator,
    coefficient: f64,
) -> Vec<f64> {
    let penalties = policy.iter().zip(reference);
    let mut rewards: Vec<f64> = penalties
        .map(|(p, r)| -coefficient * estimator.of(*p, *r))
        .collect();
    rewards.resize(steps, 0.0);
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
}

/// Details 8 to 10: (advantages of each token, returns of each step) of a batch.
pub fn advantages(
    mut rewards: Vec<Vec<f64>>,
    values: &[Vec<f64>],
    tokens: &[usize],
    options: &Options,
) -> Result<(Rows, Rows)> {
    let steps: Vec<usize> = rewards.iter().map(Vec::len).collect();
    if options.whiten_rewards {
        whiten(&mut rewards, &steps, false)?;
    }
    let mut advantages: Vec<Vec<f64>> = rewards
        .iter()
        .zip(values)
        .map(|(rewards, values)| gae(rewards, values, options.gamma, options.lambda))
        .collect();
    let returns = advantages.iter().zip(values).map(|(advantages, values)| {
        let pairs = advantages.iter().zip(values);
        pairs.map(|(a, v)| a + v).collect()
    });
    let returns = returns.collect();
    if options.whiten_advantages {
        whiten(&mut advantages, tokens, true)?;
    }
    for (row, &tokens) in advantages.iter_mut().zip(tokens) {
        row.truncate(tokens);
        if let Some(limit) = options.advantage_clip {
            row.iter_mut().for_each(|a| *a = a.clamp(-limit, limit));
        }
    }
    Ok((advantages, returns))
}

/// Detail 12: the sum over tokens of max(−A ρ, −A clip(ρ, 1 ± c)), ρ = exp(new − old), and how many tokens were clipped.
pub fn policy_loss(new: &Tensor, old: &Tensor, advantages: &Tensor, clip: f64) -> (Tensor, f64) {
    let ratio = (new - old).exp();
    let plain = -(&ratio * advantages);
    let clipped = -(ratio.clamp(1.0 - clip, 1.0 + clip) * advantages);
    let count = no_grad(|| {
        clipped
            .gt_tensor(&plain)
            .sum(Kind::Double)
            .double_value(&[])
    });
    (plain.max_other(&clipped).sum(None::<Kind>), count)
}

/// Detail 13: half the sum over steps of max((V − R)², (clip(V, V_old ± c) − R)²), and how many were clipped.
pub fn value_loss(new: &Tensor, old: &Tensor, returns: &Tensor, clip: f64) -> (Tensor, f64) {
    let near = new.maximum(&(old - clip)).minimum(&(old + clip));
    let (plain, clipped) = ((new - returns).square(), (near - returns).square());
    let count = no_grad(|| {
        clipped
            .gt_tensor(&plain)
            .sum(Kind::Double)
            .double_value(&[])
    });
    (plain.max_other(&clipped).sum(None::<Kind>) * 0.5, count)
}

/// The values of each step, `[steps in all]`: of a token the value of the state before it, of the step after the end that of the
/// last state.
pub fn step_values(critic: &Critic<'_>, batch: &Batch, steps: &[usize]) -> Result<Tensor> {
    let hidden = batch.hidden(critic.model, Pass::eval())?;
    let before = critic.head.scores(&batch.before_completions(&hidden)?)?;
    let last = critic.head.scores(&batch.last(&hidden)?)?;
    let tokens = before.numel() as i64;
    let (mut index, mut start) = (Vec::new(), 0);
    for (row, (&steps, &count)) in steps.iter().zip(batch.counts()).enumerate() {
        index.extend(start..start + count as i64);
        index.extend((count..steps).map(|_| tokens + row as i64));
        start += count as i64;
    }
    let index = Tensor::from_slice(&index).to_device(before.device());
    Ok(Tensor::f_cat(&[before, last], 0)?.f_index_select(0, &index)?)
}

/// What changes from update to update besides the two networks.
#[derive(Serialize, Deserialize)]
struct State {
    control: KlControl,
    moments: Moments,
}

const STATE: &str = "ppo.json";

/// Trains. `resume` is the folder of a snapshot of the same run; the run then ends with the same bytes as one without a break.
/// `watch` is called after each update, and when sampling was asked to stop. Gives the number of updates that the run stands at.
pub fn train(
    actor: &mut Actor<'_>,
    critic: &mut Critic<'_>,
    (data, mixed): (&mut Data<'_>, &mut Option<Mixed<'_>>),
    options: &Options,
    resume: Option<&Path>,
    watch: &mut dyn FnMut(Moment<'_>) -> Result<Next>,
) -> Result<usize> {
    ensure!(data.prompts > 0, "there are no prompts");
    ensure!(
        options.batch.is_multiple_of(options.minibatches.max(1)) && options.batch > 0,
        "a batch of {} episodes can't be cut into {} equal minibatches",
        options.batch,
        options.minibatches
    );
    let (seed, prompts) = (options.sampler.seed, data.prompts);
    let mut state = State {
        control: options.control,
        moments: Moments::default(),
    };
    let mut done = 0;
    if let Some(folder) = resume {
        let text = std::fs::read(folder.join(STATE))?;
        state = serde_json::from_slice(&text).context("a damaged snapshot")?;
        let cursor = restore(folder, "actor", actor.params, &mut actor.updater)?;
        restore(folder, "critic", critic.params, &mut critic.updater)?;
        let wanted = Cursor::new(seed, prompts, options.batch, cursor.steps);
        ensure!(cursor == wanted, "the snapshot is of another run");
        done = cursor.steps;
    }
    while done < options.updates {
        let began = Instant::now();
        let place = || format!("in update {} of {}", done + 1, options.updates);
        let next =
            match collect(actor, critic, data, options, done, &mut state).with_context(place)? {
                None => watch(Moment::Interrupted(done))?,
                Some(mut collected) => {
                    let coefficient = state.control.coefficient;
                    state.control.update(collected.kl, options.batch);
                    let (experience, first) = (&collected.experience, collected.first);
                    let learned = learn(actor, critic, mixed, options, done, experience, first);
                    collected.step.values.extend(learned.with_context(place)?);
                    collected.step.values.push(("kl_coefficient", coefficient));
                    collected.step.seconds = began.elapsed().as_secs_f64();
                    done += 1;
                    watch(Moment::Update(&collected.step))?
                }
            };
        if let Next::Snapshot(folder) | Next::SnapshotAndStop(folder) = &next {
            let cursor = Cursor::new(seed, prompts, options.batch, done);
            let (own, other) = (&actor.updater.optimizer, &critic.updater.optimizer);
            state::save(&folder.join("actor"), actor.params, own, &cursor)?;
            state::save(&folder.join("critic"), critic.params, other, &cursor)?;
            std::fs::write(folder.join(STATE), serde_json::to_vec(&state)?)?;
        }
        if matches!(next, Next::Stop | Next::SnapshotAndStop(_)) {
            break;
        }
    }
    Ok(done)
}

fn restore(folder: &Path, part: &str, params: &Params, updater: &mut Updater) -> Result<Cursor> {
    state::restore(&folder.join(part), params, &mut updater.optimizer)
}

/// The forwards that the old log-probabilities and values come from, with their graphs: the first epoch goes on from them where it would
/// make the very same ones, because its one minibatch is one micro-batch.
struct First {
    policy: Option<TokenValues>,
    values: Option<Tensor>,
}

/// What an update learns from.
struct Collected {
    experience: Experience,
    first: First,
    step: Step,
    /// The mean KL of a completion from the reference.
    kl: f64,
}

/// Samples episodes and works out what they teach (details 1 to 10). None when sampling was asked to stop; nothing has changed then.
fn collect(
    actor: &Actor<'_>,
    critic: &Critic<'_>,
    data: &mut Data<'_>,
    options: &Options,
    index: usize,
    state: &mut State,
) -> Result<Option<Collected>> {
    let (sampler, size) = (&options.sampler, options.micro_batch);
    let chosen = prompts_of(sampler.seed, index, options.batch, data.prompts);
    let draw = (index * options.batch) as u64;
    let Some(episodes) = sample(actor.model, data, &chosen, sampler, draw)? else {
        return Ok(None);
    };
    let raw = (data.score)(&episodes)?;
    check_scores(&raw, episodes.len())?;

    let temperature = sampler.temperature;
    let whole = options.minibatches == 1 && episodes.len() <= size;
    let learns = index >= options.critic_warmup;
    let bonus = options.entropy_weight != 0.0;
    let (model, keep) = (actor.model, whole && learns);
    let old = old_log_probabilities(model, &episodes, temperature, size, keep, bonus)?;
    let (old, policy) = (old.log_probabilities, old.forward.map(|(_, found)| found));
    let reference =
        reference_log_probabilities(actor.model, actor.reference, &episodes, temperature, size)?;
    let tokens: Vec<usize> = episodes.iter().map(|e| e.row.completion()).collect();
    let steps: Vec<usize> = episodes
        .iter()
        .map(|e| self::steps(e, sampler.max_new_tokens))
        .collect();
    let rows: Vec<Row> = episodes.iter().map(|e| e.row.clone()).collect();
    let mut values = Vec::new();
    let mut forward = None;
    for (rows, steps) in rows.chunks(size).zip(steps.chunks(size)) {
        let look = || step_values(critic, &Batch::new(critic.model, rows)?, steps);
        let found = match whole {
            true => look()?,
            false => no_grad(look)?,
        };
        let numbers: Vec<f64> = Vec::try_from(found.detach().to_kind(Kind::Double))?;
        values.extend(by_row(&numbers, steps.iter().copied()));
        forward = whole.then_some(found);
    }

    let mut scores = penalized(&raw, &episodes, options.missing_eos_penalty);
    options.shaping.apply(&mut scores, &mut state.moments);
    let mut kl = vec![0.0; rows.len()];
    let mut penalties = 0.0;
    let mut all = Vec::with_capacity(rows.len());
    for i in 0..rows.len() {
        kl[i] = old[i].iter().zip(&reference[i]).map(|(p, r)| p - r).sum();
        let rewards = rewards(
            &old[i],
            &reference[i],
            steps[i],
            scores[i],
            options.estimator,
            state.control.coefficient,
        );
        penalties += rewards.iter().sum::<f64>() - scores[i];
        all.push(rewards);
    }
    let (advantages, returns) = advantages(all, &values, &tokens, options)?;

    let n = rows.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
    let kl = mean(&kl);
    let counted: usize = tokens.iter().sum();
    let ended = episodes.iter().filter(|e| e.finished).count();
    let surprise: f64 = old.iter().flatten().map(|p| -p).sum();
    let step = Step {
        index: index + 1,
        of: options.updates,
        tokens: counted,
        seconds: 0.0,
        values: vec![
            ("score", mean(&raw)),
            ("kl", kl),
            ("rlhf_reward", mean(&scores) + penalties / n),
            ("entropy", surprise / counted as f64),
            ("completion_tokens", counted as f64 / n),
            ("finished", ended as f64 / n),
        ],
        episodes: episodes.into_iter().take(2).collect(),
        scores: raw.into_iter().take(2).collect(),
    };
    let experience = Experience {
        rows,
        old,
        steps,
        values,
        advantages,
        returns,
    };
    Ok(Some(Collected {
        experience,
        first: First {
            policy,
            values: forward,
        },
        step,
        kl,
    }))
}

/// Sums over the minibatches of an update.
#[derive(Default)]
struct Tally {
    policy: f64,
    value: f64,
    clipped: f64,
    value_clipped: f64,
    distance: f64,
    actor_norm: f64,
    critic_norm: f64,
    tokens: f64,
    steps: f64,
    actor_steps: f64,
    critic_steps: f64,
}

/// Epochs over the experience (details 11 to 16 and 18).
fn learn(
    actor: &mut Actor<'_>,
    critic: &mut Critic<'_>,
    mixed: &mut Option<Mixed<'_>>,
    options: &Options,
    index: usize,
    experience: &Experience,
    mut first: First,
) -> Result<Vec<(&'static str, f64)>> {
    let count = experience.rows.len();
    let seed = options.sampler.seed;
    let alone = index < options.critic_warmup;
    let mut tally = Tally::default();
    let mut rate = 0.0;
    let mut done = 0;
    actor.params.zero_grad();
    critic.params.zero_grad();
    for epoch in 0..options.epochs {
        let name = format!("minibatch {index} {epoch}");
        let order = order(seed, &name, count, options.minibatches);
        let (before, before_tokens) = (tally.distance, tally.tokens);
        for (number, chosen) in order.chunks(count / options.minibatches.max(1)).enumerate() {
            let tokens: usize = chosen.iter().map(|&i| experience.old[i].len()).sum();
            let steps: usize = chosen.iter().map(|&i| experience.steps[i]).sum();
            for part in chosen.chunks(options.micro_batch) {
                let rows: Vec<Row> = part.iter().map(|&i| experience.rows[i].clone()).collect();
                let own =
                    |all: &[Vec<f64>]| part.iter().map(|&i| all[i].clone()).collect::<Vec<_>>();
                if !alone {
                    let bonus = options.entropy_weight != 0.0;
                    let found = match first.policy.take() {
                        Some(found) => found,
                        None => {
                            let batch = Batch::new(actor.model, &rows)?;
                            let temperature = options.sampler.temperature;
                            batch.values(actor.model, Pass::eval(), temperature, bonus)?
                        }
                    };
                    let new = &found.log_probabilities;
                    let old = flat(&own(&experience.old), new);
                    let advantages = flat(&own(&experience.advantages), new);
                    let (sum, clipped) = policy_loss(new, &old, &advantages, options.clip);
                    tally.policy += sum.double_value(&[]);
                    tally.clipped += clipped;
                    let moved = no_grad(|| (new - &old).square().sum(Kind::Double));
                    tally.distance += 0.5 * moved.double_value(&[]);
                    let mut loss = sum / tokens as f64;
                    if bonus {
                        let entropy = found.entropies.sum(None::<Kind>) / tokens as f64;
                        loss -= entropy * options.entropy_weight;
                    }
                    actor.updater.add(&loss)?;
                }
                let new = match first.values.take() {
                    Some(values) => values,
                    None => {
                        let batch = Batch::new(critic.model, &rows)?;
                        let steps: Vec<usize> = part.iter().map(|&i| experience.steps[i]).collect();
                        step_values(critic, &batch, &steps)?
                    }
                };
                let old = flat(&own(&experience.values), &new);
                let returns = flat(&own(&experience.returns), &new);
                let (sum, clipped) = value_loss(&new, &old, &returns, options.value_clip);
                tally.value += sum.double_value(&[]);
                tally.value_clipped += clipped;
                critic
                    .updater
                    .add(&(sum * (options.value_weight / steps as f64)))?;
            }
            tally.tokens += tokens as f64;
            tally.steps += steps as f64;
            if !alone {
                if let Some(mixed) = mixed {
                    let name = format!("mixed {index} {epoch} {number}");
                    add_mixed(actor, mixed, chosen.len(), options, &name)?;
                }
                let update = actor.updater.step(actor.params, index)?;
                tally.actor_norm += update.norm;
                tally.actor_steps += 1.0;
                rate = update.rate;
            }
            tally.critic_norm += critic.updater.step(critic.params, index)?.norm;
            tally.critic_steps += 1.0;
        }
        done += 1;
        let moved = (tally.distance - before) / (tally.tokens - before_tokens).max(1.0);
        if options.target_kl.is_some_and(|limit| moved > limit) {
            break;
        }
    }
    Ok(vec![
        ("policy_loss", tally.policy / tally.tokens),
        ("value_loss", tally.value / tally.steps),
        ("policy_clipped", tally.clipped / tally.tokens),
        ("value_clipped", tally.value_clipped / tally.steps),
        ("approximate_kl", tally.distance / tally.tokens),
        ("grad_norm", tally.actor_norm / tally.actor_steps.max(1.0)),
        ("critic_grad_norm", tally.critic_norm / tally.critic_steps),
        ("learning_rate", rate),
        ("epochs", f64::from(done)),
    ])
}

/// Detail 14: the gradients of the cross entropy of as many other rows as the minibatch has episodes.
fn add_mixed(
    actor: &mut Actor<'_>,
    mixed: &mut Mixed<'_>,
    count: usize,
    options: &Options,
    name: &str,
) -> Result<()> {
    let mut stream = Stream::new(options.sampler.seed, name);
    let rows = (0..count)
        .map(|_| (mixed.read)(stream.below(mixed.rows as u64) as usize))
        .collect::<Result<Vec<_>>>()?;
    let trained = |row: &sft::Row| row.trained.iter().skip(1).filter(|t| **t).count();
    let total: usize = rows.iter().map(trained).sum();
    for part in rows.chunks(options.micro_batch) {
        if part.iter().map(trained).sum::<usize>() > 0 {
            let batch = sft::Batch::new(actor.model, part)?;
            let entropy = batch.cross_entropy(actor.model, Pass::eval(), loss::CHUNK)?;
            actor
                .updater
                .add(&(entropy.sum * (mixed.weight / total as f64)))?;
        }
    }
    Ok(())
}

//! The loop of a training run over an objective: epochs, batches, micro-batches, steps.

use crate::linear::Pass;
use crate::loss::Loss;
use crate::params::Params;
use crate::random::Stream;
use crate::state::{self, Cursor};
use crate::update::Updater;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What is trained: a batch type and a loss. The loss is a *sum* with a *weight*; `fit` divides by the weight of the whole
/// batch, so that k micro-batches are one batch.
pub trait Objective {
    /// Some rows, ready for a forward.
    type Batch;
    /// The number of rows of the data.
    fn rows(&self) -> usize;
    /// Hears, before each step, which epoch its rows are of, from 0: for draws that differ from epoch to epoch.
    fn epoch(&mut self, _epoch: usize) {}
    /// Reads these rows.
    fn batch(&mut self, rows: &[usize]) -> Result<Self::Batch>;
    /// What the batch's loss is a sum over (trained tokens), without a forward.
    fn weight(&self, batch: &Self::Batch) -> f64;
    /// The number of tokens that a forward of the batch reads.
    fn tokens(&self, batch: &Self::Batch) -> usize;
    /// Sees all micro-batches of a step before the first loss: for losses with terms that are means over the whole batch.
    fn begin(&mut self, _batches: &[Self::Batch]) -> Result<()> {
        Ok(())
    }
    /// The loss, with a gradient.
    fn loss(&mut self, pass: Pass, batch: &Self::Batch) -> Result<Loss>;
}

/// What `read` gives of these rows; an error says of which row it is.
pub(crate) fn read_rows<T>(
    rows: &[usize],
    mut read: impl FnMut(usize) -> Result<T>,
) -> Result<Vec<T>> {
    rows.iter()
        .map(|&row| read(row).with_context(|| format!("row {row} of the data")))
        .collect()
}

/// How often and how many at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The seed of the streams `shuffle` and `dropout`.
    pub seed: u64,
    /// How often each row is seen.
    pub epochs: usize,
    /// Rows to a step; the last step of an epoch may have fewer.
    pub batch: usize,
    /// Rows to a forward, at most `batch`: equal to tolerance whatever it is.
    pub micro_batch: usize,
    /// Ends the run early, or with 0 epochs sets its length.
    pub max_steps: Option<usize>,
    /// Whether each epoch has an order of its own; otherwise that of the data.
    pub shuffle: bool,
}

impl Plan {
    /// The number of steps for data of `rows` rows.
    pub fn steps(&self, rows: usize) -> usize {
        let whole = rows.div_ceil(self.batch.max(1)) * self.epochs;
        match self.max_steps {
            Some(limit) if self.epochs == 0 => limit,
            Some(limit) => limit.min(whole),
            None => whole,
        }
    }

    /// The rows of a step: a function of seed and step.
    pub fn rows_of(&self, step: usize, rows: usize) -> Vec<usize> {
        let per_epoch = rows.div_ceil(self.batch.max(1)).max(1);
        let order = self.order(step / per_epoch, rows);
        let start = step % per_epoch * self.batch;
        order[start..(start + self.batch).min(rows)].to_vec()
    }

    /// The order of the rows in an epoch: a function of seed and epoch.
    pub fn order(&self, epoch: usize, rows: usize) -> Vec<usize> {
        match self.shuffle {
            true => Stream::new(self.seed, &format!("shuffle {epoch}")).permutation(rows),
            false => (0..rows).collect(),
        }
    }
}

/// A step that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its number, from 1.
    pub index: usize,
    /// All steps of the run.
    pub of: usize,
    /// Epochs seen so far, with a fraction.
    pub epoch: f64,
    /// The mean loss over the weight of the batch, before the step.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// The global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens that were read.
    pub tokens: usize,
    /// The weight of the batch (trained tokens).
    pub weight: f64,
    /// Other means of the objective, by name.
    pub means: Vec<(&'static str, f64)>,
    /// What the step took.
    pub seconds: f64,
}

/// What the watcher wants next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next step.
    Go,
    /// The end of the run, here.
    Stop,
    /// A snapshot in this folder, and on.
    Snapshot(PathBuf),
    /// A snapshot in this folder, and the end of the run.
    SnapshotAndStop(PathBuf),
}

/// Trains. `resume` is the folder of a snapshot of the same run; the run then ends with the same bytes as one without a
/// break. `watch` is called after each step. Gives the number of steps that the run stands at.
pub fn fit<O: Objective>(
    objective: &mut O,
    params: &Params,
    updater: &mut Updater,
    plan: &Plan,
    resume: Option<&Path>,
    watch: &mut dyn FnMut(&Step) -> Result<Next>,
) -> Result<usize> {
    let rows = objective.rows();
    ensure!(rows > 0, "there are no rows to train on");
    ensure!(
        plan.batch > 0 && plan.micro_batch > 0,
        "a batch has at least one row"
    );
    ensure!(
        params.trained().next().is_some(),
        "no parameter is trained: attach an adapter, or say what to train"
    );
    let of = plan.steps(rows);
    let mut first = 0;
    if let Some(folder) = resume {
        let cursor = state::restore(folder, params, &mut updater.optimizer)?;
        let wanted = Cursor::new(plan.seed, rows, plan.batch, cursor.steps);
        ensure!(
            cursor == wanted,
            "the snapshot {} is of another run: {cursor:?}, this one is {wanted:?}",
            folder.display()
        );
        first = cursor.steps;
    }
    params.zero_grad();
    for index in first..of {
        let began = Instant::now();
        let chosen = plan.rows_of(index, rows);
        updater.optimizer.open(params, index);
        objective.epoch(index / rows.div_ceil(plan.batch));
        let step = one_step(objective, params, updater, plan, index, &chosen)
            .with_context(|| format!("in step {} of {of}", index + 1))?;
        let step = Step {
            index: index + 1,
            of,
            epoch: ((index + 1) * plan.batch) as f64 / rows as f64,
            seconds: began.elapsed().as_secs_f64(),
            ..step
        };
        let next = watch(&step)?;
        if let Next::Snapshot(folder) | Next::SnapshotAndStop(folder) = &next {
            let cursor = Cursor::new(plan.seed, rows, plan.batch, index + 1);
            state::save(folder, params, &updater.optimizer, &cursor)?;
        }
        if matches!(next, Next::Stop | Next::SnapshotAndStop(_)) {
            return Ok(index + 1);
        }
    }
    Ok(of)
}

/// Forward and backward of every micro-batch of these rows, then the update.
fn one_step<O: Objective>(
    objective: &mut O,
    params: &Params,
    updater: &mut Updater,
    plan: &Plan,
    index: usize,
    rows: &[usize],
) -> Result<Step> {
    let batches = rows
        .chunks(plan.micro_batch)
        .map(|rows| objective.batch(rows))
        .collect::<Result<Vec<_>>>()?;
    let weight: f64 = batches.iter().map(|batch| objective.weight(batch)).sum();
    ensure!(
        weight > 0.0,
        "no token of the rows {rows:?} is trained: look at the loss mask with `show --tokens`"
    );
    objective.begin(&batches)?;
    let draw = Stream::new(plan.seed, &format!("dropout {index}")).next_u64();
    let (mut sum, mut tokens) = (0.0, 0);
    let mut means: Vec<(&'static str, f64)> = Vec::new();
    for batch in &batches {
        let pass = Pass::train(draw).after(tokens);
        tokens += objective.tokens(batch);
        if objective.weight(batch) <= 0.0 {
            continue;
        }
        let loss = objective.loss(pass, batch)?;
        updater.add(&(&loss.sum / weight))?;
        sum += loss.sum.double_value(&[]);
        for (name, value) in loss.sums {
            match means.iter_mut().find(|(known, _)| *known == name) {
                Some((_, total)) => *total += value / weight,
                None => means.push((name, value / weight)),
            }
        }
    }
    let update = updater.step(params, index)?;
    Ok(Step {
        index: 0,
        of: 0,
        epoch: 0.0,
        loss: sum / weight,
        lr: update.rate,
        grad_norm: update.norm,
        tokens,
        weight,
        means,
        seconds: 0.0,
    })
}

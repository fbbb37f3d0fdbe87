//! What `ppo`, `rloo` and `grpo` do around their loops: prompts, rewards, the reference, reports and snapshots.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use engine::artifact::ArtifactType;
use engine::event::{Level, What};
use engine::job::{Cancelled, Draft, Job, Reporter};
use kinds::rollout::Rollout;
use kinds::training::{Train, Training};
use ml::fit::Next;
use ml::generate::Generated;
use ml::rl::{Actor, Data, Episode, Moment, Reference, Sampler, Step};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::answers::{Question, text};
use crate::judge::{Answer, Judges};
use crate::model::{Loaded, load_beside};
use crate::snapshot::Snapshots;
use crate::training::{circumstances, updater};

/// What an episode's policy wrote.
fn completion_text(loaded: &Loaded, episode: &Episode) -> Result<String> {
    let generated = Generated {
        tokens: episode.row.tokens[episode.row.prompt..].to_vec(),
        finished: episode.finished,
    };
    text(loaded, &generated)
}

/// What the loops ask of outside: prompts, scores, whether to go on.
pub(crate) fn outside<'a>(
    policy: &'a Loaded,
    questions: &'a [Question],
    judges: &'a Judges,
    cx: &'a dyn Reporter,
) -> Data<'a> {
    Data {
        prompts: questions.len(),
        prompt: Box::new(|index| Ok(questions[index].tokens.clone())),
        score: Box::new(|episodes| {
            let answers = episodes
                .iter()
                .map(|episode| {
                    Ok(Answer {
                        prompt: questions[episode.prompt].prompt.clone(),
                        text: completion_text(policy, episode)?,
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            // Scoring ends before a request to stop is heard: the loop then stops where it can be taken up.
            judges.score(&answers, &mut || Ok(()))
        }),
        running: Box::new(|| !cx.cancelled()),
    }
}

/// How completions are sampled.
pub(crate) fn sampler(loaded: &Loaded, params: &Rollout) -> Sampler {
    Sampler {
        seed: params.seed,
        temperature: params.temperature,
        max_new_tokens: params.max_new_tokens,
        eos: loaded.end_tokens(),
        batch: params.batch.min(128),
    }
}

/// The optimizer's settings as trainings have them.
pub(crate) fn training(params: &Rollout, learning_rate: f64) -> Training {
    Training {
        learning_rate,
        schedule: params.schedule.clone(),
        warmup: params.warmup,
        epochs: 1.0,
        max_steps: Some(params.updates as u64),
        batch: params.batch,
        train: Train::default(),
        layer_decay: 1.0,
        unfreeze_every: None,
        learning_rates: BTreeMap::new(),
        optimizer: "adamw".to_owned(),
        optimizer_state: "device".to_owned(),
        weight_decay: params.weight_decay,
        beta1: params.beta1,
        beta2: params.beta2,
        epsilon: params.epsilon,
        max_grad_norm: params.max_grad_norm,
        seed: params.seed,
        micro_batch: params.micro_batch,
        checkpointing: false,
        snapshot_seconds: params.snapshot_seconds,
    }
}

/// The reference as a model of its own, or none where it is the policy without its adapter.
pub(crate) fn reference(job: &Job, policy: &Loaded, cx: &dyn Reporter) -> Result<Option<Loaded>> {
    let view = job.input("model")?;
    let wanted = match job.inputs.contains_key("reference") {
        true => job.input("reference")?,
        false => view,
    };
    let is_base = view
        .refs
        .get("base")
        .is_some_and(|base| base.digest == wanted.digest);
    let fresh = wanted.digest == view.digest
        && policy.adapter.is_some()
        && ml::adapter::is_identity(&policy.model)?;
    if is_base || fresh {
        cx.note(
            Level::Info,
            "the reference is the policy without its adapter",
        );
        return Ok(None);
    }
    let reference = load_beside(wanted, job, policy)?;
    policy.check_reference(&reference, "model")?;
    Ok(Some(reference))
}

/// The policy as the loops train it, held to its reference.
pub(crate) fn actor<'a>(
    policy: &'a Loaded,
    reference: &'a Option<Loaded>,
    params: &Rollout,
) -> Result<Actor<'a>> {
    let training = training(params, params.learning_rate);
    Ok(Actor {
        model: &policy.model,
        params: &policy.params,
        updater: updater(&training, &policy.params, params.updates)?,
        reference: match reference {
            Some(loaded) => Reference::Model(&loaded.model),
            None => Reference::WithoutAdapters,
        },
    })
}

/// What the metrics artifact says of an update; no times, so that equal trainings give equal bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UpdateRow {
    pub update: usize,
    pub tokens: usize,
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
}

/// Snapshots and reports of a loop of updates.
pub(crate) struct Updates<'a> {
    cx: &'a dyn Reporter,
    snapshots: Snapshots,
    every: Duration,
    last: Instant,
    /// The snapshot that is being written, and after how many updates.
    written: Option<(usize, PathBuf)>,
    /// After how many updates the newest whole snapshot was made.
    kept: usize,
    rows: Vec<UpdateRow>,
    pub resume: Option<PathBuf>,
    stopped: bool,
    ended: bool,
}

impl<'a> Updates<'a> {
    pub(crate) fn new(job: &Job, params: &Rollout, cx: &'a dyn Reporter) -> Result<Updates<'a>> {
        let snapshots = Snapshots::new(
            job.snapshots
                .as_deref()
                .context("a training has a place for snapshots")?,
            circumstances(job, params.micro_batch)?,
        );
        let resume = snapshots.newest(&mut |why| cx.note(Level::Warning, why));
        let mut rows = Vec::new();
        if let Some(folder) = &resume {
            rows = serde_json::from_slice(&std::fs::read(folder.join("updates.json"))?)?;
            let done = rows.len();
            cx.note(
                Level::Info,
                &format!("goes on from the snapshot after update {done}"),
            );
        }
        Ok(Updates {
            cx,
            snapshots,
            every: Duration::from_secs(params.snapshot_seconds),
            last: Instant::now(),
            written: None,
            kept: rows.len(),
            rows,
            resume,
            stopped: false,
            ended: false,
        })
    }

    /// After each update, and when sampling was stopped: says what happened, and whether to go on.
    pub(crate) fn watch(
        &mut self,
        moment: Moment<'_>,
        questions: &[Question],
        policy: &Loaded,
    ) -> Result<Next> {
        // The snapshot that the update before asked for is whole by now.
        self.finish_snapshot()?;
        if let Moment::Update(step) = moment {
            self.report(step, sample(questions, policy, step)?);
            self.rows.push(UpdateRow {
                update: step.index,
                tokens: step.tokens,
                values: named(step),
            });
            self.ended = step.index == step.of;
        }
        if let Moment::Interrupted(done) = moment {
            let text =
                format!("stopped while completions were sampled: goes on after update {done}");
            self.cx.note(Level::Info, &text);
        }
        self.stopped = self.cx.cancelled() && !self.ended;
        let done = self.rows.len();
        let due = self.stopped || self.last.elapsed() >= self.every;
        if self.ended || !due || done == self.kept {
            return Ok(if self.stopped { Next::Stop } else { Next::Go });
        }
        let folder = self.snapshots.begin(done);
        self.written = Some((done, folder.clone()));
        std::fs::create_dir_all(&folder)?;
        Ok(match self.stopped {
            true => Next::SnapshotAndStop(folder),
            false => Next::Snapshot(folder),
        })
    }

    fn finish_snapshot(&mut self) -> Result<()> {
        if let Some((done, folder)) = self.written.take() {
            let path = folder.join("updates.json");
            std::fs::write(&path, serde_json::to_vec(&self.rows)?)
                .with_context(|| format!("{} can't be written", path.display()))?;
            self.snapshots.finish()?;
            self.last = Instant::now();
            self.kept = done;
        }
        Ok(())
    }

    fn report(&self, step: &Step, sample: Option<(String, String)>) {
        let speed = step.tokens as f64 / step.seconds.max(1e-9);
        let mut values = named(step);
        values.insert("tokens_per_second".to_owned(), speed);
        self.cx.emit(What::Metrics {
            step: step.index as u64,
            values,
        });
        self.cx.emit(What::Progress {
            done: step.index as u64,
            total: step.of as u64,
            unit: "updates".to_owned(),
            rate: Some((speed, "tokens/s".to_owned())),
        });
        if let Some((title, text)) = sample {
            self.cx.emit(What::Sample { title, text });
        }
    }

    /// After the loop: the last snapshot, or the end.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.finish_snapshot()?;
        if self.stopped {
            return Err(Cancelled.into());
        }
        Ok(())
    }

    /// After a training in groups: says so when no group ever had two rewards to compare.
    pub(crate) fn say_what_taught_nothing(&self) {
        if all_equal(&self.rows) {
            let text = "in every update all completions of each prompt had the same reward, so that no reward taught anything: sample at a higher \
                        `temperature` or in a larger `group`, take prompts that are neither too easy nor too hard, or a judge that tells \
                        such completions apart";
            self.cx.note(Level::Warning, text);
        }
    }

    /// The metrics artifact.
    pub(crate) fn metrics(&self, job: &Job) -> Result<Draft> {
        let path = job.out.join("metrics.json");
        std::fs::write(
            &path,
            serde_json::to_vec_pretty(&json!({ "updates": self.rows }))?,
        )?;
        let (first, last) = (
            self.rows.first().context("no update was made")?,
            self.rows.last().context("no update was made")?,
        );
        let value = |row: &UpdateRow, name: &str| json!(row.values.get(name));
        Ok(Draft {
            artifact: ArtifactType::Metrics,
            files: vec![("metrics.json".to_owned(), path)],
            refs: Default::default(),
            summary: [
                ("updates".to_owned(), json!(self.rows.len())),
                ("first_score".to_owned(), value(first, "score")),
                ("last_score".to_owned(), value(last, "score")),
                ("last_kl".to_owned(), value(last, "kl")),
            ]
            .into(),
        })
    }
}

/// Whether all groups of all updates had equal rewards.
fn all_equal(rows: &[UpdateRow]) -> bool {
    let equal = |row: &UpdateRow| row.values.get("equal_groups") == Some(&1.0);
    !rows.is_empty() && rows.iter().all(equal)
}

/// What an update measured.
fn named(step: &Step) -> BTreeMap<String, f64> {
    let values = step.values.iter();
    values
        .map(|(name, value)| ((*name).to_owned(), *value))
        .collect()
}

/// One of an update's episodes for people: the prompt with its score, and the completion.
fn sample(
    questions: &[Question],
    policy: &Loaded,
    step: &Step,
) -> Result<Option<(String, String)>> {
    // A look now and then is enough.
    if !(step.index == step.of || step.index.is_multiple_of((step.of / 5).max(1))) {
        return Ok(None);
    }
    let (Some(episode), Some(score)) = (step.episodes.first(), step.scores.first()) else {
        return Ok(None);
    };
    let asked = questions[episode.prompt].text();
    let title = format!("update {}, score {score:.2}: {asked}", step.index);
    Ok(Some((title, completion_text(policy, episode)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_group_that_differs_is_enough() {
        let row = |share: Option<f64>| UpdateRow {
            update: 1,
            tokens: 8,
            values: share
                .map(|share| ("equal_groups".to_owned(), share))
                .into_iter()
                .collect(),
        };
        assert!(all_equal(&[row(Some(1.0)), row(Some(1.0))]));
        for rows in [
            vec![],
            vec![row(None)],
            vec![row(Some(1.0)), row(Some(0.75))],
        ] {
            assert!(!all_equal(&rows), "{rows:?}");
        }
    }
}

//! What `grpo` and `rloo` share: policy, reference and judges for the loop of `ml::rl::group`.

use anyhow::Result;
use data::Dataset;
use engine::job::{Drafts, Job, Reporter};
use kinds::rollout::Rollout;
use kinds::training::Train;
use ml::rl::group::{Advantages, Objective, Options, train};

use crate::answers::questions;
use crate::judge::Judges;
use crate::model::load;
use crate::rollout::{Updates, actor, outside, reference, sampler};
use crate::training::{choose_trained, trained_model};

/// What the two kinds do differently.
pub(crate) struct Manner {
    pub group: usize,
    pub objective: Objective,
    pub advantages: Advantages,
    pub mask_truncated: bool,
    pub reward_clip: Option<f64>,
}

/// Trains a policy in groups.
pub(crate) fn learn(
    job: &Job,
    cx: &dyn Reporter,
    rollout: &Rollout,
    manner: Manner,
) -> Result<Drafts> {
    let view = job.input("model")?;
    let mut policy = load(view, job)?;
    choose_trained(&mut policy, &Train::default(), cx)?;
    let reference = reference(job, &policy, cx)?;
    let prompts = Dataset::open(job.input("prompts")?.file("rows.arrow")?)?;
    let questions = questions(&policy, &prompts, usize::MAX, rollout.max_new_tokens)?;
    let judges = Judges::load_beside(&policy, job, "reward", rollout)?;
    let mut updates = Updates::new(job, rollout, cx)?;
    let mut actor = actor(&policy, &reference, rollout)?;
    let mut data = outside(&policy, &questions, &judges, cx);
    let options = Options {
        sampler: sampler(&policy, rollout),
        updates: rollout.updates,
        batch: rollout.batch,
        group: manner.group,
        minibatches: rollout.minibatches,
        epochs: rollout.epochs,
        micro_batch: rollout.micro_batch,
        objective: manner.objective,
        advantages: manner.advantages,
        missing_eos_penalty: rollout.missing_eos_penalty,
        mask_truncated: manner.mask_truncated,
        reward_clip: manner.reward_clip,
    };
    let resume = updates.resume.clone();
    train(
        &mut actor,
        &mut data,
        &options,
        resume.as_deref(),
        &mut |moment| updates.watch(moment, &questions, &policy),
    )?;
    drop((actor, data));
    judges.say_what_was_cut(cx);
    updates.end()?;
    updates.say_what_taught_nothing();
    let metrics = updates.metrics(job)?;
    let model = trained_model(job, view, &policy)?;
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
}

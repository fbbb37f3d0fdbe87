//! `grpo` and `rloo`: policy, reference and judges for the loop of `ml::rl::group`.

use anyhow::{Result, bail};
use engine::job::{Drafts, Job, Reporter};
use kinds::grpo::Grpo;
use kinds::rloo::Rloo;
use kinds::rollout::Rollout;
use ml::rl::advantage::GroupScale;
use ml::rl::group::{Actor, Advantages, Data, Normalizer, Objective, Options, Ratio, train};

use crate::judge::Judges;
use crate::model::load;
use crate::rollout::{Prompts, Updates, held_to, reference, sample, sampler, score, training};
use crate::training::{choose_trained, trained_model, updater};

/// What the two kinds do differently.
struct Manner {
    group: usize,
    objective: Objective,
    advantages: Advantages,
    mask_truncated: bool,
    reward_clip: Option<f64>,
}

pub(crate) fn grpo(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Grpo = job.params()?;
    let manner = Manner {
        group: params.group,
        objective: Objective {
            clip_low: params.clip,
            clip_high: params.clip_high.unwrap_or(params.clip),
            beta: params.beta,
            corrected: params.corrected_kl,
            ratio: match params.ratio.as_str() {
                "token" => Ratio::Token,
                "sequence" => Ratio::Mean,
                other => bail!("`{other}` is not a ratio"),
            },
            normalizer: match params.loss.as_str() {
                "grpo" => Normalizer::Completions,
                "bnpo" => Normalizer::Tokens,
                "dr_grpo" => Normalizer::Longest,
                "dapo" => Normalizer::BatchTokens,
                other => bail!("`{other}` is not a loss"),
            },
        },
        advantages: Advantages::Relative(match params.scale.as_str() {
            "group" => GroupScale::Group,
            "batch" => GroupScale::Batch,
            "none" => GroupScale::None,
            other => bail!("`{other}` is not a scale"),
        }),
        mask_truncated: params.mask_truncated,
        reward_clip: params.reward_clip,
    };
    run(job, cx, &params.rollout, manner)
}

pub(crate) fn rloo(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Rloo = job.params()?;
    let manner = Manner {
        group: params.group,
        objective: Objective {
            clip_low: params.clip,
            clip_high: params.clip_high.unwrap_or(params.clip),
            beta: 0.0,
            corrected: false,
            ratio: Ratio::Whole,
            normalizer: Normalizer::Completions,
        },
        advantages: Advantages::LeaveOneOut {
            beta: params.beta,
            normalize: params.normalize,
        },
        mask_truncated: params.mask_truncated,
        reward_clip: params.reward_clip,
    };
    run(job, cx, &params.rollout, manner)
}

fn run(job: &Job, cx: &dyn Reporter, rollout: &Rollout, manner: Manner) -> Result<Drafts> {
    let view = job.input("model")?;
    let mut policy = load(view, job)?;
    choose_trained(&mut policy.params, policy.adapter.is_some(), cx);
    let reference = reference(job, &policy, cx)?;
    let prompts = Prompts::read(&policy, job.input("prompts")?, rollout.max_new_tokens)?;
    let judges = Judges::load(job, "reward", &rollout.weights, rollout.micro_batch)?;
    let mut updates = Updates::new(job, rollout, cx)?;
    let mut actor = Actor {
        model: &policy.model,
        params: &policy.params,
        updater: updater(
            &training(rollout, rollout.learning_rate),
            &policy.params,
            rollout.updates,
        )?,
        reference: held_to(&reference),
    };
    let mut data = Data {
        prompts: prompts.tokens.len(),
        prompt: Box::new(|index| Ok(prompts.tokens[index].clone())),
        score: Box::new(|episodes| score(&judges, &prompts, &policy, episodes, cx)),
    };
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
        &mut |step| updates.watch(step, sample(&prompts, &policy, step)?),
    )?;
    drop((actor, data));
    updates.end()?;
    let metrics = updates.metrics(job)?;
    let model = trained_model(job, view, &policy)?;
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
}

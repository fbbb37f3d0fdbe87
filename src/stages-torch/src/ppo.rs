//! `ppo`: actor, critic, reference and judges for the loop of `ml::rl::ppo`.

use anyhow::{Context, Result};
use data::encode::LossOn;
use data::{Dataset, Encoder};
use engine::event::Level;
use engine::job::{Drafts, Job, Reporter};
use kinds::ppo::Ppo;
use kinds::training::Train;
use ml::reward::Head;
use ml::rl::advantage::{Estimator, KlControl, Shaping};
use ml::rl::ppo::{Critic, Mixed, Options, train};
use ml::sft::Row;

use crate::answers::questions;
use crate::judge::Judges;
use crate::model::{Loaded, load, load_beside};
use crate::reward_model;
use crate::rollout::{Updates, actor, outside, reference, sampler, training};
use crate::training::{choose_trained, trained_model, updater};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Ppo = job.params()?;
    let view = job.input("model")?;
    let mut policy = load(view, job)?;
    choose_trained(&mut policy, &Train::default(), cx)?;
    let reference = reference(job, &policy, cx)?;
    let mut critic = critic(job, &policy)?;
    choose_trained(&mut critic, &Train::default(), cx)?;
    let rollout = &params.rollout;
    let prompts = Dataset::open(job.input("prompts")?.file("rows.arrow")?)?;
    let questions = questions(&policy, &prompts, usize::MAX, rollout.max_new_tokens)?;
    if critic.shares_with(&policy) {
        cx.note(Level::Info, "critic and policy are adapters on one base");
    }
    let judges = Judges::load_beside(&policy, job, "reward", rollout)?;
    let mixed = mixed(job, &params, &policy.encoder, cx)?;
    let mut updates = Updates::new(job, rollout, cx)?;

    let head = critic.head.as_ref().context("BUG: a critic has a head")?;
    let critic_rate = params.critic_learning_rate.unwrap_or(rollout.learning_rate);
    let mut actor = actor(&policy, &reference, rollout)?;
    let mut learner = Critic {
        model: &critic.model,
        head,
        params: &critic.params,
        updater: updater(
            &training(rollout, critic_rate),
            &critic.params,
            rollout.updates,
        )?,
    };
    let mut data = outside(&policy, &questions, &judges, cx);
    let mut mixed = mixed.as_ref().map(|rows| Mixed {
        weight: params.mixed_weight,
        rows: rows.len(),
        read: Box::new(|index: usize| Ok(rows[index].clone())),
    });
    let options = options(&params, &policy)?;
    let resume = updates.resume.clone();
    train(
        &mut actor,
        &mut learner,
        (&mut data, &mut mixed),
        &options,
        resume.as_deref(),
        &mut |moment| updates.watch(moment, &questions, &policy),
    )?;
    drop((actor, learner, data, mixed));
    judges.say_what_was_cut(cx);
    updates.end()?;
    let metrics = updates.metrics(job)?;
    let critic_view = match job.inputs.contains_key("critic") {
        true => job.input("critic")?,
        false => view,
    };
    let critic_draft = reward_model::draft(job, critic_view, &critic, 0.0, 1.0)?;
    let model = trained_model(job, view, &policy)?;
    ml::torch::release_memory();
    Ok([
        ("model".to_owned(), model),
        ("metrics".to_owned(), metrics),
        ("critic".to_owned(), critic_draft),
    ]
    .into())
}

/// The critic's own copy of what it starts from, with a head.
fn critic(job: &Job, policy: &Loaded) -> Result<Loaded> {
    let view = match job.inputs.contains_key("critic") {
        true => job.input("critic")?,
        false => job.input("model")?,
    };
    let mut critic = load_beside(view, job, policy)?;
    anyhow::ensure!(
        critic.model.config.vocab_size == policy.model.config.vocab_size,
        "the critic reads the policy's tokens, but has {} words where the policy has {}: start it from the policy or a model of its \
         family",
        critic.model.config.vocab_size,
        policy.model.config.vocab_size
    );
    let width = critic.model.config.hidden_size;
    anyhow::ensure!(
        critic.same_tokens(policy),
        "the critic reads the policy's tokens, but has another tokenizer: leave `critic` out, or start it from the policy or a model of its \
         family"
    );
    critic.attach_head(&Head::fresh(width, 0, 0.0))?;
    Ok(critic)
}

fn options(params: &Ppo, policy: &Loaded) -> Result<Options> {
    let rollout = &params.rollout;
    Ok(Options {
        sampler: sampler(policy, rollout),
        updates: rollout.updates,
        batch: rollout.batch,
        minibatches: rollout.minibatches,
        micro_batch: rollout.micro_batch,
        epochs: rollout.epochs,
        gamma: params.gamma,
        lambda: params.lambda,
        clip: params.clip,
        value_clip: params.value_clip,
        value_weight: params.value_weight,
        entropy_weight: params.entropy_weight,
        estimator: Estimator::parse(&params.kl_estimator)?,
        control: KlControl {
            coefficient: params.kl,
            adaptive: params.kl_target.map(|target| (target, params.kl_horizon)),
        },
        shaping: Shaping {
            normalize: params.normalize_scores,
            scale: params.scale_scores,
            clip: params.score_clip,
        },
        missing_eos_penalty: rollout.missing_eos_penalty,
        whiten_rewards: params.whiten_rewards,
        whiten_advantages: params.whiten_advantages,
        advantage_clip: params.advantage_clip,
        critic_warmup: params.critic_warmup,
        target_kl: params.target_kl,
    })
}

/// The rows of the language-modelling loss, cut to their length; how many were is said.
fn mixed(
    job: &Job,
    params: &Ppo,
    encoder: &Encoder,
    cx: &dyn Reporter,
) -> Result<Option<Vec<Row>>> {
    if !job.inputs.contains_key("mixed") || params.mixed_weight == 0.0 {
        return Ok(None);
    }
    let dataset = Dataset::open(job.input("mixed")?.file("rows.arrow")?)?;
    let longest = params.mixed_length;
    let (mut cut, mut idle) = (0, 0);
    let mut rows = Vec::with_capacity(dataset.len());
    for index in 0..dataset.len() {
        let encoded = encoder.encode(&dataset.row(index)?, LossOn::Completions)?;
        let mut tokens: Vec<i64> = encoded.ids.iter().map(|id| i64::from(*id)).collect();
        let mut trained = encoded.trained;
        if tokens.len() > longest {
            tokens.truncate(longest);
            trained.truncate(longest);
            cut += 1;
            idle += usize::from(!trained.contains(&true));
        }
        rows.push(Row {
            tokens,
            trained,
            documents: Vec::new(),
        });
    }
    if cut > 0 {
        let of = rows.len();
        let text = format!(
            "{cut} of {of} `mixed` rows are longer than `mixed_length` {longest} and were cut; {idle} of them have no token left to learn"
        );
        cx.note(Level::Warning, &text);
    }
    Ok(Some(rows))
}

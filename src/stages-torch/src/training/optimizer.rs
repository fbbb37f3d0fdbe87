//! The optimizer and its schedule from the parameters of a training.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use engine::event::Level;
use engine::job::{About as _, Reporter};
use kinds::training::Training;
use ml::Params;
use ml::choice;
use ml::optimizer::{Adafactor, Home, Optimizer, Options, Rule, Schedule, Shape, packs};
use ml::update::Updater;

/// The optimizer of these parameters for a training of `total` steps.
pub(crate) fn updater(training: &Training, params: &Params, total: usize) -> Result<Updater> {
    let shape = match training.schedule.as_str() {
        "constant" => Shape::Constant,
        "linear" => Shape::Linear,
        "cosine" => Shape::Cosine,
        other => bail!("`{other}` is not a schedule"),
    };
    let options = Options {
        beta1: training.beta1,
        beta2: training.beta2,
        eps: training.epsilon,
        weight_decay: training.weight_decay,
    };
    let rule = match training.optimizer.as_str() {
        "adamw" => Rule::AdamW(options),
        "adamw_8bit" => Rule::AdamW8bit(options),
        "adafactor" => Rule::Adafactor(Adafactor {
            weight_decay: training.weight_decay,
            ..Adafactor::default()
        }),
        other => bail!("`{other}` is not an optimizer"),
    };
    let mut factors = if training.layer_decay < 1.0 {
        if choice::depths(params).len() < 2 {
            let error = "`layer_decay` lowers the rate from layer to layer, and all that is trained is at one depth: leave it out, or give \
                         `learning_rate`";
            return Err(anyhow!(error)).about("layer_decay");
        }
        choice::by_depth(params, training.layer_decay)
    } else {
        BTreeMap::new()
    };
    let own = choice::by_name(params, &training.learning_rates)
        .context("`learning_rates`")
        .about("learning_rates")?;
    for (name, rate) in own {
        *factors.entry(name).or_insert(1.0) *= rate / training.learning_rate;
    }
    let undecayed = choice::undecayed(params);
    let decays = params
        .trained()
        .any(|(name, _)| !undecayed.iter().any(|other| other == name));
    if !decays && training.weight_decay != 0.0 {
        let error = "`weight_decay` does nothing here: norms, biases, the numbers of (IA)³, the lengths of DoRA and virtual tokens do not \
                     decay, and nothing else is trained; leave it out";
        return Err(anyhow!(error)).about("weight_decay");
    }
    let home = match training.optimizer_state.as_str() {
        "device" => Home::Device,
        "host" => Home::Host,
        other => bail!("`{other}` is not where an optimizer keeps its state"),
    };
    Ok(Updater {
        optimizer: Optimizer::new(rule, undecayed)
            .with_factors(factors)
            .with_home(home)
            .with_turns(turns(training, params)?),
        schedule: Schedule {
            shape,
            peak: training.learning_rate,
            warmup: (total as f64 * training.warmup).ceil() as usize,
            total,
        },
        clip: (training.max_grad_norm > 0.0).then_some(training.max_grad_norm),
    })
}

/// When each trained parameter begins, where not all begin at once.
fn turns(training: &Training, params: &Params) -> Result<BTreeMap<String, usize>> {
    match training.unfreeze_every {
        Some(every) => {
            let every = usize::try_from(every)?;
            let turns = choice::turns(params, every).context("`unfreeze_every`");
            turns.about("unfreeze_every")
        }
        None => Ok(BTreeMap::new()),
    }
}

/// Says what is allowed and does less than it seems: states that are not packed, layers whose turn does not come.
pub(super) fn say_what_does_little(
    training: &Training,
    params: &Params,
    total: usize,
    cx: &dyn Reporter,
) -> Result<()> {
    if training.optimizer == "adamw_8bit" && !params.trained().any(|(_, tensor)| packs(tensor)) {
        let text = "`optimizer: adamw_8bit` is `adamw` here: tensors of fewer than 4096 values keep their moments in f32, and no trained one has more";
        cx.note(Level::Warning, text);
    }
    let turns = turns(training, params)?;
    let late = turns.values().filter(|turn| **turn >= total).count();
    if let Some(last) = turns.values().max() {
        let text = format!(
            "{total} steps; the last parameters begin in step {}",
            last.saturating_add(1)
        );
        match late {
            0 => cx.note(Level::Info, &text),
            _ => cx.note(
                Level::Warning,
                &format!(
                    "{text}: {late} of {} parameter tensors are never trained",
                    turns.len()
                ),
            ),
        }
    }
    Ok(())
}

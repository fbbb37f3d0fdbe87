//! What every training stage does around its objective: optimizer and plan from the parameters, snapshots, reports, and the model
//! that comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::{Level, What};
use engine::job::{Cancelled, Draft, Job, Reference, Reporter};
use kinds::model::adapter_draft;
use kinds::training::{Train, Training};
use ml::Params;
use ml::choice::{self, Choice};
use ml::fit::{Next, Objective, Plan, Step, fit};
use ml::optimizer::{Adafactor, Home, Optimizer, Options, Rule, Schedule, Shape, packs};
use ml::update::Updater;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::Loaded;
use crate::snapshot::{Circumstances, Snapshots};

// The estimates of memory count the logits of so many rows.
const _: () = assert!(kinds::memory::CHUNK as i64 == ml::loss::CHUNK);

/// What the metrics artifact says of a step; no times, so that equal trainings give equal bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StepRow {
    pub step: usize,
    pub epoch: f64,
    pub loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
    pub tokens: usize,
    /// What the loss is a mean over: tokens, or rows of comparisons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_tokens: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<f64>,
    #[serde(flatten)]
    means: BTreeMap<String, f64>,
}

/// What the weight of a step counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    Tokens,
    Rows,
}

/// What a recipe calls by a word, by names or by depth.
fn chosen(train: &Train) -> Result<Choice> {
    let choice = train.choice();
    choice.with_context(|| format!("{train:?} is nothing that can be trained"))
}

/// A model as far as it matters to what may be trained of it.
pub(crate) struct Trainee<'a> {
    pub params: &'a mut Params,
    /// Whether it has an adapter, which is then what is trained.
    pub adapted: bool,
    /// Values of quantized weights, which are no parameters.
    pub packed: usize,
    /// The parameters of a head that the stage put on it: trained in any case, and alone with `train: head`, which quantized weights allow.
    pub head: Option<&'a [String]>,
    /// What has no part in the loss.
    pub idle: &'a dyn Fn(&str) -> bool,
}

/// Sets what is trained: the adapter's parameters and a reward model's head, or without an adapter the head and what is chosen; says how many.
pub(crate) fn choose_trained(loaded: &mut Loaded, train: &Train, cx: &dyn Reporter) -> Result<()> {
    let trainee = Trainee {
        adapted: loaded.adapter.is_some(),
        packed: loaded.model.packed_values(),
        params: &mut loaded.params,
        head: None,
        idle: &|_| false,
    };
    choose(trainee, train, cx)
}

/// The same of any model.
pub(crate) fn choose(trainee: Trainee<'_>, train: &Train, cx: &dyn Reporter) -> Result<()> {
    let Trainee {
        params,
        adapted,
        packed,
        head,
        idle,
    } = trainee;
    let choice = chosen(train)?;
    if adapted && choice != Choice::All {
        bail!(
            "`train` chooses among the weights of a model without an adapter, but this model has an adapter, and that is what is trained: leave \
             `train` out, or train the model that the adapter was attached to"
        );
    }
    let alone = head.is_some() && choice == Choice::Head;
    if !adapted && packed > 0 && !alone {
        bail!(
            "the weights of this model are quantized and can't be trained: attach an adapter with `lora`, or train the model that was quantized{}",
            match head {
                Some(_) => ", or only the head with `train: head`",
                None => "",
            }
        );
    }
    let mut chosen = match alone {
        true => BTreeSet::new(),
        false => choice.of(params.names()).context("`train`")?,
    };
    let named = chosen.clone();
    chosen.retain(|name| !idle(name));
    ensure!(
        alone || !chosen.is_empty(),
        "`train`: {} would learn nothing, since the loss does not depend on it; name other parameters",
        named.into_iter().take(3).collect::<Vec<_>>().join(", ")
    );
    let of_head = |name: &str| head.is_some_and(|head| head.iter().any(|other| other == name));
    params.train(|name| {
        let own = match adapted {
            true => ml::adapter::is_parameter(name),
            false => chosen.contains(name),
        };
        own || name == ml::reward::HEAD || of_head(name)
    });
    let (trained, all) = params.count();
    let all = all + packed;
    let part = 100.0 * trained as f64 / all as f64;
    cx.note(
        Level::Info,
        &format!("{trained} of {all} parameters are trained ({part:.2}%)"),
    );
    Ok(())
}

/// Trains on an objective, with snapshots; the steps that were taken.
pub(crate) fn train<O: Objective>(
    job: &Job,
    cx: &dyn Reporter,
    training: &Training,
    params: &Params,
    objective: &mut O,
    counted: Counted,
) -> Result<Vec<StepRow>> {
    let plan = plan(training, objective.rows());
    let total = plan.steps(objective.rows());
    let mut updater = updater(training, params, total)?;
    say_what_does_little(training, params, total, cx)?;
    let mut snapshots = Snapshots::new(
        job.snapshots
            .as_deref()
            .context("a training has a place for snapshots")?,
        circumstances(job, training.micro_batch)?,
    );
    let resume = snapshots.newest(&mut |why| cx.note(Level::Warning, why));
    let mut rows: Vec<StepRow> = match &resume {
        Some(folder) => {
            let rows: Vec<StepRow> =
                serde_json::from_slice(&std::fs::read(folder.join("steps.json"))?)?;
            cx.note(
                Level::Info,
                &format!("goes on from the snapshot after step {}", rows.len()),
            );
            rows
        }
        None => Vec::new(),
    };
    let mut last = Instant::now();
    let mut written: Option<PathBuf> = None;
    let mut stopped = false;
    let every = Duration::from_secs(training.snapshot_seconds);
    fit(
        objective,
        params,
        &mut updater,
        &plan,
        resume.as_deref(),
        &mut |step: &Step| {
            // The snapshot that the step before asked for is whole by now.
            if let Some(folder) = written.take() {
                save_steps(&folder, &rows)?;
                snapshots.finish()?;
                last = Instant::now();
            }
            report(cx, step);
            rows.push(step_row(step, counted));
            stopped = cx.cancelled();
            if stopped && step.index < step.of {
                let folder = snapshots.begin(step.index);
                written = Some(folder.clone());
                return Ok(Next::SnapshotAndStop(folder));
            }
            if last.elapsed() >= every && step.index < step.of {
                let folder = snapshots.begin(step.index);
                written = Some(folder.clone());
                return Ok(Next::Snapshot(folder));
            }
            Ok(Next::Go)
        },
    )?;
    if let Some(folder) = written.take() {
        save_steps(&folder, &rows)?;
        snapshots.finish()?;
    }
    if stopped {
        return Err(Cancelled.into());
    }
    Ok(rows)
}

/// A last bit depends on these, and on nothing else that is not in the record.
pub(crate) fn circumstances(job: &Job, micro_batch: usize) -> Result<Circumstances> {
    let mut found: Circumstances = match serde_json::to_value(ml::place::numerics())? {
        serde_json::Value::Object(map) => map
            .into_iter()
            .map(|(name, value)| (name, value.to_string().trim_matches('"').to_owned()))
            .collect(),
        _ => Circumstances::new(),
    };
    found.insert("device".to_owned(), job.device.clone());
    found.insert("micro_batch".to_owned(), micro_batch.to_string());
    found.insert("format".to_owned(), ml::state::VERSION.to_string());
    Ok(found)
}

fn plan(params: &Training, rows: usize) -> Plan {
    let per_epoch = rows.div_ceil(params.batch);
    let whole = (per_epoch as f64 * params.epochs).ceil() as usize;
    let steps = params.max_steps.map_or(whole, |limit| limit as usize);
    Plan {
        seed: params.seed,
        epochs: steps.div_ceil(per_epoch.max(1)),
        batch: params.batch,
        micro_batch: params.micro_batch.min(params.batch),
        max_steps: Some(steps),
        shuffle: true,
    }
}

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
        ensure!(
            choice::depths(params).len() > 1,
            "`layer_decay` lowers the rate from layer to layer, and all that is trained is at one depth: leave it out, or give `learning_rate`"
        );
        choice::by_depth(params, training.layer_decay)
    } else {
        BTreeMap::new()
    };
    let own = choice::by_name(params, &training.learning_rates).context("`learning_rates`")?;
    for (name, rate) in own {
        *factors.entry(name).or_insert(1.0) *= rate / training.learning_rate;
    }
    let undecayed = choice::undecayed(params);
    let decays = params
        .trained()
        .any(|(name, _)| !undecayed.iter().any(|other| other == name));
    ensure!(
        decays || training.weight_decay == 0.0,
        "`weight_decay` does nothing here: norms, biases, the numbers of (IA)³, the lengths of DoRA and virtual tokens do not decay, and nothing else is trained; \
         leave it out"
    );
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
            choice::turns(params, every).context("`unfreeze_every`")
        }
        None => Ok(BTreeMap::new()),
    }
}

/// Says what is allowed and does less than it seems: states that are not packed, layers whose turn does not come.
fn say_what_does_little(
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

fn report(cx: &dyn Reporter, step: &Step) {
    let mut values: BTreeMap<String, f64> = step
        .means
        .iter()
        .map(|(n, v)| ((*n).to_owned(), *v))
        .collect();
    let speed = step.tokens as f64 / step.seconds.max(1e-9);
    values.extend([
        ("loss".to_owned(), step.loss),
        ("learning_rate".to_owned(), step.lr),
        ("grad_norm".to_owned(), step.grad_norm),
        ("tokens_per_second".to_owned(), speed),
        ("epoch".to_owned(), step.epoch),
    ]);
    cx.emit(What::Metrics {
        step: step.index as u64,
        values,
    });
    let rate = Some((speed, "tokens/s".to_owned()));
    cx.emit(What::Progress {
        done: step.index as u64,
        total: step.of as u64,
        unit: "steps".to_owned(),
        rate,
    });
}

fn step_row(step: &Step, counted: Counted) -> StepRow {
    StepRow {
        step: step.index,
        epoch: step.epoch,
        loss: step.loss,
        learning_rate: step.lr,
        grad_norm: step.grad_norm,
        tokens: step.tokens,
        trained_tokens: (counted == Counted::Tokens).then_some(step.weight),
        rows: (counted == Counted::Rows).then_some(step.weight),
        means: step
            .means
            .iter()
            .map(|(n, v)| ((*n).to_owned(), *v))
            .collect(),
    }
}

fn save_steps(folder: &Path, rows: &[StepRow]) -> Result<()> {
    std::fs::write(folder.join("steps.json"), serde_json::to_vec(rows)?)
        .with_context(|| format!("{} can't be written", folder.display()))
}

/// The metrics of a training: every step, and in the summary the first and the last.
pub(crate) fn metrics(job: &Job, rows: &[StepRow]) -> Result<Draft> {
    let path = job.out.join("metrics.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&json!({ "steps": rows }))?)?;
    let (first, last) = (
        rows.first().context("no step was taken")?,
        rows.last().context("no step was taken")?,
    );
    Ok(Draft {
        artifact: ArtifactType::Metrics,
        files: vec![("metrics.json".to_owned(), path)],
        refs: BTreeMap::new(),
        summary: [
            ("steps".to_owned(), json!(rows.len())),
            ("first_loss".to_owned(), json!(first.loss)),
            ("last_loss".to_owned(), json!(last.loss)),
            (
                "tokens".to_owned(),
                json!(rows.iter().map(|r| r.tokens).sum::<usize>()),
            ),
        ]
        .into(),
    })
}

/// Rows of a port must fit the model's positions: said before the first step, not when such a row's turn comes.
pub(crate) fn check_lengths(
    port: &str,
    lengths: impl Iterator<Item = usize>,
    positions: usize,
) -> Result<()> {
    let longest = lengths.enumerate().max_by_key(|(_, length)| *length);
    match longest {
        Some((row, length)) if length > positions => bail!(
            "row {} of `{port}` has {length} tokens, and the model {positions} positions: set `max_length` to {positions} or less",
            row + 1
        ),
        _ => Ok(()),
    }
}

/// Every step looks at its gradients; nobody has looked at what the last one made of the weights.
pub(crate) fn check_finite(params: &Params) -> Result<()> {
    for (name, tensor) in params.trained() {
        if tensor.isfinite().all().int64_value(&[]) == 0 {
            bail!(
                "after the last step `{name}` is not finite: the training diverged; a smaller learning rate or a longer warm-up helps"
            );
        }
    }
    Ok(())
}

/// The trained model: the adapter on its base, or every weight.
pub(crate) fn trained_model(job: &Job, view: &ArtifactView, loaded: &Loaded) -> Result<Draft> {
    check_finite(&loaded.params)?;
    match &loaded.adapter {
        Some(config) => adapter(job, view, loaded, config.weights_file()),
        None => whole_model(job, view, loaded),
    }
}

/// The same base with the trained adapter.
fn adapter(job: &Job, view: &ArtifactView, loaded: &Loaded, name: &str) -> Result<Draft> {
    let path = job.out.join(name);
    ml::adapter::save(&loaded.model, &path)?;
    let config = view.file("adapter_config.json")?.clone();
    let files = vec![
        (name.to_owned(), path),
        ("adapter_config.json".to_owned(), config),
    ];
    adapter_draft(view.reference("base")?, files, view.summary.clone())
}

/// Every weight, in the model's own dtype, as a Hugging Face folder has them.
fn whole_model(job: &Job, view: &ArtifactView, loaded: &Loaded) -> Result<Draft> {
    let path = job.out.join("model.safetensors");
    let tensors: Vec<_> = loaded
        .params
        .iter()
        .map(|(name, p)| (name.to_owned(), p.tensor.detach()))
        .collect();
    ml::tensors::write(&path, &tensors, &[("format", "pt")])?;
    let mut summary = view.summary.clone();
    summary.remove("stored");
    let files = vec![
        ("model.safetensors".to_owned(), path),
        ("config.json".to_owned(), view.file("config.json")?.clone()),
    ];
    let tokenizer = view.reference("tokenizer")?.digest;
    Ok(Draft {
        artifact: ArtifactType::Model,
        files,
        refs: [("tokenizer".to_owned(), Reference::Artifact(tokenizer))].into(),
        summary,
    })
}

//! What every training stage does around its objective: optimizer and plan from the parameters, snapshots, reports, and the model
//! that comes of it.

mod optimizer;
mod steps;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::Level;
use engine::job::{About as _, Cancelled, Draft, Job, Reference, Reporter};
use kinds::model::adapter_draft;
use kinds::training::{Train, Training};
use ml::Params;
use ml::choice::Choice;
use ml::fit::{Next, Objective, Plan, Step, fit};

use crate::model::Loaded;
use crate::snapshot::{Circumstances, Snapshots};

pub(crate) use optimizer::updater;
pub(crate) use steps::{Counted, metrics};

use optimizer::say_what_does_little;
use steps::{StepRow, report, save_steps, step_row};

// The estimates of memory count the logits of so many rows.
const _: () = assert!(kinds::memory::CHUNK as i64 == ml::loss::CHUNK);

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
        let error = "`train` chooses among the weights of a model without an adapter, but this model has an adapter, and that is what is \
                     trained: leave `train` out, or train the model that the adapter was attached to";
        return Err(anyhow!(error)).about("train");
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
        false => choice
            .of(params.names())
            .context("`train`")
            .about("train")?,
    };
    let named = chosen.clone();
    chosen.retain(|name| !idle(name));
    if !alone && chosen.is_empty() {
        let error = anyhow!(
            "`train`: {} would learn nothing, since the loss does not depend on it; name other parameters",
            named.into_iter().take(3).collect::<Vec<_>>().join(", ")
        );
        return Err(error).about("train");
    }
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

/// Rows of a port must fit the model's positions: said before the first step, not when such a row's turn comes.
pub(crate) fn check_lengths(
    port: &str,
    lengths: impl Iterator<Item = usize>,
    positions: usize,
) -> Result<()> {
    let longest = lengths.enumerate().max_by_key(|(_, length)| *length);
    match longest {
        Some((row, length)) if length > positions => Err(anyhow!(
            "row {} of `{port}` has {length} tokens, and the model {positions} positions: set `max_length` to {positions} or less",
            row + 1
        ))
        .about(port),
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

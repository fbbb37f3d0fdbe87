//! `sft`: the training loop, its snapshots, and what comes of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use data::tokens::Tokens;
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::{Level, What};
use engine::job::{Cancelled, Draft, Drafts, Job, Reference, Reporter};
use kinds::model::adapter_draft;
use kinds::sft::Sft;
use ml::fit::{Next, Plan, Step, fit};
use ml::optimizer::{AdamW, Options, Schedule, Shape};
use ml::update::Updater;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::{Loaded, load};
use crate::snapshot::{Circumstances, Snapshots};

/// What the metrics artifact says of a step; no times, so that equal trainings give equal bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct StepRow {
    step: usize,
    epoch: f64,
    loss: f64,
    learning_rate: f64,
    grad_norm: f64,
    tokens: usize,
    trained_tokens: f64,
    #[serde(flatten)]
    means: BTreeMap<String, f64>,
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Sft = job.params()?;
    let view = job.input("model")?;
    let tokens = Tokens::open(job.input("tokens")?.file("tokens.arrow")?)?;
    let mut loaded = load(view, job)?;
    let full = loaded.adapter.is_none();
    loaded.params.train(|name| full || is_adapter(name));
    let (trained, all) = loaded.params.count();
    let part = 100.0 * trained as f64 / all as f64;
    cx.note(
        Level::Info,
        &format!("{trained} of {all} parameters are trained ({part:.2}%)"),
    );

    let plan = plan(&params, tokens.len());
    let mut updater = updater(&params, &loaded, plan.steps(tokens.len()))?;
    let mut snapshots = Snapshots::new(
        job.snapshots
            .as_deref()
            .context("a training has a place for snapshots")?,
        circumstances(job, &params)?,
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
    let mut objective = ml::sft::Sft {
        model: &loaded.model,
        rows: tokens.len(),
        read: Box::new(|index| row(&tokens, index)),
        chunk: ml::loss::CHUNK,
    };
    let mut last = Instant::now();
    let mut written: Option<PathBuf> = None;
    let mut stopped = false;
    let every = Duration::from_secs(params.snapshot_seconds);
    fit(
        &mut objective,
        &loaded.params,
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
            rows.push(step_row(step));
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
    drop(objective);
    if let Some(folder) = written.take() {
        save_steps(&folder, &rows)?;
        snapshots.finish()?;
    }
    if stopped {
        return Err(Cancelled.into());
    }
    let metrics = metrics(job, &rows)?;
    let model = if full {
        whole_model(job, view, &loaded)?
    } else {
        adapter(job, view, &loaded)?
    };
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
}

/// A last bit depends on these, and on nothing else that is not in the record.
fn circumstances(job: &Job, params: &Sft) -> Result<Circumstances> {
    let mut found: Circumstances = match serde_json::to_value(ml::place::numerics())? {
        serde_json::Value::Object(map) => map
            .into_iter()
            .map(|(name, value)| (name, value.to_string().trim_matches('"').to_owned()))
            .collect(),
        _ => Circumstances::new(),
    };
    found.insert("device".to_owned(), job.device.clone());
    found.insert("micro_batch".to_owned(), params.micro_batch.to_string());
    found.insert("format".to_owned(), ml::state::VERSION.to_string());
    Ok(found)
}

fn is_adapter(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

fn plan(params: &Sft, rows: usize) -> Plan {
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

fn updater(params: &Sft, loaded: &Loaded, total: usize) -> Result<Updater> {
    let shape = match params.schedule.as_str() {
        "constant" => Shape::Constant,
        "linear" => Shape::Linear,
        "cosine" => Shape::Cosine,
        other => bail!("`{other}` is not a schedule"),
    };
    let options = Options {
        beta1: params.beta1,
        beta2: params.beta2,
        eps: params.epsilon,
        weight_decay: params.weight_decay,
    };
    let undecayed = loaded
        .params
        .iter()
        .map(|(n, _)| n)
        .filter(|n| n.contains("norm") || n.ends_with(".bias"));
    Ok(Updater {
        optimizer: AdamW::new(options, undecayed.map(str::to_owned).collect()),
        schedule: Schedule {
            shape,
            peak: params.learning_rate,
            warmup: (total as f64 * params.warmup).ceil() as usize,
            total,
        },
        clip: (params.max_grad_norm > 0.0).then_some(params.max_grad_norm),
    })
}

/// Row `index` of the tokens.
pub(crate) fn row(tokens: &Tokens, index: usize) -> Result<ml::sft::Row> {
    let row = tokens.row(index)?;
    Ok(ml::sft::Row {
        tokens: row.ids.iter().map(|id| i64::from(*id)).collect(),
        trained: row.mask(),
        documents: Vec::new(),
    })
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

fn step_row(step: &Step) -> StepRow {
    StepRow {
        step: step.index,
        epoch: step.epoch,
        loss: step.loss,
        learning_rate: step.lr,
        grad_norm: step.grad_norm,
        tokens: step.tokens,
        trained_tokens: step.weight,
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

fn metrics(job: &Job, rows: &[StepRow]) -> Result<Draft> {
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

/// The same base with the trained adapter.
fn adapter(job: &Job, view: &ArtifactView, loaded: &Loaded) -> Result<Draft> {
    let path = job.out.join("adapter_model.safetensors");
    ml::lora::save(&loaded.model.linears(), &path)?;
    let config = view.file("adapter_config.json")?.clone();
    let files = vec![
        ("adapter_model.safetensors".to_owned(), path),
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

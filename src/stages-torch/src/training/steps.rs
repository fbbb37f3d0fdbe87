//! What is told of the steps of a training: as events while it runs, in its snapshots, and as metrics at its end.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use engine::artifact::ArtifactType;
use engine::event::What;
use engine::job::{Draft, Job, Reporter};
use ml::fit::Step;
use serde::{Deserialize, Serialize};
use serde_json::json;

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

/// Tells the events of a step.
pub(super) fn report(cx: &dyn Reporter, step: &Step) {
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

/// The row of a step.
pub(super) fn step_row(step: &Step, counted: Counted) -> StepRow {
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

/// Keeps the rows beside a snapshot.
pub(super) fn save_steps(folder: &Path, rows: &[StepRow]) -> Result<()> {
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

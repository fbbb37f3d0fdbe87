//! `load_reward_model`: the files are checked, not read; what judges need besides them is in the summary.

use anyhow::{Context, Result, anyhow, ensure};
use engine::artifact::ArtifactType;
use engine::job::{About as _, Drafts, Job, Reporter};
use kinds::load_reward_model::{DEVIATION, LoadRewardModel, MEAN};
use serde_json::{Map, Value, json};

use crate::load_model::{Parts, hugging_face, model_draft, source_files};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: LoadRewardModel = job.params()?;
    let all = source_files(job)?;
    if all.iter().any(|(name, _)| name.ends_with(".gguf")) {
        let error = "a GGUF file has no head for rewards; a reward model is a Hugging Face folder";
        return Err(anyhow!(error)).about("source");
    }
    let parts = hugging_face(&all).about("source")?;
    let (mean, deviation) = moments(&params, &parts).about("source")?;
    let artifact = ArtifactType::RewardModel;
    let mut draft = model_draft(artifact, parts, &params.dtype, job, cx)?;
    draft.summary.insert("mean".to_owned(), json!(mean));
    draft
        .summary
        .insert("deviation".to_owned(), json!(deviation));
    Ok([("model".to_owned(), draft)].into())
}

/// What makes rewards comparable: as given, else as the configuration says, else 0 and 1.
fn moments(params: &LoadRewardModel, parts: &Parts) -> Result<(f64, f64)> {
    let path = parts.0.iter().find(|(name, _)| name == "config.json");
    let (_, path) = path.context("BUG: the configuration was found")?;
    let config: Map<String, Value> = serde_json::from_slice(&std::fs::read(path)?)?;
    let said = |key: &str, usual: f64| match config.get(key) {
        None | Some(Value::Null) => Ok(usual),
        Some(value) => value
            .as_f64()
            .with_context(|| format!("config.json: {key} should be a number, but is {value}")),
    };
    let (mean, deviation) = (said(MEAN, 0.0)?, said(DEVIATION, 1.0)?);
    let deviation = params.deviation.unwrap_or(deviation);
    ensure!(
        deviation > 0.0,
        "config.json: {DEVIATION} is {deviation}, and rewards are divided by it: give `deviation`"
    );
    Ok((params.mean.unwrap_or(mean), deviation))
}

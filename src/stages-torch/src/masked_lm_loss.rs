//! `masked_lm_loss`: how well encoders tell hidden tokens of texts.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use data::tokens::Tokens;
use engine::artifact::ArtifactType;
use engine::event::{Level, What};
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::masked_lm_loss::MaskedLmLoss;
use ml::sft::Scores;
use serde_json::{Map, json};

use crate::masked_lm::{LoadedEncoder, load_encoder, row};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: MaskedLmLoss = job.params()?;
    let rows: BTreeMap<_, _> = job
        .inputs_of("tokens")?
        .iter()
        .map(|(name, view)| (name.as_str(), view))
        .collect();
    let mut models = Map::new();
    for (name, view) in job.inputs_of("models")? {
        let own = rows.get(name.as_str());
        let own = own.with_context(|| format!("BUG: the encoder `{name}` has no tokens"))?;
        let tokens = Tokens::open(own.file("tokens.arrow")?)?;
        let encoder = load_encoder(view, job, params.mask_probability, &tokens)
            .with_context(|| format!("the encoder `{name}`"))?;
        ensure!(
            encoder.model.has_masked_head(),
            "the encoder `{name}` has no head for masked tokens, so that it can tell none: train one on it first, `masked_lm` with `train: head`"
        );
        let scores = measure(&encoder, &tokens, &params, name, cx)?;
        let (loss, accuracy) = (scores.mean(), scores.correct as f64 / scores.count as f64);
        let values = [
            (format!("{name}/loss"), loss),
            (format!("{name}/perplexity"), loss.exp()),
            (format!("{name}/token_accuracy"), accuracy),
        ];
        cx.emit(What::Metrics {
            step: 0,
            values: values.into(),
        });
        if !loss.is_finite() {
            let text = format!(
                "{name}: the loss is {loss}: the encoder's weights are damaged, or its training diverged"
            );
            cx.note(Level::Warning, &text);
        }
        let own = json!({"loss": loss, "perplexity": loss.exp(), "token_accuracy": accuracy, "tokens": scores.count});
        models.insert(name.clone(), own);
        ml::torch::release_memory();
    }
    let path = job.out.join("metrics.json");
    let text = serde_json::to_vec_pretty(&json!({ "models": models }))?;
    std::fs::write(&path, text)?;
    let draft = Draft {
        artifact: ArtifactType::Metrics,
        files: vec![("metrics.json".to_owned(), path)],
        refs: BTreeMap::new(),
        summary: models.into_iter().collect(),
    };
    Ok([("metrics".to_owned(), draft)].into())
}

/// The scores of an encoder on all rows.
fn measure(
    encoder: &LoadedEncoder,
    tokens: &Tokens,
    params: &MaskedLmLoss,
    name: &str,
    cx: &dyn Reporter,
) -> Result<Scores> {
    let mut total = Scores::default();
    let (mut seen, start) = (0usize, Instant::now());
    for first in (0..tokens.len()).step_by(params.micro_batch) {
        cx.check()?;
        let last = (first + params.micro_batch).min(tokens.len());
        let rows = (first..last)
            .map(|index| Ok((index, row(tokens, index)?)))
            .collect::<Result<Vec<_>>>()?;
        seen += rows.iter().map(|(_, row)| row.tokens.len()).sum::<usize>();
        let (model, masking) = (&encoder.model, &encoder.masking);
        let scores = ml::masked::evaluate(model, masking, params.seed, rows, ml::loss::CHUNK)?;
        total.add(scores);
        let rate = seen as f64 / start.elapsed().as_secs_f64().max(1e-9);
        cx.emit(What::Progress {
            done: last as u64,
            total: tokens.len() as u64,
            unit: format!("rows of {name}"),
            rate: Some((rate, "tokens/s".to_owned())),
        });
    }
    ensure!(
        total.count > 0,
        "no token of the rows is told: there is nothing to measure"
    );
    Ok(total)
}

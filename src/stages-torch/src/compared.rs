//! What other weights do to a model: its predictions on rows before, against those of the file that was written.

use std::path::Path;

use anyhow::{Result, ensure};
use data::Tokens;
use engine::event::{Level, What};
use engine::job::{Job, Reporter};
use engine::metric::short;
use formats::{LlamaConfig, Weights};
use ml::divergence::{CHUNK, Divergence, compare};
use ml::{Llama, Params, Pass, Place};
use serde_json::{Value, json};

use crate::sft::row;

/// The model afterwards.
pub(crate) struct After<'a> {
    pub config: &'a LlamaConfig,
    pub place: Place,
    /// The safetensors file.
    pub path: &'a Path,
}

/// What the model predicts before on the job's tokens against what it predicts after, read back from its file.
pub(crate) fn measure(
    job: &Job,
    micro_batch: usize,
    before: &Llama,
    after: &After<'_>,
    cx: &dyn Reporter,
) -> Result<Divergence> {
    let tokens = Tokens::open(job.input("tokens")?.file("tokens.arrow")?)?;
    let file = ("model.safetensors".to_owned(), after.path.to_owned());
    let weights = Weights::open_files(&[file])?;
    let mut parameters = Params::new();
    let after = Llama::load(after.config, &weights, after.place, &mut parameters)?;
    let mut found = Divergence::default();
    for first in (0..tokens.len()).step_by(micro_batch) {
        cx.check()?;
        let last = (first + micro_batch).min(tokens.len());
        let rows = (first..last)
            .map(|index| row(&tokens, index))
            .collect::<Result<Vec<_>>>()?;
        found.add(compare(before, &after, Pass::eval(), &rows, CHUNK)?);
        cx.progress(last as u64, tokens.len() as u64, "rows compared");
    }
    ensure!(
        found.count > 0,
        "no token of the rows in `data` counts: there is nothing to measure. Give other rows, or say `loss_on: all`"
    );
    Ok(found)
}

/// Tells people what was measured; the numbers by their names.
pub(crate) fn tell(found: &Divergence, cx: &dyn Reporter) -> Vec<(String, Value)> {
    let count = found.count as f64;
    let values = [
        ("kl", found.kl / count),
        ("kl_max", found.largest),
        ("loss_before", found.losses[0] / count),
        ("loss_after", found.losses[1] / count),
    ];
    let [mean, most, old, new] = values.map(|(_, value)| short(value));
    cx.note(
        Level::Info,
        &format!(
            "over {} tokens KL(before ‖ after) is {mean} nats, at most {most}; the loss was {old} and is {new}",
            found.count
        ),
    );
    let named = values.map(|(name, value)| (name.to_owned(), value));
    cx.emit(What::Metrics {
        step: 0,
        values: named.clone().into(),
    });
    let numbers = named.into_iter().map(|(name, value)| (name, json!(value)));
    numbers
        .chain([("tokens".to_owned(), json!(found.count))])
        .collect()
}

//! `reference`: log-probabilities of completions under a model, one flat f32 tensor in the order of the completions.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::What;
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::reference::Reference;
use ml::completions::{Batch, Row};
use ml::{Kind, Pass, Tensor, no_grad};

use crate::completions::Groups;
use crate::model::{Loaded, load};

const NAME: &str = "log_probabilities";
const FILE: &str = "log_probabilities.safetensors";

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Reference = job.params()?;
    let groups = Groups::read(job.input("tokens")?)?;
    let loaded = load(job.input("model")?, job)?;
    let rows = groups.rows()?;
    let all = log_probabilities(&loaded, &rows, params.micro_batch, cx)?;
    let flat: Vec<f32> = all.concat();
    let path = job.out.join(FILE);
    let tensor = Tensor::from_slice(&flat);
    ml::tensors::write(&path, &[(NAME.to_owned(), tensor)], &[])?;
    ml::torch::release_memory();
    let mean = flat.iter().map(|x| f64::from(*x)).sum::<f64>() / flat.len().max(1) as f64;
    let draft = Draft {
        artifact: ArtifactType::LogProbabilities,
        files: vec![(FILE.to_owned(), path)],
        refs: BTreeMap::new(),
        summary: [
            ("tokens".to_owned(), flat.len().into()),
            ("completions".to_owned(), rows.len().into()),
            ("mean".to_owned(), mean.into()),
        ]
        .into(),
    };
    Ok([(NAME.to_owned(), draft)].into())
}

/// log π of each token of each completion, in the order of the rows.
pub(crate) fn log_probabilities(
    loaded: &Loaded,
    rows: &[Row],
    micro_batch: usize,
    cx: &dyn Reporter,
) -> Result<Vec<Vec<f32>>> {
    // Rows of like length go together; the result is in the order of `rows`.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&index| rows[index].tokens.len());
    let mut all: Vec<Vec<f32>> = vec![Vec::new(); rows.len()];
    let (start, mut done, mut tokens) = (Instant::now(), 0, 0);
    for chosen in order.chunks(micro_batch) {
        cx.check()?;
        let own: Vec<Row> = chosen.iter().map(|&index| rows[index].clone()).collect();
        let values: Vec<f32> = no_grad(|| -> Result<_> {
            let batch = Batch::new(&loaded.model, &own)?;
            let found = batch.values(&loaded.model, Pass::eval(), 1.0, false)?;
            Ok(Vec::try_from(found.log_probabilities.to_kind(Kind::Float))?)
        })?;
        let mut values = values.into_iter();
        for (&index, row) in chosen.iter().zip(&own) {
            all[index] = values.by_ref().take(row.completion()).collect();
            tokens += row.tokens.len();
        }
        done += chosen.len();
        let rate = tokens as f64 / start.elapsed().as_secs_f64().max(1e-9);
        cx.emit(What::Progress {
            done: done as u64,
            total: rows.len() as u64,
            unit: "completions".to_owned(),
            rate: Some((rate, "tokens/s".to_owned())),
        });
    }
    Ok(all)
}

/// The log-probabilities of each completion of `groups`.
pub(crate) fn read(view: &ArtifactView, groups: &Groups) -> Result<Vec<Vec<f32>>> {
    let path = view.file(FILE)?;
    let stored = ml::tensors::read_file(path)?;
    let (_, tensor) = stored
        .first()
        .with_context(|| format!("{} is empty", path.display()))?;
    let flat: Vec<f32> = Vec::try_from(tensor)?;
    let mut rest = flat.as_slice();
    let mut all = Vec::with_capacity(groups.completions.len());
    for row in groups.rows()? {
        ensure!(
            rest.len() >= row.completion(),
            "the reference's log-probabilities are of other completions"
        );
        let (own, after) = rest.split_at(row.completion());
        all.push(own.to_vec());
        rest = after;
    }
    ensure!(
        rest.is_empty(),
        "the reference's log-probabilities are of other completions"
    );
    Ok(all)
}

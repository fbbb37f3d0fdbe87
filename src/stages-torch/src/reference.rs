//! `reference`: log-probabilities of completions under a model, one flat f32 tensor in the order of the completions.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::job::{Draft, Drafts, Job, Reporter};
use formats::TokenizerFiles;
use kinds::reference::Reference;
use ml::Tensor;

use crate::completions::{Groups, log_probabilities};
use crate::model::{Loaded, load};

const NAME: &str = "log_probabilities";
const FILE: &str = "log_probabilities.safetensors";

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Reference = job.params()?;
    let groups = Groups::read(job.input("tokens")?)?;
    let loaded = load(job.input("model")?, job)?;
    check_tokenizer(job, &loaded)?;
    let rows = groups.rows()?;
    let all = log_probabilities(
        &loaded.model,
        &rows,
        &groups.ranges,
        params.micro_batch,
        "completions",
        cx,
    )?;
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

/// The tokens are the policy's: the reference must mean the same by them.
fn check_tokenizer(job: &Job, loaded: &Loaded) -> Result<()> {
    let theirs = job.input("tokens")?.reference("tokenizer")?;
    let own = job.input("model")?.reference("tokenizer")?;
    if own.digest == theirs.digest {
        return Ok(());
    }
    let files = TokenizerFiles::from_folder_files(&theirs.files)?;
    ensure!(
        files.tokenizer()?.get_vocab(true) == loaded.encoder.tokenizer().get_vocab(true),
        "the reference has another tokenizer than the policy: log-probabilities of other tokens can't be compared. Take a model of the same \
         family"
    );
    Ok(())
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

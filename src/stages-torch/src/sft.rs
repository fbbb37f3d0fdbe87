//! `sft`: supervised fine-tuning.

use anyhow::Result;
use data::tokens::Tokens;
use engine::job::{Drafts, Job, Reporter};
use kinds::sft::Sft;

use crate::model::load;
use crate::training::{Counted, check_lengths, choose_trained, metrics, train, trained_model};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Sft = job.params()?;
    let view = job.input("model")?;
    let tokens = Tokens::open(job.input("tokens")?.file("tokens.arrow")?)?;
    let mut loaded = load(view, job)?;
    let positions = loaded.model.positions(ml::Pass::eval());
    check_lengths("data", tokens.lengths()?.into_iter(), positions)?;
    choose_trained(&mut loaded, &params.training.train, cx)?;
    loaded.model.checkpointing = params.training.checkpointing;
    let mut objective = ml::sft::Sft {
        model: &loaded.model,
        rows: tokens.len(),
        read: Box::new(|index| row(&tokens, index)),
        chunk: ml::loss::CHUNK,
    };
    let steps = train(
        job,
        cx,
        &params.training,
        &loaded.params,
        &mut objective,
        Counted::Tokens,
    )?;
    drop(objective);
    let metrics = metrics(job, &steps)?;
    let model = trained_model(job, view, &loaded)?;
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
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

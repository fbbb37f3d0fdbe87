//! What `dpo`, `cpo` and `orpo` share: groups of completions, the reference, and the training around the objective.

use anyhow::Result;
use engine::job::{Drafts, Job, Reporter};
use kinds::training::Training;
use ml::preference::{Group, Method, Preference};

use crate::completions::Groups;
use crate::model::load;
use crate::reference;
use crate::training::{Counted, choose_trained, metrics, train, trained_model};

/// Trains by a method on groups of completions, with the reference where one was prepared.
pub(crate) fn learn(
    job: &Job,
    cx: &dyn Reporter,
    training: &Training,
    groups: Groups,
    method: Method,
) -> Result<Drafts> {
    let view = job.input("model")?;
    let reference = match job.inputs.contains_key("reference") {
        true => Some(reference::read(job.input("reference")?, &groups)?),
        false => None,
    };
    let mut loaded = load(view, job)?;
    choose_trained(&mut loaded, &training.train, cx)?;
    loaded.model.checkpointing = training.checkpointing;
    let read = |index: usize| {
        let (rows, value) = groups.group(index)?;
        let reference = reference.as_ref().map(|all| {
            let own = groups.range(index);
            all[own].to_vec()
        });
        Ok(Group {
            rows,
            reference: reference.unwrap_or_default(),
            value,
        })
    };
    let mut objective = Preference::new(&loaded.model, groups.len(), Box::new(read), method);
    let params = &loaded.params;
    let steps = train(job, cx, training, params, &mut objective, Counted::Rows)?;
    drop(objective);
    let metrics = metrics(job, &steps)?;
    let model = trained_model(job, view, &loaded)?;
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
}

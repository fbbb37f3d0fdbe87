//! `ia3`: needs the names and shapes of linear layers, no tensors.

use std::path::Path;

use anyhow::{Error, Result, anyhow};
use engine::job::{AboutWord, Drafts, Job, Reporter};
use formats::Dtype;
use formats::peft::{IA3_FEEDFORWARD, IA3_TARGETS, Ia3Config, choose_targets, tensor_key};
use kinds::ia3::Ia3;
use kinds::lora::Targets;
use kinds::model::ModelParts;
use serde_json::json;

use crate::adapter;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Ia3 = job.params()?;
    let model = job.input("model")?;
    let parts = ModelParts::of(model)?;
    let linears = adapter::linears(&parts)?;
    let bare = adapter::is_bare(&parts)?;
    let names: Vec<&str> = linears.iter().map(|(name, ..)| name.as_str()).collect();
    let wrong =
        |(field, error): (&str, Error)| AboutWord::of(field, error.context(format!("`{field}`")));
    let (matched, fed) = chosen(&params, &names).map_err(wrong)?;
    let mut tensors: Vec<adapter::Tensor> = Vec::new();
    let mut trainable = 0;
    for (module, rows, columns) in &linears {
        cx.check()?;
        if !matched.contains(module) {
            continue;
        }
        let (count, shape) = match fed.contains(module) {
            true => (*columns, vec![1, *columns]),
            false => (*rows, vec![*rows, 1]),
        };
        let ones = 1.0f32.to_le_bytes().repeat(count);
        let key = tensor_key(adapter::written(bare, module), "ia3_l");
        tensors.push((key, Dtype::F32, shape, ones));
        trainable += count;
    }
    let mut lists = adapter::patterns(&[&matched, &fed], &names, bare)?.into_iter();
    let config = Ia3Config {
        target_modules: lists.next().unwrap_or_default(),
        feedforward_modules: lists.next().unwrap_or_default(),
        task_type: adapter::task_type(&names),
        ..Ia3Config::default()
    };
    let summary = [
        ("adapter".to_owned(), json!("ia3")),
        ("targets".to_owned(), json!(targets(&params))),
        ("modules".to_owned(), json!(matched.len())),
        ("feedforward".to_owned(), json!(fed.len())),
        ("trainable".to_owned(), json!(trainable)),
    ];
    let save = |path: &Path| config.save(path);
    let draft = adapter::draft(job, model, &tensors, save, summary.into())?;
    Ok([("model".to_owned(), draft)].into())
}

/// The patterns of the layers that are adapted.
fn targets(params: &Ia3) -> Vec<String> {
    match &params.targets {
        Some(targets) => targets.patterns(),
        None => IA3_TARGETS.map(str::to_owned).into(),
    }
}

/// Two lists of modules.
type Lists = (Vec<String>, Vec<String>);

/// The adapted layers, and those of them whose inputs are scaled, in the order of `names`; or the field that is wrong, and why.
pub(crate) fn chosen(params: &Ia3, names: &[&str]) -> Result<Lists, (&'static str, Error)> {
    let wrong = |field: &'static str| move |error: Error| (field, error);
    let matched = choose_targets(&targets(params), names)
        .map_err(|error| match params.targets {
            None if names.iter().any(|name| name.starts_with("bert.")) => error.context(
                "the targets that are meant where none are given are a Llama's; PEFT's for an encoder (BERT) are `targets: [key, value, \
                 output.dense]` with `feedforward: [output.dense]`",
            ),
            _ => error,
        })
        .map_err(wrong("targets"))?;
    let patterns = params.feedforward.as_ref().map(Targets::patterns);
    let fed = match patterns.as_deref() {
        None => {
            let ending = format!(".{IA3_FEEDFORWARD}");
            let found = matched.iter().filter(|module| module.ends_with(&ending));
            found.cloned().collect()
        }
        Some([]) => Vec::new(),
        Some(patterns) => choose_targets(patterns, names).map_err(wrong("feedforward"))?,
    };
    // As PEFT has it: a name that adapts nothing is a mistake.
    match fed.iter().find(|module| !matched.contains(module)) {
        None => Ok((matched, fed)),
        Some(lost) => Err((
            "feedforward",
            anyhow!(
                "{lost} is among the feedforward modules, but not among the targets: name it there, too"
            ),
        )),
    }
}

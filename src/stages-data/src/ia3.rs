//! `ia3`: needs the names and shapes of linear layers, no tensors.

use std::path::Path;

use anyhow::Result;
use engine::job::{Drafts, Job, Reporter};
use formats::Dtype;
use formats::peft::{IA3_FEEDFORWARD, IA3_TARGETS, Ia3Config, match_targets, tensor_key};
use kinds::ia3::Ia3;
use kinds::model::ModelParts;
use serde_json::json;

use crate::adapter;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Ia3 = job.params()?;
    let model = job.input("model")?;
    let linears = adapter::linears(&ModelParts::of(model)?)?;
    let names: Vec<&str> = linears.iter().map(|(name, ..)| name.as_str()).collect();
    let targets = match &params.targets {
        Some(targets) => targets.patterns(),
        None => IA3_TARGETS.map(str::to_owned).into(),
    };
    let matched = match_targets(&targets, &names)?;
    let feedforward = match params.feedforward {
        Some(patterns) => patterns,
        None => {
            let ending = format!(".{IA3_FEEDFORWARD}");
            let found = matched.iter().filter(|module| module.ends_with(&ending));
            found.cloned().collect()
        }
    };
    let wanted = Ia3Config {
        target_modules: targets.clone(),
        feedforward_modules: feedforward,
        ..Ia3Config::default()
    };
    let modules = wanted.modules(&names)?;
    let mut tensors: Vec<adapter::Tensor> = Vec::new();
    let mut trainable = 0;
    for (module, rows, columns) in &linears {
        cx.check()?;
        let Some((_, feedforward)) = modules.iter().find(|(name, _)| name == module) else {
            continue;
        };
        let (count, shape) = match *feedforward {
            true => (*columns, vec![1, *columns]),
            false => (*rows, vec![*rows, 1]),
        };
        let ones = 1.0f32.to_le_bytes().repeat(count);
        tensors.push((tensor_key(module, "ia3_l"), Dtype::F32, shape, ones));
        trainable += count;
    }
    let fed: Vec<String> = (modules.iter().filter(|(_, feedforward)| *feedforward))
        .map(|(module, _)| module.clone())
        .collect();
    let mut lists = adapter::patterns(&[&matched, &fed], &names)?.into_iter();
    let config = Ia3Config {
        target_modules: lists.next().unwrap_or_default(),
        feedforward_modules: lists.next().unwrap_or_default(),
        task_type: adapter::task_type(&names),
        ..Ia3Config::default()
    };
    let summary = [
        ("adapter".to_owned(), json!("ia3")),
        ("targets".to_owned(), json!(targets)),
        ("modules".to_owned(), json!(matched.len())),
        ("feedforward".to_owned(), json!(fed.len())),
        ("trainable".to_owned(), json!(trainable)),
    ];
    let save = |path: &Path| config.save(path);
    let draft = adapter::draft(job, model, &tensors, save, summary.into())?;
    Ok([("model".to_owned(), draft)].into())
}

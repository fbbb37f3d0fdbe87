//! `lora`: needs the names and shapes of linear layers and a random stream, no tensors; with `dora` the lengths of their weights' rows.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use data::random::Stream;
use engine::job::{About as _, Drafts, Job, Reporter};
use formats::config::bert::stored_name;
use formats::peft::{AdapterConfig, choose_targets, tensor_key};
use formats::{Dtype, Weights, quantized};
use kinds::lora::Lora;
use kinds::model::ModelParts;
use serde_json::json;

use crate::adapter::{self, Linear};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Lora = job.params()?;
    let model = job.input("model")?;
    let parts = ModelParts::of(model)?;
    let linears = adapter::linears(&parts)?;
    let names: Vec<&str> = linears.iter().map(|(name, ..)| name.as_str()).collect();
    let patterns = params.targets.patterns();
    let matched = choose_targets(&patterns, &names).about("targets")?;
    check_rank(params.r, &matched, &linears).about("r")?;
    let dtype = Dtype::parse(&parts.dtype.to_uppercase())?;
    let weights = match params.dora {
        true => Some(Weights::open_files(parts.base_files())?),
        false => None,
    };
    let bare = adapter::is_bare(&parts)?;
    let mut stream = Stream::new(params.seed, "init");
    let mut tensors: Vec<adapter::Tensor> = Vec::new();
    let mut trainable = 0u64;
    for module in &matched {
        cx.check()?;
        let (_, rows, columns) = linears
            .iter()
            .find(|(name, ..)| name == module)
            .context("BUG: a target is no linear layer")?;
        let key = |part: &str| tensor_key(adapter::written(bare, module), part);
        // Kaiming's bound with a = √5 is √(6 / ((1 + 5) · in)) = 1 / √in.
        let bound = 1.0 / (*columns as f64).sqrt();
        let a: Vec<u8> = (0..params.r * columns)
            .flat_map(|_| (((stream.uniform() * 2.0 - 1.0) * bound) as f32).to_le_bytes())
            .collect();
        tensors.push((key("lora_A"), Dtype::F32, vec![params.r, *columns], a));
        tensors.push((
            key("lora_B"),
            Dtype::F32,
            vec![*rows, params.r],
            vec![0; rows * params.r * 4],
        ));
        trainable += (params.r * (rows + columns)) as u64;
        if let Some(weights) = &weights {
            tensors.push((
                key("lora_magnitude_vector"),
                Dtype::F32,
                vec![*rows],
                lengths(weights, module, [*rows, *columns], dtype)?,
            ));
            trainable += *rows as u64;
        }
    }
    let mut lists = adapter::patterns(&[&matched], &names, bare)?.into_iter();
    let config = AdapterConfig {
        r: params.r,
        lora_alpha: params.alpha,
        lora_dropout: params.dropout,
        target_modules: lists.next().unwrap_or_default(),
        use_rslora: params.rslora,
        use_dora: params.dora,
        task_type: adapter::task_type(&names),
        ..AdapterConfig::default()
    };
    let mut summary = BTreeMap::from([
        ("adapter".to_owned(), json!("lora")),
        ("r".to_owned(), json!(params.r)),
        ("alpha".to_owned(), json!(params.alpha)),
        ("targets".to_owned(), json!(patterns)),
        ("modules".to_owned(), json!(matched.len())),
        ("trainable".to_owned(), json!(trainable)),
    ]);
    if params.dora {
        summary.insert("dora".to_owned(), json!(true));
    }
    let save = |path: &Path| config.save(path);
    let draft = adapter::draft(job, model, &tensors, save, summary)?;
    Ok([("model".to_owned(), draft)].into())
}

/// Refuses a rank that one of the matched layers does not have.
pub(crate) fn check_rank(r: usize, matched: &[String], linears: &[Linear]) -> Result<()> {
    let mut targets = linears.iter().filter(|(name, ..)| matched.contains(name));
    let small = targets.find(|(_, rows, columns)| r > *rows.min(columns));
    if let Some((module, rows, columns)) = small {
        bail!(
            "r = {r} is larger than `{module}` ({rows} × {columns}); the rank is at most {}",
            rows.min(columns)
        );
    }
    Ok(())
}

/// The lengths of the rows of a linear's weight, as bytes of f32: sums in f64, so that they are those that the model finds itself.
fn lengths(weights: &Weights, module: &str, shape: [usize; 2], dtype: Dtype) -> Result<Vec<u8>> {
    let name = format!("{module}.weight");
    let name = stored_name(weights, &name).unwrap_or(name);
    let values = quantized::values(weights, &name, shape, dtype)?;
    weights.release(&name);
    let length = |row: &[f32]| {
        let squares = row.iter().map(|value| f64::from(*value).powi(2));
        squares.sum::<f64>().sqrt() as f32
    };
    let rows = values.chunks(shape[1].max(1));
    Ok(rows.flat_map(|row| length(row).to_le_bytes()).collect())
}

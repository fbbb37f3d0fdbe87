//! `bottleneck`: needs the width and the number of layers of a model and random streams, no tensors.

use std::path::Path;

use anyhow::Result;
use data::random::Stream;
use engine::job::{Drafts, Job, Reporter};
use formats::Dtype;
use formats::peft::{BOTTLENECK_WEIGHTS_FILE, BottleneckConfig, NonLinearity};
use kinds::bottleneck::{Bottleneck, HOULSBY};
use kinds::model::ModelParts;
use serde_json::json;

use crate::adapter;

/// The deviation of fresh weights.
const DEVIATION: f64 = 0.02;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Bottleneck = job.params()?;
    let model = job.input("model")?;
    let shape = adapter::config(&ModelParts::of(model)?)?;
    let config = config(&params, shape.hidden_size)?;
    let mut tensors: Vec<adapter::Tensor> = Vec::new();
    let mut trainable = 0;
    for (name, shape) in config.tensor_shapes(shape.num_hidden_layers) {
        cx.check()?;
        let numbers = fresh(&name, shape.iter().product(), params.seed);
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
        let bytes = bytes.collect();
        trainable += numbers.len();
        tensors.push((name, Dtype::F32, shape, bytes));
    }
    let modules = shape.num_hidden_layers * config.places().len();
    let summary = [
        ("adapter".to_owned(), json!("bottleneck")),
        ("form".to_owned(), json!(params.form)),
        ("width".to_owned(), json!(config.width())),
        (
            "non_linearity".to_owned(),
            json!(config.non_linearity.word()),
        ),
        ("modules".to_owned(), json!(modules)),
        ("trainable".to_owned(), json!(trainable)),
    ];
    let save = |path: &Path| config.save(path);
    let file = (BOTTLENECK_WEIGHTS_FILE, tensors.as_slice());
    let draft = adapter::draft_as(job, model, file, save, summary.into())?;
    Ok([("model".to_owned(), draft)].into())
}

/// How a tensor starts: weights normal with that deviation, biases 0 (`init_weights: bert` of the package `adapters`). Each is drawn from a
/// stream that is named after it: no other field shifts its draws.
fn fresh(name: &str, count: usize, seed: u64) -> Vec<f32> {
    let mut numbers = vec![0f32; count];
    if name.ends_with(".weight") {
        Stream::new(seed, &format!("init {name}")).fill_normal(&mut numbers);
    }
    for number in &mut numbers {
        *number = (f64::from(*number) * DEVIATION) as f32;
    }
    numbers
}

/// The settings of the package `adapters` that the parameters mean.
fn config(params: &Bottleneck, hidden: usize) -> Result<BottleneckConfig> {
    let usual = match params.form == HOULSBY {
        true => BottleneckConfig::houlsby(hidden),
        false => BottleneckConfig::pfeiffer(hidden),
    };
    let non_linearity = match &params.non_linearity {
        Some(word) => NonLinearity::parse(word)?,
        None => usual.non_linearity,
    };
    Ok(BottleneckConfig {
        reduction_factor: params.reduction_factor,
        non_linearity,
        ..usual
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::contract::FieldType;

    fn params(form: &str, word: Option<&str>) -> Bottleneck {
        Bottleneck {
            form: form.to_owned(),
            reduction_factor: 16.0,
            non_linearity: word.map(str::to_owned),
            seed: 1,
        }
    }

    #[test]
    fn fresh_weights_are_small_and_follow_the_seed_and_their_name() {
        let weight = fresh("layer.adapter_up.weight", 4096, 3);
        assert_eq!(weight, fresh("layer.adapter_up.weight", 4096, 3));
        assert_ne!(weight, fresh("layer.adapter_up.weight", 4096, 4));
        assert_ne!(weight, fresh("layer.adapter_down.0.weight", 4096, 3));
        let squares: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
        let deviation = (squares / 4096.0).sqrt();
        assert!((deviation / DEVIATION - 1.0).abs() < 0.1, "{deviation}");
        assert_eq!(fresh("layer.adapter_up.bias", 8, 3), [0.0; 8]);
    }

    #[test]
    fn every_word_of_the_contract_is_understood() {
        let mut understood = 0;
        for field in kinds::bottleneck::CONTRACT.fields {
            let FieldType::Choice(choices) = &field.ty else {
                continue;
            };
            for choice in *choices {
                let read = match field.name {
                    "form" => config(&params(choice.word, None), 32).unwrap(),
                    _ => config(&params(HOULSBY, Some(choice.word)), 32).unwrap(),
                };
                let told = match field.name {
                    "form" => match read.mh_adapter {
                        true => HOULSBY,
                        false => "pfeiffer",
                    },
                    _ => read.non_linearity.word(),
                };
                assert_eq!(told, choice.word);
                understood += 1;
            }
        }
        assert_eq!(understood, 7);
    }
}

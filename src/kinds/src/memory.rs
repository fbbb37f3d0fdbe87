//! How much memory a training will take, told from what is known of the model and the tokens; and what can be told of a model before it
//! is made.
//!
//! The sum is that of one step of `src/ml` with its own kernels on a CPU, where a batch is as long as it may be:
//!
//! ```text
//! program + weights + trained numbers with gradients and moments
//!         + the larger of slack · (what layers keep for the way back + the larger of one layer's inside and the loss)
//!                     and what the optimizer makes of the largest trained tensor for a moment
//! ```
//!
//! For an encoder the slack is counted in tensors (`memory/encoder.rs`).
//!
//! What comes around a step is less: a snapshot and the trained model are written one tensor at a time, and a snapshot is read so.

mod chosen;
mod encoder;
mod foreseen;
mod language;
mod model;

use anyhow::{Context, Result};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::contract::Summary;
use engine::export::is_weights;
use serde_json::{Map, Value};

use chosen::{Rule, Task};
pub(crate) use foreseen::{
    adapted, attached, bare, loaded, masked, merged, narrowed, prefixed, prompted, quantized, same,
};
pub use model::CHUNK;
use model::{Model, holds_codes};

/// The file of a model's shape.
const CONFIG: &str = "config.json";

/// What is known of a model's adapter: its kind, or null.
pub const ADAPTER: &str = "adapter";
/// What is known of its quantization: the scheme, or null.
pub const QUANTIZED: &str = "quantized";
/// What is known of an encoder's head for masked tokens: whether it has one.
pub const MASKED_HEAD: &str = "masked_head";
/// Its configuration, in the words of Hugging Face.
pub const CONFIGURATION: &str = "config";
/// There where `vocabulary` is the most tokens that it may have.
pub const AT_MOST: &str = "vocabulary_at_most";

/// What is known of an artifact that is there: its summary; of a model also its configuration and the widths in it, the bytes of its
/// weights' files, and all that its base says, where it is an adapter on one. An adapter and a quantization that are not there are null.
pub fn facts(view: &ArtifactView) -> Summary {
    let base = view.refs.get("base");
    let mut known = base.map(facts).unwrap_or_default();
    known.extend(view.summary.clone());
    if matches!(
        view.artifact,
        ArtifactType::Model | ArtifactType::RewardModel
    ) {
        known.entry(ADAPTER.to_owned()).or_insert(Value::Null);
        // A model may have been loaded before its summary said how it is quantized.
        if !holds_codes(&known) {
            known.entry(QUANTIZED.to_owned()).or_insert(Value::Null);
        }
    }
    if let Ok(config) = read(view, CONFIG) {
        known.extend(configured(config));
        let sizes = weights(&view.files).map(|path| path.metadata().map_or(0, |m| m.len()));
        known.insert("bytes".to_owned(), sizes.sum::<u64>().into());
    }
    if let Ok(config) = read(view, "adapter_config.json") {
        known.insert("dropout".to_owned(), config["lora_dropout"].clone());
    }
    known
}

/// What a configuration says that no summary has: widths, and itself.
pub fn configured(config: Value) -> Summary {
    let names = [
        ("intermediate", "intermediate_size"),
        ("head_dim", "head_dim"),
    ];
    let found = names
        .into_iter()
        .filter(|(_, word)| config[*word].is_u64())
        .map(|(name, word)| (name.to_owned(), config[word].clone()));
    let mut known: Summary = found.collect();
    known.insert(CONFIGURATION.to_owned(), config);
    known
}

/// The files of weights among those of a model.
pub fn weights<P: AsRef<std::path::Path>>(
    files: &[(String, P)],
) -> impl Iterator<Item = &std::path::Path> {
    let files = files.iter().filter(|(name, _)| is_weights(name));
    files.map(|(_, path)| path.as_ref())
}

fn read(view: &ArtifactView, name: &str) -> Result<Value> {
    let text = std::fs::read_to_string(view.file(name)?)?;
    serde_json::from_str(&text).with_context(|| format!("`{name}` is not JSON"))
}

/// A training on rows, one after the other.
pub(crate) fn of_rows(params: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<u64> {
    training(params, inputs, 1.0, &Task::Words)
}

/// A training on pairs of completions, or on larger groups.
pub(crate) fn of_groups(params: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<u64> {
    training(params, inputs, 2.0, &Task::Words)
}

/// A training on groups of completions of which scores are wanted, no logits.
pub(crate) fn of_scores(params: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<u64> {
    training(params, inputs, 2.0, &Task::Scores)
}

/// A training on texts, one after the other, of which a head of its own tells a few numbers, no logits of words.
pub(crate) fn of_texts(params: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<u64> {
    let widths = params.get("hidden").and_then(Value::as_array);
    let widths = widths.into_iter().flatten();
    let task = Task::Texts {
        widths: widths.filter_map(Value::as_f64).collect(),
        pooler: params.get("pooling").and_then(Value::as_str) == Some("pooler"),
    };
    training(params, inputs, 1.0, &task)
}

/// A training of an encoder on texts, some tokens of which are hidden.
pub(crate) fn of_masked(params: &Map<String, Value>, inputs: &[(&str, &Summary)]) -> Option<u64> {
    let part = params.get("mask_probability")?.as_f64()?;
    // An encoder without a head for masked words gets one.
    let model = masked(params, inputs)?;
    let others = inputs.iter().copied().filter(|(name, _)| *name != "model");
    let inputs: Vec<(&str, &Summary)> = others.chain([("model", &model)]).collect();
    training(params, &inputs, 1.0, &Task::Masked { part })
}

fn training(
    params: &Map<String, Value>,
    inputs: &[(&str, &Summary)],
    group: f64,
    task: &Task,
) -> Option<u64> {
    let model = Model::of(input(inputs, "model")?)?;
    let tokens = tokens(params, input(inputs, "tokens"), group)?;
    let checkpointing = params.get("checkpointing").and_then(Value::as_bool);
    let chosen = model.chosen(params.get("train"), task)?;
    let rule = Rule::of(params.get("optimizer").and_then(Value::as_str));
    let checkpointing = checkpointing.unwrap_or(false);
    let bytes = model.step(tokens, checkpointing, task, &chosen, &rule)?;
    Some(bytes as u64)
}

/// The most tokens that go through the model at once: rows as long as `max_length` allows, or where they are tokenized already as the
/// longest is.
fn tokens(params: &Map<String, Value>, known: Option<&Summary>, group: f64) -> Option<f64> {
    let field = |name: &str| params.get(name).and_then(Value::as_f64);
    let told = |name: &str| known.and_then(|tokens| tokens.get(name)?.as_f64());
    let longest = known.and_then(|tokens| tokens.get("lengths")?.get("max")?.as_f64());
    let length = field("max_length")?.min(longest.unwrap_or(f64::INFINITY));
    let units = told("groups").or(told("rows")).unwrap_or(f64::INFINITY);
    let units = field("micro_batch")?.min(field("batch")?).min(units);
    Some(units * told("largest_group").unwrap_or(group) * length)
}

fn input<'a>(inputs: &[(&str, &'a Summary)], port: &str) -> Option<&'a Summary> {
    let found = inputs.iter().find(|(name, _)| *name == port);
    found.map(|(_, summary)| *summary)
}

#[cfg(test)]
mod tests;

//! Whether a model file has the tensors of a BERT encoder, and under which of the names that files have had.

use super::{BertConfig, BertParts, MASKED_HEAD};
use crate::config::check::compare;
use crate::config::stored::{ModelTensor, named};
use crate::tensors::Weights;
use anyhow::Result;

/// What every name of the encoder begins with, unless a file was saved from the encoder alone.
const PREFIX: &str = "bert.";

/// The path of a module of an encoder, or the name of a tensor, as it is in the encoder alone; others are as they are.
pub fn bare_name(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// The name under which a file has the tensor of this name: the same, or that of an encoder saved alone (without `bert.`), with
/// `gamma` and `beta` as in the first checkpoints, or the bias of a head as its decoder's. A Llama's names have only one form.
pub fn stored_name(weights: &Weights, name: &str) -> Option<String> {
    let mut candidates = vec![name.to_owned()];
    candidates.extend(name.strip_prefix(PREFIX).map(str::to_owned));
    let old = |name: &String| {
        let place = name.strip_suffix("weight").map(|place| (place, "gamma"));
        let place = place.or(name.strip_suffix("bias").map(|place| (place, "beta")));
        let place = place.filter(|(place, _)| place.ends_with("LayerNorm."));
        place.map(|(place, word)| format!("{place}{word}"))
    };
    let more: Vec<String> = candidates.iter().filter_map(old).collect();
    candidates.extend(more);
    if name == format!("{MASKED_HEAD}.bias") {
        candidates.push(format!("{MASKED_HEAD}.decoder.bias"));
    }
    let mut candidates = candidates.into_iter();
    candidates.find(|candidate| weights.get(candidate).is_some())
}

impl BertParts {
    /// What a file seems to have; whether it is whole, `BertConfig::check` says.
    pub fn of(weights: &Weights) -> BertParts {
        let has = |start: &str| {
            let mut infos = weights.infos();
            infos.any(|info| bare_name(&info.name).starts_with(start))
        };
        BertParts {
            pooler: has("pooler."),
            head: has("cls.predictions.transform."),
        }
    }
}

impl BertConfig {
    /// Compares with a model file: every expected tensor is there with its shape, weights of linears perhaps quantized, and nothing
    /// else is but what follows from the rest or belongs to the prediction of the next sentence. Gives what the file has beside the
    /// encoder; all problems are named in one error.
    pub fn check(&self, weights: &Weights) -> Result<BertParts> {
        let parts = BertParts::of(weights);
        let way_out = "Take the config and the weights of the same model; a head for another task than masked words is not read.";
        let redundant = |name: &str, shape: &[usize]| self.is_redundant(name, shape);
        compare(
            weights,
            &self.tensors_in(weights, parts),
            &redundant,
            way_out,
        )?;
        Ok(parts)
    }

    /// The tensors of a file with these parts, under whichever names it has.
    pub(in crate::config) fn tensors_in(
        &self,
        weights: &Weights,
        parts: BertParts,
    ) -> Vec<ModelTensor> {
        let mut linears = self.linear_shapes();
        linears.extend(self.outside_shapes(parts));
        named(self.tensor_shapes(parts), &linears, |name| {
            stored_name(weights, name)
        })
    }

    /// What carries nothing: the numbers of positions, the tied decoder stored a second time, and the head for the next sentence, which
    /// nothing here trains.
    fn is_redundant(&self, name: &str, shape: &[usize]) -> bool {
        match bare_name(name) {
            "embeddings.position_ids" | "embeddings.token_type_ids" => true,
            "cls.predictions.decoder.weight" => shape == [self.vocab_size, self.hidden_size],
            "cls.predictions.decoder.bias" => shape == [self.vocab_size],
            "cls.seq_relationship.weight" => shape == [2, self.hidden_size],
            "cls.seq_relationship.bias" => shape == [2],
            _ => false,
        }
    }
}

//! Which parameters of a model are trained when it has no adapter, and which of them learn at rates of their own.

use crate::params::Params;
use crate::reward::HEAD;
use anyhow::{Result, bail, ensure};
use formats::config::bert::MASKED_HEAD;
use formats::patterns;
use std::collections::{BTreeMap, BTreeSet};

/// The weight of the output head, where it is not the embedding.
const OUTPUT: &str = "lm_head.weight";

/// What is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Everything.
    All,
    /// The weights of norms.
    Norms,
    /// The biases.
    Biases,
    /// The head: that of a reward model, that of words, or an encoder's for masked words.
    Head,
    /// Parameters by patterns of their names ([`patterns::matches`]).
    Names(Vec<String>),
    /// The last layers, and what comes after them.
    LastLayers(usize),
}

impl Choice {
    /// The names of what is chosen. A choice of nothing is an error that says what there is.
    pub fn of(&self, params: &Params) -> Result<BTreeSet<String>> {
        let with = |condition: &dyn Fn(&str) -> bool| -> BTreeSet<String> {
            let names = params.iter().map(|(name, _)| name);
            let chosen = names.filter(|name| condition(name));
            chosen.map(str::to_owned).collect()
        };
        let chosen = match self {
            Choice::All => with(&|_| true),
            Choice::Norms => with(&is_norm),
            Choice::Biases => with(&|name| name.ends_with(".bias")),
            Choice::Head => {
                let head = if params.get(HEAD).is_some() {
                    HEAD
                } else {
                    OUTPUT
                };
                with(&|name| name == head || name.starts_with(MASKED_HEAD))
            }
            Choice::Names(wanted) => {
                let names: Vec<&str> = params.iter().map(|(name, _)| name).collect();
                patterns::check(wanted, &names, "parameter of the model")?;
                with(&|name| {
                    wanted
                        .iter()
                        .any(|pattern| patterns::matches(pattern, name))
                })
            }
            Choice::LastLayers(count) => {
                let all = layers(params);
                ensure!(
                    *count <= all,
                    "the last {count} layers are to be trained, but the model has {all}"
                );
                with(&|name| match layer(name) {
                    Some(own) => own + count >= all,
                    None => !is_embedding(name),
                })
            }
        };
        if chosen.is_empty() {
            match self {
                Choice::Head => bail!(
                    "the model has no head of its own: its logits come from the embedding, `model.embed_tokens`, which can be trained by that name"
                ),
                Choice::Biases => {
                    bail!("the model has no biases; train its norms, or parameters by name")
                }
                _ => bail!("nothing of the model was chosen to be trained"),
            }
        }
        Ok(chosen)
    }
}

/// Factors of the learning rate by depth: 1 for the last layer and what comes after it, `decay` times that of the layer above for every other,
/// and once more for the embedding.
pub fn by_depth(params: &Params, decay: f64) -> BTreeMap<String, f64> {
    let all = layers(params);
    let factor = |name: &str| {
        let below = match layer(name) {
            Some(own) => all - 1 - own,
            None if is_embedding(name) => all,
            None => 0,
        };
        decay.powi(i32::try_from(below).unwrap_or(i32::MAX))
    };
    let names = params.iter().map(|(name, _)| name);
    names.map(|name| (name.to_owned(), factor(name))).collect()
}

/// Rates of trained parameters by the longest pattern that matches (of equally long ones the last in the alphabet). A pattern without a trained
/// parameter is an error.
pub fn by_name(params: &Params, rates: &BTreeMap<String, f64>) -> Result<BTreeMap<String, f64>> {
    let wanted: Vec<&String> = rates.keys().collect();
    let names: Vec<&str> = params.trained().map(|(name, _)| name).collect();
    patterns::check(&wanted, &names, "trained parameter")?;
    let longest = |name: &str| {
        let matching = rates
            .iter()
            .filter(|(pattern, _)| patterns::matches(pattern, name));
        matching.max_by_key(|(pattern, _)| pattern.len())
    };
    let own = |name: &&str| longest(name).map(|(_, rate)| ((*name).to_owned(), *rate));
    Ok(names.iter().filter_map(own).collect())
}

/// The layer that a parameter is in, by its name: `model.layers.3…` or `bert.encoder.layer.3…`.
fn layer(name: &str) -> Option<usize> {
    let of_bert = || name.split_once(".layer.");
    let (_, rest) = name.split_once(".layers.").or_else(of_bert)?;
    rest.split('.').next()?.parse().ok()
}

/// Whether a parameter of this name belongs to a norm.
pub fn is_norm(name: &str) -> bool {
    name.contains("norm") || name.contains("LayerNorm")
}

/// The number of layers, frozen ones too.
fn layers(params: &Params) -> usize {
    let own = params.iter().filter_map(|(name, _)| layer(name));
    own.max().map_or(0, |last| last + 1)
}

fn is_embedding(name: &str) -> bool {
    name.contains("embed_tokens") || name.starts_with("bert.embeddings.")
}

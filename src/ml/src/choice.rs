//! Which parameters of a model are trained when it has no adapter, which of them learn at rates of their own or begin later, and which do not
//! decay.

use crate::adapter;
use crate::params::Params;
use crate::reward::HEAD;
use anyhow::{Result, bail, ensure};
use formats::config::bert::MASKED_HEAD;
use formats::patterns;
use formats::peft::parameter_name;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// The weight of the output head, where it is not the embedding.
const OUTPUT: &str = "lm_head.weight";

/// Parts of adapters that start at ones ((IA)³) or at the lengths of a weight's rows (DoRA): decay towards 0 would not pull them back to where
/// they change nothing, but away from it.
const SPARED: [&str; 2] = ["ia3_l", "lora_magnitude_vector"];

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
            // It moves all scores of a query alike, which softmax does not see: there is no gradient.
            let chosen = chosen.filter(|name| !name.ends_with(".attention.self.key.bias"));
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
    let factor = |name: &str| decay.powi(i32::try_from(depth(name, all)).unwrap_or(i32::MAX));
    let names = params.iter().map(|(name, _)| name);
    names.map(|name| (name.to_owned(), factor(name))).collect()
}

/// The depths at which parameters are trained, 0 for the last layer and what comes after it.
pub fn depths(params: &Params) -> BTreeSet<usize> {
    let all = layers(params);
    params.trained().map(|(name, _)| depth(name, all)).collect()
}

/// Gradual unfreezing (Howard and Ruder, arXiv 1801.06146, section 3.3): the step, counted from 0, in which each trained parameter learns first.
/// What comes after the layers and the last layer begin at once, each layer below `every` steps after the one above, the embedding last; depths
/// at which nothing is trained take no turn. One depth alone, and an adapter's parameter that is in no layer, are errors.
pub fn turns(params: &Params, every: usize) -> Result<BTreeMap<String, usize>> {
    let all = layers(params);
    for (name, _) in params.trained() {
        ensure!(
            !adapter::is_parameter(name) || layer(name).is_some() || is_embedding(name),
            "parameters take turns by their layers, and `{name}` of the adapter is in none"
        );
    }
    let depths = depths(params);
    ensure!(
        depths.len() > 1,
        "all that is trained is at one depth and begins in the first step"
    );
    let turn = |name: &str| depths.range(..depth(name, all)).count();
    let trained = params.trained().map(|(name, _)| name);
    Ok(trained
        .map(|name| (name.to_owned(), turn(name).saturating_mul(every)))
        .collect())
}

/// The names of parameters whose weight is not decayed: norms, biases, and what of adapters does not start at 0: the numbers of (IA)³, the
/// lengths of DoRA, virtual tokens.
pub fn undecayed(params: &Params) -> Vec<String> {
    let spared = |name: &str| {
        let mut parts = SPARED.into_iter();
        parts.any(|part| name.ends_with(&parameter_name("", part)))
    };
    let names = params.iter().map(|(name, _)| name);
    let names = names.filter(|n| {
        is_norm(n) || n.ends_with(".bias") || spared(n) || *n == crate::soft::PARAMETER
    });
    names.map(str::to_owned).collect()
}

/// Rates of trained parameters by the longest pattern that matches their names in files (of equally long ones the last in the alphabet).
/// Errors: a pattern without a trained parameter, one that holds for none because of longer ones, and patterns that leave no parameter to the
/// common rate.
pub fn by_name(params: &Params, rates: &BTreeMap<String, f64>) -> Result<BTreeMap<String, f64>> {
    if rates.is_empty() {
        return Ok(BTreeMap::new());
    }
    let wanted: Vec<&String> = rates.keys().collect();
    let trained: Vec<(&str, Cow<'_, str>)> = params
        .trained()
        .map(|(name, _)| (name, adapter::file_name(name)))
        .collect();
    let names: Vec<&str> = trained.iter().map(|(_, name)| name.as_ref()).collect();
    patterns::check(&wanted, &names, "trained parameter")?;
    let longest = |name: &str| {
        let matching = rates
            .iter()
            .filter(|(pattern, _)| patterns::matches(pattern, name));
        matching.max_by_key(|(pattern, _)| pattern.len())
    };
    let held: BTreeSet<&String> = names
        .iter()
        .filter_map(|name| longest(name).map(|(pattern, _)| pattern))
        .collect();
    if let Some(idle) = wanted.iter().find(|pattern| !held.contains(**pattern)) {
        bail!(
            "{idle:?} holds for nothing: every trained parameter that it matches has the rate of a longer pattern; leave it out"
        );
    }
    ensure!(
        names.iter().any(|name| longest(name).is_none()),
        "every trained parameter has a rate of its own, so that `learning_rate` means nothing: say there the rate that most of them have, and \
         name only the others"
    );
    let own = |(name, in_file): &(&str, Cow<'_, str>)| {
        let (_, rate) = longest(in_file)?;
        Some(((*name).to_owned(), *rate))
    };
    Ok(trained.iter().filter_map(own).collect())
}

/// How many layers are above a parameter: 0 for the last layer and for what comes after the layers, all of them for the embedding.
fn depth(name: &str, layers: usize) -> usize {
    match layer(name) {
        Some(own) => layers - 1 - own,
        None if is_embedding(name) => layers,
        None => 0,
    }
}

/// The layer that a parameter is in, by its name: `model.layers.3…` or `bert.encoder.layer.3…`.
fn layer(name: &str) -> Option<usize> {
    let of_bert = || name.split_once(".layer.");
    let (_, rest) = name.split_once(".layers.").or_else(of_bert)?;
    rest.split('.').next()?.parse().ok()
}

/// Whether a parameter of this name belongs to a norm.
pub fn is_norm(name: &str) -> bool {
    // The module that holds the parameter: an adapter may have any name.
    let module = name.rsplit('.').nth(1);
    module.is_some_and(|module| module.contains("norm") || module.contains("LayerNorm"))
}

/// The number of layers, frozen ones too.
fn layers(params: &Params) -> usize {
    let own = params.iter().filter_map(|(name, _)| layer(name));
    own.max().map_or(0, |last| last + 1)
}

fn is_embedding(name: &str) -> bool {
    name.contains("embed_tokens") || name.starts_with("bert.embeddings.")
}

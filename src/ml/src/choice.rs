//! Which parameters of a model are trained when it has no adapter, which of them learn at rates of their own or begin later, and which do not
//! decay.

use crate::adapter;
use crate::params::Params;
use anyhow::{Result, bail, ensure};
pub use formats::choice::{Choice, is_norm};
use formats::choice::{is_embedding, layer, layers};
use formats::patterns;
use formats::peft::parameter_name;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Parts of adapters that start at ones ((IA)³) or at the lengths of a weight's rows (DoRA): decay towards 0 would not pull them back to where
/// they change nothing, but away from it.
const SPARED: [&str; 2] = ["ia3_l", "lora_magnitude_vector"];

/// Factors of the learning rate by depth: 1 for the last layer and what comes after it, `decay` times that of the layer above for every other,
/// and once more for the embedding.
pub fn by_depth(params: &Params, decay: f64) -> BTreeMap<String, f64> {
    let all = layers(params.names());
    let factor = |name: &str| decay.powi(i32::try_from(depth(name, all)).unwrap_or(i32::MAX));
    let names = params.iter().map(|(name, _)| name);
    names.map(|name| (name.to_owned(), factor(name))).collect()
}

/// The depths at which parameters are trained, 0 for the last layer and what comes after it.
pub fn depths(params: &Params) -> BTreeSet<usize> {
    let all = layers(params.names());
    params.trained().map(|(name, _)| depth(name, all)).collect()
}

/// Gradual unfreezing (Howard and Ruder, arXiv 1801.06146, section 3.3): the step, counted from 0, in which each trained parameter learns first.
/// What comes after the layers and the last layer begin at once, each layer below `every` steps after the one above, the embedding last; depths
/// at which nothing is trained take no turn. One depth alone, and an adapter's parameter that is in no layer, are errors.
pub fn turns(params: &Params, every: usize) -> Result<BTreeMap<String, usize>> {
    let all = layers(params.names());
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

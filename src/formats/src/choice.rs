//! Which parameters of a model are trained when it has no adapter: a choice among their names.

use crate::config::REWARD_HEAD;
use crate::config::bert::MASKED_HEAD;
use crate::patterns;
use anyhow::{Result, bail, ensure};
use std::collections::BTreeSet;

/// The weight of the output head, where it is not the embedding.
pub const OUTPUT: &str = "lm_head.weight";

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
    /// What is chosen of the parameters of these names. A choice of nothing is an error that says what there is.
    pub fn of<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<String>> {
        let names: Vec<&str> = names.into_iter().collect();
        let with = |condition: &dyn Fn(&str) -> bool| -> BTreeSet<String> {
            let chosen = names.iter().filter(|name| condition(name));
            // It moves all scores of a query alike, which softmax does not see: there is no gradient.
            let chosen = chosen.filter(|name| !name.ends_with(".attention.self.key.bias"));
            chosen.map(|name| (*name).to_owned()).collect()
        };
        let chosen = match self {
            Choice::All => with(&|_| true),
            Choice::Norms => with(&is_norm),
            Choice::Biases => with(&|name| name.ends_with(".bias")),
            Choice::Head => {
                let head = match names.contains(&REWARD_HEAD) {
                    true => REWARD_HEAD,
                    false => OUTPUT,
                };
                with(&|name| name == head || name.starts_with(MASKED_HEAD))
            }
            Choice::Names(wanted) => {
                let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
                patterns::check(&wanted, &names, "parameter of the model")?;
                with(&|name| {
                    wanted
                        .iter()
                        .any(|pattern| patterns::matches(pattern, name))
                })
            }
            Choice::LastLayers(count) => {
                let all = layers(names.iter().copied());
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

/// The layer that a parameter is in, by its name: `model.layers.3…` or `bert.encoder.layer.3…`.
pub fn layer(name: &str) -> Option<usize> {
    let of_bert = || name.split_once(".layer.");
    let (_, rest) = name.split_once(".layers.").or_else(of_bert)?;
    rest.split('.').next()?.parse().ok()
}

/// The number of layers of a model with parameters of these names.
pub fn layers<'a>(names: impl IntoIterator<Item = &'a str>) -> usize {
    let own = names.into_iter().filter_map(layer);
    own.max().map_or(0, |last| last + 1)
}

/// Whether a parameter of this name belongs to a norm.
pub fn is_norm(name: &str) -> bool {
    // The module that holds the parameter: an adapter may have any name.
    let module = name.rsplit('.').nth(1);
    module.is_some_and(|module| module.contains("norm") || module.contains("LayerNorm"))
}

/// Whether a parameter of this name is below the first layer.
pub fn is_embedding(name: &str) -> bool {
    name.contains("embed_tokens") || name.starts_with("bert.embeddings.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCODER: [&str; 9] = [
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.LayerNorm.weight",
        "bert.encoder.layer.0.attention.self.key.bias",
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.1.output.LayerNorm.bias",
        "bert.encoder.layer.1.attention.self.key.weight",
        "bert.pooler.dense.weight",
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
    ];

    fn chosen(choice: Choice) -> Vec<String> {
        choice.of(ENCODER).unwrap().into_iter().collect()
    }

    #[test]
    fn parts_of_an_encoder_are_chosen_by_their_names() {
        // All but the bias that has no gradient.
        assert_eq!(chosen(Choice::All).len(), 8);
        assert_eq!(chosen(Choice::Norms), [ENCODER[1], ENCODER[4]]);
        assert_eq!(chosen(Choice::Biases), [ENCODER[4], ENCODER[7]]);
        assert_eq!(chosen(Choice::Head), ENCODER[7..]);
        let mut last = ENCODER[4..].to_vec();
        last.sort_unstable();
        assert_eq!(chosen(Choice::LastLayers(1)), last);
        let names = ["layer.0", "*_embeddings"].map(str::to_owned).to_vec();
        assert_eq!(chosen(Choice::Names(names)), [ENCODER[0], ENCODER[3]]);
        let key = vec!["key.bias".to_owned()];
        let error = Choice::Names(key).of(ENCODER).unwrap_err();
        assert!(error.to_string().starts_with("nothing of the model"));
        assert_eq!(layers(ENCODER), 2);
        assert_eq!(layer(ENCODER[0]), None);
    }

    #[test]
    fn a_head_for_rewards_is_the_head() {
        let names = ["model.norm.weight", "score.weight", "lm_head.weight"];
        let head = Choice::Head.of(names).unwrap();
        assert_eq!(head.into_iter().collect::<Vec<_>>(), ["score.weight"]);
        let tied = Choice::Head.of(["model.embed_tokens.weight"]).unwrap_err();
        assert!(tied.to_string().contains("`model.embed_tokens`"));
    }
}

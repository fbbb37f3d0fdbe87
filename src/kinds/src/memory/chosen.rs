//! What a training is for, what it trains, and what its optimizer keeps.

use formats::REWARD_HEAD;
use formats::choice::{self, Choice, OUTPUT};
use formats::config::bert::{MASKED_HEAD, POOLER};
use serde_json::Value;

use super::model::{F32, Model};
use crate::training::Train;

/// What a training makes of the last states.
pub(super) enum Task {
    /// Logits of words after every token.
    Words,
    /// Logits of the words under a part of the tokens, from an encoder.
    Masked {
        /// The part that is hidden.
        part: f64,
    },
    /// A score, by a vector.
    Scores,
    /// What a head of the stage's own says of a vector of each text.
    Texts {
        /// Widths between the vector and the result.
        widths: Vec<f64>,
        /// Whether the vector goes through BERT's pooler.
        pooler: bool,
    },
}

/// What a training chooses of a model without an adapter.
pub(super) struct Chosen {
    /// Trained numbers of the model.
    pub numbers: f64,
    /// Trained numbers of a head that the stage puts on it.
    pub own: f64,
    /// Numbers of the largest trained tensor.
    pub largest: f64,
    /// Layers that keep something for the way back: the lowest trained one and all above it.
    pub layers: f64,
    /// Whether what makes logits is trained.
    pub head: bool,
    /// Whether the model stays as it is.
    pub alone: bool,
}

/// What an optimizer keeps of a trained number, and what it makes of it for a moment (`ml::optimizer`).
pub(super) struct Rule {
    /// Bytes of moments for each trained number.
    pub moments: f64,
    /// Bytes for each number of the tensor whose step it is.
    pub passing: f64,
}

impl Rule {
    /// By the word of the field `optimizer`.
    pub fn of(word: Option<&str>) -> Self {
        match word {
            // Codes, and scales in f32 of 256 values. In its step a tensor's weight and gradient are copied as f32, the codes of both moments as
            // they are, and the new weight is copied back.
            Some("adamw_8bit") => Self {
                moments: 2.0 * (1.0 + F32 / 256.0),
                passing: 3.0 * F32 + 2.0,
            },
            // Of a matrix a row and a column. In its step the gradient is in f32, its squares, the change, and the change scaled down.
            Some("adafactor") => Self {
                moments: 0.0,
                passing: 4.0 * F32,
            },
            // One pass over the memory; but the norm of the gradients takes each of them in f32.
            _ => Self {
                moments: 2.0 * F32,
                passing: F32,
            },
        }
    }
}

impl Task {
    /// Whether the loss does not depend on a parameter of this name.
    fn ignores(&self, name: &str) -> bool {
        match self {
            Self::Words | Self::Scores => false,
            Self::Masked { .. } => name.starts_with(POOLER),
            Self::Texts { pooler, .. } => {
                name == OUTPUT
                    || name.starts_with(MASKED_HEAD)
                    || (!pooler && name.starts_with(POOLER))
            }
        }
    }

    /// Numbers of the head that the stage puts on a model of this width, with two results.
    fn own(&self, hidden: f64) -> f64 {
        let Self::Texts { widths, .. } = self else {
            return 0.0;
        };
        let outs = widths.iter().copied().chain([2.0]);
        let ins = [hidden].into_iter().chain(widths.iter().copied());
        ins.zip(outs).map(|(input, out)| (input + 1.0) * out).sum()
    }
}

impl Model {
    /// What the field `train` chooses; none where it can't be meant.
    pub fn chosen(&self, train: Option<&Value>, task: &Task) -> Option<Chosen> {
        let train: Train = match train.filter(|train| !train.is_null()) {
            Some(value) => serde_json::from_value(value.clone()).ok()?,
            None => Train::default(),
        };
        let choice = train.choice()?;
        let own = task.own(self.hidden);
        if own > 0.0 && choice == Choice::Head {
            return Some(Chosen {
                numbers: 0.0,
                own,
                largest: own,
                layers: 0.0,
                head: false,
                alone: true,
            });
        }
        let mut tensors = self.tensors();
        if matches!(task, Task::Scores) {
            // The head for scores is in the place of that for words.
            tensors.retain(|(name, _)| name != OUTPUT);
            tensors.push((REWARD_HEAD.to_owned(), self.hidden));
        }
        let names = tensors.iter().map(|(name, _)| name.as_str());
        let chosen = choice.of(names).ok()?;
        tensors.retain(|(name, _)| chosen.contains(name) && !task.ignores(name));
        let sizes = || tensors.iter().map(|(_, numbers)| *numbers);
        let all = self.layers as usize;
        let place = |name: &str| match choice::is_embedding(name) {
            true => 0,
            false => choice::layer(name).unwrap_or(all),
        };
        let places = tensors.iter().map(|(name, _)| place(name));
        let lowest = places.min().unwrap_or(all);
        Some(Chosen {
            numbers: sizes().sum(),
            own,
            largest: sizes().fold(own, f64::max),
            layers: self.layers - lowest as f64,
            head: tensors.iter().any(|(name, _)| self.makes_logits(name)),
            alone: false,
        })
    }
}

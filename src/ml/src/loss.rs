//! Cross entropy and log-probabilities of next tokens without a tensor of all logits.

use crate::torch::{self, Way};
use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

/// Rows of logits that exist at a time.
pub const CHUNK: i64 = 256;

/// A sum of losses and what it is a sum over.
#[derive(Debug)]
pub struct Loss {
    /// The sum, a scalar with a gradient.
    pub sum: Tensor,
    /// What the sum is divided by for a mean: the number of trained tokens.
    pub weight: f64,
    /// Other sums of the same rows, by name; divided by the weight like the loss.
    pub sums: Vec<(&'static str, f64)>,
}

/// What the cross entropy of some targets gives.
#[derive(Debug)]
pub struct CrossEntropy {
    /// The sum of `-log p(target)`, a scalar with gradients to hidden states and head, f32 (f64 stays).
    pub sum: Tensor,
    /// `log p(target)` of each target, `[targets]`, without gradient.
    pub log_probabilities: Tensor,
    /// How many targets have the largest logit.
    pub correct: usize,
    /// The number of targets.
    pub count: usize,
}

/// Cross entropy of `hidden [targets, width]` through `head [vocabulary, width]` against `targets [targets]` (i64), in chunks
/// of `chunk` rows. Softmax and loss are in f32 (f64 stays).
pub fn cross_entropy(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    chunk: i64,
) -> Result<CrossEntropy> {
    let count = targets.numel();
    ensure!(count > 0, "there is no token to predict");
    ensure!(chunk > 0, "a chunk of logits needs at least one row");
    let way = way(hidden, head);
    let [sum, log_probabilities, right] = torch::cross_entropy(hidden, head, targets, chunk, way)?;
    Ok(CrossEntropy {
        sum,
        log_probabilities,
        correct: usize::try_from(right.sum(Kind::Int64).int64_value(&[]))?,
        count,
    })
}

/// What is known of each target's distribution.
#[derive(Debug)]
pub struct TokenValues {
    /// `log p(target)`, `[targets]`, with a gradient for each.
    pub log_probabilities: Tensor,
    /// The entropy of the distribution in nats, `[targets]`, with a gradient; empty unless asked for.
    pub entropies: Tensor,
    /// `log Σ p²`, `[targets]`, without gradient; empty unless asked for.
    pub log_squares: Tensor,
}

/// Log-probabilities of `targets [targets]` under `softmax(hidden head^T)`, for losses in which tokens have weights that are
/// known only after all of them were computed. In chunks of `chunk` rows, f32 (f64 stays); `statistics` adds the entropies.
pub fn log_probabilities(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    chunk: i64,
    statistics: bool,
) -> Result<TokenValues> {
    ensure!(targets.numel() > 0, "there is no token to predict");
    ensure!(chunk > 0, "a chunk of logits needs at least one row");
    let way = way(hidden, head);
    let [log_probabilities, entropies, log_squares] =
        torch::log_probabilities(hidden, head, targets, chunk, way, statistics)?;
    Ok(TokenValues {
        log_probabilities,
        entropies,
        log_squares,
    })
}

fn way(hidden: &Tensor, head: &Tensor) -> Way {
    if torch::fused_linear(hidden, &torch::Stored::dense(head)) {
        Way::Kernels
    } else if torch::multiplies_bf16(hidden) && hidden.kind() == head.kind() {
        Way::Native
    } else {
        Way::Wide
    }
}

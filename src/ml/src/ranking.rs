//! Losses on scores: pairs and rankings, for reward models and for whatever plays one.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

/// −log σ(chosen − rejected − margin) for each pair (Bradley and Terry), `[pairs]`.
pub fn bradley_terry(chosen: &Tensor, rejected: &Tensor, margin: Option<&Tensor>) -> Tensor {
    let difference = chosen - rejected;
    let difference = match margin {
        Some(margin) => difference - margin,
        None => difference,
    };
    -difference.log_sigmoid()
}

/// The mean of −log σ(r_i − r_j) over all pairs i < j of a ranking, scores best first (InstructGPT, arXiv 2203.02155: all pairs
/// of a prompt in one batch, weighted 1 / C(k, 2)).
pub fn all_pairs(scores: &Tensor) -> Result<Tensor> {
    let count = scores.numel() as i64;
    ensure!(count >= 2, "a ranking has at least two completions");
    let differences = scores.unsqueeze(1) - scores.unsqueeze(0);
    let upper = Tensor::ones([count, count], (Kind::Bool, scores.device())).triu(1);
    Ok(-differences
        .log_sigmoid()
        .masked_select(&upper)
        .mean(None::<Kind>))
}

/// −Σ_i [r_i − log Σ_{j ≥ i} exp r_j], scores best first: the probability of a ranking when it is drawn from the top without
/// replacement (Plackett, Luce).
pub fn plackett_luce(scores: &Tensor) -> Result<Tensor> {
    ensure!(
        scores.numel() >= 2,
        "a ranking has at least two completions"
    );
    let rest = scores.flip([0]).logcumsumexp(0).flip([0]);
    Ok((rest - scores).sum(None::<Kind>))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ranking_of_two_is_a_pair() {
        let scores = Tensor::from_slice(&[0.3f64, -0.9]);
        let pair = bradley_terry(&scores.get(0), &scores.get(1), None).double_value(&[]);
        assert!((pair - (1.0 + (-1.2f64).exp()).ln()).abs() < 1e-15);
        assert!((plackett_luce(&scores).unwrap().double_value(&[]) - pair).abs() < 1e-15);
        assert!((all_pairs(&scores).unwrap().double_value(&[]) - pair).abs() < 1e-15);
    }

    #[test]
    fn equal_scores_say_nothing() {
        let scores = Tensor::from_slice(&[2.0f64; 4]);
        let expected = (24.0f64).ln();
        assert!((plackett_luce(&scores).unwrap().double_value(&[]) - expected).abs() < 1e-14);
        let expected = 2.0f64.ln();
        assert!((all_pairs(&scores).unwrap().double_value(&[]) - expected).abs() < 1e-14);
    }
}

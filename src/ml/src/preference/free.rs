//! Preference losses without a reference model: ORPO, CPO and SimPO; and KTO, which needs no pairs.

use anyhow::Result;
use tch::Tensor;

/// The loss of CPO (arXiv 2401.08417) before its language-modelling term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CpoLoss {
    /// −(1−ε) log σ(β(p_c − p_r)) − ε log σ(−β(p_c − p_r)) on sums of log-probabilities, shaped by AlphaPO's α as below.
    Sigmoid {
        /// α.
        alpha: f64,
    },
    /// max(0, 1 − β(p_c − p_r)).
    Hinge,
    /// (p_c/|c| − p_r/|r| − 1/(2β))².
    Ipo,
    /// SimPO (arXiv 2405.14734): sigmoid on averages with the target margin γ: β(p_c/|c| − p_r/|r|) − γ. AlphaPO (arXiv
    /// 2501.03884) replaces the average logarithm x by (1 − exp(−αx)) / α, which at α = 0 is x.
    Simpo {
        /// γ.
        gamma: f64,
        /// α.
        alpha: f64,
    },
}

/// What a loss compares of one side, (sum of log-probabilities, tokens): β times it is the reward.
pub fn cpo_reward(loss: CpoLoss, (sum, tokens): (&Tensor, &Tensor)) -> Tensor {
    let shaped = |x: Tensor, alpha: f64| -> Tensor {
        match alpha == 0.0 {
            true => x,
            false => (1.0 - (x * -alpha).exp()) / alpha,
        }
    };
    match loss {
        CpoLoss::Sigmoid { alpha } => shaped(sum.shallow_clone(), alpha),
        CpoLoss::Hinge => sum.shallow_clone(),
        CpoLoss::Ipo => sum / tokens,
        CpoLoss::Simpo { alpha, .. } => shaped(sum / tokens, alpha),
    }
}

/// The loss of each pair, `[pairs]`, of what [`cpo_reward`] gives for both sides.
pub fn cpo(
    loss: CpoLoss,
    chosen: &Tensor,
    rejected: &Tensor,
    beta: f64,
    label_smoothing: f64,
) -> Tensor {
    let smoothed = |x: Tensor| -> Tensor {
        x.log_sigmoid() * (label_smoothing - 1.0) - (-&x).log_sigmoid() * label_smoothing
    };
    let difference = chosen - rejected;
    match loss {
        CpoLoss::Sigmoid { .. } => smoothed(difference * beta),
        CpoLoss::Hinge => (difference * -beta + 1.0).relu(),
        CpoLoss::Ipo => (difference - 1.0 / (2.0 * beta)).square(),
        CpoLoss::Simpo { gamma, .. } => smoothed(difference * beta - gamma),
    }
}

/// The log odds ratio of ORPO (arXiv 2403.07691), `[pairs]`: (p_c − p_r) − (log(1 − e^p_c) − log(1 − e^p_r)) with averages p.
/// The loss is −β log σ of it.
pub fn log_odds_ratio(chosen: (&Tensor, &Tensor), rejected: (&Tensor, &Tensor)) -> Tensor {
    let average = |(sum, tokens): (&Tensor, &Tensor)| sum / tokens;
    let (c, r) = (average(chosen), average(rejected));
    (&c - &r) - (log1mexp(&c) - log1mexp(&r))
}

/// log(1 − e^x) for x < 0 without loss of digits: log(−expm1 x) near 0, log1p(−e^x) below −ln 2 (Mächler 2012).
pub fn log1mexp(x: &Tensor) -> Tensor {
    let near = x.gt(-std::f64::consts::LN_2);
    // The branch that is not taken may not be infinite, or its gradient of 0 times infinity is no number.
    let one = x.where_self(&near, &x.full_like(-1.0));
    let other = x.where_self(&near.logical_not(), &x.full_like(-1.0));
    let close = (-one.expm1()).log();
    let far = (-other.exp()).log1p();
    close.where_self(&near, &far)
}

/// How KTO weighs and centres.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kto {
    /// β.
    pub beta: f64,
    /// The weight of desirable completions.
    pub desirable_weight: f64,
    /// The weight of undesirable ones.
    pub undesirable_weight: f64,
    /// Without the baseline z: APO-zero on unpaired data.
    pub apo_zero: bool,
}

/// KTO (arXiv 2402.01306) on log-ratios `[rows]`: 1 − σ(β(x − z)) for desirable rows, 1 − σ(β(z − x)) for the others, each
/// weighted. z is the mean log-ratio of mismatched rows, not below 0, without gradient.
pub fn kto(ratios: &Tensor, desirable: &[bool], z: f64, settings: &Kto) -> Result<Tensor> {
    let Kto {
        beta,
        desirable_weight,
        undesirable_weight,
        apo_zero,
    } = *settings;
    let sign: Vec<f64> = desirable
        .iter()
        .map(|&good| if good { 1.0 } else { -1.0 })
        .collect();
    let weight: Vec<f64> = desirable
        .iter()
        .map(|&good| match good {
            true => desirable_weight,
            false => undesirable_weight,
        })
        .collect();
    let place = |numbers: &[f64]| {
        Tensor::from_slice(numbers)
            .to_kind(ratios.kind())
            .to_device(ratios.device())
    };
    let z = if apo_zero { 0.0 } else { z.max(0.0) };
    let centred = (ratios - z) * place(&sign) * beta;
    Ok((1.0 - centred.sigmoid()) * place(&weight))
}

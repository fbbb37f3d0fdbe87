//! Losses on pairs of log-ratios: DPO and its family, as TRL 1.16's `DPOTrainer` has them.
//!
//! Of a pair, c and r are the log-ratios log π(y|x) − log π_ref(y|x) of the chosen and the rejected completion, f the divergence's
//! map of them, Δ = f(c) − f(r), |y| the tokens of a completion, β and ε (label smoothing) the settings.

use anyhow::{Result, bail, ensure};
use tch::Tensor;

/// The loss of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairLoss {
    /// −(1−ε) log σ(βΔ) − ε log σ(−βΔ): DPO (arXiv 2305.18290), with ε > 0 conservative DPO.
    Sigmoid,
    /// max(0, 1 − βΔ): SLiC and RSO (arXiv 2309.06657).
    Hinge,
    /// (f(c)/|c| − f(r)/|r| − 1/(2β))²: IPO (arXiv 2310.12036), on averages or on sums.
    Ipo,
    /// KL of the model's choice from (1−ε, ε): EXO (arXiv 2402.00856); ε > 0.
    ExoPair,
    /// −log σ(βc) − ½ log σ(−βc) − ½ log σ(−βr): NCA (arXiv 2402.05369).
    NcaPair,
    /// [−(1−ε) log σ(βΔ) + ε log σ(−βΔ)] / (1 − 2ε): robust DPO (arXiv 2403.00409); ε < ½.
    Robust,
    /// −log σ(βc) − log σ(−βr): BCO's paired form (arXiv 2404.04656).
    BcoPair,
    /// (c − 1/(2β))² + (r + 1/(2β))²: SPPO with hard labels (arXiv 2405.00675).
    SppoHard,
    /// As sigmoid with ε, on the sorted differences of the batch: AOT (arXiv 2406.05882).
    Aot,
    /// The same on the sorted log-ratios of either side.
    AotUnpaired,
    /// 1 − σ(βc) + σ(βr): APO-zero (arXiv 2408.06266).
    ApoZero,
    /// σ(βc) + 1 − σ(β(c − r)): APO-down.
    ApoDown,
    /// (1 − m)(−log σ(βΔ)) + m exp(−βΔ), m = σ(βΔ/τ): DiscoPOP (arXiv 2406.08414).
    Discopop,
    /// The mean of −log π over the chosen completions' tokens.
    Sft,
    /// −log σ(β(f(c)/|c| − f(r)/|r|)), smoothed like sigmoid: length-normalized DPO.
    SigmoidNorm,
}

/// Word, loss, whether label smoothing changes it, whether a divergence other than the reverse KL does.
type Entry = (&'static str, PairLoss, bool, bool);

const ENTRIES: [Entry; 15] = [
    ("sigmoid", PairLoss::Sigmoid, true, true),
    ("hinge", PairLoss::Hinge, false, true),
    ("ipo", PairLoss::Ipo, false, true),
    ("exo_pair", PairLoss::ExoPair, true, true),
    ("nca_pair", PairLoss::NcaPair, false, false),
    ("robust", PairLoss::Robust, true, true),
    ("bco_pair", PairLoss::BcoPair, false, false),
    ("sppo_hard", PairLoss::SppoHard, false, false),
    ("aot", PairLoss::Aot, true, false),
    ("aot_unpaired", PairLoss::AotUnpaired, true, false),
    ("apo_zero", PairLoss::ApoZero, false, false),
    ("apo_down", PairLoss::ApoDown, false, false),
    ("discopop", PairLoss::Discopop, false, true),
    ("sft", PairLoss::Sft, false, true),
    ("sigmoid_norm", PairLoss::SigmoidNorm, true, true),
];

impl PairLoss {
    fn entry(self) -> Entry {
        let found = ENTRIES.into_iter().find(|(_, loss, ..)| *loss == self);
        found.unwrap_or(ENTRIES[0])
    }

    /// The loss that a recipe calls so.
    pub fn parse(word: &str) -> Result<PairLoss> {
        match ENTRIES.into_iter().find(|(name, ..)| *name == word) {
            Some((_, loss, ..)) => Ok(loss),
            None => bail!("`{word}` is not a loss of pairs"),
        }
    }

    /// Its word.
    pub fn name(self) -> &'static str {
        self.entry().0
    }

    /// Whether label smoothing changes it; elsewhere smoothing is refused.
    pub fn smooths(self) -> bool {
        self.entry().2
    }

    /// Whether a divergence other than the reverse KL changes it; elsewhere it is refused.
    pub fn diverges(self) -> bool {
        self.entry().3
    }

    /// Whether the pairs of a batch depend on each other: a micro-batch is then another loss.
    pub fn sorts(self) -> bool {
        matches!(self, PairLoss::Aot | PairLoss::AotUnpaired)
    }
}

/// The f of f-DPO (arXiv 2309.16240): what the log-ratio x is mapped to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// x
    ReverseKl,
    /// 1 − exp(−x)
    ForwardKl,
    /// ln 2 + log σ(x)
    Js,
    /// (exp((a−1)x) − 1) / (a−1), with exponents of at most 80; x at a = 1
    Alpha(f64),
}

impl Divergence {
    fn map(self, x: &Tensor) -> Tensor {
        match self {
            Divergence::ReverseKl => x.shallow_clone(),
            Divergence::ForwardKl => 1.0 - (-x).exp(),
            Divergence::Js => x.log_sigmoid() + std::f64::consts::LN_2,
            Divergence::Alpha(a) if (a - 1.0).abs() < 1e-6 => x.shallow_clone(),
            Divergence::Alpha(a) => ((x * (a - 1.0)).clamp_max(80.0).exp() - 1.0) / (a - 1.0),
        }
    }
}

/// What the losses of a family share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// β: how strongly the reference holds.
    pub beta: f64,
    /// ε: the probability that a label is wrong.
    pub label_smoothing: f64,
    /// The divergence from the reference.
    pub divergence: Divergence,
    /// τ of DiscoPOP.
    pub discopop_tau: f64,
    /// IPO on averages over tokens (the authors' choice) rather than on sums.
    pub ipo_averages: bool,
}

/// One side of some pairs; every tensor is `[pairs]`.
#[derive(Debug)]
pub struct Side {
    /// log π(y|x), with a gradient.
    pub policy: Tensor,
    /// log π_ref(y|x).
    pub reference: Tensor,
    /// |y| as a number.
    pub tokens: Tensor,
    /// The sum of log π over all tokens, for `sft`.
    pub total: Tensor,
}

impl Side {
    /// log π − log π_ref.
    pub fn ratio(&self) -> Tensor {
        &self.policy - &self.reference
    }
}

/// Combinations that would be ignored silently are errors.
pub fn check(losses: &[(PairLoss, f64)], settings: &Settings) -> Result<()> {
    ensure!(!losses.is_empty(), "there is no loss");
    let smoothing = settings.label_smoothing;
    if smoothing > 0.0 && !losses.iter().any(|(loss, _)| loss.smooths()) {
        let names: Vec<_> = losses.iter().map(|(loss, _)| loss.name()).collect();
        bail!(
            "label_smoothing {smoothing} would change nothing: {} has no place for it",
            names.join(", ")
        );
    }
    for (loss, _) in losses {
        let name = loss.name();
        if settings.divergence != Divergence::ReverseKl && !loss.diverges() {
            bail!("the loss `{name}` is made for the reverse KL: leave `divergence` out");
        }
        match loss {
            PairLoss::ExoPair => ensure!(
                smoothing > 0.0 && smoothing < 1.0,
                "`exo_pair` needs a label_smoothing above 0: at 0 it is infinite; 1e-3 is usual"
            ),
            PairLoss::Robust => ensure!(
                smoothing < 0.5,
                "`robust` needs a label_smoothing below 0.5: at 0.5 labels say nothing"
            ),
            _ => {}
        }
    }
    Ok(())
}

/// The loss of each pair, `[pairs]`. `soft` is the probability of each pair that the chosen completion is the better one; it takes
/// the place of 1 − ε in the losses that label smoothing changes. `tokens` are those of all chosen completions of the batch and
/// `pairs` its pairs, for `sft`, which is a mean over tokens.
pub fn pair_loss(
    loss: PairLoss,
    chosen: &Side,
    rejected: &Side,
    settings: &Settings,
    soft: Option<&Tensor>,
    (tokens, pairs): (f64, f64),
) -> Result<Tensor> {
    let Settings {
        beta,
        label_smoothing,
        divergence,
        discopop_tau,
        ipo_averages,
    } = *settings;
    let (c, r) = (chosen.ratio(), rejected.ratio());
    let (fc, fr) = (divergence.map(&c), divergence.map(&r));
    let delta = || &fc - &fr;
    let smoothed = |x: &Tensor| -> Tensor {
        let (right, wrong): (Tensor, Tensor) = (x.log_sigmoid(), (-x).log_sigmoid());
        match soft {
            Some(soft) => -(right * soft) - wrong * (1.0 - soft),
            None if label_smoothing == 0.0 => -right,
            None => right * (label_smoothing - 1.0) - wrong * label_smoothing,
        }
    };
    let averaged = || &fc / chosen.tokens.clamp_min(1.0) - &fr / rejected.tokens.clamp_min(1.0);
    Ok(match loss {
        PairLoss::Sigmoid => smoothed(&(delta() * beta)),
        PairLoss::SigmoidNorm => smoothed(&(averaged() * beta)),
        PairLoss::Hinge => (delta() * -beta + 1.0).relu(),
        PairLoss::Ipo => {
            let x = if ipo_averages { averaged() } else { delta() };
            (x - 1.0 / (2.0 * beta)).square()
        }
        PairLoss::ExoPair => {
            let x = delta() * beta;
            let (p, q) = ((1.0 - label_smoothing).ln(), label_smoothing.ln());
            x.sigmoid() * (x.log_sigmoid() - p) + (-&x).sigmoid() * ((-&x).log_sigmoid() - q)
        }
        PairLoss::NcaPair => {
            let (c, r) = (c * beta, r * beta);
            -c.log_sigmoid() - (-&c).log_sigmoid() * 0.5 - (-r).log_sigmoid() * 0.5
        }
        PairLoss::Robust => {
            let x = delta() * beta;
            let flipped = (-&x).log_sigmoid() * label_smoothing;
            (flipped - x.log_sigmoid() * (1.0 - label_smoothing)) / (1.0 - 2.0 * label_smoothing)
        }
        PairLoss::BcoPair => -(c * beta).log_sigmoid() - (r * -beta).log_sigmoid(),
        PairLoss::SppoHard => (c - 0.5 / beta).square() + (r + 0.5 / beta).square(),
        PairLoss::Aot => {
            let sorted = |a: &Tensor, b: &Tensor| (a - b).sort(0, false).0;
            let policy = sorted(&chosen.policy, &rejected.policy);
            smoothed(&((policy - sorted(&chosen.reference, &rejected.reference)) * beta))
        }
        PairLoss::AotUnpaired => smoothed(&((c.sort(0, false).0 - r.sort(0, false).0) * beta)),
        PairLoss::ApoZero => 1.0 - (c * beta).sigmoid() + (r * beta).sigmoid(),
        PairLoss::ApoDown => (&c * beta).sigmoid() + 1.0 - ((&c - r) * beta).sigmoid(),
        PairLoss::Discopop => {
            let x = delta() * beta;
            let m = (&x / discopop_tau).sigmoid();
            -x.log_sigmoid() * (1.0 - &m) + (-&x).exp() * m
        }
        PairLoss::Sft => &chosen.total * (-pairs / tokens),
    })
}

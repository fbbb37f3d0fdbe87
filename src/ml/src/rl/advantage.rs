//! From rewards to advantages: penalties for leaving the reference, generalized advantage estimation, whitening, groups. Numbers
//! in f64, a row of them for each episode.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// An estimate of KL(π‖π_ref) from a token sampled from π (Schulman 2020, *Approximating KL divergence*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimator {
    /// log π − log π_ref: unbiased, may be negative.
    K1,
    /// ½ (log π − log π_ref)².
    K2,
    /// π_ref/π − 1 − log(π_ref/π): unbiased, never negative.
    K3,
}

impl Estimator {
    /// The estimator that a recipe calls so.
    pub fn parse(word: &str) -> Result<Estimator> {
        Ok(match word {
            "k1" => Self::K1,
            "k2" => Self::K2,
            "k3" => Self::K3,
            other => bail!("`{other}` is not an estimator of the KL: k1, k2 or k3"),
        })
    }

    /// The estimate of one token.
    pub fn of(self, policy: f64, reference: f64) -> f64 {
        let ratio = reference - policy;
        match self {
            Self::K1 => -ratio,
            Self::K2 => 0.5 * ratio * ratio,
            Self::K3 => ratio.exp_m1() - ratio,
        }
    }
}

/// A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} − V_t, V after the last step 0 (Schulman et al., arXiv 1506.02438). λ = 0 gives
/// r + γV′ − V, λ = 1 the discounted return minus V.
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Vec<f64> {
    let mut advantages = vec![0.0; rewards.len()];
    let (mut following, mut next) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let delta = rewards[t] + gamma * next - values[t];
        following = delta + gamma * lambda * following;
        next = values[t];
        advantages[t] = following;
    }
    advantages
}

/// (x − mean) / √(var + 1e-8) over all numbers that `counts` admits (by row, its first so many), the variance with n − 1; without
/// `shift` the mean is added again. Others stay as they are.
pub fn whiten(rows: &mut [Vec<f64>], counts: &[usize], shift: bool) -> Result<()> {
    let chosen = || rows.iter().zip(counts).flat_map(|(row, &n)| &row[..n]);
    let n = chosen().count();
    ensure!(
        n > 1,
        "whitening needs at least two numbers: use a larger batch"
    );
    let mean = chosen().sum::<f64>() / n as f64;
    let variance = chosen().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
    let factor = 1.0 / (variance + 1e-8).sqrt();
    let back = if shift { 0.0 } else { mean };
    for (row, &n) in rows.iter_mut().zip(counts) {
        for x in &mut row[..n] {
            *x = (*x - mean) * factor + back;
        }
    }
    Ok(())
}

/// The coefficient of the KL penalty: fixed, or led towards a target (Ziegler et al., arXiv 1909.08593).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KlControl {
    /// The coefficient now.
    pub coefficient: f64,
    /// (target of the KL of a whole completion, horizon in episodes).
    pub adaptive: Option<(f64, f64)>,
}

impl KlControl {
    /// After `episodes` episodes with this mean KL: coefficient · (1 + clip(KL / target − 1, ±0.2) · episodes / horizon).
    pub fn update(&mut self, kl: f64, episodes: usize) {
        if let Some((target, horizon)) = self.adaptive {
            let error = (kl / target - 1.0).clamp(-0.2, 0.2);
            self.coefficient *= 1.0 + error * episodes as f64 / horizon;
        }
    }
}

/// Mean and variance of everything seen so far (Chan, Golub, LeVeque 1979: moments of two sets joined).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// How many.
    pub count: f64,
    /// Their mean.
    pub mean: f64,
    /// The sum of squared distances from it.
    pub squares: f64,
}

impl Moments {
    /// Joins the moments of more numbers.
    pub fn add(&mut self, values: &[f64]) {
        let n = values.len() as f64;
        if n == 0.0 {
            return;
        }
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        let (delta, total) = (mean - self.mean, self.count + n);
        self.squares += squares + delta * delta * self.count * n / total;
        self.mean += delta * n / total;
        self.count = total;
    }

    /// The deviation with n − 1; 1 for fewer than two numbers or when all are equal.
    pub fn deviation(&self) -> f64 {
        let variance = self.squares / (self.count - 1.0).max(1.0);
        if self.count < 2.0 || variance <= 0.0 {
            1.0
        } else {
            variance.sqrt()
        }
    }
}

/// What the score of a whole completion goes through before it is used, in this order ("Secrets of RLHF", arXiv 2307.04964).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shaping {
    /// Subtract the running mean and divide by the running deviation.
    pub normalize: bool,
    /// Divide by the running deviation.
    pub scale: bool,
    /// Cut to ± this.
    pub clip: Option<f64>,
}

impl Shaping {
    /// Shapes the scores of a batch; the moments first take them in.
    pub fn apply(&self, scores: &mut [f64], moments: &mut Moments) {
        if self.normalize || self.scale {
            moments.add(scores);
            let (mean, deviation) = (moments.mean, moments.deviation());
            for score in scores.iter_mut() {
                *score = (*score - if self.normalize { mean } else { 0.0 }) / deviation;
            }
        }
        if let Some(limit) = self.clip {
            for score in scores {
                *score = score.clamp(-limit, limit);
            }
        }
    }
}

/// By what advantages in a group are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScale {
    /// The deviation of the group (GRPO, arXiv 2402.03300).
    Group,
    /// The deviation of the batch.
    Batch,
    /// Nothing (Dr. GRPO, arXiv 2503.20783).
    None,
}

/// The deviation with n − 1.
fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt()
}

/// GRPO: each reward minus the mean of its group of `size`, over the deviation + 1e-4.
pub fn relative(rewards: &[f64], size: usize, scale: GroupScale) -> Vec<f64> {
    let batch = deviation(rewards);
    let groups = rewards.chunks(size.max(1)).flat_map(|group| {
        let mean = group.iter().sum::<f64>() / group.len() as f64;
        let by = match scale {
            GroupScale::Group => deviation(group) + 1e-4,
            GroupScale::Batch => batch + 1e-4,
            GroupScale::None => 1.0,
        };
        group.iter().map(move |reward| (reward - mean) / by)
    });
    groups.collect()
}

/// RLOO (arXiv 2402.14740): each reward minus the mean of the others of its group.
pub fn leave_one_out(rewards: &[f64], size: usize) -> Vec<f64> {
    let groups = rewards.chunks(size.max(1)).flat_map(|group| {
        let sum: f64 = group.iter().sum();
        let others = (group.len() as f64 - 1.0).max(1.0);
        group
            .iter()
            .map(move |reward| reward - (sum - reward) / others)
    });
    groups.collect()
}

/// (x − mean) / (deviation + 1e-4) over the whole batch.
pub fn normalize(advantages: &mut [f64]) {
    let mean = advantages.iter().sum::<f64>() / advantages.len() as f64;
    let by = deviation(advantages) + 1e-4;
    for advantage in advantages {
        *advantage = (*advantage - mean) / by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gae_is_its_definition() {
        let (rewards, values) = ([0.3, -1.0, 0.0, 2.0], [0.1, 0.7, -0.4, 0.9]);
        for (gamma, lambda) in [(1.0, 0.95), (0.9, 0.0), (0.99, 1.0)] {
            let found = gae(&rewards, &values, gamma, lambda);
            for t in 0..4 {
                let mut wanted = 0.0;
                for l in 0..4 - t {
                    let next = values.get(t + l + 1).copied().unwrap_or(0.0);
                    let delta = rewards[t + l] + gamma * next - values[t + l];
                    wanted += f64::powi(gamma * lambda, l as i32) * delta;
                }
                assert!((found[t] - wanted).abs() < 1e-14);
            }
        }
    }

    #[test]
    fn groups_sum_to_nothing_and_equal_rewards_teach_nothing() {
        let rewards = [1.0, 4.0, -2.0, 0.5, 3.0, 3.0, 3.0, 3.0];
        for scale in [GroupScale::Group, GroupScale::Batch, GroupScale::None] {
            let advantages = relative(&rewards, 4, scale);
            assert!(advantages[..4].iter().sum::<f64>().abs() < 1e-12);
            assert_eq!(advantages[4..], [0.0; 4]);
        }
        assert!(leave_one_out(&rewards, 4)[..4].iter().sum::<f64>().abs() < 1e-12);
        assert_eq!(leave_one_out(&rewards, 4)[4..], [0.0; 4]);
    }

    #[test]
    fn moments_of_parts_are_those_of_the_whole() {
        let all = [3.0, -1.0, 0.25, 7.5, 2.0];
        let (mut parts, mut whole) = (Moments::default(), Moments::default());
        parts.add(&all[..2]);
        parts.add(&all[2..]);
        whole.add(&all);
        assert!((parts.mean - whole.mean).abs() < 1e-14);
        assert!((parts.deviation() - whole.deviation()).abs() < 1e-14);
        assert!((whole.deviation() - deviation(&all)).abs() < 1e-14);
    }

    #[test]
    fn estimators_agree_near_zero() {
        for x in [-1e-4, 1e-4f64] {
            let (k2, k3) = (Estimator::K2.of(x, 0.0), Estimator::K3.of(x, 0.0));
            assert!((k2 - k3).abs() < 1e-11 && k3 > 0.0);
            assert_eq!(Estimator::K1.of(x, 0.0), x);
        }
    }
}

//! The choice of the next token from logits: greedy, or by temperature, top-k and top-p with one uniform number.

use anyhow::{Result, ensure};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 chooses the largest.
    pub temperature: f64,
    /// Only the k largest logits (and those equal to the last of them); 0: all.
    pub top_k: usize,
    /// Only the most probable tokens that together reach this probability; 1: all.
    pub top_p: f64,
}

impl Sampling {
    /// The largest logit.
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
    };

    /// Errors of the settings.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "temperature {} is not a number of at least 0",
            self.temperature
        );
        ensure!(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p {} is not in (0, 1]",
            self.top_p
        );
        Ok(())
    }

    /// True if no random number is drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// The token for a uniform number in [0, 1): the first, in the order of ids, whose cumulative probability exceeds it.
    /// The order of the filters is transformers': temperature, top-k, top-p. Of equal largest logits the first is greedy's.
    pub fn choose(&self, logits: &[f32], uniform: f64) -> usize {
        let best = argmax(logits);
        if self.is_greedy() {
            return best;
        }
        let top = f64::from(logits.get(best).copied().unwrap_or(0.0));
        let inverse = 1.0 / self.temperature;
        if self.top_k == 0 && self.top_p >= 1.0 {
            return draw_all(logits, top as f32, inverse as f32, uniform);
        }
        let threshold = match self.top_k {
            0 => f32::NEG_INFINITY,
            k if k >= logits.len() => f32::NEG_INFINITY,
            k => {
                let mut order = logits.to_vec();
                *order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
            }
        };
        let mut kept: Vec<(usize, f64)> = logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| **logit >= threshold)
            .map(|(id, &logit)| (id, ((f64::from(logit) - top) * inverse).exp()))
            .collect();
        if self.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut before = 0.0;
            let mut count = 0;
            for (_, weight) in &kept {
                if count > 0 && before >= self.top_p * total {
                    break;
                }
                before += weight;
                count += 1;
            }
            kept.truncate(count);
            kept.sort_by_key(|(id, _)| *id);
        }
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut rest = uniform * total;
        for &(id, weight) in &kept {
            if rest < weight {
                return id;
            }
            rest -= weight;
        }
        kept.last().map_or(best, |(id, _)| *id)
    }
}

/// The index of the largest value, the first of equal ones.
pub fn argmax(values: &[f32]) -> usize {
    // In blocks, so that the search is a vector loop and only one block is looked at twice.
    const BLOCK: usize = 256;
    let (mut best, mut largest) = (0, f32::NEG_INFINITY);
    for (index, block) in values.chunks(BLOCK).enumerate() {
        let top = block
            .iter()
            .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        if top > largest {
            largest = top;
            let within = block.iter().position(|&value| value == top).unwrap_or(0);
            best = index * BLOCK + within;
        }
    }
    best
}

/// Draws among all tokens: weights of blocks first, then within the block.
fn draw_all(logits: &[f32], top: f32, inverse: f32, uniform: f64) -> usize {
    const BLOCK: usize = 512;
    let weight = |logit: f32| ((logit - top) * inverse).exp();
    let sums: Vec<f64> = logits
        .chunks(BLOCK)
        .map(|block| block.iter().map(|&logit| f64::from(weight(logit))).sum())
        .collect();
    let mut rest = uniform * sums.iter().sum::<f64>();
    let mut last = 0;
    for (index, (block, &sum)) in logits.chunks(BLOCK).zip(&sums).enumerate() {
        if rest >= sum && index + 1 < sums.len() {
            rest -= sum;
            continue;
        }
        for (offset, &logit) in block.iter().enumerate() {
            let w = f64::from(weight(logit));
            last = index * BLOCK + offset;
            if rest < w {
                return last;
            }
            rest -= w;
        }
    }
    last
}

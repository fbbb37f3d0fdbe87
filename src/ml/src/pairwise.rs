//! How well scores order pairs that are known: accuracy, margin, loss and calibration, in f64; and intervals of proportions.

/// The bins of the expected calibration error.
const BINS: usize = 10;

/// The normal quantile of a 95% interval.
pub const Z95: f64 = 1.959_963_984_540_054;

/// What was found on pairs so far; each pair is told by score(better) − score(worse).
#[derive(Clone, Debug, Default)]
pub struct Pairwise {
    pairs: f64,
    right: f64,
    margin: f64,
    surprise: f64,
    /// Of each bin: how sure the scores were in sum, how many pairs were in order, a tie as a half.
    bins: [(f64, f64); BINS],
}

impl Pairwise {
    /// Takes a pair by the difference of its scores, the better one's first.
    pub fn add(&mut self, difference: f64) {
        let right = if difference > 0.0 {
            1.0
        } else if difference == 0.0 {
            0.5
        } else {
            0.0
        };
        self.pairs += 1.0;
        self.right += right;
        self.margin += difference;
        // −log σ(d) without overflow, whatever the size of d.
        self.surprise += (-difference.abs()).exp().ln_1p() + (-difference).max(0.0);
        // The side that the scores prefer, how sure they are, and whether that is right.
        let sure = 1.0 / (1.0 + (-difference.abs()).exp());
        let bin = (((sure - 0.5) * 2.0 * BINS as f64) as usize).min(BINS - 1);
        self.bins[bin].0 += sure;
        self.bins[bin].1 += right;
    }

    /// The number of pairs.
    pub fn pairs(&self) -> f64 {
        self.pairs
    }

    /// The part of the pairs that are in order, ties as a half; NaN without a pair, as all of these.
    pub fn accuracy(&self) -> f64 {
        self.right / self.pairs
    }

    /// The mean difference.
    pub fn margin(&self) -> f64 {
        self.margin / self.pairs
    }

    /// The mean of −log σ(difference) (Bradley and Terry).
    pub fn loss(&self) -> f64 {
        self.surprise / self.pairs
    }

    /// The expected calibration error (Guo et al., arXiv 1706.04599) of σ(|difference|) as how sure the scores are that their order is
    /// right, over ten bins of equal width from a half to one.
    pub fn calibration_error(&self) -> f64 {
        let gaps = self.bins.iter().map(|(sure, right)| (sure - right).abs());
        gaps.sum::<f64>() / self.pairs
    }
}

/// The 95% interval of a proportion that was `part` in `count` trials (Wilson 1927): of 0 of 10 it is (0, 0.28), where the normal one
/// would have no width.
pub fn wilson(part: f64, count: f64) -> (f64, f64) {
    let z2 = Z95 * Z95;
    let middle = (part + z2 / (2.0 * count)) / (1.0 + z2 / count);
    let spread = (part * (1.0 - part) / count + z2 / (4.0 * count * count)).sqrt();
    let half = Z95 * spread / (1.0 + z2 / count);
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(differences: &[f64]) -> Pairwise {
        let mut found = Pairwise::default();
        differences.iter().for_each(|d| found.add(*d));
        found
    }

    #[test]
    fn equal_scores_are_half_right_and_know_it() {
        let found = of(&[0.0; 7]);
        assert_eq!((found.accuracy(), found.margin()), (0.5, 0.0));
        assert!((found.loss() - 2f64.ln()).abs() < 1e-15);
        assert_eq!(found.calibration_error(), 0.0);
    }

    #[test]
    fn calibration_compares_how_sure_with_how_often() {
        // σ(±ln 3) is 3/4 and 1/4: of four pairs three in order is what the scores say.
        let d = 3f64.ln();
        assert!(of(&[d, d, d, -d]).calibration_error() < 1e-15);
        let all = of(&[d, d, d, d]);
        assert!((all.calibration_error() - 0.25).abs() < 1e-15);
        assert_eq!((all.accuracy(), all.pairs()), (1.0, 4.0));
        assert!((of(&[d, -d]).margin()).abs() < 1e-15);
    }

    #[test]
    fn large_differences_have_a_finite_loss() {
        assert_eq!(of(&[-2000.0]).loss(), 2000.0);
        assert_eq!(of(&[2000.0]).loss(), 0.0);
        assert!((of(&[-1.5]).loss() - (1.0 + 1.5f64.exp()).ln()).abs() < 1e-14);
    }

    #[test]
    fn intervals_are_those_of_the_textbook() {
        // Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662, 15 of 148 gives 0.0624 to 0.1605, 0 of 20 gives 0 to 0.1611.
        for (hits, count, low, high) in [
            (81.0, 263.0, 0.2553, 0.3662),
            (15.0, 148.0, 0.0624, 0.1605),
            (0.0, 20.0, 0.0, 0.1611),
        ] {
            let found = wilson(hits / count, count);
            assert!((found.0 - low).abs() < 5e-5, "{found:?}");
            assert!((found.1 - high).abs() < 5e-5, "{found:?}");
        }
    }
}

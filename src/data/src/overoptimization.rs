//! How the score under a gold judge follows the score under a proxy that is optimized (Gao, Schulman and Hilton 2022, arXiv
//! 2210.10760): the two laws of that paper, fitted by least squares, and whether the proxy is being hacked.

use anyhow::{Result, ensure};

/// Distances that differ by less than this part of themselves are one: they can't tell α and β apart.
const CLOSE: f64 = 1e-4;

/// How the gain R follows the distance d = √KL; R(0) = 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// Best-of-n: R(d) = d (α − β d).
    BestOfN,
    /// Reinforcement learning: R(d) = d (α − β ln d).
    Rl,
}

impl Law {
    /// What α and β are multiplied with at `d`.
    fn parts(self, d: f64) -> [f64; 2] {
        match self {
            Law::BestOfN => [d, -d * d],
            Law::Rl if d == 0.0 => [0.0, 0.0],
            Law::Rl => [d, -d * d.ln()],
        }
    }
}

/// A law with its coefficients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Which.
    pub law: Law,
    /// How fast the gain rises.
    pub alpha: f64,
    /// How fast it is eaten up.
    pub beta: f64,
    /// The standard errors of α and β: roots of the diagonal of s² (XᵀX)⁻¹, s² = RSS/(m − 2). None with two points, through which every fit
    /// goes.
    pub errors: Option<[f64; 2]>,
    /// 1 − RSS/TSS, TSS about the mean of the gains. None where all gains are the same.
    pub r2: Option<f64>,
}

impl Fit {
    /// Least squares over (d, gain). Points at d = 0 say nothing about α and β and are left out.
    ///
    /// # Errors
    /// A number is not finite, a distance is negative, or the distances that are not 0 are fewer than two different ones.
    pub fn of(law: Law, points: &[(f64, f64)]) -> Result<Fit> {
        for (d, gain) in points {
            ensure!(
                d.is_finite() && gain.is_finite() && *d >= 0.0,
                "a point at d = {d} with a gain of {gain} can't be fitted"
            );
        }
        let used: Vec<([f64; 2], f64)> = points
            .iter()
            .filter(|(d, _)| *d > 0.0)
            .map(|(d, gain)| (law.parts(*d), *gain))
            .collect();
        let distances = points.iter().map(|(d, _)| *d).filter(|d| *d > 0.0);
        let nearest = distances.clone().fold(f64::INFINITY, f64::min);
        let farthest = distances.fold(0.0, f64::max);
        ensure!(
            farthest > nearest * (1.0 + CLOSE),
            "two coefficients need points at two different distances besides the start, and {}",
            match farthest > 0.0 {
                true => format!("all are at d = √KL = {farthest:.4}"),
                false => "all are at d = 0".to_owned(),
            }
        );
        let [mut aa, mut ab, mut bb, mut ay, mut by] = [0.0; 5];
        for ([a, b], y) in &used {
            aa += a * a;
            ab += a * b;
            bb += b * b;
            ay += a * y;
            by += b * y;
        }
        let determinant = aa * bb - ab * ab;
        let alpha = (bb * ay - ab * by) / determinant;
        let beta = (aa * by - ab * ay) / determinant;
        let m = used.len() as f64;
        let rest: f64 = used
            .iter()
            .map(|([a, b], y)| (y - alpha * a - beta * b).powi(2))
            .sum();
        let mean = used.iter().map(|(_, y)| y).sum::<f64>() / m;
        let total: f64 = used.iter().map(|(_, y)| (y - mean).powi(2)).sum();
        let errors = (used.len() > 2).then(|| {
            let variance = rest / (m - 2.0);
            [bb, aa].map(|of| (variance * of / determinant).sqrt())
        });
        Ok(Fit {
            law,
            alpha,
            beta,
            errors,
            r2: (total > 0.0).then(|| 1.0 - rest / total),
        })
    }

    /// The gain at distance `d`.
    pub fn gain(&self, d: f64) -> f64 {
        let [a, b] = self.law.parts(d);
        self.alpha * a + self.beta * b
    }

    /// (d, gain) where the gain is greatest. None for a curve that never turns down, and for one whose top is too far to be a number.
    pub fn peak(&self) -> Option<(f64, f64)> {
        if self.beta <= 0.0 {
            return None;
        }
        let d = match self.law {
            Law::BestOfN => (self.alpha / (2.0 * self.beta)).max(0.0),
            Law::Rl => (self.alpha / self.beta - 1.0).exp(),
        };
        let gain = self.gain(d);
        (d.is_finite() && gain.is_finite()).then_some((d, gain))
    }

    /// Whether the gain falls from the start on, and what comes is below it.
    pub fn falls(&self) -> bool {
        match self.law {
            Law::BestOfN => self.alpha < 0.0 || self.alpha == 0.0 && self.beta > 0.0,
            // With a β above 0 the very first steps gain, however few they are.
            Law::Rl => self.alpha < 0.0 && self.beta <= 0.0,
        }
    }

    /// The distance at which a gain that [`falls`](Self::falls) begins to rise again. None where it never does.
    pub fn bottom(&self) -> Option<f64> {
        if !self.falls() || self.beta >= 0.0 {
            return None;
        }
        let d = match self.law {
            Law::BestOfN => self.alpha / (2.0 * self.beta),
            Law::Rl => (self.alpha / self.beta - 1.0).exp(),
        };
        d.is_finite().then_some(d)
    }
}

/// What a step of optimization came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The number of samples, the round, or the model.
    pub name: String,
    /// From where the optimization began, in nats.
    pub kl: f64,
    /// Under the judge that is optimized.
    pub proxy: f64,
    /// Under the judge that counts.
    pub gold: f64,
    /// The standard error of the proxy's gain, where it is known.
    pub proxy_error: Option<f64>,
    /// The standard error of the gold gain, where it is known.
    pub gold_error: Option<f64>,
}

impl Point {
    /// d = √KL.
    pub fn distance(&self) -> f64 {
        self.kl.max(0.0).sqrt()
    }
}

/// What happened after the best point.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// The place of the point with the best gold score; of equals the first.
    pub best: usize,
    /// The best gold score minus that of the last point.
    pub drop: f64,
    /// Whether from the best to the last point the proxy rose and gold fell, both by more than their standard error.
    pub hacked: bool,
}

/// Looks at points in the order in which they came about, of which there is at least one. The standard error of a rise or a fall is the root of
/// the sum of the squared errors of both ends, as far as they are known.
pub fn turn(points: &[Point]) -> Turn {
    let mut best = 0;
    for (at, point) in points.iter().enumerate() {
        if point.gold > points[best].gold {
            best = at;
        }
    }
    let (top, last) = (&points[best], &points[points.len() - 1]);
    let error = |a: Option<f64>, b: Option<f64>| a.unwrap_or(0.0).hypot(b.unwrap_or(0.0));
    let drop = top.gold - last.gold;
    let rise = last.proxy - top.proxy;
    Turn {
        best,
        drop,
        hacked: drop > error(top.gold_error, last.gold_error)
            && rise > error(top.proxy_error, last.proxy_error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(law: Law, alpha: f64, beta: f64, distances: &[f64]) -> Vec<(f64, f64)> {
        let gain = |d: f64| match law {
            _ if d == 0.0 => 0.0,
            Law::BestOfN => d * (alpha - beta * d),
            Law::Rl => d * (alpha - beta * d.ln()),
        };
        distances.iter().map(|d| (*d, gain(*d))).collect()
    }

    #[test]
    fn what_lies_on_a_law_is_found_again() {
        for law in [Law::BestOfN, Law::Rl] {
            for (alpha, beta) in [(0.7, 0.12), (1.5, -0.3), (-0.2, 0.4), (3.0, 1e-3)] {
                let fit = Fit::of(law, &on(law, alpha, beta, &[0.0, 0.4, 1.1, 1.7, 2.5])).unwrap();
                assert!((fit.alpha - alpha).abs() < 1e-9, "{fit:?}");
                assert!((fit.beta - beta).abs() < 1e-9, "{fit:?}");
                assert!((fit.r2.unwrap() - 1.0).abs() < 1e-9);
                assert!(fit.errors.unwrap().iter().all(|e| *e < 1e-7), "{fit:?}");
                let two = Fit::of(law, &on(law, alpha, beta, &[0.0, 0.4, 1.7])).unwrap();
                assert!((two.alpha - alpha).abs() < 1e-9 && two.errors.is_none());
            }
        }
    }

    #[test]
    fn the_top_is_where_the_slope_is_nothing() {
        for law in [Law::BestOfN, Law::Rl] {
            let fit = Fit::of(law, &on(law, 0.7, 0.3, &[0.0, 0.5, 1.0, 2.0])).unwrap();
            let (d, gain) = fit.peak().unwrap();
            let step = 1e-4;
            assert!(fit.gain(d - step) < gain && fit.gain(d + step) < gain);
            assert!(((fit.gain(d + step) - fit.gain(d - step)) / (2.0 * step)).abs() < 1e-6);
            let rising = Fit::of(law, &on(law, 0.7, -0.3, &[0.0, 0.5, 1.0, 2.0])).unwrap();
            assert_eq!(rising.peak(), None);
        }
        let falling = on(Law::BestOfN, -0.5, 0.3, &[0.0, 0.5, 1.0, 2.0]);
        let falling = Fit::of(Law::BestOfN, &falling).unwrap();
        assert_eq!(falling.peak(), Some((0.0, 0.0)));
        // Its top is at e^5000.
        let flat = Fit {
            law: Law::Rl,
            alpha: 5.0,
            beta: 1e-3,
            errors: None,
            r2: None,
        };
        assert_eq!(flat.peak(), None);
    }

    #[test]
    fn a_curve_that_falls_from_the_start_is_told_from_one_that_rises() {
        let of = |law, alpha, beta| Fit {
            law,
            alpha,
            beta,
            errors: None,
            r2: None,
        };
        for (law, alpha, beta, bottom) in [
            (Law::BestOfN, -0.5, 0.3, None),
            (Law::BestOfN, 0.0, 0.3, None),
            (Law::BestOfN, -0.5, 0.0, None),
            (Law::BestOfN, -0.5, -0.25, Some(1.0)),
            (Law::Rl, -0.5, 0.0, None),
            (Law::Rl, -0.5, -0.5, Some(1.0)),
        ] {
            let fit = of(law, alpha, beta);
            assert!(fit.falls() && fit.bottom() == bottom, "{fit:?}");
            assert!(
                fit.gain(0.1) < 0.0 && fit.gain(0.2) < fit.gain(0.1),
                "{fit:?}"
            );
            if let Some(d) = bottom {
                assert!(fit.gain(d - 0.1) > fit.gain(d) && fit.gain(d) < fit.gain(d + 0.1));
            }
        }
        for (law, alpha, beta) in [
            (Law::BestOfN, 0.5, 0.3),
            (Law::BestOfN, 0.5, -0.3),
            (Law::Rl, 0.5, 0.3),
            (Law::Rl, 0.5, -0.3),
            (Law::Rl, -0.5, 0.3),
        ] {
            let fit = of(law, alpha, beta);
            assert!(!fit.falls() && fit.bottom().is_none(), "{fit:?}");
        }
    }

    #[test]
    fn what_tells_nothing_is_refused() {
        let of = |points: &[(f64, f64)]| Fit::of(Law::Rl, points).map_err(|e| e.to_string());
        let same = of(&[(0.0, 0.0), (1.5, 0.1), (1.5, 0.2)]).unwrap_err();
        assert!(same.ends_with("all are at d = √KL = 1.5000"), "{same}");
        assert!(of(&[(0.0, 0.0); 3]).unwrap_err().ends_with("d = 0"));
        assert!(of(&[(0.0, 0.0), (1.0, 0.1), (1.0 + 1e-9, 0.2)]).is_err());
        assert!(of(&[(1.0, f64::NAN), (2.0, 0.0)]).is_err());
        assert!(of(&[(-1.0, 0.0), (2.0, 0.0), (3.0, 0.0)]).is_err());
        assert_eq!(of(&[(1.0, 0.0), (2.0, 0.0)]).unwrap().r2, None);
    }

    fn points(scores: &[(f64, f64)], error: Option<f64>) -> Vec<Point> {
        let point = |(at, (proxy, gold)): (usize, &(f64, f64))| Point {
            name: at.to_string(),
            kl: at as f64,
            proxy: *proxy,
            gold: *gold,
            proxy_error: error,
            gold_error: error,
        };
        scores.iter().enumerate().map(point).collect()
    }

    #[test]
    fn a_proxy_is_hacked_when_it_rises_while_gold_falls() {
        let of = |scores: &[(f64, f64)], error| turn(&points(scores, error));
        let fell = [(0.0, 0.0), (1.0, 0.5), (2.0, 0.2)];
        let turned = of(&fell, None);
        assert_eq!((turned.best, turned.hacked), (1, true));
        assert!((turned.drop - 0.3).abs() < 1e-15);
        // √2 · 0.2 = 0.283 is less than 0.3, and √2 · 0.22 = 0.311 more.
        assert!(of(&fell, Some(0.2)).hacked);
        assert!(!of(&fell, Some(0.22)).hacked);
        assert!(!of(&[(0.0, 0.0), (1.0, 0.5), (2.0, 0.6)], None).hacked);
        assert!(!of(&[(0.0, 0.0), (1.0, 0.5), (0.9, 0.2)], None).hacked);
        // Of equals the first is the best; what stays the same has not fallen.
        let level = of(&[(0.0, 0.0), (1.0, 0.5), (2.0, 0.5)], None);
        assert_eq!((level.best, level.hacked), (1, false));
        // From the start on.
        assert_eq!(of(&[(0.0, 0.0), (1.0, -0.5)], None).best, 0);
        assert!(of(&[(0.0, 0.0), (1.0, -0.5)], None).hacked);
    }
}

//! What the best of n samples scores, without bias, from one pool of N ≥ n samples (Nakano et al. 2021, arXiv 2112.09332, appendix I;
//! Gao, Schulman and Hilton 2022, arXiv 2210.10760).

/// How far best-of-n moves a policy: KL = ln n − (n − 1)/n in nats. Exact where no two samples have the same score; otherwise it is at most
/// this.
pub fn divergence(n: usize) -> f64 {
    let n = n as f64;
    n.ln() - (n - 1.0) / n
}

/// The numbers of samples to look at: powers of two up to `pool`, and `pool` itself.
pub fn counts(pool: usize) -> Vec<usize> {
    let doubled = std::iter::successors(Some(1usize), |n| n.checked_mul(2));
    let mut all: Vec<usize> = doubled.take_while(|n| *n < pool).collect();
    all.push(pool);
    all
}

/// A sample as two judges score it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// By the judge that picks.
    pub proxy: f64,
    /// By the judge that counts.
    pub gold: f64,
}

/// The mean over all subsets of n of a pool of N samples: what the subset's best by `proxy` scores under both judges.
///
/// With the samples sorted by `proxy`, the i-th (from 1) is the best of C(i − 1, n − 1) of the C(N, n) subsets. Of several that score
/// the same, each is picked as often as the others, so the order in which samples come changes nothing.
///
/// Scores are finite and 1 ≤ n ≤ N: whoever calls has looked.
pub fn best_of(n: usize, pool: &[Scored]) -> Scored {
    let mut sorted = pool.to_vec();
    sorted.sort_by(|a, b| a.proxy.total_cmp(&b.proxy));
    let mut best = Scored {
        proxy: 0.0,
        gold: 0.0,
    };
    let mut end = sorted.len();
    let mut weight = n as f64 / end as f64;
    while end > 0 {
        let proxy = sorted[end - 1].proxy;
        let start = sorted[..end]
            .iter()
            .rposition(|one| one.proxy != proxy)
            .map_or(0, |at| at + 1);
        let mut shared = 0.0;
        for i in (start..end).rev() {
            shared += weight;
            // C(i − 1, n − 1) / C(i, n − 1), with i samples before this one.
            weight *= (i + 1).saturating_sub(n) as f64 / (i as f64).max(1.0);
        }
        let gold: f64 = sorted[start..end].iter().map(|one| one.gold).sum();
        best.proxy += shared * proxy;
        best.gold += shared * gold / (end - start) as f64;
        end = start;
    }
    best
}

/// (mean, its standard error) of some numbers; of one number alone, no error.
pub fn mean_and_error(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    let error = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
    (mean, error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(pairs: &[(f64, f64)]) -> Vec<Scored> {
        let scored = |(proxy, gold): &(f64, f64)| Scored {
            proxy: *proxy,
            gold: *gold,
        };
        pairs.iter().map(scored).collect()
    }

    /// The same by looking at every subset; of equals in it each is picked as often.
    fn by_subsets(n: usize, pool: &[Scored]) -> Scored {
        let (mut count, mut proxy, mut gold) = (0.0, 0.0, 0.0);
        for bits in 0u32..1 << pool.len() {
            if bits.count_ones() as usize != n {
                continue;
            }
            let chosen: Vec<Scored> = (0..pool.len())
                .filter(|i| bits >> i & 1 == 1)
                .map(|i| pool[i])
                .collect();
            let best = chosen.iter().map(|s| s.proxy).fold(f64::MIN, f64::max);
            let tied: Vec<f64> = chosen
                .iter()
                .filter(|s| s.proxy == best)
                .map(|s| s.gold)
                .collect();
            count += 1.0;
            proxy += best;
            gold += tied.iter().sum::<f64>() / tied.len() as f64;
        }
        Scored {
            proxy: proxy / count,
            gold: gold / count,
        }
    }

    #[test]
    fn the_best_of_two_of_three() {
        // Pairs: {1,2} → 2, {1,3} → 3, {2,3} → 3; their golds 10, 0, 0.
        let best = best_of(2, &pool(&[(2.0, 10.0), (3.0, 0.0), (1.0, 7.0)]));
        assert!((best.proxy - 8.0 / 3.0).abs() < 1e-15);
        assert!((best.gold - 10.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn one_of_all_is_the_mean_and_all_of_all_the_best() {
        let all = pool(&[(2.0, 10.0), (3.0, 1.0), (1.0, 7.0), (3.0, 4.0)]);
        let one = best_of(1, &all);
        assert!((one.proxy - 2.25).abs() < 1e-15 && (one.gold - 5.5).abs() < 1e-15);
        assert_eq!(
            best_of(4, &all),
            Scored {
                proxy: 3.0,
                gold: 2.5
            }
        );
    }

    proptest! {
        #[test]
        fn it_is_the_mean_over_all_subsets(
            pairs in prop::collection::vec((0i8..5, -9i8..9), 1..9),
            n in 1usize..9,
        ) {
            let pairs: Vec<(f64, f64)> = pairs.iter().map(|(p, g)| (f64::from(*p), f64::from(*g))).collect();
            let (n, pool) = (n.min(pairs.len()), pool(&pairs));
            let (fast, slow) = (best_of(n, &pool), by_subsets(n, &pool));
            prop_assert!((fast.proxy - slow.proxy).abs() < 1e-12, "{fast:?} {slow:?}");
            prop_assert!((fast.gold - slow.gold).abs() < 1e-12, "{fast:?} {slow:?}");
        }
    }

    #[test]
    fn weights_stay_finite_in_large_pools() {
        let all: Vec<Scored> = (0..60_000)
            .map(|i| Scored {
                proxy: f64::from(i),
                gold: 1.0,
            })
            .collect();
        for n in [1, 7, 1000, 60_000] {
            let best = best_of(n, &all);
            assert!((best.gold - 1.0).abs() < 1e-9, "{n}: {}", best.gold);
            // The mean of the largest of n out of 0..N drawn without replacement: n (N + 1)/(n + 1) − 1.
            let n = n as f64;
            assert!((best.proxy - (n * 60_001.0 / (n + 1.0) - 1.0)).abs() < 1e-6);
        }
    }

    #[test]
    fn divergences_and_counts() {
        assert_eq!(divergence(1), 0.0);
        assert!((divergence(64) - (64f64.ln() - 63.0 / 64.0)).abs() < 1e-15);
        assert_eq!(counts(1), [1]);
        assert_eq!(counts(8), [1, 2, 4, 8]);
        assert_eq!(counts(6), [1, 2, 4, 6]);
    }

    #[test]
    fn errors_are_those_of_the_mean() {
        let (mean, error) = mean_and_error(&[1.0, 2.0, 4.0]);
        assert!((mean - 7.0 / 3.0).abs() < 1e-15);
        // Variance 7/3 over two degrees of freedom, over three.
        assert!((error.unwrap() - (7.0f64 / 9.0).sqrt()).abs() < 1e-15);
        assert_eq!(mean_and_error(&[1.0]), (1.0, None));
    }
}

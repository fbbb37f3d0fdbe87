//! The fits of over-optimization against scipy and numpy (tests/golden/make/data_overoptimization.py).

use std::path::Path;

use levain_data::best_of_n::{Scored, best_of};
use levain_data::overoptimization::{Fit, Law};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    fits: Vec<GoldenFit>,
    pools: Vec<Pool>,
}

#[derive(Deserialize)]
struct GoldenFit {
    law: String,
    points: Vec<(f64, f64)>,
    alpha: f64,
    beta: f64,
    alpha_error: f64,
    beta_error: f64,
    r2: f64,
    peak: Option<(f64, f64)>,
}

#[derive(Deserialize)]
struct Pool {
    scores: Vec<(f64, f64)>,
    n: usize,
    proxy: f64,
    gold: f64,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/data/data/overoptimization.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn close(found: f64, wanted: f64, tolerance: f64) {
    let scale = wanted.abs().max(1e-3);
    assert!(
        (found - wanted).abs() <= tolerance * scale,
        "{found}, not {wanted}"
    );
}

#[test]
fn fits_are_those_of_scipy() {
    let golden = golden();
    assert_eq!(golden.fits.len(), 8);
    for case in golden.fits {
        let law = match case.law.as_str() {
            "best_of_n" => Law::BestOfN,
            "rl" => Law::Rl,
            other => panic!("{other}"),
        };
        let fit = Fit::of(law, &case.points).unwrap();
        close(fit.alpha, case.alpha, 1e-9);
        close(fit.beta, case.beta, 1e-9);
        let [alpha, beta] = fit.errors.unwrap();
        close(alpha, case.alpha_error, 1e-7);
        close(beta, case.beta_error, 1e-7);
        close(fit.r2.unwrap(), case.r2, 1e-9);
        match (fit.peak(), case.peak) {
            (Some((d, gain)), Some(wanted)) => {
                // Found by a search over the curve, which is flat there.
                close(d, wanted.0, 1e-5);
                close(gain, wanted.1, 1e-9);
            }
            (found, wanted) => assert_eq!(found, wanted),
        }
    }
}

#[test]
fn the_best_of_n_scores_what_exact_fractions_say() {
    let golden = golden();
    assert!(golden.pools.len() > 6);
    for case in golden.pools {
        let pool: Vec<Scored> = case
            .scores
            .iter()
            .map(|(proxy, gold)| Scored {
                proxy: *proxy,
                gold: *gold,
            })
            .collect();
        let found = best_of(case.n, &pool);
        close(found.proxy, case.proxy, 1e-12);
        close(found.gold, case.gold, 1e-12);
    }
}

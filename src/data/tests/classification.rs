//! What predictions are worth against scikit-learn and scipy (tests/golden/make/classification.py), and laws that hold for any.

use std::path::Path;

use levain_data::classification::{Classification, Measured, Regression, average_ranks, roc_auc};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    classes: Vec<Classes>,
    numbers: Vec<Numbers>,
}

#[derive(Deserialize)]
struct Classes {
    name: String,
    truth: Vec<usize>,
    log_probabilities: Vec<Vec<f64>>,
    accuracy: f64,
    majority: f64,
    f1: Option<f64>,
    f1_macro: f64,
    mcc: f64,
    auc: Option<f64>,
    loss: f64,
    confusion: Vec<Vec<u64>>,
}

#[derive(Deserialize)]
struct Numbers {
    name: String,
    truth: Vec<f64>,
    predicted: Vec<f64>,
    mse: f64,
    mae: f64,
    r2: Option<f64>,
    pearson: Option<f64>,
    spearman: Option<f64>,
}

/// Sums in another order.
const TOLERANCE: f64 = 1e-12;
/// Probabilities have been through an exponential and a logarithm.
const LOSS: f64 = 1e-9;

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/data/classification/metrics.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn close(found: f64, wanted: f64, tolerance: f64, what: &str) {
    let scale = wanted.abs().max(1.0);
    assert!(
        (found - wanted).abs() <= tolerance * scale,
        "{what}: {found}, not {wanted}"
    );
}

#[track_caller]
fn same(found: &Measured, wanted: Option<f64>, what: &str) {
    match (found, wanted) {
        (Ok(found), Some(wanted)) => close(*found, wanted, TOLERANCE, what),
        (Err(reason), None) => assert!(!reason.is_empty(), "{what}"),
        (found, wanted) => panic!("{what}: {found:?}, not {wanted:?}"),
    }
}

#[test]
fn measures_of_classes_are_those_of_scikit_learn() {
    let golden = golden();
    assert_eq!(golden.classes.len(), 14);
    let mut undefined = 0;
    for case in golden.classes {
        let found = Classification::of(&case.truth, &case.log_probabilities).unwrap();
        let what = |measure: &str| format!("{}: {measure}", case.name);
        assert_eq!(found.confusion, case.confusion, "{}", case.name);
        assert_eq!(found.rows, case.truth.len());
        for (measure, found, wanted) in [
            ("accuracy", found.accuracy, case.accuracy),
            ("majority", found.majority, case.majority),
            ("f1_macro", found.f1_macro, case.f1_macro),
            ("mcc", found.mcc, case.mcc),
        ] {
            close(found, wanted, TOLERANCE, &what(measure));
        }
        close(found.loss, case.loss, LOSS, &what("loss"));
        same(&found.f1, case.f1, &what("f1"));
        same(&found.auc, case.auc, &what("auc"));
        undefined += usize::from(found.auc.is_err());
    }
    assert_eq!(undefined, 5);
}

#[test]
fn measures_of_numbers_are_those_of_scikit_learn_and_scipy() {
    let golden = golden();
    assert_eq!(golden.numbers.len(), 10);
    for case in golden.numbers {
        let found = Regression::of(&case.truth, &case.predicted).unwrap();
        let what = |measure: &str| format!("{}: {measure}", case.name);
        close(found.mse, case.mse, TOLERANCE, &what("mse"));
        close(found.mae, case.mae, TOLERANCE, &what("mae"));
        same(&found.r2, case.r2, &what("r2"));
        same(&found.pearson, case.pearson, &what("pearson"));
        same(&found.spearman, case.spearman, &what("spearman"));
    }
}

/// Log-probabilities of some classes.
fn normalized(logits: &[f64]) -> Vec<f64> {
    let total = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - total).collect()
}

prop_compose! {
    fn predictions()(classes in 2..5usize, rows in 1..40usize)
        (truth in prop::collection::vec(0..classes, rows),
         logits in prop::collection::vec(prop::collection::vec((-20..20i32).prop_map(|x| f64::from(x) / 4.0), classes), rows))
        -> (Vec<usize>, Vec<Vec<f64>>) {
        (truth, logits.iter().map(|row| normalized(row)).collect())
    }
}

proptest! {
    #[test]
    fn what_is_measured_is_a_number_in_its_bounds((truth, said) in predictions()) {
        let found = Classification::of(&truth, &said).unwrap();
        for (name, value) in found.numbers() {
            let Ok(value) = value else { continue };
            let least = if name == "mcc" { -1.0 - 1e-12 } else { 0.0 };
            let most = if name == "loss" { f64::INFINITY } else { 1.0 + 1e-12 };
            prop_assert!(value >= least && value <= most, "{name}: {value}");
        }
        let counted: u64 = found.confusion.iter().flatten().sum();
        prop_assert_eq!(counted as usize, truth.len());
        prop_assert!(found.majority >= 1.0 / said[0].len() as f64 - 1e-12);
    }

    #[test]
    fn rows_may_come_in_any_order((truth, said) in predictions()) {
        let (mut truth_back, mut said_back) = (truth.clone(), said.clone());
        truth_back.reverse();
        said_back.reverse();
        let (one, other) = (Classification::of(&truth, &said).unwrap(), Classification::of(&truth_back, &said_back).unwrap());
        prop_assert_eq!(&one.confusion, &other.confusion);
        prop_assert_eq!((one.f1, one.auc), (other.f1, other.auc));
        prop_assert!((one.loss - other.loss).abs() < 1e-9);
    }

    #[test]
    fn the_area_counts_pairs(scores in prop::collection::vec(-5..5i32, 2..30), split in 1..29usize) {
        let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
        let split = split.min(scores.len() - 1);
        let is: Vec<bool> = (0..scores.len()).map(|at| at < split).collect();
        let (those, others) = scores.split_at(split);
        let won: f64 = those.iter().flat_map(|a| others.iter().map(move |b| match a.partial_cmp(b) {
            Some(std::cmp::Ordering::Greater) => 1.0,
            Some(std::cmp::Ordering::Equal) => 0.5,
            _ => 0.0,
        })).sum();
        let wanted = won / (those.len() * others.len()) as f64;
        prop_assert!((roc_auc(&is, &scores).unwrap() - wanted).abs() < 1e-12);
        let opposite: Vec<f64> = scores.iter().map(|x| -x).collect();
        prop_assert!((roc_auc(&is, &opposite).unwrap() - (1.0 - wanted)).abs() < 1e-12);
    }

    #[test]
    fn ranks_add_up(values in prop::collection::vec(-3..3i32, 1..40)) {
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let (ranks, count) = (average_ranks(&values), values.len() as f64);
        prop_assert!((ranks.iter().sum::<f64>() - count * (count + 1.0) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn correlation_knows_no_scale(truth in prop::collection::vec(-50..50i32, 3..30), factor in 1..9i32, shift in -9..9i32) {
        let truth: Vec<f64> = truth.into_iter().map(f64::from).collect();
        let moved: Vec<f64> = truth.iter().map(|x| x * f64::from(factor) + f64::from(shift)).collect();
        let found = Regression::of(&truth, &moved).unwrap();
        match truth.iter().all(|x| *x == truth[0]) {
            true => prop_assert!(found.pearson.is_err() && found.r2.is_err()),
            false => {
                prop_assert!((found.pearson.unwrap() - 1.0).abs() < 1e-9);
                prop_assert!((found.spearman.unwrap() - 1.0).abs() < 1e-9);
            }
        }
    }
}

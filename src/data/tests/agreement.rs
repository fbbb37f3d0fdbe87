//! Agreement of annotators against scikit-learn and statsmodels (tests/golden/make/agreement.py).

use std::path::Path;

use levain_data::agreement::{cohen_kappa, fleiss_kappa, kappa, raw_agreement};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    ratings: Vec<Vec<usize>>,
    raw: f64,
    cohen: Option<f64>,
    fleiss: Option<f64>,
}

/// Sums of a few products in another order.
const TOLERANCE: f64 = 1e-14;

fn same(found: Option<f64>, expected: Option<f64>) -> bool {
    match (found, expected) {
        (Some(found), Some(expected)) => (found - expected).abs() <= TOLERANCE,
        (found, expected) => found == expected,
    }
}

#[test]
fn kappas_are_those_of_the_golden_file() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/agreement/kappa.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(golden.cases.len(), 14);
    let mut undefined = 0;
    for Case {
        name,
        ratings,
        raw,
        cohen,
        fleiss,
    } in golden.cases
    {
        let found = raw_agreement(&ratings).unwrap();
        assert!(same(found, Some(raw)), "{name}: {found:?}, not {raw}");
        let found = fleiss_kappa(&ratings).unwrap();
        assert!(same(found, fleiss), "{name}: {found:?}, not {fleiss:?}");
        undefined += usize::from(found.is_none());
        let of_all = kappa(&ratings).unwrap();
        if let [first, second] = &ratings[..] {
            let found = cohen_kappa(first, second).unwrap();
            assert!(same(found, cohen), "{name}: {found:?}, not {cohen:?}");
            assert_eq!(of_all, found);
        } else {
            assert_eq!(of_all, found);
        }
    }
    assert_eq!(undefined, 3);
}

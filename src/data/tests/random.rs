//! Random streams against an independent implementation (tests/golden/make/data_random.py).

use std::path::Path;

use levain_data::Stream;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    reject: Reject,
}

#[derive(Deserialize)]
struct Case {
    seed: String,
    name: String,
    next_u64: Vec<String>,
    uniform: Vec<f64>,
    normal: Vec<f64>,
    below: Vec<u64>,
    permutation: Vec<usize>,
}

#[derive(Deserialize)]
struct Reject {
    seed: String,
    name: String,
    bound: String,
    below: Vec<String>,
    position: u64,
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

#[test]
fn streams_are_those_of_the_golden_file() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/data/random.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(golden.cases.len(), 4);
    for case in &golden.cases {
        let stream = || Stream::new(number(&case.seed), &case.name);
        let mut numbers = stream();
        for (at, expected) in case.next_u64.iter().enumerate() {
            assert_eq!(numbers.position(), at as u64);
            assert_eq!(numbers.next_u64(), number(expected));
        }
        let mut numbers = stream();
        assert!(
            case.uniform
                .iter()
                .all(|expected| numbers.uniform() == *expected)
        );
        let mut numbers = stream();
        // Logarithm and cosine may differ in the last bit between mathematics libraries.
        assert!(
            case.normal
                .iter()
                .all(|expected| (numbers.normal() - expected).abs() < 1e-14)
        );
        let mut numbers = stream();
        let bounds = [1, 2, 6, 1000, (1 << 40) + 1];
        assert_eq!(
            bounds.map(|bound| numbers.below(bound)).to_vec(),
            case.below
        );
        assert_eq!(stream().permutation(23), case.permutation);
    }
    let mut stream = Stream::new(number(&golden.reject.seed), &golden.reject.name);
    for expected in &golden.reject.below {
        assert_eq!(stream.below(number(&golden.reject.bound)), number(expected));
    }
    assert_eq!(stream.position(), golden.reject.position);
    assert!(golden.reject.position > golden.reject.below.len() as u64);
}

#[test]
fn normal_numbers_have_mean_zero_and_variance_one() {
    let mut values = vec![0f32; 20_001];
    Stream::new(1, "init").fill_normal(&mut values);
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
    let variance = values
        .iter()
        .map(|v| (f64::from(*v) - mean).powi(2))
        .sum::<f64>()
        / values.len() as f64;
    assert!(
        mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04,
        "{mean} {variance}"
    );
}

proptest! {
    #[test]
    fn a_resumed_stream_goes_on(seed: u64, name in "[a-z]{0,8}", draws in 0usize..200) {
        let mut stream = Stream::new(seed, &name);
        for _ in 0..draws {
            stream.next_u64();
        }
        let mut resumed = Stream::resume(seed, &name, stream.position());
        prop_assert_eq!(resumed.position(), draws as u64);
        for _ in 0..20 {
            prop_assert_eq!(resumed.next_u64(), stream.next_u64());
        }
    }

    #[test]
    fn draws_stay_in_their_ranges(seed: u64, bound in 1u64..) {
        let mut stream = Stream::new(seed, "x");
        prop_assert!(stream.below(bound) < bound);
        prop_assert!((0.0..1.0).contains(&stream.uniform()));
        prop_assert!((0.0..1.0).contains(&stream.uniform_f32()));
    }
}

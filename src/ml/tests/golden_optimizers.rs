//! AdamW with its moments in eight bits against bitsandbytes, Adafactor against transformers (tests/golden/make/ml_quantized.py and
//! ml_adafactor.py), and of every rule: a resumed run ends with the same bytes.

mod support;

use ml::optimizer::{Adafactor, Optimizer, Options, Rule};
use ml::place::HOST;
use ml::state::{self, Cursor};
use ml::{Kind, Params, Tensor};
use std::collections::BTreeMap;
use support::{Golden, close, numbers, tolerance};

const STEPS: usize = 10;
const RATE: f64 = 0.01;
/// What both references were run with.
const DECAY: f64 = 0.1;
const LARGE: (&str, &[i64]) = ("large", &[64, 128]);
const SMALL: (&str, &[i64]) = ("small", &[50]);

fn adam() -> Options {
    Options {
        weight_decay: DECAY,
        ..Options::default()
    }
}

fn adafactor() -> Adafactor {
    Adafactor {
        weight_decay: DECAY,
        ..Adafactor::default()
    }
}

/// Parameters of these names and shapes, by the formula of `family`.
fn params(family: &str, shapes: &[(&str, &[i64])], kind: Kind) -> Params {
    let mut params = Params::new();
    for (name, shape) in shapes {
        let tensor = numbers(&format!("{family} {name}"), shape, 1.0).to_kind(kind);
        params.add(name, &tensor, true).unwrap();
    }
    params
}

/// One step with these gradients: that of a weighted sum is its weights, to the bit.
fn step(optimizer: &mut Optimizer, params: &Params, gradient: &dyn Fn(&str) -> Tensor) {
    for (name, tensor) in params.trained() {
        let way = gradient(name).to_kind(tensor.kind());
        (tensor * way).sum(tensor.kind()).backward();
    }
    optimizer.step(params.trained(), RATE).unwrap();
    params.zero_grad();
}

fn stored(optimizer: &Optimizer) -> BTreeMap<String, Tensor> {
    optimizer.stored().into_iter().collect()
}

/// The gradient of ml_quantized.py: blocks of large and of small numbers, and blocks of zeros.
fn in_blocks(name: &str, step: usize) -> Tensor {
    let shape = if name == "large" { LARGE.1 } else { SMALL.1 };
    let values = numbers(&format!("adam 3 {step} {name}"), shape, 0.1);
    if name == "small" {
        return values;
    }
    let factors = Tensor::from_slice(&[1.0, 0.1, 0.01, 0.0, 0.0, 0.0, 0.3, 1.0f64]);
    let factors = factors.repeat([8i64]).unsqueeze(1);
    values * factors.to_device(support::place(Kind::Float).device)
}

#[test]
fn ten_steps_in_eight_bits_are_those_of_bitsandbytes() {
    if support::place(Kind::Float).device != HOST {
        return;
    }
    let golden = Golden::open(&["quantized_adam"]);
    let params = params("adam", &[LARGE, SMALL], Kind::Float);
    let mut optimizer = Optimizer::new(Rule::AdamW8bit(adam()), vec![]);
    for index in 0..STEPS {
        step(&mut optimizer, &params, &|name| in_blocks(name, index));
        for (name, tensor) in params.trained() {
            let expected = golden.get(&format!("{name}.steps")).select(0, index as i64);
            let shown = tensor.narrow(0, 0, expected.size()[0]);
            let what = format!("{name} after step {index}");
            close(&shown, &expected, tolerance::F32, &what);
        }
    }
    let large = params.get("large").unwrap();
    close(large, golden.get("large.after"), tolerance::F32, "large");
    let found = stored(&optimizer);
    // The codes to the bit: no moment of the golden run is near the middle between two.
    assert_eq!(&found["large.mean"], golden.get("large.state1"));
    assert_eq!(&found["large.square"], golden.get("large.state2"));
    for (ours, theirs) in [
        ("large.mean_scales", "large.absmax1"),
        ("large.square_scales", "large.absmax2"),
        ("small.mean", "small.state1"),
        ("small.square", "small.state2"),
    ] {
        close(&found[ours], golden.get(theirs), tolerance::F32, ours);
    }
}

#[test]
fn eight_bits_stay_near_whole_numbers_in_a_short_block_too() {
    // 4847 values: nineteen blocks, of which the last is short.
    let shape: (&str, &[i64]) = ("odd", &[37, 131]);
    let run = |rule: Rule| {
        let params = params("adam", &[shape], Kind::Float);
        let mut optimizer = Optimizer::new(rule, vec![]);
        for index in 0..STEPS {
            let gradient = |_: &str| numbers(&format!("odd {index}"), shape.1, 0.1);
            step(&mut optimizer, &params, &gradient);
        }
        params.get("odd").unwrap().detach().copy()
    };
    let (whole, packed) = (run(Rule::AdamW(adam())), run(Rule::AdamW8bit(adam())));
    let start = numbers("adam odd", shape.1, 1.0).to_kind(Kind::Float);
    let mean = |difference: Tensor| difference.abs().mean(Kind::Double).double_value(&[]);
    let (moved, strayed) = (mean(&whole - &start), mean(&whole - &packed));
    assert!(
        strayed > 0.0 && strayed < 0.05 * moved,
        "{strayed} of {moved}"
    );
}

/// The gradient of ml_adafactor.py: growing, with rows that have none in the first half.
fn growing(name: &str, step: usize, shape: &[i64]) -> Tensor {
    let scale = 0.1 + 0.2 * step as f64;
    let values = numbers(&format!("adafactor {step} {name}"), shape, scale);
    if name == "matrix" && step < STEPS / 2 {
        let rows: Vec<f64> = (0..shape[0]).map(|row| f64::from(row % 3 != 0)).collect();
        let rows = Tensor::from_slice(&rows).unsqueeze(1);
        return values * rows.to_device(support::place(Kind::Float).device);
    }
    values
}

#[test]
fn ten_steps_of_adafactor_are_those_of_transformers() {
    let golden = Golden::open(&["adafactor"]);
    let shapes: [(&str, &[i64]); 2] = [("matrix", &[24, 40]), ("vector", &[50])];
    for kind in [Kind::Double, Kind::Float] {
        let tolerance = tolerance::of(kind);
        let params = params("adafactor", &shapes, kind);
        let mut optimizer = Optimizer::new(Rule::Adafactor(adafactor()), vec![]);
        for index in 0..STEPS {
            let gradient = |name: &str| growing(name, index, &params.get(name).unwrap().size());
            step(&mut optimizer, &params, &gradient);
            for (name, tensor) in params.trained() {
                let expected = golden.get(&format!("{name}.steps")).select(0, index as i64);
                let shown = tensor.narrow(0, 0, expected.size()[0]);
                let what = format!("{kind:?} {name} after step {index}");
                close(&shown, &expected, tolerance, &what);
            }
        }
        let matrix = params.get("matrix").unwrap();
        close(matrix, golden.get("matrix.after"), tolerance, "matrix");
        let found = stored(&optimizer);
        for name in ["matrix.rows", "matrix.columns", "vector.square"] {
            close(&found[name], golden.get(name), tolerance, name);
        }
    }
}

#[test]
fn every_rule_goes_on_from_a_snapshot_with_the_same_bytes() {
    let gradient = |name: &str, index: usize| {
        let shape = if name == "large" { LARGE.1 } else { SMALL.1 };
        numbers(&format!("way {index} {name}"), shape, 0.1)
    };
    let rules = [
        Rule::AdamW(adam()),
        Rule::Adafactor(adafactor()),
        Rule::AdamW8bit(adam()),
    ];
    for rule in rules {
        for kind in [Kind::Float, Kind::BFloat16] {
            let fresh = || params("adam", &[LARGE, SMALL], kind);
            let factors = BTreeMap::from([("small".to_owned(), 0.5)]);
            let optimizer = || Optimizer::new(rule, vec![]).with_factors(factors.clone());
            let (whole, mut own) = (fresh(), optimizer());
            for index in 0..STEPS {
                step(&mut own, &whole, &|name| gradient(name, index));
            }
            let folder = tempfile::tempdir().unwrap();
            let (broken, mut first) = (fresh(), optimizer());
            for index in 0..4 {
                step(&mut first, &broken, &|name| gradient(name, index));
            }
            let cursor = Cursor::new(0, 1, 1, 4);
            state::save(folder.path(), &broken, &first, &cursor).unwrap();
            let (resumed, mut second) = (fresh(), optimizer());
            let found = state::restore(folder.path(), &resumed, &mut second).unwrap();
            assert_eq!(found, cursor);
            for index in 4..STEPS {
                step(&mut second, &resumed, &|name| gradient(name, index));
            }
            for ((name, a), (_, b)) in whole.trained().zip(resumed.trained()) {
                let (a, b) = (ml::tensors::bytes(a), ml::tensors::bytes(b));
                assert!(a.unwrap() == b.unwrap(), "{rule:?} {kind:?} {name}");
            }
            // Parameters in bf16 are rounded from copies in f32.
            let masters = stored(&own)
                .keys()
                .filter(|name| name.ends_with(".master"))
                .count();
            assert_eq!(masters, if kind == Kind::BFloat16 { 2 } else { 0 });
            // What one rule keeps is nothing that another can go on from.
            let other = match rule {
                Rule::Adafactor(_) => Rule::AdamW(adam()),
                _ => Rule::Adafactor(adafactor()),
            };
            let mut other = Optimizer::new(other, vec![]);
            let error = state::restore(folder.path(), &fresh(), &mut other).unwrap_err();
            assert!(format!("{error:#}").contains("is incomplete"), "{error:#}");
        }
    }
}

#[test]
fn a_factor_is_a_learning_rate_of_its_own() {
    for rule in [Rule::AdamW(adam()), Rule::Adafactor(adafactor())] {
        let run = |rate: f64, factor: f64| {
            let params = params("adam", &[SMALL], Kind::Double);
            let factors = BTreeMap::from([("small".to_owned(), factor)]);
            let mut optimizer = Optimizer::new(rule, vec![]).with_factors(factors);
            for index in 0..3 {
                for (name, tensor) in params.trained() {
                    (tensor * in_blocks(name, index))
                        .sum(Kind::Double)
                        .backward();
                }
                optimizer.step(params.trained(), rate).unwrap();
                params.zero_grad();
            }
            ml::tensors::bytes(params.get("small").unwrap()).unwrap()
        };
        assert_eq!(run(RATE, 0.25), run(RATE * 0.25, 1.0));
        assert_eq!(run(RATE, 0.0), {
            let untouched = numbers("adam small", SMALL.1, 1.0);
            ml::tensors::bytes(&untouched).unwrap()
        });
    }
}

//! The operators against torch's and transformers' own, values and gradients (tests/golden/make/ml_operators.py), and the
//! certificates of all golden files.

mod support;

use ml::attend::{Heads, attend};
use ml::kv_cache::Segments;
use ml::linear::Input;
use ml::loss::cross_entropy;
use ml::norm::Norm;
use ml::place::HOST;
use ml::rope::Rope;
use ml::{Kind, Linear, Pass, Tensor};
use serde_json::json;
use sha2::{Digest, Sha256};
use support::{Golden, close, config, folder, numbers, tokens, tolerance};

const KINDS: [Kind; 3] = [Kind::Double, Kind::Float, Kind::BFloat16];
const EPS: f64 = 1e-5;
const LENGTHS: [usize; 4] = [5, 1, 12, 3];
const POSITIONS: [i64; 8] = [0, 1, 2, 3, 17, 63, 100, 255];
const HEADS: Heads = Heads {
    query: 4,
    key: 2,
    size: 8,
};

/// An input by formula that takes a gradient.
fn leaf(name: &str, shape: &[i64], scale: f64, kind: Kind) -> Tensor {
    let leaf = numbers(name, shape, scale).to_kind(kind).detach();
    leaf.set_requires_grad(true)
}

/// The golden values for this number type.
fn golden(kind: Kind) -> (Golden, &'static str) {
    match kind {
        Kind::BFloat16 => (Golden::open(&["operators_bf16"]), "bf16/"),
        _ => (Golden::open(&["operators"]), ""),
    }
}

/// Compares y, and the gradients of the sum of y weighted by a formula.
#[track_caller]
fn compare(kind: Kind, name: &str, y: &Tensor, leaves: &[(&str, &Tensor)]) {
    let (golden, prefix) = golden(kind);
    let full = format!("{prefix}{name}");
    let tolerance = tolerance::of(kind);
    assert_eq!(y.kind(), kind);
    close(y, golden.get(&full), tolerance, &format!("{kind:?} {name}"));
    let way = numbers(&format!("{name}.gradient"), &y.size(), 1.0).to_kind(kind);
    let inputs: Vec<&Tensor> = leaves.iter().map(|(_, leaf)| *leaf).collect();
    let sum = (y * way).sum(Kind::Double);
    let gradients = Tensor::run_backward(&[sum], &inputs, false, false);
    for ((key, _), gradient) in leaves.iter().zip(gradients) {
        let what = format!("{kind:?} {name}: gradient of {key}");
        close(
            &gradient,
            golden.get(&format!("{full}.{key}")),
            tolerance,
            &what,
        );
    }
}

#[test]
fn rms_norm() {
    for kind in KINDS {
        let x = leaf("rms_norm.x", &[7, 48], 2.0, kind);
        let weight = leaf("rms_norm.weight", &[48], 1.5, kind);
        let norm = Norm {
            weight: weight.shallow_clone(),
            eps: EPS,
        };
        let y = norm.forward(&x).unwrap();
        compare(kind, "rms_norm", &y, &[("x", &x), ("weight", &weight)]);
    }
}

#[test]
fn rope() {
    let positions = Tensor::from_slice(&POSITIONS);
    let tokens = POSITIONS.len() as i64;
    for kind in KINDS {
        for theta in [10000.0, 100000.0] {
            let parameters = json!({"rope_type": "default", "rope_theta": theta});
            let shape = config(json!({"rope_parameters": parameters}));
            let rope = Rope::new(&shape, HOST).unwrap();
            for (name, heads) in [("q", HEADS.query), ("k", HEADS.key)] {
                let size = [tokens, heads * HEADS.size];
                let x = leaf(&format!("rope.{name}"), &size, 1.0, kind);
                let y = rope.forward(&x, &positions, heads).unwrap();
                compare(kind, &format!("rope_{theta}.{name}"), &y, &[("x", &x)]);
            }
        }
    }
}

#[test]
fn grouped_query_attention() {
    let total = LENGTHS.iter().sum::<usize>() as i64;
    for kind in KINDS {
        let segments = Segments::new(&LENGTHS, support::place(kind)).unwrap();
        let wide = [total, HEADS.query * HEADS.size];
        let narrow = [total, HEADS.key * HEADS.size];
        let q = leaf("attend.q", &wide, 2.0, kind);
        let k = leaf("attend.k", &narrow, 2.0, kind);
        let v = leaf("attend.v", &narrow, 1.0, kind);
        let y = attend(HEADS, &q, &k, &v, &segments).unwrap();
        compare(kind, "attend", &y, &[("q", &q), ("k", &k), ("v", &v)]);
    }
}

#[test]
fn silu_times_up() {
    for kind in KINDS {
        let gate = leaf("silu_mul.gate", &[6, 40], 4.0, kind);
        let up = leaf("silu_mul.up", &[6, 40], 2.0, kind);
        let input = Input::Gated {
            gate: &gate,
            up: &up,
        };
        let y = input.made().unwrap();
        compare(kind, "silu_mul", &y, &[("gate", &gate), ("up", &up)]);
    }
}

#[test]
fn linear_with_bias() {
    for kind in KINDS {
        let x = leaf("linear.x", &[9, 48], 1.0, kind);
        let weight = leaf("linear.weight", &[40, 48], 0.5, kind);
        let bias = leaf("linear.bias", &[40], 1.0, kind);
        let linear = Linear::new(
            "l",
            ml::Weight::Dense(weight.shallow_clone()),
            Some(bias.shallow_clone()),
        );
        let y = linear.forward(Pass::eval(), Input::Plain(&x)).unwrap();
        let leaves = [("x", &x), ("weight", &weight), ("bias", &bias)];
        compare(kind, "linear", &y, &leaves);
    }
}

#[test]
fn cross_entropy_in_chunks() {
    let targets = tokens("cross_entropy.targets", 21);
    let targets = Tensor::from_slice(&targets);
    for kind in KINDS {
        let (golden, prefix) = golden(kind);
        let tolerance = tolerance::of(kind);
        for chunk in [256, 8] {
            let hidden = leaf("cross_entropy.hidden", &[21, 32], 2.0, kind);
            let head = leaf("cross_entropy.head", &[64, 32], 0.7, kind);
            let ours = cross_entropy(&hidden, &head, &targets, chunk).unwrap();
            let at = |name: &str| golden.get(&format!("{prefix}cross_entropy{name}"));
            close(&ours.sum, at(""), tolerance, &format!("{kind:?} sum"));
            let each = &ours.log_probabilities;
            close(each, at(".log_probabilities"), tolerance, "log p");
            assert_eq!(ours.correct as i64, at(".correct").int64_value(&[]));
            let gradients = Tensor::run_backward(&[ours.sum], &[&hidden, &head], false, false);
            for (name, gradient) in [".hidden", ".head"].into_iter().zip(gradients) {
                close(&gradient, at(name), tolerance, &format!("{kind:?} {name}"));
            }
        }
    }
}

#[test]
fn every_golden_file_was_made_by_the_script_beside_it() {
    let digest = |script: &str| -> String {
        let path = folder().join("make").join(script);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let deeper = [
        "adapter/adapter_model.safetensors",
        "bottleneck/houlsby/adapter.safetensors",
        "bottleneck/pfeiffer/adapter.safetensors",
    ];
    let mut files: Vec<_> = (deeper.iter())
        .map(|name| folder().join("data/ml").join(name))
        .collect();
    for entry in std::fs::read_dir(folder().join("data/ml")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.push(path);
        }
    }
    assert!(files.len() > 10);
    for path in files {
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size <= 100_000, "{} has {size} bytes", path.display());
        let file = formats::safetensors::File::open(&path).unwrap();
        let metadata = file.metadata();
        let script = &metadata["script"];
        let again = format!("{}: run tests/golden/make/{script} again", path.display());
        assert_eq!(metadata["script_sha256"], digest(script), "{again}");
        assert_eq!(metadata["common_sha256"], digest("ml_common.py"), "{again}");
        assert_eq!(metadata["torch"], "2.13.0");
    }
}

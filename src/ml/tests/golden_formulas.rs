//! What TRL lacks against plain formulas in f64: tests/golden/rlhf/*.py.

mod support;

use ml::loss::{self, cross_entropy, log_probabilities};
use ml::ranking;
use ml::rl::advantage::{self, Estimator, KlControl, Moments, Shaping, gae};
use ml::sft;
use ml::{Kind, Params, Tensor};
use serde_json::json;
use support::{Rlhf, close, near, tolerance};

#[test]
fn what_trl_lacks_is_its_formula() {
    let golden = Rlhf::open("ppo_formulas");
    let lengths = golden.numbers("gae/lengths");
    let (rewards, values) = (golden.matrix("gae/rewards"), golden.matrix("gae/values"));
    for (name, gamma, lambda) in [("1_0.95", 1.0, 0.95), ("0.9_0.8", 0.9, 0.8)] {
        let wanted = golden.matrix(&format!("gae/{name}/advantages"));
        for (row, length) in lengths.iter().enumerate() {
            let n = *length as usize;
            let ours = gae(&rewards[row][..n], &values[row][..n], gamma, lambda);
            near(&ours, &wanted[row][..n], tolerance::F64, name);
        }
    }
    let (policy, reference) = (
        golden.numbers("kl/logprobs"),
        golden.numbers("kl/ref_logprobs"),
    );
    for (name, estimator) in [
        ("k1", Estimator::K1),
        ("k2", Estimator::K2),
        ("k3", Estimator::K3),
    ] {
        let pairs = policy.iter().zip(&reference);
        let ours: Vec<f64> = pairs.map(|(p, r)| estimator.of(*p, *r)).collect();
        near(
            &ours,
            &golden.numbers(&format!("kl/{name}")),
            tolerance::F64,
            name,
        );
    }
    let mut control = KlControl {
        coefficient: 0.15,
        adaptive: Some((6.0, 10000.0)),
    };
    let mut coefficients = vec![control.coefficient];
    for kl in golden.numbers("adaptive/kl") {
        control.update(kl, 256);
        coefficients.push(control.coefficient);
    }
    near(
        &coefficients,
        &golden.numbers("adaptive/coefficients"),
        tolerance::F64,
        "adaptive KL",
    );
    let shapes = [
        ("scaled", false, true, None),
        ("normalised", true, false, None),
        ("clipped", false, true, Some(0.8)),
    ];
    for (name, normalize, scale, clip) in shapes {
        let mut moments = Moments::default();
        let shaping = Shaping {
            normalize,
            scale,
            clip,
        };
        for batch in 0..4 {
            let mut scores = golden.numbers(&format!("moments/batch_{batch}"));
            shaping.apply(&mut scores, &mut moments);
            let wanted = golden.numbers(&format!("moments/{name}_{batch}"));
            near(&scores, &wanted, tolerance::F64, name);
            let mean = golden.numbers(&format!("moments/mean_{batch}"));
            near(&[moments.mean], &mean, tolerance::F64, "running mean");
        }
    }
    assert_eq!(advantage::leave_one_out(&[1.0, 3.0], 2), [-2.0, 2.0]);
}

/// Logits as hidden states: this head leaves them as they are, so that gradients to hidden states are those to logits.
fn identity(logits: &Tensor) -> Tensor {
    let words = logits.size().last().copied().unwrap();
    Tensor::eye(words, (Kind::Double, logits.device()))
}

/// The rows of `[rows, tokens, words]` with these numbers, all tokens one after the other.
fn at_places(logits: &Tensor, places: &[i64]) -> Tensor {
    logits
        .flatten(0, 1)
        .index_select(0, &Tensor::from_slice(places))
}

/// The bonus as `ppo` adds it to the loss. It has no distance to a wanted entropy; that golden value is one more gradient to the
/// entropies, of the other sign.
#[test]
fn entropies_are_their_formula() {
    let golden = Rlhf::open("ppo_formulas");
    let entropies = |logits: &Tensor, chunk: i64| {
        let targets = Tensor::zeros([logits.size()[0]], (Kind::Int64, logits.device()));
        let found = log_probabilities(logits, &identity(logits), &targets, chunk, true);
        found.unwrap().entropies
    };
    let mask = golden.numbers("entropy/mask");
    let places: Vec<i64> = (0i64..)
        .zip(&mask)
        .filter(|(_, m)| **m == 1.0)
        .map(|(i, _)| i)
        .collect();
    assert!(!places.is_empty() && places.len() < mask.len());
    for chunk in [loss::CHUNK, 3] {
        let all = entropies(&golden.get("entropy/logits").flatten(0, 1), chunk);
        let tokens = golden.get("entropy/tokens").flatten(0, 1);
        close(&all, &tokens, tolerance::F64, "entropies");
        for name in ["bonus", "distance"] {
            let logits = golden.get("entropy/logits").copy().set_requires_grad(true);
            let own = entropies(&at_places(&logits, &places), chunk);
            let mean = own.sum(None::<Kind>) / places.len() as f64;
            let loss = match name {
                "bonus" => mean * -0.01,
                _ => (mean - 1.5).abs() * 0.01,
            };
            let wanted = golden.numbers(&format!("entropy/{name}"));
            near(&[loss.double_value(&[])], &wanted, tolerance::F64, name);
            loss.backward();
            let gradient = golden.get(&format!("entropy/gradient_{name}"));
            close(&logits.grad(), gradient, tolerance::F64, name);
        }
    }
}

/// The rows in micro-batches of one, each over the trained tokens of all of them, as `ppo` adds them.
#[test]
fn mixed_rows_are_their_formula() {
    let golden = Rlhf::open("ppo_formulas");
    let labels = golden.matrix("ptx/labels");
    let width = labels[0].len();
    let mut params = Params::new();
    let model = support::model(Kind::Double, json!({}), &mut params);
    // A label is predicted from its own position; in a row of tokens from the one before, so that the row begins with one more.
    let rows: Vec<sft::Row> = labels
        .iter()
        .map(|labels| {
            let tokens = labels.iter().map(|label| label.max(0.0) as i64);
            let trained = labels.iter().map(|label| *label >= 0.0);
            sft::Row {
                tokens: std::iter::once(1).chain(tokens).collect(),
                trained: std::iter::once(false).chain(trained).collect(),
                documents: Vec::new(),
            }
        })
        .collect();
    let total = sft::Batch::new(&model, &rows).unwrap().trained();
    for chunk in [loss::CHUNK, 4] {
        let logits = golden.get("ptx/logits").copy().set_requires_grad(true);
        let mut sum = 0.0;
        let mut counted = 0;
        for (row, labels) in labels.iter().enumerate() {
            let (mut places, mut targets) = (Vec::new(), Vec::new());
            for (at, label) in labels
                .iter()
                .enumerate()
                .filter(|(_, label)| **label >= 0.0)
            {
                places.push((row * width + at) as i64);
                targets.push(*label as i64);
            }
            let own = at_places(&logits, &places);
            let targets = Tensor::from_slice(&targets);
            let found = cross_entropy(&own, &identity(&own), &targets, chunk).unwrap();
            counted += found.count;
            let loss = found.sum * (27.8 / total as f64);
            sum += loss.double_value(&[]);
            loss.backward();
        }
        assert_eq!(counted, total);
        near(&[sum], &golden.numbers("ptx/loss"), tolerance::F64, "PTX");
        let gradient = golden.get("ptx/gradient");
        close(&logits.grad(), gradient, tolerance::F64, "gradient of PTX");
    }
}

#[test]
fn rankings_are_their_formulas() {
    let golden = Rlhf::open("rankings");
    for k in 2..=5 {
        let scores = golden.get(&format!("scores/{k}"));
        for row in 0..2 {
            type Loss = fn(&Tensor) -> anyhow::Result<Tensor>;
            let losses: [(&str, Loss); 2] = [
                ("pairwise", ranking::all_pairs),
                ("plackett_luce", ranking::plackett_luce),
            ];
            for (name, loss) in losses {
                let own = scores.select(0, row).copy().set_requires_grad(true);
                let value = loss(&own).unwrap();
                value.backward();
                let wanted = golden.numbers(&format!("{name}/{k}"))[row as usize];
                near(&[value.double_value(&[])], &[wanted], tolerance::F64, name);
                let gradient = golden.get(&format!("{name}_gradient/{k}")).select(0, row);
                close(&own.grad(), &gradient, tolerance::F64, name);
            }
        }
    }
}

//! Every fused operator against the plain composition of libtorch's operators, values and gradients.

mod tiny;

use ml::attend::{Heads, attend_plain};
use ml::kv_cache::{Segments, Span};
use ml::norm::Norm;
use ml::rope::Rope;
use ml::torch::Way;
use ml::{Kind, Place, Tensor, torch};
use tiny::{close, numbers};

/// Largest relative differences: of bf16 results, against the same inputs in f32, one rounding step; of f32, sums in
/// another order.
const F32: f64 = 2e-5;
const BF16: f64 = 1.2e-2;

/// Runs `run` on leaves of this kind, and gives results and gradients of the sum of results weighted by a fixed pattern.
fn with_gradients(
    kind: Kind,
    wide: Kind,
    inputs: &[Tensor],
    run: impl Fn(&[Tensor]) -> Vec<Tensor>,
) -> Vec<Tensor> {
    // The values are those that `kind` can hold, computed with in `wide`.
    let leaves: Vec<Tensor> = inputs
        .iter()
        .map(|input| {
            input
                .to_kind(kind)
                .to_kind(wide)
                .detach()
                .set_requires_grad(true)
        })
        .collect();
    let results = run(&leaves);
    let mut loss = Tensor::zeros([1], (Kind::Double, Place::cpu(kind).device));
    for (i, result) in results.iter().enumerate() {
        let pattern = numbers(&format!("pattern {i}"), &result.size(), 1.0);
        // The gradient is rounded alike on both sides.
        let pattern = pattern.to_kind(kind).to_kind(Kind::Double);
        loss += (result.to_kind(Kind::Double) * pattern).sum(Kind::Double);
    }
    loss.backward();
    let mut all: Vec<Tensor> = results.iter().map(Tensor::detach).collect();
    all.extend(leaves.iter().map(Tensor::grad));
    all
}

fn compare(
    name: &str,
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Vec<Tensor>,
    plain: impl Fn(&[Tensor]) -> Vec<Tensor>,
) {
    for (kind, tolerance) in [(Kind::Float, F32), (Kind::BFloat16, BF16)] {
        let ours = with_gradients(kind, kind, inputs, &fused);
        let theirs = with_gradients(kind, Kind::Double, inputs, &plain);
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            close(a, b, tolerance, &format!("{name} in {kind:?}, tensor {i}"));
        }
    }
}

#[test]
fn log_probabilities_and_their_gradients() {
    for (rows, width, words, chunk) in [(5, 8, 11, 2), (37, 33, 2500, 16), (64, 32, 4100, 256)] {
        let targets: Vec<i64> = (0..rows).map(|i| (i * 7919 + 3) % words).collect();
        let targets = Tensor::from_slice(&targets);
        let inputs = [
            numbers("hidden", &[rows, width], 1.0),
            numbers("head", &[words, width], 1.0),
        ];
        let plain = |statistics: bool| {
            let targets = &targets;
            move |t: &[Tensor]| {
                let logs = t[0].matmul(&t[1].tr()).log_softmax(1, None::<Kind>);
                let mut all = vec![logs.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1)];
                if statistics {
                    all.push(-(logs.exp() * &logs).sum_dim_intlist(1i64, false, None::<Kind>));
                    all.push((logs.detach() * 2.0).logsumexp(1i64, false));
                }
                all
            }
        };
        let ours = |way: Way, statistics: bool| {
            let targets = &targets;
            move |t: &[Tensor]| {
                let all = torch::log_probabilities(&t[0], &t[1], targets, chunk, way, statistics);
                let mut all = Vec::from(all.unwrap());
                all.truncate(if statistics { 3 } else { 1 });
                all
            }
        };
        for statistics in [false, true] {
            if available() {
                compare(
                    "log-probabilities",
                    &inputs,
                    ours(Way::Kernels, statistics),
                    plain(statistics),
                );
            }
            let wide = with_gradients(
                Kind::Double,
                Kind::Double,
                &inputs,
                ours(Way::Wide, statistics),
            );
            let theirs = with_gradients(Kind::Double, Kind::Double, &inputs, plain(statistics));
            for (a, b) in wide.iter().zip(&theirs) {
                close(a, b, 1e-12, "log-probabilities in f64");
            }
        }
    }
}

fn tch_sum() -> tch::Reduction {
    tch::Reduction::Sum
}

fn available() -> bool {
    torch::fused(&Tensor::zeros(
        [1],
        (Kind::Float, Place::cpu(Kind::Float).device),
    ))
}

#[test]
fn norm() {
    if !available() {
        return;
    }
    for width in [7, 32, 100] {
        let inputs = [
            numbers("x", &[5, width], 2.0),
            numbers("w", &[width], 1.0) + 1.0,
        ];
        compare(
            "rms_norm",
            &inputs,
            |t| vec![torch::rms_norm(&t[0], &t[1], 1e-5).unwrap()],
            |t| {
                let norm = Norm {
                    weight: t[1].shallow_clone(),
                    eps: 1e-5,
                };
                vec![norm.plain(&t[0])]
            },
        );
    }
}

#[test]
fn silu_times_up() {
    if !available() {
        return;
    }
    let inputs = [
        numbers("gate", &[5, 37], 12.0),
        numbers("up", &[5, 37], 2.0),
    ];
    compare(
        "silu_mul",
        &inputs,
        |t| vec![torch::silu_mul(&t[0], &t[1]).unwrap()],
        |t| vec![t[0].silu() * &t[1]],
    );
}

#[test]
fn rotary_positions() {
    if !available() {
        return;
    }
    for head_dim in [6, 16, 64] {
        let mut config = tiny::config();
        config.head_dim = head_dim;
        let rope = Rope::new(&config, Place::cpu(Kind::Float).device).unwrap();
        let positions = Tensor::from_slice(&[0i64, 1, 2, 200, 0]);
        let inputs = [numbers("x", &[5, 3 * head_dim as i64], 1.0)];
        compare(
            "rope",
            &inputs,
            |t| vec![rope.forward(&t[0], &positions, 3).unwrap()],
            |t| vec![rope.plain(&t[0], &positions, 3)],
        );
    }
}

#[test]
fn attention() {
    if !available() {
        return;
    }
    let cases: [(&[usize], i64, i64, i64); 4] = [
        (&[5, 1, 9], 4, 2, 8),
        (&[130, 61], 3, 1, 16),
        (&[64], 2, 2, 64),
        (&[200, 60, 1, 2], 6, 2, 12),
    ];
    for (lengths, query, key, size) in cases {
        let heads = Heads { query, key, size };
        let tokens = lengths.iter().sum::<usize>() as i64;
        let segments = Segments::new(lengths, Place::cpu(Kind::Float)).unwrap();
        let inputs = [
            numbers("q", &[tokens, query * size], 1.5),
            numbers("k", &[tokens, key * size], 1.5),
            numbers("v", &[tokens, key * size], 1.0),
        ];
        compare(
            &format!("attention of {lengths:?}"),
            &inputs,
            |t| vec![ml::attend::attend(heads, &t[0], &t[1], &t[2], &segments).unwrap()],
            |t| vec![attend_plain(heads, &t[0], &t[1], &t[2], &segments).unwrap()],
        );
    }
}

#[test]
fn attention_behind_a_shared_beginning() {
    if !available() {
        return;
    }
    let span = |length: usize, prefix: Option<(usize, usize)>| Span { length, prefix };
    let cases = [
        // The second and third row begin as the first does, the last as the fourth; one query alone behind 70 keys.
        vec![
            span(7, None),
            span(3, Some((0, 4))),
            span(1, Some((0, 4))),
            span(75, None),
            span(1, Some((11, 70))),
        ],
        vec![span(130, None), span(64, Some((0, 67))), span(5, None)],
    ];
    for spans in cases {
        let heads = Heads {
            query: 6,
            key: 2,
            size: 12,
        };
        let tokens = spans.iter().map(|span| span.length).sum::<usize>() as i64;
        let segments = Segments::sharing(&spans, Place::cpu(Kind::Float)).unwrap();
        let inputs = [
            numbers("q", &[tokens, heads.query * heads.size], 1.5),
            numbers("k", &[tokens, heads.key * heads.size], 1.5),
            numbers("v", &[tokens, heads.key * heads.size], 1.0),
        ];
        compare(
            &format!("attention of {spans:?}"),
            &inputs,
            |t| vec![ml::attend::attend(heads, &t[0], &t[1], &t[2], &segments).unwrap()],
            |t| vec![attend_plain(heads, &t[0], &t[1], &t[2], &segments).unwrap()],
        );
    }
}

#[test]
fn linear_with_low_rank_changes() {
    if !available() {
        return;
    }
    for (rows, input, output, rank) in [
        (3, 5, 2, 1),
        (40, 33, 50, 3),
        (70, 64, 96, 8),
        (7, 330, 17, 4),
    ] {
        let inputs = [
            numbers("x", &[rows, input], 1.0),
            numbers("w", &[output, input], 1.0),
            numbers("bias", &[output], 1.0),
            numbers("down", &[rank, input], 1.0),
            numbers("up", &[output, rank], 1.0),
            numbers("second", &[output + 3, input], 1.0),
        ];
        for few in [false, true] {
            compare(
                &format!("linear of {rows} rows, {input} to {output}, few {few}"),
                &inputs,
                |t| {
                    // Factors of the change stay in f32, as in training.
                    let (down, up) = (t[3].to_kind(Kind::Float), t[4].to_kind(Kind::Float));
                    let maps = [
                        torch::Map {
                            weight: torch::Stored::dense(&t[1]),
                            bias: Some(&t[2]),
                            change: Some((&down, &up, 0.7)),
                        },
                        torch::Map {
                            weight: torch::Stored::dense(&t[5]),
                            bias: None,
                            change: None,
                        },
                    ];
                    torch::linear(&t[0], torch::Before::Nothing, &maps, few).unwrap()
                },
                |t| {
                    let weight = &t[1] + t[4].matmul(&t[3]) * 0.7;
                    vec![
                        t[0].linear(&weight, Some(&t[2])),
                        t[0].linear(&t[5], None::<&Tensor>),
                    ]
                },
            );
        }
    }
}

#[test]
fn linear_after_a_norm_or_a_gate() {
    if !available() {
        return;
    }
    let inputs = [
        numbers("x", &[37, 24], 2.0),
        numbers("norm", &[24], 0.5) + 1.0,
        numbers("up", &[37, 24], 2.0),
        numbers("w", &[30, 24], 1.0),
    ];
    let map = |t: &[Tensor], before: torch::Before<'_>| {
        let map = torch::Map {
            weight: torch::Stored::dense(&t[3]),
            bias: None,
            change: None,
        };
        torch::linear(&t[0], before, &[map], false).unwrap()
    };
    // What a case does not use is passed through, so that every leaf has a gradient.
    compare(
        "linear after a norm",
        &inputs,
        |t| {
            let mut results = map(t, torch::Before::Norm(&t[1], 1e-5));
            results.push(&t[2] * 1.0);
            results
        },
        |t| {
            let norm = Norm {
                weight: t[1].shallow_clone(),
                eps: 1e-5,
            };
            vec![
                norm.plain(&t[0]).linear(&t[3], None::<&Tensor>),
                &t[2] * 1.0,
            ]
        },
    );
    compare(
        "linear after a gate",
        &inputs,
        |t| {
            let mut results = map(t, torch::Before::Gate(&t[2]));
            results.push(&t[1] * 1.0);
            results
        },
        |t| {
            vec![
                (t[0].silu() * &t[2]).linear(&t[3], None::<&Tensor>),
                &t[1] * 1.0,
            ]
        },
    );
}

#[test]
fn cross_entropy_and_its_gradients() {
    if !available() {
        return;
    }
    for (rows, width, words, chunk) in [(5, 8, 11, 2), (37, 33, 2500, 16), (64, 32, 4100, 256)] {
        let targets: Vec<i64> = (0..rows).map(|i| (i * 7919 + 3) % words).collect();
        let targets = Tensor::from_slice(&targets);
        let inputs = [
            numbers("hidden", &[rows, width], 1.0),
            numbers("head", &[words, width], 1.0),
        ];
        compare(
            "cross entropy",
            &inputs,
            |t| {
                let [sum, ..] =
                    torch::cross_entropy(&t[0], &t[1], &targets, chunk, Way::Kernels).unwrap();
                vec![sum / rows as f64]
            },
            |t| {
                let logits = t[0].matmul(&t[1].tr());
                let picked =
                    logits
                        .log_softmax(1, None::<Kind>)
                        .gather(1, &targets.unsqueeze(1), false);
                vec![-picked.sum(None::<Kind>) / rows as f64]
            },
        );
        // Products in bf16, as on processors that have them: each is rounded once more.
        let native = |t: &[Tensor]| {
            let [sum, ..] =
                torch::cross_entropy(&t[0], &t[1], &targets, chunk, Way::Native).unwrap();
            vec![sum / rows as f64]
        };
        let kernels = |t: &[Tensor]| {
            let [sum, ..] =
                torch::cross_entropy(&t[0], &t[1], &targets, chunk, Way::Kernels).unwrap();
            vec![sum / rows as f64]
        };
        let ours = with_gradients(Kind::BFloat16, Kind::BFloat16, &inputs, native);
        let theirs = with_gradients(Kind::BFloat16, Kind::BFloat16, &inputs, kernels);
        for (a, b) in ours.iter().zip(&theirs) {
            close(a, b, 3.0 * BF16, "cross entropy with products in bf16");
        }
        // The composition inside of the operator, for other devices and f64.
        let plain = |t: &[Tensor]| {
            let [sum, ..] = torch::cross_entropy(&t[0], &t[1], &targets, chunk, Way::Wide).unwrap();
            vec![sum]
        };
        let own = |t: &[Tensor]| {
            let logits = t[0].matmul(&t[1].tr());
            vec![logits.cross_entropy_loss::<Tensor>(&targets, None, tch_sum(), -100, 0.0)]
        };
        let ours = with_gradients(Kind::Double, Kind::Double, &inputs, plain);
        let theirs = with_gradients(Kind::Double, Kind::Double, &inputs, own);
        for (a, b) in ours.iter().zip(&theirs) {
            close(a, b, 1e-12, "cross entropy in f64");
        }
    }
}

#[test]
fn accuracy_counts_the_first_largest_logit() {
    let hidden = Tensor::from_slice(&[1f32, 0.0, 0.0, 1.0]).view([2, 2]);
    let head = Tensor::from_slice(&[0f32, 1.0, 1.0, 0.0, 1.0, 0.0]).view([3, 2]);
    let result =
        ml::loss::cross_entropy(&hidden, &head, &Tensor::from_slice(&[1i64, 2]), 1).unwrap();
    assert_eq!((result.correct, result.count), (1, 2));
}

#[test]
fn dropout_is_a_function_of_seed_and_place() {
    let x = Tensor::ones([1000, 10], (Kind::Float, Place::cpu(Kind::Float).device));
    let leaf = x.copy().set_requires_grad(true);
    let y = torch::dropout(&leaf, 0.25, 5, 0).unwrap();
    let zeros = y.eq(0.0).sum(Kind::Int64).int64_value(&[]);
    assert!((2300..2700).contains(&zeros), "{zeros} of 10,000 dropped");
    assert_eq!(y, torch::dropout(&x, 0.25, 5, 0).unwrap());
    assert_ne!(y, torch::dropout(&x, 0.25, 6, 0).unwrap());
    // The rows from 300 on, alone.
    let rest = torch::dropout(&x.narrow(0, 300, 700), 0.25, 5, 3000).unwrap();
    assert_eq!(y.detach().narrow(0, 300, 700), rest);
    y.sum(Kind::Float).backward();
    assert_eq!(leaf.grad(), y.detach());
}

#[test]
fn what_does_not_fit_is_an_error_not_a_crash() {
    let f32 = (Kind::Float, Place::cpu(Kind::Float).device);
    let x = Tensor::ones([2, 3], f32);
    let w = Tensor::ones([4, 5], f32);
    let map = torch::Map {
        weight: torch::Stored::dense(&w),
        bias: None,
        change: None,
    };
    let message = torch::linear(&x, torch::Before::Nothing, &[map], false)
        .unwrap_err()
        .to_string();
    assert!(message.contains("does not fit"), "{message}");
    let targets = Tensor::from_slice(&[0i64, 9]);
    let head = Tensor::ones([4, 3], f32);
    let message = torch::cross_entropy(&x, &head, &targets, 1, Way::Kernels)
        .unwrap_err()
        .to_string();
    assert!(message.contains("outside of the vocabulary"), "{message}");
}

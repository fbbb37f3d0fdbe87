//! What the rows of a group begin with alike is computed once, and nothing comes of it: values and gradients are those of the rows
//! alone, and a step is the same in micro-batches of any size.

mod tiny;

use ml::completions::{Batch, Row};
use ml::fit::{Next, Plan, Step, fit};
use ml::kv_cache::{Segments, Span};
use ml::optimizer::{Optimizer, Options, Rule, Schedule, Shape};
use ml::preference::free::{CpoLoss, Kto};
use ml::preference::pair::{Divergence, PairLoss, Settings};
use ml::preference::{Group, Method, Preference};
use ml::update::Updater;
use ml::{Kind, Llama, Params, Pass, Place, Tensor, no_grad};
use tiny::{adapted, close, numbers, tokens};

const KINDS: [(Kind, f64); 3] = [
    (Kind::Double, 1e-12),
    (Kind::Float, 4e-5),
    (Kind::BFloat16, 3e-2),
];

/// A prompt of so many tokens with these completions.
fn group(name: usize, prompt: usize, completions: &[&[i64]]) -> Vec<Row> {
    let asked = tokens(name, prompt);
    let rows = completions.iter().map(|completion| Row {
        tokens: [&asked[..], completion].concat(),
        prompt,
    });
    rows.collect()
}

/// Groups of every shape, and how many tokens of each are there once.
fn groups() -> Vec<(Vec<Row>, usize)> {
    let (long, other) = (tokens(50, 70), tokens(51, 64));
    vec![
        (group(0, 12, &[&[5, 6, 7], &[8, 9]]), 12),
        // One token of a prompt, and a completion of one token.
        (group(1, 1, &[&[5], &[8, 9, 10, 11]]), 1),
        // No prompt: nothing in common, or what the completions begin with.
        (group(2, 0, &[&[5, 6, 7], &[8, 9]]), 0),
        (group(3, 0, &[&[5, 6, 7], &[5, 9]]), 1),
        // Longer than a block of the attention kernel, on either side.
        (group(4, 67, &[&long, &other]), 67),
        // A ranking, and completions that begin alike.
        (
            group(5, 9, &[&[5, 6, 7, 8], &[5, 6, 9], &[5, 6], &[5, 6, 7]]),
            10,
        ),
        // One completion is the beginning of the other: its last token stays its own.
        (group(6, 4, &[&[5, 6], &[5, 6, 7, 8]]), 5),
        (group(7, 6, &[&[5, 6]]), 0),
    ]
}

/// Log-probabilities of the completions' tokens, and the gradients of their weighted sum.
fn measured(batch: &Batch, model: &Llama, params: &Params) -> (Tensor, Vec<(String, Tensor)>) {
    params.zero_grad();
    let values = batch.values(model, Pass::eval(), 1.0, false).unwrap();
    let found = values.log_probabilities;
    let pattern = numbers("pattern", &found.size(), 1.0).to_kind(found.kind());
    (&found * pattern).sum(found.kind()).backward();
    let gradients = params
        .trained()
        .map(|(name, tensor)| (name.to_owned(), tensor.grad().copy()));
    (found.detach(), gradients.collect())
}

#[test]
fn rows_that_share_their_beginning_are_the_rows_alone() {
    let groups = groups();
    for (kind, tolerance) in KINDS {
        // Everything is trained: embeddings, norms and weights get their gradients through shared and own tokens.
        let (model, mut params) = adapted(kind, 4, 0.0);
        params.train(|_| true);
        let rows: Vec<Row> = groups.iter().flat_map(|(rows, _)| rows.clone()).collect();
        let sizes: Vec<usize> = groups.iter().map(|(rows, _)| rows.len()).collect();
        let alone = Batch::new(&model, &rows).unwrap();
        let shared = Batch::of_groups(&model, &rows, &sizes).unwrap();
        let saved: usize = groups
            .iter()
            .map(|(rows, once)| once * (rows.len() - 1))
            .sum();
        assert_eq!(alone.tokens() - shared.tokens(), saved);
        assert_eq!(alone.counts(), shared.counts());
        let (values, gradients) = measured(&alone, &model, &params);
        let (ours, other) = measured(&shared, &model, &params);
        close(&ours, &values, tolerance, &format!("values in {kind:?}"));
        for ((name, wanted), (_, ours)) in gradients.iter().zip(&other) {
            let what = format!("gradient of {name} in {kind:?}");
            close(ours, wanted, 4.0 * tolerance, &what);
        }
        no_grad(|| {
            let last = |batch: &Batch| batch.last(&batch.hidden(&model, Pass::eval()).unwrap());
            let (ours, wanted) = (last(&shared).unwrap(), last(&alone).unwrap());
            close(&ours, &wanted, tolerance, "last states");
        });
    }
}

#[test]
fn groups_do_not_see_each_other() {
    let (model, params) = adapted(Kind::Double, 4, 0.0);
    let groups = groups();
    let rows: Vec<Row> = groups.iter().flat_map(|(rows, _)| rows.clone()).collect();
    let sizes: Vec<usize> = groups.iter().map(|(rows, _)| rows.len()).collect();
    let together = Batch::of_groups(&model, &rows, &sizes).unwrap();
    let (together, _) = measured(&together, &model, &params);
    let alone = groups.iter().map(|(rows, _)| {
        let batch = Batch::of_groups(&model, rows, &[rows.len()]).unwrap();
        measured(&batch, &model, &params).0
    });
    close(
        &together,
        &Tensor::cat(&alone.collect::<Vec<_>>(), 0),
        1e-12,
        "groups",
    );
}

#[test]
fn a_row_begins_with_tokens_that_lie_before_it() {
    let place = Place::cpu(Kind::Double);
    let span = |length: usize, prefix: Option<(usize, usize)>| Span { length, prefix };
    let segments = Segments::sharing(&[span(5, None), span(2, Some((0, 3)))], place).unwrap();
    assert_eq!(segments.filled, [5, 5]);
    let positions: Vec<i64> = Vec::try_from(&segments.positions).unwrap();
    assert_eq!(positions, [0, 1, 2, 3, 4, 3, 4]);
    let seen = segments.seen(&Tensor::arange(7i64, (Kind::Double, place.device)).unsqueeze(1));
    let seen: Vec<f64> = Vec::try_from(seen.unwrap().flatten(0, -1)).unwrap();
    assert_eq!(seen, [0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 1.0, 2.0, 5.0, 6.0]);
    assert!(Segments::sharing(&[span(5, None), span(2, Some((3, 3)))], place).is_err());
    assert!(Segments::sharing(&[span(5, Some((0, 1)))], place).is_err());
    let (model, _params) = adapted(Kind::Double, 4, 0.0);
    let rows = group(0, 2, &[&[3, 4], &[5, 6]]);
    assert!(Batch::of_groups(&model, &rows, &[1]).is_err());
    assert!(Batch::of_groups(&model, &rows, &[2, 0]).is_err());
}

/// Pairs, or with `ranks` rankings of three, each with a reference and a value.
fn compared(index: usize, ranks: bool) -> Group {
    let lengths = [3 + index % 4, 2 + index % 5, 2];
    let completions: Vec<Vec<i64>> = lengths[..if ranks { 3 } else { 2 }]
        .iter()
        .enumerate()
        .map(|(side, &length)| tokens(100 + 10 * index + side, length))
        .collect();
    let completions: Vec<&[i64]> = completions.iter().map(Vec::as_slice).collect();
    let rows = group(index, index % 7, &completions);
    let about = |row: &Row| {
        (0..row.completion())
            .map(|t| -9.0 - 0.1 * t as f32)
            .collect()
    };
    Group {
        reference: rows.iter().map(about).collect(),
        rows,
        value: (index % 2) as f64,
    }
}

fn run(method: &Method, micro_batch: usize, dropout: f64) -> (Vec<Step>, Vec<Tensor>) {
    let (model, params) = adapted(Kind::Double, 4, dropout);
    let ranks = matches!(method, Method::Ranking { .. });
    let read = Box::new(move |index: usize| Ok(compared(index, ranks)));
    let mut objective = Preference::new(&model, 11, read, method.clone());
    let plan = Plan {
        seed: 9,
        epochs: 2,
        batch: 4,
        micro_batch,
        max_steps: None,
        shuffle: true,
    };
    let mut updater = Updater {
        optimizer: Optimizer::new(Rule::AdamW(Options::default()), vec![]),
        schedule: Schedule {
            shape: Shape::Cosine,
            peak: 1e-3,
            warmup: 1,
            total: plan.steps(11),
        },
        clip: Some(1.0),
    };
    let mut steps = Vec::new();
    let mut watch = |step: &Step| {
        steps.push(step.clone());
        Ok(Next::Go)
    };
    fit(
        &mut objective,
        &params,
        &mut updater,
        &plan,
        None,
        &mut watch,
    )
    .unwrap();
    let weights = params.trained().map(|(_, tensor)| tensor.detach().copy());
    (steps, weights.collect())
}

/// Methods whose losses look across the batch among them: KTO's baseline, means over tokens.
fn methods() -> Vec<Method> {
    let settings = Settings {
        beta: 0.1,
        label_smoothing: 0.0,
        divergence: Divergence::ReverseKl,
        discopop_tau: 0.05,
        ipo_averages: true,
    };
    let kto = |apo_zero: bool| {
        Method::Kto(Kto {
            beta: 0.1,
            desirable_weight: 1.0,
            undesirable_weight: 1.5,
            apo_zero,
        })
    };
    vec![
        Method::Dpo {
            losses: vec![(PairLoss::Sigmoid, 0.8), (PairLoss::Sft, 1.0)],
            settings,
            ld_alpha: Some(0.5),
            weighted: true,
            soft_labels: false,
        },
        Method::Ranking { beta: 0.1 },
        Method::Cpo {
            loss: CpoLoss::Ipo,
            beta: 0.1,
            label_smoothing: 0.0,
            nll: 1.0,
        },
        Method::Orpo { beta: 0.1 },
        kto(false),
        kto(true),
    ]
}

#[test]
fn micro_batches_of_groups_are_one_batch() {
    for method in methods() {
        for dropout in [0.0, 0.2] {
            let (whole, ends) = run(&method, 4, dropout);
            assert_eq!(whole.len(), 6);
            for micro_batch in [1, 3] {
                let (parts, weights) = run(&method, micro_batch, dropout);
                for (a, b) in whole.iter().zip(&parts) {
                    let what = format!("{method:?}: {a:?}, in parts {b:?}");
                    assert!((a.loss - b.loss).abs() < 1e-9, "{what}");
                    assert!((a.grad_norm - b.grad_norm).abs() < 1e-9, "{what}");
                    assert_eq!((a.tokens, a.weight), (b.tokens, b.weight), "{what}");
                }
                for (a, b) in ends.iter().zip(&weights) {
                    close(b, a, 1e-8, "weights after six steps");
                }
            }
        }
    }
}

#[test]
fn the_baseline_of_kto_is_the_mean_over_mismatched_rows() {
    let kto = |apo_zero: bool| {
        Method::Kto(Kto {
            beta: 0.1,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            apo_zero,
        })
    };
    let first = |method: &Method| {
        let (steps, _) = run(method, 2, 0.0);
        let kl = steps[0].means.iter().find(|(name, _)| *name == "kl");
        kl.unwrap().1
    };
    // By hand: the second rows of the first step's groups, each in a forward of its own.
    let plan = Plan {
        seed: 9,
        epochs: 2,
        batch: 4,
        micro_batch: 2,
        max_steps: None,
        shuffle: true,
    };
    let (model, _params) = adapted(Kind::Double, 4, 0.0);
    let ratios = plan.rows_of(0, 11).into_iter().map(|index| {
        let group = compared(index, false);
        let batch = Batch::new(&model, &group.rows[1..]).unwrap();
        let values = no_grad(|| batch.values(&model, Pass::eval(), 1.0, false)).unwrap();
        let policy = values.log_probabilities.sum(Kind::Double).double_value(&[]);
        policy
            - group.reference[1]
                .iter()
                .map(|x| f64::from(*x))
                .sum::<f64>()
    });
    let mean = ratios.sum::<f64>() / 4.0;
    assert!(mean > 0.01, "{mean}: nothing is seen of a baseline at zero");
    let found = first(&kto(false));
    assert!((found - mean).abs() < 1e-6, "{found} instead of {mean}");
    assert_eq!(first(&kto(true)), 0.0);
}

//! Laws of training: k micro-batches = 1 batch, resumed = uninterrupted to the bit, norms are clipped, empty masks are errors.

mod tiny;

use ml::fit::{Next, Objective, Plan, Step, fit};
use ml::optimizer::{Optimizer, Options, Rule, Schedule, Shape};
use ml::sft::{Row, Sft};
use ml::update::Updater;
use ml::{Kind, Llama, Params, Pass, Tensor};
use std::path::Path;
use tiny::{adapted, close, tokens};

fn row(index: usize) -> Row {
    let tokens = tokens(index, 4 + (index * 7) % 30);
    Row {
        trained: (0..tokens.len()).map(|t| t % 4 != 2).collect(),
        tokens,
        documents: vec![],
    }
}

fn updater(total: usize) -> Updater {
    Updater {
        optimizer: Optimizer::new(
            Rule::AdamW(Options {
                weight_decay: 0.01,
                ..Options::default()
            }),
            vec![],
        ),
        schedule: Schedule {
            shape: Shape::Cosine,
            peak: 1e-2,
            warmup: 2,
            total,
        },
        clip: Some(1.0),
    }
}

fn plan(micro_batch: usize) -> Plan {
    Plan {
        seed: 9,
        epochs: 2,
        batch: 4,
        micro_batch,
        max_steps: None,
        shuffle: true,
    }
}

/// Trains on 18 rows: 10 steps.
fn run(
    model: &Llama,
    params: &Params,
    plan: &Plan,
    resume: Option<&Path>,
    watch: &mut dyn FnMut(&Step) -> Next,
) -> Vec<Step> {
    let mut objective = Sft {
        model,
        rows: 18,
        read: Box::new(|index| Ok(row(index))),
        chunk: 16,
    };
    let mut updater = updater(plan.steps(18));
    let mut steps = Vec::new();
    fit(
        &mut objective,
        params,
        &mut updater,
        plan,
        resume,
        &mut |step| {
            steps.push(step.clone());
            Ok(watch(step))
        },
    )
    .unwrap();
    steps
}

fn weights(params: &Params) -> Vec<Tensor> {
    params
        .trained()
        .map(|(_, tensor)| tensor.detach().copy())
        .collect()
}

#[test]
fn micro_batches_are_one_batch() {
    // With dropout too: what is dropped of a token does not depend on the rows beside it.
    for (micro, dropout) in [(1, 0.0), (3, 0.0), (1, 0.2), (3, 0.2)] {
        let (model, params) = adapted(Kind::Double, 4, dropout);
        let whole = run(&model, &params, &plan(4), None, &mut |_| Next::Go);
        let ends = weights(&params);
        assert_eq!(whole.len(), 10);
        let (model, params) = adapted(Kind::Double, 4, dropout);
        let parts = run(&model, &params, &plan(micro), None, &mut |_| Next::Go);
        for (a, b) in whole.iter().zip(&parts) {
            assert!((a.loss - b.loss).abs() < 1e-9 && (a.grad_norm - b.grad_norm).abs() < 1e-9);
            assert_eq!((a.tokens, a.weight, a.lr), (b.tokens, b.weight, b.lr));
        }
        for (a, b) in ends.iter().zip(weights(&params)) {
            close(&b, a, 1e-8, "weights after ten steps");
        }
    }
}

#[test]
fn training_learns() {
    let (model, params) = adapted(Kind::Float, 4, 0.0);
    let longer = Plan {
        epochs: 20,
        ..plan(4)
    };
    let steps = run(&model, &params, &longer, None, &mut |_| Next::Go);
    let mean = |part: &[Step]| part.iter().map(|step| step.loss).sum::<f64>() / part.len() as f64;
    assert!(mean(&steps[90..]) < 0.8 * mean(&steps[..10]));
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    for kind in [Kind::Float, Kind::BFloat16] {
        // Everything is trained, so that bf16 parameters with f32 masters are too; dropout is on.
        let fresh = || {
            let (model, mut params) = adapted(kind, 4, 0.2);
            params.train(|_| true);
            (model, params)
        };
        let (model, params) = fresh();
        let whole = run(&model, &params, &plan(3), None, &mut |_| Next::Go);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("snapshot");
        let (broken, other) = fresh();
        run(
            &broken,
            &other,
            &plan(3),
            None,
            &mut |step| match step.index {
                4 => Next::SnapshotAndStop(at.clone()),
                _ => Next::Go,
            },
        );
        let (again, resumed) = fresh();
        let rest = run(&again, &resumed, &plan(3), Some(&at), &mut |_| Next::Go);
        assert_eq!(rest.len(), 6);
        for (a, b) in whole[4..].iter().zip(&rest) {
            assert_eq!(
                (a.index, a.loss, a.grad_norm, a.lr),
                (b.index, b.loss, b.grad_norm, b.lr)
            );
        }
        for (a, b) in weights(&params).iter().zip(weights(&resumed)) {
            assert_eq!(
                ml::tensors::bytes(a).unwrap(),
                ml::tensors::bytes(&b).unwrap()
            );
        }
    }
}

#[test]
fn a_snapshot_of_another_run_is_refused() {
    let (model, params) = adapted(Kind::Float, 4, 0.0);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("snapshot");
    run(&model, &params, &plan(4), None, &mut |_| {
        Next::SnapshotAndStop(at.clone())
    });
    let mut objective = Sft {
        model: &model,
        rows: 17,
        read: Box::new(|index| Ok(row(index))),
        chunk: 16,
    };
    let error = fit(
        &mut objective,
        &params,
        &mut updater(9),
        &plan(4),
        Some(&at),
        &mut |_| Ok(Next::Go),
    );
    assert!(format!("{:#}", error.unwrap_err()).contains("of another run"));
}

#[test]
fn a_batch_without_trained_tokens_is_an_error() {
    let (model, params) = adapted(Kind::Float, 4, 0.0);
    let mut objective = Sft {
        model: &model,
        rows: 2,
        read: Box::new(|index| {
            let mut row = row(index);
            row.trained.fill(false);
            Ok(row)
        }),
        chunk: 16,
    };
    assert_eq!(objective.rows(), 2);
    let error = fit(
        &mut objective,
        &params,
        &mut updater(1),
        &plan(4),
        None,
        &mut |_| Ok(Next::Go),
    );
    assert!(format!("{:#}", error.unwrap_err()).contains("no token of the rows"));
}

#[test]
fn every_row_is_seen_once_in_an_epoch() {
    let plan = plan(4);
    let mut seen: Vec<usize> = (0..5).flat_map(|step| plan.rows_of(step, 18)).collect();
    assert_ne!(seen, (0..18).collect::<Vec<_>>());
    seen.sort_unstable();
    assert_eq!(seen, (0..18).collect::<Vec<_>>());
    assert_ne!(plan.order(0, 18), plan.order(1, 18));
    assert_eq!(plan.steps(18), 10);
}

#[test]
fn gradients_are_clipped_to_their_common_norm() {
    let mut params = Params::new();
    for name in ["a", "b"] {
        params
            .add(name, &tiny::numbers(name, &[5], 3.0), true)
            .unwrap();
    }
    assert!(
        params
            .add("a", &tiny::numbers("a", &[1], 1.0), true)
            .is_err()
    );
    let loss: Tensor = params
        .trained()
        .map(|(_, t)| t.square().sum(Kind::Double) / 2.0)
        .sum();
    loss.backward();
    let norm = ml::update::clip(&params, Some(0.5)).unwrap();
    let square: f64 = params
        .trained()
        .map(|(_, t)| t.square().sum(Kind::Double).double_value(&[]))
        .sum();
    assert!((norm - square.sqrt()).abs() < 1e-12);
    let after = ml::update::clip(&params, None).unwrap();
    assert!((after - 0.5 * norm / (norm + 1e-6)).abs() < 1e-12);
}

#[test]
fn an_adapter_survives_its_file() {
    let (model, _params) = adapted(Kind::BFloat16, 4, 0.0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    ml::adapter::save(&model, &path).unwrap();
    let files = [("adapter_model.safetensors".to_owned(), path)];
    let stored = formats::tensors::Weights::open_files(&files).unwrap();
    let mut params = Params::new();
    let mut other = tiny::model(Kind::BFloat16, &mut params);
    ml::lora::attach_stored(
        other.linears_mut(),
        &tiny::adapter(4, 0.0),
        &stored,
        &mut params,
    )
    .unwrap();
    for (a, b) in model.linears().iter().zip(other.linears()) {
        let pass = Pass::eval();
        let (a, b) = (a.lora(pass).unwrap(), b.lora(pass).unwrap());
        assert_eq!((&a.down, &a.up, a.scale), (&b.down, &b.up, b.scale));
    }
    let mut params = Params::new();
    let mut third = tiny::model(Kind::BFloat16, &mut params);
    let wrong = ml::lora::attach_stored(
        third.linears_mut(),
        &tiny::adapter(5, 0.0),
        &stored,
        &mut params,
    );
    assert!(format!("{:#}", wrong.unwrap_err()).contains("shape"));
}

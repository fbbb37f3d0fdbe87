//! Heads on the tiny Llama against transformers' classifiers and torch's perceptrons (tests/golden/make/ml_classifier.py). Our rows are
//! packed; theirs went through one by one.

mod support;

use ml::backbone::Backbone;
use ml::classifier::{Batch, Classifier, vectors};
use ml::fit::Objective;
use ml::head::{Activation, Head, Names, OnVectors, Shape, Task, loss};
use ml::pool::{Pooling, normalized};
use ml::{Kind, Params, Pass, Tensor, no_grad};
use serde_json::json;
use support::{Golden, close, model, numbers, place, tokens, tolerance, weight};

const LENGTHS: [usize; 5] = [13, 1, 7, 2, 24];
const CLASSES: [f64; 5] = [2.0, 0.0, 1.0, 1.0, 2.0];
const NUMBERS: [f64; 5] = [0.5, -1.25, 3.0, 0.0, 7.5];

fn rows() -> Vec<Vec<i64>> {
    let rows = LENGTHS.iter().enumerate();
    rows.map(|(index, length)| tokens(&format!("row {index}"), *length))
        .collect()
}

fn shape(hidden: &[usize], outputs: usize, names: Names, activation: Activation) -> Shape {
    Shape {
        input: 32,
        hidden: hidden.to_vec(),
        outputs,
        activation,
        bias: names != Names::Score,
        names,
    }
}

/// The tiny model under a head by formula, everything trained.
fn built(kind: Kind, shape: &Shape, dropout: f64) -> (Backbone, Head, Params) {
    let mut params = Params::new();
    let model = model(kind, json!({}), &mut params);
    let source = &mut |name: &str, size: &[i64]| weight(name, size);
    let head = Head::build(shape, dropout, place(kind), &mut params, source).unwrap();
    params.train(|_| true);
    (Backbone::Llama(model), head, params)
}

/// Logits, loss and gradients of a case.
fn compare(
    golden: &Golden,
    kind: Kind,
    (case, pooling, task): (&str, Pooling, Task),
    shape: &Shape,
    targets: &[f64],
) {
    let tolerance = tolerance::of(kind);
    let (backbone, head, params) = built(kind, shape, 0.0);
    let batch = Batch::new(&backbone, &rows()).unwrap();
    let found = batch.vectors(&backbone, Pass::train(0), pooling).unwrap();
    let logits = head.forward(Pass::train(0), &found, &[]).unwrap();
    let what = format!("{kind:?} {case}");
    let expected = golden.get(&format!("{case}.logits"));
    close(&logits, expected, tolerance, &what);
    let rows = rows();
    let mut objective = Classifier {
        backbone: &backbone,
        head: &head,
        pooling,
        task,
        rows: rows.len(),
        read: Box::new(|row: usize| Ok((rows[row].clone(), targets[row]))),
    };
    let all: Vec<usize> = (0..rows.len()).collect();
    let batch = objective.batch(&all).unwrap();
    assert_eq!(objective.weight(&batch), 5.0);
    assert_eq!(objective.tokens(&batch), LENGTHS.iter().sum::<usize>());
    let loss = objective.loss(Pass::train(0), &batch).unwrap();
    let expected = golden.get(&format!("{case}.loss"));
    close(&loss.sum, expected, tolerance, &what);
    loss.sum.backward();
    let prefix = format!("{case}.gradient.");
    assert!(golden.names(&prefix).count() > 4);
    for name in golden.names(&prefix) {
        let gradient = params.get(name).unwrap().grad();
        let expected = golden.get(&format!("{prefix}{name}"));
        close(&gradient, expected, tolerance, &format!("{what} {name}"));
    }
}

#[test]
fn classifiers_are_those_of_transformers() {
    let golden = Golden::open(&["classifier"]);
    for kind in [Kind::Double, Kind::Float] {
        let classes = shape(&[], 3, Names::Score, Activation::Relu);
        let case = ("classes", Pooling::Last, Task::Classification);
        compare(&golden, kind, case, &classes, &CLASSES);
        let number = shape(&[], 1, Names::Score, Activation::Relu);
        let case = ("number", Pooling::Last, Task::Regression);
        compare(&golden, kind, case, &number, &NUMBERS);
    }
}

#[test]
fn perceptrons_are_those_of_torch() {
    let golden = Golden::open(&["classifier"]);
    for kind in [Kind::Double, Kind::Float] {
        for name in ["relu", "gelu", "tanh"] {
            let activation = Activation::parse(name).unwrap();
            let shape = shape(&[6, 5], 3, Names::Head, activation);
            let case = (name, Pooling::Mean, Task::Classification);
            compare(&golden, kind, case, &shape, &CLASSES);
        }
    }
}

#[test]
fn vectors_are_in_the_order_of_rows_whatever_goes_together() {
    let golden = Golden::open(&["classifier"]);
    let shape = shape(&[], 3, Names::Head, Activation::Relu);
    for kind in [Kind::Double, Kind::Float] {
        let (backbone, _, _) = built(kind, &shape, 0.0);
        let tolerance = tolerance::of(kind);
        for batch in [1, 2, 16] {
            for (normalize, name) in [(false, "vectors"), (true, "normalized")] {
                let mut seen = Vec::new();
                let found = vectors(
                    &backbone,
                    Pooling::Mean,
                    normalize,
                    &rows(),
                    batch,
                    &mut |done, tokens| {
                        seen.push((done, tokens));
                        Ok(())
                    },
                );
                close(
                    &found.unwrap(),
                    &golden.get(name).to_device(ml::place::HOST),
                    tolerance,
                    name,
                );
                assert_eq!(seen.len(), 5usize.div_ceil(batch));
                assert_eq!(seen.last(), Some(&(5, LENGTHS.iter().sum())));
            }
        }
        for wrong in [Pooling::Cls, Pooling::Pooler] {
            let error = vectors(&backbone, wrong, false, &rows(), 2, &mut |_, _| Ok(()));
            let error = error.unwrap_err().to_string();
            assert!(error.contains("causal"), "{error}");
        }
    }
    let zeros = Tensor::zeros([1, 4], (Kind::Float, ml::place::HOST));
    assert_eq!(
        normalized(&zeros)
            .unwrap()
            .sum(Kind::Float)
            .double_value(&[]),
        0.0
    );
}

/// Gradients of a step in micro-batches of this size.
fn gradients(on_vectors: bool, micro_batch: usize) -> Vec<(String, Tensor)> {
    let shape = shape(&[6], 3, Names::Head, Activation::Gelu);
    let (backbone, head, params) = built(Kind::Double, &shape, 0.5);
    let rows = rows();
    let given = numbers("given", &[5, 32], 1.0);
    let mut of_model = Classifier {
        backbone: &backbone,
        head: &head,
        pooling: Pooling::Last,
        task: Task::Classification,
        rows: 5,
        read: Box::new(|row: usize| Ok((rows[row].clone(), CLASSES[row]))),
    };
    let mut of_vectors = OnVectors {
        head: &head,
        vectors: &given,
        targets: &CLASSES,
        task: Task::Classification,
    };
    let mut before = 0;
    for chosen in [0, 1, 2, 3, 4].chunks(micro_batch) {
        let pass = Pass::train(9).after(before);
        let loss = match on_vectors {
            true => {
                let batch = of_vectors.batch(chosen).unwrap();
                before += of_vectors.tokens(&batch);
                of_vectors.loss(pass, &batch).unwrap()
            }
            false => {
                let batch = of_model.batch(chosen).unwrap();
                before += of_model.tokens(&batch);
                of_model.loss(pass, &batch).unwrap()
            }
        };
        loss.sum.backward();
    }
    let of_head = params.iter().filter(|(name, _)| name.starts_with("head."));
    of_head
        .map(|(name, param)| (name.to_owned(), param.tensor.grad()))
        .collect()
}

#[test]
fn dropout_does_not_depend_on_the_micro_batch() {
    for on_vectors in [true, false] {
        let whole = gradients(on_vectors, 5);
        assert_eq!(whole.len(), 4);
        for micro_batch in [1, 2] {
            for ((name, one), (_, other)) in gradients(on_vectors, micro_batch).iter().zip(&whole) {
                close(one, other, tolerance::F64, name);
            }
        }
    }
}

#[test]
fn a_head_takes_the_scale_of_its_vectors_in() {
    let shape = shape(&[6], 3, Names::Head, Activation::Tanh);
    let place = place(Kind::Double);
    let mut params = Params::new();
    let source = &mut |name: &str, size: &[i64]| weight(name, size);
    let head = Head::build(&shape, 0.0, place, &mut params, source).unwrap();
    let given = numbers("given", &[5, 32], 3.0) + 2.0;
    let mean: Vec<f64> = (0..32).map(|at| 2.0 + f64::from(at) / 40.0).collect();
    let deviation: Vec<f64> = (0..32).map(|at| 0.5 + f64::from(at) / 20.0).collect();
    let device = place.device;
    let scaled = (&given - Tensor::from_slice(&mean).to_device(device))
        / Tensor::from_slice(&deviation).to_device(device);
    let (before, after) = no_grad(|| {
        let before = head.forward(Pass::eval(), &scaled, &[]).unwrap();
        head.absorb(&mean, &deviation).unwrap();
        (before, head.forward(Pass::eval(), &given, &[]).unwrap())
    });
    close(&after, &before, tolerance::F64, "absorbed");
    // What was stored is the same head.
    let again = Head::stored(&shape, &head.tensors(), place, &mut Params::new()).unwrap();
    let stored = no_grad(|| again.forward(Pass::eval(), &given, &[]).unwrap());
    assert_eq!(stored, after);
}

#[test]
fn what_is_no_head_is_refused() {
    let shape = shape(&[], 3, Names::Score, Activation::Relu);
    let place = place(Kind::Float);
    let right = numbers("score", &[3, 32], 1.0).to_kind(Kind::Float);
    let stored = |tensors: &[(String, Tensor)], shape: &Shape| {
        Head::stored(shape, tensors, place, &mut Params::new()).map(|_| ())
    };
    let named = |name: &str, tensor: &Tensor| (name.to_owned(), tensor.shallow_clone());
    stored(&[named("score.weight", &right)], &shape).unwrap();
    let wrong = numbers("score", &[2, 32], 1.0).to_kind(Kind::Float);
    for tensors in [
        vec![],
        vec![named("other", &right)],
        vec![named("score.weight", &wrong)],
        vec![named("score.weight", &right.to_kind(Kind::Int64))],
        vec![named("score.weight", &right), named("score.bias", &right)],
    ] {
        assert!(stored(&tensors, &shape).is_err());
    }
    let deep = Shape {
        hidden: vec![4],
        ..shape.clone()
    };
    let empty = Shape {
        outputs: 0,
        ..shape.clone()
    };
    for wrong in [deep, empty] {
        assert!(stored(&[named("score.weight", &right)], &wrong).is_err());
    }
    let head = Head::fresh(&shape, 0.0, 3, place, &mut Params::new()).unwrap();
    let logits = head.forward(Pass::eval(), &numbers("x", &[2, 32], 1.0), &[]);
    let logits = logits.unwrap();
    assert!(loss(Task::Classification, &logits, &[0.0, 3.0]).is_err());
    assert!(loss(Task::Classification, &logits, &[0.0]).is_err());
    assert!(loss(Task::Regression, &logits, &[0.0, 1.0]).is_err());
}

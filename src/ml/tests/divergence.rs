//! Laws of the comparison of two models: what a loop over all probabilities gives, in any chunks; 0 from a model to itself.

mod tiny;

use ml::divergence::{Divergence, compare};
use ml::kv_cache::Segments;
use ml::sft::{Row, evaluate};
use ml::{Inputs, Kind, Llama, Params, Pass};
use tiny::{adapted, tokens};

/// Rows of which some tokens are trained.
fn rows() -> Vec<Row> {
    let row = |(index, length): (usize, usize)| Row {
        tokens: tokens(index, length),
        trained: (0..length).map(|at| at % 3 != index % 3).collect(),
        documents: Vec::new(),
    };
    [21, 2, 40].into_iter().enumerate().map(row).collect()
}

/// log p of every word behind every token.
fn log_probabilities(model: &Llama, row: &[i64]) -> Vec<Vec<f64>> {
    let segments = Segments::new(&[row.len()], model.place).unwrap();
    let ids = model.tokens(row).unwrap();
    let hidden = model.hidden(Pass::eval(), Inputs::Tokens(&ids), &segments, None);
    let logits = model.logits(Pass::eval(), &hidden.unwrap()).unwrap();
    let numbers = Vec::<f64>::try_from(logits.to_kind(Kind::Double).view(-1)).unwrap();
    let words = model.config.vocab_size;
    let normalized = |logits: &[f64]| {
        let whole = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
        logits.iter().map(|x| x - whole).collect::<Vec<f64>>()
    };
    numbers.chunks(words).map(normalized).collect()
}

#[test]
fn a_model_is_nowhere_from_itself() {
    for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
        let (model, _params) = adapted(kind, 4, 0.0);
        let found = compare(&model, &model, Pass::eval(), &rows(), 64).unwrap();
        assert_eq!((found.kl, found.largest), (0.0, 0.0), "{kind:?}");
        assert_eq!(found.losses[0], found.losses[1]);
    }
}

#[test]
fn sums_are_those_of_a_loop() {
    let (first, _params) = adapted(Kind::Double, 4, 0.0);
    let mut params = Params::new();
    let second = tiny::model(Kind::Double, &mut params);
    let (mut kl, mut largest, mut count) = (0.0, 0.0f64, 0);
    let mut losses = [0.0; 2];
    for row in rows() {
        let [p, q] = [&first, &second].map(|model| log_probabilities(model, &row.tokens));
        for at in (1..row.tokens.len()).filter(|&at| row.trained[at]) {
            let pairs = p[at - 1].iter().zip(&q[at - 1]);
            let own: f64 = pairs.map(|(p, q)| p.exp() * (p - q)).sum();
            kl += own;
            largest = largest.max(own);
            count += 1;
            let word = row.tokens[at] as usize;
            losses[0] -= p[at - 1][word];
            losses[1] -= q[at - 1][word];
        }
    }
    assert!(kl > 1e-3 && largest < kl);
    for chunk in [1, 7, 64] {
        let found = compare(&first, &second, Pass::eval(), &rows(), chunk).unwrap();
        assert_eq!(found.count, count);
        for (found, wanted) in [
            (found.kl, kl),
            (found.largest, largest),
            (found.losses[0], losses[0]),
            (found.losses[1], losses[1]),
        ] {
            assert!((found - wanted).abs() < 1e-9 * wanted, "{found}, {wanted}");
        }
    }
    // The losses are those of an evaluation, and rows may come in parts.
    let scores = evaluate(&first, Pass::eval(), &rows(), 256).unwrap();
    assert!((scores.loss - losses[0]).abs() < 1e-9 * losses[0]);
    let mut parts = compare(&first, &second, Pass::eval(), &rows()[..1], 64).unwrap();
    parts.add(compare(&first, &second, Pass::eval(), &rows()[1..], 64).unwrap());
    assert_eq!((parts.count, parts.largest > 0.0), (count, true));
    assert!((parts.kl - kl).abs() < 1e-9 * kl);
    assert!((parts.largest - largest).abs() < 1e-9 * largest);
}

#[test]
fn rows_without_a_trained_token_count_nothing() {
    let (model, _params) = adapted(Kind::Float, 4, 0.0);
    let row = Row {
        tokens: tokens(0, 5),
        trained: vec![false; 5],
        documents: Vec::new(),
    };
    let found = compare(&model, &model, Pass::eval(), &[row], 64).unwrap();
    assert_eq!(found, Divergence::default());
}

//! Laws of the model, on a tiny Llama in f64 and f32: packed = unpacked, cache = no cache, B = 0 is the identity, merged = added.

mod tiny;

use ml::generate::{Options, Prompt, generate};
use ml::kv_cache::Segments;
use ml::sample::Sampling;
use ml::sft::{Row, evaluate};
use ml::{Inputs, Kind, Llama, Params, Pass, Tensor, Weight, no_grad};
use proptest::prelude::*;
use tiny::{adapted, close, tokens};

const KINDS: [(Kind, f64); 3] = [
    (Kind::Double, 1e-12),
    (Kind::Float, 2e-5),
    (Kind::BFloat16, 2e-2),
];

fn logits(model: &Llama, pass: Pass, rows: &[Vec<i64>]) -> Tensor {
    let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
    let segments = Segments::new(&lengths, model.place).unwrap();
    let tokens = model.tokens(&rows.concat()).unwrap();
    let hidden = model
        .hidden(pass, Inputs::Tokens(&tokens), &segments, None)
        .unwrap();
    model.logits(pass, &hidden).unwrap()
}

#[test]
fn packed_is_unpacked() {
    for (kind, tolerance) in KINDS {
        let (model, _params) = adapted(kind, 4, 0.0);
        let rows: Vec<Vec<i64>> = [5, 1, 70, 13]
            .iter()
            .enumerate()
            .map(|(i, &n)| tokens(i, n))
            .collect();
        let packed = logits(&model, Pass::eval(), &rows);
        let alone: Vec<Tensor> = rows
            .iter()
            .map(|row| logits(&model, Pass::eval(), std::slice::from_ref(row)))
            .collect();
        close(&packed, &Tensor::cat(&alone, 0), tolerance, "packed rows");
    }
}

#[test]
fn documents_of_a_row_do_not_see_each_other() {
    let (model, _params) = adapted(Kind::Double, 4, 0.0);
    let row = |tokens: Vec<i64>, documents: Vec<usize>| Row {
        trained: vec![true; tokens.len()],
        tokens,
        documents,
    };
    let (a, b) = (tokens(0, 9), tokens(1, 6));
    let packed = row([a.clone(), b.clone()].concat(), vec![9, 6]);
    let packed = evaluate(&model, Pass::eval(), &[packed], 256).unwrap();
    let mut alone = evaluate(&model, Pass::eval(), &[row(a, vec![])], 256).unwrap();
    alone.add(evaluate(&model, Pass::eval(), &[row(b, vec![])], 256).unwrap());
    assert_eq!((packed.count, packed.correct), (alone.count, alone.correct));
    assert!((packed.loss - alone.loss).abs() < 1e-9);
}

#[test]
fn a_cache_changes_nothing() {
    for (kind, tolerance) in KINDS {
        let (model, _params) = adapted(kind, 4, 0.0);
        let rows = [tokens(0, 12), tokens(1, 7)];
        let whole = logits(&model, Pass::eval(), &rows);
        let (first, second) = (whole.narrow(0, 0, 12), whole.narrow(0, 12, 7));
        no_grad(|| {
            let mut cache = model.cache(2, 12);
            // Row 0 in three bites, row 1 in two, the single ones through the kernel for few rows.
            let bites: [(&[usize], &[usize]); 3] =
                [(&[0, 1], &[5, 6]), (&[1, 0], &[1, 1]), (&[0], &[6])];
            let mut seen = [0usize; 2];
            for (chosen, lengths) in bites {
                let segments = cache.segments(chosen, lengths).unwrap();
                let mut ids = Vec::new();
                for (&row, &length) in chosen.iter().zip(lengths) {
                    ids.extend_from_slice(&rows[row][seen[row]..seen[row] + length]);
                }
                let pass = Pass {
                    decode: lengths.iter().all(|&length| length == 1),
                    ..Pass::eval()
                };
                let ids = model.tokens(&ids).unwrap();
                let hidden = model
                    .hidden(pass, Inputs::Tokens(&ids), &segments, Some(&mut cache))
                    .unwrap();
                let logits = model.logits(pass, &hidden).unwrap();
                let mut start = 0;
                for (&row, &length) in chosen.iter().zip(lengths) {
                    let wanted = [&first, &second][row].narrow(0, seen[row] as i64, length as i64);
                    let got = logits.narrow(0, start, length as i64);
                    close(&got, &wanted, tolerance, &format!("cached {kind:?}"));
                    start += length as i64;
                    seen[row] += length;
                }
            }
            assert!(cache.segments(&[0], &[1]).is_err(), "the row is full");
        });
    }
}

#[test]
fn an_adapter_with_zero_b_is_the_identity() {
    for (kind, _) in KINDS {
        let mut params = Params::new();
        let mut model = tiny::model(kind, &mut params);
        let rows = [tokens(0, 20)];
        let before = logits(&model, Pass::eval(), &rows);
        let chosen =
            ml::lora::attach(model.linears_mut(), &tiny::adapter(4, 0.0), 3, &mut params).unwrap();
        assert_eq!(chosen.len(), 14);
        assert_eq!(before, logits(&model, Pass::eval(), &rows));
        ml::adapter::detach(&mut model, &mut params);
        assert_eq!(params.trained().count(), 0);
    }
}

#[test]
fn adapters_off_is_the_base_and_merged_is_added() {
    let (mut model, _params) = adapted(Kind::Double, 4, 0.0);
    let rows = [tokens(0, 20)];
    let base = {
        let mut params = Params::new();
        logits(&tiny::model(Kind::Double, &mut params), Pass::eval(), &rows)
    };
    let off = logits(&model, Pass::eval().without_adapters(), &rows);
    assert_eq!(base, off);
    let added = logits(&model, Pass::eval(), &rows);
    assert!(tiny::distance(&added, &base) > 1e-3);
    for linear in model.linears_mut() {
        let lora = linear.adapter.take().unwrap();
        linear.weight = Weight::Dense(
            lora.merged(&linear.weight.values(linear.weight.kind()).unwrap())
                .unwrap(),
        );
    }
    close(
        &logits(&model, Pass::eval(), &rows),
        &added,
        1e-12,
        "merged",
    );
}

#[test]
fn the_fused_model_is_the_plain_one_with_its_gradients() {
    // f32 takes the fused operators, f64 the plain ones; embeddings are tied and trained with everything else.
    let mut all = Vec::new();
    for kind in [Kind::Float, Kind::Double] {
        let (model, mut params) = adapted(kind, 4, 0.0);
        let count = params.train(|_| true);
        assert_eq!(count, params.iter().count());
        let rows: Vec<Row> = (0..3)
            .map(|i| Row {
                tokens: tokens(i, 9 + 40 * i),
                trained: (0..9 + 40 * i).map(|t| t % 3 != 1).collect(),
                documents: vec![],
            })
            .collect();
        let batch = ml::sft::Batch::new(&model, &rows).unwrap();
        let result = batch.cross_entropy(&model, Pass::train(1), 16).unwrap();
        (&result.sum / result.count as f64).backward();
        let gradients: Vec<(String, Tensor)> = params
            .trained()
            .map(|(name, tensor)| (name.to_owned(), tensor.grad().to_kind(Kind::Double)))
            .collect();
        all.push((result.sum.double_value(&[]), gradients));
    }
    assert!((all[0].0 / all[1].0 - 1.0).abs() < 1e-5);
    for ((name, a), (_, b)) in all[0].1.iter().zip(&all[1].1) {
        close(a, b, 1e-4, name);
    }
}

#[test]
fn dropped_rows_depend_on_the_draw_and_only_in_training() {
    let (model, _params) = adapted(Kind::Float, 4, 0.3);
    let rows = [tokens(0, 20)];
    let run = |pass| logits(&model, pass, &rows);
    assert_eq!(run(Pass::train(1)), run(Pass::train(1)));
    assert_ne!(run(Pass::train(1)), run(Pass::train(2)));
    let (plain, _params) = adapted(Kind::Float, 4, 0.0);
    close(
        &run(Pass::eval()),
        &logits(&plain, Pass::eval(), &rows),
        1e-5,
        "eval",
    );
}

fn options(temperature: f64, batch: usize) -> Options {
    Options {
        sampling: Sampling {
            temperature,
            top_k: 0,
            top_p: 1.0,
        },
        seed: 5,
        max_new_tokens: 12,
        eos: vec![2, 3],
        batch,
    }
}

fn prompts(count: usize) -> Vec<Prompt> {
    (0..count)
        .map(|i| Prompt {
            tokens: tokens(i, 3 + (i * 5) % 11),
            draw: i as u64,
        })
        .collect()
}

#[test]
fn greedy_text_is_that_of_whole_forwards() {
    let (model, _params) = adapted(Kind::Double, 4, 0.0);
    let prompts = prompts(5);
    let made = generate(
        &model,
        Pass::eval(),
        &prompts,
        &options(0.0, 3),
        &mut |_, _| true,
    )
    .unwrap();
    for (prompt, made) in prompts.iter().zip(&made) {
        let mut row = prompt.tokens.clone();
        for &token in &made.tokens {
            let logits = logits(&model, Pass::eval(), &[row.clone()]);
            let last = logits
                .get(row.len() as i64 - 1)
                .argmax(0, false)
                .int64_value(&[]);
            assert_eq!(last, token);
            row.push(token);
        }
        let last = made.tokens.last().copied().unwrap();
        assert_eq!(made.finished, last == 2 || last == 3);
        assert!(made.finished || made.tokens.len() == 12);
    }
}

#[test]
fn a_text_does_not_depend_on_its_batch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let (model, _params) = adapted(kind, 4, 0.0);
        let prompts = prompts(21);
        let run = |batch| {
            generate(
                &model,
                Pass::eval(),
                &prompts,
                &options(1.0, batch),
                &mut |_, _| true,
            )
            .unwrap()
        };
        let together = run(32);
        assert_eq!(together, run(1), "{kind:?}");
        assert_eq!(together, run(4), "{kind:?}");
        assert!(
            together
                .iter()
                .any(|made| made.tokens != together[0].tokens)
        );
    }
}

#[test]
fn the_watcher_sees_every_token_and_can_stop() {
    let (model, _params) = adapted(Kind::Float, 4, 0.0);
    let prompts = prompts(3);
    let mut seen = Vec::new();
    let made = generate(
        &model,
        Pass::eval(),
        &prompts,
        &options(1.0, 8),
        &mut |prompt, token| {
            seen.push((prompt, token));
            seen.len() < 7
        },
    )
    .unwrap();
    assert_eq!(seen.len(), 7);
    assert_eq!(made.iter().map(|made| made.tokens.len()).sum::<usize>(), 7);
}

#[test]
fn lengths_and_tokens_that_do_not_fit_are_errors() {
    let (model, _params) = adapted(Kind::Float, 4, 0.0);
    assert!(
        model
            .tokens(&[64])
            .unwrap_err()
            .to_string()
            .contains("vocabulary")
    );
    let long = Prompt {
        tokens: tokens(0, 256),
        draw: 0,
    };
    assert!(
        generate(
            &model,
            Pass::eval(),
            &[long],
            &options(0.0, 1),
            &mut |_, _| true
        )
        .is_err()
    );
    let row = Row {
        tokens: tokens(0, 300),
        trained: vec![true; 300],
        documents: vec![],
    };
    let message = evaluate(&model, Pass::eval(), &[row], 256)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("256 positions: lower `max_length`"),
        "{message}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn choices_follow_the_filters(seed in 0u64..1000, temperature in 0.1f64..3.0, top_k in 0usize..20, top_p in 0.05f64..1.0, uniform in 0.0f64..1.0) {
        let mut stream = ml::random::Stream::new(seed, "logits");
        let logits: Vec<f32> = (0..50).map(|_| stream.uniform() as f32 * 8.0).collect();
        let sampling = Sampling { temperature, top_k, top_p };
        let id = sampling.choose(&logits, uniform);
        let mut order: Vec<usize> = (0..50).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let rank = order.iter().position(|&other| other == id).unwrap();
        prop_assert!(top_k == 0 || rank < top_k);
        let kept = if top_k == 0 { 50 } else { top_k };
        let weights: Vec<f64> = order[..kept].iter().map(|&i| (f64::from(logits[i]) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let before: f64 = weights[..rank].iter().sum::<f64>() / total;
        prop_assert!(rank == 0 || before < top_p + 1e-9);
        // Nearly no temperature is greedy.
        let cold = Sampling { temperature: 1e-6, top_k: 0, top_p: 1.0 };
        prop_assert_eq!(cold.choose(&logits, uniform), Sampling::GREEDY.choose(&logits, uniform));
    }
}

#[test]
fn draws_have_the_frequencies_of_the_softmax() {
    let logits = [0.0f32, 1.0, -1.0, 2.0];
    let sampling = Sampling {
        temperature: 0.7,
        top_k: 0,
        top_p: 1.0,
    };
    let mut counts = [0.0; 4];
    for i in 0..10_000 {
        counts[sampling.choose(&logits, (f64::from(i) + 0.5) / 10_000.0)] += 1e-4;
    }
    let weights = logits.map(|logit| (f64::from(logit) / 0.7).exp());
    let total: f64 = weights.iter().sum();
    for (count, weight) in counts.iter().zip(weights) {
        assert!((count - weight / total).abs() < 2e-4);
    }
}

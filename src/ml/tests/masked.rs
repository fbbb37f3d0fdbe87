//! Laws of BERT and of masked language modelling: what is hidden and how often, k micro-batches = 1 batch, resumed = uninterrupted to the
//! bit, a fresh head, adapters, and files under any of their names.

mod tiny;

use formats::config::{BertConfig, BertParts};
use formats::tensors::Weights;
use ml::fit::{Next, Plan, Step, fit};
use ml::kv_cache::Segments;
use ml::masked::{MaskedLm, Masking, Row, evaluate};
use ml::optimizer::{Optimizer, Options, Rule, Schedule, Shape};
use ml::random::Stream;
use ml::update::Updater;
use ml::{Bert, Kind, Params, Pass, Tensor};
use std::path::Path;
use tiny::{adapter, close, distance, numbers, place, tokens};

const WHOLE: BertParts = BertParts {
    pooler: true,
    head: true,
};
const MASKING: Masking = Masking {
    probability: 0.15,
    mask: 3,
    words: 64,
};

fn config() -> BertConfig {
    let text = r#"{"model_type":"bert","vocab_size":64,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,
        "num_attention_heads":4,"max_position_embeddings":48}"#;
    BertConfig::from_json(text, Path::new("tiny")).unwrap()
}

fn source(name: &str, shape: &[i64]) -> anyhow::Result<Tensor> {
    let numbers = numbers(name, shape, 0.3);
    Ok(match name.ends_with("LayerNorm.weight") {
        true => numbers + 1.0,
        false => numbers,
    })
}

fn model(kind: Kind, parts: BertParts, params: &mut Params) -> Bert {
    Bert::build(&config(), parts, place(kind), params, &mut source).unwrap()
}

/// A row whose first and last token are special.
fn row(index: usize) -> Row {
    let tokens = tokens(index, 5 + (index * 7) % 30);
    let last = tokens.len() - 1;
    Row {
        free: (0..=last).map(|at| at > 0 && at < last).collect(),
        tokens,
    }
}

fn states(model: &Bert, ids: &[i64]) -> Tensor {
    let segments = Segments::new(&[ids.len()], model.place).unwrap();
    let tokens = model.tokens(ids).unwrap();
    model.hidden(Pass::eval(), &tokens, &segments).unwrap()
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

/// Trains on 18 rows: 10 steps, five an epoch.
fn run(
    model: &Bert,
    params: &Params,
    plan: &Plan,
    resume: Option<&Path>,
    watch: &mut dyn FnMut(&Step) -> Next,
) -> Vec<Step> {
    let mut objective = MaskedLm {
        model,
        masking: MASKING,
        seed: plan.seed,
        epoch: 0,
        rows: 18,
        read: Box::new(|index| Ok(row(index))),
        chunk: 16,
    };
    let mut updater = Updater {
        optimizer: Optimizer::new(Rule::AdamW(Options::default()), vec![]),
        schedule: Schedule {
            shape: Shape::Constant,
            peak: 1e-2,
            warmup: 2,
            total: plan.steps(18),
        },
        clip: Some(1.0),
    };
    let mut steps = Vec::new();
    let watch = &mut |step: &Step| {
        steps.push(step.clone());
        Ok(watch(step))
    };
    fit(&mut objective, params, &mut updater, plan, resume, watch).unwrap();
    steps
}

/// An encoder of which everything but the pooler is trained.
fn trained(kind: Kind) -> (Bert, Params) {
    let mut params = Params::new();
    let model = model(kind, WHOLE, &mut params);
    params.train(|name| !name.starts_with("bert.pooler"));
    (model, params)
}

fn all_bytes(params: &Params) -> Vec<Vec<u8>> {
    let all = params.iter();
    all.map(|(_, param)| ml::tensors::bytes(&param.tensor).unwrap())
        .collect()
}

#[test]
fn fifteen_in_a_hundred_are_chosen_and_eight_in_ten_of_them_are_hidden() {
    let long = Row {
        tokens: tokens(0, 40_000),
        free: (0..40_000).map(|at| at % 5 != 0).collect(),
    };
    let (seen, chosen) = MASKING.hide(&long, &mut Stream::new(1, "mask")).unwrap();
    assert!(chosen.iter().all(|&at| long.free[at]));
    let part = chosen.len() as f64 / 32_000.0;
    assert!((part - 0.15).abs() < 0.01, "{part}");
    for (at, token) in seen.iter().enumerate() {
        assert!(*token == long.tokens[at] || chosen.contains(&at));
    }
    // Tokens are drawn from 64: a random one is the mask, or what was there, once in so many.
    let of = |what: &dyn Fn(usize) -> bool| {
        let found = chosen.iter().filter(|&&at| what(at)).count();
        found as f64 / chosen.len() as f64
    };
    let masked = of(&|at| seen[at] == 3 && long.tokens[at] != 3);
    assert!((masked - 0.8).abs() < 0.03, "{masked}");
    let kept = of(&|at| seen[at] == long.tokens[at]);
    assert!((kept - 0.11).abs() < 0.02, "{kept}");
    let other = of(&|at| seen[at] != 3 && seen[at] != long.tokens[at]);
    assert!((other - 0.1).abs() < 0.02, "{other}");

    let draw = |name: &str| MASKING.hide(&long, &mut Stream::new(1, name)).unwrap();
    assert_eq!(draw("mask"), (seen.clone(), chosen));
    assert_ne!(draw("mask 1 0").0, seen);
}

#[test]
fn every_row_with_a_free_token_counts() {
    let rare = Masking {
        probability: 1e-9,
        ..MASKING
    };
    let mut places = Vec::new();
    for draw in 0..60 {
        let mut stream = Stream::new(draw, "mask");
        let (_, chosen) = rare.hide(&row(0), &mut stream).unwrap();
        assert_eq!(chosen.len(), 1);
        places.extend(chosen);
    }
    places.sort_unstable();
    places.dedup();
    assert_eq!(places, [1, 2, 3], "all free tokens of five are drawn");
    let mut special = row(0);
    special.free.fill(false);
    let mut stream = Stream::new(1, "mask");
    let untouched = (special.tokens.clone(), vec![]);
    assert_eq!(rare.hide(&special, &mut stream).unwrap(), untouched);
    special.free.pop();
    assert!(rare.hide(&special, &mut stream).is_err());
}

#[test]
fn micro_batches_are_one_batch() {
    let (model, params) = trained(Kind::Double);
    let whole = run(&model, &params, &plan(4), None, &mut |_| Next::Go);
    assert_eq!(whole.len(), 10);
    let (model, other) = trained(Kind::Double);
    let parts = run(&model, &other, &plan(1), None, &mut |_| Next::Go);
    for (a, b) in whole.iter().zip(&parts) {
        assert!((a.loss - b.loss).abs() < 1e-9 && (a.grad_norm - b.grad_norm).abs() < 1e-9);
        assert_eq!((a.tokens, a.weight, a.lr), (b.tokens, b.weight, b.lr));
    }
    // Epochs hide other tokens.
    let weights = |steps: &[Step]| steps.iter().map(|step| step.weight).collect::<Vec<_>>();
    assert_ne!(weights(&whole[..5]), weights(&whole[5..]));
    for ((name, a), (_, b)) in params.trained().zip(other.trained()) {
        close(b, a, 1e-7, name);
    }
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes_and_so_does_one_with_checkpointing() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let (model, params) = trained(kind);
        let whole = run(&model, &params, &plan(3), None, &mut |_| Next::Go);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("snapshot");
        // In the second epoch.
        let (broken, other) = trained(kind);
        run(
            &broken,
            &other,
            &plan(3),
            None,
            &mut |step| match step.index {
                7 => Next::SnapshotAndStop(at.clone()),
                _ => Next::Go,
            },
        );
        let (mut again, resumed) = trained(kind);
        again.checkpointing = true;
        let rest = run(&again, &resumed, &plan(3), Some(&at), &mut |_| Next::Go);
        let losses = |steps: &[Step]| steps.iter().map(|step| step.loss).collect::<Vec<_>>();
        assert_eq!(losses(&whole[7..]), losses(&rest));
        assert_eq!(all_bytes(&params), all_bytes(&resumed));
    }
}

#[test]
fn a_fresh_head_knows_nothing_and_learns() {
    let mut params = Params::new();
    let parts = BertParts {
        head: false,
        ..WHOLE
    };
    let mut model = model(Kind::Float, parts, &mut params);
    assert!(!model.has_masked_head());
    let hidden = states(&model, &tokens(0, 9));
    assert!(model.masked_logits(Pass::eval(), &hidden).is_err());
    model.attach_masked_head(5, &mut params).unwrap();
    assert!(model.has_masked_head());
    assert!(model.attach_masked_head(5, &mut params).is_err());
    let get = |name: &str| params.get(&format!("cls.predictions.{name}")).unwrap();
    let matrix = get("transform.dense.weight");
    let deviation = matrix.std(true).double_value(&[]);
    assert!((deviation - 0.02).abs() < 0.002, "{deviation}");
    assert_eq!(
        get("transform.LayerNorm.weight").min().double_value(&[]),
        1.0
    );
    for zero in ["bias", "transform.dense.bias", "transform.LayerNorm.bias"] {
        assert_eq!(get(zero).abs().max().double_value(&[]), 0.0, "{zero}");
    }

    let rows = || (0..18).map(|index| (index, row(index))).collect::<Vec<_>>();
    let loss = |model: &Bert| evaluate(model, &MASKING, 3, rows(), 16).unwrap();
    let before = loss(&model);
    // Measured one by one, the same tokens are hidden.
    let mut alone = ml::sft::Scores::default();
    for one in rows() {
        alone.add(evaluate(&model, &MASKING, 3, vec![one], 16).unwrap());
    }
    assert_eq!((alone.count, alone.correct), (before.count, before.correct));
    assert!((alone.loss - before.loss).abs() < 1e-3);
    // The head alone is trained.
    assert_eq!(params.train(|name| name.starts_with("cls.")), 5);
    let longer = Plan {
        epochs: 20,
        ..plan(4)
    };
    run(&model, &params, &longer, None, &mut |_| Next::Go);
    let after = loss(&model);
    assert!(after.mean() < before.mean(), "{before:?} {after:?}");
}

#[test]
fn adapters_go_to_the_linears_of_layers() {
    let mut params = Params::new();
    let mut model = model(Kind::Float, WHOLE, &mut params);
    let ids = tokens(0, 9);
    let before = states(&model, &ids);
    let settings = adapter(4, 0.0);
    let chosen = ml::lora::attach(model.linears_mut(), &settings, 1, &mut params).unwrap();
    assert_eq!(chosen.len(), 12);
    assert_eq!(chosen[11], "bert.encoder.layer.1.output.dense");
    close(&states(&model, &ids), &before, 1e-6, "a fresh adapter");
    run(&model, &params, &plan(4), None, &mut |_| Next::Go);
    let after = states(&model, &ids);
    assert!(distance(&after, &before) > 1e-3);

    let stored = ml::adapter::stored_of(&model.linears());
    assert_eq!(stored.len(), 24);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    ml::tensors::write(&path, &stored, &[("format", "pt")]).unwrap();
    let weights = Weights::open(&path).unwrap();
    let mut params = Params::new();
    let mut again = self::model(Kind::Float, WHOLE, &mut params);
    ml::lora::attach_stored(again.linears_mut(), &settings, &weights, &mut params).unwrap();
    close(
        &states(&again, &ids),
        &after,
        1e-6,
        "an adapter from its file",
    );
}

#[test]
fn files_are_read_under_any_of_their_names() {
    let mut params = Params::new();
    let model = model(Kind::Float, WHOLE, &mut params);
    let ids = tokens(0, 9);
    let expected = states(&model, &ids);
    let logits = |model: &Bert| {
        let hidden = states(model, &ids);
        model.masked_logits(Pass::eval(), &hidden).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let load = |parts: BertParts, name: &dyn Fn(&str) -> String| {
        let own = config().tensor_shapes(parts);
        let tensors: Vec<(String, Tensor)> = own
            .iter()
            .map(|(full, _)| (name(full), params.get(full).unwrap().shallow_clone()))
            .collect();
        let path = folder.path().join("model.safetensors");
        ml::tensors::write(&path, &tensors, &[("format", "pt")]).unwrap();
        let weights = Weights::open(&path).unwrap();
        let mut params = Params::new();
        let place = place(Kind::Float);
        let loaded = Bert::load(&config(), &weights, place, &mut params).unwrap();
        let names: Vec<String> = params.iter().map(|(name, _)| name.to_owned()).collect();
        let mut expected: Vec<String> = own.into_iter().map(|(name, _)| name).collect();
        expected.sort();
        assert_eq!(names, expected);
        loaded
    };
    let same = load(WHOLE, &|name| name.to_owned());
    close(&states(&same, &ids), &expected, 0.0, "as it is");
    let old = load(WHOLE, &|name| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        name.replace("LayerNorm.bias", "LayerNorm.beta")
    });
    close(&logits(&old), &logits(&model), 0.0, "gamma and beta");
    let alone = load(BertParts::default(), &|name| {
        name.trim_start_matches("bert.").to_owned()
    });
    close(&states(&alone, &ids), &expected, 0.0, "the encoder alone");
    assert!(!alone.has_masked_head());
    let error = alone.pooled(&expected).unwrap_err().to_string();
    assert!(error.contains("no pooler"), "{error}");
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let model = model(Kind::Float, WHOLE, &mut Params::new());
    let error = model.tokens(&[1, 64]).unwrap_err().to_string();
    assert!(error.contains("64 is not in the vocabulary"), "{error}");
    let segments = Segments::new(&[49], model.place).unwrap();
    let long = model.tokens(&tokens(0, 49)).unwrap();
    let error = model.hidden(Pass::eval(), &long, &segments).unwrap_err();
    assert!(error.to_string().contains("48 positions"), "{error}");
    let error = model.hidden(Pass::eval(), &model.tokens(&[1]).unwrap(), &segments);
    assert!(error.is_err());
    // A row that begins with tokens of another has no meaning where a token sees what follows.
    let spans = [(4, None), (3, Some((0, 2)))]
        .map(|(length, prefix)| ml::kv_cache::Span { length, prefix });
    let shared = Segments::sharing(&spans, model.place).unwrap();
    let seven = model.tokens(&tokens(0, 7)).unwrap();
    assert!(model.hidden(Pass::eval(), &seven, &shared).is_err());
}

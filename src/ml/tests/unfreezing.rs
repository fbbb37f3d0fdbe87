//! Laws of gradual unfreezing: what waits keeps its bytes and gets no gradient, each depth begins in its turn with a first step of its own, and a
//! resumed run ends with the bytes of one without a break.

mod tiny;

use ml::choice::{self, Choice};
use ml::fit::{Next, Plan, Step, fit};
use ml::optimizer::{Adafactor, Optimizer, Options, Rule, Schedule, Shape};
use ml::sft::{Row, Sft};
use ml::update::Updater;
use ml::{Kind, Llama, Params, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tiny::{adapted, config_with, place, source, tokens};

const STEPS: usize = 6;
const RATE: f64 = 1e-2;

/// The tiny model of two layers, everything trained.
fn model(kind: Kind, tied: bool) -> (Llama, Params) {
    let mut params = Params::new();
    let model = Llama::build(&config_with(tied), place(kind), &mut params, &mut source).unwrap();
    params.train(|_| true);
    (model, params)
}

fn updater(rule: Rule, turns: BTreeMap<String, usize>) -> Updater {
    Updater {
        optimizer: Optimizer::new(rule, vec![]).with_turns(turns),
        schedule: Schedule {
            shape: Shape::Constant,
            peak: RATE,
            warmup: 0,
            total: STEPS,
        },
        clip: None,
    }
}

/// AdamW with decay, which would move what has no gradient too.
fn adamw() -> Rule {
    Rule::AdamW(Options {
        weight_decay: 0.1,
        ..Options::default()
    })
}

/// Trains on twelve rows, two a step.
fn run(
    model: &Llama,
    params: &Params,
    updater: &mut Updater,
    steps: usize,
    resume: Option<&Path>,
    watch: &mut dyn FnMut(&Step) -> Next,
) {
    let row = |index: usize| {
        let tokens = tokens(index, 9 + index);
        Row {
            trained: vec![true; tokens.len()],
            tokens,
            documents: vec![],
        }
    };
    let mut objective = Sft {
        model,
        rows: 2 * STEPS,
        read: Box::new(move |index| Ok(row(index))),
        chunk: 16,
    };
    let plan = Plan {
        seed: 3,
        epochs: 1,
        batch: 2,
        micro_batch: 1,
        max_steps: Some(steps),
        shuffle: true,
    };
    fit(
        &mut objective,
        params,
        updater,
        &plan,
        resume,
        &mut |step| Ok(watch(step)),
    )
    .unwrap();
}

fn all_bytes(params: &Params) -> BTreeMap<String, Vec<u8>> {
    let all = params.iter();
    all.map(|(name, param)| (name.to_owned(), ml::tensors::bytes(&param.tensor).unwrap()))
        .collect()
}

/// What of the model differs from `before`.
fn changed(params: &Params, before: &BTreeMap<String, Vec<u8>>) -> BTreeSet<String> {
    let now = all_bytes(params);
    let other = now.into_iter().filter(|(name, now)| before[name] != *now);
    other.map(|(name, _)| name).collect()
}

#[test]
fn each_depth_begins_in_its_turn() {
    for (kind, tied) in [
        (Kind::Float, false),
        (Kind::BFloat16, false),
        (Kind::Float, true),
    ] {
        let mut ends = Vec::new();
        for checkpointing in [false, true] {
            let (mut model, params) = model(kind, tied);
            model.checkpointing = checkpointing;
            let turns = choice::turns(&params, 2).unwrap();
            assert_eq!(turns["model.norm.weight"], 0);
            assert_eq!(turns["model.layers.1.mlp.up_proj.weight"], 0);
            assert_eq!(turns["model.layers.0.input_layernorm.weight"], 2);
            assert_eq!(turns["model.embed_tokens.weight"], 4);
            assert_eq!(turns.len(), if tied { 20 } else { 21 });
            let before = all_bytes(&params);
            let mut updater = updater(adamw(), turns.clone());
            run(&model, &params, &mut updater, STEPS, None, &mut |step| {
                let begun = turns.iter().filter(|(_, turn)| **turn < step.index);
                let begun: BTreeSet<String> = begun.map(|(name, _)| name.clone()).collect();
                assert_eq!(
                    changed(&params, &before),
                    begun,
                    "after step {}",
                    step.index
                );
                for (name, tensor) in params.trained() {
                    assert_eq!(tensor.grad().defined(), begun.contains(name), "{name}");
                }
                Next::Go
            });
            ends.push(all_bytes(&params));
        }
        assert!(ends[0] == ends[1], "{kind:?}, tied {tied}: computed again");
    }
}

#[test]
fn until_the_second_turn_it_is_a_training_of_the_last_layer() {
    for every in [3, 100] {
        let (model, params) = model(Kind::Float, false);
        let before = all_bytes(&params);
        let turns = choice::turns(&params, every).unwrap();
        let mut gradual = updater(adamw(), turns);
        let go = &mut |_: &Step| Next::Go;
        let steps = every.min(STEPS);
        run(&model, &params, &mut gradual, steps, None, go);
        let moved = changed(&params, &before);
        let found = all_bytes(&params);
        let last = Choice::LastLayers(1).of(params.names()).unwrap();
        assert_eq!(moved, last, "every {every}");

        let (model, mut other) = self::model(Kind::Float, false);
        other.train(|name| last.contains(name));
        let mut plain = updater(adamw(), BTreeMap::new());
        run(&model, &other, &mut plain, steps, None, go);
        assert!(all_bytes(&other) == found, "every {every}");
        // What waits counts as trained: snapshots hold it.
        assert_eq!(params.trained().count(), 21);
    }
}

#[test]
fn the_first_step_of_a_parameter_is_corrected_as_a_first_step() {
    let (model, params) = model(Kind::Double, false);
    let turns = choice::turns(&params, 2).unwrap();
    let mut updater = updater(Rule::AdamW(Options::default()), turns.clone());
    let copies = || -> BTreeMap<String, Tensor> {
        let all = params.trained();
        all.map(|(name, tensor)| (name.to_owned(), tensor.detach().copy()))
            .collect()
    };
    let mut last = copies();
    run(&model, &params, &mut updater, STEPS, None, &mut |step| {
        let now = copies();
        for (name, turn) in &turns {
            if *turn + 1 != step.index || name.contains("embed_tokens") {
                continue;
            }
            // m̂ / (√v̂ + ε) of a first step is the sign of the gradient, where that is not as small as ε.
            let moved = (&now[name] - &last[name]).abs() / RATE;
            let middle = moved.flatten(0, -1).median().double_value(&[]);
            assert!((middle - 1.0).abs() < 1e-3, "{name}: {middle}");
        }
        last = now;
        Next::Go
    });
    assert_eq!(updater.optimizer.steps(), STEPS as u64);
    let later = updater.optimizer.later();
    assert_eq!(later["model.layers.0.mlp.up_proj.weight"], 4);
    assert_eq!(later["model.embed_tokens.weight"], 2);
    assert!(!later.contains_key("model.norm.weight"));
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let adafactor = Rule::Adafactor(Adafactor::default());
    for (rule, kind) in [
        (adamw(), Kind::Float),
        (adamw(), Kind::BFloat16),
        (adafactor, Kind::Float),
    ] {
        // Before the second turn, at its border, within it, and within the last.
        for stop in [1, 2, 3, 5] {
            let fresh = || {
                let (model, params) = model(kind, false);
                let turns = choice::turns(&params, 2).unwrap();
                (model, params, updater(rule, turns))
            };
            let go = &mut |_: &Step| Next::Go;
            let (one, whole, mut own) = fresh();
            run(&one, &whole, &mut own, STEPS, None, go);
            let folder = tempfile::tempdir().unwrap();
            let at = folder.path().join("snapshot");
            let (two, broken, mut first) = fresh();
            run(
                &two,
                &broken,
                &mut first,
                STEPS,
                None,
                &mut |step| match step.index == stop {
                    true => Next::SnapshotAndStop(at.clone()),
                    false => Next::Go,
                },
            );
            let (three, resumed, mut second) = fresh();
            run(&three, &resumed, &mut second, STEPS, Some(&at), go);
            let what = format!("{rule:?} {kind:?} stopped after {stop}");
            assert!(all_bytes(&whole) == all_bytes(&resumed), "{what}");
            assert_eq!(own.optimizer.later(), second.optimizer.later(), "{what}");
            let (a, b) = (own.optimizer.stored(), second.optimizer.stored());
            assert_eq!(a.len(), b.len(), "{what}");
            for ((name, a), (_, b)) in a.iter().zip(&b) {
                let (a, b) = (ml::tensors::bytes(a), ml::tensors::bytes(b));
                assert!(a.unwrap() == b.unwrap(), "{what}: {name}");
            }
        }
    }
}

#[test]
fn adapters_take_turns_by_their_layers() {
    let (_, mut params) = adapted(Kind::Float, 4, 0.0);
    let turns = choice::turns(&params, 3).unwrap();
    assert_eq!(turns.len(), 28);
    for (name, turn) in &turns {
        assert_eq!(*turn == 3, name.contains(".layers.0."), "{name}");
    }
    params
        .add(
            "model.lora_A.weight",
            &tiny::numbers("x", &[2, 2], 1.0),
            true,
        )
        .unwrap();
    let error = choice::turns(&params, 3).unwrap_err().to_string();
    assert!(
        error.contains("`model.lora_A.weight` of the adapter is in none"),
        "{error}"
    );
}

#[test]
fn depths_at_which_nothing_is_trained_take_no_turn() {
    let (_, mut params) = model(Kind::Float, false);
    params.train(|name| name.contains("layers.0.") || name.contains("embed_tokens"));
    let turns = choice::turns(&params, 5).unwrap();
    assert_eq!(turns["model.layers.0.mlp.up_proj.weight"], 0);
    assert_eq!(turns["model.embed_tokens.weight"], 5);
    params.train(|name| name.contains("layers.1.") || name == "model.norm.weight");
    let error = choice::turns(&params, 5).unwrap_err().to_string();
    assert!(error.contains("at one depth"), "{error}");
}

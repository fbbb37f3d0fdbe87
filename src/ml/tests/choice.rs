//! Laws of training a part of a model: what is frozen stays to the bit and what is chosen moves, whether layers are computed again or not; rates
//! by depth and by name.

mod tiny;

use formats::peft::{BottleneckConfig, Ia3Config, SoftConfig, SoftKind};
use ml::choice::{Choice, by_depth, by_name, depths, undecayed};
use ml::fit::{Next, Plan, fit};
use ml::optimizer::{Optimizer, Options, Rule, Schedule, Shape};
use ml::sft::{Row, Sft};
use ml::update::Updater;
use ml::{Kind, Llama, Params};
use std::collections::{BTreeMap, BTreeSet};
use tiny::{config_with, place, source, tokens};

/// The tiny model with a head of its own.
fn model(kind: Kind) -> (Llama, Params) {
    let mut params = Params::new();
    let config = config_with(false);
    let model = Llama::build(&config, place(kind), &mut params, &mut source).unwrap();
    (model, params)
}

fn all_bytes(params: &Params) -> BTreeMap<String, Vec<u8>> {
    let all = params.iter();
    all.map(|(name, param)| (name.to_owned(), ml::tensors::bytes(&param.tensor).unwrap()))
        .collect()
}

/// Three steps with weight decay, which would move what has no gradient too.
fn train(model: &Llama, params: &Params, factors: BTreeMap<String, f64>) {
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
        rows: 6,
        read: Box::new(move |index| Ok(row(index))),
        chunk: 16,
    };
    let options = Options {
        weight_decay: 0.1,
        ..Options::default()
    };
    let optimizer = Optimizer::new(Rule::AdamW(options), vec![]).with_factors(factors);
    let mut updater = Updater {
        optimizer,
        schedule: Schedule {
            shape: Shape::Constant,
            peak: 1e-2,
            warmup: 0,
            total: 3,
        },
        clip: Some(1.0),
    };
    let plan = Plan {
        seed: 3,
        epochs: 1,
        batch: 2,
        micro_batch: 2,
        max_steps: None,
        shuffle: false,
    };
    let steps = fit(
        &mut objective,
        params,
        &mut updater,
        &plan,
        None,
        &mut |_| Ok(Next::Go),
    );
    assert_eq!(steps.unwrap(), 3);
}

fn names(patterns: &[&str]) -> Choice {
    Choice::Names(
        patterns
            .iter()
            .map(|pattern| (*pattern).to_owned())
            .collect(),
    )
}

#[test]
fn what_is_frozen_stays_to_the_bit() {
    let choices = [
        (Choice::All, 21),
        (Choice::Norms, 5),
        (Choice::Head, 1),
        (Choice::LastLayers(1), 11),
        (Choice::LastLayers(2), 20),
        (names(&["layers.0"]), 9),
        (names(&["layers.0.self_attn.q_proj", "model.norm"]), 2),
        (names(&["*_proj", "embed_tokens"]), 15),
    ];
    for kind in [Kind::Float, Kind::BFloat16] {
        for (choice, count) in &choices {
            let mut ends = Vec::new();
            for checkpointing in [false, true] {
                let (mut model, mut params) = model(kind);
                model.checkpointing = checkpointing;
                let chosen = choice.of(params.names()).unwrap();
                assert_eq!(
                    params.train(|name| chosen.contains(name)),
                    *count,
                    "{choice:?}"
                );
                let before = all_bytes(&params);
                train(&model, &params, BTreeMap::new());
                let after = all_bytes(&params);
                for (name, bytes) in &before {
                    let moved = after[name] != *bytes;
                    assert_eq!(moved, chosen.contains(name), "{kind:?} {choice:?} {name}");
                }
                ends.push(after);
            }
            assert!(ends[0] == ends[1], "{kind:?} {choice:?}: computed again");
        }
    }
}

#[test]
fn a_choice_of_nothing_says_what_there_is() {
    let (_, params) = model(Kind::Float);
    let said = |choice: Choice| format!("{:#}", choice.of(params.names()).unwrap_err());
    let text = said(names(&["qproj", "norm"]));
    assert!(
        text.contains("\"qproj\" (the nearest are q_proj, "),
        "{text}"
    );
    assert!(!text.contains("\"norm\""), "{text}");
    assert!(said(Choice::LastLayers(3)).contains("the model has 2"));
    assert!(said(Choice::Biases).contains("no biases"));
    let mut tied = Params::new();
    tiny::model(Kind::Float, &mut tied);
    let text = format!("{:#}", Choice::Head.of(tied.names()).unwrap_err());
    assert!(text.contains("`model.embed_tokens`"), "{text}");
}

#[test]
fn rates_fall_with_depth_and_are_named_by_the_longest_pattern() {
    let (_, mut params) = model(Kind::Float);
    let depth = by_depth(&params, 0.5);
    assert_eq!(depth.len(), 21);
    for (name, factor) in [
        ("lm_head.weight", 1.0),
        ("model.norm.weight", 1.0),
        ("model.layers.1.mlp.up_proj.weight", 1.0),
        ("model.layers.0.input_layernorm.weight", 0.5),
        ("model.embed_tokens.weight", 0.25),
    ] {
        assert_eq!(depth[name], factor, "{name}");
    }
    assert!(by_depth(&params, 1.0).values().all(|factor| *factor == 1.0));
    params.train(|name| name != "lm_head.weight");
    let rates = |pairs: &[(&str, f64)]| -> BTreeMap<String, f64> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, rate)| ((*name).to_owned(), *rate))
            .collect()
    };
    let found = by_name(
        &params,
        &rates(&[("layers.0", 0.1), ("layers.0.mlp", 0.2), ("*norm*", 0.3)]),
    );
    let found = found.unwrap();
    assert_eq!(found["model.layers.0.self_attn.q_proj.weight"], 0.1);
    assert_eq!(found["model.layers.0.mlp.up_proj.weight"], 0.2);
    assert_eq!(found["model.layers.0.input_layernorm.weight"], 0.1);
    assert_eq!(found["model.norm.weight"], 0.3);
    assert!(!found.contains_key("model.embed_tokens.weight"));
    let error = by_name(&params, &rates(&[("lm_head", 0.1)])).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no trained parameter is called \"lm_head\"")
    );
}

#[test]
fn rates_that_mean_nothing_are_refused() {
    let (_, mut params) = model(Kind::Float);
    params.train(|_| true);
    let said = |pairs: &[(&str, f64)]| {
        let pairs = pairs.iter();
        let rates = pairs.map(|(name, rate)| ((*name).to_owned(), *rate));
        by_name(&params, &rates.collect()).unwrap_err().to_string()
    };
    let text = said(&[
        ("up_proj", 0.1),
        ("mlp.up_proj", 0.2),
        ("layers.*.mlp.up_proj", 0.3),
    ]);
    assert!(text.contains("\"mlp.up_proj\" holds for nothing"), "{text}");
    for all in ["weight", "*"] {
        let text = said(&[(all, 0.1)]);
        assert!(text.contains("`learning_rate` means nothing"), "{text}");
    }
    // What is frozen needs no rate.
    params.train(|name| name.contains("layers.1"));
    let text = by_name(&params, &BTreeMap::from([("layers.1".to_owned(), 0.1)]));
    assert!(text.unwrap_err().to_string().contains("means nothing"));
}

/// Puts an adapter on the tiny model.
type Put = fn(&mut Llama, &mut Params);

#[test]
fn rates_of_adapters_go_by_the_names_in_their_files() {
    let lora: Put = |model, params| {
        let config = formats::peft::AdapterConfig {
            use_dora: true,
            ..tiny::adapter(2, 0.0)
        };
        ml::lora::attach(model.linears_mut(), &config, 3, params).unwrap();
    };
    let ia3: Put = |model, params| {
        ml::ia3::attach(model.linears_mut(), &Ia3Config::default(), params).unwrap();
    };
    let bottleneck: Put = |model, params| {
        let config = BottleneckConfig::pfeiffer(32);
        let first = |name: &str, shape: &[i64]| Ok(tiny::numbers(name, shape, 0.1));
        ml::bottleneck::attach(model, &config, params, first).unwrap();
    };
    let soft: Put = |model, params| {
        let config = SoftConfig::new(SoftKind::Prompt, 3, &model.config);
        let start = tiny::numbers("start", &[3, 32], 0.1);
        ml::soft::attach(model, &config, &start, params).unwrap();
    };
    for (what, put, part) in [
        ("LoRA", lora, "lora_A"),
        ("DoRA", lora, "lora_magnitude_vector"),
        ("(IA)³", ia3, "ia3_l"),
        ("bottleneck adapters", bottleneck, "adapter_down"),
        ("a prompt", soft, "prompt_embeddings"),
    ] {
        let mut params = Params::new();
        let mut model = tiny::model(Kind::Float, &mut params);
        put(&mut model, &mut params);
        // A head beside it, which has the common rate.
        let head = tiny::numbers("head", &[1, 32], 0.1);
        params.add("score.weight", &head, true).unwrap();
        let stored = ml::adapter::stored(&model).into_iter();
        let stored: BTreeSet<String> = stored.map(|(name, _)| name).collect();
        let own = params.trained().filter(|(name, _)| *name != "score.weight");
        let own: BTreeMap<String, String> = own
            .map(|(name, _)| (ml::adapter::file_name(name).into_owned(), name.to_owned()))
            .collect();
        assert_eq!(
            own.keys().cloned().collect::<BTreeSet<_>>(),
            stored,
            "{what}"
        );
        let rated = |pattern: &str| -> BTreeSet<String> {
            let rates = BTreeMap::from([(pattern.to_owned(), 0.5)]);
            by_name(&params, &rates).unwrap().into_keys().collect()
        };
        // A whole name of the file is a pattern, and is that parameter's alone.
        for (in_file, name) in &own {
            assert_eq!(rated(in_file), BTreeSet::from([name.clone()]), "{what}");
        }
        let wanted = own.values().filter(|name| name.contains(part)).cloned();
        let wanted: BTreeSet<String> = wanted.collect();
        assert!(!wanted.is_empty(), "{what} has no {part}");
        assert_eq!(rated(part), wanted, "{what}");
    }
}

#[test]
fn depths_of_what_is_trained() {
    let (_, mut params) = model(Kind::Float);
    params.train(|_| true);
    assert_eq!(depths(&params).into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    let last = Choice::LastLayers(1).of(params.names()).unwrap();
    params.train(|name| last.contains(name));
    assert_eq!(depths(&params).into_iter().collect::<Vec<_>>(), [0]);
}

#[test]
fn norms_biases_and_what_starts_away_from_zero_do_not_decay() {
    let mut params = Params::new();
    for (name, spared) in [
        ("model.layers.0.input_layernorm.weight", true),
        ("model.layers.0.self_attn.q_proj.bias", true),
        ("model.layers.0.self_attn.k_proj.ia3_l", true),
        (
            "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
            true,
        ),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", false),
        ("model.layers.0.self_attn.q_proj.weight", false),
        ("score.weight", false),
    ] {
        params
            .add(name, &tiny::numbers(name, &[2], 1.0), true)
            .unwrap();
        let found = undecayed(&params).iter().any(|own| own == name);
        assert_eq!(found, spared, "{name}");
    }
}

#[test]
fn a_factor_of_zero_is_a_frozen_parameter() {
    let (model, mut params) = model(Kind::Float);
    params.train(|_| true);
    let before = all_bytes(&params);
    let still = "model.layers.0.mlp.up_proj.weight".to_owned();
    train(&model, &params, BTreeMap::from([(still.clone(), 0.0)]));
    for (name, bytes) in all_bytes(&params) {
        assert_eq!(bytes == before[&name], name == still, "{name}");
    }
}

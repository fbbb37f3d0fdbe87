//! Adapters other than plain LoRA through the whole program: attached to a quantized model, trained by several methods, written as PEFT.

mod support;

use std::fs;

use formats::Weights;
use serde_json::Value;
use support::artifacts::{outputs, stage};
use support::{Kitchen, tiny};

const RECIPE: &str = "\
levain: 1
seed: 3
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  small: { kind: quantize, model: base }
  chats: { kind: load_dataset, source: chats.jsonl }
  pairs: { kind: load_dataset, source: pairs.jsonl }
  directed: { kind: lora, model: small, r: 4, dora: true }
  dropping: { kind: lora, model: base, r: 4, dropout: 0.1, dora: true }
  scaled: { kind: ia3, model: small }
  directed_tuned: { kind: sft, model: directed, data: chats, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
  dropping_tuned: { kind: sft, model: dropping, data: chats, learning_rate: 1.0e-2, batch: 4, epochs: 4, checkpointing: true }
  scaled_tuned: { kind: sft, model: scaled, data: chats, learning_rate: 5.0e-2, batch: 4, epochs: 4 }
  packed: { kind: evaluate, data: chats, models: { small: small, directed: directed, scaled: scaled, directed_tuned: directed_tuned, \
scaled_tuned: scaled_tuned } }
  whole: { kind: evaluate, data: chats, models: { base: base, dropping: dropping, dropping_tuned: dropping_tuned } }
  judge: { kind: reward_model, model: directed, data: pairs, learning_rate: 1.0e-2, batch: 2 }
  counted: { kind: reward_model, model: scaled, data: pairs, learning_rate: 1.0e-2, batch: 2 }
  straight: { kind: dpo, model: scaled_tuned, data: pairs, learning_rate: 1.0e-2, batch: 2 }
  left_out: { kind: rloo, model: directed, reward: judge, prompts: chats, updates: 1, batch: 4, max_new_tokens: 4 }
  relative: { kind: rloo, model: scaled, reward: counted, prompts: chats, updates: 1, batch: 4, max_new_tokens: 4 }
outputs:
  directed: { from: directed_tuned, format: peft, to: out/directed }
  scaled: { from: scaled_tuned, format: peft, to: out/scaled }
";

/// What every adapter of this name ends with, in the file of an output.
fn endings(kitchen: &Kitchen, folder: &str) -> Vec<String> {
    let path = kitchen
        .path()
        .join(folder)
        .join("adapter_model.safetensors");
    let weights = Weights::open(&path).unwrap();
    let names = weights.infos().map(|info| info.name.clone());
    let mut endings: Vec<String> = names
        .map(|name| {
            let (_, ending) = name.split_once(".layers.").unwrap();
            ending.rsplit_once("proj.").unwrap().1.to_owned()
        })
        .collect();
    endings.sort();
    endings.dedup();
    endings
}

#[test]
fn dora_and_ia3_are_trained_and_written() {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    kitchen.write("chats.jsonl", &tiny::chats(12));
    kitchen.write("pairs.jsonl", tiny::PAIRS);
    kitchen.write("adapters.yaml", RECIPE);
    let answer = kitchen.say("run adapters.yaml --json").expect(0).json();
    let made = |name: &str| outputs(&kitchen.cache(), stage(&answer, name), 4);

    for (scores, base, adapters) in [
        ("packed", "small", vec!["directed", "scaled"]),
        ("whole", "base", vec!["dropping"]),
    ] {
        let summary = made(scores)["metrics"]["summary"].clone();
        let loss = |model: &str| summary[model]["loss"].as_f64().unwrap();
        for adapter in adapters {
            let (before, after) = (loss(adapter), loss(&format!("{adapter}_tuned")));
            let away = (before / loss(base) - 1.0).abs();
            assert!(away < 1e-6, "{adapter} changes the loss by {away} at first");
            assert!(after < before, "{adapter}: {before} became {after}");
        }
    }

    let config = |folder: &str| -> Value {
        let path = kitchen.path().join(folder).join("adapter_config.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let directed = config("out/directed");
    assert_eq!(
        (&directed["peft_type"], &directed["use_dora"]),
        (&"LORA".into(), &true.into())
    );
    assert_eq!(
        endings(&kitchen, "out/directed"),
        ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]
    );
    let scaled = config("out/scaled");
    assert_eq!(scaled["peft_type"], "IA3");
    assert_eq!(
        scaled["feedforward_modules"],
        serde_json::json!(["down_proj"])
    );
    assert_eq!(endings(&kitchen, "out/scaled"), ["ia3_l"]);
    for (name, kind) in [("judge", "LORA"), ("counted", "IA3")] {
        let model = made(name);
        let judges = model.as_object().unwrap().values();
        let mut configs = judges.filter_map(|output| output["files"].get("adapter_config.json"));
        let config = configs.next().unwrap();
        assert_eq!(
            (&config["peft_type"], &config["task_type"]),
            (&kind.into(), &"SEQ_CLS".into())
        );
    }
}

#[test]
fn targets_that_do_not_fit_are_told() {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    let fails = |fields: &str| {
        let recipe = format!(
            "levain: 1\nstages:\n  base: {{ kind: load_model, source: model }}\n  scaled: {{ kind: ia3, model: base, {fields} }}\n"
        );
        kitchen.write("wrong.yaml", &recipe);
        // Before any work, with its place.
        let said = kitchen.say("run wrong.yaml").expect(2);
        assert!(said.err.contains("wrong.yaml:4:"), "{}", said.err);
        said.err
    };
    let said = fails("targets: [k_prj]");
    assert!(said.contains("k_proj"), "{said}");
    let said = fails("targets: [k_proj], feedforward: [up_proj]");
    assert!(said.contains("not among the targets"), "{said}");
}

/// The last step is nobody's gradient any more: what it made is looked at before it is kept, whoever trained.
#[test]
fn weights_that_are_no_numbers_are_not_kept() {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    kitchen.write("chats.jsonl", &tiny::chats(12));
    kitchen.write("pairs.jsonl", tiny::PAIRS);
    // A rate is at most 1, which moves no weight out of f32; a decay has no bound.
    let far = "max_steps: 1, warmup: 0, weight_decay: 1.0e+300";
    kitchen.write(
        "far.yaml",
        &format!(
            "levain: 1
seed: 3
threads: 1
stages:
  base: {{ kind: load_model, source: model, dtype: f32 }}
  chats: {{ kind: load_dataset, source: chats.jsonl }}
  pairs: {{ kind: load_dataset, source: pairs.jsonl }}
  whole: {{ kind: sft, model: base, data: chats, {far} }}
  factored: {{ kind: sft, model: base, data: chats, optimizer: adafactor, {far} }}
  straight: {{ kind: dpo, model: base, data: pairs, {far} }}
  judge: {{ kind: reward_model, model: base, data: pairs, {far} }}
  words: {{ kind: rule, length: 3 }}
  left_out: {{ kind: rloo, model: base, reward: words, prompts: chats, updates: 1, warmup: 0, batch: 4, max_new_tokens: 4, \
weight_decay: 1.0e+300 }}
"
        ),
    );
    let said = kitchen.say("run far.yaml --json --keep-going").expect(1);
    let answer = said.json();
    for name in ["whole", "factored", "straight", "judge", "left_out"] {
        assert_eq!(
            stage(&answer, name)["outcome"],
            "failed",
            "{name}:\n{}",
            said.err
        );
    }
    let told = said
        .err
        .matches("is not finite: the training diverged")
        .count();
    assert!(told >= 3, "{told}:\n{}", said.err);
}

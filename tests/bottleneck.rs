//! Bottleneck adapters through the whole program: attached to a plain and a quantized model, trained by several methods, judged with, written
//! as the package `adapters` opens them; what can't be done with them is told with its way out.

mod support;

use std::collections::BTreeSet;
use std::fs;

use formats::Weights;
use serde_json::{Value, json};
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
  doubled: { kind: bottleneck, model: small, form: houlsby, reduction_factor: 8 }
  narrow: { kind: bottleneck, model: base, reduction_factor: 8 }
  doubled_tuned: { kind: sft, model: doubled, data: chats, learning_rate: 1.0e-2, batch: 4, epochs: 4, checkpointing: true }
  narrow_tuned: { kind: sft, model: narrow, data: chats, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
  packed: { kind: evaluate, data: chats, models: { before: small, doubled: doubled, after: doubled_tuned } }
  whole: { kind: evaluate, data: chats, models: { before: base, narrow: narrow, after: narrow_tuned } }
  judge: { kind: reward_model, model: doubled, data: pairs, learning_rate: 1.0e-2, batch: 2 }
  straight: { kind: dpo, model: narrow_tuned, data: pairs, learning_rate: 1.0e-2, batch: 2 }
  left_out: { kind: rloo, model: narrow, reward: judge, prompts: chats, updates: 1, batch: 4, max_new_tokens: 4 }
outputs:
  doubled: { from: doubled_tuned, to: out/doubled }
  narrow: { from: narrow_tuned, to: out/narrow }
  judge: { from: judge, to: out/judge }
";

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    kitchen.write("chats.jsonl", &tiny::chats(12));
    kitchen.write("pairs.jsonl", tiny::PAIRS);
    kitchen
}

/// The settings in the folder of an output, and the names of its tensors.
fn written(kitchen: &Kitchen, folder: &str) -> (Value, BTreeSet<String>) {
    let folder = kitchen.path().join(folder);
    let settings = fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let weights = Weights::open(&folder.join("adapter.safetensors")).unwrap();
    let names = weights.infos().map(|info| info.name.clone()).collect();
    (serde_json::from_str(&settings).unwrap(), names)
}

#[test]
fn bottleneck_adapters_are_trained_and_written() {
    let kitchen = kitchen();
    kitchen.write("bottleneck.yaml", RECIPE);
    let answer = kitchen.say("run bottleneck.yaml --json").expect(0).json();
    let made = |name: &str| outputs(&kitchen.cache(), stage(&answer, name), 4);

    for (scores, fresh) in [("packed", "doubled"), ("whole", "narrow")] {
        let summary = made(scores)["metrics"]["summary"].clone();
        let loss = |model: &str| summary[model]["loss"].as_f64().unwrap();
        let away = (loss(fresh) / loss("before") - 1.0).abs();
        assert!(
            away > 0.0 && away < 0.05,
            "{fresh} changes the loss by {away} at first"
        );
        let (before, after) = (loss(fresh), loss("after"));
        assert!(after < before, "{fresh}: {before} became {after}");
    }
    // 2 layers of width 32: 2 · 32 · 4 + 4 + 32 numbers in an adapter.
    let summary = made("narrow")["model"]["summary"].clone();
    assert_eq!(
        (&summary["trainable"], &summary["modules"]),
        (&json!(584), &json!(2))
    );
    let summary = made("doubled_tuned")["model"]["summary"].clone();
    assert_eq!(
        (&summary["trainable"], &summary["width"]),
        (&json!(1168), &json!(4))
    );

    let (settings, narrow) = written(&kitchen, "out/narrow");
    let method = &settings["config"];
    assert_eq!(settings["model_class"], "LlamaForCausalLM");
    assert_eq!(method["original_ln_before"], true);
    assert_eq!(
        (&method["mh_adapter"], &method["non_linearity"]),
        (&json!(false), &json!("relu"))
    );
    assert_eq!(narrow.len(), 8);
    assert!(narrow.contains("model.layers.1.output_adapters.adapters.bottleneck.adapter_up.bias"));
    let (settings, doubled) = written(&kitchen, "out/doubled");
    assert_eq!(settings["config"]["non_linearity"], "swish");
    assert!(doubled.is_superset(&narrow) && doubled.len() == 16);

    let (settings, judge) = written(&kitchen, "out/judge");
    assert_eq!(settings["model_class"], "LlamaForSequenceClassification");
    assert!(judge.contains("score.weight") && judge.len() == 17);

    // PEFT has no such adapters.
    let said = kitchen.say("export bottleneck.yaml narrow taken --format peft");
    assert_ne!(said.code, Some(0), "{}", said.out);
    assert!(said.err.contains("leave `format` out"), "{}", said.err);
    kitchen.say("export bottleneck.yaml narrow taken").expect(0);
    assert_eq!(written(&kitchen, "taken").1, narrow);
    // PEFT's third file is there as well: which base it was made for.
    assert!(kitchen.path().join("taken/levain_base.json").exists());
}

#[test]
fn what_cant_be_done_is_told_with_its_way_out() {
    let kitchen = kitchen();
    kitchen.write(
        "wrong.yaml",
        "\
levain: 1
seed: 3
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  narrow: { kind: bottleneck, model: base }
  plain: { kind: merge, model: narrow }
  twice: { kind: bottleneck, model: narrow, form: houlsby }
",
    );
    let said = kitchen.say("run wrong.yaml").expect(2);
    for words in [
        "the bottleneck adapters of `narrow` are not linear, so no change of a weight does what they do",
        "`narrow` has an adapter already (bottleneck)",
        "2 problems",
    ] {
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }
}

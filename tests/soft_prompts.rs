//! Virtual tokens through the whole program: made, trained by several methods, asked and judged behind them, written as PEFT, and never merged.

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
  prompted: { kind: prompt_tuning, model: small, virtual_tokens: 4, init_text: Say it. }
  prefixed: { kind: prefix_tuning, model: small, virtual_tokens: 4 }
  prompted_tuned: { kind: sft, model: prompted, data: chats, learning_rate: 5.0e-2, batch: 4, epochs: 6 }
  prefixed_tuned: { kind: sft, model: prefixed, data: chats, learning_rate: 5.0e-2, batch: 4, epochs: 6, checkpointing: true }
  scores: { kind: evaluate, data: chats, samples: 2, max_new_tokens: 4, models: { small: small, prompted: prompted, prefixed: prefixed, \
prompted_tuned: prompted_tuned, prefixed_tuned: prefixed_tuned } }
  said: { kind: generate, model: prefixed_tuned, prompts: chats, n: 2, temperature: 1.0, max_new_tokens: 4 }
  judge: { kind: reward_model, model: prompted, data: pairs, learning_rate: 1.0e-2, learning_rates: { prompt_embeddings: 2.0e-2 }, batch: 2 }
  counted: { kind: reward_model, model: prefixed, data: pairs, learning_rate: 1.0e-2, batch: 2 }
  judged: { kind: annotate, samples: said, judge: { judge: judge, counted: counted } }
  straight: { kind: dpo, model: prompted_tuned, data: pairs, learning_rate: 1.0e-2, batch: 2 }
  simple: { kind: cpo, model: prefixed_tuned, data: pairs, learning_rate: 1.0e-2, batch: 2 }
  left_out: { kind: rloo, model: prompted, reward: counted, prompts: chats, updates: 1, batch: 4, max_new_tokens: 4 }
  proximal: { kind: ppo, model: prefixed, reward: judge, prompts: chats, updates: 1, batch: 4, max_new_tokens: 4 }
outputs:
  prompt: { from: prompted_tuned, format: peft, to: out/prompt }
  prefix: { from: prefixed_tuned, format: peft, to: out/prefix }
";

#[test]
fn virtual_tokens_are_trained_asked_and_written() {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    kitchen.write("chats.jsonl", &tiny::chats(12));
    kitchen.write("pairs.jsonl", tiny::PAIRS);
    kitchen.write("soft.yaml", RECIPE);
    let answer = kitchen.say("run soft.yaml --json").expect(0).json();
    let made = |name: &str| outputs(&kitchen.cache(), stage(&answer, name), 4);

    let summary = made("scores")["metrics"]["summary"].clone();
    let loss = |model: &str| summary[model]["loss"].as_f64().unwrap();
    for adapter in ["prompted", "prefixed"] {
        let (before, after) = (loss(adapter), loss(&format!("{adapter}_tuned")));
        assert_ne!(before, loss("small"), "{adapter} changes nothing");
        assert!(after < before, "{adapter}: {before} became {after}");
    }

    let config = |folder: &str| -> Value {
        let path = kitchen.path().join(folder).join("adapter_config.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let shape = |folder: &str| {
        let path = kitchen
            .path()
            .join(folder)
            .join("adapter_model.safetensors");
        let weights = Weights::open(&path).unwrap();
        let tensors = weights.infos().map(|t| (t.name.clone(), t.shape.clone()));
        tensors.collect::<Vec<_>>()
    };
    let (prompt, prefix) = (config("out/prompt"), config("out/prefix"));
    assert_eq!(prompt["peft_type"], "PROMPT_TUNING");
    assert_eq!(prefix["peft_type"], "PREFIX_TUNING");
    let number = |config: &Value, key: &str| config[key].as_u64().unwrap() as usize;
    let name = "prompt_embeddings".to_owned();
    assert_eq!(shape("out/prompt"), [(name.clone(), vec![4, 32])]);
    let width = number(&prefix, "num_layers") * 2 * number(&prefix, "token_dim");
    assert_eq!(shape("out/prefix"), [(name, vec![4, width])]);

    for (name, kind) in [("judge", "PROMPT_TUNING"), ("counted", "PREFIX_TUNING")] {
        let model = made(name);
        let judges = model.as_object().unwrap().values();
        let mut configs = judges.filter_map(|output| output["files"].get("adapter_config.json"));
        let config = configs.next().unwrap();
        assert_eq!(
            (&config["peft_type"], &config["task_type"]),
            (&kind.into(), &"SEQ_CLS".into())
        );
    }

    // Tensors that fit are not enough: what the settings say of another model is told with both numbers.
    kitchen.write(
        "theirs.yaml",
        "levain: 1\nstages:\n  base: { kind: load_model, source: model, dtype: f32 }\n  \
         theirs: { kind: load_adapter, model: base, source: out/prompt, other_base: true }\n",
    );
    kitchen.say("run theirs.yaml").expect(0);
    let asked = |key: &str| format!("asks for {}", prompt[key]);
    for (key, wrong, right) in [
        ("num_layers", 9, asked("num_layers")),
        ("num_attention_heads", 3, asked("num_attention_heads")),
        ("token_dim", 33, asked("token_dim")),
        ("num_transformer_submodules", 2, "supported is 1".to_owned()),
    ] {
        let mut lying = prompt.clone();
        lying[key] = wrong.into();
        kitchen.write("out/prompt/adapter_config.json", &lying.to_string());
        let said = kitchen.say("run theirs.yaml --json").expect(1);
        for words in [format!("{key} is {wrong}"), right] {
            assert!(said.err.contains(&words), "`{words}`:\n{}", said.err);
        }
        assert_eq!(said.json()["failures"][0]["stage"], "theirs");
        // What is left open is the model's.
        lying[key] = Value::Null;
        kitchen.write("out/prompt/adapter_config.json", &lying.to_string());
        kitchen.say("run theirs.yaml").expect(0);
    }
}

#[test]
fn what_virtual_tokens_can_not_do_is_told() {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    let fails = |stages: &str, code: i32| {
        let recipe = format!(
            "levain: 1\nstages:\n  base: {{ kind: load_model, source: model, dtype: f32 }}\n{stages}"
        );
        kitchen.write("wrong.yaml", &recipe);
        let said = kitchen.say("run wrong.yaml").expect(code);
        said.out + &said.err
    };
    let kinds = ["prompt_tuning", "prefix_tuning"];
    for kind in kinds {
        let said = fails(
            &format!(
                "  soft: {{ kind: {kind}, model: base, virtual_tokens: 2 }}\n  plain: {{ kind: merge, model: soft }}\n"
            ),
            2,
        );
        assert!(said.contains("nothing to merge"), "{kind}: {said}");
        let said = fails(
            &format!(
                "  thin: {{ kind: lora, model: base, r: 2 }}\n  soft: {{ kind: {kind}, model: thin }}\n"
            ),
            2,
        );
        assert!(said.contains("has an adapter already"), "{kind}: {said}");
        let said = fails(
            &format!("  soft: {{ kind: {kind}, model: base, virtual_tokens: 60000 }}\n"),
            1,
        );
        assert!(said.contains("no room for a text"), "{kind}: {said}");
    }
}

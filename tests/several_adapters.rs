//! Several adapters, one after the other and side by side, by the real program on a tiny model: training goes on where it ended, what lies
//! under an adapter stays as it is, adapters on one base do not know of each other, and a merged one carries the next.

mod support;

use engine::cache::Cache;
use engine::digest::Digest;
use serde_json::Value;
use support::artifacts::{outputs, stage};
use support::{Kitchen, tiny};

const SHARED: &str = "\
levain: 1
seed: 3
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  chats: { kind: load_dataset, source: chats.jsonl }
  rows: { kind: load_dataset, source: rows.jsonl }
  pairs: { kind: load_dataset, source: pairs.jsonl }
  quiz: { kind: load_dataset, source: quiz.jsonl }
  fresh: { kind: lora, model: base, r: 4 }
  first: { kind: sft, model: fresh, data: chats, learning_rate: 1.0e-2, batch: 12, epochs: 8 }
";

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(8);
    tiny::model(&kitchen, "model");
    tiny::scale(&kitchen.path().join("model"), 4.0);
    kitchen.write("chats.jsonl", &tiny::chats(12));
    kitchen.write("pairs.jsonl", tiny::PAIRS);
    kitchen.write("quiz.jsonl", tiny::QUIZ);
    kitchen
}

/// Runs all stages; the answer.
#[track_caller]
fn run(kitchen: &Kitchen, stages: &str) -> Value {
    kitchen.write("recipe.yaml", &format!("{SHARED}{stages}"));
    kitchen.say("run recipe.yaml --json").expect(0).json()
}

fn summary(kitchen: &Kitchen, answer: &Value, name: &str, output: &str) -> Value {
    outputs(&kitchen.cache(), stage(answer, name), 0)[output]["summary"].clone()
}

#[track_caller]
fn number(summary: &Value, name: &str) -> f64 {
    let number = summary[name].as_f64();
    number.unwrap_or_else(|| panic!("`{name}` in {summary}"))
}

#[track_caller]
fn near(found: f64, wanted: f64, tolerance: f64, what: &str) {
    assert!(
        (found - wanted).abs() <= tolerance * wanted.abs(),
        "{what}: {found} and {wanted}"
    );
}

/// The artifact that a stage's model is.
fn model(answer: &Value, name: &str) -> Digest {
    let digest = stage(answer, name)["outputs"]["model"].clone();
    serde_json::from_value(digest).unwrap()
}

/// The artifact that a stage's model is an adapter on.
fn under(kitchen: &Kitchen, answer: &Value, name: &str) -> Digest {
    let cache = Cache::open(&kitchen.cache()).unwrap();
    let manifest = cache.manifest(model(answer, name)).unwrap();
    manifest.refs["base"]
}

/// Every tensor of a stage's adapter, to the last digit.
fn tensors(kitchen: &Kitchen, answer: &Value, name: &str) -> Value {
    let made = outputs(&kitchen.cache(), stage(answer, name), usize::MAX);
    let tensors = made["model"]["files"]["adapter_model.safetensors"].clone();
    assert!(tensors.is_object(), "{name}: {tensors}");
    tensors
}

#[test]
fn training_goes_on_where_it_ended() {
    let kitchen = kitchen();
    let answer = run(
        &kitchen,
        "  second: { kind: sft, model: first, data: rows, learning_rate: 1.0e-2, batch: 8, epochs: 8 }
  scores: { kind: evaluate, data: rows, models: { base: base, fresh: fresh, first: first, second: second } }
",
    );
    let scores = summary(&kitchen, &answer, "scores", "metrics");
    let loss = |model: &str| number(&scores[model], "loss");
    assert_eq!(loss("fresh"), loss("base"));
    let trained = summary(&kitchen, &answer, "second", "metrics");
    // The loss of all rows before the first step is that of what came in, and not of a fresh adapter.
    near(
        number(&trained, "first_loss"),
        loss("first"),
        1e-5,
        "first loss",
    );
    assert!(
        (loss("first") / loss("base") - 1.0).abs() > 1e-3,
        "{scores}"
    );
    assert!(loss("second") < loss("first"), "{scores}");

    // Both lie on the same base, which is as it was; the first is as it was, too.
    let base = model(&answer, "base");
    for name in ["fresh", "first", "second"] {
        assert_eq!(under(&kitchen, &answer, name), base, "{name}");
    }
    assert_ne!(
        tensors(&kitchen, &answer, "first"),
        tensors(&kitchen, &answer, "second")
    );
    kitchen.say("cache verify").expect(0);
}

const SIDES: &str = "  left_fresh: { kind: lora, model: base, r: 4, seed: 1 }
  right_fresh: { kind: lora, model: base, r: 2, seed: 2, dora: true }
  left: { kind: sft, model: left_fresh, data: rows, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
  right: { kind: sft, model: right_fresh, data: chats, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
";

#[test]
fn adapters_on_one_base_do_not_touch_each_other() {
    let kitchen = kitchen();
    let measures = "  both: { kind: evaluate, data: chats, models: { left: left, base: base, right: right } }
  left_alone: { kind: evaluate, data: chats, models: { left: left } }
  base_alone: { kind: evaluate, data: chats, models: { base: base } }
  right_alone: { kind: evaluate, data: chats, models: { right: right } }
  ordered: { kind: preference_accuracy, data: pairs, policy: { left: left, right: right }, reference: base }
  left_ordered: { kind: preference_accuracy, data: pairs, policy: { left: left }, reference: base }
  right_ordered: { kind: preference_accuracy, data: pairs, policy: { right: right }, reference: base }
  asked: { kind: exam, data: quiz, models: { left: left, right: right } }
  left_asked: { kind: exam, data: quiz, models: { left: left } }
  right_asked: { kind: exam, data: quiz, models: { right: right } }
";
    let answer = run(&kitchen, &format!("{SIDES}{measures}"));
    // Held on one copy of the base, each gives to the last digit what it gives alone.
    for (together, alone) in [
        ("both", &["left_alone", "base_alone", "right_alone"][..]),
        ("ordered", &["left_ordered", "right_ordered"]),
        ("asked", &["left_asked", "right_asked"]),
    ] {
        let all = summary(&kitchen, &answer, together, "metrics");
        for name in alone {
            let own = summary(&kitchen, &answer, name, "metrics");
            let own = own.as_object().unwrap();
            assert_eq!(own.len(), 1);
            for (model, numbers) in own {
                assert_eq!(&all[model], numbers, "{name}");
            }
        }
    }
    let said = kitchen.say("run recipe.yaml both --force both").expect(0);
    assert!(
        said.err
            .contains("on a base whose weights were loaded already: base, right"),
        "{}",
        said.err
    );

    // And whether the other is trained at all makes no difference.
    for name in ["left", "right"] {
        let alone = kitchen.say(&format!("run recipe.yaml {name} --json --cache {name}"));
        let alone = alone.expect(0).json();
        assert_eq!(model(&alone, name), model(&answer, name), "{name}");
        assert_eq!(
            under(&kitchen, &answer, name),
            model(&answer, "base"),
            "{name}"
        );
    }
}

#[test]
fn a_reference_is_the_base_or_another_adapter_on_it() {
    let kitchen = kitchen();
    let dpo = "kind: dpo, model: first, data: pairs, learning_rate: 1.0e-3, batch: 8, max_steps: 2";
    let answer = run(
        &kitchen,
        &format!(
            "  second: {{ kind: sft, model: first, data: rows, learning_rate: 1.0e-2, batch: 8, epochs: 4 }}
  to_itself: {{ {dpo} }}
  to_first: {{ {dpo}, reference: first }}
  to_base: {{ {dpo}, reference: base }}
  to_fresh: {{ {dpo}, reference: fresh }}
  to_second: {{ {dpo}, reference: second }}
  at_base: {{ kind: preference_accuracy, data: pairs, policy: first, reference: base }}
  at_second: {{ kind: preference_accuracy, data: pairs, policy: first, reference: second }}
"
        ),
    );
    let first_loss = |name: &str| {
        let trained = summary(&kitchen, &answer, name, "metrics");
        number(&trained, "first_loss")
    };
    let held = |name: &str| {
        let prepared = format!("{name} › reference");
        let made = summary(&kitchen, &answer, &prepared, "log_probabilities");
        number(&made, "mean")
    };
    // At its reference the loss is ln 2; without one it is the model as it comes in, adapter and all.
    near(first_loss("to_itself"), 2f64.ln(), 1e-5, "at itself");
    assert_eq!(model(&answer, "to_itself"), model(&answer, "to_first"));
    // Without its adapter the model is its base, and so is it with one that is not trained yet.
    assert_eq!(held("to_base"), held("to_fresh"));
    assert_eq!(model(&answer, "to_base"), model(&answer, "to_fresh"));
    for (name, measure) in [("to_base", "at_base"), ("to_second", "at_second")] {
        let measured = summary(&kitchen, &answer, measure, "metrics");
        let wanted = number(&measured["policy"], "loss");
        near(first_loss(name), wanted, 1e-5, name);
        assert!((wanted - 2f64.ln()).abs() > 1e-4, "{name}: {wanted}");
        assert_ne!(held(name), held("to_itself"), "{name}");
    }
    // The reference is read, never trained.
    assert_eq!(
        under(&kitchen, &answer, "to_second"),
        model(&answer, "base")
    );
    kitchen.say("cache verify").expect(0);
}

#[test]
fn policy_gradients_take_the_adapter_off_for_the_reference() {
    let kitchen = kitchen();
    let rloo = "kind: rloo, model: first, reward: words, prompts: chats, updates: 1, batch: 4, max_new_tokens: 4, learning_rate: 1.0e-3";
    let stages = format!(
        "  words: {{ kind: rule, length: 3 }}
  off: {{ {rloo}, reference: base }}
  other: {{ {rloo}, reference: first }}
"
    );
    kitchen.write("recipe.yaml", &format!("{SHARED}{stages}"));
    let words = "the reference is the policy without its adapter";
    let said = kitchen.say("run recipe.yaml off").expect(0);
    assert!(said.err.contains(words), "{}", said.err);
    let said = kitchen.say("run recipe.yaml other").expect(0);
    assert!(!said.err.contains(words), "{}", said.err);
}

#[test]
fn a_merged_adapter_carries_the_next() {
    let kitchen = kitchen();
    let answer = run(
        &kitchen,
        "  merged: { kind: merge, model: first }
  again: { kind: lora, model: merged, r: 2, seed: 5 }
  stacked: { kind: sft, model: again, data: rows, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
  scores: { kind: evaluate, data: rows, models: { first: first, merged: merged, again: again, stacked: stacked } }
",
    );
    let scores = summary(&kitchen, &answer, "scores", "metrics");
    let loss = |model: &str| number(&scores[model], "loss");
    near(loss("merged"), loss("first"), 1e-5, "merged");
    assert_eq!(loss("again"), loss("merged"));
    assert!(loss("stacked") < loss("merged"), "{scores}");
    let merged = model(&answer, "merged");
    assert_eq!(under(&kitchen, &answer, "stacked"), merged);
    assert_ne!(merged, model(&answer, "base"));

    // One on top of the other without merging is refused, with what to do.
    kitchen.write(
        "twice.yaml",
        &format!("{SHARED}  twice: {{ kind: lora, model: first, r: 2 }}\n"),
    );
    let said = kitchen.say("run twice.yaml twice").expect(2);
    assert!(
        said.err.contains("`first` has an adapter already"),
        "{}",
        said.err
    );
}

//! What `plan` says of the memory of stages: from a model's files, before anything runs, and the same from what was made of them.

mod support;

use serde_json::Value;
use support::artifacts::stage;
use support::{Kitchen, tiny};

const RECIPE: &str = "\
levain: 1
stages:
  base: { kind: load_model, source: model }
  rows: { kind: load_dataset, source: rows.jsonl }
  small: { kind: quantize, model: base }
  thin: { kind: lora, model: small, r: 4 }
  tuned: { kind: sft, model: thin, data: rows, max_length: 64 }
  again: { kind: sft, model: tuned, data: rows, max_length: 128, checkpointing: true }
  whole: { kind: sft, model: base, data: rows, max_length: 64 }
";

fn memory(answer: &Value, name: &str) -> u64 {
    let told = &stage(answer, name)["memory"];
    told.as_u64()
        .unwrap_or_else(|| panic!("`{name}` says {told}"))
}

#[test]
fn memory_is_told_before_anything_runs_and_stays_what_it_was() {
    let kitchen = Kitchen::new(8);
    kitchen.write("memory.yaml", RECIPE);
    tiny::model(&kitchen, "model");
    let before = kitchen.say("plan memory.yaml --json").expect(0).json();
    let names = ["tuned", "again", "whole"];
    for name in names {
        let bytes = memory(&before, name);
        assert!((350_000_000..400_000_000).contains(&bytes), "{bytes}");
    }
    for name in ["base", "rows", "small", "thin"] {
        assert!(stage(&before, name)["memory"].is_null());
    }
    let text = kitchen.say("plan memory.yaml").expect(0).out;
    assert!(text.contains("; about 35"), "{text}");

    kitchen.say("run memory.yaml thin").expect(0);
    let after = kitchen.say("plan memory.yaml --json").expect(0).json();
    for name in names {
        // A file of quantized weights has a header and tables that no estimate counts.
        let (a, b) = (memory(&before, name), memory(&after, name));
        assert!(a.abs_diff(b) < 1_000_000, "{name}: {a} became {b}");
    }
}

#[test]
fn a_model_that_is_not_here_is_said() {
    let kitchen = Kitchen::new(8);
    let recipe = RECIPE.replace("source: model", "source: 'hf://owner/name@main'");
    kitchen.write("memory.yaml", &recipe);
    let answer = kitchen.say("plan memory.yaml --json").expect(0).json();
    assert!(stage(&answer, "tuned")["memory"].is_null());
    let text = kitchen.say("plan memory.yaml").expect(0).out;
    let words = "the memory of 3 stages is unknown until their models are here";
    assert!(text.contains(words), "{text}");
}

#[test]
fn an_adapter_from_outside_is_looked_at_before_it_is_loaded() {
    let kitchen = Kitchen::new(8);
    tiny::model(&kitchen, "model");
    tiny::adapter(&kitchen, "adapter");
    kitchen.write(
        "memory.yaml",
        "\
levain: 1
stages:
  base: { kind: load_model, source: model }
  rows: { kind: load_dataset, source: rows.jsonl }
  foreign: { kind: load_adapter, model: base, source: adapter }
  tuned: { kind: sft, model: foreign, data: rows, max_length: 64 }
",
    );
    let before = kitchen.say("plan memory.yaml --json").expect(0).json();
    kitchen.say("run memory.yaml foreign").expect(0);
    let after = kitchen.say("plan memory.yaml --json").expect(0).json();
    let (a, b) = (memory(&before, "tuned"), memory(&after, "tuned"));
    assert!((350_000_000..400_000_000).contains(&a), "{a}");
    assert!(a.abs_diff(b) < 1_000_000, "{a} became {b}");
}

#[test]
fn trainings_of_encoders_are_told() {
    let kitchen = Kitchen::new(8);
    tiny::encoder(&kitchen, "bert");
    kitchen.write("reviews.csv", tiny::REVIEWS);
    kitchen.write(
        "memory.yaml",
        "\
levain: 1
stages:
  bert: { kind: load_model, source: bert, dtype: f32 }
  reviews: { kind: load_dataset, source: reviews.csv, format: labelled }
  headed: { kind: masked_lm, model: bert, data: reviews, train: head, max_length: 16, max_steps: 1 }
  moved: { kind: masked_lm, model: headed, data: reviews, max_length: 16 }
  thin: { kind: lora, model: bert, r: 2 }
  told: { kind: classifier, model: thin, data: reviews, max_length: 16 }
  named: { kind: classifier, model: bert, data: reviews, max_length: 16, train: [query] }
",
    );
    let names = ["moved", "told", "named"];
    let before = kitchen.say("plan memory.yaml --json").expect(0).json();
    for name in ["headed", "moved", "told", "named"] {
        let bytes = memory(&before, name);
        assert!((200_000_000..250_000_000).contains(&bytes), "{bytes}");
    }
    kitchen.say("run memory.yaml thin").expect(0);
    let after = kitchen.say("plan memory.yaml --json").expect(0).json();
    for name in names {
        let (a, b) = (memory(&before, name), memory(&after, name));
        assert!(a.abs_diff(b) < 1_000_000, "{name}: {a} became {b}");
    }
}

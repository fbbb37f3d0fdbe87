//! Adapters merged into weights, by the real program on a tiny model: merged is unmerged, into its own base, into quantized weights
//! unpacked, and into the model that was quantized; what can't be merged is told with its way out.

mod support;

use std::fs;

use serde_json::Value;
use support::artifacts::{outputs, stage};
use support::{Kitchen, text, tiny};

const SHARED: &str = "\
levain: 1
seed: 17
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  half: { kind: load_model, source: model, dtype: bf16 }
  rows: { kind: load_dataset, source: rows.jsonl }
  chats: { kind: load_dataset, source: chats.jsonl }
  small: { kind: quantize, model: base }
  eight: { kind: quantize, model: half, scheme: int8, skip: [q_proj] }
  thin: { kind: lora, model: base, r: 4 }
  thin_half: { kind: lora, model: half, r: 4, rslora: true }
  thin_small: { kind: lora, model: small, r: 4 }
  thin_eight: { kind: lora, model: eight, r: 4, targets: [q_proj, down_proj] }
  tuned: { kind: sft, model: thin, data: rows, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
  tuned_half: { kind: sft, model: thin_half, data: rows, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
  tuned_small: { kind: sft, model: thin_small, data: rows, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
  tuned_eight: { kind: sft, model: thin_eight, data: rows, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
";

const MERGED: &str = "  plain: { kind: merge, model: tuned, data: chats }
  plain_half: { kind: merge, model: tuned_half, data: chats, micro_batch: 3 }
  unpacked: { kind: merge, model: tuned_small, into: dequantized, data: chats }
  unpacked_eight: { kind: merge, model: tuned_eight, into: dequantized, data: chats }
  restored: { kind: merge, model: tuned_small, base: base, data: chats }
  quiet: { kind: merge, model: tuned }
  scores:
    kind: evaluate
    data: chats
    models:
      tuned: tuned
      plain: plain
      tuned_half: tuned_half
      plain_half: plain_half
      tuned_small: tuned_small
      unpacked: unpacked
      restored: restored
      tuned_eight: tuned_eight
      unpacked_eight: unpacked_eight
  again: { kind: lora, model: unpacked, r: 2 }
  smaller: { kind: quantize, model: plain }
outputs:
  folder: { from: unpacked, to: out/unpacked }
";

/// A kitchen with a tiny model that has opinions, rows to train on and others to measure on.
fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(8);
    tiny::model(&kitchen, "model");
    tiny::scale(&kitchen.path().join("model"), 4.0);
    kitchen.write("chats.jsonl", &tiny::chats(8));
    kitchen.write("reviews.csv", tiny::REVIEWS);
    kitchen
}

/// The summary of an output of a stage.
fn summary(kitchen: &Kitchen, answer: &Value, name: &str, output: &str) -> Value {
    let made = outputs(&kitchen.cache(), stage(answer, name), 0);
    made[output]["summary"].clone()
}

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

#[test]
fn merged_is_unmerged_into_either_base() {
    let kitchen = kitchen();
    kitchen.write("recipe.yaml", &format!("{SHARED}{MERGED}"));
    let answer = kitchen.say("run recipe.yaml --json").expect(0).json();
    let scores = summary(&kitchen, &answer, "scores", "metrics");
    let loss = |model: &str| number(&scores[model], "loss");
    for (before, after, tolerance, modules) in [
        ("tuned", "plain", 1e-5, 14),
        ("tuned_half", "plain_half", 2e-2, 14),
        ("tuned_small", "unpacked", 1e-5, 14),
        ("tuned_small", "restored", 0.5, 14),
        ("tuned_eight", "unpacked_eight", 2e-2, 4),
    ] {
        near(loss(after), loss(before), tolerance, after);
        let found = summary(&kitchen, &answer, after, "metrics");
        // The same numbers, whoever measures: bf16 adds up in another order.
        near(number(&found, "loss_before"), loss(before), 5e-3, after);
        near(number(&found, "loss_after"), loss(after), 5e-3, after);
        assert_eq!(found["modules"], modules, "{after}");
        assert_eq!(found["tokens"], scores[before]["tokens"]);
        assert!(number(&found, "largest_change") > 1e-3, "{found}");
        assert!(number(&found, "kl_max") >= number(&found, "kl"), "{found}");
    }
    // f32 loses nothing and bf16 something; another base is further away than the own one.
    let kl = |name: &str| number(&summary(&kitchen, &answer, name, "metrics"), "kl");
    let rounding = |name: &str| number(&summary(&kitchen, &answer, name, "metrics"), "rounding");
    for name in ["plain", "unpacked"] {
        assert_eq!(rounding(name), 0.0);
        assert!(kl(name) < 1e-7, "{name}: {}", kl(name));
    }
    for name in ["plain_half", "unpacked_eight"] {
        let found = rounding(name);
        assert!(found > 1e-4 && found < 0.5, "{name}: {found}");
    }
    assert!(kl("restored") > 10.0 * kl("unpacked"));

    // Without rows there is nothing to measure on, and the model is the same.
    let quiet = summary(&kitchen, &answer, "quiet", "metrics");
    assert!(quiet["kl"].is_null() && quiet["modules"] == 14, "{quiet}");
    assert_eq!(
        stage(&answer, "quiet")["outputs"]["model"],
        stage(&answer, "plain")["outputs"]["model"]
    );

    // What comes out is a plain model, and says what became of the quantization.
    let said = summary(&kitchen, &answer, "unpacked", "model");
    assert_eq!(said["merged"], "dequantized");
    assert!(said["quantized"].is_null(), "{said}");
    let said = summary(&kitchen, &answer, "restored", "model");
    assert_eq!(said["merged"], "full_precision");
    let config = kitchen.path().join("out/unpacked/config.json");
    let config: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    assert!(config.get("quantization_config").is_none(), "{config}");
    assert_eq!(config["dtype"], "float32");
    kitchen.write(
        "loaded.yaml",
        "\
levain: 1
stages:
  model: { kind: load_model, source: out/unpacked, dtype: f32 }
  chats: { kind: load_dataset, source: chats.jsonl }
  scores: { kind: evaluate, models: { model: model }, data: chats }
",
    );
    let loaded = kitchen.say("run loaded.yaml --json").expect(0).json();
    let found = summary(&kitchen, &loaded, "scores", "metrics");
    near(
        number(&found["model"], "loss"),
        loss("unpacked"),
        1e-6,
        "loaded",
    );
}

#[test]
fn people_are_told_what_merging_did() {
    let kitchen = kitchen();
    let stages = "  restored: { kind: merge, model: tuned_small, base: base, data: chats }\n";
    kitchen.write("recipe.yaml", &format!("{SHARED}{stages}"));
    let said = kitchen.say("run recipe.yaml restored").expect(0);
    for words in [
        "14 layers are merged into weights in full precision",
        "KL(before ‖ after) is",
        "the loss was",
    ] {
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }
}

#[test]
fn what_cant_be_merged_is_told_with_its_way_out() {
    let kitchen = kitchen();
    let stages = "  reviews: { kind: load_dataset, source: reviews.csv, format: labelled }
  other: { kind: init_model, data: reviews, vocabulary: 262, hidden: 16, layers: 1, heads: 2, context: 64 }
  bare: { kind: merge, model: base }
  baseless: { kind: merge, model: tuned_small }
  strange: { kind: merge, model: tuned_small, base: other }
  packed: { kind: merge, model: tuned_small, base: small }
  adapted: { kind: merge, model: tuned_small, base: tuned }
  needless: { kind: merge, model: tuned, base: base }
  dense: { kind: merge, model: tuned, into: dequantized }
";
    kitchen.write("wrong.yaml", &format!("{SHARED}{stages}"));
    // What the recipe and the head of the model show is told before anything runs.
    let said = kitchen.say("run wrong.yaml --keep-going").expect(2);
    for words in [
        "`base` has no adapter, so there is nothing to merge",
        "Give the model that was quantized as `base`",
        "`other` has another shape than `tuned_small` (layers: 1, not 2), so the adapter belongs to another model",
        "`small` is quantized, too (nf4)",
        "`tuned` has an adapter itself (lora)",
        "`base` is for adapters on quantized models",
        "`into: dequantized` is for adapters on quantized models",
        "7 problems",
    ] {
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }

    // What only numbers show fails when it runs.
    let stages =
        "  sibling: { kind: sft, model: base, data: chats, max_steps: 4, learning_rate: 1.0e-2 }
  mistaken: { kind: merge, model: tuned_small, base: sibling }
";
    kitchen.write("wrong.yaml", &format!("{SHARED}{stages}"));
    let said = kitchen.say("run wrong.yaml mistaken --json").expect(1);
    let words = "has other numbers in `base` than in `model`";
    assert!(said.err.contains(words), "{}", said.err);
    let answer = said.json();
    assert_eq!(text(&stage(&answer, "mistaken")["outcome"]), "failed");

    // What the recipe shows is told before anything runs.
    let stages = "  both: { kind: merge, model: tuned_small, base: base, into: dequantized }\n";
    kitchen.write("wrong.yaml", &format!("{SHARED}{stages}"));
    let said = kitchen.say("check wrong.yaml").expect(2);
    assert!(
        said.err.contains("leave one of the two out"),
        "{}",
        said.err
    );
    let stages = "  pairs: { kind: load_dataset, source: pairs.jsonl }
  judge: { kind: reward_model, model: thin, data: pairs }
  scorer: { kind: merge, model: judge }
";
    kitchen.write("pairs.jsonl", tiny::PAIRS);
    kitchen.write("wrong.yaml", &format!("{SHARED}{stages}"));
    let said = kitchen.say("check wrong.yaml").expect(2);
    assert!(said.err.contains("reward-model"), "{}", said.err);
}

//! Reward models out of folders, with untied embeddings, and with another tokenizer than the policy's; what is said of policies that
//! had too little to learn from.

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{Kitchen, text, tiny};

/// Changes a word of a folder's config.json.
fn configure(folder: &Path, key: &str, value: Value) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// A kitchen with `model`, `untied` (a head for words of its own), `rewards` (a head for rewards), and pairs.
fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(6);
    for name in ["model", "untied"] {
        tiny::model(&kitchen, name);
    }
    let at = |name: &str| kitchen.path().join(name);
    tiny::add_tensors(&at("untied"), &[("lm_head.weight", vec![280, 32])]);
    configure(&at("untied"), "tie_word_embeddings", json!(false));
    tiny::reward_model(&kitchen, "rewards");
    configure(&at("rewards"), "tie_word_embeddings", json!(false));
    let pair = |i: usize| {
        format!(
            "{{\"prompt\": \"How many is {i} + 1?\", \"chosen\": \" It is {}\", \"rejected\": \" bread {i}{}\"}}\n",
            i + 1,
            " and bread".repeat(i % 3)
        )
    };
    kitchen.write("pairs.jsonl", &(0..6).map(pair).collect::<String>());
    kitchen.write("reviews.csv", tiny::REVIEWS);
    kitchen
}

fn show(kitchen: &Kitchen, recipe: &str, stage: &str) -> Value {
    let said = kitchen.say(&format!("show {recipe} {stage} --rows 100 --json"));
    said.expect(0).json()
}

fn scores(kitchen: &Kitchen, recipe: &str, stage: &str) -> Vec<f64> {
    let rows = show(kitchen, recipe, stage)["rows"].clone();
    let rows = rows.as_array().unwrap().iter();
    let scores: Vec<f64> = rows.map(|row| row["score"].as_f64().unwrap()).collect();
    assert!(scores.len() > 3 && scores.iter().any(|score| *score != scores[0]));
    scores
}

#[test]
fn a_reward_model_of_an_untied_model_is_exported_and_loaded_again() {
    let kitchen = kitchen();
    kitchen.write(
        "made.yaml",
        "\
levain: 1
seed: 3
stages:
  untied: { kind: load_model, source: untied, dtype: f32 }
  thin: { kind: lora, model: untied, r: 2 }
  rows: { kind: load_dataset, source: rows.jsonl }
  pairs: { kind: load_dataset, source: pairs.jsonl }
  whole: { kind: reward_model, model: untied, data: pairs, batch: 2, max_steps: 2, learning_rate: 1.0e-3 }
  slim: { kind: reward_model, model: thin, data: pairs, batch: 2, max_steps: 2, learning_rate: 1.0e-2 }
  by_whole: { kind: annotate, samples: rows, judge: whole, make: scored }
  by_slim: { kind: annotate, samples: rows, judge: slim, make: scored }
  tuned: { kind: ppo, model: thin, reward: whole, critic: whole, prompts: rows, updates: 1, batch: 2, max_new_tokens: 4 }
  alone: { kind: ppo, model: untied, reward: slim, prompts: rows, updates: 1, batch: 2, max_new_tokens: 4 }
outputs:
  folder: { from: whole, to: exported }
",
    );
    kitchen.say("run made.yaml --json").expect(0);
    scores(&kitchen, "made.yaml", "by_slim");
    kitchen.write(
        "loaded.yaml",
        "\
levain: 1
stages:
  judge: { kind: load_reward_model, source: exported, dtype: f32 }
  raw: { kind: load_reward_model, source: exported, dtype: f32, mean: 0, deviation: 1 }
  rows: { kind: load_dataset, source: rows.jsonl }
  scores: { kind: annotate, samples: rows, judge: judge, make: scored }
  rewards: { kind: annotate, samples: rows, judge: raw, make: scored }
",
    );
    kitchen
        .say("run loaded.yaml --json --cache other")
        .expect(0);
    kitchen.say("run loaded.yaml --json").expect(0);
    let before = scores(&kitchen, "made.yaml", "by_whole");
    assert_eq!(scores(&kitchen, "loaded.yaml", "scores"), before);
    let summary = show(&kitchen, "made.yaml", "whole")["summary"].clone();
    let (mean, deviation) = (
        summary["mean"].as_f64().unwrap(),
        summary["deviation"].as_f64().unwrap(),
    );
    for (reward, score) in scores(&kitchen, "loaded.yaml", "rewards")
        .iter()
        .zip(before)
    {
        assert!(((reward - mean) / deviation - score).abs() < 1e-9);
    }
}

#[test]
fn the_two_loaders_tell_language_models_from_reward_models() {
    let kitchen = kitchen();
    kitchen.write(
        "wrong.yaml",
        "\
levain: 1
stages:
  model: { kind: load_model, source: rewards }
  judge: { kind: load_reward_model, source: model }
",
    );
    let said = kitchen.say("run wrong.yaml --json --keep-going").expect(1);
    for words in [
        "`kind: load_reward_model` reads them",
        "is what `load_model` reads",
    ] {
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }
    // A classifier with two labels has two scores, of which none is the reward.
    tiny::add_tensors(
        &kitchen.path().join("model"),
        &[("score.weight", vec![2, 32])],
    );
    let said = kitchen.say("run wrong.yaml --json judge").expect(1);
    assert!(
        said.err.contains("score.weight has the shape [2, 32]"),
        "{}",
        said.err
    );
    // Rewards are not divided by nothing.
    configure(
        &kitchen.path().join("rewards"),
        "reward_deviation",
        json!(0),
    );
    kitchen.write(
        "wrong.yaml",
        "levain: 1\nstages:\n  judge: { kind: load_reward_model, source: rewards }\n",
    );
    let said = kitchen.say("run wrong.yaml --json").expect(1);
    assert!(said.err.contains("give `deviation`"), "{}", said.err);
}

#[test]
fn a_reward_model_may_have_another_tokenizer_than_the_policy() {
    let kitchen = kitchen();
    let recipe = |critic: &str| {
        format!(
            "\
levain: 1
seed: 3
stages:
  reviews: {{ kind: load_dataset, source: reviews.csv, format: labelled }}
  rows: {{ kind: load_dataset, source: rows.jsonl }}
  pairs: {{ kind: load_dataset, source: pairs.jsonl }}
  policy: {{ kind: init_model, data: reviews, vocabulary: 262, hidden: 16, layers: 1, heads: 2, context: 128 }}
  judged: {{ kind: init_model, data: reviews, vocabulary: 280, hidden: 32, layers: 1, heads: 2, context: 128 }}
  judge: {{ kind: reward_model, model: judged, data: pairs, batch: 2, max_steps: 3, learning_rate: 1.0e-2 }}
  tries: {{ kind: generate, model: policy, prompts: rows, n: 4, temperature: 1.0, max_new_tokens: 6 }}
  scores: {{ kind: annotate, samples: tries, judge: judge, make: scored }}
  pairs_of: {{ kind: annotate, samples: tries, judge: judge }}
  tuned: {{ kind: ppo, model: policy, reward: judge, prompts: rows, updates: 2, batch: 4, max_new_tokens: 6, temperature: 1.0{critic} }}
  after: {{ kind: evaluate, models: {{ tuned: tuned }}, data: rows, judge: judge, max_new_tokens: 6, temperature: 1.0 }}
"
        )
    };
    kitchen.write("recipe.yaml", &recipe(""));
    let answer = kitchen.say("run recipe.yaml --json").expect(0).json();
    let counts = &answer["counts"];
    assert_eq!(counts["failed"], 0, "{counts}");
    let words = |stage: &str| show(&kitchen, "recipe.yaml", stage)["summary"]["vocabulary"].clone();
    // As many words as the few texts give, at most 280.
    assert_eq!(words("policy"), 262);
    assert!(words("judged").as_u64() > Some(262), "{}", words("judged"));

    // Scores are of text: the same rows as a file that no tokenizer of the policy's has seen have the same ones.
    let rows = show(&kitchen, "recipe.yaml", "scores")["rows"].clone();
    let line = |row: &Value| {
        let prompt = &row["prompt"];
        json!({ "prompt": prompt, "completion": row["completion"] }).to_string() + "\n"
    };
    let lines: String = rows.as_array().unwrap().iter().map(line).collect();
    kitchen.write("tries.jsonl", &lines);
    kitchen.write(
        "again.yaml",
        &(recipe("")
            + "  read: { kind: load_dataset, source: tries.jsonl, format: prompt-completion }\n  again: { kind: annotate, samples: read, judge: judge, make: scored }\n"),
    );
    kitchen.say("run again.yaml again --json").expect(0);
    assert_eq!(
        scores(&kitchen, "again.yaml", "again"),
        scores(&kitchen, "recipe.yaml", "scores")
    );
    let metrics = show(&kitchen, "recipe.yaml", "tuned.metrics")["metrics"].clone();
    let updates = metrics["updates"].as_array().unwrap();
    assert!(
        updates.len() == 2
            && updates
                .iter()
                .all(|u| u["score"].as_f64().unwrap().is_finite())
    );

    // A critic reads the policy's tokens: there another tokenizer is refused, in words.
    kitchen.write("recipe.yaml", &recipe(", critic: judge"));
    let said = kitchen.say("run recipe.yaml --json tuned").expect(2);
    let words = "the critic reads the tokens of `policy`, which has 262 words";
    assert!(said.out.contains(words), "{}", said.out);
    assert_eq!(
        text(&show(&kitchen, "again.yaml", "tuned")["type"]),
        "model"
    );
}

#[test]
fn mixed_rows_that_are_cut_are_counted() {
    let kitchen = kitchen();
    let recipe = |length: usize| {
        format!(
            "\
levain: 1
seed: 3
stages:
  model: {{ kind: load_model, source: model, dtype: f32 }}
  thin: {{ kind: lora, model: model, r: 2 }}
  rows: {{ kind: load_dataset, source: rows.jsonl }}
  words: {{ kind: rule, length: 3 }}
  tuned: {{ kind: ppo, model: thin, reward: words, prompts: rows, updates: 1, batch: 2, max_new_tokens: 4, mixed: rows, mixed_weight: 1.0, mixed_length: {length} }}
"
        )
    };
    // A prompt alone has more tokens than 4.
    kitchen.write("cut.yaml", &recipe(4));
    let said = kitchen.say("run cut.yaml").expect(0);
    let told = "tuned: 6 of 6 `mixed` rows are longer than `mixed_length` 4 and were cut; 6 of them have no token left to learn";
    assert!(said.err.contains(told), "{}", said.err);
    kitchen.write("whole.yaml", &recipe(100));
    let said = kitchen.say("run whole.yaml").expect(0);
    assert!(!said.err.contains("`mixed` rows"), "{}", said.err);
}

#[test]
fn a_policy_that_no_reward_taught_anything_is_told() {
    let kitchen = kitchen();
    let stage = |kind: &str| {
        format!(
            "  by_{kind}: {{ kind: {kind}, model: thin, reward: never, prompts: rows, updates: 2, batch: 4, group: 2, max_new_tokens: 4 }}\n"
        )
    };
    kitchen.write(
        "idle.yaml",
        &format!(
            "\
levain: 1
seed: 3
stages:
  model: {{ kind: load_model, source: model, dtype: f32 }}
  thin: {{ kind: lora, model: model, r: 2 }}
  rows: {{ kind: load_dataset, source: rows.jsonl }}
  never: {{ kind: rule, pattern: \"sourdough, and nothing else\" }}
{}{}",
            stage("grpo"),
            stage("rloo")
        ),
    );
    let said = kitchen.say("run idle.yaml").expect(0);
    for kind in ["grpo", "rloo"] {
        let told = format!(
            "warning: by_{kind}: in every update all completions of each prompt had the same reward"
        );
        assert!(said.err.contains(&told), "{}", said.err);
    }
}

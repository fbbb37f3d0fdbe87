//! Pairs and scores that no judge makes: the density ratio of two models, a model's revision of its own answers.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Kitchen, checkout, tiny};

/// A kitchen with the two models of `tests/golden/rlhf/density_ratio.py`.
fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(6);
    for (name, factor) in [("strong", 16.0), ("weak", 8.0)] {
        tiny::model(&kitchen, name);
        tiny::scale(&kitchen.path().join(name), factor);
    }
    kitchen
}

/// The cases of the golden file, and a file of scored rows with them.
fn golden(kitchen: &Kitchen, case: &str) -> Vec<Value> {
    let path = checkout().join("tests/golden/rlhf/density_ratio.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let own: Vec<Value> = lines.filter(|line: &Value| line["case"] == case).collect();
    assert_eq!(own.len(), 5);
    let row = |line: &Value| {
        let row = json!({ "prompt": line["prompt"], "completion": line["completion"], "score": 0 });
        row.to_string() + "\n"
    };
    kitchen.write("tries.jsonl", &own.iter().map(row).collect::<String>());
    own
}

fn scores(kitchen: &Kitchen, stage: &str) -> Vec<f64> {
    let said = kitchen.say(&format!("show recipe.yaml {stage} --rows 100 --json"));
    let rows = said.expect(0).json()["rows"].clone();
    let scores = rows.as_array().unwrap().iter();
    scores.map(|row| row["score"].as_f64().unwrap()).collect()
}

#[test]
fn density_ratios_are_those_of_transformers() {
    for case in ["plain", "dressed"] {
        let kitchen = kitchen();
        let cases = golden(&kitchen, case);
        let words = match case {
            "dressed" => format!(
                ", criteria: {}, examples: {}",
                cases[0]["criteria"], cases[0]["examples"]
            ),
            _ => String::new(),
        };
        kitchen.write(
            "recipe.yaml",
            &format!(
                "\
levain: 1
stages:
  strong: {{ kind: load_model, source: strong, dtype: f32 }}
  weak: {{ kind: load_model, source: weak, dtype: f32 }}
  tries: {{ kind: load_dataset, source: tries.jsonl, format: scored }}
  sums: {{ kind: density_ratio, samples: tries, strong: strong, weak: weak, micro_batch: 2{words} }}
  means: {{ kind: density_ratio, samples: tries, strong: strong, weak: weak, normalize: tokens{words} }}
  back: {{ kind: density_ratio, samples: tries, strong: weak, weak: strong{words} }}
  same: {{ kind: density_ratio, samples: tries, strong: strong, weak: strong{words} }}
  pairs: {{ kind: annotate, samples: sums }}
"
            ),
        );
        kitchen.say("run recipe.yaml --json").expect(0);
        let near = |stage: &str, wanted: &dyn Fn(&Value) -> f64| {
            let found = scores(&kitchen, stage);
            assert_eq!(found.len(), cases.len());
            for (found, case) in found.iter().zip(&cases) {
                let wanted = wanted(case);
                // Differences of sums of some hundred in f32.
                assert!(
                    (found - wanted).abs() < 2e-4,
                    "{stage}: {found}, and transformers {wanted}: {case}"
                );
            }
        };
        near("sums", &|case| case["score"].as_f64().unwrap());
        near("means", &|case| case["score_per_token"].as_f64().unwrap());
        near("back", &|case| -case["score"].as_f64().unwrap());
        assert!(scores(&kitchen, "same").iter().all(|score| *score == 0.0));

        // Two of the prompts have two completions: `annotate` needs no judge to make pairs of them.
        let pairs = kitchen
            .say("show recipe.yaml pairs --json")
            .expect(0)
            .json();
        let pairs = pairs["rows"].as_array().unwrap().clone();
        let better = |a: usize, b: usize| {
            let score = |at: usize| cases[at]["score"].as_f64().unwrap();
            cases[if score(a) > score(b) { a } else { b }]["completion"].clone()
        };
        assert_eq!(pairs.len(), 2);
        assert_eq!(pairs[0]["chosen"], better(0, 1));
        assert_eq!(pairs[1]["chosen"], better(2, 3));
    }
}

#[test]
fn two_models_with_tokenizers_of_their_own_are_compared() {
    let kitchen = kitchen();
    kitchen.write("reviews.csv", tiny::REVIEWS);
    kitchen.write(
        "recipe.yaml",
        "\
levain: 1
seed: 3
stages:
  reviews: { kind: load_dataset, source: reviews.csv, format: labelled }
  strong: { kind: load_model, source: strong, dtype: f32 }
  weak: { kind: init_model, data: reviews, vocabulary: 270, hidden: 16, layers: 1, heads: 2 }
  rows: { kind: load_dataset, source: rows.jsonl }
  there: { kind: density_ratio, samples: rows, strong: strong, weak: weak }
  back: { kind: density_ratio, samples: rows, strong: weak, weak: strong }
",
    );
    kitchen.say("run recipe.yaml --json").expect(0);
    let (there, back) = (scores(&kitchen, "there"), scores(&kitchen, "back"));
    assert_eq!(there.len(), 6);
    for (there, back) in there.iter().zip(&back) {
        assert!(*there == -*back && *there != 0.0, "{there} and {back}");
    }
}

#[test]
fn a_row_that_a_model_can_not_read_whole_is_named() {
    let kitchen = kitchen();
    kitchen.write(
        "recipe.yaml",
        &format!(
            "\
levain: 1
stages:
  strong: {{ kind: load_model, source: strong, dtype: f32 }}
  weak: {{ kind: load_model, source: weak, dtype: f32 }}
  rows: {{ kind: load_dataset, source: rows.jsonl }}
  scores: {{ kind: density_ratio, samples: rows, strong: strong, weak: weak, criteria: {} }}
",
            "long ".repeat(60).trim_end()
        ),
    );
    let said = kitchen.say("run recipe.yaml --json").expect(1);
    for words in ["completion 1 for `strong`", "the model reads 128"] {
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }
}

#[test]
fn a_model_revises_its_own_answers() {
    let kitchen = kitchen();
    kitchen.write("chats.jsonl", &tiny::chats(5));
    kitchen.write(
        "recipe.yaml",
        "\
levain: 1
seed: 3
stages:
  strong: { kind: load_model, source: strong, dtype: f32 }
  rows: { kind: load_dataset, source: rows.jsonl }
  chats: { kind: load_dataset, source: chats.jsonl }
  answers: { kind: generate, model: strong, prompts: rows, max_new_tokens: 6 }
  greedy: { kind: revise, model: strong, prompts: rows, max_new_tokens: 6, critique: Bad?, revision: Better! }
  drawn: { kind: revise, model: strong, prompts: chats, max_new_tokens: 6, temperature: 1.0, critique: 'Bad, {answer}?', revision: '{critique}!' }
  words: { kind: rule, length: 2 }
  pairs: { kind: annotate, samples: drawn, judge: words }
  tuned: { kind: dpo, model: strong, data: pairs, soft_labels: true, max_steps: 1 }
",
    );
    kitchen.say("run recipe.yaml --json").expect(0);
    let show = |stage: &str| {
        let said = kitchen.say(&format!("show recipe.yaml {stage} --rows 100 --json"));
        said.expect(0).json()
    };
    let lines = |shown: &Value| -> Vec<Value> {
        let files = shown["files"].as_array().unwrap();
        let file = files
            .iter()
            .find(|f| f["name"] == "critiques.jsonl")
            .unwrap();
        let text = fs::read_to_string(file["path"].as_str().unwrap()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };
    // Greedily, the answers are those of `generate`; every prompt is told of, and each pair that is kept is a row.
    let (answers, greedy) = (show("answers"), show("greedy"));
    let told = lines(&greedy);
    assert_eq!(told.len(), 6);
    let mut kept = greedy["rows"].as_array().unwrap().iter();
    for (line, answer) in told.iter().zip(answers["rows"].as_array().unwrap()) {
        assert_eq!(line["answer"], answer["completion"]);
        assert_eq!(line["prompt"], answer["prompt"]);
        if line["left_out"].is_null() {
            let row = kept.next().unwrap();
            assert_eq!(row["rejected"], line["answer"]);
            let (chosen, revision) = (&row["chosen"], line["revision"].as_str().unwrap());
            assert_eq!(chosen.as_str().unwrap().trim(), revision.trim());
            assert_ne!(row["chosen"], row["rejected"]);
        }
    }
    assert!(kept.next().is_none());
    let drawn = show("drawn");
    let told = lines(&drawn);
    let left_out = told
        .iter()
        .filter(|line| !line["left_out"].is_null())
        .count();
    assert_eq!(drawn["summary"]["left_out"], left_out);
    assert_eq!(drawn["count"], told.len() - left_out);
    assert!(told.iter().all(|line| line["prompt"].is_array()));
}

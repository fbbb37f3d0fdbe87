//! Programs and chat endpoints as judges: what comes of their answers, what is kept when they fail, and what they are never given.

#[path = "ask/endpoints.rs"]
mod endpoints;
#[path = "ask/programs.rs"]
mod programs;
mod support;

use std::path::{Path, PathBuf};

use engine::cache::Cache;
use serde_json::Value;
use support::artifacts::{outputs, stage};
use support::{Kitchen, files};

/// A kitchen with the samples of two models: six prompts, one completion each; and of one model, four completions of each of three.
fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    let row = |prompt: usize, completion: String| {
        format!("{{\"prompt\": \"How many is {prompt} + 1?\", \"completion\": \"{completion}\"}}\n")
    };
    let loaves = |count: usize| vec!["loaf"; count].join(" ");
    // The second answers longer in prompts 0, 1 and 2, shorter in 3, and the same in 4 and 5, in other words and in the same.
    let sft = [1, 1, 1, 3, 2, 2].map(loaves);
    let mut dpo = [2, 3, 4, 1, 2, 2].map(loaves);
    dpo[4] = "roll roll".to_owned();
    let set = |texts: [String; 6]| -> String {
        texts
            .into_iter()
            .enumerate()
            .map(|(i, text)| row(i, text))
            .collect()
    };
    kitchen.write("sft.jsonl", &set(sft));
    kitchen.write("dpo.jsonl", &set(dpo));
    let tries = (0..12).map(|i| row(i / 4, loaves(1 + i % 4)));
    kitchen.write("tries.jsonl", &tries.collect::<String>());
    kitchen
}

/// Writes a recipe in which the stage `asked` has these words, and others follow.
fn recipe(kitchen: &Kitchen, words: &str, more: &str) {
    let text = format!(
        "\
levain: 1
name: asked
seed: 17
threads: 1
stages:
  sft: {{ kind: load_dataset, source: sft.jsonl }}
  dpo: {{ kind: load_dataset, source: dpo.jsonl }}
  tries: {{ kind: load_dataset, source: tries.jsonl }}
  asked: {{ kind: ask, {words} }}
{more}"
    );
    kitchen.write("asked.yaml", &text);
}

/// The numbers of the stage `asked`.
fn numbers(kitchen: &Kitchen, answer: &Value) -> Value {
    outputs(&kitchen.cache(), stage(answer, "asked"), 0)["metrics"]["summary"].clone()
}

/// (question of prompt, completion, score) of the stage's rows.
fn scores(kitchen: &Kitchen, answer: &Value) -> Vec<(String, String, f64)> {
    let rows =
        outputs(&kitchen.cache(), stage(answer, "asked"), 0)["rows"]["files"]["rows.arrow"].clone();
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| match serde_json::from_value(row.clone()).unwrap() {
        data::Row::Scored {
            prompt,
            completion,
            score,
        } => (prompt.question().to_owned(), completion, score),
        other => panic!("{other:?}"),
    })
    .collect()
}

/// The answers that a stage which is not done has so far.
fn kept(kitchen: &Kitchen) -> usize {
    let partial = kitchen.cache().join("partial");
    let found = if partial.is_dir() {
        files(&partial)
    } else {
        Vec::new()
    };
    let lines = |path: &PathBuf| std::fs::read_to_string(path).unwrap().lines().count();
    found
        .iter()
        .filter(|path| path.ends_with("answers.jsonl"))
        .map(lines)
        .sum()
}

/// The answers in the artifact of a stage that is done.
fn answers(cache: &Path, answer: &Value) -> Vec<Value> {
    let digest = stage(answer, "asked")["outputs"]["metrics"].clone();
    let cache = Cache::open(cache).unwrap();
    let view = cache.view(serde_json::from_value(digest).unwrap()).unwrap();
    let text = std::fs::read_to_string(view.file("answers.jsonl").unwrap()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

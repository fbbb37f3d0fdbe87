//! What every kind makes of a tiny fixed input, against what its version gave when the golden file was written: a changed
//! behaviour needs a new version, or results of the old one would be taken from caches as if nothing had happened.
//!
//! `UPDATE=1 cargo test --test golden_kinds` writes the files of new versions and removes those of old ones. It never touches the
//! file of a version that has one. When the input below changes, delete `tests/golden/kinds` first.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use engine::artifact::ArtifactType;
use engine::cache::Cache;
use engine::recipe::Binding;
use serde_json::{Map, Value, json};
use support::artifacts::{difference, outputs, stage};
use support::{Kitchen, checkout, text, tiny};

/// Numbers are equal when they differ by less than this part of the larger one: another processor sums in another order.
const TOLERANCE: f64 = 1e-4;
/// Numbers of a tensor that a file tells, beside its norm.
const NUMBERS: usize = 6;

const RECIPE: &str = "\
levain: 1
seed: 17
threads: 1
stages:
  folder: { kind: load_model, source: model, dtype: f32 }
  quiz: { kind: load_dataset, source: quiz.jsonl }
  gguf: { kind: load_model, source: tiny.gguf }
  chats: { kind: load_dataset, source: chats.jsonl }
  sums: { kind: load_dataset, source: rows.jsonl, replace: { much: many }, limit: 5 }
  pairs: { kind: load_dataset, source: pairs.jsonl }
  reviews: { kind: load_dataset, source: reviews.csv, format: labelled, where: { source: [oven, shelf] } }
  openings: { kind: cut, data: reviews, prompt_words: 3, completion_words: 2 }
  fresh: { kind: init_model, data: reviews, vocabulary: 270, hidden: 16, layers: 2, heads: 2, key_value_heads: 1, intermediate: 24, context: 64 }
  halves: { kind: split, data: chats, test: 0.25 }
  joined: { kind: concat, data: { held_out: halves.test, all: chats }, distinct: true }
  small: { kind: quantize, model: folder }
  eight: { kind: quantize, model: folder, scheme: int8, skip: [q_proj] }
  measured: { kind: quantize, model: folder, data: halves.test }
  thin: { kind: lora, model: folder, r: 4, dropout: 0.1 }
  wide: { kind: lora, model: folder, r: 2, targets: [q_proj, v_proj], rslora: true }
  directed: { kind: lora, model: eight, r: 2, dora: true }
  scaled: { kind: ia3, model: folder }
  outward: { kind: ia3, model: folder, targets: [q_proj, 1.mlp.down_proj], feedforward: [] }
  narrow: { kind: bottleneck, model: folder }
  doubled: { kind: bottleneck, model: eight, form: houlsby, reduction_factor: 9, non_linearity: gelu }
  prompted: { kind: prompt_tuning, model: folder, virtual_tokens: 3, init_text: Answer with one word. }
  drawn_prompt: { kind: prompt_tuning, model: gguf, virtual_tokens: 2 }
  wild_prompt: { kind: prompt_tuning, model: folder, virtual_tokens: 2, init: random }
  prefixed: { kind: prefix_tuning, model: folder, virtual_tokens: 3, init_text: Answer with one word. }
  drawn_prefix: { kind: prefix_tuning, model: eight, virtual_tokens: 2 }
  wild_prefix: { kind: prefix_tuning, model: folder, virtual_tokens: 2, init: random }
  tuned: { kind: sft, model: thin, data: halves.train, learning_rate: 1.0e-2, batch: 4, micro_batch: 3, epochs: 2 }
  whole: { kind: sft, model: folder, data: sums, batch: 2, max_steps: 4, schedule: cosine, warmup: 0.5, weight_decay: 0.1, max_length: 24 }
  scores: { kind: evaluate, models: { before: folder, after: tuned }, data: halves.test, samples: 2, max_new_tokens: 8 }
  foreign: { kind: load_adapter, model: folder, source: adapter }
  plain: { kind: merge, model: tuned, data: halves.test }
  greedy: { kind: generate, model: tuned, prompts: halves.test, max_new_tokens: 12 }
  drawn: { kind: generate, model: whole, prompts: sums, n: 2, limit: 2, temperature: 1.0, top_k: 40, top_p: 0.9, max_new_tokens: 12 }
  passed: { kind: gate, input: halves.test, metrics: scores, metric: after.loss, min: 0 }
  best: { kind: select, candidates: { before: folder, after: tuned }, metrics: scores, metric: loss, goal: min }
  words: { kind: rule, length: 3 }
  tries: { kind: generate, model: whole, prompts: sums, n: 4, temperature: 1.5, max_new_tokens: 12 }
  judged: { kind: annotate, samples: tries, judge: words }
  ranked: { kind: annotate, samples: tries, judge: { words: words, head: judge }, weights: { head: 0.5 }, make: ranking }
  rated: { kind: ask, samples: tries, how: rubric, program: [python3], script: rate.py }
  compared: { kind: ask, samples: { written: sums, sampled: tries }, program: [python3], script: rate.py }
  asked: { kind: label, samples: pairs, annotators: [anna, ben] }
  judge: { kind: reward_model, model: thin, data: pairs, test: pairs, learning_rate: 1.0e-2, batch: 2, epochs: 2 }
  picks: { kind: best_of_n, samples: tries, proxy: words, gold: { words: words, head: judge } }
  swapped: { kind: best_of_n, samples: tries, proxy: judge, gold: words }
  overdone: { kind: overoptimization, scores: [picks, swapped], law: best_of_n }
  spoilt: { kind: overoptimization, scores: { picks: picks, swapped: swapped }, law: none, separate: true }
  scorer: { kind: load_reward_model, source: rewards, dtype: f32, mean: 0.25 }
  likelier: { kind: density_ratio, samples: tries, strong: tuned, weak: folder, criteria: short }
  revised: { kind: revise, model: whole, prompts: sums, temperature: 1.0, max_new_tokens: 12, critique: Bad?, revision: Better! }
  straight: { kind: dpo, model: thin, data: pairs, learning_rate: 1.0e-2, batch: 2, epochs: 2 }
  lists: { kind: dpo, model: folder, data: ranked, learning_rate: 1.0e-3, batch: 2 }
  simple: { kind: cpo, model: thin, data: pairs, loss: simpo, learning_rate: 1.0e-2, batch: 2, epochs: 2 }
  liked: { kind: annotate, samples: tries, judge: words, make: unpaired, threshold: -0.5 }
  prospect: { kind: kto, model: thin, data: liked, learning_rate: 1.0e-2, batch: 4, micro_batch: 3, max_steps: 4 }
  unlike: { kind: contrast, chosen: sums, rejected: tries }
  odds: { kind: orpo, model: thin, data: pairs, learning_rate: 1.0e-2, batch: 2, epochs: 2 }
  weighed: { kind: evaluate, models: { before: folder, after: tuned }, data: sums, judge: { words: words, head: judge }, reference: folder, max_new_tokens: 8 }
  agreed: { kind: preference_accuracy, policy: { before: folder, after: simple }, reference: folder, judge: judge, data: pairs }
  quizzed: { kind: exam, models: { before: folder, after: tuned }, data: quiz, shots: 1 }
  written: { kind: exam, models: whole, data: sums, task: exact_match, max_new_tokens: 12 }
  texts: { kind: load_dataset, source: texts.jsonl, format: labelled }
  held: { kind: load_dataset, source: held.jsonl, format: labelled }
  marks: { kind: load_dataset, source: marks.jsonl, format: labelled }
  vectors: { kind: features, model: folder, data: texts }
  held_vectors: { kind: features, model: folder, data: held }
  last_states: { kind: features, model: tuned, data: marks, pooling: last, normalize: true, max_length: 12, truncation: keep_end }
  probe: { kind: head, data: vectors, test: held_vectors, epochs: 4, batch: 4 }
  perceptron: { kind: head, data: vectors, test: held_vectors, hidden: [6], activation: gelu, dropout: 0.2, batch: 3, max_steps: 6 }
  gauge: { kind: head, data: last_states, task: regression, standardize: false, max_steps: 5 }
  sorted: { kind: classifier, model: thin, data: texts, test: held, pooling: last, learning_rate: 1.0e-2, batch: 4, dropout: 0.1, max_steps: 3 }
  sorter: { kind: load_classifier, source: sorter, dtype: f32 }
  encoded_sorter: { kind: load_classifier, source: encoded_sorter, dtype: f32 }
  renamed_sorter: { kind: load_classifier, source: sorter, labels: [loaf, sum, why] }
  lone_head: { kind: load_classifier, source: lone, model: folder, other_base: true }
  by_theirs: { kind: classify, models: { llama: sorter, bert: encoded_sorter, head: lone_head }, data: held }
  graded: { kind: classifier, model: folder, data: marks, task: regression, hidden: [6], learning_rate: 1.0e-3, batch: 4, max_steps: 3 }
  told_apart: { kind: classify, models: { probe: probe, perceptron: perceptron, sorted: sorted }, data: held }
  rated_alike: { kind: classify, models: { gauge: gauge, graded: graded }, data: marks, task: regression }
  proximal: { kind: ppo, model: thin, reward: judge, prompts: sums, updates: 2, batch: 4, epochs: 2, max_new_tokens: 8, learning_rate: 1.0e-2 }
  left_out: { kind: rloo, model: thin, reward: words, prompts: sums, updates: 2, batch: 4, max_new_tokens: 8, learning_rate: 1.0e-2 }
  bert: { kind: load_model, source: bert, dtype: f32 }
  headed: { kind: masked_lm, model: bert, data: reviews, train: head, batch: 2, max_steps: 3, learning_rate: 1.0e-2 }
  adapted: { kind: masked_lm, model: headed, data: reviews, batch: 2, micro_batch: 1, epochs: 2, learning_rate: 1.0e-3, max_length: 24 }
  thin_encoder: { kind: lora, model: headed, r: 2 }
  bent: { kind: masked_lm, model: thin_encoder, data: reviews, batch: 2, max_steps: 3, learning_rate: 1.0e-2, mask_probability: 0.4 }
  hidden: { kind: masked_lm_loss, models: { before: headed, after: adapted, bent: bent }, data: reviews }
  relative: { kind: grpo, model: thin, reward: words, prompts: sums, updates: 2, batch: 4, group: 2, max_new_tokens: 8, learning_rate: 1.0e-2, beta: 0.1 }
";

/// A program that judges by the number of letters.
const RATE: &str = r#"
import json, sys
for line in sys.stdin:
    question = json.loads(line)
    if "completion" in question:
        answer = {"score": 1 + len(question["completion"]) % 9}
    else:
        a, b = len(question["a"]), len(question["b"])
        answer = {"winner": "a" if a > b else "b" if b > a else "tie"}
    print(json.dumps({"id": question["id"], **answer}))
"#;

/// Kind to what each of its stages made, by the stage's name.
fn made() -> BTreeMap<String, Map<String, Value>> {
    let kitchen = Kitchen::new(8);
    tiny::model(&kitchen, "model");
    tiny::reward_model(&kitchen, "rewards");
    tiny::adapter(&kitchen, "adapter");
    tiny::encoder(&kitchen, "bert");
    let labels = ["bread", "number", "question"];
    tiny::classifier(&kitchen, "sorter", &labels);
    tiny::encoder_classifier(&kitchen, "encoded_sorter", &labels);
    tiny::lone_head(&kitchen, "lone", &labels);
    fs::copy(
        checkout().join("tests/golden/data/formats/tiny.gguf"),
        kitchen.path().join("tiny.gguf"),
    )
    .unwrap();
    kitchen.write("chats.jsonl", &tiny::chats(12));
    kitchen.write("pairs.jsonl", tiny::PAIRS);
    kitchen.write("quiz.jsonl", tiny::QUIZ);
    kitchen.write("reviews.csv", tiny::REVIEWS);
    kitchen.write("texts.jsonl", &tiny::texts(12));
    kitchen.write("marks.jsonl", &tiny::marks(12));
    kitchen.write("held.jsonl", &tiny::texts(7));
    kitchen.write("rate.py", RATE);
    kitchen.write("kinds.yaml", RECIPE);
    kitchen.label("kinds.yaml", "asked", "");
    let answer = kitchen.say("run kinds.yaml --json --allow-programs");
    let answer = answer.expect(0).json();
    check_metrics(
        &kitchen.path().join("kinds.yaml"),
        &kitchen.cache(),
        &answer,
    );
    let mut made: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for stage in answer["stages"].as_array().unwrap() {
        let of_kind = made.entry(text(&stage["kind"])).or_default();
        of_kind.insert(
            text(&stage["name"]),
            outputs(&kitchen.cache(), stage, NUMBERS),
        );
    }
    made
}

/// The numbers in metrics have the names that contracts say beforehand.
fn check_metrics(recipe: &Path, cache: &Path, answer: &Value) {
    let recipe = engine::recipe::read(recipe, &[], kinds::contracts()).unwrap();
    let mut looked = 0;
    for made in &recipe.stages {
        for output in made.contract.outputs {
            let Some(names) = output.metrics else {
                assert!(
                    !output.is(ArtifactType::Metrics),
                    "{} says no names",
                    made.contract.kind
                );
                continue;
            };
            let named = |port: &str| match made.inputs.get(port) {
                Some(Binding::Many(list)) => list.iter().map(|(name, _)| name.clone()).collect(),
                Some(Binding::One(_)) => vec![String::new()],
                None => Vec::new(),
            };
            let mut said = names(&made.params, &named);
            said.sort();
            let digest = stage(answer, &made.name)["outputs"][output.name].clone();
            let digest = serde_json::from_value(digest).unwrap();
            let manifest = Cache::open(cache).unwrap().manifest(digest).unwrap();
            let numbers = manifest.summary.clone().into_iter();
            let numbers = numbers.map(|(name, value)| (name, without_nulls(value)));
            let mut found = engine::metric::names(&numbers.collect());
            found.sort();
            assert_eq!(said, found, "{}", made.name);
            looked += 1;
        }
    }
    assert!(looked > 2);
}

/// With 0 in the place of a number that is not one: it has a name as well.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Null => json!(0),
        Value::Object(map) => {
            let all = map
                .into_iter()
                .map(|(name, value)| (name, without_nulls(value)));
            Value::Object(all.collect())
        }
        other => other,
    }
}

#[test]
fn every_kind_gives_what_its_version_gave() {
    let update = std::env::var_os("UPDATE").is_some_and(|v| v == "1");
    let folder = checkout().join("tests/golden/kinds");
    fs::create_dir_all(&folder).unwrap();
    let made = made();
    let mut expected: Vec<PathBuf> = Vec::new();
    let mut wrong = Vec::new();
    for contract in support::runnable() {
        let (kind, version) = (contract.kind, contract.version);
        let Some(stages) = made.get(kind) else {
            wrong.push(format!(
                "no stage of this test's recipe is of the kind `{kind}`: add one"
            ));
            continue;
        };
        let now = json!({ "kind": kind, "version": version, "stages": stages });
        let path = folder.join(format!("{kind}-{version}.json"));
        match fs::read_to_string(&path) {
            Ok(text) => {
                let before: Value = serde_json::from_str(&text).unwrap();
                // Read from text as well: what is compared has been through the same rounding.
                let now: Value = serde_json::from_str(&now.to_string()).unwrap();
                if let Some(place) = difference(&before, &now, TOLERANCE) {
                    wrong.push(format!(
                        "version {version} of `{kind}` gives something else than {} says: raise `version` in src/kinds/src/{kind}.rs, or \
                         restore the behaviour\n  {place}",
                        path.display()
                    ));
                }
            }
            Err(_) if update => fs::write(&path, pretty(&now)).unwrap(),
            Err(error) => wrong.push(format!("{}: {error}: UPDATE=1 writes it", path.display())),
        }
        expected.push(path);
    }
    for path in support::files(&folder) {
        match expected.contains(&path) {
            true => {}
            false if update => fs::remove_file(&path).unwrap(),
            false => wrong.push(format!(
                "{} is of no kind's version: UPDATE=1 removes it",
                path.display()
            )),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// JSON with a line for each row, step and tensor.
fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out.push('\n');
    out
}

fn write(value: &Value, depth: usize, out: &mut String) {
    let flat = value.to_string();
    let inner: Vec<(String, &Value)> = match value {
        _ if flat.len() <= 120 => Vec::new(),
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| (format!("{}: ", json!(k)), v))
            .collect(),
        Value::Array(list) if !list[0].is_number() => {
            list.iter().map(|v| (String::new(), v)).collect()
        }
        _ => Vec::new(),
    };
    if inner.is_empty() {
        out.push_str(&flat);
        return;
    }
    let (open, close) = if value.is_object() {
        ('{', '}')
    } else {
        ('[', ']')
    };
    out.push(open);
    for (index, (name, value)) in inner.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        out.push_str(&format!("{comma}\n{}{name}", " ".repeat(depth + 1)));
        write(value, depth + 1, out);
    }
    out.push_str(&format!("\n{}{close}", " ".repeat(depth)));
}

#[test]
fn a_change_of_behaviour_is_seen_and_the_last_bits_are_not() {
    let before = json!({ "loss": 2.5, "rows": 3, "first": [1.0, 1e-9], "text": "loaf" });
    let changed = |name: &str, to: Value| {
        let mut after = before.clone();
        after[name] = to;
        difference(&before, &after, TOLERANCE)
    };
    assert_eq!(changed("loss", json!(2.500_01)), None);
    assert_eq!(changed("first", json!([1.000_01, 1e-6])), None);
    for (name, to) in [
        ("loss", json!(2.501)),
        ("loss", Value::Null),
        ("rows", json!(4)),
        ("first", json!([1.0, 1e-3])),
        ("first", json!([1.0])),
        ("text", json!("loaves")),
        ("more", json!(1)),
    ] {
        let place = changed(name, to.clone());
        assert!(place.is_some(), "`{name}` became {to} unseen");
    }
    assert!(
        changed("loss", json!(2.501))
            .unwrap()
            .contains("/loss: 2.5 became 2.501")
    );
}

//! What evaluations of policies and judges measure, on a tiny model: against transformers (tests/golden/make/evaluation.py), by laws, and
//! on questions that can't be asked.

mod support;

use serde_json::{Value, json};
use support::artifacts::{outputs, stage};
use support::{Kitchen, checkout, tiny};

/// Relative to the larger number: sums of f32 in another order.
const TOLERANCE: f64 = 1e-4;

fn golden() -> Value {
    let path = checkout().join("tests/golden/data/evaluation/models.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn lines(rows: &Value) -> String {
    let rows = rows.as_array().unwrap();
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// A kitchen with two models, and the rows of the golden file.
fn kitchen(golden: &Value) -> Kitchen {
    let kitchen = Kitchen::new(8);
    tiny::model(&kitchen, "model");
    tiny::model(&kitchen, "other");
    let config = std::fs::read_to_string(kitchen.path().join("other/config.json")).unwrap();
    let other = config.replace("9.999999747378752e-06", "0.01");
    assert_ne!(other, config);
    kitchen.write("other/config.json", &other);
    kitchen.write("questions.jsonl", &lines(&golden["questions"]));
    kitchen.write("example.jsonl", &lines(&json!([golden["example"]])));
    kitchen.write("chats.jsonl", &lines(&golden["chats"]));
    kitchen.write("pairs.jsonl", &lines(&golden["pairs"]));
    kitchen
}

const SHARED: &str = "\
levain: 1
seed: 17
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  other: { kind: load_model, source: other, dtype: f32 }
  questions: { kind: load_dataset, source: questions.jsonl }
  example: { kind: load_dataset, source: example.jsonl }
  chats: { kind: load_dataset, source: chats.jsonl }
  pairs: { kind: load_dataset, source: pairs.jsonl }
  sums: { kind: load_dataset, source: rows.jsonl }
  words: { kind: rule, pattern: e }
  brief: { kind: rule, length: 3 }
  thin: { kind: lora, model: base, r: 4 }
";

/// The answer of a run of these stages.
fn run(kitchen: &Kitchen, stages: &str) -> Value {
    kitchen.write("evaluation.yaml", &format!("{SHARED}  {stages}"));
    kitchen.say("run evaluation.yaml --json").expect(0).json()
}

/// The numbers of a stage, and its samples where it keeps them.
fn found(kitchen: &Kitchen, answer: &Value, name: &str) -> (Value, Value) {
    let made = outputs(&kitchen.cache(), stage(answer, name), 0);
    let metrics = &made["metrics"];
    (
        metrics["summary"].clone(),
        metrics["files"]["samples.jsonl"].clone(),
    )
}

#[track_caller]
fn close(found: &Value, wanted: &Value, what: &str) {
    let (found, wanted) = (found.as_f64(), wanted.as_f64());
    let (found, wanted) = (found.expect(what), wanted.expect(what));
    assert!(
        (found - wanted).abs() <= TOLERANCE * wanted.abs().max(0.01),
        "{what}: {found}, and the reference has {wanted}"
    );
}

#[test]
fn choices_are_as_likely_as_transformers_says() {
    let golden = golden();
    let kitchen = kitchen(&golden);
    let answer = run(
        &kitchen,
        "\
  zero_shot: { kind: exam, models: base, data: questions }
  one_shot: { kind: exam, models: base, data: questions, examples: example, shots: 1, instructions: Bake. }
  letters: { kind: exam, models: base, data: questions, answer_with: letter, micro_batch: 3 }
  bare: { kind: exam, models: base, data: questions, template: \"{prompt}\\n\" }
  turns: { kind: exam, models: base, data: chats }
",
    );
    for (name, of) in [
        ("zero_shot", "zero_shot"),
        ("one_shot", "one_shot"),
        ("letters", "letters"),
        ("bare", "bare"),
        ("turns", "chats"),
    ] {
        let wanted = golden["exam"][of].as_array().unwrap();
        let (numbers, samples) = found(&kitchen, &answer, name);
        let share = |key: &str| {
            let right = wanted.iter().filter(|row| row[key] == true).count();
            right as f64 / wanted.len() as f64
        };
        assert_eq!(numbers["base"]["accuracy"], share("correct"), "{name}");
        let normalized = share("correct_normalized");
        assert_eq!(numbers["base"]["accuracy_normalized"], normalized, "{name}");
        assert_eq!(numbers["base"]["questions"], wanted.len());
        assert_eq!(samples.as_array().unwrap().len(), wanted.len());
        for (sample, row) in samples.as_array().unwrap().iter().zip(wanted) {
            assert_eq!(sample["correct"]["base"], row["correct"], "{name}");
            let own = sample["log_likelihoods"]["base"].as_array().unwrap();
            let known = row["log_likelihoods"].as_array().unwrap();
            assert_eq!(own.len(), known.len());
            for (own, known) in own.iter().zip(known) {
                close(own, known, name);
            }
        }
    }
    let shown = kitchen.say("show evaluation.yaml zero_shot").expect(0).out;
    assert!(
        shown.contains("accuracy") && shown.contains("What is flour made of?"),
        "{shown}"
    );
    assert!(shown.contains('✓') || shown.contains('✗'), "{shown}");
}

#[test]
fn an_exact_match_is_what_generate_writes_up_to_the_line() {
    let kitchen = kitchen(&golden());
    let answer = run(
        &kitchen,
        "\
  tuned: { kind: sft, model: base, data: sums, learning_rate: 1.0e-2, batch: 4, epochs: 20 }
  written: { kind: generate, model: tuned, prompts: sums, max_new_tokens: 16 }
  marks: { kind: exam, models: { base: base, tuned: tuned }, data: sums, task: exact_match, template: \"{prompt}\", max_new_tokens: 16 }
  whole: { kind: exam, models: { tuned: tuned }, data: sums, task: exact_match, template: \"{prompt}\", until: end, normalization: none, max_new_tokens: 16 }
",
    );
    let written = outputs(&kitchen.cache(), stage(&answer, "written"), 0);
    let written = written["rows"]["files"]["rows.arrow"].as_array().unwrap();
    let (numbers, samples) = found(&kitchen, &answer, "marks");
    let samples = samples.as_array().unwrap();
    assert_eq!((written.len(), samples.len()), (8, 8));
    let mut right = 0;
    for (row, sample) in written.iter().zip(samples) {
        let text = row["completion"].as_str().unwrap();
        let line = text.split(['\n', '\r']).next().unwrap().trim();
        assert_eq!(sample["answers"]["tuned"], line);
        let known = sample["reference"].as_str().unwrap();
        // The answers are like `It is 3.`: without punctuation, in lower case.
        let bare = |text: &str| {
            text.to_lowercase()
                .replace(|c: char| c.is_ascii_punctuation(), "")
        };
        let same = bare(line)
            .split_whitespace()
            .eq(bare(known).split_whitespace());
        assert_eq!(sample["correct"]["tuned"], same, "{line} {known}");
        right += usize::from(same);
    }
    assert_eq!(numbers["tuned"]["exact_match"], right as f64 / 8.0);
    let f1 = samples.iter().map(|s| s["f1"]["tuned"].as_f64().unwrap());
    close(
        &numbers["tuned"]["f1"],
        &json!(f1.sum::<f64>() / 8.0),
        "the mean of F1",
    );
    // Whoever learned the rows knows more of them than whoever did not.
    let f1 = |model: &str| numbers[model]["f1"].as_f64().unwrap();
    assert!(f1("tuned") > f1("base"), "{numbers}");
    let (_, samples) = found(&kitchen, &answer, "whole");
    for (row, sample) in written.iter().zip(samples.as_array().unwrap()) {
        let text = row["completion"].as_str().unwrap();
        assert_eq!(sample["answers"]["tuned"], text.trim());
    }
}

#[test]
fn policies_prefer_what_transformers_says_and_judges_what_their_training_said() {
    let golden = golden();
    let kitchen = kitchen(&golden);
    let answer = run(
        &kitchen,
        "\
  judge: { kind: reward_model, model: thin, data: pairs, test: pairs, learning_rate: 1.0e-2, batch: 2, epochs: 2 }
  agreement: { kind: preference_accuracy, policy: { base: base, fresh: thin, other: other }, reference: other, judge: { learned: judge, words: words, brief: brief }, data: pairs }
  itself: { kind: preference_accuracy, policy: thin, reference: base, data: pairs }
  alone: { kind: preference_accuracy, policy: base, judge: judge, data: pairs, beta: 1.0 }
",
    );
    let (numbers, _) = found(&kitchen, &answer, "agreement");
    let wanted = golden["preferences"].as_object().unwrap();
    assert!(wanted.len() > 7);
    for (measure, value) in wanted {
        close(&numbers["base"][measure], value, measure);
        // An adapter that changes nothing yet is the model itself, to the bit.
        assert_eq!(numbers["fresh"][measure], numbers["base"][measure]);
    }
    // A policy at its reference has only ties.
    let (itself, _) = found(&kitchen, &answer, "itself");
    for at_reference in [&numbers["other"], &itself["policy"]] {
        assert_eq!(at_reference["accuracy"], 0.5);
        assert_eq!(at_reference["margin"], 0.0);
        assert_eq!(at_reference["calibration_error"], 0.0);
        let loss = at_reference["loss"].as_f64().unwrap();
        assert!((loss - 2f64.ln()).abs() < 1e-12);
    }
    // A judge is measured as its training measured it on the same rows.
    let trained = outputs(&kitchen.cache(), stage(&answer, "judge"), 0);
    let trained = &trained["metrics"]["summary"]["test"];
    for measure in ["accuracy", "margin", "loss", "calibration_error", "pairs"] {
        close(&numbers["learned"][measure], &trained[measure], measure);
    }
    // The rule says 1 where there is an `e`, else 0.
    let has = |text: &Value| i32::from(text.as_str().unwrap().contains('e'));
    let pairs = golden["pairs"].as_array().unwrap();
    let differences = pairs
        .iter()
        .map(|pair| has(&pair["chosen"]) - has(&pair["rejected"]));
    let differences: Vec<i32> = differences.collect();
    let right = differences.iter().map(|d| f64::from(1 + d.signum()) / 2.0);
    let rule = &numbers["words"];
    assert_eq!(rule["accuracy"], right.sum::<f64>() / 5.0);
    assert_eq!(
        rule["margin"],
        f64::from(differences.iter().sum::<i32>()) / 5.0
    );
    assert_eq!(rule["pairs"], 5.0);
    let (alone, _) = found(&kitchen, &answer, "alone");
    assert_eq!(
        alone["policy"]["likelihood_accuracy"],
        numbers["base"]["likelihood_accuracy"]
    );
    assert!(alone["policy"].get("accuracy").is_none());
    assert_eq!(alone["judge"], numbers["learned"]);
}

#[test]
fn several_judges_find_what_each_finds_alone() {
    let kitchen = kitchen(&golden());
    let answer = run(
        &kitchen,
        "\
  both: { kind: evaluate, models: { base: base, other: other }, data: sums, judge: { gold: words, proxy: brief }, reference: other, temperature: 1.0, max_new_tokens: 12 }
  gold: { kind: evaluate, models: { base: base, other: other }, data: sums, judge: words, reference: other, temperature: 1.0, max_new_tokens: 12 }
  proxy: { kind: evaluate, models: { base: base, other: other }, data: sums, judge: brief, temperature: 1.0, max_new_tokens: 12 }
  passed: { kind: gate, input: sums, metrics: both, metric: other.proxy_score, max: 1000 }
",
    );
    let (both, _) = found(&kitchen, &answer, "both");
    let mut compared = 0;
    for judge in ["gold", "proxy"] {
        let (alone, _) = found(&kitchen, &answer, judge);
        for model in ["base", "other"] {
            let own = &both[model];
            assert!(own.get("score").is_none());
            for measure in [
                "score",
                "win_rate",
                "difference",
                "difference_low",
                "difference_high",
            ] {
                let name = format!("{judge}_{measure}");
                assert_eq!(own[&name], alone[model][measure], "{model}.{name}");
                assert!(own[&name].is_number());
                compared += 1;
            }
            for measure in ["length", "finished", "diversity", "loss"] {
                assert_eq!(own[measure], alone[model][measure]);
            }
        }
    }
    assert_eq!(compared, 20);
    let (gold, _) = found(&kitchen, &answer, "gold");
    assert_eq!(both["base"]["kl"], gold["base"]["kl"]);
    // The other model is the reference itself: at no distance, and sure of it.
    assert_eq!(
        (&both["other"]["kl"], &both["other"]["kl_error"]),
        (&json!(0.0), &json!(0.0))
    );
    assert!(both["base"]["kl_error"].as_f64().unwrap() > 0.0);
    let shown = kitchen.say("show evaluation.yaml both").expect(0).out;
    assert!(shown.contains("gold") && shown.contains("proxy"), "{shown}");
    // A name that no judge has is found before anything runs.
    let wrong =
        "  wrong: { kind: gate, input: sums, metrics: both, metric: other.score, max: 1 }\n";
    let text = std::fs::read_to_string(kitchen.path().join("evaluation.yaml")).unwrap();
    kitchen.write("wrong.yaml", &(text + wrong));
    let said = kitchen.say("check wrong.yaml");
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(
        said.err.contains("no metric `other.score`") && said.err.contains("other.proxy_score"),
        "{}",
        said.err
    );
}

#[test]
fn what_cannot_be_measured_is_said() {
    let kitchen = kitchen(&golden());
    let long = "why? ".repeat(60);
    let row = |question: &str| json!({ "question": question, "choices": ["a", "b"], "answer": 0 });
    kitchen.write("long.jsonl", &lines(&json!([row("short?"), row(&long)])));
    kitchen.write(
        "open.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"say\"}]}\n",
    );
    kitchen.write("same.jsonl", &lines(&json!([row("Same?"), row("Same?")])));
    let words: Vec<Value> = (0..200)
        .map(|n: u32| json!({ "text": format!("{} levain {} crumb", n.pow(3), n * 7919) }))
        .collect();
    kitchen.write("texts.jsonl", &lines(&json!(words)));
    let more = "\
  long: { kind: load_dataset, source: long.jsonl }
  open: { kind: load_dataset, source: open.jsonl }
  same: { kind: load_dataset, source: same.jsonl }
  texts: { kind: load_dataset, source: texts.jsonl, format: text }
  strange: { kind: init_model, data: texts, vocabulary: 300, hidden: 16, layers: 1, heads: 2, context: 128 }
";
    for (fields, wanted) in [
        (
            "kind: exam, models: base, data: sums",
            "have no choices: `task: exact_match` takes questions without them",
        ),
        (
            "kind: exam, models: base, data: questions, shots: 5",
            "`shots` is 5, and there are 4 examples",
        ),
        (
            "kind: exam, models: base, data: same, shots: 1",
            "question 1: `shots` is 1, and only 0 examples ask something else",
        ),
        (
            "kind: exam, models: base, data: questions, examples: example",
            "`examples` are given, and `shots` is 0",
        ),
        ("kind: exam, models: base, data: long", "question 2 has "),
        (
            "kind: exam, models: base, data: long, task: exact_match",
            "with max_new_tokens 64 the model has room for 64: lower `max_new_tokens`",
        ),
        (
            "kind: generate, model: base, prompts: sums, max_new_tokens: 127",
            "tokens; with max_new_tokens 127 the model has room for 1: lower `max_new_tokens`",
        ),
        (
            "kind: exam, models: base, data: open, task: exact_match",
            "question 1: the row has no answer to compare with",
        ),
        (
            "kind: exam, models: base, data: sums, task: exact_match, answer_with: letter",
            "have no choices, so that there are no letters to answer with",
        ),
        (
            "kind: exam, models: base, data: questions, template: Answer",
            "`template` has no `{prompt}`",
        ),
        (
            "kind: evaluate, models: base, data: sums, judge: words, reference: strange, max_new_tokens: 4",
            "the reference has another tokenizer than `models`",
        ),
        (
            "kind: dpo, model: base, data: pairs, reference: strange, max_steps: 1",
            "the reference has another tokenizer than the policy",
        ),
        (
            "kind: grpo, model: base, reward: words, prompts: sums, reference: strange, updates: 1, beta: 0.1, max_new_tokens: 4",
            "the reference has another tokenizer than `model`",
        ),
        (
            "kind: preference_accuracy, data: pairs",
            "there is nobody to measure",
        ),
        (
            "kind: preference_accuracy, data: pairs, judge: words, reference: base",
            "a `reference` is what a `policy` is measured against",
        ),
        (
            "kind: preference_accuracy, data: pairs, policy: { one: base }, judge: { one: words }",
            "both called `one`",
        ),
        (
            "kind: preference_accuracy, data: sums, policy: base",
            "takes rows laid out as preference, ranking",
        ),
    ] {
        let recipe = format!("{SHARED}  {more}  wrong: {{ {fields} }}\n");
        kitchen.write("wrong.yaml", &recipe);
        let said = kitchen.say("run wrong.yaml");
        assert_ne!(said.code, Some(0), "{fields}");
        let all = said.out + &said.err;
        // Long sentences are broken into lines.
        let all = all.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(all.contains(wanted), "{fields}: {all}");
    }
}

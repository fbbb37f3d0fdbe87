//! Classifiers from outside, by the real program on tiny models: what an output wrote is loaded and says what it said; folders as transformers
//! saves them are read by their own labels; another model is found; files that lie are refused by name.

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{Kitchen, tiny};

const SHARED: &str = "\
levain: 1
seed: 17
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  held: { kind: load_dataset, source: held.jsonl, format: labelled }
  marks: { kind: load_dataset, source: marks.jsonl, format: labelled }
";

const MADE: &str = "  texts: { kind: load_dataset, source: texts.jsonl, format: labelled }
  bert: { kind: load_model, source: bert, dtype: f32 }
  untied: { kind: load_model, source: untied, dtype: f32 }
  thin: { kind: lora, model: base, r: 4 }
  thin_bert: { kind: lora, model: bert, r: 2 }
  small: { kind: quantize, model: base }
  vectors: { kind: features, model: base, data: texts, normalize: true }
  probe: { kind: head, data: vectors, max_steps: 6, learning_rate: 1.0e-2 }
  known: { kind: classifier, model: base, data: texts, pooling: last, max_steps: 3, learning_rates: { score: 1.0e-2 } }
  wordless: { kind: classifier, model: untied, data: texts, pooling: last, max_steps: 3, learning_rate: 1.0e-3 }
  pooled: { kind: classifier, model: bert, data: texts, pooling: pooler, max_steps: 3, learning_rates: { classifier: 1.0e-2 } }
  deep: { kind: classifier, model: base, data: texts, hidden: [6], activation: gelu, max_steps: 3, learning_rates: { head.1: 1.0e-2 } }
  adapted: { kind: classifier, model: thin, data: texts, pooling: last, max_steps: 3, learning_rate: 1.0e-2 }
  adapted_mean: { kind: classifier, model: thin, data: texts, max_steps: 3, learning_rate: 1.0e-2 }
  adapted_bert: { kind: classifier, model: thin_bert, data: texts, pooling: pooler, max_steps: 3, learning_rate: 1.0e-2 }
  packed: { kind: classifier, model: small, data: texts, train: head, max_steps: 3, learning_rate: 1.0e-2 }
  gauge: { kind: classifier, model: base, data: marks, task: regression, pooling: last, max_steps: 3, learning_rate: 1.0e-3 }
";

const LOADED: &str = "  bert: { kind: load_model, source: bert, dtype: f32 }
  small: { kind: quantize, model: base }
  probe: { kind: load_classifier, source: out/probe, model: base }
  known: { kind: load_classifier, source: out/known, dtype: f32 }
  wordless: { kind: load_classifier, source: out/wordless, dtype: f32 }
  pooled: { kind: load_classifier, source: out/pooled, dtype: f32 }
  deep: { kind: load_classifier, source: out/deep, dtype: f32 }
  adapted: { kind: load_classifier, source: out/adapted, model: base }
  adapted_mean: { kind: load_classifier, source: out/adapted_mean, model: base }
  adapted_bert: { kind: load_classifier, source: out/adapted_bert, model: bert }
  packed: { kind: load_classifier, source: out/packed, model: small }
  gauge: { kind: load_classifier, source: out/gauge, dtype: f32 }
";

/// The classifiers of texts.
const NAMES: [&str; 9] = [
    "probe",
    "known",
    "wordless",
    "pooled",
    "deep",
    "adapted",
    "adapted_mean",
    "adapted_bert",
    "packed",
];

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    tiny::scale(&kitchen.path().join("model"), 4.0);
    tiny::model(&kitchen, "untied");
    let untied = kitchen.path().join("untied");
    tiny::add_tensors(&untied, &[("lm_head.weight", vec![280, 32])]);
    configure(&untied, "tie_word_embeddings", json!(false));
    tiny::encoder(&kitchen, "bert");
    kitchen.write("texts.jsonl", &tiny::texts(18));
    kitchen.write("held.jsonl", &tiny::texts(12));
    kitchen.write("marks.jsonl", &tiny::marks(12));
    kitchen
}

/// Sets a field of a folder's config.json; null takes it out.
fn configure(folder: &Path, field: &str, value: Value) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    match value {
        Value::Null => drop(config.as_object_mut().unwrap().remove(field)),
        value => config[field] = value,
    }
    fs::write(path, config.to_string()).unwrap();
}

/// Both tables of the classifiers.
fn tables() -> String {
    let models: Vec<String> = NAMES.iter().map(|name| format!("{name}: {name}")).collect();
    format!(
        "  table: {{ kind: classify, models: {{ {} }}, data: held }}\n  gauged: {{ kind: classify, models: gauge, data: marks, task: regression }}\n",
        models.join(", ")
    )
}

/// Outputs of all classifiers into folders below `to`.
fn written(to: &str) -> String {
    let names = NAMES.iter().chain(&["gauge"]);
    let lines = names.map(|name| format!("  {name}: {{ from: {name}, to: {to}/{name} }}\n"));
    "outputs:\n".to_owned() + &lines.collect::<String>()
}

/// The lines of `predictions.jsonl` of a stage, and its numbers.
fn said(kitchen: &Kitchen, recipe: &str, stage: &str) -> (Vec<Value>, Value) {
    let shown = kitchen.say(&format!("show {recipe} {stage} --json"));
    let shown = shown.expect(0).json();
    let files = shown["files"].as_array().unwrap().iter();
    let mut files = files.filter(|file| file["name"] == "predictions.jsonl");
    let path = files.next().unwrap()["path"].as_str().unwrap().to_owned();
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (lines.collect(), shown["metrics"].clone())
}

fn read(kitchen: &Kitchen, path: &str) -> Value {
    let bytes = fs::read(kitchen.path().join(path)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn what_was_exported_is_loaded_and_says_the_same() {
    let kitchen = kitchen();
    kitchen.write(
        "made.yaml",
        &format!("{SHARED}{MADE}{}{}", tables(), written("out")),
    );
    kitchen.say("run made.yaml --json").expect(0);
    kitchen.write(
        "loaded.yaml",
        &format!("{SHARED}{LOADED}{}{}", tables(), written("again")),
    );
    kitchen.say("run loaded.yaml --json").expect(0);
    for stage in ["table", "gauged"] {
        let (before, numbers) = said(&kitchen, "made.yaml", stage);
        let (after, again) = said(&kitchen, "loaded.yaml", stage);
        assert_eq!(before.len(), 12);
        assert_eq!(before, after, "{stage}");
        assert_eq!(numbers["models"], again["models"], "{stage}");
    }
    // Exported once more, they are the same heads, and the files that transformers looks for are there.
    for name in NAMES.iter().chain(&["gauge"]) {
        for file in ["head.json", "head.safetensors"] {
            let bytes = |to: &str| fs::read(kitchen.path().join(to).join(name).join(file)).unwrap();
            assert_eq!(bytes("out"), bytes("again"), "{name}: {file}");
        }
    }
    for name in ["known", "wordless", "pooled", "gauge"] {
        let own = |to: &str, file: &str| read(&kitchen, &format!("{to}/{name}/{file}"));
        for file in ["config.json", "model.safetensors.index.json"] {
            assert_eq!(own("out", file), own("again", file), "{name}: {file}");
        }
    }
    // A cache that never saw them has nothing else to go by.
    kitchen
        .say("run loaded.yaml --json --cache other")
        .expect(0);
}

#[test]
fn folders_of_transformers_say_what_their_labels_are() {
    let kitchen = kitchen();
    let labels = ["bread", "number", "question"];
    tiny::classifier(&kitchen, "llama", &labels);
    tiny::encoder_classifier(&kitchen, "pooled", &labels);
    tiny::classifier(&kitchen, "silent", &["x", "y"]);
    configure(&kitchen.path().join("silent"), "id2label", Value::Null);
    kitchen.write(
        "two.jsonl",
        "{\"text\": \"loaf\", \"label\": \"pos \"}\n{\"text\": \"1 or 2\", \"label\": \"neg\"}\n",
    );
    let stages = "  two: { kind: load_dataset, source: two.jsonl, format: labelled }
  llama: { kind: load_classifier, source: llama, dtype: f32 }
  bert: { kind: load_classifier, source: pooled, dtype: f32 }
  named: { kind: load_classifier, source: silent, labels: [neg, pos] }
  table: { kind: classify, models: { llama: llama, bert: bert }, data: held }
  pair: { kind: classify, models: named, data: two }
outputs:
  named: { from: named, to: out/named }
";
    kitchen.write("theirs.yaml", &format!("{SHARED}{stages}"));
    kitchen.say("run theirs.yaml --json").expect(0);
    let (lines, numbers) = said(&kitchen, "theirs.yaml", "table");
    assert_eq!(lines.len(), 12);
    for name in ["llama", "bert"] {
        assert_eq!(numbers["models"][name]["labels"], json!(labels), "{name}");
        for line in &lines {
            let predicted = &line["predicted"][name];
            assert!(
                labels.iter().any(|label| predicted == label),
                "{name}: {line}"
            );
            let probability = line["probability"][name].as_f64().unwrap();
            assert!(probability > 1.0 / 3.0 - 1e-9 && probability < 1.0);
        }
    }
    let (lines, numbers) = said(&kitchen, "theirs.yaml", "pair");
    assert_eq!(numbers["models"]["named"]["labels"], json!(["neg", "pos"]));
    assert_eq!(lines[0]["label"], "pos");
    // Other names of labels are those that transformers will find as well.
    let config = read(&kitchen, "out/named/config.json");
    assert_eq!(config["id2label"], json!({ "0": "neg", "1": "pos" }));
    assert_eq!(
        read(&kitchen, "out/named/head.json")["labels"],
        json!(["neg", "pos"])
    );
    // A classifier for the other task is seen before anything runs, in the heads of its files.
    let wrong = "  wrong: { kind: classify, models: llama, data: marks, task: regression }\n";
    let loaded = stages.lines().nth(1).unwrap();
    kitchen.write("wrong.yaml", &format!("{SHARED}{loaded}\n{wrong}"));
    let said = kitchen.say("check wrong.yaml --cache fresh").expect(2).err;
    assert!(
        said.contains("`llama` was trained for classification"),
        "{said}"
    );
}

#[test]
fn what_is_no_classifier_is_refused_in_words() {
    let kitchen = kitchen();
    let labels = ["bread", "number", "question"];
    tiny::lone_head(&kitchen, "lone", &labels);
    tiny::classifier(&kitchen, "llama", &labels);
    tiny::encoder_classifier(&kitchen, "pooled", &labels);
    for (name, field, value) in [
        ("gap", "id2label", json!({ "0": "a", "1": "b", "3": "c" })),
        ("fewer", "id2label", json!({ "0": "a", "1": "b" })),
        ("twice", "id2label", json!({ "0": "a", "1": "b", "2": "a" })),
        ("many", "problem_type", json!("multi_label_classification")),
        ("scales", "problem_type", json!("regression")),
        (
            "tagger",
            "architectures",
            json!(["LlamaForTokenClassification"]),
        ),
    ] {
        tiny::classifier(&kitchen, name, &labels);
        configure(&kitchen.path().join(name), field, value);
    }
    tiny::classifier(&kitchen, "biased", &labels);
    tiny::add_tensors(&kitchen.path().join("biased"), &[("score.bias", vec![3])]);
    for name in ["bare", "flat"] {
        tiny::encoder(&kitchen, name);
        configure(&kitchen.path().join(name), "architectures", Value::Null);
    }
    tiny::add_tensors(
        &kitchen.path().join("flat"),
        &[("classifier.weight", vec![3, 16])],
    );
    let cut = kitchen.path().join("cut");
    tiny::lone_head(&kitchen, "cut", &labels);
    let bytes = fs::read(cut.join("head.safetensors")).unwrap();
    fs::write(cut.join("head.safetensors"), &bytes[..bytes.len() - 4]).unwrap();
    tiny::lone_head(&kitchen, "narrow", &labels);
    let about = kitchen.path().join("narrow/head.json");
    let text = fs::read_to_string(&about).unwrap();
    fs::write(&about, text.replace("\"input\":32", "\"input\":16")).unwrap();
    tiny::lone_head(&kitchen, "first", &labels);
    let about = kitchen.path().join("first/head.json");
    fs::write(&about, text.replace("\"mean\"", "\"cls\"")).unwrap();
    tiny::adapter(&kitchen, "adapter");

    for (stage, words) in [
        (
            "source: model",
            "`score.weight`, the head of a classifier: a model without one is what `load_model` reads",
        ),
        (
            "source: bert",
            "architectures is BertModel, which is no classifier",
        ),
        ("source: bare", "hold no `classifier.weight`"),
        ("source: gap", "id2label has no label 2, though it has 3"),
        ("source: fewer", "id2label has 2 labels"),
        ("source: twice", "two classes have the label `a`"),
        ("source: many", "several labels at a time"),
        ("source: scales", "several numbers at a time"),
        ("source: tagger", "LlamaForTokenClassification"),
        ("source: biased", "score.bias of shape [3] is not expected"),
        (
            "source: flat, labels: [a, b, c]",
            "classifier.bias is missing",
        ),
        ("source: adapter", "`merge_and_unload`"),
        ("source: lone", "give the model whose vectors it takes"),
        ("source: lone, model: base", "which has other weights"),
        (
            "source: cut, model: base, other_base: true",
            "head.safetensors",
        ),
        (
            "source: narrow, model: base, other_base: true",
            "has the shape [3, 32], expected [3, 16]",
        ),
        (
            "source: first, model: base, other_base: true",
            "it was made for an encoder",
        ),
        ("source: llama, model: base", "`model` is of no use"),
        ("source: llama, labels: [a, b]", "`labels` has 2 names"),
        ("source: llama, labels: [a, b, a]", "two classes have"),
    ] {
        kitchen.write(
            "wrong.yaml",
            &format!("{SHARED}  wrong: {{ kind: load_classifier, {stage} }}\n"),
        );
        let said = kitchen.say("run wrong.yaml wrong --json").expect(1);
        assert!(
            said.err.contains(words),
            "{stage}: `{words}`:\n{}",
            said.err
        );
    }
    // The other loaders say who reads them.
    for source in ["llama", "pooled"] {
        kitchen.write(
            "wrong.yaml",
            &format!("levain: 1\nstages:\n  wrong: {{ kind: load_model, source: {source} }}\n"),
        );
        let said = kitchen.say("run wrong.yaml --json").expect(1);
        assert!(
            said.err.contains("`kind: load_classifier`"),
            "{source}: {}",
            said.err
        );
    }
    // What the recipe shows is refused before anything runs.
    for (stage, words) in [
        ("source: lone, model: base, dtype: f32", "leave `dtype` out"),
        ("source: llama, other_base: true", "there is none"),
    ] {
        kitchen.write(
            "wrong.yaml",
            &format!("{SHARED}  wrong: {{ kind: load_classifier, {stage} }}\n"),
        );
        let said = kitchen.say("check wrong.yaml").expect(2);
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }
}

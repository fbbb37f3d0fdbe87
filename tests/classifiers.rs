//! Heads and classifiers from texts to tables: what they learn, that they say the same wherever they are asked, and what is refused.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::artifacts::stage;
use support::{Kitchen, text, tiny};

const SHARED: &str = "\
levain: 1
seed: 17
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  other: { kind: load_model, source: other, dtype: f32 }
  thin: { kind: lora, model: base, r: 4 }
  texts: { kind: load_dataset, source: texts.jsonl, format: labelled }
  held: { kind: load_dataset, source: held.jsonl, format: labelled }
  marks: { kind: load_dataset, source: marks.jsonl, format: labelled }
  vectors: { kind: features, model: base, data: texts }
  held_vectors: { kind: features, model: base, data: held }
";

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(4);
    tiny::model(&kitchen, "model");
    tiny::model(&kitchen, "other");
    let config = fs::read_to_string(kitchen.path().join("other/config.json")).unwrap();
    kitchen.write("other/config.json", &config.replace("100000.0", "50000.0"));
    kitchen.write("texts.jsonl", &tiny::texts(36));
    kitchen.write("held.jsonl", &tiny::texts(24));
    kitchen.write("marks.jsonl", &tiny::marks(36));
    kitchen
}

fn metrics(kitchen: &Kitchen, stage: &str) -> Value {
    let said = kitchen.say(&format!("show heads.yaml {stage} --json"));
    said.expect(0).json()["metrics"].clone()
}

#[track_caller]
fn near(one: &Value, other: &Value, what: &str) {
    let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
    let scale = one.abs().max(other.abs()).max(1e-2);
    assert!(
        (one - other).abs() <= 1e-4 * scale,
        "{what}: {one} and {other}"
    );
}

#[test]
fn heads_learn_and_say_the_same_wherever_they_are_asked() {
    let kitchen = kitchen();
    let stages = "  linear: { kind: head, data: vectors, test: held_vectors, epochs: 60, batch: 8, learning_rate: 1.0e-2 }
  deep: { kind: head, data: vectors, test: held_vectors, hidden: [8], epochs: 60, batch: 8, learning_rate: 1.0e-2 }
  adapted: { kind: classifier, model: thin, data: texts, test: held, pooling: last, batch: 8, epochs: 4, learning_rate: 1.0e-2 }
  whole: { kind: classifier, model: base, data: texts, test: held, batch: 8, epochs: 4, learning_rate: 1.0e-3 }
  table: { kind: classify, models: { linear: linear, deep: deep, adapted: adapted, whole: whole }, data: held }
  gauge: { kind: classifier, model: base, data: marks, test: marks, task: regression, pooling: last, train: head, batch: 8, epochs: 1 }
outputs:
  adapted: { from: adapted, format: peft, to: out/adapted }
  gauge: { from: gauge, to: out/gauge }
";
    kitchen.write("heads.yaml", &format!("{SHARED}{stages}"));
    let said = kitchen.say("run heads.yaml").expect(0);
    assert!(said.out.contains("predicted"), "{}", said.out);
    let table = metrics(&kitchen, "table");
    for name in ["linear", "deep", "adapted", "whole"] {
        let own = metrics(&kitchen, &format!("{name}.metrics"))["test"].clone();
        let again = &table["models"][name];
        for measure in ["loss", "accuracy", "f1", "mcc", "auc", "majority", "rows"] {
            near(
                &own[measure],
                &again[measure],
                &format!("{name}: {measure}"),
            );
        }
        assert_eq!(own["confusion"], again["confusion"], "{name}");
        assert_eq!(own["labels"], json!(["bread", "number", "question"]));
        near(&own["majority"], &json!(1.0 / 3.0), name);
    }
    for name in ["linear", "deep"] {
        let accuracy = table["models"][name]["accuracy"].as_f64().unwrap();
        assert!(accuracy > 0.9, "{name}: {accuracy}");
    }
    for name in ["adapted", "whole"] {
        let steps = metrics(&kitchen, &format!("{name}.metrics"))["steps"].clone();
        let steps = steps.as_array().unwrap();
        let loss = |step: &Value| step["loss"].as_f64().unwrap();
        assert!(loss(&steps[steps.len() - 1]) < loss(&steps[0]), "{name}");
    }
    let shown = kitchen.say("show heads.yaml linear.metrics").expect(0).out;
    assert!(
        shown.contains("held-out rows") && shown.contains("question"),
        "{shown}"
    );

    // The files are those that transformers and PEFT look for.
    let read = |path: &str| -> Value {
        serde_json::from_slice(&fs::read(kitchen.path().join(path)).unwrap()).unwrap()
    };
    let adapter = read("out/adapted/adapter_config.json");
    assert_eq!(adapter["task_type"], "SEQ_CLS");
    assert_eq!(adapter["modules_to_save"], json!(["score"]));
    let config = read("out/gauge/config.json");
    assert_eq!(
        config["architectures"],
        json!(["LlamaForSequenceClassification"])
    );
    assert_eq!(config["problem_type"], "regression");
    let map = read("out/gauge/model.safetensors.index.json")["weight_map"].clone();
    assert_eq!(map["score.weight"], "head.safetensors");
    for file in map.as_object().unwrap().values() {
        assert!(kitchen.path().join("out/gauge").join(text(file)).is_file());
    }
    assert!(kitchen.path().join("out/gauge/tokenizer.json").is_file());
    // Only the head was trained: the model's blob is the same numbers as before.
    let own = metrics(&kitchen, "gauge.metrics")["test"].clone();
    assert!(
        own["mse"].as_f64().unwrap() > 0.0 && own["rows"] == 36,
        "{own}"
    );
}

#[test]
fn rows_of_one_label_have_no_area_under_the_curve() {
    let kitchen = kitchen();
    let two =
        "{\"text\": \"loaf\", \"label\": \"yes\"}\n{\"text\": \"1 or 2\", \"label\": \"no\"}\n";
    kitchen.write("texts.jsonl", &two.repeat(4));
    kitchen.write("held.jsonl", &two[..two.find('\n').unwrap() + 1].repeat(3));
    let stages = "  probe: { kind: head, data: vectors, test: held_vectors, epochs: 2 }\n";
    kitchen.write("heads.yaml", &format!("{SHARED}{stages}"));
    let said = kitchen.say("run heads.yaml probe").expect(0);
    assert!(said.err.contains("`auc` is not defined"), "{}", said.err);
    let test = metrics(&kitchen, "probe.metrics")["test"].clone();
    assert_eq!(
        (&test["auc"], &test["majority"]),
        (&Value::Null, &json!(1.0))
    );
    assert!(test["undefined"]["auc"].is_string());
}

#[test]
fn what_makes_no_sense_is_refused_in_words() {
    let kitchen = kitchen();
    let one = "{\"text\": \"loaf\", \"label\": \"bread\"}\n";
    kitchen.write("one.jsonl", &one.repeat(3));
    let strange =
        "{\"text\": \"loaf\", \"label\": \"roll\"}\n{\"text\": \"1\", \"label\": \"number\"}\n";
    kitchen.write("strange.jsonl", strange);
    let empty = "{\"text\": \"\", \"label\": \"a\"}\n{\"text\": \"b\", \"label\": \"b\"}\n";
    kitchen.write("empty.jsonl", empty);
    let endless = format!(
        "{{\"text\": \"a\", \"label\": \"a\"}}\n{{\"text\": \"{}\", \"label\": \"b\"}}\n",
        "loaf ".repeat(600)
    );
    kitchen.write("endless.jsonl", &endless);
    let more = "  one: { kind: load_dataset, source: one.jsonl, format: labelled }
  strange: { kind: load_dataset, source: strange.jsonl, format: labelled }
  empty: { kind: load_dataset, source: empty.jsonl, format: labelled }
  long_texts: { kind: load_dataset, source: endless.jsonl, format: labelled }
  one_vector: { kind: features, model: base, data: one }
  strange_vectors: { kind: features, model: base, data: strange }
  others: { kind: features, model: other, data: held }
  lasts: { kind: features, model: base, data: held, pooling: last }
  shorts: { kind: features, model: base, data: held, max_length: 4 }
";
    for (name, stage, words) in [
        (
            "lonely",
            "kind: head, data: one_vector",
            "all rows have the label `bread`",
        ),
        (
            "stranger",
            "kind: head, data: vectors, test: strange_vectors",
            "has the label `roll`, which is no class of the head",
        ),
        (
            "mixed",
            "kind: head, data: vectors, test: others",
            "are of another model",
        ),
        (
            "pooled",
            "kind: head, data: vectors, test: lasts",
            "make both in one way",
        ),
        (
            "named",
            "kind: head, data: vectors, task: regression",
            "which is no number",
        ),
        (
            "first",
            "kind: features, model: base, data: texts, pooling: cls",
            "has seen no other token",
        ),
        (
            "pooler",
            "kind: classifier, model: base, data: texts, pooling: pooler",
            "has seen no other token",
        ),
        (
            "blank",
            "kind: features, model: base, data: empty",
            "is empty",
        ),
        (
            "unseen",
            "kind: classifier, model: thin, data: texts, test: strange, epochs: 400",
            "`test`: row 1 has the label `roll`",
        ),
        (
            "endless",
            "kind: classifier, model: thin, data: long_texts, epochs: 400",
            "row 2 of `data` has 512 tokens, and the model",
        ),
        (
            "shorter",
            "kind: head, data: vectors, test: shorts",
            "were cut to `max_length` 512 (keep_start), and those of `test` to `max_length` 4 (keep_start)",
        ),
    ] {
        kitchen.write(
            "wrong.yaml",
            &format!("{SHARED}{more}  {name}: {{ {stage} }}\n"),
        );
        let said = kitchen
            .say(&format!("run wrong.yaml {name} --json"))
            .expect(1);
        assert!(said.err.contains(words), "{name}: `{words}`:\n{}", said.err);
    }
    // What a recipe shows is refused before anything runs.
    for (stage, words) in [
        (
            "kind: head, data: vectors, activation: tanh",
            "with nothing for `activation` to follow",
        ),
        ("kind: head, data: texts", "`data`"),
        ("kind: classify, models: base, data: held", "`models`"),
        (
            "kind: classifier, model: thin, data: texts, train: norms",
            "`thin` has one (lora)",
        ),
        (
            "kind: classifier, model: base, data: texts, train: head, checkpointing: true",
            "leave `checkpointing` out",
        ),
        (
            "kind: classifier, model: base, data: texts, pooling: last, learning_rates: { scores: 1.0e-3 }",
            "(the nearest are score",
        ),
        (
            "kind: classifier, model: base, data: texts, train: [head.1]",
            "head.0",
        ),
        (
            "kind: classify, models: { probe: probe }, data: marks, task: regression",
            "`probe` was trained for classification",
        ),
    ] {
        let probe = "  probe: { kind: head, data: vectors, max_steps: 1 }\n";
        kitchen.write(
            "wrong.yaml",
            &format!("{SHARED}{probe}  wrong: {{ {stage} }}\n"),
        );
        let said = kitchen.say("check wrong.yaml");
        assert_ne!(said.code, Some(0), "{stage}");
        assert!(
            said.err.contains(words),
            "`{words}`:\n{}\n{}",
            said.out,
            said.err
        );
    }
}

#[test]
fn labels_that_mean_one_thing_are_one_class() {
    let kitchen = kitchen();
    let rows: String = ["1", "1.0", " 2", "2"]
        .iter()
        .zip(["loaf", "crust", "7 or 8", "9 or 1"])
        .map(|(label, text)| format!("{{\"text\": \"{text}\", \"label\": \"{label}\"}}\n"))
        .collect();
    kitchen.write("texts.jsonl", &rows);
    kitchen.write("held.jsonl", "{\"text\": \"loaf\", \"label\": 1.00}\n");
    let blank = "{\"text\": \"loaf\", \"label\": \"  \"}\n";
    kitchen.write("marks.jsonl", blank);
    let stages = "  probe: { kind: head, data: vectors, test: held_vectors, max_steps: 2 }
  tuned: { kind: classifier, model: thin, data: texts, test: held, max_steps: 1 }
  table: { kind: classify, models: { probe: probe, tuned: tuned }, data: held }
  blank: { kind: features, model: base, data: marks }
";
    kitchen.write("heads.yaml", &format!("{SHARED}{stages}"));
    kitchen.say("run heads.yaml table --json").expect(0);
    let table = metrics(&kitchen, "table");
    for name in ["probe", "tuned"] {
        assert_eq!(table["models"][name]["labels"], json!(["1", "2"]), "{name}");
        let own = metrics(&kitchen, &format!("{name}.metrics"))["test"].clone();
        assert_eq!(own["labels"], json!(["1", "2"]), "{name}");
        assert_eq!(own["confusion"][1], json!([0, 0]), "{name}");
    }
    let said = kitchen.say("run heads.yaml blank --json").expect(1);
    assert!(
        said.err.contains("row 1 of `data` has a label of nothing"),
        "{}",
        said.err
    );
}

#[test]
fn texts_that_were_cut_otherwise_are_told() {
    let kitchen = kitchen();
    let stages = "  short: { kind: features, model: base, data: texts, max_length: 4 }
  probe: { kind: head, data: short, max_steps: 2 }
  sorter: { kind: classifier, model: thin, data: texts, max_length: 4, max_steps: 1 }
  table: { kind: classify, models: { probe: probe, sorter: sorter }, data: held }
  same: { kind: classify, models: { probe: probe, sorter: sorter }, data: held, max_length: 4 }
";
    kitchen.write("heads.yaml", &format!("{SHARED}{stages}"));
    let said = kitchen.say("run heads.yaml table").expect(0).err;
    for name in ["probe", "sorter"] {
        let words = format!("`{name}` was trained on texts cut to `max_length` 4 (keep_start)");
        assert!(said.contains(&words), "{said}");
    }
    let said = kitchen.say("run heads.yaml same").expect(0).err;
    assert!(!said.contains("was trained on texts"), "{said}");
}

#[test]
fn a_head_on_quantized_weights_keeps_the_model_that_it_was_given() {
    let kitchen = kitchen();
    let stages = "  small: { kind: quantize, model: base }
  headed: { kind: classifier, model: small, data: texts, test: held, train: head, batch: 8, epochs: 2, learning_rate: 1.0e-2 }
  table: { kind: classify, models: headed, data: held }
";
    kitchen.write("heads.yaml", &format!("{SHARED}{stages}"));
    kitchen.say("run heads.yaml").expect(0);
    let (own, again) = (
        metrics(&kitchen, "headed.metrics"),
        metrics(&kitchen, "table"),
    );
    for measure in ["loss", "accuracy", "auc"] {
        let asked = again["models"]["headed"].get(measure);
        near(&own["test"][measure], asked.unwrap(), measure);
    }
}

#[test]
fn another_head_reads_no_text_again() {
    let kitchen = kitchen();
    let stages = "  probe: { kind: head, data: vectors, max_steps: 2 }\n";
    kitchen.write("heads.yaml", &format!("{SHARED}{stages}"));
    kitchen.say("run heads.yaml probe --json").expect(0);
    kitchen.write(
        "heads.yaml",
        &format!(
            "{SHARED}{}",
            stages.replace("max_steps: 2", "max_steps: 2, hidden: [4]")
        ),
    );
    let answer = kitchen.say("run heads.yaml probe --json").expect(0).json();
    assert_eq!(answer["counts"]["ran"], 1, "{}", answer["counts"]);
    assert_eq!(text(&stage(&answer, "vectors")["verdict"]), "cached");
}

//! Encoders through the whole program: BERT as a sentence encoder has it gets a head, adapts to texts of a domain, whole and by an adapter,
//! is measured, written and read again; and what can't take an encoder, or an encoder can't take, says so.

mod support;

use std::collections::BTreeMap;
use std::fs;

use formats::{Dtype, Weights};
use serde_json::{Value, json};
use support::artifacts::{outputs, stage};
use support::{Kitchen, text, tiny};

const SHARED: &str = "\
levain: 1
seed: 3
threads: 1
stages:
  bert: { kind: load_model, source: bert, dtype: f32 }
  domain: { kind: load_dataset, source: domain.jsonl }
  general: { kind: load_dataset, source: general.csv, format: labelled }
";

const STAGES: &str = "  headed: { kind: masked_lm, model: bert, data: general, train: head, learning_rate: 1.0e-2, batch: 4, epochs: 10 }
  adapted: { kind: masked_lm, model: headed, data: domain, learning_rate: 5.0e-3, batch: 4, epochs: 12, checkpointing: true }
  narrow: { kind: lora, model: headed, r: 4, targets: [query, output.dense] }
  bent: { kind: masked_lm, model: narrow, data: domain, learning_rate: 2.0e-2, batch: 4, epochs: 12 }
  on_domain: { kind: masked_lm_loss, models: { before: headed, after: adapted, bent: bent, narrow: narrow }, data: domain }
  on_general: { kind: masked_lm_loss, models: { before: headed, after: adapted }, data: general }
outputs:
  headed: { from: headed, to: out/headed }
  adapted: { from: adapted, to: out/adapted }
  bent: { from: bent, format: peft, to: out/bent }
";

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(4);
    tiny::encoder(&kitchen, "bert");
    let grains = ["rye", "wheat", "oat", "barley"];
    let line = |i: usize| {
        let text = format!(
            "the {} loaf rises and is warm, {} times",
            grains[i % 4],
            i % 5
        );
        format!("{}\n", json!({ "text": text }))
    };
    kitchen.write("domain.jsonl", &(0..12).map(line).collect::<String>());
    kitchen.write("general.csv", tiny::REVIEWS);
    kitchen
}

/// The tensors of a folder or file, as bytes.
fn tensors(kitchen: &Kitchen, path: &str) -> BTreeMap<String, Vec<u8>> {
    let weights = Weights::open(&kitchen.path().join(path)).unwrap();
    let infos = weights.infos();
    infos
        .map(|info| {
            let bytes = weights.bytes(&info.name).unwrap().to_vec();
            (info.name.clone(), bytes)
        })
        .collect()
}

fn read(kitchen: &Kitchen, path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(kitchen.path().join(path)).unwrap()).unwrap()
}

#[test]
fn an_encoder_gets_a_head_adapts_and_is_written() {
    let kitchen = kitchen();
    kitchen.write("encoder.yaml", &format!("{SHARED}{STAGES}"));
    let answer = kitchen.say("run encoder.yaml --json").expect(0).json();
    let made = |name: &str| outputs(&kitchen.cache(), stage(&answer, name), 4);
    let summary = |name: &str| made(name)["metrics"]["summary"].clone();
    let number = |of: &Value, model: &str, what: &str| of[model][what].as_f64().unwrap();

    let (domain, general) = (summary("on_domain"), summary("on_general"));
    let loss = |model: &str| number(&domain, model, "loss");
    assert!(loss("after") < 0.9 * loss("before"), "{domain}");
    assert!(loss("bent") < loss("before"), "{domain}");
    let away = (loss("narrow") / loss("before") - 1.0).abs();
    assert!(away < 1e-6, "a fresh adapter changes the loss by {away}");
    assert_ne!(
        number(&general, "after", "loss"),
        number(&general, "before", "loss")
    );
    for (scores, model) in [(&domain, "after"), (&domain, "bent"), (&general, "before")] {
        let (loss, perplexity) = (
            number(scores, model, "loss"),
            number(scores, model, "perplexity"),
        );
        assert!((perplexity / loss.exp() - 1.0).abs() < 1e-9);
        assert!((0.0..=1.0).contains(&number(scores, model, "token_accuracy")));
    }
    // All are asked for the same tokens.
    assert_eq!(domain["before"]["tokens"], domain["after"]["tokens"]);

    // The head alone was trained, and the encoder got its usual names.
    let before = tensors(&kitchen, "bert");
    let headed = tensors(&kitchen, "out/headed");
    assert_eq!(headed.len(), before.len() + 5);
    for (name, bytes) in &before {
        assert!(
            headed[&format!("bert.{name}")] == *bytes,
            "{name} was changed"
        );
    }
    let adapted = tensors(&kitchen, "out/adapted");
    for (name, bytes) in &headed {
        let still = name.starts_with("bert.pooler.") || name.ends_with("key.bias");
        assert_eq!(adapted[name] == *bytes, still, "{name}");
    }
    let config = read(&kitchen, "out/adapted/config.json");
    assert_eq!(config["architectures"], json!(["BertForMaskedLM"]));
    assert_eq!(config["hidden_dropout_prob"], 0.1);
    let tokenizer = read(&kitchen, "out/adapted/tokenizer_config.json");
    assert_eq!(tokenizer["mask_token"], "[MASK]");
    let model = &made("adapted")["model"]["summary"];
    assert_eq!(
        (&model["architecture"], &model["masked_head"]),
        (&json!("bert"), &json!(true))
    );

    // `output.dense` is that of layers, here, and PEFT must not find it elsewhere.
    let adapter = tensors(&kitchen, "out/bent/adapter_model.safetensors");
    assert_eq!(adapter.len(), 2 * 2 * 3);
    let name = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight";
    assert!(adapter.contains_key(name), "{:?}", adapter.keys());

    let config = read(&kitchen, "out/bent/adapter_config.json");
    assert_eq!(config["task_type"], Value::Null);
    let modules = config["target_modules"].as_array().unwrap();
    assert!(modules.contains(&json!("bert.encoder.layer.0.attention.output.dense")));

    // What was written is read again, and is the same.
    let again = SHARED.replace("source: bert", "source: out/adapted");
    kitchen.write(
        "again.yaml",
        &format!("{again}  on_domain: {{ kind: masked_lm_loss, models: {{ after: bert }}, data: domain }}\n"),
    );
    let answer = kitchen.say("run again.yaml --json").expect(0).json();
    let scores = outputs(&kitchen.cache(), stage(&answer, "on_domain"), 4);
    assert_eq!(scores["metrics"]["summary"]["after"], domain["after"]);

    let shown = kitchen
        .say("show encoder.yaml adapted --tokens")
        .expect(0)
        .out;
    assert!(
        shown.contains("[CLS]") && !shown.contains("cut off"),
        "{shown}"
    );
}

#[test]
fn the_wrong_architecture_is_found_before_anything_runs() {
    let kitchen = kitchen();
    tiny::model(&kitchen, "model");
    let refused: [(&str, &str, &[&str]); 5] = [
        (
            "measured",
            "kind: evaluate, models: bert, data: domain",
            &["an encoder (BERT)", "masked_lm"],
        ),
        (
            "tuned",
            "kind: sft, model: bert, data: domain",
            &["an encoder (BERT)"],
        ),
        (
            "told",
            "kind: generate, model: bert, prompts: sums",
            &["an encoder (BERT)"],
        ),
        (
            "masked",
            "kind: masked_lm, model: base, data: domain",
            &["for an encoder", "sft"],
        ),
        (
            "weighed",
            "kind: masked_lm_loss, models: base, data: domain",
            &["for an encoder", "evaluate"],
        ),
    ];
    let mut recipe = SHARED.to_owned()
        + "  base: { kind: load_model, source: model, dtype: f32 }\n  \
           sums: { kind: load_dataset, source: rows.jsonl }\n";
    let first = recipe.lines().count() + 1;
    for (name, body, _) in refused {
        recipe += &format!("  {name}: {{ {body} }}\n");
    }
    kitchen.write("refused.yaml", &recipe);
    let problems = kitchen.say("check refused.yaml --json").expect(2).json()["problems"].clone();
    let problems = problems.as_array().unwrap();
    assert_eq!(problems.len(), refused.len(), "{problems:#?}");
    for (index, ((name, _, words), problem)) in refused.iter().zip(problems).enumerate() {
        assert_eq!(problem["place"]["line"], first + index, "{name}");
        let said = text(&problem["message"]);
        for word in *words {
            assert!(
                said.contains(word),
                "{name}: `{word}` is missing in: {said}"
            );
        }
    }
}

#[test]
fn what_does_not_go_with_an_encoder_says_so() {
    let kitchen = kitchen();
    tiny::model(&kitchen, "model");
    let refused: [(&str, &str, &[&str]); 6] = [
        (
            "blind",
            "kind: masked_lm_loss, models: { bare: bert }, data: domain",
            &["`bare`", "no head for masked tokens", "train: head"],
        ),
        (
            "headless",
            "kind: masked_lm, model: narrow, data: domain",
            &["give it a head first"],
        ),
        (
            "long",
            "kind: masked_lm, model: bert, data: lengthy",
            &["96 positions", "`max_length` to 96 or less"],
        ),
        (
            "nothing",
            "kind: masked_lm, model: bert, data: domain, train: [pooler]",
            &["pooler"],
        ),
        (
            "unread",
            "kind: masked_lm, model: spoilt, data: domain",
            &["query.weight", "not finite"],
        ),
        (
            "cramped",
            "kind: load_model, source: cramped",
            &["special tokens of an encoder"],
        ),
    ];
    let mut recipe = SHARED.to_owned()
        + "  base: { kind: load_model, source: model, dtype: f32 }\n  \
           sums: { kind: load_dataset, source: rows.jsonl }\n  \
           lengthy: { kind: load_dataset, source: lengthy.jsonl }\n  \
           spoilt: { kind: load_model, source: spoilt, dtype: f32 }\n  \
           narrow: { kind: lora, model: bert, r: 2 }\n";
    for (name, body, _) in refused {
        recipe += &format!("  {name}: {{ {body} }}\n");
    }
    let long = json!({ "text": "rye and oat ".repeat(30) });
    kitchen.write("lengthy.jsonl", &format!("{long}\n"));
    // An encoder with a language model's tokenizer.
    tiny::encoder(&kitchen, "cramped");
    let other = fs::read(kitchen.path().join("model/tokenizer.json")).unwrap();
    fs::write(kitchen.path().join("cramped/tokenizer.json"), other).unwrap();
    // Of no number in attention some of libtorch's ways make zeros.
    tiny::encoder(&kitchen, "spoilt");
    let path = kitchen.path().join("spoilt/model.safetensors");
    let weights = Weights::open(&path).unwrap();
    let tensors: Vec<_> = (weights.infos())
        .map(|info| {
            let mut bytes = weights.bytes(&info.name).unwrap().to_vec();
            if info.name.ends_with("0.attention.self.query.weight") {
                bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }
            (info.name.clone(), Dtype::F32, info.shape.clone(), bytes)
        })
        .collect();
    drop(weights);
    formats::safetensors::write_file(&path, &tensors, &[("format", "pt")]).unwrap();
    kitchen.write("refused.yaml", &recipe);
    let said = kitchen
        .say("run refused.yaml --json --keep-going")
        .expect(1);
    assert!(
        !said.err.contains("panicked") && !said.err.contains("BUG"),
        "{}",
        said.err
    );
    let answer = said.json();
    let failures: BTreeMap<String, String> = (answer["failures"].as_array().unwrap().iter())
        .map(|failure| (text(&failure["stage"]), text(&failure["error"])))
        .collect();
    for (name, _, words) in refused {
        let error = failures.get(name);
        let error = error.unwrap_or_else(|| panic!("`{name}` did not fail: {failures:#?}"));
        for word in words {
            assert!(
                error.contains(word),
                "{name}: `{word}` is missing in: {error}"
            );
        }
    }
    assert_eq!(failures.len(), refused.len(), "{failures:#?}");
}

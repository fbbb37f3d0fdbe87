//! Encoders in four and eight bits, merged adapters on them, and adapters on them from outside, by the real program: names are those of the
//! files that came in, numbers are those of the parts, and what can't be is refused with its way out.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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
  headed: { kind: masked_lm, model: bert, data: general, train: head, learning_rate: 1.0e-2, batch: 4, epochs: 4 }
  small: { kind: quantize, model: bert }
  four: { kind: quantize, model: headed }
  eight: { kind: quantize, model: headed, scheme: int8, skip: [output.dense] }
  thin_four: { kind: lora, model: four, r: 4, targets: [query, output.dense] }
";

const STAGES: &str = "  thin: { kind: lora, model: headed, r: 4, dora: true }
  scaled_fresh: { kind: ia3, model: eight, targets: [key, value, intermediate.dense, layer.1.output.dense], feedforward: layer.1.output.dense }
  bent: { kind: masked_lm, model: thin, data: domain, learning_rate: 2.0e-2, batch: 4, epochs: 8 }
  bent_four: { kind: masked_lm, model: thin_four, data: domain, learning_rate: 2.0e-2, batch: 4, epochs: 8, checkpointing: true }
  scaled: { kind: masked_lm, model: scaled_fresh, data: domain, learning_rate: 3.0e-2, batch: 4, epochs: 12 }
  plain: { kind: merge, model: bent }
  unpacked: { kind: merge, model: bent_four, into: dequantized }
  restored: { kind: merge, model: bent_four, base: headed }
  unscaled: { kind: merge, model: scaled, into: dequantized }
  thin_small: { kind: lora, model: small, r: 2, targets: dense }
  judge: { kind: classifier, model: thin_small, data: general, pooling: pooler, batch: 4, max_steps: 3, learning_rate: 1.0e-2 }
  loss:
    kind: masked_lm_loss
    data: domain
    models: { headed: headed, four: four, eight: eight, bent: bent, plain: plain, bent_four: bent_four, unpacked: unpacked, restored: restored, \
scaled: scaled, unscaled: unscaled }
outputs:
  small: { from: small, to: out/small }
  four: { from: four, to: out/four }
  unpacked: { from: unpacked, to: out/unpacked }
  adapter: { from: bent_four, format: peft, to: out/adapter }
  fresh: { from: thin_small, format: peft, to: out/fresh }
  judge: { from: judge, format: peft, to: out/judge }
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

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// The tensors of a file or folder.
fn tensors(path: &Path) -> Vec<Tensor> {
    let weights = Weights::open(path).unwrap();
    let infos = weights.infos();
    infos
        .map(|info| {
            let formats::Stored::Plain(dtype) = info.stored else {
                panic!("{} is of a GGUF file", info.name)
            };
            let bytes = weights.bytes(&info.name).unwrap().to_vec();
            (info.name.clone(), dtype, info.shape.clone(), bytes)
        })
        .collect()
}

fn names(kitchen: &Kitchen, path: &str) -> Vec<String> {
    let all = tensors(&kitchen.path().join(path)).into_iter();
    all.map(|(name, ..)| name).collect()
}

fn read(kitchen: &Kitchen, path: &str) -> Value {
    serde_json::from_slice(&fs::read(kitchen.path().join(path)).unwrap()).unwrap()
}

/// The summary of an output of a stage.
fn summary(kitchen: &Kitchen, answer: &Value, name: &str, output: &str) -> Value {
    let made = outputs(&kitchen.cache(), stage(answer, name), 0);
    made[output]["summary"].clone()
}

fn loss(scores: &Value, model: &str) -> f64 {
    let number = scores[model]["loss"].as_f64();
    number.unwrap_or_else(|| panic!("`{model}` in {scores}"))
}

#[track_caller]
fn near(found: f64, wanted: f64, tolerance: f64, what: &str) {
    assert!(
        (found - wanted).abs() <= tolerance * wanted.abs(),
        "{what}: {found} and {wanted}"
    );
}

#[test]
fn encoders_are_packed_adapted_merged_and_read_again() {
    let kitchen = kitchen();
    kitchen.write("encoders.yaml", &format!("{SHARED}{STAGES}"));
    let answer = kitchen.say("run encoders.yaml --json").expect(0).json();
    let said = |name: &str, output: &str| summary(&kitchen, &answer, name, output);

    // Packed under the names of the file, all but what is outside of the layers.
    let small = tensors(&kitchen.path().join("out/small"));
    let before = tensors(&kitchen.path().join("bert"));
    let query = "encoder.layer.0.attention.self.query";
    for (part, dtype) in [
        ("weight", Dtype::U8),
        ("weight.absmax", Dtype::U8),
        ("weight.nested_absmax", Dtype::F32),
        ("weight.quant_state.bitsandbytes__nf4", Dtype::U8),
        ("bias", Dtype::F32),
    ] {
        let name = format!("{query}.{part}");
        let found = small.iter().find(|(own, ..)| *own == name);
        let found = found.unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(found.1, dtype, "{name}");
    }
    for tensor in &before {
        let linear = tensor.0.ends_with(".weight")
            && tensor.0.starts_with("encoder.")
            && tensor.2.len() == 2;
        // What is not packed is the same to the bit.
        assert_eq!(small.contains(tensor), !linear, "{}", tensor.0);
    }
    assert_eq!(small.len(), before.len() + 12 * 5);
    let config = read(&kitchen, "out/small/config.json");
    let quantization = &config["quantization_config"];
    assert_eq!(quantization["load_in_4bit"], true);
    assert_eq!(
        quantization["llm_int8_skip_modules"],
        json!(["pooler.dense", "cls", "classifier"])
    );
    assert_eq!(config["architectures"], json!(["BertModel"]));
    for (name, word, count) in [
        ("small", "nf4", 12),
        ("four", "nf4", 12),
        ("eight", "int8", 8),
    ] {
        assert_eq!(said(name, "model")["quantized"], word, "{name}");
        assert_eq!(said(name, "metrics")["quantized"], count, "{name}");
    }
    let four = names(&kitchen, "out/four");
    assert!(four.contains(&format!("bert.{query}.weight.absmax")));
    assert!(
        four.iter()
            .all(|name| name.starts_with("bert.") || name.starts_with("cls."))
    );

    // Rounding changes something, four bits more than eight; merged is unmerged.
    let scores = said("loss", "metrics");
    let of = |model: &str| loss(&scores, model);
    for name in ["four", "eight"] {
        assert_ne!(of(name), of("headed"), "{scores}");
        near(of(name), of("headed"), 0.2, name);
    }
    let error = |name: &str| said(name, "metrics")["error"].as_f64().unwrap();
    assert!(error("eight") < 0.5 * error("four"));
    for (name, adapted) in [
        ("bent", "headed"),
        ("bent_four", "four"),
        ("scaled", "eight"),
    ] {
        assert!(of(name) < of(adapted), "{name}: {scores}");
    }
    for (before, after, tolerance, modules) in [
        ("bent", "plain", 1e-5, 12),
        ("bent_four", "unpacked", 1e-5, 6),
        ("bent_four", "restored", 0.5, 6),
        ("scaled", "unscaled", 1e-5, 7),
    ] {
        near(of(after), of(before), tolerance, after);
        let metrics = said(after, "metrics");
        assert_eq!(metrics["modules"], modules, "{after}: {metrics}");
        assert_eq!(metrics["rounding"], 0.0, "{after}: {metrics}");
        let model = said(after, "model");
        assert!(model["quantized"].is_null(), "{after}: {model}");
        assert_eq!(model["masked_head"], true);
    }
    assert_ne!(of("restored"), of("unpacked"));

    // Adapters have the names of the class that opens their base: alone, with a head for masked tokens, and under a classifier's head.
    let own = names(&kitchen, "out/adapter/adapter_model.safetensors");
    assert!(
        own.iter()
            .all(|name| name.starts_with("base_model.model.bert.encoder."))
    );
    let fresh = names(&kitchen, "out/fresh/adapter_model.safetensors");
    assert_eq!(fresh.len(), 2 * 2 * 3);
    assert!(
        fresh
            .iter()
            .all(|name| name.starts_with("base_model.model.encoder."))
    );
    let targets = read(&kitchen, "out/fresh/adapter_config.json")["target_modules"].clone();
    let dense = json!("encoder.layer.0.attention.output.dense");
    assert!(targets.as_array().unwrap().contains(&dense), "{targets}");
    let judge = names(&kitchen, "out/judge/adapter_model.safetensors");
    assert_eq!(judge.len(), fresh.len() + 2);
    let class = "base_model.model.bert.encoder.layer.0.intermediate.dense.lora_A.weight";
    assert!(judge.contains(&class.to_owned()), "{judge:?}");

    // What was written is read again, and is the same.
    kitchen.write(
        "again.yaml",
        "\
levain: 1
seed: 3
threads: 1
stages:
  four: { kind: load_model, source: out/four, dtype: f32 }
  unpacked: { kind: load_model, source: out/unpacked, dtype: f32 }
  domain: { kind: load_dataset, source: domain.jsonl }
  loss: { kind: masked_lm_loss, models: { four: four, unpacked: unpacked }, data: domain }
",
    );
    let answer = kitchen.say("run again.yaml --json").expect(0).json();
    let again = summary(&kitchen, &answer, "loss", "metrics");
    for name in ["four", "unpacked"] {
        assert_eq!(again[name], scores[name], "{name}");
    }
    let model = summary(&kitchen, &answer, "four", "model");
    assert_eq!(model["quantized"], "nf4");
    let model = summary(&kitchen, &answer, "unpacked", "model");
    assert!(model["quantized"].is_null(), "{model}");
}

/// The adapter of `from` in a folder of its own, with other settings and names.
fn adapter(kitchen: &Kitchen, from: &str, to: &str, settings: &Value, name: fn(&str) -> String) {
    let (from, to) = (kitchen.path().join(from), kitchen.path().join(to));
    fs::create_dir_all(&to).unwrap();
    let all: Vec<Tensor> = (tensors(&from.join("adapter_model.safetensors")).into_iter())
        .map(|(own, dtype, shape, bytes)| (name(&own), dtype, shape, bytes))
        .collect();
    let path = to.join("adapter_model.safetensors");
    formats::safetensors::write_file(&path, &all, &[("format", "pt")]).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    for (key, value) in settings.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
}

#[test]
fn adapters_from_outside_go_on_encoders() {
    let kitchen = kitchen();
    let made = "  bent: { kind: masked_lm, model: thin_four, data: domain, learning_rate: 2.0e-2, batch: 4, epochs: 2 }
  loss: { kind: masked_lm_loss, models: { bent: bent }, data: domain }
  wide: { kind: lora, model: four, r: 2 }
outputs:
  adapter: { from: bent, format: peft, to: out/adapter }
  wide: { from: wide, to: out/wide }
";
    kitchen.write("made.yaml", &format!("{SHARED}{made}"));
    let answer = kitchen.say("run made.yaml --json").expect(0).json();
    let wanted = loss(&summary(&kitchen, &answer, "loss", "metrics"), "bent");

    let same = |name: &str| name.to_owned();
    let bare = |name: &str| name.replace(".model.bert.", ".model.");
    let copy = |to: &str, settings: Value, name: fn(&str) -> String| {
        adapter(&kitchen, "out/adapter", to, &settings, name);
    };
    // As PEFT names them on `AutoModel`, with its words for the task and the class.
    let class = json!({ "base_model_class": "BertModel", "parent_library": "transformers.models.bert.modeling_bert" });
    let targets = json!([
        "query",
        "encoder.layer.0.attention.output.dense",
        "output.dense"
    ]);
    let settings = json!({ "task_type": "FEATURE_EXTRACTION", "auto_mapping": class, "target_modules": targets });
    copy("alone", settings, bare);
    copy("task", json!({ "task_type": "SEQ_CLS" }), same);
    copy("words", json!({ "task_type": "CAUSAL_LM" }), same);
    copy("saved", json!({ "modules_to_save": ["classifier"] }), same);
    copy(
        "other",
        json!({ "target_modules": ["query", "q_proj"] }),
        same,
    );
    copy(
        "fewer",
        json!({ "target_modules": ["query", "key", "output.dense"] }),
        same,
    );
    let shared = "  ours: { kind: load_adapter, model: four, source: out/adapter }
  theirs: { kind: load_adapter, model: four, source: alone }
  more: { kind: masked_lm, model: theirs, data: domain, learning_rate: 1.0e-2, batch: 4, max_steps: 2 }
  plain: { kind: merge, model: theirs, into: dequantized }
  on_alone: { kind: load_adapter, model: bert, source: alone }
  merged: { kind: merge, model: on_alone }
  vectors: { kind: features, model: on_alone, data: general }
  loss: { kind: masked_lm_loss, models: { ours: ours, theirs: theirs, more: more, plain: plain }, data: domain }
  wide: { kind: load_adapter, model: four, source: wide }
outputs:
  ours: { from: ours, format: peft, to: out/ours }
  theirs: { from: theirs, format: peft, to: out/theirs }
  merged: { from: merged, to: out/merged }
";
    kitchen.write("loaded.yaml", &format!("{SHARED}{shared}"));
    // Whoever wrote the file may have had no head; an adapter names its base in either form.
    let everything = json!({ "target_modules": "all-linear" });
    adapter(&kitchen, "out/wide", "wide", &everything, same);
    let base = |folder: &str| fs::read(kitchen.path().join(folder).join("levain_base.json"));
    assert_eq!(base("out/wide").unwrap(), base("out/adapter").unwrap());
    let said = kitchen.say("run loaded.yaml --json").expect(0);
    let told = "mean bert.pooler.dense and cls.predictions.transform.dense, too";
    assert!(said.err.contains(told), "{}", said.err);
    assert_eq!(said.err.matches("too, of which the file").count(), 1);
    let answer = said.json();
    let scores = summary(&kitchen, &answer, "loss", "metrics");
    near(loss(&scores, "ours"), wanted, 1e-9, "ours");
    near(loss(&scores, "theirs"), wanted, 1e-9, "theirs");
    near(loss(&scores, "plain"), wanted, 1e-5, "plain");
    assert_ne!(loss(&scores, "more"), wanted, "{scores}");
    let model = summary(&kitchen, &answer, "theirs", "model");
    assert_eq!((&model["modules"], &model["r"]), (&json!(6), &json!(4)));
    // Kept byte for byte.
    for (from, to) in [("out/adapter", "out/ours"), ("alone", "out/theirs")] {
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let bytes = |folder: &str| fs::read(kitchen.path().join(folder).join(file)).unwrap();
            assert_eq!(bytes(from), bytes(to), "{from}/{file}");
        }
    }
    // Merged into a file without `bert.` in its names, which has none afterwards.
    let plain = |path: &str| -> BTreeMap<String, Vec<u8>> {
        let all = tensors(&kitchen.path().join(path)).into_iter();
        all.map(|(name, _, _, bytes)| (name, bytes)).collect()
    };
    let (before, after) = (plain("bert"), plain("out/merged"));
    assert!(before.keys().eq(after.keys()));
    let changed = before
        .iter()
        .filter(|(name, bytes)| after[*name] != **bytes);
    let changed: Vec<&str> = changed.map(|(name, _)| name.as_str()).collect();
    assert_eq!(changed.len(), 6, "{changed:?}");

    let wrong = "  task: { kind: load_adapter, model: four, source: task }
  words: { kind: load_adapter, model: four, source: words }
  saved: { kind: load_adapter, model: four, source: saved }
  other: { kind: load_adapter, model: four, source: other }
  fewer: { kind: load_adapter, model: four, source: fewer }
  elsewhere: { kind: load_adapter, model: bert, source: out/adapter }
";
    kitchen.write("wrong.yaml", &format!("{SHARED}{wrong}"));
    let said = kitchen.say("run wrong.yaml --json --keep-going").expect(1);
    let answer = said.json();
    let failures: BTreeMap<String, String> = (answer["failures"].as_array().unwrap().iter())
        .map(|failure| (text(&failure["stage"]), text(&failure["error"])))
        .collect();
    for (name, words) in [
        ("task", "task_type is SEQ_CLS, and `model` is an encoder"),
        ("words", "task_type is CAUSAL_LM, and `model` is an encoder"),
        ("saved", "load its encoder, saved without the head"),
        ("other", "no linear module is called \"q_proj\""),
        (
            "fewer",
            "bert.encoder.layer.0.attention.self.key.lora_A.weight is missing",
        ),
        ("elsewhere", "which has other weights"),
    ] {
        let error = &failures[name];
        assert!(
            error.contains(words),
            "{name}: `{words}` is not in: {error}"
        );
        assert!(!error.contains("BUG"), "{name}: {error}");
    }
    assert!(failures["fewer"].contains("(an encoder; layers: 2, width: 16"));
    assert_eq!(failures.len(), 6, "{failures:#?}");
}

#[test]
fn what_can_not_be_is_told_before_anything_runs() {
    let kitchen = kitchen();
    let stages = "  thin: { kind: lora, model: headed, r: 4 }
  twice: { kind: quantize, model: small }
  told: { kind: quantize, model: bert, data: domain }
  merged: { kind: merge, model: thin, data: domain }
  bare: { kind: merge, model: bert }
  baseless: { kind: merge, model: thin_four }
  whole: { kind: masked_lm, model: four, data: domain }
  second: { kind: load_adapter, model: thin, source: bert }
  wrong: { kind: quantize, model: bert, skip: q_proj }
  lost: { kind: lora, model: bert, targets: v_proj }
  scaled: { kind: ia3, model: bert }
  narrow: { kind: bottleneck, model: bert }
  behind: { kind: prefix_tuning, model: bert, virtual_tokens: 2 }
  continued: { kind: sft, model: bert, data: domain }
  asked: { kind: evaluate, models: bert, data: domain }
";
    kitchen.write("wrong.yaml", &format!("{SHARED}{stages}"));
    let said = kitchen.say("check wrong.yaml").expect(2);
    for words in [
        "`small` is quantized already (nf4)",
        "`bert` is an encoder (BERT), which predicts no next token",
        "`thin` is an encoder (BERT), which predicts no next token",
        "measure the encoder before and after with `masked_lm_loss`",
        "`bert` has no adapter, so there is nothing to merge",
        "Give the model that was quantized as `base`",
        "the weights of `four` are quantized (nf4) and can't be trained",
        "`thin` has an adapter already (lora)",
        "no linear module is called \"q_proj\"",
        "no linear module is called \"v_proj\"",
        "PEFT's for an encoder (BERT) are `targets: [key, value, output.dense]`",
    ] {
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }
    // What takes language models only says so at the name of the encoder.
    let count = |words: &str| said.err.matches(words).count();
    assert_eq!(
        count("this adapter is for language models"),
        2,
        "{}",
        said.err
    );
    assert_eq!(count("this takes a language model"), 2, "{}", said.err);
}

#[test]
fn packed_encoders_that_lie_are_refused() {
    let kitchen = kitchen();
    let out = "outputs:\n  small: { from: small, to: out/small }\n";
    kitchen.write("made.yaml", &format!("{SHARED}{out}"));
    kitchen.say("run made.yaml").expect(0);
    let scales = "encoder.layer.1.output.dense.weight.nested_absmax";
    let path = kitchen.path().join("out/small/model.safetensors");
    let mut all = tensors(&path);
    let found = all.iter_mut().find(|(name, ..)| name == scales).unwrap();
    found.3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::remove_file(&path).unwrap();
    formats::safetensors::write_file(&path, &all, &[("format", "pt")]).unwrap();
    kitchen.write(
        "lies.yaml",
        "levain: 1\nstages:\n  small: { kind: load_model, source: out/small }\n",
    );
    let said = kitchen.say("run lies.yaml").expect(1);
    for words in [scales, "which is no scale", "quantize the model again"] {
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }
}

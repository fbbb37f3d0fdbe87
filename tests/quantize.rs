//! `quantize` by the real program on a tiny model: what it does to the loss, fields that are spelled out, and numbers that are none.

mod support;

use std::fs;

use formats::{Dtype, Weights};
use serde_json::Value;
use support::artifacts::{outputs, stage};
use support::{Kitchen, tiny};

const RECIPE: &str = "\
levain: 1
seed: 17
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  chats: { kind: load_dataset, source: chats.jsonl }
  small: { kind: quantize, model: base }
  spelled: { kind: quantize, model: base, block: 64, double_quant: true, max_length: 1024 }
  told: { kind: quantize, model: base, data: chats }
  eight: { kind: quantize, model: base, scheme: int8, skip: q_proj, data: chats, micro_batch: 3 }
  kept: { kind: quantize, model: base, skip: [layers.0, '*.down_proj'] }
  scores: { kind: evaluate, models: { base: base, told: told, eight: eight }, data: chats }
";

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    tiny::scale(&kitchen.path().join("model"), 4.0);
    kitchen.write("chats.jsonl", &tiny::chats(8));
    kitchen
}

#[test]
fn the_loss_before_and_after_is_that_of_an_evaluation() {
    let kitchen = kitchen();
    kitchen.write("recipe.yaml", RECIPE);
    let answer = kitchen.say("run recipe.yaml --json").expect(0).json();
    let metrics = |name: &str| -> Value {
        let made = outputs(&kitchen.cache(), stage(&answer, name), 0);
        made["metrics"]["summary"].clone()
    };
    let number = |summary: &Value, name: &str| {
        let number = summary[name].as_f64();
        number.unwrap_or_else(|| panic!("`{name}` in {summary}"))
    };
    let scores = metrics("scores");
    let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 5e-3;
    for name in ["told", "eight"] {
        let found = metrics(name);
        let (before, after) = (number(&found, "loss_before"), number(&found, "loss_after"));
        assert!(near(before, number(&scores["base"], "loss")), "{found}");
        assert!(near(after, number(&scores[name], "loss")), "{found}");
        assert_eq!(found["tokens"], scores["base"]["tokens"]);
        let (mean, most) = (number(&found, "kl"), number(&found, "kl_max"));
        assert!(0.0 < mean && mean <= most, "{found}");
    }
    // Eight bits are nearer than four.
    assert!(number(&metrics("eight"), "kl") < number(&metrics("told"), "kl"));
    let counts = ["small", "eight", "kept"].map(|name| metrics(name)["quantized"].clone());
    assert_eq!(counts, [14, 12, 6].map(Value::from));

    // Rows change nothing of the model, and what is spelled out is what was left out.
    let of = |name: &str, output: &str| stage(&answer, name)["outputs"][output].clone();
    assert_eq!(of("told", "model"), of("small", "model"));
    assert_ne!(of("told", "metrics"), of("small", "metrics"));
    assert!(metrics("small")["kl"].is_null());
    let key = |name: &str| stage(&answer, name)["key"].clone();
    assert_eq!(key("spelled"), key("small"));
    assert_ne!(key("told"), key("small"));

    let shown = kitchen.say("show recipe.yaml told.metrics").expect(0).out;
    for words in ["loss_after", "largest change", "3 of 14 quantized tensors"] {
        assert!(shown.contains(words), "`{words}`:\n{shown}");
    }
}

#[test]
fn packed_weights_say_themselves_what_they_are() {
    let kitchen = kitchen();
    kitchen.write(
        "pack.yaml",
        "levain: 1\nstages:\n  base: { kind: load_model, source: model, dtype: f32 }\n  small: { kind: quantize, model: base }\n\
         outputs:\n  small: { from: small, to: out/small }\n",
    );
    kitchen.say("run pack.yaml").expect(0);
    kitchen.write(
        "load.yaml",
        "levain: 1\nstages:\n  small: { kind: load_model, source: out/small, dtype: f32 }\n",
    );
    let warning = "are stored in four bits, and there is no quantization_config";
    let said = kitchen.say("run load.yaml").expect(0);
    assert!(!said.err.contains(warning), "{}", said.err);
    let path = kitchen.path().join("out/small/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let taken = config
        .as_object_mut()
        .unwrap()
        .remove("quantization_config");
    assert_eq!(taken.unwrap()["load_in_4bit"], true);
    kitchen.write("out/small/config.json", &config.to_string());
    let said = kitchen.say("run load.yaml").expect(0);
    assert!(said.err.contains(warning), "{}", said.err);
}

#[test]
fn numbers_that_are_none_are_refused_in_every_tensor() {
    for name in ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"] {
        let kitchen = kitchen();
        let path = kitchen.path().join("model/model.safetensors");
        let tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = {
            let weights = Weights::open(&path).unwrap();
            let infos = weights.infos();
            infos
                .map(|info| {
                    let mut numbers = weights.read_f32(&info.name).unwrap();
                    if info.name == name {
                        numbers[3] = f32::NAN;
                    }
                    let bytes = Dtype::F32.from_f32(&numbers).unwrap();
                    (info.name.clone(), Dtype::F32, info.shape.clone(), bytes)
                })
                .collect()
        };
        fs::remove_file(&path).unwrap();
        formats::safetensors::write_file(&path, &tensors, &[("format", "pt")]).unwrap();
        kitchen.write("recipe.yaml", RECIPE);
        let said = kitchen.say("run recipe.yaml small").expect(1);
        assert!(
            said.err.contains(name) && said.err.contains("finite"),
            "{}",
            said.err
        );
    }
}

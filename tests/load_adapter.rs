//! Adapters from outside, by the real program on a tiny model: what an output wrote is loaded, asked, trained further and merged as what it
//! was; another base is found; files that lie are refused by name.

mod support;

use std::fs;
use std::path::Path;

use formats::{Dtype, Weights};
use serde_json::{Value, json};
use support::artifacts::{outputs, stage};
use support::{Kitchen, text, tiny};

const FOLDER: &str = "\
levain: 1
seed: 3
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  chats: { kind: load_dataset, source: chats.jsonl }
";

const MADE: &str = "  fresh_thin: { kind: lora, model: base, r: 4, rslora: true, targets: [q_proj, down_proj] }
  fresh_directed: { kind: lora, model: base, r: 2, dora: true }
  fresh_scaled: { kind: ia3, model: base }
  thin: { kind: sft, model: fresh_thin, data: chats, learning_rate: 1.0e-2, batch: 4, epochs: 2 }
  directed: { kind: sft, model: fresh_directed, data: chats, learning_rate: 1.0e-2, batch: 4, epochs: 2 }
  scaled: { kind: sft, model: fresh_scaled, data: chats, learning_rate: 2.0e-2, batch: 4, epochs: 4 }
";

const LOADED: &str = "  thin: { kind: load_adapter, model: base, source: out/thin }
  directed: { kind: load_adapter, model: base, source: out/directed }
  scaled: { kind: load_adapter, model: base, source: out/scaled }
";

const USED: &str = "  more_thin: { kind: sft, model: thin, data: chats, learning_rate: 1.0e-2, batch: 4, max_steps: 2 }
  more_directed: { kind: sft, model: directed, data: chats, learning_rate: 1.0e-2, batch: 4, max_steps: 2 }
  more_scaled: { kind: sft, model: scaled, data: chats, learning_rate: 1.0e-2, batch: 4, max_steps: 2 }
  merged_thin: { kind: merge, model: thin }
  merged_directed: { kind: merge, model: directed }
  merged_scaled: { kind: merge, model: scaled }
  scores: { kind: evaluate, data: chats, models: { base: base, thin: thin, directed: directed, scaled: scaled, merged_thin: merged_thin, \
merged_directed: merged_directed, merged_scaled: merged_scaled } }
";

const NAMES: [&str; 3] = ["thin", "directed", "scaled"];

/// Outputs of the three adapters into folders below `to`.
fn written(to: &str) -> String {
    let line =
        |name: &str| format!("  {name}: {{ from: {name}, format: peft, to: {to}/{name} }}\n");
    "outputs:\n".to_owned() + &NAMES.map(line).concat()
}

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    tiny::scale(&kitchen.path().join("model"), 4.0);
    kitchen.write("chats.jsonl", &tiny::chats(12));
    kitchen
}

fn bytes(kitchen: &Kitchen, path: &str) -> Vec<u8> {
    let path = kitchen.path().join(path);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn what_was_exported_is_loaded_as_what_it_was() {
    let kitchen = kitchen();
    kitchen.write(
        "made.yaml",
        &format!("{FOLDER}{MADE}{USED}{}", written("out")),
    );
    kitchen.write(
        "loaded.yaml",
        &format!("{FOLDER}{LOADED}{USED}{}", written("again")),
    );
    let made = kitchen.say("run made.yaml --json").expect(0).json();
    // Into a cache that never saw the trainings.
    let loaded = kitchen.say("run loaded.yaml --json --cache other");
    let loaded = loaded.expect(0).json();
    let other = kitchen.path().join("other");

    let of =
        |answer: &Value, cache: &Path, name: &str| outputs(cache, stage(answer, name), usize::MAX);
    let ours = of(&made, &kitchen.cache(), "scores");
    let theirs = of(&loaded, &other, "scores");
    assert_eq!(ours["metrics"]["summary"], theirs["metrics"]["summary"]);
    for name in NAMES {
        let summary = &theirs["metrics"]["summary"];
        let loss = |model: &str| summary[model]["loss"].as_f64().unwrap();
        assert!(loss(name) < loss("base"), "{name}: {summary}");
        let merged = loss(&format!("merged_{name}")) / loss(name);
        assert!((merged - 1.0).abs() < 1e-5, "{name}: {merged}");

        // Training goes on as if it had never been away.
        let more = format!("more_{name}");
        let weights = |made: Value| made["model"]["files"]["adapter_model.safetensors"].clone();
        let a = weights(of(&made, &kitchen.cache(), &more));
        let b = weights(of(&loaded, &other, &more));
        assert!(a.is_object());
        assert_eq!(a, b, "{name}");

        // Exported again it is byte for byte what it was.
        for file in [
            "adapter_model.safetensors",
            "adapter_config.json",
            "levain_base.json",
        ] {
            let (a, b) = (format!("out/{name}/{file}"), format!("again/{name}/{file}"));
            assert_eq!(bytes(&kitchen, &a), bytes(&kitchen, &b), "{a}");
        }
        // And says what it is as if it had been made here.
        let facts = |answer: &Value, cache: &Path, name: &str| {
            let summary = of(answer, cache, name)["model"]["summary"].clone();
            ["adapter", "r", "alpha", "modules", "trainable", "dora"]
                .map(|word| summary[word].clone())
        };
        let fresh = format!("fresh_{name}");
        assert_eq!(
            facts(&made, &kitchen.cache(), &fresh),
            facts(&loaded, &other, name)
        );
    }

    // The base by its artifact and by the content of its weights.
    let said: Value =
        serde_json::from_slice(&bytes(&kitchen, "out/thin/levain_base.json")).unwrap();
    let base = &stage(&made, "base")["outputs"]["model"];
    assert_eq!(&said["artifact"], base);
    let weights = blake3::hash(&bytes(&kitchen, "model/model.safetensors"));
    assert_eq!(said["weights"], json!([weights.to_hex().as_str()]));
}

#[test]
fn another_base_is_found() {
    let kitchen = kitchen();
    kitchen.write("reviews.csv", tiny::REVIEWS);
    tiny::model(&kitchen, "sibling");
    kitchen.write("made.yaml", &format!("{FOLDER}{MADE}{}", written("out")));
    kitchen.say("run made.yaml").expect(0);
    let stages = "  half: { kind: load_model, source: model, dtype: bf16 }
  packed: { kind: quantize, model: base }
  sibling: { kind: load_model, source: sibling, dtype: f32 }
  reviews: { kind: load_dataset, source: reviews.csv, format: labelled }
  small: { kind: init_model, data: reviews, vocabulary: 262, hidden: 16, layers: 1, heads: 2, context: 64 }
  on_half: { kind: load_adapter, model: half, source: out/directed }
  on_packed: { kind: load_adapter, model: packed, source: out/thin }
  meant: { kind: load_adapter, model: packed, source: out/thin, other_base: true }
  on_sibling: { kind: load_adapter, model: sibling, source: out/thin }
  on_small: { kind: load_adapter, model: small, source: out/thin, other_base: true }
  tuned: { kind: sft, model: meant, data: chats, max_steps: 1 }
  tuned_half: { kind: sft, model: on_half, data: chats, max_steps: 1 }
";
    kitchen.write("wrong.yaml", &format!("{FOLDER}{stages}"));
    let said = kitchen.say("run wrong.yaml --json --keep-going").expect(1);
    let answer = said.json();
    for (name, outcome) in [
        // The same weights in another type; what is meant.
        ("on_half", "done"),
        ("meant", "done"),
        ("tuned", "done"),
        ("tuned_half", "done"),
        ("on_packed", "failed"),
        ("on_sibling", "failed"),
        ("on_small", "failed"),
    ] {
        assert_eq!(
            text(&stage(&answer, name)["outcome"]),
            outcome,
            "{name}:\n{}",
            said.err
        );
    }
    for words in [
        "which has other weights",
        "`other_base: true`",
        "does not go with `model` (a Llama; layers: 1, width: 16",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight has the shape [4, 32], expected [4, 16]",
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight is not expected",
    ] {
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }
    // A second adapter is refused before anything runs.
    let second = "  on_adapter: { kind: load_adapter, model: on_half, source: out/thin }\n";
    kitchen.write("second.yaml", &format!("{FOLDER}{stages}{second}"));
    let said = kitchen.say("check second.yaml").expect(2).err;
    assert!(said.contains("`on_half` has an adapter already"), "{said}");
    // What is meant is said all the same.
    let said = kitchen.say("run wrong.yaml meant --force meant").expect(0);
    assert!(said.err.contains("which has other weights"), "{}", said.err);
}

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Changes the list of an adapter's tensors.
fn retell(folder: &Path, change: &dyn Fn(&mut Vec<Tensor>)) {
    let path = folder.join("adapter_model.safetensors");
    let weights = Weights::open(&path).unwrap();
    let mut tensors: Vec<Tensor> = weights
        .infos()
        .map(|info| {
            let numbers = weights.bytes(&info.name).unwrap().to_vec();
            (info.name.clone(), Dtype::F32, info.shape.clone(), numbers)
        })
        .collect();
    drop(weights);
    change(&mut tensors);
    formats::safetensors::write_file(&path, &tensors, &[("format", "pt")]).unwrap();
}

/// Changes the settings of an adapter.
fn resettle(folder: &Path, key: &str, value: Value) {
    let path = folder.join("adapter_config.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    settings[key] = value;
    fs::write(&path, settings.to_string()).unwrap();
}

/// What is done to the folder, and the words that the error has.
type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a [&'a str]);

#[test]
fn files_that_lie_are_refused_by_name() {
    let down = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight";
    let numbers = |change: fn(&mut Tensor)| {
        move |folder: &Path| {
            retell(folder, &|all| {
                let tensor = all.iter_mut().find(|(name, ..)| name == down);
                change(tensor.unwrap());
            })
        }
    };
    let not_a_number = numbers(|tensor| tensor.3[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    let turned = numbers(|tensor| tensor.2.reverse());
    let whole = numbers(|tensor| tensor.1 = Dtype::I32);
    let cases: &[Case<'_>] = &[
        ("no number", &not_a_number, &[down, "not finite"]),
        (
            "another shape",
            &turned,
            &[down, "[32, 4], expected [4, 32]"],
        ),
        ("codes", &whole, &[down, "holds I32"]),
        (
            "numbers of another type among the others",
            &numbers(|tensor| {
                tensor.1 = Dtype::F16;
                tensor.3.truncate(tensor.3.len() / 2);
                tensor.3.fill(0);
            }),
            &["its tensors are of several types, F16 and F32"],
        ),
        (
            "a scale of nothing",
            &|f| resettle(f, "lora_alpha", json!(0)),
            &["lora_alpha is 0; it should be above 0"],
        ),
        (
            "a tensor that is missing",
            &|f| retell(f, &|all| all.retain(|(name, ..)| name != down)),
            &[down, "is missing"],
        ),
        (
            "a tensor too many",
            &|f| {
                retell(f, &|all| {
                    let (_, dtype, shape, bytes) = all[0].clone();
                    all.push((
                        "base_model.model.lm_head.weight".to_owned(),
                        dtype,
                        shape,
                        bytes,
                    ));
                })
            },
            &["base_model.model.lm_head.weight is not expected"],
        ),
        (
            "a file that is cut short",
            &|f| {
                let path = f.join("adapter_model.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
            },
            &["adapter_model.safetensors is not a valid safetensors file"],
        ),
        (
            "a rank that the tensors do not have",
            &|f| resettle(f, "r", json!(1 << 20)),
            &[down, "expected [1048576, 32]"],
        ),
        (
            "a scale that no number is",
            &|f| resettle(f, "lora_alpha", json!(1e300)),
            &["adapter_config.json", "lora_alpha"],
        ),
        (
            "a later invention",
            &|f| resettle(f, "lora_twist", json!(2)),
            &["adapter_config.json", "lora_twist is 2"],
        ),
        (
            "another method",
            &|f| resettle(f, "peft_type", json!("LOHA")),
            &["adapter_config.json", "LOHA"],
        ),
        (
            "a head",
            &|f| resettle(f, "modules_to_save", json!(["score"])),
            &["modules_to_save is score", "`load_reward_model`"],
        ),
        (
            "a classifier",
            &|f| resettle(f, "task_type", json!("SEQ_CLS")),
            &["task_type is SEQ_CLS"],
        ),
        (
            "a layer that is not there",
            &|f| resettle(f, "target_modules", json!(["q_proj", "c_attn"])),
            &["no linear module is called \"c_attn\"", "some/base"],
        ),
        (
            "a pickle",
            &|f| {
                fs::rename(
                    f.join("adapter_model.safetensors"),
                    f.join("adapter_model.bin"),
                )
                .unwrap()
            },
            &["pickled weights are never loaded"],
        ),
        (
            "settings that are none",
            &|f| fs::write(f.join("adapter_config.json"), "{").unwrap(),
            &["adapter_config.json"],
        ),
        (
            "a list of a base that is none",
            &|f| fs::write(f.join("levain_base.json"), "[]").unwrap(),
            &["levain_base.json is no list of an adapter's base"],
        ),
        (
            "a whole model",
            &|f| {
                fs::remove_file(f.join("adapter_config.json")).unwrap();
                fs::write(f.join("config.json"), "{}").unwrap();
            },
            &["there is no `adapter_config.json`", "`load_model`"],
        ),
    ];
    for (what, damage, words) in cases {
        let kitchen = Kitchen::new(0);
        tiny::model(&kitchen, "model");
        tiny::adapter(&kitchen, "adapter");
        kitchen.write(
            "adapter.yaml",
            "levain: 1\nstages:\n  base: { kind: load_model, source: model }\n  theirs: { kind: load_adapter, model: base, source: adapter }\n",
        );
        damage(&kitchen.path().join("adapter"));
        let said = kitchen.say("run adapter.yaml --json").expect(1);
        for word in *words {
            assert!(
                said.err.contains(word),
                "{what}: `{word}` is missing in:\n{}",
                said.err
            );
        }
        assert!(
            !said.err.contains("panicked") && !said.err.contains("BUG"),
            "{what}:\n{}",
            said.err
        );
        assert_eq!(said.json()["failures"][0]["stage"], "theirs", "{what}");
        // As it should be it goes through.
        fs::remove_dir_all(kitchen.path().join("adapter")).unwrap();
        tiny::adapter(&kitchen, "adapter");
        kitchen.say("run adapter.yaml").expect(0);
    }
}

#[test]
fn an_adapter_in_the_place_of_a_model_says_who_reads_it() {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    tiny::adapter(&kitchen, "model");
    fs::remove_file(kitchen.path().join("model/model.safetensors")).unwrap();
    kitchen.write(
        "model.yaml",
        "levain: 1\nstages:\n  base: { kind: load_model, source: model }\n",
    );
    let said = kitchen.say("run model.yaml").expect(1);
    assert!(said.err.contains("`kind: load_adapter`"), "{}", said.err);
}

//! Golden values and what they were made from: numbers by formula and the tiny Llama of tests/golden/make/ml_common.py.
#![allow(dead_code)]

pub mod tolerance;

use anyhow::Result;
use formats::config::LlamaConfig;
use formats::peft::AdapterConfig;
use ml::{Kind, Llama, Params, Place, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder tests/golden.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// Where these tests compute: the processor, or what `LEVAIN_DEVICE` names (`make test-cuda`; not run so far).
pub fn place(kind: Kind) -> Place {
    match std::env::var("LEVAIN_DEVICE") {
        Ok(device) if !device.is_empty() => Place::parse(&device, "f32").unwrap().with_kind(kind),
        _ => Place::cpu(kind),
    }
}

/// The tensors of some golden files by name.
pub struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    /// Reads tests/golden/data/ml/NAME.safetensors, several files as one.
    pub fn open(names: &[&str]) -> Golden {
        let mut tensors = BTreeMap::new();
        for name in names {
            let path = folder().join(format!("data/ml/{name}.safetensors"));
            let device = place(Kind::Float).device;
            let read = ml::tensors::read_file(&path).unwrap();
            tensors.extend(
                read.into_iter()
                    .map(|(name, t)| (name, t.to_device(device))),
            );
        }
        Golden(tensors)
    }

    /// The tensor of this name.
    #[track_caller]
    pub fn get(&self, name: &str) -> &Tensor {
        let found = self.0.get(name);
        found.unwrap_or_else(|| panic!("there is no golden value {name:?}"))
    }

    /// A whole tensor as numbers.
    #[track_caller]
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        let tensor = self.get(name).to_kind(Kind::Double).flatten(0, -1);
        Vec::try_from(tensor).unwrap()
    }

    /// A whole tensor as token ids.
    #[track_caller]
    pub fn ids(&self, name: &str) -> Vec<i64> {
        Vec::try_from(self.get(name).to_kind(Kind::Int64).flatten(0, -1)).unwrap()
    }

    /// What follows `prefix` in the names that have it.
    pub fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let names = self.0.keys();
        names.filter_map(move |name| name.strip_prefix(prefix))
    }
}

/// 64 random bits for each index of `name`: FNV-1a of the name, then splitmix64. The same lines are in Python.
pub fn bits(name: &str, count: usize) -> Vec<u64> {
    let mut state = 0xcbf29ce484222325u64;
    for byte in name.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x100000001b3);
    }
    let indices = 1..=count as u64;
    indices
        .map(|index| {
            let z = state.wrapping_add(index.wrapping_mul(0x9e3779b97f4a7c15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
            z ^ (z >> 31)
        })
        .collect()
}

/// Numbers in ±scale, f64, the same bits as in Python.
pub fn numbers(name: &str, shape: &[i64], scale: f64) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let numbers: Vec<f64> = bits(name, count)
        .into_iter()
        .map(|bits| ((bits >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0) * scale)
        .collect();
    let numbers = Tensor::from_slice(&numbers).view(shape);
    numbers.to_device(place(Kind::Float).device)
}

/// Token ids of the tiny vocabulary.
pub fn tokens(name: &str, count: usize) -> Vec<i64> {
    let bits = bits(name, count);
    bits.into_iter().map(|bits| (bits % 64) as i64).collect()
}

/// The formula of every weight of the tiny models.
pub fn weight(name: &str, shape: &[i64]) -> Result<Tensor> {
    let numbers = numbers(name, shape, 0.3);
    Ok(match name.ends_with("norm.weight") {
        true => numbers + 1.0,
        false => numbers,
    })
}

/// The tiny Llama's shape, with some keys of its config.json changed.
pub fn config(changes: Value) -> LlamaConfig {
    let mut settings = json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    });
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    LlamaConfig::from_json(&settings.to_string(), Path::new("tiny")).unwrap()
}

/// The tiny model, frozen.
pub fn model(kind: Kind, changes: Value, params: &mut Params) -> Llama {
    Llama::build(&config(changes), place(kind), params, &mut weight).unwrap()
}

/// Settings of an adapter.
pub fn adapter(settings: Value) -> AdapterConfig {
    let mut all =
        json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"});
    for (key, value) in settings.as_object().unwrap() {
        all[key] = value.clone();
    }
    AdapterConfig::from_json(&all.to_string(), Path::new("tiny")).unwrap()
}

/// Replaces the parameters whose names satisfy the condition by numbers of the formula in ±0.2.
pub fn fill(params: &Params, condition: impl Fn(&str) -> bool) {
    ml::no_grad(|| {
        for (name, tensor) in params.trained().filter(|(name, _)| condition(name)) {
            let fresh = numbers(name, &tensor.size(), 0.2).to_kind(tensor.kind());
            tensor.shallow_clone().copy_(&fresh);
        }
    });
}

/// The tiny model with an adapter, A and B by formula.
pub fn adapted(kind: Kind, settings: Value) -> (Llama, Params) {
    let mut params = Params::new();
    let mut model = model(kind, json!({}), &mut params);
    let linears = model.linears_mut();
    ml::lora::attach(linears, &adapter(settings), 0, &mut params).unwrap();
    fill(&params, |_| true);
    (model, params)
}

/// The largest difference, relative to the largest golden value.
#[track_caller]
pub fn distance(ours: &Tensor, golden: &Tensor) -> f64 {
    assert_eq!(ours.size(), golden.size());
    let (ours, golden) = (ours.to_kind(Kind::Double), golden.to_kind(Kind::Double));
    let scale = golden.abs().max().double_value(&[]);
    assert!(scale > 0.0, "the golden value is all zero");
    let distance = (ours - golden).abs().max().double_value(&[]) / scale;
    assert!(!distance.is_nan(), "not a number");
    distance
}

/// Fails if ours is further from the golden value than the tolerance.
#[track_caller]
pub fn close(ours: &Tensor, golden: &Tensor, tolerance: f64, what: &str) {
    let distance = distance(ours, golden);
    assert!(
        distance <= tolerance,
        "{what}: {distance:.2e} from the golden value, more than {tolerance:.0e}"
    );
}

/// The same for lists of numbers.
#[track_caller]
pub fn near(ours: &[f64], golden: &[f64], tolerance: f64, what: &str) {
    close(
        &Tensor::from_slice(ours),
        &Tensor::from_slice(golden),
        tolerance,
        what,
    );
}

/// The arrays of tests/golden/rlhf/NAME.safetensors, and the lines of its NAME.jsonl.
pub struct Rlhf(BTreeMap<String, Tensor>);

impl Rlhf {
    /// Reads the arrays.
    pub fn open(name: &str) -> Rlhf {
        let path = folder().join(format!("rlhf/{name}.safetensors"));
        Rlhf(ml::tensors::read_file(&path).unwrap().into_iter().collect())
    }

    /// The array of this name.
    #[track_caller]
    pub fn get(&self, name: &str) -> &Tensor {
        let found = self.0.get(name);
        found.unwrap_or_else(|| panic!("there is no golden value {name:?}"))
    }

    /// Whether there is one.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A whole array as numbers.
    #[track_caller]
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        Vec::try_from(self.get(name).to_kind(Kind::Double).flatten(0, -1)).unwrap()
    }

    /// An array of two dimensions as rows.
    #[track_caller]
    pub fn matrix(&self, name: &str) -> Vec<Vec<f64>> {
        let width = self.get(name).size()[1] as usize;
        let rows = self.numbers(name);
        rows.chunks(width).map(<[f64]>::to_vec).collect()
    }

    /// The cases of NAME.jsonl: name, settings, and the whole line.
    pub fn cases(&self, name: &str) -> Vec<(String, Value, Value)> {
        let text = std::fs::read_to_string(folder().join(format!("rlhf/{name}.jsonl"))).unwrap();
        let cases: Vec<_> = text
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                let case = line["case"].as_str().unwrap().to_owned();
                (case, line["settings"].clone(), line)
            })
            .collect();
        assert!(!cases.is_empty());
        cases
    }
}

//! Artifacts as JSON that a person can read and a test can compare: rows, tokens, numbers, texts.

use std::fs;
use std::path::Path;

use data::{Completions, Dataset, Tokens, Vectors};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::cache::Cache;
use formats::{Stored, Weights};
use serde_json::{Map, Value, json};

use super::text;

/// JSON files longer than this are told by their digest.
const LONG: u64 = 4096;

/// Every output of a stage, by name. `stage` is from the answer of `run --json`; of a tensor, the first `numbers` numbers are told.
pub fn outputs(cache: &Path, stage: &Value, numbers: usize) -> Value {
    let cache = Cache::open(cache).unwrap();
    let outputs = stage["outputs"].as_object().unwrap().iter();
    outputs
        .map(|(name, digest)| {
            let digest = serde_json::from_value(digest.clone()).unwrap();
            (
                name.clone(),
                describe(&cache.view(digest).unwrap(), numbers),
            )
        })
        .collect::<Map<_, _>>()
        .into()
}

/// The stage called `name` in the answer of `run --json`.
#[track_caller]
pub fn stage<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let mut stages = answer["stages"].as_array().unwrap().iter();
    stages
        .find(|s| text(&s["name"]) == name)
        .unwrap_or_else(|| panic!("there is no stage `{name}`"))
}

fn describe(view: &ArtifactView, numbers: usize) -> Value {
    let content = |name: &str, path: &Path| content(view.artifact, name, path, numbers);
    let files: Map<_, _> = view
        .files
        .iter()
        .map(|(name, path)| (name.clone(), content(name, path)))
        .collect();
    // What an artifact refers to was made by another stage, but for the tokenizer of a model that was just loaded.
    let own = view
        .refs
        .iter()
        .filter(|(name, _)| *name == "tokenizer" && !view.refs.contains_key("base"));
    let refs: Map<_, _> = own
        .map(|(name, view)| (name.clone(), describe(view, numbers)))
        .collect();
    json!({ "type": view.artifact, "summary": view.summary, "files": files, "refs": refs })
}

fn content(artifact: ArtifactType, name: &str, path: &Path, numbers: usize) -> Value {
    let size = fs::metadata(path).unwrap().len();
    match name.rsplit('.').next().unwrap() {
        "arrow" if name == "completions.arrow" => completions(path),
        "arrow" if name == "vectors.arrow" => vectors(path, numbers),
        "arrow" if artifact == ArtifactType::Tokens => tokens(path),
        "arrow" => {
            let rows = Dataset::open(path).unwrap();
            rows.iter().map(|row| json!(row.unwrap())).collect()
        }
        "json" if size <= LONG || artifact == ArtifactType::Metrics => {
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        }
        "jsonl" => {
            let text = fs::read_to_string(path).unwrap();
            text.lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap())
                .collect()
        }
        "safetensors" => tensors(name, path, numbers),
        _ => {
            json!({ "bytes": size, "blake3": blake3::hash(&fs::read(path).unwrap()).to_hex().as_str() })
        }
    }
}

fn tokens(path: &Path) -> Value {
    let rows = Tokens::open(path).unwrap();
    rows.iter()
        .map(|row| {
            let row = row.unwrap();
            let mask: String = row
                .mask()
                .iter()
                .map(|m| if *m { '1' } else { '0' })
                .collect();
            json!({ "ids": row.ids, "trained": mask })
        })
        .collect()
}

fn vectors(path: &Path, numbers: usize) -> Value {
    let rows = Vectors::open(path).unwrap();
    (0..rows.len())
        .map(|index| {
            let (vector, label) = rows.row(index).unwrap();
            let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let first = &vector[..vector.len().min(numbers)];
            json!({ "label": label, "width": vector.len(), "norm": norm.sqrt(), "first": first })
        })
        .collect()
}

fn completions(path: &Path) -> Value {
    let rows = Completions::open(path).unwrap();
    rows.iter()
        .map(|row| {
            let row = row.unwrap();
            json!({ "ids": row.ids, "prompt": row.prompt, "group": row.group, "value": row.value })
        })
        .collect()
}

fn tensors(name: &str, path: &Path, numbers: usize) -> Value {
    let weights = Weights::open_files(&[(name.to_owned(), path.to_owned())]).unwrap();
    let told = weights.infos().map(|info| {
        let Stored::Plain(dtype) = info.stored else {
            panic!("{name} holds {:?}", info.stored)
        };
        if !dtype.is_float() {
                // Codes of quantized weights: the same on every processor.
            let bytes = weights.bytes(&info.name).unwrap();
            let first = &bytes[..bytes.len().min(numbers)];
            let told = json!({ "dtype": dtype.name(), "shape": info.shape, "digest": blake3::hash(bytes).to_hex().as_str(), "first": first });
            return (info.name.clone(), told);
        }
        let all = weights.read_f32(&info.name).unwrap();
        let norm = all
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt();
        let first = &all[..all.len().min(numbers)];
        let tensor =
            json!({ "dtype": dtype.name(), "shape": info.shape, "norm": norm, "first": first });
        (info.name.clone(), tensor)
    });
    told.collect::<Map<_, _>>().into()
}

/// Numbers of this size and smaller are compared as if they had it: differences of f32 sums of ten and more (rewards are differences
/// of log-probabilities) carry the rounding of what they are differences of, which another processor does otherwise.
const SMALL: f64 = 1e-2;

/// Where two values differ: texts, whole numbers and names by anything, other numbers by more than `tolerance` of the larger one;
/// of a list of numbers, of the largest in it.
pub fn difference(before: &Value, after: &Value, tolerance: f64) -> Option<String> {
    differ("", before, after, tolerance, 0.0)
}

fn differ(at: &str, before: &Value, after: &Value, tolerance: f64, scale: f64) -> Option<String> {
    let here = || Some(format!("{at}: {before} became {after}"));
    match (before, after) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            let (a, b) = (a.as_f64()?, b.as_f64()?);
            let scale = scale.max(a.abs()).max(b.abs()).max(SMALL);
            if (a - b).abs() <= tolerance * scale {
                None
            } else {
                here()
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let largest = |list: &[Value]| {
                let numbers = list.iter().filter_map(Value::as_f64);
                numbers.fold(0.0, |max: f64, x| max.max(x.abs()))
            };
            let scale = largest(a).max(largest(b));
            let mut pairs = a.iter().zip(b).enumerate();
            pairs.find_map(|(i, (a, b))| differ(&format!("{at}/{i}"), a, b, tolerance, scale))
        }
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            let mut pairs = a.iter().zip(b.values());
            pairs.find_map(|((name, a), b)| differ(&format!("{at}/{name}"), a, b, tolerance, 0.0))
        }
        _ if before == after => None,
        _ => here(),
    }
}

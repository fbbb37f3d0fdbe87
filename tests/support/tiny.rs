//! A tiny Llama as a Hugging Face folder, and rows it can learn within a second.

use std::fs;
use std::path::Path;

use formats::{Dtype, Weights};

use super::{Kitchen, checkout};

/// Writes the folder `name`: 2 layers of width 32, 280 tokens, random weights in f32, a chat template.
pub fn model(kitchen: &Kitchen, name: &str) {
    let golden = checkout().join("tests/golden/data/formats");
    let folder = kitchen.path().join(name);
    fs::create_dir_all(&folder).unwrap();
    // Not `fs::copy`: the golden file's mode is no matter of the test's.
    let copy = |from: String, to: &str| {
        fs::write(folder.join(to), fs::read(golden.join(from)).unwrap()).unwrap();
    };
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        copy("tiny/".to_owned() + file, file);
    }
    copy("tiny.safetensors".to_owned(), "model.safetensors");
}

/// Writes the folder `name`: a LoRA adapter that PEFT made for the tiny model, rank-stabilized, r 4, its B zero as at the start.
pub fn adapter(kitchen: &Kitchen, name: &str) {
    let golden = checkout().join("tests/golden/data/formats/adapter");
    let folder = kitchen.path().join(name);
    fs::create_dir_all(&folder).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::write(folder.join(file), fs::read(golden.join(file)).unwrap()).unwrap();
    }
}

/// The same under a head for rewards.
pub fn reward_model(kitchen: &Kitchen, name: &str) {
    model(kitchen, name);
    add_tensors(&kitchen.path().join(name), &[("score.weight", vec![1, 32])]);
}

/// Adds tensors of these names and shapes, with numbers around 0, to a model's file.
pub fn add_tensors(folder: &Path, more: &[(&str, Vec<usize>)]) {
    let mut tensors = tensors(folder);
    for (name, shape) in more {
        let count: usize = shape.iter().product();
        let numbers = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 200.0);
        tensors.push(((*name).to_owned(), shape.clone(), numbers.collect()));
    }
    write_tensors(folder, &tensors);
}

/// Multiplies a model's matrices: as they are they are small, and it has no opinions.
pub fn scale(folder: &Path, factor: f32) {
    let mut tensors = tensors(folder);
    for (_, shape, numbers) in &mut tensors {
        if shape.len() > 1 {
            numbers.iter_mut().for_each(|number| *number *= factor);
        }
    }
    write_tensors(folder, &tensors);
}

type Tensor = (String, Vec<usize>, Vec<f32>);

fn tensors(folder: &Path) -> Vec<Tensor> {
    let path = folder.join("model.safetensors");
    let weights = Weights::open_files(&[("model.safetensors".to_owned(), path)]).unwrap();
    let infos = weights.infos();
    let read = |name: &String| weights.read_f32(name).unwrap();
    infos
        .map(|info| (info.name.clone(), info.shape.clone(), read(&info.name)))
        .collect()
}

fn write_tensors(folder: &Path, tensors: &[Tensor]) {
    let stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, numbers)| {
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
            (name.clone(), Dtype::F32, shape.clone(), bytes.collect())
        })
        .collect();
    let path = folder.join("model.safetensors");
    formats::safetensors::write_file(&path, &stored, &[("format", "pt")]).unwrap();
}

/// A conversation on each line; every third one has two turns, and lengths differ.
pub fn chats(count: usize) -> String {
    let says = |role: &str, content: String| {
        format!("{{\"role\": \"{role}\", \"content\": \"{content}\"}}")
    };
    let mut lines = String::new();
    for index in 0..count {
        let mut turns = vec![
            says("user", format!("say {index}")),
            says(
                "assistant",
                "loaf ".repeat(1 + index % 3) + &index.to_string(),
            ),
        ];
        if index % 3 == 0 {
            turns.push(says("user", "again".to_owned()));
            turns.push(says("assistant", format!("{index} loaves")));
        }
        lines += &format!("{{\"messages\": [{}]}}\n", turns.join(", "));
    }
    lines
}

/// Pairs of completions: after plain text, after turns, with a margin and without.
pub const PAIRS: &str = r#"{"prompt": "How is the loaf?", "chosen": " Crisp.", "rejected": " Burnt.", "margin": 0.5}
{"prompt": [{"role": "user", "content": "say 1"}], "chosen": "loaf 1", "rejected": "1"}
{"chosen": [{"role": "user", "content": "again"}, {"role": "assistant", "content": "2 loaves"}], "rejected": [{"role": "user", "content": "again"}, {"role": "assistant", "content": "none"}]}
"#;

/// Texts with labels, of several sources.
pub const REVIEWS: &str = "\
text,label,source
\"The crust is crisp, the crumb is light.<br />It sings.\",1,oven
I have waited for this loaf all week and it is flat.,0,oven
\"Dry, dull, and dear.\",0,shelf
A leaflet about bread,1,post
\"Warm, \"\"round\"\" and gone within a minute\",1,shelf
";

/// Questions with choices: a plain text with each kind of answer, and turns.
pub const QUIZ: &str = r#"{"question": "What rises?", "choices": ["dough", "stone"], "answer": 0}
{"question": "What is dry?", "choices": ["rain", "the sea", "old bread"], "answer": "C"}
{"prompt": [{"role": "user", "content": "again"}], "choices": ["loaf", "7"], "answer": "loaf"}
"#;

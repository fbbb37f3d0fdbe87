//! A tiny Llama as a Hugging Face folder, and rows it can learn within a second.

use std::fs;
use std::path::Path;

use formats::{BertConfig, BertParts, Dtype, Weights};
use serde_json::{Map, Value, json};

use super::{Kitchen, Random, checkout};

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

/// Writes the folder `name`: the tiny model under a head for labels, as transformers saves `LlamaForSequenceClassification`.
pub fn classifier(kitchen: &Kitchen, name: &str, labels: &[&str]) {
    model(kitchen, name);
    let folder = kitchen.path().join(name);
    add_tensors(&folder, &[("score.weight", vec![labels.len(), 32])]);
    label(&folder, "LlamaForSequenceClassification", labels);
}

/// The same of the tiny BERT: `BertForSequenceClassification`.
pub fn encoder_classifier(kitchen: &Kitchen, name: &str, labels: &[&str]) {
    encoder(kitchen, name);
    let folder = kitchen.path().join(name);
    let head = [
        ("classifier.weight", vec![labels.len(), 16]),
        ("classifier.bias", vec![labels.len()]),
    ];
    add_tensors(&folder, &head);
    label(&folder, "BertForSequenceClassification", labels);
}

/// Says in a configuration what the rows of a head mean.
fn label(folder: &Path, class: &str, labels: &[&str]) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let names = labels.iter().enumerate();
    let names: Map<String, Value> = names
        .map(|(row, label)| (row.to_string(), json!(label)))
        .collect();
    config["architectures"] = json!([class]);
    config["id2label"] = names.into();
    fs::write(path, config.to_string()).unwrap();
}

/// Writes the folder `name`: a linear head alone on vectors of 32 numbers, as an output of `head` has it, made for a model that nobody has.
pub fn lone_head(kitchen: &Kitchen, name: &str, labels: &[&str]) {
    let folder = kitchen.path().join(name);
    fs::create_dir_all(&folder).unwrap();
    let shape = json!({
        "input": 32, "hidden": [], "outputs": labels.len(), "activation": "relu", "bias": true, "names": "head",
    });
    let about = json!({
        "task": "classification", "labels": labels, "pooling": "mean", "normalize": false, "shape": shape,
    });
    fs::write(folder.join("head.json"), about.to_string()).unwrap();
    let nobody = "0".repeat(64);
    let base = json!({ "artifact": nobody, "weights": [nobody] });
    fs::write(folder.join("levain_base.json"), base.to_string()).unwrap();
    let numbers = |count: usize| (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 200.0);
    let tensors = [
        ("head.0.weight", vec![labels.len(), 32]),
        ("head.0.bias", vec![labels.len()]),
    ];
    let tensors = tensors.map(|(name, shape)| {
        let numbers: Vec<f32> = numbers(shape.iter().product()).collect();
        (name.to_owned(), shape, numbers)
    });
    write_tensors_to(&folder.join("head.safetensors"), &tensors);
}

/// Writes the folder `name` with a tiny BERT as encoders of sentences come: saved without `bert.` in its names, with a pooler and without
/// a head for masked tokens. 2 layers of width 16, 96 positions, a token for every letter.
pub fn encoder(kitchen: &Kitchen, name: &str) {
    let folder = kitchen.path().join(name);
    fs::create_dir_all(&folder).unwrap();
    let words = encoder_words();
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": words.len(), "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 96, "type_vocab_size": 2, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    });
    let write =
        |file: &str, value: &Value| fs::write(folder.join(file), value.to_string()).unwrap();
    write("config.json", &config);
    write("tokenizer.json", &encoder_tokenizer(&words));
    let shape = BertConfig::from_json(&config.to_string(), Path::new("config.json")).unwrap();
    let parts = BertParts {
        pooler: true,
        head: false,
    };
    let tensors: Vec<Tensor> = (shape.tensor_shapes(parts).into_iter())
        .map(|(name, shape)| {
            let seed = name
                .bytes()
                .fold(7, |seed, byte| seed * 31 % 1_000_003 + u64::from(byte));
            let mut random = Random(seed);
            let center = if name.ends_with("LayerNorm.weight") {
                1.0
            } else {
                0.0
            };
            let count: usize = shape.iter().product();
            let number = |_| center + (random.below(2001) as f32 - 1000.0) * 3e-4;
            let numbers = (0..count).map(number).collect::<Vec<f32>>();
            (name.trim_start_matches("bert.").to_owned(), shape, numbers)
        })
        .collect();
    write_tensors(&folder, &tensors);
}

/// Special tokens, then every letter, at the beginning of a word and inside.
fn encoder_words() -> Vec<String> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let letters = "abcdefghijklmnopqrstuvwxyz0123456789".chars();
    let letters = letters.flat_map(|letter| [letter.to_string(), format!("##{letter}")]);
    let signs = ".,!?'\"<>/-:;()+=".chars().map(String::from);
    special.into_iter().chain(letters).chain(signs).collect()
}

/// BERT's tokenizer with these words, as a tokenizer.json.
fn encoder_tokenizer(words: &[String]) -> Value {
    let ids = words.iter().enumerate();
    let vocabulary: Map<String, Value> = ids.map(|(id, word)| (word.clone(), json!(id))).collect();
    let added: Vec<Value> = (0..5)
        .map(|id| {
            json!({"id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true})
        })
        .collect();
    let special =
        |id: usize, kind: u32| json!({"SpecialToken": {"id": words[id], "type_id": kind}});
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    let known = |id: usize| json!({"id": words[id], "ids": [id], "tokens": [words[id]]});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(2, 0), text("A", 0), special(3, 0)],
            "pair": [special(2, 0), text("A", 0), special(3, 0), text("B", 1), special(3, 1)],
            "special_tokens": {"[CLS]": known(2), "[SEP]": known(3)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": vocabulary},
    })
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
    write_tensors_to(&folder.join("model.safetensors"), tensors);
}

fn write_tensors_to(path: &Path, tensors: &[Tensor]) {
    let stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, numbers)| {
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
            (name.clone(), Dtype::F32, shape.clone(), bytes.collect())
        })
        .collect();
    formats::safetensors::write_file(path, &stored, &[("format", "pt")]).unwrap();
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

/// Texts of three kinds, each with a label.
pub fn texts(count: usize) -> String {
    labelled(count, |index| {
        ["\"bread\"", "\"number\"", "\"question\""][index % 3].to_owned()
    })
}

/// The same texts, each with a number on a scale.
pub fn marks(count: usize) -> String {
    labelled(count, |index| ((index % 5) as f64 / 2.0 - 1.0).to_string())
}

fn labelled(count: usize, label: impl Fn(usize) -> String) -> String {
    let line = |index: usize| {
        let text = match index % 3 {
            0 => format!("loaf {}", "loaf ".repeat(index % 4)),
            1 => format!("{index} or {}", index * 7),
            _ => format!("How many is {index}?"),
        };
        format!("{{\"text\": \"{text}\", \"label\": {}}}\n", label(index))
    };
    (0..count).map(line).collect()
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

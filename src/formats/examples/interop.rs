//! Writes a model, its tokenizer and an adapter into a folder, for tests/interop/formats.py to open in Python.

use anyhow::{Context, Result};
use levain_formats::peft::{CONFIG_FILE, WEIGHTS_FILE, tensor_key};
use levain_formats::{AdapterConfig, Dtype, LlamaConfig, TokenizerFiles, Weights, safetensors};
use std::path::Path;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: interop MODEL.gguf FOLDER";
    let model = arguments.next().context(usage)?;
    let folder = arguments.next().context(usage)?;
    let folder = Path::new(&folder);
    let adapter = folder.join("adapter");
    std::fs::create_dir_all(&adapter)?;

    let weights = Weights::open(Path::new(&model))?;
    let file = weights.gguf().context("not a GGUF file")?;
    let config = LlamaConfig::from_gguf(file)?;
    config.check(&weights)?;
    let text = serde_json::to_string_pretty(&config.to_json())?;
    std::fs::write(folder.join("config.json"), text)?;
    TokenizerFiles::from_gguf(file)?.save(folder)?;
    let heads: Vec<_> = (weights.infos())
        .map(|info| (info.name.clone(), Dtype::F32, info.shape.clone()))
        .collect();
    let path = folder.join("model.safetensors");
    safetensors::write_with(&path, &heads, &[("format", "pt")], |index| {
        let numbers = weights.read_f32(&heads[index].0)?;
        Ok(numbers
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect::<Vec<u8>>())
    })?;

    let settings = AdapterConfig {
        r: 2,
        lora_alpha: 4.0,
        target_modules: vec!["k_proj".to_owned(), "down_proj".to_owned()],
        ..AdapterConfig::default()
    };
    settings.save(&adapter.join(CONFIG_FILE))?;
    let mut tensors = Vec::new();
    for (module, out, input) in config.linear_shapes() {
        if !(module.ends_with(".k_proj") || module.ends_with(".down_proj")) {
            continue;
        }
        for (part, shape) in [("lora_A", vec![2, input]), ("lora_B", vec![out, 2])] {
            // Small numbers that depend on the place, so that a transposed matrix would show.
            let count = shape[0] * shape[1];
            let numbers = (0..count).map(|index| (index % 97) as f32 / 1000.0);
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            tensors.push((tensor_key(&module, part), Dtype::F32, shape, bytes));
        }
    }
    safetensors::write_file(&adapter.join(WEIGHTS_FILE), &tensors, &[("format", "pt")])
}

//! The held-out loss of a model with an adapter that Python's PEFT, or the package `adapters`, saved, for tests/interop: prints one JSON object.
//!
//! `adapter_loss MODEL ADAPTER ROWS.json [bf16|f32]`: MODEL is a GGUF file or a Hugging Face folder, ADAPTER a folder with
//! their two files, and ROWS.json a list of `{"input_ids": [...], "trained": [...]}`.

use anyhow::{Context, Result};
use formats::config::LlamaConfig;
use formats::peft::{CONFIG_FILE, PeftConfig};
use formats::tensors::Weights;
use ml::sft::{Row, Scores, evaluate};
use ml::{Llama, Params, Pass, Place, adapter as adapters, loss};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Tokens {
    input_ids: Vec<i64>,
    trained: Vec<bool>,
}

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, adapter, rows, dtype @ ..] = &arguments[..] else {
        anyhow::bail!("usage: adapter_loss MODEL ADAPTER ROWS.json [bf16|f32]");
    };
    let dtype = dtype
        .first()
        .map_or("f32", |word| word.to_str().unwrap_or(""));
    let place = Place::parse("cpu", dtype)?;
    let weights = Weights::open(model)?;
    let config = match weights.gguf() {
        Some(file) => LlamaConfig::from_gguf(file)?,
        None => LlamaConfig::from_json(&read(&model.join("config.json"))?, model)?,
    };
    let mut params = Params::new();
    let mut model = Llama::load(&config, &weights, place, &mut params)?;
    let settings = PeftConfig::open(&adapter.join(CONFIG_FILE))?;
    let stored = settings.open_weights(adapter)?;
    let modules = adapters::attach_stored(&mut model, &settings, &stored, &mut params)?;

    let rows: Vec<Tokens> = serde_json::from_str(&read(rows)?)?;
    let rows: Vec<Row> = rows
        .into_iter()
        .map(|row| Row {
            tokens: row.input_ids,
            trained: row.trained,
            documents: Vec::new(),
        })
        .collect();
    let mut all = [Scores::default(), Scores::default()];
    for rows in rows.chunks(4) {
        let passes = [Pass::eval(), Pass::eval().without_adapters()];
        for (scores, pass) in all.iter_mut().zip(passes) {
            scores.add(evaluate(&model, pass, rows, loss::CHUNK)?);
        }
    }
    let [with, without] = all;
    println!(
        "{}",
        serde_json::json!({
            "loss": with.mean(), "loss_without": without.mean(), "tokens": with.count, "modules": modules.len(),
        })
    );
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))
}

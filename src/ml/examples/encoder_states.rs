//! What an encoder makes of rows of tokens, for tests/interop: prints one JSON object.
//!
//! `encoder_states MODEL ROWS.json SEED [bf16|f32 [MASK]]`: MODEL is a Hugging Face folder of a BERT, ROWS.json a list of
//! `{"input_ids": [...], "free": [...]}`, where `free` says which tokens may be hidden. Of each row the states and the pooled state of the
//! first token (without a pooler none) are printed; where there is a head, also what is hidden of it under the seed, by the token MASK (103
//! unless given), and the loss over all rows.

use anyhow::{Context, Result};
use formats::config::BertConfig;
use formats::tensors::Weights;
use ml::kv_cache::Segments;
use ml::masked::{Masking, Row, evaluate};
use ml::random::Stream;
use ml::{Bert, Kind, Params, Pass, Place, Tensor, loss};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// BERT's id of `[MASK]`.
const MASK: i64 = 103;

#[derive(Deserialize)]
struct Tokens {
    input_ids: Vec<i64>,
    free: Vec<bool>,
}

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, rows, seed, more @ ..] = &arguments[..] else {
        anyhow::bail!("usage: encoder_states MODEL ROWS.json SEED [bf16|f32 [MASK]]");
    };
    let word = |path: &PathBuf| path.to_string_lossy().into_owned();
    let seed: u64 = word(seed).parse().context("SEED is a whole number")?;
    let place = Place::parse("cpu", &more.first().map_or("f32".to_owned(), word))?;
    let mask = match more.get(1) {
        Some(id) => word(id).parse().context("MASK is the id of a token")?,
        None => MASK,
    };
    let config = BertConfig::from_json(&read(&folder.join("config.json"))?, folder)?;
    let weights = Weights::open(folder)?;
    let model = Bert::load(&config, &weights, place, &mut Params::new())?;
    let masking = Masking {
        probability: 0.15,
        mask,
        words: config.vocab_size,
    };
    let rows: Vec<Tokens> = serde_json::from_str(&read(rows)?)?;
    let (mut told, mut own) = (Vec::new(), Vec::new());
    for (index, row) in rows.into_iter().enumerate() {
        let segments = Segments::new(&[row.input_ids.len()], place)?;
        let tokens = model.tokens(&row.input_ids)?;
        let states = model.hidden(Pass::eval(), &tokens, &segments)?;
        let pooled = model.pooled(&states.narrow(0, 0, 1));
        let row = Row {
            tokens: row.input_ids,
            free: row.free,
        };
        let mut stream = Stream::new(seed, &format!("mask {index}"));
        let (seen, chosen) = masking.hide(&row, &mut stream)?;
        told.push(json!({
            "states": numbers(&states)?, "pooled": pooled.ok().map(|pooled| numbers(&pooled)).transpose()?,
            "seen": seen, "chosen": chosen,
        }));
        own.push((index, row));
    }
    let mut answer = json!({ "rows": told, "loss": Value::Null });
    if model.has_masked_head() {
        let scores = evaluate(&model, &masking, seed, own, loss::CHUNK)?;
        answer["loss"] = json!(scores.mean());
    }
    println!("{answer}");
    Ok(())
}

/// A matrix as one list, row by row.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1))?)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))
}

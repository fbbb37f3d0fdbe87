//! `init_model`: needs names and shapes and random streams, no tensors; its artifact is laid out as that of `load_model`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use data::random::Stream;
use data::store::Dataset;
use data::train_tokenizer::train_tokenizer;
use engine::artifact::ArtifactType;
use engine::contract::Summary;
use engine::event::Level;
use engine::job::{Drafts, Job, Reporter};
use engine::peek::Sources;
use formats::{Dtype, LlamaConfig, ModelConfig};
use kinds::init_model::InitModel;
use kinds::memory::{ADAPTER, AT_MOST, QUANTIZED, configured};
use serde_json::{Map, Value, json};

use crate::load_model::{model_draft, summary};

/// The most parameters: their bytes are held in memory at once.
const LARGEST: u64 = 1 << 30;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: InitModel = job.params()?;
    let dataset = Dataset::open(job.input("data")?.file("rows.arrow")?)?;
    let start = Instant::now();
    let tokenizer = train_tokenizer(
        &dataset,
        params.vocabulary,
        Some(job.threads),
        &mut |done, total| crate::rows_done(cx, done, total, start),
    )?;
    cx.check()?;
    let loaded = tokenizer.tokenizer()?;
    let vocab_size = loaded.get_vocab_size(true);
    if vocab_size < params.vocabulary {
        let text = format!(
            "the texts give {vocab_size} tokens, fewer than the {} that `vocabulary` allows: no other pair stands in them twice",
            params.vocabulary
        );
        cx.note(Level::Warning, &text);
    }
    let id = |token: &Option<String>| token.as_deref().and_then(|token| loaded.token_to_id(token));
    let config = LlamaConfig {
        eos_token_ids: id(&tokenizer.eos_token).into_iter().collect(),
        pad_token_id: id(&tokenizer.pad_token),
        ..shape(&params, vocab_size)
    };
    if config.parameter_count() > LARGEST {
        bail!(
            "{} parameters are more than the {LARGEST} that a small model may have; `load_model` reads larger ones",
            config.parameter_count()
        );
    }
    let mut written = config.to_json();
    written["initializer_range"] = json!(params.initializer_range);
    let config_path = job.out.join("config.json");
    std::fs::write(&config_path, serde_json::to_string_pretty(&written)?)?;
    let weights_path = job.out.join("model.safetensors");
    formats::safetensors::write_file(
        &weights_path,
        &tensors(&config, &params, cx)?,
        &[("format", "pt")],
    )?;
    let files: Vec<(String, PathBuf)> = vec![
        ("config.json".to_owned(), config_path),
        ("model.safetensors".to_owned(), weights_path),
    ];
    let parts = (files, ModelConfig::Llama(config), tokenizer);
    let draft = model_draft(ArtifactType::Model, parts, &params.dtype, job, cx)?;
    Ok([("model".to_owned(), draft)].into())
}

/// The shape that the parameters say, for a tokenizer of so many tokens.
fn shape(params: &InitModel, vocab_size: usize) -> LlamaConfig {
    LlamaConfig {
        vocab_size,
        hidden_size: params.hidden,
        intermediate_size: params.intermediate(),
        num_hidden_layers: params.layers,
        num_attention_heads: params.heads,
        num_key_value_heads: params.key_value_heads(),
        head_dim: params.hidden / params.heads.max(1),
        rms_norm_eps: 1e-5,
        rope_theta: params.rope_theta,
        tie_word_embeddings: true,
        attention_bias: false,
        mlp_bias: false,
        max_position_embeddings: params.context,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        rope_scaling: None,
    }
}

/// What will be known of the model. Its tokenizer may come out smaller than `vocabulary`, and so may its embedding.
pub(crate) fn glance(params: &Map<String, Value>, _: &Sources) -> Result<Summary> {
    let params: InitModel = serde_json::from_value(Value::Object(params.clone()))?;
    let config = shape(&params, params.vocabulary);
    let mut known = summary(&config, config.parameter_count(), &params.dtype);
    known.insert(AT_MOST.to_owned(), true.into());
    for name in [ADAPTER, QUANTIZED] {
        known.insert(name.to_owned(), Value::Null);
    }
    known.extend(configured(config.to_json()));
    Ok(known)
}

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Every tensor of the model, drawn from a stream that is named after it: no other field shifts its draws.
fn tensors(config: &LlamaConfig, params: &InitModel, cx: &dyn Reporter) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for (name, shape) in config.tensor_shapes() {
        cx.check()?;
        let mut numbers = vec![1.0f32; shape.iter().product()];
        if !name.ends_with("norm.weight") {
            let into_stream = ["o_proj.weight", "down_proj.weight"];
            let scale = if into_stream.iter().any(|end| name.ends_with(end)) {
                1.0 / (2.0 * config.num_hidden_layers as f64).sqrt()
            } else {
                1.0
            };
            let deviation = params.initializer_range * scale;
            Stream::new(params.seed, &format!("init {name}")).fill_normal(&mut numbers);
            for number in &mut numbers {
                *number = (f64::from(*number) * deviation) as f32;
            }
        }
        let bytes = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        tensors.push((name, Dtype::F32, shape, bytes));
    }
    Ok(tensors)
}

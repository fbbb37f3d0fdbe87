//! `prompt_tuning`: needs a random stream, or rows of the embedding; no tensors.

use std::path::Path;

use anyhow::{Context, Result};
use data::Encoder;
use data::random::Stream;
use engine::job::{About as _, Drafts, Job, Reporter};
use formats::peft::{PROMPT_EMBEDDINGS, SoftConfig, SoftKind};
use formats::{Dtype, LlamaConfig, TokenizerFiles, Weights, quantized};
use kinds::model::ModelParts;
use kinds::prompt_tuning::{PromptTuning, Start};
use serde_json::json;

use crate::adapter;

const EMBEDDING: &str = "model.embed_tokens.weight";

pub(crate) fn run(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let params: PromptTuning = job.params()?;
    let view = job.input("model")?;
    let parts = ModelParts::of(view)?;
    let model = adapter::config(&parts)?;
    let count = params.virtual_tokens;
    let config = SoftConfig::new(SoftKind::Prompt, count, &model);
    let shape = config.shape(&model).about("virtual_tokens")?;
    let mut stream = Stream::new(params.seed, "init");
    let start = params.start();
    let numbers = match start {
        Start::Random => {
            let mut numbers = vec![0f32; shape[0] * shape[1]];
            stream.fill_normal(&mut numbers);
            numbers
        }
        Start::Vocabulary => {
            let words = (0..count).map(|_| stream.below(model.vocab_size as u64));
            embeddings(&parts, &model, words)?
        }
        Start::Text(text) => {
            let files = TokenizerFiles::from_folder_files(&parts.tokenizer.files)?;
            let ids = Encoder::from_files(&files, None)?.encode_repeated(text, count)?;
            embeddings(&parts, &model, ids.into_iter().map(u64::from))?
        }
    };
    let tensors: [adapter::Tensor; 1] = [(
        PROMPT_EMBEDDINGS.to_owned(),
        Dtype::F32,
        shape.to_vec(),
        Dtype::F32.from_f32(&numbers)?,
    )];
    let summary = [
        ("adapter".to_owned(), json!("prompt_tuning")),
        ("virtual_tokens".to_owned(), json!(count)),
        ("init".to_owned(), json!(start.word())),
        ("trainable".to_owned(), json!(numbers.len())),
    ];
    let save = |path: &Path| config.save(path);
    let draft = adapter::draft(job, view, &tensors, save, summary.into())?;
    Ok([("model".to_owned(), draft)].into())
}

/// The embeddings of some tokens, one after the other, as the model computes with them.
fn embeddings(
    parts: &ModelParts,
    model: &LlamaConfig,
    ids: impl Iterator<Item = u64>,
) -> Result<Vec<f32>> {
    let weights = Weights::open_files(parts.base_files())?;
    let dtype = Dtype::parse(&parts.dtype.to_uppercase())?;
    let width = model.hidden_size;
    let all = quantized::values(&weights, EMBEDDING, [model.vocab_size, width], dtype)?;
    weights.release(EMBEDDING);
    let mut chosen = Vec::new();
    for id in ids {
        let start = usize::try_from(id)? * width;
        let row = all.get(start..start + width).with_context(|| {
            format!(
                "the tokenizer's token {id} is not in the model's vocabulary of {}: it belongs to another model",
                model.vocab_size
            )
        })?;
        chosen.extend_from_slice(row);
    }
    Ok(chosen)
}

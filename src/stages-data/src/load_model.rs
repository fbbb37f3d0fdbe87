//! `load_model`: the files are checked, not read: weights stay as they are until a stage needs them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use engine::artifact::ArtifactType;
use engine::contract::Summary;
use engine::event::Level;
use engine::job::{About as _, Draft, Drafts, Job, Reference, Reporter};
use engine::peek::Sources;
use formats::peft::{BOTTLENECK_WEIGHTS_FILE, WEIGHTS_FILE};
use formats::quantized;
use formats::{
    BertConfig, BertParts, LlamaConfig, ModelConfig, REWARD_HEAD, Stored, TokenizerFiles, Weights,
};
use kinds::load_model::LoadModel;
use kinds::memory::{QUANTIZED, configured, weights as weight_files};
use serde_json::{Map, Value, json};

/// The weight of an encoder's head for labels, as transformers has it.
const LABEL_HEAD: &str = "classifier.weight";

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: LoadModel = job.params()?;
    let all = source_files(job)?;
    let gguf: Vec<_> = all
        .iter()
        .filter(|(name, _)| name.to_lowercase().ends_with(".gguf"))
        .cloned()
        .collect();
    let parts = match gguf.as_slice() {
        [] => hugging_face(&all).about("source")?,
        [(_, path)] if all.len() == 1 => from_gguf(path, &job.out)?,
        _ => {
            let error = anyhow!(
                "a model is one `.gguf` file or a Hugging Face folder; name one file of: {}",
                names(&all)
            );
            return Err(error).about("source");
        }
    };
    let draft = model_draft(ArtifactType::Model, parts, &params.dtype, job, cx)?;
    Ok([("model".to_owned(), draft)].into())
}

/// What will be known of the model, from the heads of its files.
pub(crate) fn glance(params: &Map<String, Value>, sources: &Sources) -> Result<Summary> {
    let files = sources.get("source").context("the model has no source")?;
    let files: Vec<(String, PathBuf)> = files
        .iter()
        .map(|file| (file.name.clone(), file.path.clone()))
        .collect();
    let weights = Weights::open_files(&files)?;
    let (config, said): (_, Option<Value>) = match weights.gguf() {
        Some(file) => (ModelConfig::Llama(LlamaConfig::from_gguf(file)?), None),
        None => {
            let text = config_text(&files)?;
            (parse_config(&text)?, Some(serde_json::from_str(&text)?))
        }
    };
    let dtype = params.get("dtype").and_then(Value::as_str);
    let dtype = dtype.context("a model has a dtype")?;
    let mut known = match &config {
        ModelConfig::Llama(llama) => {
            let mut known = language_summary(llama, llama.parameter_count(), &weights, dtype);
            known.extend(configured(llama.to_json()));
            known
        }
        ModelConfig::Bert(bert) => {
            let mut known = encoder_summary(bert, BertParts::of(&weights), &weights, dtype);
            known.extend(said.into_iter().flat_map(configured));
            known
        }
    };
    known.extend(scheme(&config, &weights));
    known.entry(QUANTIZED.to_owned()).or_insert(Value::Null);
    let sizes = weight_files(&files).map(|path| path.metadata().map_or(0, |m| m.len()));
    known.insert("bytes".to_owned(), sizes.sum::<u64>().into());
    Ok(known)
}

/// The text of the configuration in a Hugging Face folder.
fn config_text(files: &[(String, PathBuf)]) -> Result<String> {
    let config = files.iter().find(|(name, _)| name == "config.json");
    let (_, path) = config.with_context(|| {
        format!("a model is a `.gguf` file or a folder with `config.json` and `model.safetensors`; here are: {}", names(files))
    })?;
    std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))
}

fn parse_config(text: &str) -> Result<ModelConfig> {
    ModelConfig::from_json(text, Path::new("config.json"))
}

/// The names and paths of the files of `source`.
pub(crate) fn source_files(job: &Job) -> Result<Vec<(String, PathBuf)>> {
    let files = job.source("source")?.iter();
    Ok(files.map(|f| (f.name.clone(), f.path.clone())).collect())
}

/// The draft of a model or a reward model with its tokenizer, after its files were checked against each other; the tokenizer's files
/// are written into a folder below the job's.
pub(crate) fn model_draft(
    artifact: ArtifactType,
    parts: Parts,
    dtype: &str,
    job: &Job,
    cx: &dyn Reporter,
) -> Result<Draft> {
    let (summary, vocabulary) = check(artifact, &parts, dtype, cx).about("source")?;
    let (files, _, tokenizer) = parts;
    let folder = job.out.join("tokenizer");
    std::fs::create_dir_all(&folder)?;
    tokenizer.save(&folder)?;
    let mut tokenizer_files: Vec<(String, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let entry = entry?;
        tokenizer_files.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        ));
    }
    let tokenizer_draft = Draft {
        artifact: ArtifactType::Tokenizer,
        files: tokenizer_files,
        refs: BTreeMap::new(),
        summary: [
            ("vocabulary".to_owned(), vocabulary.into()),
            (
                "chat_template".to_owned(),
                tokenizer.chat_template.is_some().into(),
            ),
            ("bos".to_owned(), json!(tokenizer.bos_token)),
            ("eos".to_owned(), json!(tokenizer.eos_token)),
        ]
        .into(),
    };
    Ok(Draft {
        artifact,
        files,
        refs: [(
            "tokenizer".to_owned(),
            Reference::Inline(Box::new(tokenizer_draft)),
        )]
        .into(),
        summary,
    })
}

/// Checks a model's files against each other: its summary, and how many tokens its tokenizer has.
fn check(
    artifact: ArtifactType,
    (files, config, tokenizer): &Parts,
    dtype: &str,
    cx: &dyn Reporter,
) -> Result<(Summary, usize)> {
    let weights = Weights::open_files(files)?;
    let scored = weights.get(REWARD_HEAD).is_some();
    let mut summary = match (config, artifact) {
        (ModelConfig::Llama(llama), ArtifactType::RewardModel) => {
            ensure!(
                scored,
                "the weights hold no `{REWARD_HEAD}`, the head of a reward model: a language model is what `load_model` reads"
            );
            llama.check_reward_model(&weights)?;
            language_summary(llama, llama.reward_model_parameter_count(), &weights, dtype)
        }
        (ModelConfig::Llama(llama), _) => {
            ensure!(
                !scored,
                "the weights hold `{REWARD_HEAD}`, a head for rewards or labels in the place of that for words: `kind: load_reward_model` reads them, and \
                 `kind: load_classifier` where a row of it is a label"
            );
            llama.check(&weights)?;
            language_summary(llama, llama.parameter_count(), &weights, dtype)
        }
        (ModelConfig::Bert(_), ArtifactType::RewardModel) => {
            bail!(
                "the folder holds an encoder (BERT), which is no reward model: `load_model` reads it, and `load_classifier` where it has a head for labels"
            )
        }
        (ModelConfig::Bert(bert), _) => {
            ensure!(
                weights.get(LABEL_HEAD).is_none(),
                "the weights hold `{LABEL_HEAD}`, a head for labels: `kind: load_classifier` reads them"
            );
            let parts = bert.check(&weights)?;
            ensure!(
                tokenizer.masking.is_some(),
                "the tokenizer has no special tokens of an encoder (`[CLS]`, `[SEP]`, `[MASK]`): take tokenizer.json and \
                 tokenizer_config.json of this encoder"
            );
            encoder_summary(bert, parts, &weights, dtype)
        }
    };
    summary.extend(scheme(config, &weights));
    if let Some((_, path)) = files.iter().find(|(name, _)| name == "config.json") {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{} can't be read", path.display()))?;
        let remark = quantized::check_described(&text, path, &weights, config)?;
        remark.iter().for_each(|text| cx.note(Level::Warning, text));
    }
    let loaded = tokenizer.tokenizer()?;
    let vocabulary = loaded.get_vocab_size(true);
    if vocabulary > config.vocab_size() {
        bail!(
            "the tokenizer has {vocabulary} tokens and the model {} embeddings: they do not belong together",
            config.vocab_size()
        );
    }
    Ok((summary, vocabulary))
}

/// Files that are kept, with what some of them say.
pub(crate) type Parts = (Vec<(String, PathBuf)>, ModelConfig, TokenizerFiles);

fn from_gguf(path: &Path, out: &Path) -> Result<Parts> {
    let read = || -> Result<_> {
        let file = formats::gguf::File::open(path)?;
        Ok((
            LlamaConfig::from_gguf(&file)?,
            TokenizerFiles::from_gguf(&file)?,
        ))
    };
    let (config, tokenizer) = read().about("source")?;
    let config_path = out.join("config.json");
    std::fs::write(
        &config_path,
        serde_json::to_string_pretty(&config.to_json())?,
    )?;
    Ok((
        vec![
            ("model.gguf".to_owned(), path.to_owned()),
            ("config.json".to_owned(), config_path),
        ],
        ModelConfig::Llama(config),
        tokenizer,
    ))
}

/// The files of a Hugging Face folder that a model needs; others, pickles among them, are left alone.
pub(crate) fn hugging_face(all: &[(String, PathBuf)]) -> Result<Parts> {
    let config = parse_config(&config_text(all)?)?;
    let tokenizer = TokenizerFiles::from_folder_files(all)?;
    let kept: Vec<_> = all
        .iter()
        .filter(|(name, _)| {
            name == "config.json"
                || name == "model.safetensors.index.json"
                || name.ends_with(".safetensors")
        })
        .cloned()
        .collect();
    if kept
        .iter()
        .any(|(name, _)| name == WEIGHTS_FILE || name == BOTTLENECK_WEIGHTS_FILE)
    {
        bail!(
            "this folder holds an adapter, not a whole model: load its base here, and the adapter onto it with `kind: load_adapter`"
        );
    }
    if !kept.iter().any(|(name, _)| name.ends_with(".safetensors")) {
        bail!(
            "the folder has no `.safetensors` file (pickled weights are never loaded); here are: {}",
            names(all)
        );
    }
    Ok((kept, config, tokenizer))
}

/// What a language model's artifact says of itself: its shape, and how its tensors are stored.
fn language_summary(
    config: &LlamaConfig,
    parameters: u64,
    weights: &Weights,
    dtype: &str,
) -> Summary {
    let mut all = summary(config, parameters, dtype);
    all.insert("stored".to_owned(), json!(stored(weights)));
    all
}

/// What a summary says of quantized weights, where there are any.
fn scheme(config: &ModelConfig, weights: &Weights) -> Option<(String, Value)> {
    let mut tensors = config.tensors_in(weights).into_iter();
    let word = tensors.find_map(|tensor| match tensor.storage(weights).ok()? {
        quantized::Linear::Dense => None,
        quantized::Linear::Nf4(_) => Some("nf4"),
        quantized::Linear::Int8 => Some("int8"),
    });
    word.map(|word| (QUANTIZED.to_owned(), json!(word)))
}

/// The shape of a model in the words of its summary.
pub(crate) fn summary(config: &LlamaConfig, parameters: u64, dtype: &str) -> Summary {
    [
        ("architecture", json!("llama")),
        ("parameters", json!(parameters)),
        ("dtype", json!(dtype)),
        ("layers", json!(config.num_hidden_layers)),
        ("hidden", json!(config.hidden_size)),
        (
            "heads",
            json!([config.num_attention_heads, config.num_key_value_heads]),
        ),
        ("vocabulary", json!(config.vocab_size)),
        ("context", json!(config.max_position_embeddings)),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v))
    .collect()
}

/// The same of an encoder, and what there is beside it.
fn encoder_summary(
    config: &BertConfig,
    parts: BertParts,
    weights: &Weights,
    dtype: &str,
) -> BTreeMap<String, Value> {
    let heads = config.num_attention_heads;
    let known = [
        ("architecture", json!("bert")),
        ("parameters", json!(config.parameter_count(parts))),
        ("dtype", json!(dtype)),
        ("layers", json!(config.num_hidden_layers)),
        ("hidden", json!(config.hidden_size)),
        ("heads", json!([heads, heads])),
        ("vocabulary", json!(config.vocab_size)),
        ("context", json!(config.max_position_embeddings)),
        ("pooler", json!(parts.pooler)),
        ("masked_head", json!(parts.head)),
        ("stored", json!(stored(weights))),
    ];
    known.map(|(k, v)| (k.to_owned(), v)).into()
}

/// How many tensors are stored in which format.
fn stored(weights: &Weights) -> BTreeMap<String, u64> {
    let mut stored: BTreeMap<String, u64> = BTreeMap::new();
    for info in weights.infos() {
        let name = match info.stored {
            Stored::Plain(dtype) => dtype.name().to_owned(),
            Stored::Gguf(quantization) => quantization.name().to_owned(),
        };
        *stored.entry(name).or_insert(0) += 1;
    }
    stored
}

/// Names of files, for messages.
pub(crate) fn names(files: &[(String, PathBuf)]) -> String {
    let mut list: Vec<_> = files.iter().take(12).map(|(n, _)| n.as_str()).collect();
    if files.len() > 12 {
        list.push("…");
    }
    list.join(", ")
}

//! A whole classifier taken apart: the model's files without the head, named as an artifact of its own, and around it what transformers needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use engine::artifact::ArtifactType;
use engine::job::{Draft, Job, Reference, Reporter};
use formats::head::{About, TENSORS};
use formats::safetensors::{self, Entry};
use formats::{Dtype, ModelConfig, Weights};
use kinds::load_classifier::LoadClassifier;
use serde_json::{Map, Value, json};

use super::{Files, Found, described, draft as artifact, find, head_files};
use crate::load_model::{hugging_face, model_draft};

/// The matrix of a causal model that makes words: classifiers have none.
const WORDS: &str = "lm_head.weight";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The classifier in a folder that holds it whole.
pub(super) fn draft(
    job: &Job,
    all: &Files,
    found: &Found,
    params: &LoadClassifier,
    cx: &dyn Reporter,
) -> Result<Draft> {
    let about = &found.about;
    let (kept, config, tokenizer) = hugging_face(all)?;
    let weights = Weights::open_files(&kept)?;
    described::check_under(about, &config, &weights)?;
    let tensors = about.shape.tensors()?.into_iter();
    let of_head: BTreeSet<String> = tensors.map(|(name, _)| name).collect();
    let is_head = |name: &str| of_head.contains(name);
    let mut shards = Vec::new();
    for (index, path) in weights.paths().into_iter().enumerate() {
        let to = job.out.join(format!("shard-{index}.safetensors"));
        shards.extend(without(path, &is_head, &to, cx)?);
    }
    ensure!(
        !shards.is_empty(),
        "the weights hold the head and no model under it"
    );
    let settings = find(all, CONFIG).context("BUG: the configuration was found")?;
    let (inner_settings, config) = worded(settings, config, &weights, &job.out)?;
    let mut inner = vec![(CONFIG.to_owned(), inner_settings)];
    inner.extend(model_files(&shards, &job.out)?);
    let model = model_draft(
        ArtifactType::Model,
        (inner, config, tokenizer),
        params.dtype(),
        job,
        cx,
    )?;
    let Some(Reference::Inline(tokenizer)) = model.refs.get("tokenizer") else {
        bail!("BUG: a model without a tokenizer")
    };
    let mut tokenizer = (**tokenizer).clone();
    for (_, path) in &mut tokenizer.files {
        *path = twice(path, &job.out)?;
    }
    let own = found.head()?;
    let (mut files, parameters) = head_files(about, own.as_ref().unwrap_or(&weights), &job.out)?;
    files.extend(outer_files(about, &shards, &job.out)?);
    let renamed = params.labels.is_some();
    let settings = match renamed {
        true => relabelled(about, settings, &job.out)?,
        false => settings.clone(),
    };
    files.push((CONFIG.to_owned(), settings));
    let mut draft = artifact(
        about,
        files,
        [
            Reference::Inline(Box::new(model)),
            Reference::Inline(Box::new(tokenizer)),
        ],
        (parameters, about.shape.names.module().is_some()),
    );
    let dtype = json!(params.dtype());
    draft.summary.insert("dtype".to_owned(), dtype);
    Ok(draft)
}

/// A file of weights without a head.
pub(super) struct Shard {
    /// Where it is.
    pub path: PathBuf,
    /// Its tensors, and the bytes of each.
    tensors: Vec<(String, usize)>,
}

/// A safetensors file without some of its tensors, written to `to`; the file itself where it has none of them, and nothing where it has no other.
pub(super) fn without(
    path: &Path,
    left_out: &dyn Fn(&str) -> bool,
    to: &Path,
    cx: &dyn Reporter,
) -> Result<Option<Shard>> {
    let file = safetensors::File::open(path)?;
    let entries = file.entries().iter();
    let kept: Vec<&Entry> = entries.filter(|entry| !left_out(&entry.name)).collect();
    if kept.is_empty() {
        return Ok(None);
    }
    let sizes = kept
        .iter()
        .map(|entry| (entry.name.clone(), entry.range.len()));
    let tensors: Vec<(String, usize)> = sizes.collect();
    if kept.len() == file.entries().len() {
        let path = path.to_owned();
        return Ok(Some(Shard { path, tensors }));
    }
    let heads: Vec<(String, Dtype, Vec<usize>)> = kept
        .iter()
        .map(|entry| (entry.name.clone(), entry.dtype, entry.shape.clone()))
        .collect();
    let pairs = file.metadata().iter();
    let pairs: Vec<(&str, &str)> = pairs.map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mut last: Option<&Entry> = None;
    safetensors::write_with(to, &heads, &pairs, |index| {
        cx.check()?;
        if let Some(entry) = last.replace(kept[index]) {
            file.release(entry);
        }
        file.bytes(kept[index])
    })?;
    let path = to.to_owned();
    Ok(Some(Shard { path, tensors }))
}

/// The configuration of the model under the head. Where that is a language model whose words are no embedding, a classifier leaves out the matrix for
/// words: what is left is one whose words are.
fn worded(
    settings: &Path,
    config: ModelConfig,
    weights: &Weights,
    out: &Path,
) -> Result<(PathBuf, ModelConfig)> {
    match config {
        ModelConfig::Llama(mut llama)
            if !llama.tie_word_embeddings && weights.get(WORDS).is_none() =>
        {
            llama.tie_word_embeddings = true;
            let mut object = object(settings)?;
            object.insert("tie_word_embeddings".to_owned(), json!(true));
            let path = out.join("model-config.json");
            std::fs::write(&path, serde_json::to_vec_pretty(&object)?)?;
            Ok((path, ModelConfig::Llama(llama)))
        }
        config => Ok((settings.to_owned(), config)),
    }
}

/// The configuration with other names of labels.
fn relabelled(about: &About, settings: &Path, out: &Path) -> Result<PathBuf> {
    let mut object = object(settings)?;
    about.describe(&mut object);
    let path = out.join("classifier-config.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&object)?)?;
    Ok(path)
}

fn object(settings: &Path) -> Result<Map<String, Value>> {
    let text =
        std::fs::read(settings).with_context(|| format!("{} can't be read", settings.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a configuration", settings.display()))
}

/// Names for several files of weights.
fn name(index: usize, of: usize) -> String {
    match of {
        1 => "backbone.safetensors".to_owned(),
        _ => format!("backbone-{:05}-of-{of:05}.safetensors", index + 1),
    }
}

/// The weights of the model under the head, as its artifact names them.
fn model_files(shards: &[Shard], out: &Path) -> Result<Vec<(String, PathBuf)>> {
    if let [only] = shards {
        return Ok(vec![(WEIGHTS.to_owned(), only.path.clone())]);
    }
    let own = |(index, shard): (usize, &Shard)| (name(index, shards.len()), shard.path.clone());
    let mut files: Vec<(String, PathBuf)> = shards.iter().enumerate().map(own).collect();
    let path = out.join("model-index.json");
    write_index(shards, None, &path)?;
    files.push((INDEX.to_owned(), path));
    Ok(files)
}

/// The same around the head: where transformers knows its shape, an index over both.
fn outer_files(about: &About, shards: &[Shard], out: &Path) -> Result<Vec<(String, PathBuf)>> {
    let known = about.shape.names.module().is_some();
    if let ([only], false) = (shards, known) {
        return Ok(vec![(WEIGHTS.to_owned(), twice(&only.path, out)?)]);
    }
    let mut files = Vec::new();
    for (index, shard) in shards.iter().enumerate() {
        files.push((name(index, shards.len()), twice(&shard.path, out)?));
    }
    let path = out.join("classifier-index.json");
    write_index(shards, known.then_some(about), &path)?;
    files.push((INDEX.to_owned(), path));
    Ok(files)
}

/// Writes an index over files of weights, and over the file of a head, of which the matrix for words is no part.
fn write_index(shards: &[Shard], head: Option<&About>, path: &Path) -> Result<()> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    let mut total: usize = 0;
    for (index, shard) in shards.iter().enumerate() {
        for (tensor, bytes) in &shard.tensors {
            if head.is_some() && tensor == WORDS {
                continue;
            }
            map.insert(tensor.clone(), name(index, shards.len()));
            total += bytes;
        }
    }
    for (tensor, shape) in head
        .map(|about| about.shape.tensors())
        .transpose()?
        .unwrap_or_default()
    {
        total += shape.iter().product::<usize>() * Dtype::F32.size();
        map.insert(tensor, TENSORS.to_owned());
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    std::fs::write(path, serde_json::to_vec_pretty(&index)?)
        .with_context(|| format!("{} can't be written", path.display()))
}

/// The same file for a second artifact: publishing takes each in `out` that it is given away.
fn twice(path: &Path, out: &Path) -> Result<PathBuf> {
    if !path.starts_with(out) {
        return Ok(path.to_owned());
    }
    let mut other = path.as_os_str().to_owned();
    other.push(".again");
    let other = PathBuf::from(other);
    std::fs::hard_link(path, &other)
        .with_context(|| format!("{} can't be linked", path.display()))?;
    Ok(other)
}

//! What the stages that attach an adapter share: the layers it may go to, how their names are written, the artifact.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use engine::artifact::ArtifactView;
use engine::job::{Draft, Job};
use formats::config::bert::{OUTSIDE, bare_name};
use formats::peft::{CONFIG_FILE, WEIGHTS_FILE, match_targets};
use formats::{BertParts, Dtype, LlamaConfig, ModelConfig, Weights};
use kinds::model::{ModelParts, adapter_draft};
use serde_json::Value;

/// A tensor of a file: its name, type, shape and bytes.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A linear layer: path, outputs, inputs.
pub(crate) type Linear = (String, usize, usize);

/// The linear layers of a model that has no adapter yet.
pub(crate) fn linears(parts: &ModelParts) -> Result<Vec<Linear>> {
    let (text, path) = config_text(parts)?;
    Ok(ModelConfig::from_json(&text, path)?.linear_shapes())
}

/// The shape of a language model that has no adapter yet.
pub(crate) fn config(parts: &ModelParts) -> Result<LlamaConfig> {
    let (text, path) = config_text(parts)?;
    match ModelConfig::from_json(&text, path)? {
        ModelConfig::Llama(config) => Ok(config),
        ModelConfig::Bert(_) => bail!(
            "the model is an encoder (BERT), and this adapter is for language models; `lora` and `ia3` take both"
        ),
    }
}

fn config_text<'a>(parts: &ModelParts<'a>) -> Result<(String, &'a Path)> {
    if !parts.adapters.is_empty() {
        bail!("the model has an adapter already; attach one to its base");
    }
    let path = parts.base.file("config.json")?;
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{} can't be read", path.display()))?;
    Ok((text, path))
}

/// What the names in an encoder begin with.
const ENCODER: &str = "bert.";

/// Whether the adapter's files have the names of an encoder alone, without `bert.`: so they have where there is no head for masked tokens, and
/// transformers opens the encoder by `AutoModel`.
pub(crate) fn is_bare(parts: &ModelParts) -> Result<bool> {
    let (text, path) = config_text(parts)?;
    match ModelConfig::from_json(&text, path)? {
        ModelConfig::Llama(_) => Ok(false),
        ModelConfig::Bert(_) => {
            let weights = Weights::open_files(parts.base_files())?;
            Ok(!BertParts::of(&weights).head)
        }
    }
}

/// The paths of modules as the adapter's files have them.
pub(crate) fn written(bare: bool, module: &str) -> &str {
    match bare {
        true => bare_name(module),
        false => module,
    }
}

fn is_encoder(names: &[&str]) -> bool {
    names.iter().any(|name| name.starts_with(ENCODER))
}

/// PEFT's word for what a model with linears of these names is for: none for an encoder, which PEFT would ask to write.
pub(crate) fn task_type(names: &[&str]) -> Option<String> {
    (!is_encoder(names)).then(|| "CAUSAL_LM".to_owned())
}

/// Lists of modules as PEFT reads them, names without their paths: as few as say the same. Where they do not for one of the lists, all
/// have whole paths, since PEFT compares the names of one list with those of another. Of an encoder they must not mean what is outside of
/// its layers, where PEFT looks, too; `bare` is `is_bare`.
pub(crate) fn patterns(
    lists: &[&[String]],
    names: &[&str],
    bare: bool,
) -> Result<Vec<Vec<String>>> {
    let mut names = names.to_vec();
    if is_encoder(&names) {
        names.extend(OUTSIDE);
    }
    let short = |list: &&[String]| {
        let last = list.iter().map(|m| m.rsplit('.').next().unwrap_or(m));
        let mut short: Vec<String> = last.map(str::to_owned).collect();
        short.sort();
        short.dedup();
        short
    };
    let shorts: Vec<Vec<String>> = lists.iter().map(short).collect();
    for (short, list) in shorts.iter().zip(lists) {
        if !short.is_empty() && match_targets(short, &names)? != *list {
            let path = |module: &String| written(bare, module).to_owned();
            let whole = |list: &&[String]| -> Vec<String> { list.iter().map(path).collect() };
            return Ok(lists.iter().map(whole).collect());
        }
    }
    Ok(shorts)
}

/// The artifact of `model` with an adapter of these tensors; `save` writes its settings.
pub(crate) fn draft(
    job: &Job,
    model: &ArtifactView,
    tensors: &[Tensor],
    save: impl FnOnce(&Path) -> Result<()>,
    summary: BTreeMap<String, Value>,
) -> Result<Draft> {
    draft_as(job, model, (WEIGHTS_FILE, tensors), save, summary)
}

/// The same with the name of the file of the tensors.
pub(crate) fn draft_as(
    job: &Job,
    model: &ArtifactView,
    (name, tensors): (&str, &[Tensor]),
    save: impl FnOnce(&Path) -> Result<()>,
    summary: BTreeMap<String, Value>,
) -> Result<Draft> {
    let weights = job.out.join(name);
    let config = job.out.join(CONFIG_FILE);
    formats::safetensors::write_file(&weights, tensors, &[("format", "pt")])?;
    save(&config)?;
    let files = vec![(name.to_owned(), weights), (CONFIG_FILE.to_owned(), config)];
    adapter_draft(model, files, summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_where_they_say_the_same() {
        let names = ["0.k_proj", "0.down_proj", "1.k_proj", "1.down_proj"];
        let list = |picked: &[usize]| -> Vec<String> {
            picked.iter().map(|i| names[*i].to_owned()).collect()
        };
        let (all, downs, one) = (list(&[0, 1, 2, 3]), list(&[1, 3]), list(&[3]));
        let found = patterns(&[&all, &downs], &names, false).unwrap();
        assert_eq!(found, [vec!["down_proj", "k_proj"], vec!["down_proj"]]);
        let found = patterns(&[&all, &one], &names, false).unwrap();
        assert_eq!(found, [all.clone(), one]);
        let found = patterns(&[&all, &[]], &names, false).unwrap();
        assert_eq!(found[1], Vec::<String>::new());
        // An encoder's pooler ends in `dense`, too, and has no adapter.
        let at = |part: &str| format!("bert.encoder.layer.0.{part}");
        let (key, dense) = (at("attention.self.key"), at("output.dense"));
        let names = [key.as_str(), dense.as_str()];
        let found = patterns(&[std::slice::from_ref(&key)], &names, true).unwrap();
        assert_eq!(found, [vec!["key"]]);
        let lists = [std::slice::from_ref(&dense)];
        let found = patterns(&lists, &names, false).unwrap();
        assert_eq!(found, [vec![dense.clone()]]);
        let found = patterns(&lists, &names, true).unwrap();
        assert_eq!(found, [vec!["encoder.layer.0.output.dense"]]);
    }
}

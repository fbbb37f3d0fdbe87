//! `load_adapter`: the files are checked against the base and kept as they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use engine::artifact::ArtifactView;
use engine::contract::Summary;
use engine::digest::Digest;
use engine::event::Level;
use engine::export::{BASE, Base, is_weights};
use engine::job::{About as _, Drafts, Job, Reporter};
use engine::peek::Sources;
use formats::peft::{
    BOTTLENECK_WEIGHTS_FILE, CONFIG_FILE, PeftConfig, WEIGHTS_FILE, match_targets,
};
use formats::{BertParts, ModelConfig, Weights};
use kinds::load_adapter::LoadAdapter;
use kinds::model::{ModelParts, adapter_draft};
use serde_json::{Map, Value, json};

use crate::load_model::{names, source_files};

/// The longest list of a base that is read, in bytes.
const LONGEST: u64 = 1 << 20;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: LoadAdapter = job.params()?;
    let model = job.input("model")?;
    let parts = ModelParts::of(model)?;
    if !parts.adapters.is_empty() {
        let error = "`model` has an adapter already: name its base, or `merge` that adapter first";
        return Err(anyhow!(error)).about("model");
    }
    let base = Ground::open(&parts)?;
    let (files, config, weights) = opened(job, &base).about("source")?;
    let modules = fit(&config, &weights, &base).about("source")?;
    say_what_is_left(&config, &modules, &base, cx);
    if let Some(list) = &files.base {
        let made = format!("the adapter was made for {}", made_for(&config));
        check_base(list, &made, model, params.other_base, cx)?;
    }
    check_numbers(&config, &weights, cx).about("source")?;
    let mut summary = described(&config);
    summary.insert("modules".to_owned(), json!(modules.len()));
    summary.insert("trainable".to_owned(), json!(count(&weights)));
    let kept = vec![
        (config.weights_file().to_owned(), files.weights),
        (CONFIG_FILE.to_owned(), files.config),
    ];
    let draft = adapter_draft(model, kept, summary)?;
    Ok([("model".to_owned(), draft)].into())
}

/// The files of the source, which are an adapter of a model like the base and nothing more.
fn opened(job: &Job, base: &Ground) -> Result<(Files, PeftConfig, Weights)> {
    let files = Files::of(&source_files(job)?)?;
    let config = PeftConfig::open(&files.config)?;
    check_whole(&config, &base.config)?;
    ensure!(
        files.name == config.weights_file(),
        "an adapter of these settings keeps its tensors in `{}`, and there is `{}`",
        config.weights_file(),
        files.name
    );
    let weights = files.weights()?;
    Ok((files, config, weights))
}

/// What will be known of the adapter, from its settings and the head of its weights.
pub(crate) fn glance(_: &Map<String, Value>, sources: &Sources) -> Result<Summary> {
    let all = sources.get("source").context("the adapter has no source")?;
    let all: Vec<(String, PathBuf)> = all
        .iter()
        .map(|file| (file.name.clone(), file.path.clone()))
        .collect();
    let files = Files::of(&all)?;
    let config = PeftConfig::open(&files.config)?;
    let mut known = described(&config);
    known.insert("trainable".to_owned(), json!(count(&files.weights()?)));
    if let PeftConfig::Lora(lora) = &config {
        known.insert("dropout".to_owned(), json!(lora.lora_dropout));
    }
    Ok(known)
}

/// The files of an adapter's folder; others are left alone.
struct Files {
    config: PathBuf,
    /// The name of the file of weights.
    name: &'static str,
    weights: PathBuf,
    /// What Levain wrote down of the base.
    base: Option<PathBuf>,
}

impl Files {
    fn of(all: &[(String, PathBuf)]) -> Result<Files> {
        let find = |name: &str| {
            let file = all.iter().find(|(own, _)| own == name);
            file.map(|(_, path)| path.clone())
        };
        let Some(config) = find(CONFIG_FILE) else {
            let whole = all.iter().any(|(name, _)| name == "config.json");
            let hint = match whole {
                true => "; a whole model is what `load_model` reads",
                false => "",
            };
            bail!(
                "an adapter is a folder with `{CONFIG_FILE}` and `{WEIGHTS_FILE}`, and there is no `{CONFIG_FILE}`; here are: {}{hint}",
                names(all)
            )
        };
        let found = [WEIGHTS_FILE, BOTTLENECK_WEIGHTS_FILE]
            .into_iter()
            .find_map(|name| Some((name, find(name)?)));
        let Some((name, weights)) = found else {
            let pickles = ["adapter_model.bin", "pytorch_adapter.bin"];
            let pickled = pickles.iter().any(|name| find(name).is_some());
            let hint = match pickled {
                true => {
                    "; pickled weights are never loaded, since they can run code: open the adapter in Python and save it again as safetensors (PEFT does; `adapters` with `use_safetensors=True`)"
                }
                false => "",
            };
            bail!(
                "there is no `{WEIGHTS_FILE}`; here are: {}{hint}",
                names(all)
            )
        };
        Ok(Files {
            config,
            name,
            weights,
            base: find(BASE),
        })
    }

    fn weights(&self) -> Result<Weights> {
        Weights::open_files(&[(self.name.to_owned(), self.weights.clone())])
    }
}

/// The base that an adapter is put on.
pub(crate) struct Ground {
    pub config: ModelConfig,
    pub weights: Weights,
}

impl Ground {
    pub(crate) fn open(parts: &ModelParts<'_>) -> Result<Ground> {
        let path = parts.base.file("config.json")?;
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{} can't be read", path.display()))?;
        Ok(Ground {
            config: ModelConfig::from_json(&text, path)?,
            weights: Weights::open_files(parts.base_files())?,
        })
    }
}

/// Refuses what is more than an adapter of the base, or is made for another task.
fn check_whole(config: &PeftConfig, base: &ModelConfig) -> Result<()> {
    let (what, own, otherwise) = match base {
        ModelConfig::Llama(_) => (
            "a language model, which is CAUSAL_LM",
            "CAUSAL_LM",
            "load the whole model with `load_model`, `load_reward_model` or `load_classifier`",
        ),
        ModelConfig::Bert(_) => (
            "an encoder, which is FEATURE_EXTRACTION or has none",
            "FEATURE_EXTRACTION",
            "load its encoder, saved without the head, with `load_model`, or the whole with `load_classifier`",
        ),
    };
    let saved = config.saved();
    ensure!(
        saved.is_empty(),
        "{CONFIG_FILE}: modules_to_save is {}, modules that are stored whole beside the adapter, which is not supported: merge it in PEFT \
         (`merge_and_unload`), and {otherwise}",
        saved.join(", ")
    );
    let task = config.task().unwrap_or(own);
    ensure!(
        task == own,
        "{CONFIG_FILE}: task_type is {task}, and `model` is {what}: the adapter belongs to another kind of model"
    );
    Ok(())
}

/// The modules that the adapter changes, once names and shapes of all its tensors fit the base.
pub(crate) fn fit(config: &PeftConfig, weights: &Weights, base: &Ground) -> Result<Vec<String>> {
    let linears = base.config.linears_in(&base.weights);
    config.check(weights, &base.config, &linears).with_context(|| {
        let (what, layers, width, parameters) = match &base.config {
            ModelConfig::Llama(config) => (
                "a Llama",
                config.num_hidden_layers,
                config.hidden_size,
                config.parameter_count(),
            ),
            ModelConfig::Bert(config) => (
                "an encoder",
                config.num_hidden_layers,
                config.hidden_size,
                config.parameter_count(BertParts::of(&base.weights)),
            ),
        };
        format!(
            "the adapter was made for {} and does not go with `model` ({what}; layers: {layers}, width: {width}, parameters: {parameters}): name \
             the base that it was trained on, or if this is it, fetch the adapter's files again, which do not fit each other",
            made_for(config)
        )
    })
}

/// Says which linears outside of an encoder's layers the settings mean, too, where the file has nothing for them: the model that was adapted
/// may not have had them, or the file lost them.
fn say_what_is_left(config: &PeftConfig, modules: &[String], base: &Ground, cx: &dyn Reporter) {
    let targets = match config {
        PeftConfig::Lora(lora) => &lora.target_modules,
        PeftConfig::Ia3(ia3) => &ia3.target_modules,
        PeftConfig::Bottleneck(_) | PeftConfig::Soft(_) => return,
    };
    let linears = base.config.linears_in(&base.weights);
    let names: Vec<&str> = linears.iter().map(|linear| linear.0.as_str()).collect();
    let mut meant = match_targets(targets, &names).unwrap_or_default();
    meant.retain(|name| !modules.contains(name));
    if !meant.is_empty() {
        let text = format!(
            "the targets in {CONFIG_FILE} mean {}, too, of which the file has no tensors: what has none stays as it is. That is right if the \
             adapter was trained on a model without it",
            meant.join(" and ")
        );
        cx.note(Level::Warning, &text);
    }
}

/// The base in the words of the adapter's settings.
fn made_for(config: &PeftConfig) -> String {
    match config.base_model() {
        Some(name) => format!("{name:?} ({CONFIG_FILE})"),
        None => format!("a base that its {CONFIG_FILE} does not name"),
    }
}

/// Compares the base that Levain wrote down when it exported something with the one that is given; `made` says in words what was made for it.
pub(crate) fn check_base(
    list: &Path,
    made: &str,
    model: &ArtifactView,
    other_is_meant: bool,
    cx: &dyn Reporter,
) -> Result<()> {
    let shown = || {
        format!(
            "{} is no list of an adapter's base: remove it",
            list.display()
        )
    };
    let size = std::fs::metadata(list).with_context(shown)?.len();
    ensure!(size <= LONGEST, "{}: it has {size} bytes", shown());
    let bytes = std::fs::read(list).with_context(shown)?;
    let base: Base = serde_json::from_slice(&bytes).with_context(shown)?;
    // The same model in another type is another artifact of the same files.
    if base.artifact == model.digest || base.weights == contents(model, cx)? {
        return Ok(());
    }
    let what = format!(
        "{made}, the base {} ({BASE}), and `model` is {}, which has other weights",
        base.artifact.short(),
        model.digest.short()
    );
    ensure!(
        other_is_meant,
        "{what}: name the base that it was trained on. Where `model` is that one in another form, such as quantized, or another is meant, say \
         `other_base: true`"
    );
    cx.note(Level::Warning, &what);
    Ok(())
}

/// The digests of a model's files of weights, in their order.
fn contents(model: &ArtifactView, cx: &dyn Reporter) -> Result<Vec<Digest>> {
    let mut all = Vec::new();
    for (_, path) in model.files.iter().filter(|(name, _)| is_weights(name)) {
        cx.check()?;
        let (digest, _) =
            Digest::of_file(path).with_context(|| format!("{} can't be read", path.display()))?;
        all.push(digest);
    }
    all.sort_unstable();
    Ok(all)
}

/// Refuses numbers with which no product is finite.
pub(crate) fn check_numbers(
    config: &PeftConfig,
    weights: &Weights,
    cx: &dyn Reporter,
) -> Result<()> {
    if let PeftConfig::Lora(lora) = config {
        let scale = lora.scale() as f32;
        ensure!(
            scale.is_finite(),
            "{CONFIG_FILE}: lora_alpha {} with r {} is a scale that f32 does not hold",
            lora.lora_alpha,
            lora.r
        );
    }
    for info in weights.infos() {
        cx.check()?;
        let values = weights.read_f32(&info.name)?;
        weights.release(&info.name);
        ensure!(
            values.iter().all(|value| value.is_finite()),
            "{}: the tensor {:?} holds numbers that are not finite: the file is damaged, or the adapter's training diverged",
            config.weights_file(),
            info.name
        );
    }
    Ok(())
}

/// The numbers in an adapter.
pub(crate) fn count(weights: &Weights) -> u64 {
    let of = |shape: &[usize]| shape.iter().map(|extent| *extent as u64).product::<u64>();
    weights.infos().map(|info| of(&info.shape)).sum()
}

/// What the settings say, in the words of the kind that makes such an adapter.
pub(crate) fn described(config: &PeftConfig) -> BTreeMap<String, Value> {
    let mut known: BTreeMap<&str, Value> = match config {
        PeftConfig::Lora(lora) => {
            let mut known = BTreeMap::from([
                ("adapter", json!("lora")),
                ("r", json!(lora.r)),
                ("alpha", json!(lora.lora_alpha)),
                ("targets", json!(lora.target_modules)),
            ]);
            if lora.use_dora {
                known.insert("dora", json!(true));
            }
            known
        }
        PeftConfig::Ia3(ia3) => BTreeMap::from([
            ("adapter", json!("ia3")),
            ("targets", json!(ia3.target_modules)),
        ]),
        PeftConfig::Bottleneck(bottleneck) => BTreeMap::from([
            ("adapter", json!("bottleneck")),
            ("width", json!(bottleneck.width())),
        ]),
        PeftConfig::Soft(soft) => BTreeMap::from([
            ("adapter", json!(soft.kind.peft_type().to_lowercase())),
            ("virtual_tokens", json!(soft.num_virtual_tokens)),
        ]),
    };
    if let Some(name) = config.base_model() {
        known.insert("made_for", json!(name));
    }
    let known = known.into_iter();
    known
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<(String, PathBuf)> {
        let file = |name: &&str| ((*name).to_owned(), PathBuf::from(format!("folder/{name}")));
        names.iter().map(file).collect()
    }

    #[test]
    fn folders_that_hold_no_adapter_say_what_is_missing() {
        let fails = |names: &[&str]| match Files::of(&files(names)) {
            Ok(_) => panic!("{names:?} is an adapter"),
            Err(error) => format!("{error:#}"),
        };
        let said = fails(&["config.json", "model.safetensors"]);
        assert!(said.contains("`load_model`"), "{said}");
        let said = fails(&[CONFIG_FILE, "adapter_model.bin"]);
        assert!(said.contains("pickled weights are never loaded"), "{said}");
        let said = fails(&[CONFIG_FILE, "notes.txt"]);
        assert!(
            said.contains(WEIGHTS_FILE) && said.contains("notes.txt"),
            "{said}"
        );
        let found = Files::of(&files(&[CONFIG_FILE, WEIGHTS_FILE, "README.md"])).unwrap();
        assert!(found.base.is_none());
    }
}

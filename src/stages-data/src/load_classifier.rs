//! `load_classifier`: the files are checked against each other, and taken apart: the head in files of its own, the model under it as one that is
//! loaded like any other.

mod described;
mod whole;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::contract::Summary;
use engine::export::BASE;
use engine::job::{About as _, Draft, Drafts, Job, Reference, Reporter};
use engine::peek::Sources;
use formats::head::{ABOUT, About, TENSORS};
use formats::peft::{CONFIG_FILE, PeftConfig};
use formats::{Dtype, ModelConfig, Weights, safetensors};
use kinds::load_classifier::LoadClassifier;
use kinds::model::{ModelParts, adapter_draft};
use serde_json::{Map, Value, json};

use crate::adapter::Tensor;
use crate::load_adapter::{
    Ground, check_base, check_numbers, count, described as adapter_summary, fit,
};
use crate::load_model::{names, source_files};

/// Files by their names in the folder.
type Files = [(String, PathBuf)];

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: LoadClassifier = job.params()?;
    let all = source_files(job)?;
    let found = look(&all, params.labels.as_deref()).about("source")?;
    let model = match job.inputs.contains_key("model") {
        true => Some(job.input("model")?),
        false => None,
    };
    let draft = match (found.form, model) {
        (Form::Whole, None) => whole::draft(job, &all, &found, &params, cx).about("source")?,
        (Form::Whole, Some(_)) => {
            bail!("the folder holds a whole classifier, so that `model` is of no use: leave it out")
        }
        (Form::Adapter, Some(model)) => {
            check_model(&all, model, &params, cx)?;
            adapter(job, &all, &found, model, cx).about("source")?
        }
        (Form::Head, Some(model)) => {
            check_model(&all, model, &params, cx)?;
            alone(job, &found, model).about("source")?
        }
        (Form::Adapter, None) => bail!(
            "the folder holds an adapter and a head, and not the model under them: give the adapter's base as `model`"
        ),
        (Form::Head, None) => {
            bail!("the folder holds a head alone: give the model whose vectors it takes as `model`")
        }
    };
    Ok([("model".to_owned(), draft)].into())
}

/// What will be known of the classifier, from its settings and the heads of its files.
pub(crate) fn glance(params: &Map<String, Value>, sources: &Sources) -> Result<Summary> {
    let files = sources.get("source");
    let files = files.context("the classifier has no source")?.iter();
    let files: Vec<(String, PathBuf)> = files
        .map(|file| (file.name.clone(), file.path.clone()))
        .collect();
    let labels: Option<Vec<String>> = match params.get("labels") {
        Some(given) => serde_json::from_value(given.clone())?,
        None => None,
    };
    let about = look(&files, labels.as_deref())?.about;
    Ok([
        ("task".to_owned(), json!(about.task)),
        ("outputs".to_owned(), json!(about.shape.outputs)),
        ("pooling".to_owned(), json!(about.pooling)),
    ]
    .into())
}

/// What a folder holds beside the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The model under it.
    Whole,
    /// An adapter.
    Adapter,
    /// Nothing.
    Head,
}

/// A classifier's folder.
#[derive(Debug)]
struct Found {
    about: About,
    form: Form,
    /// The head's own file, which folders of transformers have not.
    head: Option<PathBuf>,
}

impl Found {
    /// The head's own file, opened.
    fn head(&self) -> Result<Option<Weights>> {
        let open = |path: &PathBuf| Weights::open_files(&[(TENSORS.to_owned(), path.clone())]);
        self.head.as_ref().map(open).transpose()
    }
}

/// Looks at the small files of a folder and at the heads of its large ones.
fn look(all: &Files, labels: Option<&[String]>) -> Result<Found> {
    let has = |name: &str| find(all, name).is_some();
    ensure!(
        !all.iter()
            .any(|(name, _)| name.to_lowercase().ends_with(".gguf")),
        "a GGUF file has no head for labels; a classifier is a folder as transformers saves it, or one that Levain exported"
    );
    let Some(path) = find(all, ABOUT) else {
        ensure!(
            !has(CONFIG_FILE),
            "the folder holds an adapter and no `{ABOUT}`: PEFT does not write down which labels a head tells apart. Merge it in PEFT \
             (`merge_and_unload`), save the whole classifier with its labels, and load that"
        );
        return Ok(Found {
            about: described::by_config(all, labels)?,
            form: Form::Whole,
            head: None,
        });
    };
    let mut about = About::open(path)?;
    if let Some(labels) = labels {
        about.labels = described::renamed(about.task, labels)?;
        about.check().context("`labels`")?;
    }
    let tensors = find(all, TENSORS).with_context(|| {
        format!(
            "there is `{ABOUT}` and no `{TENSORS}` with the head's numbers; here are: {}",
            names(all)
        )
    })?;
    let form = match (has(CONFIG_FILE), has("config.json")) {
        (true, _) => Form::Adapter,
        (false, true) => Form::Whole,
        (false, false) => Form::Head,
    };
    let found = Found {
        about,
        form,
        head: Some(tensors.clone()),
    };
    if let Some(weights) = found.head()? {
        found.about.check_tensors(&weights)?;
    }
    Ok(found)
}

fn find<'a>(all: &'a Files, name: &str) -> Option<&'a PathBuf> {
    let file = all.iter().find(|(own, _)| own == name);
    file.map(|(_, path)| path)
}

/// Compares the model that Levain wrote down when it exported the classifier with the one that is given.
fn check_model(
    all: &Files,
    model: &ArtifactView,
    params: &LoadClassifier,
    cx: &dyn Reporter,
) -> Result<()> {
    match find(all, BASE) {
        Some(list) => {
            let made = "the classifier was made for a model that its files leave out";
            check_base(list, made, model, params.other_base, cx)
        }
        None => Ok(()),
    }
}

/// A head on the model whose vectors it takes.
fn alone(job: &Job, found: &Found, model: &ArtifactView) -> Result<Draft> {
    let base = Ground::open(&ModelParts::of(model)?)?;
    described::check_under(&found.about, &base.config, &base.weights)?;
    let head = found.head()?.context("BUG: a head without its file")?;
    let (files, parameters) = head_files(&found.about, &head, &job.out)?;
    let tokenizer = model.reference("tokenizer")?.digest;
    Ok(draft(
        &found.about,
        files,
        [
            Reference::Artifact(model.digest),
            Reference::Artifact(tokenizer),
        ],
        (parameters, false),
    ))
}

/// A head and an adapter on the adapter's base.
fn adapter(
    job: &Job,
    all: &Files,
    found: &Found,
    model: &ArtifactView,
    cx: &dyn Reporter,
) -> Result<Draft> {
    let about = &found.about;
    let parts = ModelParts::of(model)?;
    ensure!(
        parts.adapters.is_empty(),
        "`model` has an adapter already: name its base"
    );
    let settings = find(all, CONFIG_FILE).context("BUG: an adapter without settings")?;
    let config = PeftConfig::open(settings)?;
    let name = config.weights_file();
    let path = find(all, name).with_context(|| {
        format!(
            "an adapter of these settings keeps its tensors in `{name}`; here are: {}",
            names(all)
        )
    })?;
    let base = Ground::open(&parts)?;
    described::check_under(about, &base.config, &base.weights)?;
    // Where PEFT knows the head, it stands among the adapter's tensors a second time.
    let tensors = about.shape.tensors()?.into_iter();
    let again: Vec<String> = tensors.map(|(name, _)| config.saved_key(&name)).collect();
    let is_head = |name: &str| again.iter().any(|other| other == name);
    let own = whole::without(path, &is_head, &job.out.join(name), cx)?;
    let own = own.with_context(|| format!("{name} holds the head and no adapter"))?;
    let task = match base.config {
        ModelConfig::Llama(_) => "CAUSAL_LM",
        ModelConfig::Bert(_) => "FEATURE_EXTRACTION",
    };
    let config = config.for_task(task, &[]);
    let inner_settings = job.out.join(CONFIG_FILE);
    config.save(&inner_settings)?;
    let weights = Weights::open_files(&[(name.to_owned(), own.path.clone())])?;
    let modules = fit(&config, &weights, &base)?;
    check_numbers(&config, &weights, cx)?;
    let mut summary = adapter_summary(&config);
    summary.insert("modules".to_owned(), json!(modules.len()));
    summary.insert("trainable".to_owned(), json!(count(&weights)));
    let inner_files = vec![
        (name.to_owned(), own.path),
        (CONFIG_FILE.to_owned(), inner_settings),
    ];
    let inner = adapter_draft(model, inner_files, summary)?;
    let head = found.head()?.context("BUG: a head without its file")?;
    let (mut files, parameters) = head_files(about, &head, &job.out)?;
    files.push((name.to_owned(), path.clone()));
    files.push((CONFIG_FILE.to_owned(), settings.clone()));
    let tokenizer = model.reference("tokenizer")?.digest;
    Ok(draft(
        about,
        files,
        [
            Reference::Inline(Box::new(inner)),
            Reference::Artifact(tokenizer),
        ],
        (parameters, about.shape.names.module().is_some()),
    ))
}

/// Writes the head in f32. Gives its files, and how many numbers it has.
fn head_files(
    about: &About,
    source: &Weights,
    out: &Path,
) -> Result<(Vec<(String, PathBuf)>, usize)> {
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut numbers = 0;
    for (name, shape) in about.shape.tensors()? {
        let values = source.read_f32(&name)?;
        ensure!(
            values.iter().all(|value| value.is_finite()),
            "the tensor {name:?} of the head holds numbers that are not finite: the file is damaged, or the training diverged"
        );
        numbers += values.len();
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        tensors.push((name, Dtype::F32, shape, bytes.collect()));
    }
    let (path, weights) = (out.join(ABOUT), out.join(TENSORS));
    about.save(&path)?;
    safetensors::write_file(&weights, &tensors, &[("format", "pt")])?;
    let files = vec![(ABOUT.to_owned(), path), (TENSORS.to_owned(), weights)];
    Ok((files, numbers))
}

/// The classifier as an artifact, as `classifier` and `head` make it.
fn draft(
    about: &About,
    files: Vec<(String, PathBuf)>,
    [model, tokenizer]: [Reference; 2],
    (parameters, transformers): (usize, bool),
) -> Draft {
    Draft {
        artifact: ArtifactType::Classifier,
        files,
        refs: [
            ("model".to_owned(), model),
            ("tokenizer".to_owned(), tokenizer),
        ]
        .into(),
        summary: [
            ("task".to_owned(), json!(about.task)),
            ("outputs".to_owned(), json!(about.shape.outputs)),
            ("pooling".to_owned(), json!(about.pooling)),
            ("parameters".to_owned(), json!(parameters)),
            ("transformers".to_owned(), json!(transformers)),
        ]
        .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<(String, PathBuf)> {
        let file = |name: &&str| ((*name).to_owned(), PathBuf::from(format!("folder/{name}")));
        names.iter().map(file).collect()
    }

    #[test]
    fn folders_that_are_no_classifier_say_what_to_do() {
        let said = |names: &[&str]| format!("{:#}", look(&files(names), None).unwrap_err());
        let found = said(&["model.gguf"]);
        assert!(
            found.contains("a GGUF file has no head for labels"),
            "{found}"
        );
        let found = said(&[CONFIG_FILE, "adapter_model.safetensors"]);
        assert!(
            found.contains("`merge_and_unload`") && found.contains(ABOUT),
            "{found}"
        );
        let found = said(&["notes.txt"]);
        assert!(
            found.contains("AutoModelForSequenceClassification") && found.contains("notes.txt"),
            "{found}"
        );
    }
}

//! The files of a classifier: the model that was trained, as an artifact of its own that is loaded like any other, and around it what
//! transformers and PEFT need where they know the shape. Both name the same blobs, so that nothing is stored twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::job::{Draft, Job, Reference};
use formats::PeftConfig;
use formats::head::{ABOUT, About, TENSORS};
use kinds::model::adapter_draft;
use ml::Tensor;
use ml::head::Head;
use serde_json::{Map, Value, json};

use crate::cuts::Cuts;
use crate::model::LoadedBackbone;
use crate::training::check_finite;

/// The matrix of a causal model that makes words: classifiers have none.
pub(super) const WORDS: &str = "lm_head.weight";

/// The weights of the model alone, where an index names them.
const BACKBONE: &str = "backbone.safetensors";

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";

type Files = Vec<(String, PathBuf)>;

/// The classifier as an artifact.
pub(super) fn draft(
    job: &Job,
    view: &ArtifactView,
    loaded: &LoadedBackbone,
    (about, head): (&About, &Head),
    cuts: &Cuts,
) -> Result<Draft> {
    check_finite(&loaded.params)?;
    let own: Vec<(String, Tensor)> = head.tensors();
    let is_head = |name: &str| own.iter().any(|(other, _)| other == name);
    let packed = loaded.backbone.packed_values() > 0;
    let (mut files, model) = match loaded.adapter {
        Some(_) => {
            let (files, inner) = adapter(job, view, loaded, about, &own)?;
            (files, Reference::Inline(Box::new(inner)))
        }
        // Of quantized weights only the head learns: the model is the one that came in.
        None if packed => (Vec::new(), Reference::Artifact(view.digest)),
        None => {
            let (files, inner) = whole(job, view, loaded, about, &own, &is_head)?;
            (files, Reference::Inline(Box::new(inner)))
        }
    };
    let (path, tensors) = (job.out.join(ABOUT), job.out.join(TENSORS));
    about.save(&path)?;
    ml::tensors::write(&tensors, &own, &[("format", "pt")])?;
    files.push((ABOUT.to_owned(), path));
    files.push((TENSORS.to_owned(), tensors));
    let parameters: usize = own.iter().map(|(_, tensor)| tensor.numel()).sum();
    let tokenizer = view.reference("tokenizer")?.digest;
    Ok(Draft {
        artifact: ArtifactType::Classifier,
        files,
        refs: [
            ("model".to_owned(), model),
            ("tokenizer".to_owned(), Reference::Artifact(tokenizer)),
        ]
        .into(),
        summary: [
            ("task".to_owned(), serde_json::to_value(about.task)?),
            ("outputs".to_owned(), about.shape.outputs.into()),
            ("pooling".to_owned(), serde_json::to_value(about.pooling)?),
            ("parameters".to_owned(), parameters.into()),
            (
                "transformers".to_owned(),
                (about.shape.names.module().is_some() && (loaded.adapter.is_some() || !packed))
                    .into(),
            ),
        ]
        .into_iter()
        .chain(cuts.summary())
        .collect(),
    })
}

/// The files around the trained adapter, and the model with it.
fn adapter(
    job: &Job,
    view: &ArtifactView,
    loaded: &LoadedBackbone,
    about: &About,
    head: &[(String, Tensor)],
) -> Result<(Files, Draft)> {
    let own = loaded.backbone.adapter_tensors(false);
    let settings = view.file(ADAPTER_CONFIG)?.clone();
    let config = PeftConfig::open(&settings)?;
    let name = config.weights_file();
    let path = job.out.join(name);
    ml::tensors::write(&path, &own, &[("format", "pt")])?;
    let inner_files = vec![
        (name.to_owned(), path.clone()),
        (ADAPTER_CONFIG.to_owned(), settings.clone()),
    ];
    let inner = adapter_draft(view.reference("base")?, inner_files, view.summary.clone())?;
    let Some(module) = about.shape.names.module() else {
        let files = vec![
            (name.to_owned(), twice(&path)?),
            (ADAPTER_CONFIG.to_owned(), settings),
        ];
        return Ok((files, inner));
    };
    let own = loaded.backbone.adapter_tensors(true).into_iter();
    let of_head = head.iter();
    let of_head = of_head.map(|(name, tensor)| (config.saved_key(name), tensor.shallow_clone()));
    let tensors: Vec<(String, Tensor)> = own.chain(of_head).collect();
    let path = job.out.join("classifier-adapter.safetensors");
    ml::tensors::write(&path, &tensors, &[("format", "pt")])?;
    let config_path = job.out.join("classifier-adapter.json");
    config.for_task("SEQ_CLS", &[module]).save(&config_path)?;
    let files = vec![
        (name.to_owned(), path),
        (ADAPTER_CONFIG.to_owned(), config_path),
    ];
    Ok((files, inner))
}

/// The files around the trained weights, and the model with them, in its own type.
fn whole(
    job: &Job,
    view: &ArtifactView,
    loaded: &LoadedBackbone,
    about: &About,
    head: &[(String, Tensor)],
    is_head: &dyn Fn(&str) -> bool,
) -> Result<(Files, Draft)> {
    let own: Vec<(String, Tensor)> = loaded
        .params
        .iter()
        .filter(|(name, _)| !is_head(name))
        .map(|(name, p)| (name.to_owned(), p.tensor.detach()))
        .collect();
    let path = job.out.join(WEIGHTS);
    ml::tensors::write(&path, &own, &[("format", "pt")])?;
    let config = view.file(CONFIG)?.clone();
    let mut summary: BTreeMap<String, Value> = view.summary.clone();
    summary.remove("stored");
    let tokenizer = view.reference("tokenizer")?.digest;
    let inner = Draft {
        artifact: ArtifactType::Model,
        files: vec![
            (WEIGHTS.to_owned(), path.clone()),
            (CONFIG.to_owned(), config.clone()),
        ],
        refs: [("tokenizer".to_owned(), Reference::Artifact(tokenizer))].into(),
        summary,
    };
    let weights = twice(&path)?;
    if about.shape.names.module().is_none() {
        let files = vec![(WEIGHTS.to_owned(), weights), (CONFIG.to_owned(), config)];
        return Ok((files, inner));
    }
    let their = own.iter().filter(|(name, _)| name != WORDS);
    let map: BTreeMap<&str, &str> = their
        .map(|(name, _)| (name.as_str(), BACKBONE))
        .chain(head.iter().map(|(name, _)| (name.as_str(), TENSORS)))
        .collect();
    let bytes: usize = own
        .iter()
        .chain(head)
        .filter(|(name, _)| name != WORDS)
        .map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes())
        .sum();
    let index_path = job.out.join("classifier-index.json");
    let index = json!({ "metadata": { "total_size": bytes }, "weight_map": map });
    std::fs::write(&index_path, serde_json::to_vec_pretty(&index)?)?;
    let config_path = job.out.join("classifier-config.json");
    let config = configured(&config, loaded, about)?;
    std::fs::write(&config_path, serde_json::to_vec_pretty(&config)?)?;
    let files = vec![
        (BACKBONE.to_owned(), weights),
        (INDEX.to_owned(), index_path),
        (CONFIG.to_owned(), config_path),
    ];
    Ok((files, inner))
}

/// The same file under a second name: publishing takes each that it is given away.
fn twice(path: &Path) -> Result<PathBuf> {
    let mut other = path.as_os_str().to_owned();
    other.push(".again");
    let other = PathBuf::from(other);
    std::fs::hard_link(path, &other)
        .with_context(|| format!("{} can't be linked", path.display()))?;
    Ok(other)
}

/// The model's own configuration, as one of transformers' classifiers.
fn configured(path: &Path, loaded: &LoadedBackbone, about: &About) -> Result<Map<String, Value>> {
    let text = std::fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    let mut config: Map<String, Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a configuration", path.display()))?;
    let encoder = &loaded.encoder;
    let pad = config.get("pad_token_id").and_then(Value::as_i64);
    let other = encoder.pad().or(encoder.eos()).map(i64::from);
    about.describe(&mut config);
    // Without one, a Llama under a head takes one row at a time.
    config.insert("pad_token_id".to_owned(), json!(pad.or(other)));
    Ok(config)
}

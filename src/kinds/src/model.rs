//! What a model artifact holds: the files and references that every kind which reads or makes a model agrees on.
//!
//! | artifact | files | refs |
//! |---|---|---|
//! | base | `config.json`, and `model.gguf` or safetensors files | `tokenizer` |
//! | base with an adapter | `adapter_config.json`, `adapter_model.safetensors` (PEFT's), or of bottleneck adapters `adapter.safetensors` | `base`, `tokenizer` |
//! | tokenizer | `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` when there is one | |

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use engine::artifact::ArtifactView;
use engine::job::{Draft, Reference};
use serde_json::Value;

/// A model taken apart.
pub struct ModelParts<'a> {
    /// The weights' own artifact.
    pub base: &'a ArtifactView,
    /// Artifacts with an adapter, the innermost first.
    pub adapters: Vec<&'a ArtifactView>,
    /// The tokenizer's artifact.
    pub tokenizer: &'a ArtifactView,
    /// `bf16` or `f32`.
    pub dtype: String,
}

impl<'a> ModelParts<'a> {
    /// Follows the references of a model.
    pub fn of(model: &'a ArtifactView) -> Result<Self> {
        let mut adapters = Vec::new();
        let mut at = model;
        while let Some(base) = at.refs.get("base") {
            adapters.push(at);
            at = base;
        }
        adapters.reverse();
        let dtype = at
            .summary
            .get("dtype")
            .and_then(Value::as_str)
            .context("the model does not say its dtype")?;
        Ok(Self {
            base: at,
            adapters,
            tokenizer: model.reference("tokenizer")?,
            dtype: dtype.to_owned(),
        })
    }

    /// The files of weights and configuration: (name, path).
    pub fn base_files(&self) -> &'a [(String, PathBuf)] {
        &self.base.files
    }
}

/// The draft of `model` with an adapter of its own; `inner` is the artifact that the adapter is made for.
pub fn adapter_draft(
    inner: &ArtifactView,
    files: Vec<(String, PathBuf)>,
    summary: BTreeMap<String, Value>,
) -> Result<Draft> {
    let tokenizer = inner.reference("tokenizer")?.digest;
    Ok(Draft {
        artifact: engine::artifact::ArtifactType::Model,
        files,
        refs: [
            ("base".to_owned(), Reference::Artifact(inner.digest)),
            ("tokenizer".to_owned(), Reference::Artifact(tokenizer)),
        ]
        .into(),
        summary,
    })
}

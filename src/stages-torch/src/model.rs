//! A model artifact → a model in memory.

use anyhow::{Context, Result};
use data::encode::Encoder;
use engine::artifact::ArtifactView;
use engine::digest::Digest;
use engine::job::Job;
use formats::{LlamaConfig, PeftConfig, TokenizerFiles, Weights};
use kinds::model::ModelParts;
use ml::place::HOST;
use ml::reward::{HEAD, Head};
use ml::{Kind, Llama, Params, Place, Tensor};

/// A model with its parameters and its tokenizer.
pub(crate) struct Loaded {
    pub model: Llama,
    pub params: Params,
    pub encoder: Encoder,
    /// The configuration of the outermost adapter.
    pub adapter: Option<PeftConfig>,
    /// The head of a reward model.
    pub head: Option<Head>,
    /// The artifact of the weights under the adapters.
    base: Digest,
}

/// Loads `view` for `job`: everything frozen, adapters attached.
pub(crate) fn load(view: &ArtifactView, job: &Job) -> Result<Loaded> {
    load_on(view, &job.device, job.threads)
}

/// The same with a device and a number of threads.
pub(crate) fn load_on(view: &ArtifactView, device: &str, threads: usize) -> Result<Loaded> {
    load_from(view, device, threads, None)
}

/// Loads `view` beside another model: where both are adapters on the same weights, which nothing trains then, the weights are held once.
pub(crate) fn load_beside(view: &ArtifactView, job: &Job, other: &Loaded) -> Result<Loaded> {
    load_from(view, &job.device, job.threads, Some(other))
}

fn load_from(
    view: &ArtifactView,
    device: &str,
    threads: usize,
    other: Option<&Loaded>,
) -> Result<Loaded> {
    ml::place::set_threads(threads);
    let parts = ModelParts::of(view)?;
    let place = Place::parse(device, &parts.dtype)?;
    let config_path = parts.base.file("config.json")?;
    let text =
        std::fs::read_to_string(config_path).context("the model's config.json can't be read")?;
    let config = LlamaConfig::from_json(&text, config_path)?;
    let mut params = Params::new();
    let weights = Weights::open_files(parts.base_files())?;
    let shared = other.filter(|other| {
        let adapted = other.adapter.is_some() && !parts.adapters.is_empty();
        adapted && other.base == parts.base.digest && other.model.place == place
    });
    let mut model = match shared {
        Some(other) => Llama::beside(&other.model, &other.params, &mut params)?,
        None => Llama::load(&config, &weights, place, &mut params)?,
    };
    let mut head = stored_head(&weights, HEAD, &config)?;
    let mut adapter = None;
    for view in &parts.adapters {
        let found = PeftConfig::open(view.file("adapter_config.json")?)?;
        let name = found.weights_file();
        let weights = Weights::open_files(&[(name.to_owned(), view.file(name)?.clone())])?;
        ml::adapter::attach_stored(&mut model, &found, &weights, &mut params)?;
        if let Some(own) = stored_head(&weights, &found.saved_key(HEAD), &config)? {
            head = Some(own);
        }
        adapter = Some(found);
    }
    let head = match head {
        Some(weight) => Some(Head::new(&weight, place, &mut params)?),
        None => None,
    };
    params.train(|_| false);
    let encoder = Encoder::from_files(
        &TokenizerFiles::from_folder_files(&parts.tokenizer.files)?,
        None,
    )?;
    Ok(Loaded {
        model,
        params,
        encoder,
        adapter,
        head,
        base: parts.base.digest,
    })
}

fn stored_head(weights: &Weights, name: &str, config: &LlamaConfig) -> Result<Option<Tensor>> {
    if weights.get(name).is_none() {
        return Ok(None);
    }
    let shape = [1, config.hidden_size as i64];
    ml::tensors::read(weights, name, &shape, Kind::Float, HOST).map(Some)
}

impl Loaded {
    /// Whether this model holds the very weights that `other` holds.
    pub(crate) fn shares_with(&self, other: &Loaded) -> bool {
        let words = |model: &Loaded| {
            let tensor = model.params.get("model.embed_tokens.weight");
            tensor.map(Tensor::data_ptr)
        };
        words(self).is_some() && words(self) == words(other)
    }

    /// Whether both mean the same by a token.
    pub(crate) fn same_tokens(&self, other: &Loaded) -> bool {
        let words = |model: &Loaded| model.encoder.tokenizer().get_vocab(true);
        words(self) == words(other)
    }

    /// A reference is asked about the tokens of this model, which is the input `name`: they must mean the same to it.
    pub(crate) fn check_reference(&self, reference: &Loaded, name: &str) -> Result<()> {
        anyhow::ensure!(
            self.same_tokens(reference),
            "the reference has another tokenizer than `{name}`: log-probabilities of other tokens can't be compared. Take a model of the same family"
        );
        Ok(())
    }

    /// Puts a head on a model that has none.
    pub(crate) fn attach_head(&mut self, weight: &Tensor) -> Result<()> {
        if self.head.is_none() {
            self.head = Some(Head::new(weight, self.model.place, &mut self.params)?);
        }
        Ok(())
    }

    /// The tokens at which an answer ends: those of the model's configuration and the tokenizer's end of text.
    pub(crate) fn end_tokens(&self) -> Vec<i64> {
        let mut ends: Vec<i64> = self
            .model
            .config
            .eos_token_ids
            .iter()
            .map(|id| i64::from(*id))
            .collect();
        ends.extend(self.encoder.eos().map(i64::from));
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}

/// Devices that this process can use, `cpu` first.
pub(crate) fn devices() -> Vec<String> {
    let mut list = vec!["cpu".to_owned()];
    let mut index = 0;
    while Place::parse(&format!("cuda:{index}"), "f32").is_ok() {
        list.push(format!("cuda:{index}"));
        index += 1;
    }
    list
}

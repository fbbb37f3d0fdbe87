//! A model artifact → a model in memory.

use anyhow::{Context, Result, bail};
use data::encode::Encoder;
use engine::artifact::ArtifactView;
use engine::digest::Digest;
use engine::event::Level;
use engine::job::{Job, Reporter};
use formats::{LlamaConfig, ModelConfig, PeftConfig, TokenizerFiles, Weights};
use kinds::model::{FOR_ENCODERS, ModelParts};
use ml::place::HOST;
use ml::reward::{HEAD, Head};
use ml::{Backbone, Bert, Kind, Llama, Params, Place, Tensor};

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
    load_from(view, device, threads, &[])
}

/// Loads `view` beside another model: where both are adapters on the same weights, which nothing trains then, the weights are held once.
pub(crate) fn load_beside(view: &ArtifactView, job: &Job, other: &Loaded) -> Result<Loaded> {
    load_beside_all(view, job, other, &[])
}

/// The same, where the weights of models that nothing trains may serve as well.
pub(crate) fn load_beside_all(
    view: &ArtifactView,
    job: &Job,
    other: &Loaded,
    held: &[&Loaded],
) -> Result<Loaded> {
    let adapted = other.adapter.is_some() && view.refs.contains_key("base");
    let others = adapted.then_some(other).into_iter();
    let others: Vec<&Loaded> = others.chain(held.iter().copied()).collect();
    load_from(view, &job.device, job.threads, &others)
}

/// Loads `view` among models that nothing trains, as it: its base's weights are held once, where one of them has the same.
pub(crate) fn load_among(view: &ArtifactView, job: &Job, held: &[&Loaded]) -> Result<Loaded> {
    load_from(view, &job.device, job.threads, held)
}

/// Models that are asked one after the other, and trained by nobody. The one before goes before the next is loaded, but for the weights of
/// its base, if the next one needs the same.
pub(crate) struct Turns<'a> {
    job: &'a Job,
    /// Models that stay.
    held: Vec<&'a Loaded>,
    now: Option<Loaded>,
    /// Who was loaded onto weights that were there.
    shared: Vec<String>,
}

impl<'a> Turns<'a> {
    /// Nobody's turn yet, beside models that stay.
    pub(crate) fn new(job: &'a Job, held: Vec<&'a Loaded>) -> Turns<'a> {
        Turns {
            job,
            held,
            now: None,
            shared: Vec::new(),
        }
    }

    /// The next one, which is called `name`.
    pub(crate) fn next(&mut self, name: &str, view: &ArtifactView) -> Result<&Loaded> {
        let base = ModelParts::of(view)?.base.digest;
        let before = self.now.take().filter(|before| before.base == base);
        let held: Vec<&Loaded> = self.held.iter().copied().chain(&before).collect();
        let loaded = load_among(view, self.job, &held)?;
        if held.iter().any(|other| other.shares_with(&loaded)) {
            self.shared.push(name.to_owned());
        }
        let now = self.now.insert(loaded);
        Ok(&*now)
    }

    /// Says who was loaded onto weights that were there.
    pub(crate) fn tell(&self, cx: &dyn Reporter) {
        if !self.shared.is_empty() {
            let text = format!(
                "on a base whose weights were loaded already: {}",
                self.shared.join(", ")
            );
            cx.note(Level::Info, &text);
        }
    }
}

fn load_from(
    view: &ArtifactView,
    device: &str,
    threads: usize,
    others: &[&Loaded],
) -> Result<Loaded> {
    ml::place::set_threads(threads);
    let parts = ModelParts::of(view)?;
    let place = Place::parse(device, &parts.dtype)?;
    let config = match config(&parts)? {
        ModelConfig::Llama(config) => config,
        ModelConfig::Bert(_) => bail!(
            "the model is an encoder (BERT), which predicts no next token and writes nothing: this stage needs a language model. Of an encoder, \
             {FOR_ENCODERS}"
        ),
    };
    let mut params = Params::new();
    let weights = Weights::open_files(parts.base_files())?;
    let same = |other: &&&Loaded| other.base == parts.base.digest && other.model.place == place;
    let shared = others.iter().find(same);
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
    Ok(Loaded {
        model,
        params,
        encoder: tokenizer(&parts)?,
        adapter,
        head,
        base: parts.base.digest,
    })
}

/// The configuration of the weights.
pub(crate) fn config(parts: &ModelParts<'_>) -> Result<ModelConfig> {
    let path = parts.base.file("config.json")?;
    let text = std::fs::read_to_string(path).context("the model's config.json can't be read")?;
    ModelConfig::from_json(&text, path)
}

fn tokenizer(parts: &ModelParts<'_>) -> Result<Encoder> {
    let files = TokenizerFiles::from_folder_files(&parts.tokenizer.files)?;
    Encoder::from_files(&files, None)
}

/// A model of either architecture, for kinds that put a head of their own on its states.
pub(crate) struct LoadedBackbone {
    pub backbone: Backbone,
    pub params: Params,
    pub encoder: Encoder,
    /// The configuration of the outermost adapter.
    pub adapter: Option<PeftConfig>,
}

/// Loads `view` for `job`, a language model or an encoder: everything frozen, adapters attached.
pub(crate) fn load_backbone(view: &ArtifactView, job: &Job) -> Result<LoadedBackbone> {
    let parts = ModelParts::of(view)?;
    let config = match config(&parts)? {
        ModelConfig::Bert(config) => config,
        ModelConfig::Llama(_) => {
            let loaded = load(view, job)?;
            return Ok(LoadedBackbone {
                backbone: Backbone::Llama(loaded.model),
                params: loaded.params,
                encoder: loaded.encoder,
                adapter: loaded.adapter,
            });
        }
    };
    ml::place::set_threads(job.threads);
    let place = Place::parse(&job.device, &parts.dtype)?;
    let mut params = Params::new();
    let weights = Weights::open_files(parts.base_files())?;
    let mut model = Bert::load(&config, &weights, place, &mut params)?;
    let mut adapter = None;
    for view in &parts.adapters {
        let found = PeftConfig::open(view.file("adapter_config.json")?)?;
        let name = found.weights_file();
        let weights = Weights::open_files(&[(name.to_owned(), view.file(name)?.clone())])?;
        ml::adapter::attach_to(model.all_linears_mut(), &found, &weights, &mut params)?;
        adapter = Some(found);
    }
    params.train(|_| false);
    Ok(LoadedBackbone {
        backbone: Backbone::Bert(model),
        params,
        encoder: tokenizer(&parts)?,
        adapter,
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

#[cfg(test)]
mod tests {
    use super::*;
    use engine::artifact::ArtifactType;
    use formats::AdapterConfig;
    use ml::Pass;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    /// An artifact of these files, whose digest is that of its name.
    fn artifact(
        kind: ArtifactType,
        name: &str,
        files: &[(&str, PathBuf)],
        refs: &[(&str, &ArtifactView)],
    ) -> ArtifactView {
        let files = files.iter();
        let refs = refs.iter();
        ArtifactView {
            digest: Digest::of_bytes(name.as_bytes()),
            artifact: kind,
            files: files
                .map(|(name, path)| ((*name).to_owned(), path.clone()))
                .collect(),
            refs: refs
                .map(|(name, view)| ((*name).to_owned(), (*view).clone()))
                .collect(),
            summary: BTreeMap::from([("dtype".to_owned(), json!("f32"))]),
        }
    }

    /// The tiny model of the golden files.
    fn base(name: &str) -> ArtifactView {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/formats");
        let tiny = |file: &'static str| (file, golden.join("tiny").join(file));
        let tokenizer = artifact(
            ArtifactType::Tokenizer,
            "tokenizer",
            &[
                tiny("tokenizer.json"),
                tiny("tokenizer_config.json"),
                tiny("chat_template.jinja"),
            ],
            &[],
        );
        artifact(
            ArtifactType::Model,
            name,
            &[
                tiny("config.json"),
                ("model.safetensors", golden.join("tiny.safetensors")),
            ],
            &[("tokenizer", &tokenizer)],
        )
    }

    /// An adapter on a base: A drawn from the seed, and every number of B the same.
    fn adapter(folder: &Path, base: &ArtifactView, seed: u64, number: f64) -> ArtifactView {
        let name = format!("adapter {seed}");
        let folder = folder.join(&name);
        std::fs::create_dir(&folder).unwrap();
        let (weights, settings) = (folder.join("weights"), folder.join("settings"));
        let config = AdapterConfig {
            r: 2,
            target_modules: vec!["all-linear".to_owned()],
            ..AdapterConfig::default()
        };
        let mut loaded = load(base, &job()).unwrap();
        let linears = loaded.model.linears_mut();
        ml::lora::attach(linears, &config, seed, &mut loaded.params).unwrap();
        ml::no_grad(|| {
            let trained = loaded.params.trained();
            for (_, tensor) in trained.filter(|(name, _)| name.contains("lora_B")) {
                let _ = tensor.shallow_clone().fill_(number);
            }
        });
        ml::adapter::save(&loaded.model, &weights).unwrap();
        config.save(&settings).unwrap();
        artifact(
            ArtifactType::Model,
            &name,
            &[
                ("adapter_model.safetensors", weights),
                ("adapter_config.json", settings),
            ],
            &[
                ("base", base),
                ("tokenizer", base.reference("tokenizer").unwrap()),
            ],
        )
    }

    fn job() -> Job {
        Job {
            stage: "stage".to_owned(),
            recipe: "recipe.yaml".to_owned(),
            kind: "evaluate".to_owned(),
            version: 1,
            params: serde_json::Map::new(),
            inputs: BTreeMap::new(),
            sources: BTreeMap::new(),
            out: PathBuf::new(),
            snapshots: None,
            answers: None,
            device: "cpu".to_owned(),
            threads: 1,
        }
    }

    /// The loss of some tokens, to the bit.
    fn loss(loaded: &Loaded) -> f64 {
        let row = ml::sft::Row {
            tokens: (3..20).collect(),
            trained: vec![true; 17],
            documents: Vec::new(),
        };
        let scores =
            ml::sft::evaluate(&loaded.model, Pass::eval(), &[row], ml::loss::CHUNK).unwrap();
        scores.loss
    }

    #[test]
    fn adapters_on_one_base_hold_it_once_and_give_what_they_give_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (base, other) = (base("base"), base("other"));
        let left = adapter(folder.path(), &base, 1, 0.05);
        let right = adapter(folder.path(), &base, 2, -0.04);
        let job = job();
        let alone: Vec<f64> = [&base, &left, &right, &other]
            .map(|view| loss(&load(view, &job).unwrap()))
            .into();
        assert!(alone[0] != alone[1] && alone[1] != alone[2]);

        // All of them at once, in any order.
        let first = load(&right, &job).unwrap();
        let second = load_among(&base, &job, &[&first]).unwrap();
        let third = load_among(&left, &job, &[&first, &second]).unwrap();
        let strange = load_among(&other, &job, &[&first, &second, &third]).unwrap();
        assert!(first.shares_with(&second) && second.shares_with(&third));
        assert!(!first.shares_with(&strange));
        let found = [&second, &third, &first, &strange].map(loss);
        assert_eq!(alone, found);
        // Each has parameters of its own for its adapter only.
        let of = |loaded: &Loaded, name: &str| loaded.params.get(name).map(Tensor::data_ptr);
        let weight = "model.layers.0.self_attn.q_proj.weight";
        let down = "model.layers.0.self_attn.q_proj.lora_A.weight";
        assert_eq!(of(&first, weight), of(&third, weight));
        assert!(of(&first, down).is_some() && of(&third, down).is_some());
        assert_ne!(of(&first, down), of(&third, down));
        assert_eq!(of(&second, down), None);

        // One after the other, and the base outlives the adapter that it came with.
        let mut turns = Turns::new(&job, Vec::new());
        for (index, view) in [&base, &left, &right, &other].into_iter().enumerate() {
            let name = index.to_string();
            assert_eq!(loss(turns.next(&name, view).unwrap()), alone[index]);
        }
        assert_eq!(turns.shared, ["1", "2"]);
        let mut turns = Turns::new(&job, vec![&first]);
        turns.next("other", &other).unwrap();
        turns.next("left", &left).unwrap();
        assert_eq!(turns.shared, ["left"]);
    }

    #[test]
    fn a_model_that_may_be_trained_whole_shares_with_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let base = base("base");
        let (left, right) = (
            adapter(folder.path(), &base, 1, 0.05),
            adapter(folder.path(), &base, 2, -0.04),
        );
        let job = job();
        let whole = load(&base, &job).unwrap();
        let adapted = load(&left, &job).unwrap();
        let beside = |view, other| load_beside(view, &job, other).unwrap().shares_with(other);
        assert!(beside(&right, &adapted));
        assert!(!beside(&base, &adapted));
        assert!(!beside(&left, &whole));
        // Judges share with each other all the same.
        let judge = load_beside_all(&right, &job, &whole, &[&adapted]).unwrap();
        assert!(judge.shares_with(&adapted) && !judge.shares_with(&whole));
    }
}

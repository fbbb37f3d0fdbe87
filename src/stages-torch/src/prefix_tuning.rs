//! `prefix_tuning`: the keys and values that the model has of some tokens, or random numbers.

use anyhow::{Result, ensure};
use engine::artifact::ArtifactView;
use engine::job::{About as _, Drafts, Job, Reporter};
use formats::peft::{CONFIG_FILE, PROMPT_EMBEDDINGS, SoftConfig, SoftKind, WEIGHTS_FILE};
use kinds::model::adapter_draft;
use kinds::prefix_tuning::PrefixTuning;
use kinds::prompt_tuning::Start;
use ml::Tensor;
use ml::random::Stream;
use serde_json::json;

use crate::model::load;

pub(crate) fn run(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let params: PrefixTuning = job.params()?;
    let view: &ArtifactView = job.input("model")?;
    ensure!(
        !view.refs.contains_key("base"),
        "the model has an adapter already; attach one to its base"
    );
    let loaded = load(view, job)?;
    let model = &loaded.model;
    let count = params.virtual_tokens;
    let config = SoftConfig::new(SoftKind::Prefix, count, &model.config);
    let shape = config.shape(&model.config).about("virtual_tokens")?;
    let mut stream = Stream::new(params.seed, "init");
    let start = params.start();
    let prefix = match start {
        Start::Random => {
            let mut numbers = vec![0f32; shape[0] * shape[1]];
            stream.fill_normal(&mut numbers);
            Tensor::f_from_slice(&numbers)?.f_view(shape.map(|extent| extent as i64))?
        }
        Start::Vocabulary => {
            let words = model.config.vocab_size as u64;
            let ids: Vec<i64> = (0..count).map(|_| stream.below(words) as i64).collect();
            ml::soft::activations(model, &ids)?
        }
        Start::Text(text) => {
            let ids = loaded.encoder.encode_repeated(text, count)?;
            let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
            ml::soft::activations(model, &ids)?
        }
    };
    let trainable = prefix.numel();
    let (weights, settings) = (job.out.join(WEIGHTS_FILE), job.out.join(CONFIG_FILE));
    let tensors = [(PROMPT_EMBEDDINGS.to_owned(), prefix)];
    ml::tensors::write(&weights, &tensors, &[("format", "pt")])?;
    config.save(&settings)?;
    ml::torch::release_memory();
    let files = vec![
        (WEIGHTS_FILE.to_owned(), weights),
        (CONFIG_FILE.to_owned(), settings),
    ];
    let summary = [
        ("adapter".to_owned(), json!("prefix_tuning")),
        ("virtual_tokens".to_owned(), json!(count)),
        ("init".to_owned(), json!(start.word())),
        ("trainable".to_owned(), json!(trainable)),
    ];
    let draft = adapter_draft(view, files, summary.into())?;
    Ok([("model".to_owned(), draft)].into())
}

//! `masked_lm`: an encoder is trained to tell hidden tokens of texts.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use data::tokens::Tokens;
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reference, Reporter};
use formats::ModelConfig;
use formats::config::bert::POOLER;
use kinds::masked_lm::MaskedLm;
use kinds::model::{ModelParts, adapter_draft};
use ml::masked::{Masking, Row};
use ml::{Backbone, Bert, Params};
use serde_json::{Map, Value, json};

use crate::model::{LoadedBackbone, config, load_backbone};
use crate::training::{Counted, Trainee, check_finite, check_lengths, choose, metrics, train};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: MaskedLm = job.params()?;
    let view = job.input("model")?;
    let tokens = Tokens::open(job.input("tokens")?.file("tokens.arrow")?)?;
    let mut encoder = load_encoder(view, job, params.mask_probability, &tokens)?;
    encoder.model.checkpointing = params.training.checkpointing;
    if !encoder.model.has_masked_head() {
        ensure!(
            !encoder.adapted,
            "the encoder under the adapter has no head for masked tokens, and the adapter's files have no place for one: give it a head first \
             (`masked_lm` with `train: head`), then attach the adapter"
        );
        let seed = params.training.seed;
        encoder
            .model
            .attach_masked_head(seed, &mut encoder.params)?;
        cx.note(
            Level::Info,
            "the encoder has no head for masked tokens: it gets a fresh one, which knows nothing yet",
        );
    }
    let trainee = Trainee {
        params: &mut encoder.params,
        adapted: encoder.adapted,
        packed: encoder.model.packed_values(),
        head: None,
        // Only the states of tokens have a part in the loss.
        idle: &|name| name.starts_with(POOLER),
    };
    choose(trainee, &params.training.train, cx)?;
    let mut objective = ml::masked::MaskedLm {
        model: &encoder.model,
        masking: encoder.masking,
        seed: params.training.seed,
        epoch: 0,
        rows: tokens.len(),
        read: Box::new(|index| row(&tokens, index)),
        chunk: ml::loss::CHUNK,
    };
    let steps = train(
        job,
        cx,
        &params.training,
        &encoder.params,
        &mut objective,
        Counted::Tokens,
    )?;
    drop(objective);
    check_finite(&encoder.params)?;
    let metrics = metrics(job, &steps)?;
    let model = match encoder.adapted {
        true => adapter(job, view, &encoder)?,
        false => whole(job, view, &encoder)?,
    };
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
}

/// An encoder, and how tokens are hidden from it.
pub(crate) struct LoadedEncoder {
    pub model: Bert,
    pub params: Params,
    pub masking: Masking,
    /// Whether it has an adapter.
    pub adapted: bool,
}

/// Loads an encoder for texts that were tokenized for it; a language model is refused.
pub(crate) fn load_encoder(
    view: &ArtifactView,
    job: &Job,
    probability: f64,
    tokens: &Tokens,
) -> Result<LoadedEncoder> {
    const REFUSED: &str = "the model is a language model (Llama), whose tokens see only what stands before them: masked language modelling needs \
         an encoder (BERT). For a language model, `sft` on rows of text is the same training, and `evaluate` the measurement";
    if let ModelConfig::Llama(_) = config(&ModelParts::of(view)?)? {
        bail!(REFUSED);
    }
    let loaded = load_backbone(view, job)?;
    let LoadedBackbone {
        backbone,
        params,
        encoder,
        adapter,
    } = loaded;
    let Backbone::Bert(model) = backbone else {
        bail!(REFUSED);
    };
    let positions = model.config.max_position_embeddings;
    check_lengths("data", tokens.lengths()?.into_iter(), positions)?;
    let mask = encoder.mask().context(
        "the tokenizer has no token for what is hidden (`mask_token` in tokenizer_config.json)",
    )?;
    Ok(LoadedEncoder {
        masking: Masking {
            probability,
            mask: i64::from(mask),
            words: encoder.tokenizer().get_vocab_size(true),
        },
        model,
        params,
        adapted: adapter.is_some(),
    })
}

/// Row `index` of the tokens.
pub(crate) fn row(tokens: &Tokens, index: usize) -> Result<Row> {
    let row = tokens.row(index)?;
    Ok(Row {
        tokens: row.ids.iter().map(|id| i64::from(*id)).collect(),
        free: row.mask(),
    })
}

/// The same base with the trained adapter.
fn adapter(job: &Job, view: &ArtifactView, encoder: &LoadedEncoder) -> Result<Draft> {
    let path = job.out.join("adapter_model.safetensors");
    let stored = encoder.model.adapter_tensors(false);
    ml::tensors::write(&path, &stored, &[("format", "pt")])?;
    let config = view.file("adapter_config.json")?.clone();
    let files = vec![
        ("adapter_model.safetensors".to_owned(), path),
        ("adapter_config.json".to_owned(), config),
    ];
    adapter_draft(view.reference("base")?, files, view.summary.clone())
}

/// Every weight, in the model's own dtype, as a folder of `BertForMaskedLM` has them.
fn whole(job: &Job, view: &ArtifactView, encoder: &LoadedEncoder) -> Result<Draft> {
    let path = job.out.join("model.safetensors");
    let tensors: Vec<_> = encoder
        .params
        .iter()
        .map(|(name, p)| (name.to_owned(), p.tensor.detach()))
        .collect();
    ml::tensors::write(&path, &tensors, &[("format", "pt")])?;
    let text = std::fs::read(view.file("config.json")?)?;
    let mut config: Map<String, Value> =
        serde_json::from_slice(&text).context("the model's config.json can't be read")?;
    config.insert("architectures".to_owned(), json!(["BertForMaskedLM"]));
    let config_path = job.out.join("config.json");
    std::fs::write(&config_path, serde_json::to_vec_pretty(&config)?)?;
    let mut summary: BTreeMap<String, Value> = view.summary.clone();
    summary.remove("stored");
    summary.insert("masked_head".to_owned(), json!(true));
    summary.insert("parameters".to_owned(), json!(encoder.params.count().1));
    let tokenizer = view.reference("tokenizer")?.digest;
    Ok(Draft {
        artifact: ArtifactType::Model,
        files: vec![
            ("model.safetensors".to_owned(), path),
            ("config.json".to_owned(), config_path),
        ],
        refs: [("tokenizer".to_owned(), Reference::Artifact(tokenizer))].into(),
        summary,
    })
}

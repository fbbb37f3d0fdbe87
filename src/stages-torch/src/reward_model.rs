//! `reward_model`: the head, its training, what held-out rows say of it, and files that `AutoModelForSequenceClassification` reads.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use data::Layout;
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::{Level, What};
use engine::job::{Draft, Drafts, Job, Reference, Reporter};
use formats::PeftConfig;
use kinds::load_reward_model::{DEVIATION, MEAN};
use kinds::model::adapter_draft;
use kinds::reward_model::{CONTRACT, RewardModel};
use ml::pairwise::Pairwise;
use ml::reward::{Group, HEAD, Head, Reward, RewardLoss, score_all};
use serde_json::{Map, Value, json};

use crate::completions::Groups;
use crate::model::{Loaded, load};
use crate::training::{Counted, check_finite, choose_trained, metrics, train};

/// The least deviation of rewards: what has less is one number for all.
const CONSTANT: f64 = 1e-6;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: RewardModel = job.params()?;
    let view = job.input("model")?;
    let groups = Groups::open(job.input("tokens")?, &CONTRACT, "data")?;
    let loss = loss(&params, job.input("tokens")?)?;
    if let RewardLoss::Pairs { margins: true } = loss {
        for index in 0..groups.len() {
            ensure!(
                groups.group(index)?.1.is_finite(),
                "row {} has no margin; leave `margins` out, or annotate the pairs with a judge",
                index + 1
            );
        }
    }
    let mut loaded = load(view, job)?;
    let width = loaded.model.config.hidden_size;
    loaded.attach_head(&Head::fresh(width, params.training.seed, 1.0))?;
    choose_trained(&mut loaded, &params.training.train, cx)?;
    loaded.model.checkpointing = params.training.checkpointing;
    let head = loaded.head.as_ref().context("BUG: the head is attached")?;
    let read = |index: usize| {
        let (rows, value) = groups.group(index)?;
        Ok(Group { rows, value })
    };
    let mut objective = Reward {
        model: &loaded.model,
        head,
        groups: groups.len(),
        read: Box::new(read),
        loss,
        centering: params.centering,
    };
    let steps = train(
        job,
        cx,
        &params.training,
        &loaded.params,
        &mut objective,
        Counted::Rows,
    )?;
    drop(objective);
    let mut metrics = metrics(job, &steps)?;
    let (mean, deviation) = moments(&scores(&loaded, &groups, &params, "training", cx)?);
    cx.note(
        Level::Info,
        &format!("rewards of the training completions: mean {mean:.3}, deviation {deviation:.3}"),
    );
    if job.inputs.contains_key("test_tokens") {
        let held_out = Groups::open(job.input("test_tokens")?, &CONTRACT, "test")?;
        let test_loss = self::loss(&params, job.input("test_tokens")?)?;
        let found = scores(&loaded, &held_out, &params, "test", cx)?;
        let measured = measure(&held_out, &found, test_loss)?;
        cx.emit(What::Metrics {
            step: steps.len() as u64,
            values: measured
                .iter()
                .filter_map(|(name, value)| Some((format!("test/{name}"), value.as_f64()?)))
                .collect(),
        });
        add_test(job, &mut metrics, measured)?;
    }
    if deviation <= CONSTANT {
        let text = "the reward model gives every training completion the same reward: it can't tell them apart, and what it says of others is \
                    noise";
        cx.note(Level::Warning, text);
    }
    let model = draft(job, view, &loaded, mean, deviation)?;
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
}

fn loss(params: &RewardModel, tokens: &ArtifactView) -> Result<RewardLoss> {
    let layout = tokens.summary.get("layout").and_then(Value::as_str);
    Ok(match layout.and_then(Layout::from_name) {
        Some(Layout::Preference) => RewardLoss::Pairs {
            margins: params.margins,
        },
        Some(Layout::Ranking) => match params.ranking.as_str() {
            "plackett_luce" => RewardLoss::PlackettLuce,
            _ => RewardLoss::AllPairs,
        },
        Some(Layout::Scored) => RewardLoss::Regression,
        other => bail!("a reward model can't be trained on {other:?}"),
    })
}

/// The scores of every completion, in the order of the file.
fn scores(
    loaded: &Loaded,
    groups: &Groups,
    params: &RewardModel,
    which: &str,
    cx: &dyn Reporter,
) -> Result<Vec<f64>> {
    let head = loaded.head.as_ref().context("BUG: the head is attached")?;
    let rows = groups.rows()?;
    let total = rows.len() as u64;
    let batch = params.training.micro_batch;
    score_all(&loaded.model, head, &rows, batch, &mut |done| {
        cx.progress(done as u64, total, &format!("{which} completions scored"));
        cx.check()
    })
}

fn moments(scores: &[f64]) -> (f64, f64) {
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let variance = scores.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt().max(CONSTANT))
}

/// How well scores agree with held-out rows.
fn measure(groups: &Groups, scores: &[f64], loss: RewardLoss) -> Result<Map<String, Value>> {
    let mut found = Map::new();
    if loss == RewardLoss::Regression {
        let known: Vec<f64> = (0..groups.len())
            .map(|index| Ok(groups.group(index)?.1))
            .collect::<Result<_>>()?;
        let errors = scores.iter().zip(&known).map(|(r, s)| (r - s).powi(2));
        found.insert(
            "loss".to_owned(),
            json!(errors.sum::<f64>() / known.len() as f64),
        );
        found.insert("correlation".to_owned(), json!(correlation(scores, &known)));
        return Ok(found);
    }
    let mut all = Pairwise::default();
    for index in 0..groups.len() {
        let own = &scores[groups.range(index)];
        for (i, better) in own.iter().enumerate() {
            own[i + 1..]
                .iter()
                .for_each(|worse| all.add(better - worse));
        }
    }
    for (name, value) in [
        ("accuracy", all.accuracy()),
        ("margin", all.margin()),
        ("loss", all.loss()),
        ("calibration_error", all.calibration_error()),
        ("pairs", all.pairs()),
    ] {
        found.insert(name.to_owned(), json!(value));
    }
    Ok(found)
}

/// Pearson's.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let ((ma, sa), (mb, sb)) = (moments(a), moments(b));
    let products = a.iter().zip(b).map(|(x, y)| (x - ma) * (y - mb));
    products.sum::<f64>() / ((a.len() as f64 - 1.0).max(1.0) * sa * sb)
}

/// Adds what was measured on held-out rows to the metrics and their file.
fn add_test(job: &Job, metrics: &mut Draft, measured: Map<String, Value>) -> Result<()> {
    let path = job.out.join("metrics.json");
    let mut all: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path)?)?;
    all.insert("test".to_owned(), Value::Object(measured.clone()));
    std::fs::write(&path, serde_json::to_vec_pretty(&all)?)?;
    metrics
        .summary
        .insert("test".to_owned(), Value::Object(measured));
    Ok(())
}

/// The reward model: its files and what judges need to know.
pub(crate) fn draft(
    job: &Job,
    view: &ArtifactView,
    loaded: &Loaded,
    mean: f64,
    deviation: f64,
) -> Result<Draft> {
    let head = loaded
        .head
        .as_ref()
        .context("BUG: a reward model has a head")?;
    check_finite(&loaded.params)?;
    let mut summary: BTreeMap<String, Value> = view.summary.clone();
    summary.remove("stored");
    summary.insert("mean".to_owned(), json!(mean));
    summary.insert("deviation".to_owned(), json!(deviation));
    if loaded.adapter.is_some() {
        let path = job.out.join("reward-adapter.safetensors");
        let config_path = job.out.join("reward-adapter.json");
        let config = PeftConfig::open(view.file("adapter_config.json")?)?;
        let config = config.for_task("SEQ_CLS", &["score"]);
        let mut tensors = ml::adapter::stored(&loaded.model);
        tensors.push((config.saved_key(HEAD), head.0.detach()));
        ml::tensors::write(&path, &tensors, &[("format", "pt")])?;
        config.save(&config_path)?;
        let files = vec![
            (config.weights_file().to_owned(), path),
            ("adapter_config.json".to_owned(), config_path),
        ];
        let mut draft = adapter_draft(view.reference("base")?, files, summary)?;
        draft.artifact = ArtifactType::RewardModel;
        return Ok(draft);
    }
    let path = job.out.join("reward-model.safetensors");
    let tensors: Vec<_> = loaded
        .params
        .iter()
        .filter(|(name, _)| *name != "lm_head.weight")
        .map(|(name, p)| (name.to_owned(), p.tensor.detach()))
        .collect();
    ml::tensors::write(&path, &tensors, &[("format", "pt")])?;
    let config_path = job.out.join("reward-config.json");
    let mut config = config(view, loaded)?;
    // For `load_reward_model`; transformers leaves other words alone. A critic's values are as they are, whatever it came from.
    for (name, value, usual) in [(MEAN, mean, 0.0), (DEVIATION, deviation, 1.0)] {
        match value == usual {
            true => config.remove(name),
            false => config.insert(name.to_owned(), json!(value)),
        };
    }
    std::fs::write(&config_path, serde_json::to_vec_pretty(&config)?)?;
    let tokenizer = view.reference("tokenizer")?.digest;
    Ok(Draft {
        artifact: ArtifactType::RewardModel,
        files: vec![
            ("model.safetensors".to_owned(), path),
            ("config.json".to_owned(), config_path),
        ],
        refs: [("tokenizer".to_owned(), Reference::Artifact(tokenizer))].into(),
        summary,
    })
}

/// The model's own configuration, as a classifier with one label.
fn config(view: &ArtifactView, loaded: &Loaded) -> Result<Map<String, Value>> {
    let text = std::fs::read(view.file("config.json")?)?;
    let mut config: Map<String, Value> = serde_json::from_slice(&text)?;
    config.insert(
        "architectures".to_owned(),
        json!(["LlamaForSequenceClassification"]),
    );
    config.insert("num_labels".to_owned(), json!(1));
    config.insert("id2label".to_owned(), json!({"0": "LABEL_0"}));
    config.insert("label2id".to_owned(), json!({"LABEL_0": 0}));
    // transformers scores the last token that is not padding: where the end token is the padding too, it would take another one than
    // the training did. Without padding it takes the last one, and refuses batches of several.
    let ends = loaded.end_tokens();
    let given = config.get("pad_token_id").and_then(Value::as_i64);
    let pad = given.or(loaded.encoder.pad().map(i64::from));
    let pad = pad.filter(|pad| !ends.contains(pad));
    config.insert("pad_token_id".to_owned(), json!(pad));
    Ok(config)
}

//! `merge`: an adapter's change in the weights themselves, written a tensor at a time, and what that does to the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reference, Reporter};
use formats::{Dtype, ModelConfig, ModelTensor, PeftConfig, Weights, quantized};
use kinds::known::unmeasured;
use kinds::merge::{DEQUANTIZED, FULL_PRECISION, Merge};
use kinds::model::ModelParts;
use ml::divergence::Divergence;
use ml::{Backbone, Kind, Linear, Place, Tensor};
use serde::Serialize;
use serde_json::{Value, json};

use crate::compared::{After, measure, tell};
use crate::model::load_backbone;

const FILE: &str = "model.safetensors";

/// Settings of one model may be written with few digits in one file and with many in another.
const SAME: f64 = 1e-5;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Merge = job.params()?;
    let view = job.input("model")?;
    let parts = ModelParts::of(view)?;
    ensure!(
        !parts.adapters.is_empty(),
        "`model` has no adapter, so there is nothing to merge: name a model that `lora` gave one and that was trained with it"
    );
    for adapter in &parts.adapters {
        let config = PeftConfig::open(adapter.file("adapter_config.json")?)?;
        ensure!(
            !matches!(config, PeftConfig::Bottleneck(_)),
            "`model` has bottleneck adapters, which can't be merged: between their two projections they are not linear, so that no weight does \
             what they do. Use the model with its adapters; `outputs` writes them as they are"
        );
        ensure!(
            !matches!(config, PeftConfig::Soft(_)),
            "the adapter of `model` is virtual tokens before every row, which change no weight: there is nothing to merge. Use `model` as it \
             is, or train an adapter of `lora`"
        );
    }
    let ground = ground(job, &params, &parts)?;
    let measured = job.inputs.contains_key("tokens");
    if let (true, ModelConfig::Bert(_)) = (measured, &ground.config) {
        bail!(unmeasured("model"));
    }
    let before = load_backbone(view, job)?.backbone;
    let path = job.out.join(FILE);
    let changes = write(&path, &ground, &before, cx)?;
    let divergence = match (&before, &ground.config) {
        (Backbone::Llama(before), ModelConfig::Llama(config)) if measured => {
            let after = After {
                config,
                place: ground.place,
                path: &path,
            };
            Some(measure(job, params.micro_batch, before, &after, cx)?)
        }
        _ => None,
    };
    let metrics = report(job, &ground, &changes, divergence, cx)?;
    let model = draft(job, &parts, &ground, path)?;
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
}

/// The weights that the change is written into.
struct Ground<'a> {
    view: &'a ArtifactView,
    config_path: &'a Path,
    text: String,
    config: ModelConfig,
    weights: Weights,
    tensors: Vec<ModelTensor>,
    place: Place,
    dtype: Dtype,
    /// They are quantized, and unpacked for it.
    unpacked: bool,
}

impl<'a> Ground<'a> {
    fn open(job: &Job, view: &'a ArtifactView, dtype: &str) -> Result<Ground<'a>> {
        let config_path: &'a Path = view.file("config.json")?;
        let text = std::fs::read_to_string(config_path)
            .with_context(|| format!("{} can't be read", config_path.display()))?;
        let config = ModelConfig::from_json(&text, config_path)?;
        let weights = Weights::open_files(&view.files)?;
        Ok(Ground {
            view,
            config_path,
            text,
            tensors: config.tensors_in(&weights),
            config,
            weights,
            place: Place::parse(&job.device, dtype)?,
            dtype: Dtype::parse(&dtype.to_uppercase())?,
            unpacked: false,
        })
    }

    fn is_quantized(&self) -> Result<bool> {
        self.config.is_quantized(&self.weights)
    }

    /// A tensor without the change, in f32. Those of a file are not rounded to the model's type first, so that they are rounded once.
    fn tensor(&self, tensor: &ModelTensor) -> Result<Tensor> {
        let extents = tensor.shape.iter().map(|&extent| extent as i64);
        let shape: Vec<i64> = extents.collect();
        let (name, device) = (&tensor.stored, self.place.device);
        let packed = tensor.storage(&self.weights)? != quantized::Linear::Dense;
        let values = match shape[..] {
            [out, input] if packed => {
                let kind = self.place.kind;
                ml::tensors::read_weight(&self.weights, name, [out, input], kind, device)?
                    .values(Kind::Float)?
            }
            _ => ml::tensors::read(&self.weights, name, &shape, Kind::Float, device)?,
        };
        self.weights.release(name);
        Ok(values)
    }

    /// The word of the parameter `into` for it.
    fn word(&self) -> &'static str {
        match self.unpacked {
            true => DEQUANTIZED,
            false => FULL_PRECISION,
        }
    }
}

/// What the parameters and the inputs say the change is written into.
fn ground<'a>(job: &'a Job, params: &Merge, parts: &ModelParts<'a>) -> Result<Ground<'a>> {
    let own = Ground::open(job, parts.base, &parts.dtype)?;
    let unpacked = params.into == DEQUANTIZED;
    let given = job.inputs.contains_key("base");
    if !own.is_quantized()? {
        ensure!(
            !unpacked,
            "`into: dequantized` is for adapters on quantized models, and this one's base is not quantized: leave `into` out"
        );
        ensure!(
            !given,
            "`base` is for adapters on quantized models. This one's base is not quantized, and the adapter is merged into it: leave `base` out"
        );
        return Ok(own);
    }
    if unpacked {
        return Ok(Ground { unpacked, ..own });
    }
    ensure!(
        given,
        "the adapter of `model` is on a quantized model. Give the model that was quantized as `base`, to merge into that, or say \
         `into: dequantized`, to merge into the quantized weights unpacked"
    );
    let base = ModelParts::of(job.input("base")?)?;
    ensure!(
        base.adapters.is_empty(),
        "`base` has an adapter itself: take the model that was quantized, or merge that adapter first"
    );
    let base = Ground::open(job, base.base, &base.dtype)?;
    ensure!(
        !base.is_quantized()?,
        "`base` is quantized, too: take the model that was quantized, in full precision, or merge with `into: dequantized`"
    );
    check_same(&own, &base)?;
    check_numbers(&own, &base)?;
    Ok(base)
}

/// Refuses a base of the same shape with other numbers where nothing was quantized: a sibling of the model that was.
fn check_numbers(own: &Ground, base: &Ground) -> Result<()> {
    // They have the same tensors, perhaps under other names in the files.
    for (tensor, other) in own.tensors.iter().zip(&base.tensors) {
        if tensor.storage(&own.weights)? != quantized::Linear::Dense {
            continue;
        }
        let read = |weights: &Weights, name: &str| -> Result<Vec<f32>> {
            let values = weights.read_f32(name)?;
            weights.release(name);
            Ok(values)
        };
        let ours = read(&own.weights, &tensor.stored)?;
        let theirs = read(&base.weights, &other.stored)?;
        let rounded = |value: &f32| own.dtype.rounded(*value);
        ensure!(
            ours.iter().map(rounded).eq(theirs.iter().map(rounded)),
            "`{}` has other numbers in `base` than in `model`: `base` is not the model that was quantized, and the adapter would be \
             merged into a stranger. Take the one that `quantize` was given",
            tensor.name
        );
    }
    Ok(())
}

/// Refuses a base that is not the model that was quantized, as far as shapes and settings tell.
fn check_same(own: &Ground, base: &Ground) -> Result<()> {
    const WAY_OUT: &str =
        "the adapter belongs to another model. Take the one that `quantize` was given";
    let shapes = |ground: &Ground| -> BTreeMap<String, Vec<usize>> {
        let tensors = ground.tensors.iter();
        tensors
            .map(|tensor| (tensor.name.clone(), tensor.shape.clone()))
            .collect()
    };
    let (ours, theirs) = (shapes(own), shapes(base));
    for (name, shape) in &ours {
        match theirs.get(name) {
            Some(other) if other == shape => {}
            Some(other) => bail!(
                "`{name}` has the shape {shape:?} in `model` and {other:?} in `base`: {WAY_OUT}"
            ),
            None => {
                bail!("`{name}` of the shape {shape:?} is in `model` and not in `base`: {WAY_OUT}")
            }
        }
    }
    if let Some((name, shape)) = theirs.iter().find(|(name, _)| !ours.contains_key(*name)) {
        bail!("`{name}` of the shape {shape:?} is in `base` and not in `model`: {WAY_OUT}");
    }
    let settings = |config: &ModelConfig| match config {
        ModelConfig::Llama(config) => vec![
            ("num_attention_heads", config.num_attention_heads as f64),
            ("rms_norm_eps", config.rms_norm_eps),
            ("rope_theta", config.rope_theta),
        ],
        ModelConfig::Bert(config) => vec![
            ("num_attention_heads", config.num_attention_heads as f64),
            ("layer_norm_eps", config.layer_norm_eps),
        ],
    };
    let both = settings(&own.config)
        .into_iter()
        .zip(settings(&base.config));
    for ((name, ours), (_, other)) in both {
        ensure!(
            (ours - other).abs() <= SAME * ours.abs(),
            "{name} is {ours} in `model` and {other} in `base`: {WAY_OUT}"
        );
    }
    if let (ModelConfig::Llama(own), ModelConfig::Llama(base)) = (&own.config, &base.config) {
        ensure!(
            own.rope_scaling == base.rope_scaling,
            "rope_scaling is {:?} in `model` and {:?} in `base`: {WAY_OUT}",
            own.rope_scaling,
            base.rope_scaling
        );
    }
    Ok(())
}

/// What became of a linear.
#[derive(Serialize)]
struct Module {
    name: String,
    /// ‖W' − W‖ / ‖W‖.
    change: f64,
    /// ‖rounded W' − W'‖ / ‖W' − W‖.
    rounding: f64,
}

/// What became of all.
#[derive(Default)]
struct Changes {
    modules: Vec<Module>,
    /// The sum of the squares of what adapters changed.
    changed: f64,
    /// And of what rounding changed after that.
    rounded: f64,
}

/// √(part / whole), and 0 of nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    match whole > 0.0 {
        true => (part / whole).sqrt(),
        false => 0.0,
    }
}

impl Changes {
    /// Of a weight, which stands for its layer, or of a bias.
    fn add(
        &mut self,
        name: &str,
        weight: &Tensor,
        merged: &Tensor,
        rounded: &Tensor,
    ) -> Result<()> {
        let square = |tensor: &Tensor| -> Result<f64> {
            Ok(tensor
                .f_square()?
                .f_sum(Kind::Double)?
                .f_double_value(&[])?)
        };
        let changed = square(&(merged - weight))?;
        let lost = square(&(rounded.to_kind(merged.kind()) - merged))?;
        ensure!(
            changed.is_finite() && lost.is_finite(),
            "with its adapter `{name}` holds numbers that are not finite: the adapter's training diverged"
        );
        if let Some(module) = name.strip_suffix(".weight") {
            self.modules.push(Module {
                name: module.to_owned(),
                change: ratio(changed, square(weight)?),
                rounding: ratio(lost, changed),
            });
        }
        self.changed += changed;
        self.rounded += lost;
        Ok(())
    }

    /// Of the layer that changed most.
    fn largest(&self) -> f64 {
        let changes = self.modules.iter().map(|module| module.change);
        changes.fold(0.0, f64::max)
    }

    fn rounding(&self) -> f64 {
        ratio(self.rounded, self.changed)
    }
}

/// Writes the merged model's tensors, one in memory at a time.
fn write(
    path: &Path,
    ground: &Ground<'_>,
    before: &Backbone,
    cx: &dyn Reporter,
) -> Result<Changes> {
    let linears = before.linears().into_iter();
    let linears: BTreeMap<&str, &Linear> = linears
        .map(|linear| (linear.name.as_str(), linear))
        .collect();
    let tensors = ground.tensors.iter();
    let heads: Vec<(String, Dtype, Vec<usize>)> = tensors
        .map(|tensor| (tensor.stored.clone(), ground.dtype, tensor.shape.clone()))
        .collect();
    let mut changes = Changes::default();
    let mut done = 0;
    formats::safetensors::write_with(path, &heads, &[("format", "pt")], |index| {
        cx.check()?;
        let name = &ground.tensors[index].name;
        let weight = ground.tensor(&ground.tensors[index])?;
        let (module, part) = name.rsplit_once('.').unwrap_or_default();
        let merged = match (linears.get(module), part) {
            (Some(linear), "weight") => linear.merged(&weight)?,
            (Some(linear), "bias") => linear.merged_bias(&weight)?,
            _ => None,
        };
        let wanted = merged.as_ref().unwrap_or(&weight);
        let rounded = wanted.f_to_kind(ground.place.kind)?;
        if let Some(merged) = &merged {
            changes.add(name, &weight, merged, &rounded)?;
        }
        done += 1;
        cx.progress(done, heads.len() as u64, "tensors");
        ml::tensors::bytes(&rounded)
    })?;
    ensure!(
        !changes.modules.is_empty(),
        "the adapter of `model` changes none of its linear layers: there is nothing to merge"
    );
    Ok(changes)
}

/// The metrics, which people are told as well.
fn report(
    job: &Job,
    ground: &Ground<'_>,
    changes: &Changes,
    divergence: Option<Divergence>,
    cx: &dyn Reporter,
) -> Result<Draft> {
    let (modules, largest) = (changes.modules.len(), changes.largest());
    let mut summary: BTreeMap<String, Value> = [
        ("modules".to_owned(), json!(modules)),
        ("largest_change".to_owned(), json!(largest)),
        ("rounding".to_owned(), json!(changes.rounding())),
    ]
    .into();
    let into = match ground.unpacked {
        true => "the quantized weights, unpacked",
        false => "weights in full precision",
    };
    cx.note(
        Level::Info,
        &format!(
            "{modules} layers are merged into {into}: their weights changed by at most {:.3}%, and rounding to {} changed {:.3}% of that",
            100.0 * largest,
            ground.dtype.name().to_lowercase(),
            100.0 * changes.rounding()
        ),
    );
    if let Some(found) = divergence {
        summary.extend(tell(&found, cx));
    }
    let path = job.out.join("metrics.json");
    let mut whole = json!({ "into": ground.word(), "layers": changes.modules });
    for (name, value) in &summary {
        whole[name] = value.clone();
    }
    std::fs::write(&path, serde_json::to_vec_pretty(&whole)?)
        .with_context(|| format!("{} can't be written", path.display()))?;
    Ok(Draft {
        artifact: ArtifactType::Metrics,
        files: vec![("metrics.json".to_owned(), path)],
        refs: BTreeMap::new(),
        summary,
    })
}

/// The merged model: what its base is, without the quantization.
fn draft(
    job: &Job,
    parts: &ModelParts<'_>,
    ground: &Ground<'_>,
    weights: PathBuf,
) -> Result<Draft> {
    let config = job.out.join("config.json");
    let text = quantized::config_without(&ground.text, ground.config_path, ground.dtype)?;
    std::fs::write(&config, text)
        .with_context(|| format!("{} can't be written", config.display()))?;
    let mut summary = ground.view.summary.clone();
    summary.remove("quantized");
    let stored = BTreeMap::from([(ground.dtype.name(), ground.tensors.len())]);
    summary.insert("stored".to_owned(), json!(stored));
    summary.insert("merged".to_owned(), json!(ground.word()));
    Ok(Draft {
        artifact: ArtifactType::Model,
        files: vec![
            (FILE.to_owned(), weights),
            ("config.json".to_owned(), config),
        ],
        refs: [(
            "tokenizer".to_owned(),
            Reference::Artifact(parts.tokenizer.digest),
        )]
        .into(),
        summary,
    })
}

//! `merge`: an adapter's change in the weights themselves, written a tensor at a time, and what that does to the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reference, Reporter};
use formats::{Dtype, LlamaConfig, PeftConfig, Weights, quantized};
use kinds::merge::{DEQUANTIZED, FULL_PRECISION, Merge};
use kinds::model::ModelParts;
use ml::divergence::Divergence;
use ml::{Kind, Linear, Place, Tensor};
use serde::Serialize;
use serde_json::{Value, json};

use crate::compared::{After, measure, tell};
use crate::model::{Loaded, load};

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
    let before = load(view, job)?;
    let path = job.out.join(FILE);
    let changes = write(&path, &ground, &before, cx)?;
    let divergence = match job.inputs.contains_key("tokens") {
        true => {
            let after = After {
                config: &ground.config,
                place: ground.place,
                path: &path,
            };
            Some(measure(job, params.micro_batch, &before, &after, cx)?)
        }
        false => None,
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
    config: LlamaConfig,
    weights: Weights,
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
        Ok(Ground {
            view,
            config: LlamaConfig::from_json(&text, config_path)?,
            config_path,
            text,
            weights: Weights::open_files(&view.files)?,
            place: Place::parse(&job.device, dtype)?,
            dtype: Dtype::parse(&dtype.to_uppercase())?,
            unpacked: false,
        })
    }

    fn is_quantized(&self) -> Result<bool> {
        for (module, out, input) in self.config.linear_shapes() {
            let name = format!("{module}.weight");
            if quantized::linear(&self.weights, &name, [out, input])? != quantized::Linear::Dense {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A tensor without the change, in f32. Those of a file are not rounded to the model's type first, so that they are rounded once.
    fn tensor(&self, name: &str, shape: &[usize], linear: Option<&Linear>) -> Result<Tensor> {
        if let Some(linear) = linear
            && self.unpacked
            && linear.weight.is_quantized()
        {
            return linear.weight.values(Kind::Float);
        }
        let shape: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
        let device = self.place.device;
        let tensor = ml::tensors::read(&self.weights, name, &shape, Kind::Float, device)?;
        self.weights.release(name);
        Ok(tensor)
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
    check_same(&own.config, &base.config)?;
    check_numbers(&own, &base)?;
    Ok(base)
}

/// Refuses a base of the same shape with other numbers where nothing was quantized: a sibling of the model that was.
fn check_numbers(own: &Ground, base: &Ground) -> Result<()> {
    let linears: BTreeMap<String, [usize; 2]> = (own.config.linear_shapes().into_iter())
        .map(|(module, out, input)| (format!("{module}.weight"), [out, input]))
        .collect();
    for (name, _) in own.config.tensor_shapes() {
        if let Some(shape) = linears.get(&name)
            && quantized::linear(&own.weights, &name, *shape)? != quantized::Linear::Dense
        {
            continue;
        }
        let read = |ground: &Ground| -> Result<Vec<f32>> {
            let values = ground.weights.read_f32(&name)?;
            ground.weights.release(&name);
            Ok(values)
        };
        let (ours, theirs) = (read(own)?, read(base)?);
        let rounded = |value: &f32| own.dtype.rounded(*value);
        ensure!(
            ours.iter().map(rounded).eq(theirs.iter().map(rounded)),
            "`{name}` has other numbers in `base` than in `model`: `base` is not the model that was quantized, and the adapter would be \
             merged into a stranger. Take the one that `quantize` was given"
        );
    }
    Ok(())
}

/// Refuses a base that is not the model that was quantized, as far as shapes and settings tell.
fn check_same(own: &LlamaConfig, base: &LlamaConfig) -> Result<()> {
    const WAY_OUT: &str =
        "the adapter belongs to another model. Take the one that `quantize` was given";
    let theirs: BTreeMap<_, _> = base.tensor_shapes().into_iter().collect();
    let shapes = own.tensor_shapes();
    for (name, shape) in &shapes {
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
    if let Some((name, shape)) = theirs
        .iter()
        .find(|(name, _)| shapes.iter().all(|(own, _)| own != *name))
    {
        bail!("`{name}` of the shape {shape:?} is in `base` and not in `model`: {WAY_OUT}");
    }
    let settings = |config: &LlamaConfig| {
        [
            ("num_attention_heads", config.num_attention_heads as f64),
            ("rms_norm_eps", config.rms_norm_eps),
            ("rope_theta", config.rope_theta),
        ]
    };
    for ((name, ours), (_, other)) in settings(own).into_iter().zip(settings(base)) {
        ensure!(
            (ours - other).abs() <= SAME * ours.abs(),
            "{name} is {ours} in `model` and {other} in `base`: {WAY_OUT}"
        );
    }
    ensure!(
        own.rope_scaling == base.rope_scaling,
        "rope_scaling is {:?} in `model` and {:?} in `base`: {WAY_OUT}",
        own.rope_scaling,
        base.rope_scaling
    );
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
        self.modules.push(Module {
            name: name.to_owned(),
            change: ratio(changed, square(weight)?),
            rounding: ratio(lost, changed),
        });
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
fn write(path: &Path, ground: &Ground<'_>, before: &Loaded, cx: &dyn Reporter) -> Result<Changes> {
    let linears = before.model.linears().into_iter();
    let linears: BTreeMap<String, &Linear> = linears
        .map(|linear| (format!("{}.weight", linear.name), linear))
        .collect();
    let shapes = ground.config.tensor_shapes().into_iter();
    let heads: Vec<(String, Dtype, Vec<usize>)> = shapes
        .map(|(name, shape)| (name, ground.dtype, shape))
        .collect();
    let mut changes = Changes::default();
    let mut done = 0;
    formats::safetensors::write_with(path, &heads, &[("format", "pt")], |index| {
        cx.check()?;
        let (name, _, shape) = &heads[index];
        let linear = linears.get(name).copied();
        let weight = ground.tensor(name, shape, linear)?;
        let merged = match linear {
            Some(linear) => linear.merged(&weight)?,
            None => None,
        };
        let wanted = merged.as_ref().unwrap_or(&weight);
        let rounded = wanted.f_to_kind(ground.place.kind)?;
        if let (Some(linear), Some(merged)) = (linear, &merged) {
            changes.add(&linear.name, &weight, merged, &rounded)?;
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
    let tensors = ground.config.tensor_shapes().len();
    let stored = BTreeMap::from([(ground.dtype.name(), tensors)]);
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

//! `quantize`: reads and writes one tensor at a time, without libtorch; with rows it loads both models to say what that did.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use engine::artifact::ArtifactType;
use engine::event::{Level, What};
use engine::job::{About as _, Draft, Drafts, Job, Reference, Reporter};
use formats::quantized::{self, Scheme, State};
use formats::{Dtype, ModelConfig, ModelTensor, Weights, nf4};
use kinds::known::unmeasured;
use kinds::model::ModelParts;
use kinds::quantize::Quantize;
use serde::Serialize;
use serde_json::{Value, json};

use crate::compared::{After, measure, tell};
use crate::model::load;

/// What the report says of a tensor.
#[derive(Serialize)]
struct TensorRow {
    name: String,
    shape: Vec<usize>,
    stored: &'static str,
    bytes_before: u64,
    bytes_after: u64,
    /// √(mean of (x − x')² / mean of x²).
    error: f64,
    largest_change: f64,
}

/// Where the bytes of a tensor of the result are until it is written.
enum Bytes {
    /// Here.
    Here(Vec<u8>),
    /// In the file of codes, from this byte on.
    Codes(u64),
    /// In the model that is quantized, as other numbers.
    Source,
}

/// A tensor of the result.
struct Pending {
    head: (String, Dtype, Vec<usize>),
    bytes: Bytes,
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Quantize = job.params()?;
    let model = job.input("model")?;
    let parts = ModelParts::of(model)?;
    ensure!(
        parts.adapters.is_empty(),
        "the model has an adapter; quantize its base, and attach the adapter to the result"
    );
    let dtype = Dtype::parse(&parts.dtype.to_uppercase())?;
    let config_path = parts.base.file("config.json")?;
    let text = std::fs::read_to_string(config_path)
        .with_context(|| format!("{} can't be read", config_path.display()))?;
    let config = ModelConfig::from_json(&text, config_path)?;
    let measured = job.inputs.contains_key("tokens");
    if let (true, ModelConfig::Bert(_)) = (measured, &config) {
        bail!(unmeasured("model"));
    }
    let weights = Weights::open_files(parts.base_files())?;
    let scheme = match params.scheme.as_str() {
        "nf4" => Scheme::Nf4,
        _ => Scheme::Int8,
    };
    let tensors = config.tensors_in(&weights);
    for tensor in &tensors {
        ensure!(
            tensor.storage(&weights)? == quantized::Linear::Dense,
            "`{}` is quantized already; take the model it was made of, in full precision",
            tensor.stored
        );
    }
    let linears = config.linear_shapes();
    let skipped = quantized::skipped(&params.skip.patterns(), &linears)
        .context("`skip`")
        .about("skip")?;
    let chosen = linears.iter().filter(|(name, ..)| !skipped.contains(name));
    let chosen = chosen.map(|(module, ..)| format!("{module}.weight"));
    let mut packer = Packer {
        job,
        params: &params,
        weights: &weights,
        dtype,
        scheme,
        codes_path: job.out.join("codes.partial"),
        end: 0,
        pending: Vec::new(),
        rows: Vec::new(),
        square: (0.0, 0.0),
    };
    packer.pack(tensors, &chosen.collect(), cx)?;
    let weights_path = job.out.join("model.safetensors");
    packer.write(&weights_path, cx)?;

    let listed = quantized::unconverted(&config, &skipped);
    let nested = scheme == Scheme::Nf4 && params.double_quant();
    let quantization = quantized::config(scheme, nested, dtype, &listed);
    let config_out = job.out.join("config.json");
    let text = quantized::config_with(&text, config_path, quantization, dtype)?;
    std::fs::write(&config_out, text)?;

    let mut summary = model.summary.clone();
    summary.insert("quantized".to_owned(), json!(params.scheme));
    let mut stored: BTreeMap<&str, u64> = BTreeMap::new();
    for pending in &packer.pending {
        *stored.entry(pending.head.1.name()).or_insert(0) += 1;
    }
    summary.insert("stored".to_owned(), json!(stored));
    packer.say(cx);
    let divergence = match &config {
        ModelConfig::Llama(config) if measured => {
            let before = load(model, job)?.model;
            let after = After {
                config,
                place: before.place,
                path: &weights_path,
            };
            Some(measure(job, params.micro_batch, &before, &after, cx)?)
        }
        _ => None,
    };
    ml::torch::release_memory();
    let more = divergence.map_or_else(Vec::new, |found| tell(&found, cx));
    let metrics = packer.report(job, more)?;
    let draft = Draft {
        artifact: ArtifactType::Model,
        files: vec![
            ("model.safetensors".to_owned(), weights_path),
            ("config.json".to_owned(), config_out),
        ],
        refs: [(
            "tokenizer".to_owned(),
            Reference::Artifact(model.reference("tokenizer")?.digest),
        )]
        .into(),
        summary,
    };
    Ok([("model".to_owned(), draft), ("metrics".to_owned(), metrics)].into())
}

struct Packer<'a> {
    job: &'a Job,
    params: &'a Quantize,
    weights: &'a Weights,
    dtype: Dtype,
    scheme: Scheme,
    /// Codes of all linears, until the file is written: its header and the small tensors come first.
    codes_path: PathBuf,
    /// Bytes in it.
    end: u64,
    pending: Vec<Pending>,
    rows: Vec<TensorRow>,
    /// Sums of squares over all quantized values: of changes and of values.
    square: (f64, f64),
}

impl Packer<'_> {
    /// Quantizes the chosen ones of all tensors, one after the other, under the names that the file has.
    fn pack(
        &mut self,
        all: Vec<ModelTensor>,
        chosen: &BTreeSet<String>,
        cx: &dyn Reporter,
    ) -> Result<()> {
        let count = |tensor: &ModelTensor| tensor.shape.iter().product::<usize>();
        let packed = all.iter().filter(|tensor| chosen.contains(&tensor.name));
        let total: u64 = packed.map(|tensor| count(tensor) as u64).sum();
        let mut done = 0;
        let start = std::time::Instant::now();
        let file = File::create(&self.codes_path)
            .with_context(|| format!("{} can't be written", self.codes_path.display()))?;
        let mut codes = BufWriter::new(file);
        for tensor in all {
            cx.check()?;
            let count = count(&tensor);
            let (name, shape) = (tensor.stored, tensor.shape);
            if let ([out, input], true) = (&shape[..], chosen.contains(&tensor.name)) {
                self.linear(&name, [*out, *input], &mut codes)?;
                done += count as u64;
                let speed = done as f64 / start.elapsed().as_secs_f64().max(1e-9);
                cx.emit(What::Progress {
                    done,
                    total,
                    unit: "parameters".to_owned(),
                    rate: Some((speed, "parameters/s".to_owned())),
                });
                continue;
            }
            let bytes = (count * self.dtype.size()) as u64;
            self.rows.push(TensorRow {
                name: name.clone(),
                shape: shape.clone(),
                stored: self.dtype.name(),
                bytes_before: bytes,
                bytes_after: bytes,
                error: 0.0,
                largest_change: 0.0,
            });
            self.pending.push(Pending {
                head: (name, self.dtype, shape),
                bytes: Bytes::Source,
            });
        }
        codes
            .flush()
            .with_context(|| format!("{} can't be written", self.codes_path.display()))?;
        Ok(())
    }

    fn linear(
        &mut self,
        name: &str,
        shape: [usize; 2],
        codes: &mut impl std::io::Write,
    ) -> Result<()> {
        let mut values = self.weights.read_f32(name)?;
        self.weights.release(name);
        let dtype = self.dtype;
        for value in &mut values {
            *value = dtype.rounded(*value);
        }
        let fail = || format!("`{name}` can't be quantized");
        let tensors = match self.scheme {
            Scheme::Nf4 => {
                let (block, nested) = (self.params.block(), self.params.double_quant());
                let weight =
                    nf4::quantize(&values, block, nested, self.job.threads).with_context(fail)?;
                let scales = nf4::scales_of(&weight.scales);
                self.compare(name, &shape, "NF4", &values, |i| {
                    dtype.rounded(nf4::TABLE[nf4::code(&weight.codes, i)] * scales[i / block])
                });
                let state = State {
                    block,
                    dtype: self.dtype,
                    shape,
                    nested: match &weight.scales {
                        nf4::Scales::Plain(_) => None,
                        nf4::Scales::Nested { offset, .. } => {
                            Some((nf4::NESTED_BLOCK, f64::from(*offset)))
                        }
                    },
                };
                quantized::nf4_tensors(name, weight, &state)
            }
            Scheme::Int8 => {
                let (codes, largest) = quantized::to_int8(&values, shape[1]).with_context(fail)?;
                self.compare(name, &shape, "I8", &values, |i| {
                    dtype.rounded(f32::from(codes[i] as i8) * (largest[i / shape[1]] / 127.0))
                });
                quantized::int8_tensors(name, shape, codes, &largest)
            }
        };
        let mut after = 0;
        for (part, dtype, shape, bytes) in tensors {
            after += bytes.len() as u64;
            let place = if part == name {
                codes
                    .write_all(&bytes)
                    .with_context(|| format!("{} can't be written", self.codes_path.display()))?;
                let at = self.end;
                self.end += bytes.len() as u64;
                Bytes::Codes(at)
            } else {
                Bytes::Here(bytes)
            };
            self.pending.push(Pending {
                head: (part, dtype, shape),
                bytes: place,
            });
        }
        if let Some(row) = self.rows.last_mut() {
            row.bytes_after = after;
        }
        Ok(())
    }

    /// The row of a quantized tensor, whose values are now `back`.
    fn compare(
        &mut self,
        name: &str,
        shape: &[usize],
        stored: &'static str,
        values: &[f32],
        back: impl Fn(usize) -> f32,
    ) {
        let (mut change, mut whole, mut largest) = (0.0f64, 0.0f64, 0.0f64);
        for (i, value) in values.iter().enumerate() {
            let difference = f64::from(back(i) - value);
            change += difference * difference;
            whole += f64::from(*value) * f64::from(*value);
            largest = largest.max(difference.abs());
        }
        self.square.0 += change;
        self.square.1 += whole;
        self.rows.push(TensorRow {
            name: name.to_owned(),
            shape: shape.to_vec(),
            stored,
            bytes_before: (values.len() * self.dtype.size()) as u64,
            bytes_after: 0,
            error: if whole > 0.0 {
                (change / whole).sqrt()
            } else {
                0.0
            },
            largest_change: largest,
        });
    }

    /// The model's file, a tensor at a time.
    fn write(&self, path: &Path, cx: &dyn Reporter) -> Result<()> {
        let heads: Vec<_> = self
            .pending
            .iter()
            .map(|pending| pending.head.clone())
            .collect();
        let codes = File::open(&self.codes_path)?;
        formats::safetensors::write_with(path, &heads, &[("format", "pt")], |index| {
            cx.check()?;
            let (name, dtype, shape) = &self.pending[index].head;
            match &self.pending[index].bytes {
                Bytes::Here(bytes) => Ok(bytes.clone()),
                Bytes::Codes(at) => {
                    let mut bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
                    codes.read_exact_at(&mut bytes, *at)?;
                    Ok(bytes)
                }
                Bytes::Source => {
                    let values = self.weights.read_f32(name)?;
                    self.weights.release(name);
                    let bad = values
                        .iter()
                        .find(|value| !dtype.rounded(**value).is_finite());
                    if let Some(bad) = bad {
                        bail!(
                            "`{name}` holds {bad}, which is no finite number of {dtype}: the model is damaged, or its training diverged"
                        );
                    }
                    dtype.from_f32(&values)
                }
            }
        })?;
        drop(codes);
        std::fs::remove_file(&self.codes_path)
            .with_context(|| format!("{} can't be removed", self.codes_path.display()))
    }

    /// Bytes before and after, quantized tensors, the error of their values.
    fn sums(&self) -> (u64, u64, usize, f64) {
        let before: u64 = self.rows.iter().map(|row| row.bytes_before).sum();
        let after: u64 = self.rows.iter().map(|row| row.bytes_after).sum();
        let quantized = self
            .rows
            .iter()
            .filter(|row| row.stored != self.dtype.name())
            .count();
        let error = if self.square.1 > 0.0 {
            (self.square.0 / self.square.1).sqrt()
        } else {
            0.0
        };
        (before, after, quantized, error)
    }

    /// Tells people the sums.
    fn say(&self, cx: &dyn Reporter) {
        let (before, after, quantized, error) = self.sums();
        cx.note(
            Level::Info,
            &format!(
                "{quantized} of {} tensors are quantized: {:.1} MB became {:.1} MB; rounding changed their values by {:.2}%",
                self.rows.len(),
                before as f64 / 1e6,
                after as f64 / 1e6,
                error * 100.0
            ),
        );
    }

    /// The metrics, with those of a comparison.
    fn report(&self, job: &Job, more: Vec<(String, Value)>) -> Result<Draft> {
        let path = job.out.join("metrics.json");
        let mut whole = json!({ "tensors": self.rows });
        for (name, value) in &more {
            whole[name] = value.clone();
        }
        std::fs::write(&path, serde_json::to_vec_pretty(&whole)?)
            .with_context(|| format!("{} can't be written", path.display()))?;
        let (before, after, quantized, error) = self.sums();
        let mut summary: BTreeMap<String, Value> = [
            ("bytes_before".to_owned(), json!(before)),
            ("bytes_after".to_owned(), json!(after)),
            (
                "ratio".to_owned(),
                json!(before as f64 / after.max(1) as f64),
            ),
            ("error".to_owned(), json!(error)),
            ("quantized".to_owned(), json!(quantized)),
        ]
        .into();
        summary.extend(more);
        Ok(Draft {
            artifact: ArtifactType::Metrics,
            files: vec![("metrics.json".to_owned(), path)],
            refs: BTreeMap::new(),
            summary,
        })
    }
}

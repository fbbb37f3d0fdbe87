//! `head`: a head trained on vectors that are there.

use anyhow::{Context, Result, bail, ensure};
use data::Vectors;
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::Level;
use engine::job::{About as _, Draft, Drafts, Job, Reference, Reporter};
use formats::head::{ABOUT, About, TENSORS};
use ml::head::{Activation, Head, Names, OnVectors, Shape, Task};
use ml::pool::Pooling;
use ml::{Kind, Params, Place, Tensor};
use serde_json::Value;

use crate::heads::{check_alike, cuts, measure, model_of, sayings};
use crate::labels::{classes, targets};
use crate::training::{Counted, check_finite, metrics, train};

/// A number of the vectors whose deviation is less than this part of its mean never changes but for rounding.
const CONSTANT: f64 = 1e-6;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: kinds::head::Head = job.params()?;
    let training = kinds::head::training(&job.params)?;
    ml::place::set_threads(job.threads);
    let place = Place::parse(&job.device, "f32")?;
    let view = job.input("data")?;
    let (vectors, labels) = read(view)?;
    let task = Task::parse(&params.task)?;
    let labels_of = match task {
        Task::Classification => classes(&labels)?,
        Task::Regression => Vec::new(),
    };
    let wanted = targets(task, &labels, &labels_of)?;
    let about = About {
        task,
        pooling: Pooling::parse(word(view, "pooling")?)?,
        normalize: view.summary.get("normalize") == Some(&Value::Bool(true)),
        shape: Shape {
            input: vectors.size()[1] as usize,
            hidden: params.hidden,
            outputs: task.outputs(&labels_of),
            activation: Activation::parse(&params.activation)?,
            bias: true,
            names: Names::Head,
        },
        labels: labels_of,
    };
    let mut own = Params::new();
    let head = Head::fresh(&about.shape, params.dropout, params.seed, place, &mut own)?;
    if task == Task::Regression {
        head.start_at(wanted.iter().sum::<f64>() / wanted.len() as f64);
    }
    let (trained, _) = own.count();
    cx.note(
        Level::Info,
        &format!("{trained} parameters on {} vectors", wanted.len()),
    );
    let (mean, deviation) = match params.standardize {
        true => moments(&vectors)?,
        false => (vec![0.0; about.shape.input], vec![1.0; about.shape.input]),
    };
    let scaled = vectors
        .to_kind(Kind::Double)
        .f_sub(&Tensor::from_slice(&mean))?
        .f_div(&Tensor::from_slice(&deviation))?
        .to_kind(Kind::Float)
        .to_device(place.device);
    let mut objective = OnVectors {
        head: &head,
        vectors: &scaled,
        targets: &wanted,
        task,
    };
    let steps = train(job, cx, &training, &own, &mut objective, Counted::Rows)?;
    check_finite(&own)?;
    if params.standardize {
        head.absorb(&mean, &deviation)?;
    }
    let mut metrics = metrics(job, &steps)?;
    // Nothing here has read a token.
    metrics.summary.remove("tokens");
    if job.inputs.contains_key("test") {
        let test = job.input("test")?;
        check_alike(view, test).about("test")?;
        let (vectors, labels) = read(test)?;
        let truth = targets(task, &labels, &about.labels)
            .context("`test`")
            .about("test")?;
        let found = measure(&about, &truth, &sayings(task, &head, &vectors)?)?;
        found.tell("test", steps.len(), cx);
        found.add_to(job, &mut metrics)?;
    }
    let head = draft(job, view, &about, &head, trained)?;
    ml::torch::release_memory();
    Ok([("head".to_owned(), head), ("metrics".to_owned(), metrics)].into())
}

fn word<'a>(view: &'a ArtifactView, name: &str) -> Result<&'a str> {
    let word = view.summary.get(name).and_then(Value::as_str);
    word.with_context(|| format!("the vectors do not say their `{name}`"))
}

/// Vectors, `[rows, width]` in f32, and labels.
fn read(view: &ArtifactView) -> Result<(Tensor, Vec<String>)> {
    let path = view.file("vectors.arrow")?;
    let file = Vectors::open(path)?;
    ensure!(!file.is_empty(), "{} has no vectors", path.display());
    let mut numbers = Vec::with_capacity(file.len() * file.width());
    let mut labels = Vec::with_capacity(file.len());
    for index in 0..file.len() {
        let (vector, label) = file.row(index)?;
        if let Some(wrong) = vector.iter().find(|number| !number.is_finite()) {
            bail!("{}: row {index} holds {wrong}", path.display());
        }
        numbers.extend_from_slice(vector);
        labels.push(label.to_owned());
    }
    let size = [file.len() as i64, file.width() as i64];
    Ok((Tensor::f_from_slice(&numbers)?.f_view(size)?, labels))
}

/// Mean and deviation of each number over the rows, in f64; a number that never changes has the deviation 1.
fn moments(vectors: &Tensor) -> Result<(Vec<f64>, Vec<f64>)> {
    let wide = vectors.to_kind(Kind::Double);
    let over = [0i64];
    let mean = wide.f_mean_dim(over.as_slice(), false, None::<Kind>)?;
    let variance = wide.f_var_dim(over.as_slice(), false, false)?;
    let mean: Vec<f64> = Vec::try_from(&mean)?;
    let deviation: Vec<f64> = Vec::try_from(&variance.sqrt())?;
    let sound = deviation.iter().zip(&mean).map(|(deviation, mean)| {
        match *deviation > CONSTANT * mean.abs() {
            true => *deviation,
            false => 1.0,
        }
    });
    let sound: Vec<f64> = sound.collect();
    Ok((mean, sound))
}

fn draft(
    job: &Job,
    view: &ArtifactView,
    about: &About,
    head: &Head,
    parameters: usize,
) -> Result<Draft> {
    let (path, tensors) = (job.out.join(ABOUT), job.out.join(TENSORS));
    about.save(&path)?;
    ml::tensors::write(&tensors, &head.tensors(), &[("format", "pt")])?;
    let tokenizer = view.reference("tokenizer")?.digest;
    Ok(Draft {
        artifact: ArtifactType::Classifier,
        files: vec![(ABOUT.to_owned(), path), (TENSORS.to_owned(), tensors)],
        refs: [
            (
                "model".to_owned(),
                Reference::Artifact(model_of(view)?.digest),
            ),
            ("tokenizer".to_owned(), Reference::Artifact(tokenizer)),
        ]
        .into(),
        summary: [
            ("task".to_owned(), serde_json::to_value(about.task)?),
            ("outputs".to_owned(), about.shape.outputs.into()),
            ("pooling".to_owned(), serde_json::to_value(about.pooling)?),
            ("parameters".to_owned(), parameters.into()),
        ]
        .into_iter()
        .chain(cuts(view)?.summary())
        .collect(),
    })
}

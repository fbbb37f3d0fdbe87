//! What the kinds around heads share: what a head's files hold, what it says of texts, and how that is measured.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use data::classification::{Classification, Measured, Regression};
use engine::artifact::ArtifactView;
use engine::event::{Level, What};
use engine::job::{Draft, Job, Reporter};
use formats::head::{ABOUT, About, TENSORS};
use ml::backbone::Backbone;
use ml::head::{Head, Task, said};
use ml::pool::Pooling;
use ml::{Params, Place, Tensor};
use serde_json::{Map, Value, json};

use crate::cuts::Cuts;

/// Reads what an artifact says of its head.
pub(crate) fn about(view: &ArtifactView) -> Result<About> {
    About::open(view.file(ABOUT)?)
}

/// Reads the head of an artifact that says this of it.
pub(crate) fn stored(about: &About, view: &ArtifactView, place: Place) -> Result<Head> {
    let path = view.file(TENSORS)?;
    let tensors = ml::tensors::read_file(path)?;
    Head::stored(&about.shape, &tensors, place, &mut Params::new())
        .with_context(|| format!("{} holds another head than {ABOUT} says", path.display()))
}

/// The vectors of texts, with progress, in the order of the texts: `[rows, hidden]`.
pub(crate) fn vectors(
    backbone: &Backbone,
    (pooling, normalize): (Pooling, bool),
    texts: &[Vec<i64>],
    micro_batch: usize,
    unit: &str,
    cx: &dyn Reporter,
) -> Result<Tensor> {
    let start = Instant::now();
    let watch = &mut |done: usize, tokens: usize| {
        let rate = tokens as f64 / start.elapsed().as_secs_f64().max(1e-9);
        cx.emit(What::Progress {
            done: done as u64,
            total: texts.len() as u64,
            unit: unit.to_owned(),
            rate: Some((rate, "tokens/s".to_owned())),
        });
        cx.check()
    };
    ml::classifier::vectors(backbone, pooling, normalize, texts, micro_batch, watch)
}

/// What a head says of vectors: of each row log-probabilities of the classes, or a number.
pub(crate) fn sayings(task: Task, head: &Head, vectors: &Tensor) -> Result<Vec<Vec<f64>>> {
    let device = head.tensors().first().map(|(_, tensor)| tensor.device());
    let vectors = vectors.to_device(device.context("BUG: a head has no tensors")?);
    said(task, &ml::classifier::outputs(head, &vectors)?)
}

/// What was measured of a model on held-out rows.
pub(crate) struct Found {
    /// Numbers by name; null where one is not defined.
    pub numbers: Map<String, Value>,
    /// The same with what is no number: why some are not defined; of classes the confusion matrix and its labels.
    pub whole: Map<String, Value>,
}

/// Measures what was said of rows.
pub(crate) fn measure(about: &About, targets: &[f64], said: &[Vec<f64>]) -> Result<Found> {
    let mut more = Map::new();
    let measured: Vec<(&str, Measured)> = match about.task {
        Task::Classification => {
            let truth: Vec<usize> = targets.iter().map(|target| *target as usize).collect();
            let found = Classification::of(&truth, said)?;
            more.insert("labels".to_owned(), json!(about.labels));
            more.insert("confusion".to_owned(), json!(found.confusion));
            found.numbers()
        }
        Task::Regression => {
            let values = said.iter().map(|row| row.first().copied());
            let values: Option<Vec<f64>> = values.collect();
            let values = values.context("BUG: a row without a number")?;
            Regression::of(targets, &values)?.numbers()
        }
    };
    let (mut numbers, mut reasons) = (Map::new(), Map::new());
    for (name, value) in measured {
        match value {
            Ok(value) => {
                numbers.insert(name.to_owned(), json!(value));
            }
            Err(reason) => {
                numbers.insert(name.to_owned(), Value::Null);
                reasons.insert(name.to_owned(), json!(reason));
            }
        }
    }
    numbers.insert("rows".to_owned(), json!(targets.len()));
    let mut whole = numbers.clone();
    if !reasons.is_empty() {
        whole.insert("undefined".to_owned(), Value::Object(reasons));
    }
    whole.extend(more);
    Ok(Found { numbers, whole })
}

impl Found {
    /// Tells the numbers under `name`, and why there are none where there are none.
    pub(crate) fn tell(&self, name: &str, step: usize, cx: &dyn Reporter) {
        let numbers = self
            .numbers
            .iter()
            .filter(|(measure, _)| *measure != "rows");
        cx.emit(What::Metrics {
            step: step as u64,
            values: numbers
                .filter_map(|(measure, value)| Some((format!("{name}/{measure}"), value.as_f64()?)))
                .collect(),
        });
        let reasons = self.whole.get("undefined").and_then(Value::as_object);
        for (measure, reason) in reasons.into_iter().flatten() {
            let reason = reason.as_str().unwrap_or_default();
            let text = format!("{name}: `{measure}` is not defined: {reason}");
            cx.note(Level::Warning, &text);
        }
    }

    /// Adds what was measured on held-out rows to a training's metrics and their file.
    pub(crate) fn add_to(self, job: &Job, metrics: &mut Draft) -> Result<()> {
        let path = job.out.join("metrics.json");
        let mut all: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path)?)?;
        all.insert("test".to_owned(), Value::Object(self.whole));
        std::fs::write(&path, serde_json::to_vec_pretty(&all)?)?;
        let numbers = Value::Object(self.numbers);
        metrics.summary.insert("test".to_owned(), numbers);
        Ok(())
    }
}

/// The model whose vectors an artifact holds, or was trained on.
pub(crate) fn model_of(view: &ArtifactView) -> Result<&ArtifactView> {
    view.reference("model")
}

/// Both are vectors of one model, made in one way: a head that was trained on the ones says nothing of any others.
pub(crate) fn check_alike(ours: &ArtifactView, theirs: &ArtifactView) -> Result<()> {
    if model_of(ours)?.digest != model_of(theirs)?.digest {
        bail!(
            "the vectors of `test` are of another model than those of `data`: make both with one model"
        );
    }
    for word in ["pooling", "normalize", "hidden"] {
        let (own, other) = (ours.summary.get(word), theirs.summary.get(word));
        ensure!(
            own == other,
            "the vectors of `data` have `{word}` {}, and those of `test` {}: make both in one way",
            own.unwrap_or(&Value::Null),
            other.unwrap_or(&Value::Null)
        );
    }
    let (own, other) = (cuts(ours)?, cuts(theirs)?);
    ensure!(
        own.alike(&other),
        "the texts of `data` were cut to {}, and those of `test` to {}: make both in one way. To measure a head on texts of other lengths, where that \
         is meant, there is `classify`",
        own.words(),
        other.words()
    );
    Ok(())
}

/// How the texts of vectors were cut.
pub(crate) fn cuts(vectors: &ArtifactView) -> Result<Cuts> {
    Cuts::of(vectors).context("BUG: the vectors do not say how their texts were cut")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ml::head::{Activation, Names, Shape};

    fn about(labels: &[&str]) -> About {
        About {
            task: Task::Classification,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            pooling: Pooling::Mean,
            normalize: false,
            shape: Shape {
                input: 2,
                hidden: Vec::new(),
                outputs: labels.len(),
                activation: Activation::Relu,
                bias: true,
                names: Names::Head,
            },
        }
    }

    #[test]
    fn a_number_that_is_not_defined_is_null_with_a_reason() {
        let sure = vec![0.9f64.ln(), 0.1f64.ln()];
        let found = measure(&about(&["a", "b"]), &[0.0, 0.0], &[sure.clone(), sure]).unwrap();
        assert_eq!(found.numbers["auc"], Value::Null);
        assert_eq!(found.numbers["accuracy"], 1.0);
        assert!(found.whole["undefined"]["auc"].is_string());
        assert_eq!(found.whole["confusion"], json!([[2, 0], [0, 0]]));
        let names: Vec<&String> = found.numbers.keys().collect();
        assert_eq!(names.len(), 8, "{names:?}");
    }
}

//! `classify`: heads and classifiers on labelled texts, side by side.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use data::classification::largest;
use engine::artifact::{ArtifactType, ArtifactView};
use engine::digest::Digest;
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reporter};
use formats::head::About;
use kinds::classify::Classify;
use ml::head::Task;
use ml::pool::{self, Pooling};
use ml::{Place, Tensor};
use serde_json::{Map, Value, json};

use crate::cuts::Cuts;
use crate::heads::{self, measure, model_of, sayings, vectors};
use crate::labels::{self, targets};
use crate::model::load_backbone;

/// Vectors that the next head may want as well: those of one model's texts, pooled in one way.
struct Kept {
    of: (Digest, Digest, Pooling, bool),
    place: Place,
    vectors: Tensor,
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Classify = job.params()?;
    let task = Task::parse(&params.task)?;
    let labels = labels::of(job, "data")?;
    let tokens: BTreeMap<&str, &ArtifactView> = job
        .inputs_of("tokens")?
        .iter()
        .map(|(name, view)| (name.as_str(), view))
        .collect();
    let (mut models, mut numbers) = (Map::new(), Map::new());
    let mut rows: Vec<Row> = labels.iter().map(|_| Row::default()).collect();
    let mut kept: Option<Kept> = None;
    for (name, view) in job.inputs_of("models")? {
        let about = heads::about(view)?;
        ensure!(
            about.task == task,
            "`{name}` was trained for {}: say `task: {}`, or leave it out of this stage",
            about.task.word(),
            about.task.word()
        );
        let own = tokens.get(name.as_str());
        let own = own.with_context(|| format!("BUG: `{name}` has no tokens"))?;
        say_cuts(name, view, own, &params, cx)?;
        let model = model_of(view)?;
        let of = (model.digest, own.digest, about.pooling, about.normalize);
        let held = match kept.take().filter(|kept| kept.of == of) {
            Some(kept) => kept,
            None => {
                ml::torch::release_memory();
                let loaded = load_backbone(model, job)?;
                pool::check(about.pooling, &loaded.backbone)?;
                let texts = labels::texts(own, &labels)?;
                let manner = (about.pooling, about.normalize);
                let unit = format!("texts of {name}");
                let batch = params.micro_batch;
                Kept {
                    of,
                    place: loaded.backbone.place(),
                    vectors: vectors(&loaded.backbone, manner, &texts, batch, &unit, cx)?,
                }
            }
        };
        let head = heads::stored(&about, view, held.place)?;
        let truth = targets(task, &labels, &about.labels).with_context(|| format!("`{name}`"))?;
        let said = sayings(task, &head, &held.vectors)?;
        kept = Some(held);
        let found = measure(&about, &truth, &said)?;
        found.tell(name, 0, cx);
        for (row, said) in rows.iter_mut().zip(&said) {
            row.add(name, &about, said);
        }
        models.insert(name.clone(), Value::Object(found.whole));
        numbers.insert(name.clone(), Value::Object(found.numbers));
    }
    ml::torch::release_memory();
    let path = job.out.join("metrics.json");
    let whole = json!({ "models": models });
    std::fs::write(&path, serde_json::to_vec_pretty(&whole)?)?;
    let predictions = job.out.join("predictions.jsonl");
    let lines = rows.into_iter().zip(&labels).enumerate();
    let lines: String = lines
        .map(|(index, (row, label))| row.line(index, label))
        .collect();
    std::fs::write(&predictions, lines)?;
    let draft = Draft {
        artifact: ArtifactType::Metrics,
        files: vec![
            ("metrics.json".to_owned(), path),
            ("predictions.jsonl".to_owned(), predictions),
        ],
        refs: BTreeMap::new(),
        summary: numbers.into_iter().collect(),
    };
    Ok([("metrics".to_owned(), draft)].into())
}

/// Says where a model was trained on texts that were cut in another manner: that may be meant, and is more often forgotten.
fn say_cuts(
    name: &str,
    view: &ArtifactView,
    tokens: &ArtifactView,
    params: &Classify,
    cx: &dyn Reporter,
) -> Result<()> {
    let these = Cuts::of_tokens(tokens, params.max_length, &params.truncation)?;
    let Some(known) = Cuts::of(view).filter(|known| !known.alike(&these)) else {
        return Ok(());
    };
    let text = format!(
        "`{name}` was trained on texts cut to {}, and these are cut to {}: it may know less of them",
        known.words(),
        these.words()
    );
    cx.note(Level::Warning, &text);
    Ok(())
}

/// What each model says of a row.
#[derive(Default)]
struct Row {
    predicted: Map<String, Value>,
    probability: Map<String, Value>,
}

impl Row {
    fn add(&mut self, name: &str, about: &About, said: &[f64]) {
        match about.task {
            Task::Classification => {
                let class = largest(said);
                let label = about.labels.get(class);
                self.predicted.insert(name.to_owned(), json!(label));
                let probability = said[class].exp();
                self.probability.insert(name.to_owned(), json!(probability));
            }
            Task::Regression => {
                self.predicted.insert(name.to_owned(), json!(said.first()));
            }
        }
    }

    fn line(self, index: usize, label: &str) -> String {
        let mut line = json!({ "row": index, "label": label, "predicted": self.predicted });
        if !self.probability.is_empty() {
            line["probability"] = Value::Object(self.probability);
        }
        line.to_string() + "\n"
    }
}

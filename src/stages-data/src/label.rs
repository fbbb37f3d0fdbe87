//! `label`: what people are asked, whether they have answered, and what follows.
//!
//! The stage and the command `levain label` share [`Labelling`]: the comparisons, and the files of answers. A file of answers has one
//! writer at a time, see [`log`].

pub mod log;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use data::candidates::candidates_of;
use data::comparison::{Ask, Comparisons, Tally};
use data::{Dataset, DatasetWriter, Layout, Row};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reporter, Waiting};
use engine::shell::quoted;
use kinds::label::{Label, TAKEN};
use serde_json::{Map, Value, json};

use log::Answers;

/// What a stage asks of people, and what they have answered so far.
pub struct Labelling {
    /// Its parameters.
    pub params: Label,
    /// Who answers, in the recipe's order.
    pub annotators: Vec<String>,
    /// What is compared.
    pub comparisons: Comparisons,
    /// The names of the sets of samples, the first being the one that others are measured against; none where there is one set.
    pub sets: Vec<String>,
    /// Where the files of answers are, or will be.
    pub folder: PathBuf,
}

impl Labelling {
    /// From the parameters of the stage, its samples by name (one set has no name), and the folder of answers.
    ///
    /// Errors when the sets have different prompts, when there is nothing to compare, and when a set is called like a number of the
    /// metrics.
    pub fn new(
        params: Label,
        samples: &[(&str, &ArtifactView)],
        named: bool,
        folder: PathBuf,
    ) -> Result<Labelling> {
        let mut datasets = Vec::new();
        for (name, view) in samples {
            if let Some(word) = TAKEN.iter().find(|word| named && *word == name) {
                bail!(
                    "samples can't be called `{word}`, as one of the stage's numbers is: give them another name"
                );
            }
            datasets.push((*name, Dataset::open(view.file("rows.arrow")?)?));
        }
        let datasets: Vec<(&str, &Dataset)> = datasets.iter().map(|(n, d)| (*n, d)).collect();
        let ask = match params.ask.as_str() {
            "pairs" => Ask::Pairs,
            "rankings" => Ask::Rankings,
            other => bail!("`{other}` is nothing to ask"),
        };
        let groups = candidates_of(&datasets)?;
        let comparisons =
            Comparisons::new(groups, ask, &params.question, params.limit, params.seed)?;
        Ok(Labelling {
            annotators: params.annotators.names(),
            sets: match named && samples.len() > 1 {
                true => samples.iter().map(|(name, _)| (*name).to_owned()).collect(),
                false => Vec::new(),
            },
            params,
            comparisons,
            folder,
        })
    }

    /// The answers of everybody, in the order of the annotators.
    ///
    /// Errors name the file and the line that can't be read.
    pub fn answers(&self) -> Result<Vec<Answers>> {
        let of = |name: &String| self.answers_of(name);
        self.annotators.iter().map(of).collect()
    }

    /// The answers of one.
    pub fn answers_of(&self, name: &str) -> Result<Answers> {
        Answers::read(&log::path(&self.folder, name), &self.comparisons)
    }

    /// The answers counted together.
    pub fn tally<'a>(&'a self, answers: &'a [Answers]) -> Tally<'a> {
        let own = |own: &'a Answers| own.in_order(&self.comparisons);
        Tally::new(&self.comparisons, answers.iter().map(own).collect())
    }

    /// What the metrics of the stage say, as far as it was answered.
    pub fn metrics(&self, answers: &[Answers]) -> Result<Map<String, Value>> {
        let tally = self.tally(answers);
        let counts = tally.counts();
        let mut all = Map::new();
        let mut add = |name: &str, value: Value| all.insert(name.to_owned(), value);
        add("comparisons", json!(self.comparisons.all.len()));
        add(
            "answered",
            json!(counts.iter().map(|c| c.answered).sum::<usize>()),
        );
        add(
            "skipped",
            json!(counts.iter().map(|c| c.skipped).sum::<usize>()),
        );
        add("ties", json!(counts.iter().map(|c| c.ties).sum::<usize>()));
        if self.annotators.len() > 1 {
            let agreement = tally.agreement()?;
            add("pairs", json!(agreement.pairs));
            add("agreement", json!(agreement.raw));
            add("kappa", json!(agreement.kappa));
        }
        let own = self.annotators.iter().zip(&counts).map(|(name, c)| {
            let counts = json!({ "answered": c.answered, "skipped": c.skipped, "ties": c.ties });
            (name.clone(), counts)
        });
        add("annotators", Value::Object(own.collect()));
        for (place, name) in self.sets.iter().enumerate() {
            // Whatever is compared with itself is as good.
            let won = match place {
                0 => Some(0.5),
                _ => tally.win_rate(place, 0),
            };
            add(name, json!({ "win_rate": won }));
        }
        Ok(all)
    }
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let samples = job.named("samples")?;
    let named = matches!(job.inputs.get("samples"), Some(engine::job::Input::Many(_)));
    let folder = job.answers.clone().context("BUG: answers have no folder")?;
    let labelling = Labelling::new(job.params()?, &samples, named, folder)?;
    let answers = labelling.answers()?;
    for (name, own) in labelling.annotators.iter().zip(&answers) {
        if own.torn {
            let text = format!("the last answer of {name} was cut off and is asked for again");
            cx.note(Level::Warning, &text);
        }
    }
    wait(job, &labelling, &answers)?;
    let rows = rows(job, &labelling, &answers)?;
    let metrics = labelling.metrics(&answers)?;
    say(&metrics, cx);
    let path = job.out.join("metrics.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&metrics)?)?;
    let metrics = Draft {
        artifact: ArtifactType::Metrics,
        files: vec![("metrics.json".to_owned(), path)],
        refs: BTreeMap::new(),
        summary: metrics.into_iter().collect(),
    };
    Ok([("rows".to_owned(), rows), ("metrics".to_owned(), metrics)].into())
}

/// How far the annotators agree, where there are several.
fn say(metrics: &Map<String, Value>, cx: &dyn Reporter) {
    let number = |name: &str| metrics.get(name).and_then(Value::as_f64);
    if let Some(agreement) = number("agreement") {
        let kappa = number("kappa").map_or("undefined".to_owned(), |kappa| format!("{kappa:.2}"));
        let percent = agreement * 100.0;
        let text =
            format!("the annotators agree about {percent:.1}% of the pairs, kappa is {kappa}");
        cx.note(Level::Info, &text);
    }
}

/// Waits unless everybody has answered everything.
fn wait(job: &Job, labelling: &Labelling, answers: &[Answers]) -> Result<()> {
    let each = labelling.comparisons.all.len();
    let done: Vec<usize> = answers
        .iter()
        .map(|own| {
            own.in_order(&labelling.comparisons)
                .iter()
                .flatten()
                .count()
        })
        .collect();
    let (sum, all) = (done.iter().sum::<usize>(), each * done.len());
    if sum == all {
        return Ok(());
    }
    let whose: Vec<String> = labelling
        .annotators
        .iter()
        .zip(&done)
        .map(|(name, done)| format!("{name} {done} of {each}"))
        .collect();
    let whose = match whose.len() {
        1 => String::new(),
        _ => format!(" ({})", whose.join(", ")),
    };
    Err(Waiting {
        reason: format!(
            "{sum} of {all} comparisons are answered{whose}: `levain label {} {}` asks for the others",
            job.recipe,
            quoted(&job.stage)
        ),
    }
    .into())
}

/// Every completion that was compared with its score, and every answer.
fn rows(job: &Job, labelling: &Labelling, answers: &[Answers]) -> Result<Draft> {
    let path = job.out.join("rows.arrow");
    let mut writer = DatasetWriter::create(&path, Layout::Scored)?;
    let scores = labelling.tally(answers).scores();
    for (group, scores) in labelling.comparisons.groups.iter().zip(scores) {
        for (candidate, score) in group.all.iter().zip(scores) {
            let Some(score) = score else { continue };
            writer.push(&Row::Scored {
                prompt: group.prompt.clone(),
                completion: candidate.text.clone(),
                score,
            })?;
        }
    }
    let summary = writer.finish()?;
    ensure!(
        summary.rows > 0,
        "nothing is left: every comparison was skipped; take an answer back with `u` in `levain label {} {}` and give another",
        job.recipe,
        quoted(&job.stage)
    );
    let mut draft = crate::dataset_draft(path, &summary)?;
    let path = job.out.join("answers.jsonl");
    std::fs::write(&path, told(labelling, answers))
        .with_context(|| format!("{} can't be written", path.display()))?;
    draft.files.push(("answers.jsonl".to_owned(), path));
    Ok(draft)
}

/// Every answer, a line each: comparison by comparison, and annotator by annotator.
fn told(labelling: &Labelling, answers: &[Answers]) -> String {
    let mut lines = String::new();
    for comparison in &labelling.comparisons.all {
        let group = &labelling.comparisons.groups[comparison.group];
        let texts: Vec<&str> = comparison
            .members
            .iter()
            .map(|place| group.all[*place].text.as_str())
            .collect();
        for (name, own) in labelling.annotators.iter().zip(answers) {
            let Some(answer) = own.get(&comparison.id) else {
                continue;
            };
            let line = json!({
                "id": comparison.id,
                "annotator": name,
                "prompt": group.prompt,
                "completions": texts,
                "ranks": answer,
            });
            lines.push_str(&format!("{line}\n"));
        }
    }
    lines
}

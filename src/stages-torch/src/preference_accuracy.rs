//! `preference_accuracy`: scores of the completions of pairs, by policies and by judges, and how well they order them.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};
use data::{Dataset, Row};
use engine::artifact::ArtifactType;
use engine::digest::Digest;
use engine::event::What;
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::preference_accuracy::{CONTRACT, PreferenceAccuracy};
use ml::pairwise::{Pairwise, wilson};
use serde_json::{Map, Value, json};

use crate::completions::Groups;
use crate::completions::log_probabilities;
use crate::judge::{Answer, Judges};
use crate::model::{Loaded, Turns, load};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: PreferenceAccuracy = job.params()?;
    let given = |port: &str| job.inputs.contains_key(port);
    ensure!(
        given("policy") || given("judge"),
        "there is nobody to measure: give `policy`, `judge` or both"
    );
    ensure!(
        given("policy") || !given("reference"),
        "a `reference` is what a `policy` is measured against, and there is none"
    );
    let mut all = Map::new();
    if given("policy") {
        policies(job, &params, cx, &mut all)?;
    }
    if given("judge") {
        judges(job, &params, cx, &mut all)?;
    }
    let path = job.out.join("metrics.json");
    let whole = json!({ "models": all });
    std::fs::write(&path, serde_json::to_vec_pretty(&whole)?)?;
    ml::torch::release_memory();
    let draft = Draft {
        artifact: ArtifactType::Metrics,
        files: vec![("metrics.json".to_owned(), path)],
        refs: BTreeMap::new(),
        summary: all.into_iter().collect(),
    };
    Ok([("metrics".to_owned(), draft)].into())
}

/// What is measured of each policy.
fn policies(
    job: &Job,
    params: &PreferenceAccuracy,
    cx: &dyn Reporter,
    all: &mut Map<String, Value>,
) -> Result<()> {
    let reference = match job.inputs.contains_key("reference") {
        true => Some(load(job.input("reference")?, job)?),
        false => None,
    };
    let mut turns = Turns::new(job, reference.iter().collect());
    let tokens = job.named("tokens")?;
    // Policies with one tokenizer share the tokens, and so what the reference says of them.
    let mut known: HashMap<Digest, Vec<f64>> = HashMap::new();
    for (name, view) in job.named("policy")? {
        let own = tokens.iter().find(|(n, _)| tokens.len() == 1 || *n == name);
        let (_, own) = own.context("BUG: a policy has no tokens")?;
        let groups = Groups::open(own, &CONTRACT, "data")?;
        let rows = groups.rows()?;
        let policy = turns.next(name, view)?;
        let of = |model: &Loaded| -> Result<Vec<f64>> {
            let found = log_probabilities(
                &model.model,
                &rows,
                &groups.ranges,
                params.micro_batch,
                "completions",
                cx,
            )?;
            let sum = |one: &Vec<f32>| one.iter().map(|x| f64::from(*x)).sum::<f64>();
            Ok(found.iter().map(sum).collect())
        };
        let sums = of(policy)?;
        let per_token: Vec<f64> = sums
            .iter()
            .zip(&rows)
            .map(|(sum, row)| sum / row.completion() as f64)
            .collect();
        let ranges = || (0..groups.len()).map(|index| groups.range(index));
        let mut values = Map::new();
        let likelihood = order(ranges(), &sums, name)?;
        accuracy("likelihood_", &likelihood, &mut values);
        let normalized = order(ranges(), &per_token, name)?;
        accuracy("normalized_", &normalized, &mut values);
        if let Some(reference) = &reference {
            policy.check_reference(reference, name)?;
            let held = match known.get(&own.digest) {
                Some(held) => held.clone(),
                None => of(reference)?,
            };
            let rewards: Vec<f64> = sums
                .iter()
                .zip(&held)
                .map(|(policy, reference)| params.beta * (policy - reference))
                .collect();
            rewarded(&order(ranges(), &rewards, name)?, &mut values);
            known.insert(own.digest, held);
        }
        values.insert("pairs".to_owned(), json!(likelihood.pairs()));
        put(name, values, cx, all)?;
        ml::torch::release_memory();
    }
    turns.tell(cx);
    Ok(())
}

/// What is measured of each judge.
fn judges(
    job: &Job,
    params: &PreferenceAccuracy,
    cx: &dyn Reporter,
    all: &mut Map<String, Value>,
) -> Result<()> {
    let dataset = Dataset::open(job.input("data")?.file("rows.arrow")?)?;
    let (mut answers, mut ranges) = (Vec::new(), Vec::new());
    for row in dataset.iter() {
        let (prompt, texts) = match row? {
            Row::Preference {
                prompt,
                chosen,
                rejected,
                ..
            } => (prompt, vec![chosen, rejected]),
            Row::Ranking {
                prompt,
                completions,
            } => (prompt, completions),
            other => bail!(
                "`data` takes rows laid out as preference or ranking, and these are {}",
                other.layout()
            ),
        };
        let first = answers.len();
        answers.extend(texts.into_iter().map(|text| Answer {
            prompt: prompt.clone(),
            text,
        }));
        ranges.push(first..answers.len());
    }
    let judges = Judges::load(job, "judge", &Map::new(), params.micro_batch)?;
    let rewards = judges.rewards_each(&answers, &mut || cx.check())?;
    judges.say_what_was_cut(cx);
    for (name, own) in judges.names().into_iter().zip(rewards) {
        let found = order(ranges.iter().cloned(), &own, name)?;
        let mut values = Map::new();
        rewarded(&found, &mut values);
        values.insert("pairs".to_owned(), json!(found.pairs()));
        put(name, values, cx, all)?;
    }
    Ok(())
}

/// How scores order the pairs of each group, the best completion first.
fn order(
    groups: impl Iterator<Item = std::ops::Range<usize>>,
    scores: &[f64],
    name: &str,
) -> Result<Pairwise> {
    if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
        bail!(
            "`{name}` gives completion {} the score {}: its training diverged",
            at + 1,
            scores[at]
        );
    }
    let mut found = Pairwise::default();
    for group in groups {
        let own = &scores[group];
        for (i, better) in own.iter().enumerate() {
            own[i + 1..]
                .iter()
                .for_each(|worse| found.add(better - worse));
        }
    }
    ensure!(
        found.pairs() > 0.0,
        "there are no pairs: there is nothing to measure"
    );
    Ok(found)
}

/// Accuracy with its interval, and the margin.
fn accuracy(prefix: &str, found: &Pairwise, values: &mut Map<String, Value>) {
    let (low, high) = wilson(found.accuracy(), found.pairs());
    for (measure, value) in [
        ("accuracy", found.accuracy()),
        ("accuracy_low", low),
        ("accuracy_high", high),
        ("margin", found.margin()),
    ] {
        values.insert(format!("{prefix}{measure}"), json!(value));
    }
}

/// All that rewards say.
fn rewarded(found: &Pairwise, values: &mut Map<String, Value>) {
    accuracy("", found, values);
    values.insert("loss".to_owned(), json!(found.loss()));
    let calibration = found.calibration_error();
    values.insert("calibration_error".to_owned(), json!(calibration));
}

fn put(
    name: &str,
    values: Map<String, Value>,
    cx: &dyn Reporter,
    all: &mut Map<String, Value>,
) -> Result<()> {
    cx.emit(What::Metrics {
        step: 0,
        values: values
            .iter()
            .filter_map(|(measure, value)| Some((format!("{name}/{measure}"), value.as_f64()?)))
            .collect(),
    });
    ensure!(
        all.insert(name.to_owned(), Value::Object(values)).is_none(),
        "a policy and a judge are both called `{name}`: give one of them another name"
    );
    Ok(())
}

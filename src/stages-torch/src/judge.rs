//! Judges at work: reward models and rules, one or several with weights, on prompts and completions as text.

use std::cell::Cell;

use anyhow::{Context, Result, bail, ensure};
use data::layout::Prompt;
use data::rule::Rule;
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::Level;
use engine::job::{Job, Reporter};
use kinds::rollout::Rollout;
use ml::Pass;
use ml::completions::Row;
use ml::reward::score_all;
use ml::rl::check_scores;
use serde_json::{Map, Value};

use crate::model::{Loaded, load_among, load_beside_all};

/// A prompt with a completion, as text.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub prompt: Prompt,
    pub text: String,
}

/// One judge.
enum Judge {
    Model {
        loaded: Box<Loaded>,
        mean: f64,
        deviation: f64,
        /// Prompts that lost their start since this was last said.
        cut: Cell<usize>,
    },
    Rule(Rule),
}

/// Judges with their weights.
pub(crate) struct Judges {
    judges: Vec<(String, Judge, f64)>,
    batch: usize,
}

impl Judges {
    /// The judges of a port; weights are 1 unless given by name.
    pub(crate) fn load(
        job: &Job,
        port: &str,
        weights: &Map<String, Value>,
        batch: usize,
    ) -> Result<Judges> {
        Judges::load_among(job, port, weights, batch, None)
    }

    /// The same beside a model that nothing trains: judges on its base share the base with it, as they do with each other.
    pub(crate) fn load_among(
        job: &Job,
        port: &str,
        weights: &Map<String, Value>,
        batch: usize,
        beside: Option<&Loaded>,
    ) -> Result<Judges> {
        let load = |view: &ArtifactView, held: &[&Loaded]| {
            let held: Vec<&Loaded> = held.iter().copied().chain(beside).collect();
            load_among(view, job, &held)
        };
        Judges::made(job, port, (weights, batch), &load)
    }

    /// The judges of a policy's training: those that are adapters on its base share the base with it.
    pub(crate) fn load_beside(
        policy: &Loaded,
        job: &Job,
        port: &str,
        rollout: &Rollout,
    ) -> Result<Judges> {
        let load = |view: &ArtifactView, held: &[&Loaded]| load_beside_all(view, job, policy, held);
        Judges::made(job, port, (&rollout.weights, rollout.micro_batch), &load)
    }

    fn made(
        job: &Job,
        port: &str,
        (weights, batch): (&Map<String, Value>, usize),
        load: &dyn Fn(&ArtifactView, &[&Loaded]) -> Result<Loaded>,
    ) -> Result<Judges> {
        let views = job.named(port)?;
        let names: Vec<&str> = views.iter().map(|(name, _)| *name).collect();
        for name in weights.keys() {
            ensure!(
                names.contains(&name.as_str()),
                "`weights` names `{name}`, which is no judge here: {}",
                names.join(", ")
            );
        }
        let mut made = Judges {
            judges: Vec::new(),
            batch,
        };
        for (name, view) in views {
            let weight = weights.get(name).and_then(Value::as_f64).unwrap_or(1.0);
            let held = made.models();
            let judge = judge(view, &|view| load(view, &held))?;
            made.judges.push((name.to_owned(), judge, weight));
        }
        Ok(made)
    }

    /// The models among them.
    pub(crate) fn models(&self) -> Vec<&Loaded> {
        let judges = self.judges.iter();
        judges
            .filter_map(|(_, judge, _)| match judge {
                Judge::Model { loaded, .. } => Some(&**loaded),
                Judge::Rule(_) => None,
            })
            .collect()
    }

    /// The weighted sum of all judges' scores of each answer.
    pub(crate) fn score(
        &self,
        answers: &[Answer],
        watch: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<f64>> {
        let each = self.score_each(answers, watch)?;
        let sum = |at: usize| self.weights().zip(&each).map(|(w, own)| w * own[at]).sum();
        let sums: Vec<f64> = (0..answers.len()).map(sum).collect();
        check_scores(&sums, answers.len()).context("the weighted sum of the judges")?;
        Ok(sums)
    }

    /// The scores of each judge, before weights: one list for each judge, one number for each answer.
    pub(crate) fn score_each(
        &self,
        answers: &[Answer],
        watch: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut all = self.rewards_each(answers, watch)?;
        for ((name, judge, _), rewards) in self.judges.iter().zip(&mut all) {
            judge.standardize(rewards);
            check_scores(rewards, answers.len())
                .with_context(|| format!("the judge `{name}`, standardized"))?;
        }
        Ok(all)
    }

    /// The same on each judge's own scale: r of a reward model, of which σ(r_i − r_j) is the probability that i is preferred.
    pub(crate) fn rewards_each(
        &self,
        answers: &[Answer],
        watch: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f64>>> {
        self.judges
            .iter()
            .map(|(name, judge, _)| {
                let place = || format!("the judge `{name}`");
                let rewards = judge.rewards(answers, self.batch, watch);
                let rewards = rewards.with_context(place)?;
                check_scores(&rewards, answers.len()).with_context(place)?;
                Ok(rewards)
            })
            .collect()
    }

    /// Says how many prompts were too long for a judge since this was last said.
    pub(crate) fn say_what_was_cut(&self, cx: &dyn Reporter) {
        for (name, judge, _) in &self.judges {
            let Judge::Model { loaded, cut, .. } = judge else {
                continue;
            };
            let (count, longest) = (cut.take(), loaded.model.positions(Pass::eval()));
            if count > 0 {
                let text = format!(
                    "the judge `{name}` reads {longest} tokens: {count} prompts lost their start, and were judged without it"
                );
                cx.note(Level::Warning, &text);
            }
        }
    }

    /// Their weights.
    pub(crate) fn weights(&self) -> impl Iterator<Item = f64> {
        self.judges.iter().map(|(_, _, weight)| *weight)
    }

    /// Their names, for records of who judged.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.judges.iter().map(|(name, ..)| name.as_str()).collect()
    }
}

fn judge(view: &ArtifactView, load: &dyn Fn(&ArtifactView) -> Result<Loaded>) -> Result<Judge> {
    if view.artifact == ArtifactType::RewardModel {
        let number = |name: &str| {
            let value = view.summary.get(name).and_then(Value::as_f64);
            value.with_context(|| format!("the reward model does not say its {name}"))
        };
        let (mean, deviation) = (number("mean")?, number("deviation")?);
        let loaded = Box::new(load(view)?);
        ensure!(loaded.head.is_some(), "the reward model has no head");
        return Ok(Judge::Model {
            loaded,
            mean,
            deviation,
            cut: Cell::new(0),
        });
    }
    let text = std::fs::read(view.file("judge.json")?)?;
    let what: Map<String, Value> = serde_json::from_slice(&text)?;
    let rule = if what.contains_key("lexicon") {
        Rule::lexicon(&std::fs::read_to_string(view.file("lexicon.txt")?)?)?
    } else if let Some(pattern) = what.get("pattern").and_then(Value::as_str) {
        Rule::pattern(pattern)?
    } else if let Some(length) = what.get("length").and_then(Value::as_u64) {
        Rule::Length(length as usize)
    } else {
        bail!("a judge of an unknown kind");
    };
    Ok(Judge::Rule(rule))
}

impl Judge {
    /// The scores of a reward model as judges give them: (r − mean) / deviation.
    fn standardize(&self, rewards: &mut [f64]) {
        if let Judge::Model {
            mean, deviation, ..
        } = self
        {
            rewards
                .iter_mut()
                .for_each(|r| *r = (*r - mean) / deviation);
        }
    }

    fn rewards(
        &self,
        answers: &[Answer],
        batch: usize,
        watch: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<f64>> {
        match self {
            Judge::Rule(rule) => Ok(answers.iter().map(|a| rule.score(&a.text)).collect()),
            Judge::Model { loaded, cut, .. } => {
                let longest = loaded.model.positions(Pass::eval());
                let rows = answers
                    .iter()
                    .map(|answer| {
                        let (row, over) = row(loaded, answer, longest)?;
                        cut.set(cut.get() + usize::from(over > 0));
                        Ok(row)
                    })
                    .collect::<Result<Vec<_>>>()?;
                let head = loaded.head.as_ref().context("BUG: it has a head")?;
                score_all(&loaded.model, head, &rows, batch, &mut |_| watch())
            }
        }
    }
}

/// The tokens of an answer as the reward model's own tokenizer has them. What is too long loses the start of its prompt; a completion
/// that is too long by itself is an error. With it how many tokens were lost.
fn row(loaded: &Loaded, answer: &Answer, longest: usize) -> Result<(Row, usize)> {
    let group = loaded.encoder.encode_completions(&data::Row::Scored {
        prompt: answer.prompt.clone(),
        completion: answer.text.clone(),
        score: 0.0,
    })?;
    let ids = group.completions.into_iter().next();
    let (ids, _) = ids.context("BUG: a scored row has a completion")?;
    let (prompt, over) = (group.prompt, ids.len().saturating_sub(longest));
    ensure!(
        over <= prompt,
        "a completion has {} tokens, and the reward model reads {longest}: lower the `max_new_tokens` that it was sampled with, leave it out, \
         or take a reward model with more positions. It begins `{}`",
        ids.len() - prompt,
        answer.text.chars().take(60).collect::<String>()
    );
    let row = Row {
        tokens: ids[over..].iter().map(|id| i64::from(*id)).collect(),
        prompt: prompt - over,
    };
    Ok((row, over))
}

//! `evaluate` under judges: what models answer, how good each judge finds it, and how far they are from a reference.

use std::collections::HashSet;

use anyhow::{Context, Result};
use engine::job::{Input, Job, Reporter};
use kinds::evaluate::{Evaluate, under};
use ml::Pass;
use ml::generate::Generated;
use ml::pairwise::Z95;
use ml::rl::{Episode, log_probabilities};
use serde_json::{Map, Value, json};

use crate::answers::{Question, text};
use crate::judge::{Answer, Judges};
use crate::model::{Loaded, load};

/// Who judges, and what models are held to.
pub(crate) struct Bench {
    judges: Judges,
    /// Their names in metrics: none for a judge that is alone without a name.
    names: Vec<String>,
    reference: Option<Loaded>,
}

/// A model's answers in numbers.
pub(crate) struct Measured {
    /// Of each judge a score for each prompt.
    pub scores: Vec<Vec<f64>>,
    pub values: Map<String, Value>,
}

impl Bench {
    /// None where no judge was given.
    pub(crate) fn open(job: &Job, params: &Evaluate) -> Result<Option<Bench>> {
        if !job.inputs.contains_key("judge") {
            return Ok(None);
        }
        let reference = match job.inputs.contains_key("reference") {
            true => Some(load(job.input("reference")?, job)?),
            false => None,
        };
        let (weights, batch) = (Map::new(), params.micro_batch);
        let judges = Judges::load_among(job, "judge", &weights, batch, reference.as_ref())?;
        let names = match job.inputs.get("judge") {
            Some(Input::One(_)) => vec![String::new()],
            _ => judges.names().into_iter().map(str::to_owned).collect(),
        };
        Ok(Some(Bench {
            judges,
            names,
            reference,
        }))
    }

    /// The models that stay while others come and go.
    pub(crate) fn models(&self) -> Vec<&Loaded> {
        let judges = self.judges.models().into_iter();
        judges.chain(&self.reference).collect()
    }

    /// Has a model's answers judged.
    pub(crate) fn measure(
        &self,
        loaded: &Loaded,
        questions: &[Question],
        generated: &[Generated],
        params: &Evaluate,
        cx: &dyn Reporter,
    ) -> Result<Measured> {
        let answers = questions
            .iter()
            .zip(generated)
            .map(|(question, generated)| {
                Ok(Answer {
                    prompt: question.prompt.clone(),
                    text: text(loaded, generated)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let scores = self.judges.score_each(&answers, &mut || cx.check())?;
        self.judges.say_what_was_cut(cx);
        let n = answers.len() as f64;
        let mut values = Map::new();
        for (judge, own) in self.names.iter().zip(&scores) {
            values.insert(under(judge, "score"), json!(mean(own)));
        }
        if let Some(reference) = &self.reference {
            loaded.check_reference(reference, "models")?;
            let pairs = questions.iter().zip(generated).enumerate();
            let episodes: Vec<Episode> = pairs
                .map(|(index, (question, generated))| {
                    Episode::new(index, question.tokens.clone(), generated.clone())
                })
                .collect();
            let (kl, error) = self.divergence(loaded, reference, &episodes, params)?;
            values.insert("kl".to_owned(), json!(kl));
            values.insert("kl_error".to_owned(), json!(error));
        }
        let tokens: usize = generated.iter().map(|g| g.tokens.len()).sum();
        let finished = generated.iter().filter(|g| g.finished).count();
        let texts: Vec<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
        values.insert("length".to_owned(), json!(tokens as f64 / n));
        values.insert("finished".to_owned(), json!(finished as f64 / n));
        values.insert("diversity".to_owned(), json!(distinct_pairs(&texts)));
        Ok(Measured { scores, values })
    }

    /// How the models fared against the first one under each judge.
    pub(crate) fn against(
        &self,
        first: &[Vec<f64>],
        own: &[Vec<f64>],
    ) -> Result<Map<String, Value>> {
        let mut all = Map::new();
        for ((judge, first), own) in self.names.iter().zip(first).zip(own) {
            for (measure, value) in against(first, own)? {
                all.insert(under(judge, &measure), value);
            }
        }
        Ok(all)
    }

    /// The mean over completions of log π − log π_ref of the whole completion, an estimate of KL(π‖π_ref) at temperature 1, and its
    /// standard error.
    fn divergence(
        &self,
        loaded: &Loaded,
        reference: &Loaded,
        episodes: &[Episode],
        params: &Evaluate,
    ) -> Result<(f64, f64)> {
        let of = |model| log_probabilities(model, Pass::eval(), episodes, 1.0, params.micro_batch);
        let (policy, held) = (of(&loaded.model)?, of(&reference.model)?);
        let each: Vec<f64> = policy
            .iter()
            .zip(&held)
            .map(|(p, r)| p.iter().sum::<f64>() - r.iter().sum::<f64>())
            .collect();
        Ok((mean(&each), standard_error(&each)))
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Of a mean: the deviation (over n − 1) by √n.
fn standard_error(values: &[f64]) -> f64 {
    let (n, middle) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|x| (x - middle).powi(2)).sum();
    (squares / (n - 1.0).max(1.0) / n.max(1.0)).sqrt()
}

/// Different pairs of words over all pairs of words (distinct-2, Li et al., arXiv 1510.03055).
fn distinct_pairs(texts: &[&str]) -> f64 {
    let (mut seen, mut all) = (HashSet::new(), 0usize);
    for text in texts {
        let words: Vec<&str> = text.split_whitespace().collect();
        for pair in words.windows(2) {
            seen.insert((pair[0], pair[1]));
            all += 1;
        }
    }
    seen.len() as f64 / all.max(1) as f64
}

/// How a model fares against the first one, prompt by prompt: won (ties count half), the mean difference of scores and its 95%
/// interval (normal, from the deviation of the differences).
fn against(first: &[f64], own: &[f64]) -> Result<Map<String, Value>> {
    let n = own.len() as f64;
    let differences: Vec<f64> = own.iter().zip(first).map(|(a, b)| a - b).collect();
    let won: f64 = differences
        .iter()
        .map(|d| {
            if *d > 0.0 {
                1.0
            } else if *d == 0.0 {
                0.5
            } else {
                0.0
            }
        })
        .sum();
    let middle = mean(&differences);
    let half = Z95 * standard_error(&differences);
    let values = json!({
        "win_rate": won / n,
        "difference": middle,
        "difference_low": middle - half,
        "difference_high": middle + half,
    });
    match values {
        Value::Object(map) => Ok(map),
        _ => None.context("BUG: an object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_are_half_won() {
        let found = against(&[0.0, 1.0, 2.0, 3.0], &[1.0, 1.0, 1.0, 5.0]).unwrap();
        assert_eq!(found["win_rate"], 0.625);
        assert_eq!(found["difference"], 0.5);
        // Deviation of (1, 0, -1, 2) is 1.2910; half the interval 1.96 · 1.2910 / 2.
        let low = found["difference_low"].as_f64().unwrap();
        assert!((low - (0.5 - Z95 * (5.0f64 / 3.0 / 4.0).sqrt())).abs() < 1e-9);
    }

    #[test]
    fn diversity_counts_pairs_of_words() {
        assert_eq!(distinct_pairs(&["a b a b", "a b"]), 0.5);
    }
}

//! `best_of_n`: pools of completions, their scores under two judges, and what picking among n of them comes to.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use data::Dataset;
use data::best_of_n::{Scored, best_of, counts, divergence, mean_and_error};
use data::candidates::{Candidates, candidates};
use engine::artifact::ArtifactType;
use engine::event::{Level, What};
use engine::job::{Draft, Drafts, Job, Reporter};
use engine::metric::short;
use kinds::best_of_n::BestOfN;
use serde_json::{Map, Value, json};

use crate::judge::{Answer, Judges};

/// What the picks of one n came to, over all prompts.
struct Picked {
    n: usize,
    score: Scored,
    /// Standard errors over prompts.
    error: Scored,
    /// Over n = 1.
    gain: Scored,
    /// Standard errors of the paired differences.
    gain_error: Scored,
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: BestOfN = job.params()?;
    let dataset = Dataset::open(job.input("samples")?.file("rows.arrow")?)?;
    let found = candidates(&dataset)?;
    let size = size(&found)?;
    let pools = pools(job, &found, params.micro_batch, cx)?;
    let picked: Vec<Picked> = picked(size, &pools);
    for one in &picked {
        let values = [
            ("proxy_score".to_owned(), one.score.proxy),
            ("gold_score".to_owned(), one.score.gold),
        ];
        cx.emit(What::Metrics {
            step: one.n as u64,
            values: values.into(),
        });
    }
    let path = job.out.join("metrics.json");
    let rows: Vec<Value> = picked.iter().map(row).collect();
    std::fs::write(
        &path,
        serde_json::to_vec_pretty(&json!({ "points": rows }))?,
    )?;
    let summary = summary(&pools, size, &picked);
    let best = &summary["best_n"];
    let [gain, drop] =
        ["best_gain", "drop"].map(|name| short(summary[name].as_f64().unwrap_or(0.0)));
    cx.note(
        Level::Info,
        &format!(
            "gold is best at n = {best}, {gain} above n = 1; at n = {size} it is {drop} lower"
        ),
    );
    let draft = Draft {
        artifact: ArtifactType::Metrics,
        files: vec![("metrics.json".to_owned(), path)],
        refs: BTreeMap::new(),
        summary,
    };
    Ok([("metrics".to_owned(), draft)].into())
}

/// How many completions a group has, those that were sampled more than once counted as often.
fn count(group: &Candidates) -> usize {
    group.all.iter().map(|one| one.from.len()).sum()
}

/// The completions of a prompt. A prompt that follows itself makes one pool of twice the size, which is as good.
fn size(groups: &[Candidates]) -> Result<usize> {
    ensure!(
        groups.len() > 1,
        "standard errors need at least two prompts, and the samples have {}",
        groups.len()
    );
    let size = groups.iter().map(count).min().unwrap_or(0);
    let odd = groups
        .iter()
        .enumerate()
        .find(|(_, group)| !count(group).is_multiple_of(size));
    if let Some((at, group)) = odd {
        anyhow::bail!(
            "prompt {} has {} completions and another one {size}: sample every prompt as often, with `n` of `generate`",
            at + 1,
            count(group)
        );
    }
    ensure!(
        size > 1,
        "every prompt has one completion, among which there is nothing to pick: sample more with `n` of `generate`"
    );
    Ok(size)
}

/// Every prompt's completions as both judges score them.
fn pools(
    job: &Job,
    groups: &[Candidates],
    batch: usize,
    cx: &dyn Reporter,
) -> Result<Vec<Vec<Scored>>> {
    let answers: Vec<Answer> = groups
        .iter()
        .flat_map(|group| group.all.iter().map(|one| (&group.prompt, one)))
        .map(|(prompt, one)| Answer {
            prompt: prompt.clone(),
            text: one.text.clone(),
        })
        .collect();
    let total = 2 * answers.len() as u64;
    let scores = |port: &str, done: u64| -> Result<Vec<f64>> {
        let judges = Judges::load(job, port, &Map::new(), batch)?;
        let scores = judges.score(&answers, &mut || cx.check())?;
        judges.say_what_was_cut(cx);
        cx.progress(done, total, "scores");
        Ok(scores)
    };
    let proxy = scores("proxy", total / 2)?;
    ml::torch::release_memory();
    let gold = scores("gold", total)?;
    let mut scored = proxy
        .into_iter()
        .zip(gold)
        .map(|(proxy, gold)| Scored { proxy, gold });
    let pool = |group: &Candidates| -> Vec<Scored> {
        let each = group.all.iter().zip(scored.by_ref());
        each.flat_map(|(one, scored)| vec![scored; one.from.len()])
            .collect()
    };
    Ok(groups.iter().map(pool).collect())
}

/// The picks for every n.
fn picked(size: usize, pools: &[Vec<Scored>]) -> Vec<Picked> {
    let of = |n: usize| -> Vec<Scored> { pools.iter().map(|pool| best_of(n, pool)).collect() };
    let start = of(1);
    let picks = |n: usize| {
        let own = of(n);
        let paired = own.iter().zip(&start);
        let differences: Vec<Scored> = paired
            .map(|(own, start)| Scored {
                proxy: own.proxy - start.proxy,
                gold: own.gold - start.gold,
            })
            .collect();
        let (score, error) = over_prompts(&own);
        let (gain, gain_error) = over_prompts(&differences);
        Picked {
            n,
            score,
            error,
            gain,
            gain_error,
        }
    };
    counts(size).into_iter().map(picks).collect()
}

/// (mean, standard error) of both judges' numbers.
fn over_prompts(all: &[Scored]) -> (Scored, Scored) {
    let of = |which: fn(&Scored) -> f64| mean_and_error(&all.iter().map(which).collect::<Vec<_>>());
    let (proxy, gold) = (of(|one| one.proxy), of(|one| one.gold));
    let mean = Scored {
        proxy: proxy.0,
        gold: gold.0,
    };
    let error = Scored {
        proxy: proxy.1.unwrap_or(0.0),
        gold: gold.1.unwrap_or(0.0),
    };
    (mean, error)
}

/// A row of `metrics.json`, as `overoptimization` reads it.
fn row(picked: &Picked) -> Value {
    let kl = divergence(picked.n);
    json!({
        "name": picked.n.to_string(),
        "n": picked.n,
        "kl": kl,
        "d": kl.sqrt(),
        "proxy_score": picked.score.proxy,
        "proxy_score_error": picked.error.proxy,
        "gold_score": picked.score.gold,
        "gold_score_error": picked.error.gold,
        "proxy_gain": picked.gain.proxy,
        "proxy_gain_error": picked.gain_error.proxy,
        "gold_gain": picked.gain.gold,
        "gold_gain_error": picked.gain_error.gold,
    })
}

fn summary(pools: &[Vec<Scored>], size: usize, picked: &[Picked]) -> BTreeMap<String, Value> {
    let last = &picked[picked.len() - 1];
    // Of equals the smallest n.
    let better = |best: &Picked, one: &Picked| one.gain.gold > best.gain.gold;
    let best = picked.iter().fold(
        &picked[0],
        |best, one| {
            if better(best, one) { one } else { best }
        },
    );
    [
        ("prompts", json!(pools.len())),
        ("completions", json!(size)),
        ("kl", json!(divergence(last.n))),
        ("proxy_score", json!(last.score.proxy)),
        ("gold_score", json!(last.score.gold)),
        ("proxy_gain", json!(last.gain.proxy)),
        ("gold_gain", json!(last.gain.gold)),
        ("best_n", json!(best.n)),
        ("best_gain", json!(best.gain.gold)),
        ("drop", json!(best.gain.gold - last.gain.gold)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests {
    use data::candidates::Candidate;
    use data::layout::Prompt;

    use super::*;

    fn group(counts: &[usize]) -> Candidates {
        let one = |(at, count): (usize, &usize)| Candidate {
            text: at.to_string(),
            score: None,
            from: vec![0; *count],
        };
        Candidates {
            prompt: Prompt::Text("a".to_owned()),
            all: counts.iter().enumerate().map(one).collect(),
        }
    }

    #[test]
    fn every_prompt_is_sampled_as_often() {
        let of = |groups: &[&[usize]]| {
            let groups: Vec<_> = groups.iter().map(|counts| group(counts)).collect();
            size(&groups).map_err(|e| e.to_string())
        };
        assert_eq!(of(&[&[1, 3], &[4], &[2, 2, 2, 2]]), Ok(4));
        let odd = of(&[&[4], &[3, 1, 2]]).unwrap_err();
        assert!(odd.starts_with("prompt 2 has 6 completions and another one 4: "));
        assert!(of(&[&[1], &[1]]).unwrap_err().starts_with("every prompt"));
        assert!(of(&[&[2]]).unwrap_err().ends_with("and the samples have 1"));
    }

    #[test]
    fn gains_are_paired() {
        // The proxy picks the better gold of two in the one pool and the worse in the other.
        let scored = |proxy, gold| Scored { proxy, gold };
        let pools = [
            vec![scored(0.0, 0.0), scored(2.0, 4.0)],
            vec![scored(10.0, 3.0), scored(12.0, 1.0)],
        ];
        let all = picked(2, &pools);
        assert_eq!(all.iter().map(|one| one.n).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(all[0].score, scored(6.0, 2.0));
        assert_eq!(all[1].score, scored(7.0, 2.5));
        // Both proxies gain 1; golds gain 2 and −1.
        assert_eq!(all[1].gain, scored(1.0, 0.5));
        assert_eq!(all[1].gain_error, scored(0.0, 1.5));
        assert_eq!(all[1].error.proxy, 5.0);
        let told = summary(&pools, 2, &all);
        assert_eq!((&told["best_n"], &told["drop"]), (&json!(2), &json!(0.0)));
        assert_eq!(row(&all[0])["kl"], 0.0);
    }
}

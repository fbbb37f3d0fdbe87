//! `annotate`: groups of completions, their scores, and the rows that are made of them.

use anyhow::{Context, Result, bail, ensure};
use data::candidates::{Candidate, Candidates, candidates};
use data::layout::Prompt;
use data::{Dataset, DatasetWriter, Layout, Message, Row};
use engine::artifact::ArtifactType;
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::annotate::Annotate;
use ml::rl::check_scores;
use serde_json::json;

use crate::judge::{Answer, Judges};

/// A completion with its scores.
#[derive(Clone, Debug)]
struct Judged {
    text: String,
    /// The weighted sum.
    score: f64,
    /// Of each judge.
    each: Vec<f64>,
}

/// Different completions of one prompt.
struct Group {
    prompt: Prompt,
    /// Best first, or with `order: kept` as they came.
    completions: Vec<Judged>,
}

/// What was left out.
#[derive(Default)]
struct Left {
    ambiguous: usize,
    disputed: usize,
    alone: usize,
    repeated: usize,
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Annotate = job.params()?;
    let dataset = Dataset::open(job.input("samples")?.file("rows.arrow")?)?;
    let kept = params.order == "kept";
    ensure!(
        !kept || dataset.layout() == Layout::Preference,
        "`order: kept` takes pairs that have an order, and these rows are laid out as {}",
        dataset.layout()
    );
    let found = candidates(&dataset)?;
    let (judged, judges) = judged(job, &params, &found, cx)?;
    let mut left = Left {
        repeated: found.iter().flat_map(|g| &g.all).map(repeats).sum(),
        ..Left::default()
    };
    let groups = groups(found, judged, kept);
    let layout = match params.make.as_str() {
        "preference" => Layout::Preference,
        "ranking" => Layout::Ranking,
        "unpaired" => Layout::Unpaired,
        "scored" => Layout::Scored,
        "best" => match groups.first().map(|group| &group.prompt) {
            Some(Prompt::Chat(_)) => Layout::Messages,
            _ => Layout::PromptCompletion,
        },
        other => bail!("`{other}` is nothing to make"),
    };
    let path = job.out.join("rows.arrow");
    let mut writer = DatasetWriter::create(&path, layout)?;
    for group in &groups {
        for row in rows(group, &params, &mut left) {
            writer.push(&row)?;
        }
    }
    let summary = writer.finish()?;
    say(&params, &left, &groups, cx);
    ensure!(
        summary.rows > 0,
        "nothing is left: {} pairs were ambiguous, {} disputed, {} prompts have one completion only; sample more of each prompt, or lower \
         `min_margin` or `min_agreement`",
        left.ambiguous,
        left.disputed,
        left.alone
    );
    let scores = groups.iter().flat_map(|g| &g.completions).map(|c| c.score);
    let (count, sum) = scores.fold((0, 0.0), |(n, sum), score| (n + 1, sum + score));
    let best: f64 = groups.iter().map(|g| best(g).score).sum();
    let columns: Vec<_> = layout.columns().iter().map(|(name, _)| *name).collect();
    let draft = Draft {
        artifact: ArtifactType::Dataset,
        files: vec![("rows.arrow".to_owned(), path)],
        refs: Default::default(),
        summary: [
            ("rows".to_owned(), json!(summary.rows)),
            ("layout".to_owned(), json!(layout.name())),
            ("columns".to_owned(), json!(columns)),
            (
                "characters".to_owned(),
                serde_json::to_value(summary.characters)?,
            ),
            ("judges".to_owned(), json!(judges)),
            ("score".to_owned(), json!(sum / f64::from(count))),
            ("best_score".to_owned(), json!(best / groups.len() as f64)),
            ("ambiguous".to_owned(), json!(left.ambiguous)),
            ("disputed".to_owned(), json!(left.disputed)),
        ]
        .into(),
    };
    Ok([("rows".to_owned(), draft)].into())
}

/// How often a completion came again.
fn repeats(candidate: &Candidate) -> usize {
    candidate.from.len() - 1
}

/// Every candidate's scores, in order, and who gave them.
fn judged(
    job: &Job,
    params: &Annotate,
    found: &[Candidates],
    cx: &dyn Reporter,
) -> Result<(Vec<Judged>, Vec<String>)> {
    let all = found
        .iter()
        .flat_map(|group| group.all.iter().map(|one| (&group.prompt, one)));
    if !job.inputs.contains_key("judge") {
        ensure!(
            params.weights.is_empty(),
            "`weights` names judges, and there is no `judge`"
        );
        let own = all.map(|(_, one)| match one.score {
            Some(score) => Ok(Judged {
                text: one.text.clone(),
                score,
                each: vec![score],
            }),
            None => bail!("the rows have no scores of their own: say who judges them with `judge`"),
        });
        return Ok((own.collect::<Result<_>>()?, Vec::new()));
    }
    let answers: Vec<Answer> = all
        .map(|(prompt, one)| Answer {
            prompt: prompt.clone(),
            text: one.text.clone(),
        })
        .collect();
    let judges = Judges::load(job, "judge", &params.weights, params.micro_batch)?;
    let each = judges.score_each(&answers, &mut || cx.check())?;
    judges.say_what_was_cut(cx);
    cx.progress(answers.len() as u64, answers.len() as u64, "completions");
    let weights: Vec<f64> = judges.weights().collect();
    let own = answers.into_iter().enumerate().map(|(at, answer)| {
        let each: Vec<f64> = weights.iter().zip(&each).map(|(w, s)| w * s[at]).collect();
        Judged {
            text: answer.text,
            score: each.iter().sum(),
            each,
        }
    });
    let own: Vec<Judged> = own.collect();
    let sums: Vec<f64> = own.iter().map(|judged| judged.score).collect();
    check_scores(&sums, sums.len()).context("the weighted sum of the judges")?;
    let names = judges.names().into_iter().map(str::to_owned).collect();
    Ok((own, names))
}

/// The groups with their scores, best first unless their order is kept.
fn groups(found: Vec<Candidates>, judged: Vec<Judged>, kept: bool) -> Vec<Group> {
    let mut judged = judged.into_iter();
    let mut groups: Vec<Group> = found
        .into_iter()
        .map(|group| Group {
            completions: judged.by_ref().take(group.all.len()).collect(),
            prompt: group.prompt,
        })
        .collect();
    if !kept {
        for group in &mut groups {
            // Stable: equal scores keep the order in which they were sampled.
            group
                .completions
                .sort_by(|a, b| b.score.total_cmp(&a.score));
        }
    }
    groups
}

/// The completion with the highest score. A group has one at least.
fn best(group: &Group) -> &Judged {
    let first = &group.completions[0];
    let others = group.completions[1..].iter();
    others.fold(
        first,
        |best, one| {
            if one.score > best.score { one } else { best }
        },
    )
}

/// Whether a pair is clear; counts it where it is not.
fn is_clear(better: &Judged, worse: &Judged, params: &Annotate, left: &mut Left) -> bool {
    let margin = better.score - worse.score;
    if margin <= 0.0 || margin < params.min_margin {
        left.ambiguous += 1;
        return false;
    }
    let pairs = better.each.iter().zip(&worse.each);
    let agree = pairs.filter(|(a, b)| a > b).count() as f64;
    if agree < params.min_agreement * better.each.len() as f64 {
        left.disputed += 1;
        return false;
    }
    true
}

/// The rows of one group.
fn rows(group: &Group, params: &Annotate, left: &mut Left) -> Vec<Row> {
    let (prompt, all) = (&group.prompt, &group.completions);
    if matches!(params.make.as_str(), "preference" | "ranking") && all.len() < 2 {
        left.alone += 1;
        return Vec::new();
    }
    let mut pair = |better: &Judged, worse: &Judged| {
        is_clear(better, worse, params, left).then(|| Row::Preference {
            prompt: prompt.clone(),
            chosen: better.text.clone(),
            rejected: worse.text.clone(),
            margin: Some(better.score - worse.score),
        })
    };
    match params.make.as_str() {
        "preference" if params.pairs == "all" => {
            let mut made = Vec::new();
            for (i, better) in all.iter().enumerate() {
                made.extend(all[i + 1..].iter().filter_map(|worse| pair(better, worse)));
            }
            made
        }
        "preference" => pair(&all[0], &all[all.len() - 1]).into_iter().collect(),
        "ranking" => {
            if pair(&all[0], &all[all.len() - 1]).is_none() {
                return Vec::new();
            }
            vec![Row::Ranking {
                prompt: prompt.clone(),
                completions: all.iter().map(|one| one.text.clone()).collect(),
            }]
        }
        "unpaired" => all
            .iter()
            .map(|one| Row::Unpaired {
                prompt: prompt.clone(),
                completion: one.text.clone(),
                desirable: one.score >= params.threshold,
            })
            .collect(),
        "scored" => all
            .iter()
            .map(|one| Row::Scored {
                prompt: prompt.clone(),
                completion: one.text.clone(),
                score: one.score,
            })
            .collect(),
        _ => vec![answered(prompt, &all[0].text)],
    }
}

/// A prompt with its completion as a row to be fine-tuned on.
fn answered(prompt: &Prompt, text: &str) -> Row {
    match prompt {
        Prompt::Text(prompt) => Row::PromptCompletion {
            prompt: prompt.clone(),
            completion: text.to_owned(),
        },
        Prompt::Chat(messages) => {
            let mut messages = messages.clone();
            messages.push(Message::new("assistant", text));
            Row::Messages { messages }
        }
    }
}

fn say(params: &Annotate, left: &Left, groups: &[Group], cx: &dyn Reporter) {
    let mut notes = Vec::new();
    if left.repeated > 0 {
        notes.push(format!(
            "{} completions were the same as others",
            left.repeated
        ));
    }
    if left.ambiguous > 0 {
        let why = match (params.order.as_str(), params.min_margin > 0.0) {
            ("kept", _) => {
                "the judge does not find the better one better by `min_margin`".to_owned()
            }
            (_, true) => format!("their scores differ by less than {}", params.min_margin),
            (_, false) => "their scores are equal".to_owned(),
        };
        notes.push(format!(
            "{} comparisons were left out: {why}",
            left.ambiguous
        ));
    }
    if left.disputed > 0 {
        notes.push(format!(
            "{} comparisons were left out: too few judges agree about them",
            left.disputed
        ));
    }
    if left.alone > 0 {
        notes.push(format!(
            "{} of {} prompts have one completion only",
            left.alone,
            groups.len()
        ));
    }
    for note in notes {
        cx.note(Level::Info, &note);
    }
}

//! `annotate`: groups of completions, their scores, and the rows that are made of them.

use anyhow::{Context, Result, bail, ensure};
use data::layout::Prompt;
use data::{Dataset, DatasetWriter, Layout, Message, Row};
use engine::artifact::ArtifactType;
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::annotate::Annotate;
use ml::rl::check_scores;
use serde_json::json;

use crate::judge::{Answer, Judges};

/// Different completions of one prompt with their scores.
struct Group {
    prompt: Prompt,
    /// Best first.
    completions: Vec<(String, f64)>,
}

/// What was left out.
#[derive(Default)]
struct Left {
    ambiguous: usize,
    alone: usize,
    repeated: usize,
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Annotate = job.params()?;
    let dataset = Dataset::open(job.input("samples")?.file("rows.arrow")?)?;
    let answers = (0..dataset.len())
        .map(|index| {
            let row = dataset.row(index)?;
            let (prompt, text) = row.question();
            let text = text.with_context(|| format!("row {} has no completion", index + 1))?;
            Ok(Answer {
                text: text.to_owned(),
                prompt,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let judges = Judges::load(job, "judge", &params.weights, params.micro_batch)?;
    let scores = judges.score(&answers, cx)?;
    check_scores(&scores, answers.len())?;
    cx.progress(answers.len() as u64, answers.len() as u64, "completions");
    let mut left = Left::default();
    let groups = groups(&answers, &scores, &mut left);
    let layout = match params.make.as_str() {
        "preference" => Layout::Preference,
        "ranking" => Layout::Ranking,
        "unpaired" => Layout::Unpaired,
        "scored" => Layout::Scored,
        "best" => dataset.layout(),
        other => bail!("`{other}` is nothing to make"),
    };
    let path = job.out.join("rows.arrow");
    let mut writer = DatasetWriter::create(&path, layout)?;
    for group in &groups {
        for row in rows(group, layout, &params, &mut left) {
            writer.push(&row)?;
        }
    }
    let summary = writer.finish()?;
    say(&params, &left, &groups, cx);
    ensure!(
        summary.rows > 0,
        "nothing is left: {} pairs were ambiguous, {} prompts have one completion only; sample more of each prompt, or lower `min_margin`",
        left.ambiguous,
        left.alone
    );
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let best: f64 = groups.iter().map(|g| g.completions[0].1).sum();
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
            ("judges".to_owned(), json!(judges.names())),
            ("score".to_owned(), json!(mean)),
            ("best_score".to_owned(), json!(best / groups.len() as f64)),
            ("ambiguous".to_owned(), json!(left.ambiguous)),
        ]
        .into(),
    };
    Ok([("rows".to_owned(), draft)].into())
}

/// Answers that follow each other with the same prompt; completions that are the same count once.
fn groups(answers: &[Answer], scores: &[f64], left: &mut Left) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (answer, score) in answers.iter().zip(scores) {
        if groups
            .last()
            .is_none_or(|group| group.prompt != answer.prompt)
        {
            groups.push(Group {
                prompt: answer.prompt.clone(),
                completions: Vec::new(),
            });
        }
        let Some(group) = groups.last_mut() else {
            continue;
        };
        if group
            .completions
            .iter()
            .any(|(text, _)| *text == answer.text)
        {
            left.repeated += 1;
        } else {
            group.completions.push((answer.text.clone(), *score));
        }
    }
    for group in &mut groups {
        // Stable: equal scores keep the order in which they were sampled.
        group.completions.sort_by(|a, b| b.1.total_cmp(&a.1));
    }
    groups
}

/// The rows of one group.
fn rows(group: &Group, layout: Layout, params: &Annotate, left: &mut Left) -> Vec<Row> {
    let (prompt, all) = (&group.prompt, &group.completions);
    let pairs = matches!(layout, Layout::Preference | Layout::Ranking) && params.make != "best";
    if pairs && all.len() < 2 {
        left.alone += 1;
        return Vec::new();
    }
    let mut pair = |better: &(String, f64), worse: &(String, f64)| {
        let margin = better.1 - worse.1;
        if margin <= 0.0 || margin < params.min_margin {
            left.ambiguous += 1;
            return None;
        }
        Some(Row::Preference {
            prompt: prompt.clone(),
            chosen: better.0.clone(),
            rejected: worse.0.clone(),
            margin: Some(margin),
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
                completions: all.iter().map(|(text, _)| text.clone()).collect(),
            }]
        }
        "unpaired" => all
            .iter()
            .map(|(text, score)| Row::Unpaired {
                prompt: prompt.clone(),
                completion: text.clone(),
                desirable: *score >= params.threshold,
            })
            .collect(),
        "scored" => all
            .iter()
            .map(|(text, score)| Row::Scored {
                prompt: prompt.clone(),
                completion: text.clone(),
                score: *score,
            })
            .collect(),
        _ => vec![answered(prompt, &all[0].0)],
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
        let why = match params.min_margin > 0.0 {
            true => format!("their scores differ by less than {}", params.min_margin),
            false => "their scores are equal".to_owned(),
        };
        notes.push(format!(
            "{} comparisons were left out: {why}",
            left.ambiguous
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

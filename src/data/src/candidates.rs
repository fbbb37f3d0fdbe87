//! Completions to be judged: those of one prompt together, each text once.

use anyhow::{Result, bail, ensure};

use crate::layout::{Layout, Prompt};
use crate::row::Row;
use crate::store::Dataset;

/// A completion of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// What was written.
    pub text: String,
    /// The score that its row holds, where it holds one; of rows with the same text the mean.
    pub score: Option<f64>,
    /// The datasets that have it, by their place in the list; one that has it twice is there twice.
    pub from: Vec<usize>,
}

/// Different completions of one prompt, in the order in which they came.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    /// What they answer.
    pub prompt: Prompt,
    /// At least one.
    pub all: Vec<Candidate>,
}

impl Candidates {
    fn new(prompt: Prompt) -> Candidates {
        Candidates {
            prompt,
            all: Vec::new(),
        }
    }

    fn add(&mut self, text: String, score: Option<f64>, from: usize) {
        let Some(known) = self.all.iter_mut().find(|known| known.text == text) else {
            self.all.push(Candidate {
                text,
                score,
                from: vec![from],
            });
            return;
        };
        let seen = known.from.len() as f64;
        known.score = match (known.score, score) {
            (Some(known), Some(score)) => Some((known * seen + score) / (seen + 1.0)),
            (known, score) => known.or(score),
        };
        known.from.push(from);
    }
}

/// The groups of a dataset: rows that follow each other and have the same prompt, as `generate` with `n` writes them; a row of
/// completions that are already compared is a group of its own, in its order.
///
/// Errors name the row that has no completion.
pub fn candidates(dataset: &Dataset) -> Result<Vec<Candidates>> {
    gathered(dataset, 0)
}

/// The groups of several datasets, each with its name: group i of one joins group i of the others.
///
/// Errors when a group's prompt is another one in another dataset, and when there are more groups in one of them.
pub fn candidates_of(datasets: &[(&str, &Dataset)]) -> Result<Vec<Candidates>> {
    let Some(((first, dataset), others)) = datasets.split_first() else {
        bail!("there are no samples");
    };
    let mut groups = gathered(dataset, 0)?;
    for (place, (name, dataset)) in others.iter().enumerate() {
        let own = gathered(dataset, place + 1)?;
        ensure!(
            own.len() == groups.len(),
            "`{name}` has {} prompts and `{first}` {}: sample the same prompts with each",
            own.len(),
            groups.len()
        );
        for (index, (group, own)) in groups.iter_mut().zip(own).enumerate() {
            ensure!(
                group.prompt == own.prompt,
                "prompt {} of `{name}` is another one than that of `{first}`: sample the same prompts with each",
                index + 1
            );
            for candidate in own.all {
                for from in candidate.from {
                    group.add(candidate.text.clone(), candidate.score, from);
                }
            }
        }
    }
    Ok(groups)
}

fn gathered(dataset: &Dataset, from: usize) -> Result<Vec<Candidates>> {
    let compared = matches!(dataset.layout(), Layout::Preference | Layout::Ranking);
    let mut groups: Vec<Candidates> = Vec::new();
    for index in 0..dataset.len() {
        let (prompt, texts, score) = parts(dataset.row(index)?);
        ensure!(!texts.is_empty(), "row {} has no completion", index + 1);
        if compared || groups.last().is_none_or(|group| group.prompt != prompt) {
            groups.push(Candidates::new(prompt));
        }
        let Some(group) = groups.last_mut() else {
            continue;
        };
        for text in texts {
            group.add(text, score, from);
        }
    }
    Ok(groups)
}

/// (prompt, completions, score) of a row.
fn parts(row: Row) -> (Prompt, Vec<String>, Option<f64>) {
    match row {
        Row::Preference {
            prompt,
            chosen,
            rejected,
            ..
        } => (prompt, vec![chosen, rejected], None),
        Row::Ranking {
            prompt,
            completions,
        } => (prompt, completions, None),
        Row::Unpaired {
            prompt, completion, ..
        } => (prompt, vec![completion], None),
        Row::Scored {
            prompt,
            completion,
            score,
        } => (prompt, vec![completion], Some(score)),
        row => {
            let (prompt, text) = row.question();
            let texts = text.map(str::to_owned).into_iter().collect();
            (prompt, texts, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DatasetWriter;

    fn dataset(rows: &[Row]) -> (tempfile::TempDir, Dataset) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.arrow");
        let mut writer = DatasetWriter::create(&path, rows[0].layout()).unwrap();
        rows.iter().for_each(|row| writer.push(row).unwrap());
        writer.finish().unwrap();
        let dataset = Dataset::open(&path).unwrap();
        (folder, dataset)
    }

    fn sampled(prompt: &str, completion: &str) -> Row {
        Row::PromptCompletion {
            prompt: prompt.to_owned(),
            completion: completion.to_owned(),
        }
    }

    #[test]
    fn rows_that_follow_each_other_with_one_prompt_are_a_group_and_equal_texts_count_once() {
        let (_folder, rows) = dataset(&[
            sampled("a", "1"),
            sampled("a", "2"),
            sampled("a", "1"),
            sampled("b", "1"),
            sampled("a", "3"),
        ]);
        let groups = candidates(&rows).unwrap();
        let texts: Vec<Vec<&str>> = groups
            .iter()
            .map(|g| g.all.iter().map(|c| c.text.as_str()).collect())
            .collect();
        assert_eq!(texts, [vec!["1", "2"], vec!["1"], vec!["3"]]);
        assert_eq!(groups[0].all[0].from, [0, 0]);
    }

    #[test]
    fn scores_come_along_and_pairs_keep_their_order() {
        let scored = |score| Row::Scored {
            prompt: Prompt::Text("a".to_owned()),
            completion: "1".to_owned(),
            score,
        };
        let (_folder, rows) = dataset(&[scored(1.0), scored(2.0), scored(6.0)]);
        assert_eq!(candidates(&rows).unwrap()[0].all[0].score, Some(3.0));
        let pair = Row::Preference {
            prompt: Prompt::Text("a".to_owned()),
            chosen: "z".to_owned(),
            rejected: "y".to_owned(),
            margin: None,
        };
        let (_folder, rows) = dataset(&[pair.clone(), pair]);
        let groups = candidates(&rows).unwrap();
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[1].all[0].text, "z");
    }

    #[test]
    fn several_datasets_join_where_their_prompts_are_the_same() {
        let (_one, first) = dataset(&[sampled("a", "1"), sampled("b", "2")]);
        let (_two, second) = dataset(&[sampled("a", "1"), sampled("b", "3")]);
        let groups = candidates_of(&[("sft", &first), ("dpo", &second)]).unwrap();
        assert_eq!(groups[0].all[0].from, [0, 1]);
        assert_eq!(groups[1].all[1].from, [1]);
        let (_three, third) = dataset(&[sampled("a", "1"), sampled("c", "3")]);
        let error = candidates_of(&[("sft", &first), ("dpo", &third)]).unwrap_err();
        assert!(error.to_string().contains("prompt 2 of `dpo`"), "{error}");
        let (_four, fourth) = dataset(&[sampled("a", "1")]);
        assert!(candidates_of(&[("sft", &first), ("dpo", &fourth)]).is_err());
    }

    #[test]
    fn a_row_without_a_completion_is_named() {
        let (_folder, rows) = dataset(&[Row::Text {
            text: "a".to_owned(),
        }]);
        let error = candidates(&rows).unwrap_err().to_string();
        assert_eq!(error, "row 1 has no completion");
    }
}

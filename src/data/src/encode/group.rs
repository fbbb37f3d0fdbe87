//! One row to the tokens of its completions: all that answer one prompt, behind the same prompt tokens.
//!
//! The reference is TRL's `DPOTrainer` (1.16). A conversation goes through the chat template with the completion as the
//! assistant's next turn; plain text is tokenized together with its completion and EOS. The completions begin where the
//! tokens of the prompt alone and those of a whole row diverge, of several rows at the first such place.

use anyhow::{Result, bail};

use super::Encoder;
use crate::layout::{Message, Prompt};
use crate::row::Row;
use crate::tokenize::Truncation;

/// The completions of one row as tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// The tokens of the prompt and a completion, and the completion's value (NaN when it has none).
    pub completions: Vec<(Vec<u32>, f64)>,
    /// How many leading tokens of each are the prompt's; they are the same ones.
    pub prompt: usize,
    /// Whether a token spans the end of the prompt, or the template writes the prompt alone in another way: at inference the
    /// model is given another prompt.
    pub merged_boundary: bool,
}

impl Group {
    /// Tokens of the longest row.
    pub(crate) fn longest(&self) -> usize {
        let lengths = self.completions.iter().map(|(ids, _)| ids.len());
        lengths.max().unwrap_or(0)
    }

    /// Whether there is no completion, or one without a token that could be learned: nothing predicts the first token of a row.
    pub(crate) fn has_empty(&self) -> bool {
        let least = self.prompt.max(1);
        self.completions.is_empty() || self.completions.iter().any(|(ids, _)| ids.len() <= least)
    }

    /// Two completions of the same tokens, by their places.
    pub(crate) fn same_completions(&self) -> Option<(usize, usize)> {
        let ids = |at: usize| &self.completions[at].0;
        (1..self.completions.len()).find_map(|second| {
            let first = (0..second).find(|first| ids(*first) == ids(second))?;
            Some((first, second))
        })
    }

    /// Cuts every row to `length`, so that all keep the same prompt tokens.
    ///
    /// The end of rows is cut off, or the start of the prompt: as much of it as the longest completion asks for. Of a completion
    /// that is too long without any prompt the start is cut off as well.
    pub(crate) fn cut(&mut self, length: usize, truncation: Truncation) {
        match truncation {
            Truncation::Drop => {}
            Truncation::KeepStart => {
                for (ids, _) in &mut self.completions {
                    ids.truncate(length);
                }
                self.prompt = self.prompt.min(length);
            }
            Truncation::KeepEnd => {
                let from_prompt = self.longest().saturating_sub(length).min(self.prompt);
                self.prompt -= from_prompt;
                for (ids, _) in &mut self.completions {
                    ids.drain(..from_prompt);
                    ids.drain(..ids.len().saturating_sub(length));
                }
            }
        }
    }
}

impl Encoder {
    /// The completions of a row. A row without one (nobody answered) has no completions.
    ///
    /// A preference gives the chosen one first, whose value is the margin; a ranking all in their order, with the values
    /// 0, 1, …; of other rows the one completion has its score, 1 or 0 for desirable or not, or no value.
    pub fn encode_completions(&self, row: &Row) -> Result<Group> {
        let nothing = f64::NAN;
        let texts: Vec<(&str, f64)> = match row {
            Row::Preference {
                chosen,
                rejected,
                margin,
                ..
            } => vec![(chosen, margin.unwrap_or(nothing)), (rejected, nothing)],
            Row::Ranking { completions, .. } => {
                let ranks = (0..).map(f64::from);
                completions.iter().map(String::as_str).zip(ranks).collect()
            }
            Row::Unpaired {
                completion,
                desirable,
                ..
            } => vec![(completion, f64::from(u8::from(*desirable)))],
            Row::Scored {
                completion, score, ..
            } => vec![(completion, *score)],
            Row::PromptCompletion { .. } | Row::Messages { .. } => row
                .question()
                .1
                .map(|text| (text, nothing))
                .into_iter()
                .collect(),
            Row::Text { .. } | Row::Labelled { .. } | Row::Choices { .. } => {
                bail!("rows of layout {} have no completions", row.layout())
            }
        };
        let (prompt, _) = row.question();
        let alone = self.encode_prompt(&prompt)?;
        let mut group = Group {
            prompt: alone.len(),
            ..Group::default()
        };
        for (text, value) in texts {
            let ids = self.answered(&prompt, text)?;
            let common = alone.iter().zip(&ids).take_while(|(a, b)| a == b).count();
            group.prompt = group.prompt.min(common);
            group.completions.push((ids, value));
        }
        group.merged_boundary = group.prompt < alone.len();
        Ok(group)
    }

    /// The tokens of a prompt with its completion.
    fn answered(&self, prompt: &Prompt, completion: &str) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => Ok(self.whole(&format!("{text}{completion}"))?.ids),
            Prompt::Chat(messages) => {
                let answer = Message::new("assistant", completion);
                let turns = [&messages[..], &[answer]].concat();
                self.plain(&self.needed_template()?.render(&turns, false)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(prompt: usize, rows: &[&[u32]]) -> Group {
        let completions = rows.iter().map(|ids| (ids.to_vec(), f64::NAN));
        Group {
            completions: completions.collect(),
            prompt,
            merged_boundary: false,
        }
    }

    fn cut(
        prompt: usize,
        rows: &[&[u32]],
        length: usize,
        truncation: Truncation,
    ) -> (usize, Vec<Vec<u32>>) {
        let mut group = group(prompt, rows);
        group.cut(length, truncation);
        let rows = group.completions.into_iter().map(|(ids, _)| ids);
        (group.prompt, rows.collect())
    }

    #[test]
    fn the_start_of_rows_is_kept() {
        let rows: &[&[u32]] = &[&[1, 2, 3, 4], &[1, 2, 5]];
        let kept = cut(2, rows, 3, Truncation::KeepStart);
        assert_eq!(kept, (2, vec![vec![1, 2, 3], vec![1, 2, 5]]));
        let kept = cut(2, rows, 2, Truncation::KeepStart);
        assert_eq!(kept, (2, vec![vec![1, 2], vec![1, 2]]));
    }

    #[test]
    fn the_prompt_gives_way_to_the_longest_completion() {
        let rows: &[&[u32]] = &[&[1, 2, 3, 4, 5], &[1, 2, 3, 6]];
        let kept = cut(3, rows, 4, Truncation::KeepEnd);
        assert_eq!(kept, (2, vec![vec![2, 3, 4, 5], vec![2, 3, 6]]));
        // A completion that is longer than a row may be loses its own start, and takes all of the prompt.
        let kept = cut(1, &[&[1, 2, 3, 4], &[1, 6]], 2, Truncation::KeepEnd);
        assert_eq!(kept, (0, vec![vec![3, 4], vec![6]]));
    }

    #[test]
    fn a_completion_needs_a_token_that_something_predicts() {
        assert!(group(2, &[&[1, 2]]).has_empty());
        assert!(group(0, &[&[1]]).has_empty());
        assert!(group(0, &[]).has_empty());
        assert!(!group(0, &[&[1, 2]]).has_empty());
        assert!(!group(1, &[&[1, 2]]).has_empty());
    }

    #[test]
    fn the_same_completions_are_found() {
        assert_eq!(
            group(1, &[&[1, 2], &[1, 3], &[1, 3]]).same_completions(),
            Some((1, 2))
        );
        assert_eq!(group(1, &[&[1, 2], &[1, 3]]).same_completions(), None);
    }
}

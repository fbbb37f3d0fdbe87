//! Prompts with completions that answer other prompts: what KTO (arXiv 2402.01306) measures its baseline on.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};

use crate::completions::{Completion, Completions, CompletionsSummary, CompletionsWriter};

/// Writes each row of `tokens` and behind it, in the same group, its prompt with the completion of another row, cut off after
/// `max_length` tokens. The value of a mismatched row is NaN.
///
/// Rows are ordered by their prompts, in the order in which these first come, and each takes the completion of the row m places
/// before it in a circle, m the largest number of rows that one prompt has: each completion is then used once, and none behind its
/// own prompt. Where one prompt has more than half of the rows, its rows take the completions of the others in turn; where there
/// is one prompt only, the row before. TRL 1.16 takes the row before, within batches whose order is fixed.
///
/// Errors when a group has several completions, when there is one row only, and when a prompt without tokens finds no
/// completion of two: of one alone nothing is predicted.
pub fn mismatch(
    tokens: &Completions,
    max_length: usize,
    mut writer: CompletionsWriter,
) -> Result<CompletionsSummary> {
    let rows = tokens.iter().collect::<Result<Vec<Completion<'_>>>>()?;
    let circle = Circle::new(&rows)?;
    let mut ids = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        writer.push(*row)?;
        let other = &rows[circle.partner(&rows, index)?];
        ids.clear();
        ids.extend_from_slice(&row.ids[..row.prompt]);
        ids.extend_from_slice(other.completion());
        ids.truncate(max_length);
        writer.push(Completion {
            ids: &ids,
            prompt: row.prompt,
            group: row.group,
            value: f64::NAN,
        })?;
    }
    writer.finish()
}

/// Rows ordered by their prompts.
struct Circle {
    /// Which prompt each row has.
    prompt_of: Vec<usize>,
    /// Rows of one prompt follow each other.
    order: Vec<usize>,
    /// The place of each row in `order`.
    place_of: Vec<usize>,
    /// How far a row looks back.
    back: usize,
    /// The prompt with the most rows, and the rows of all others.
    largest: usize,
    others: Vec<usize>,
}

impl Circle {
    fn new(rows: &[Completion<'_>]) -> Result<Circle> {
        if let Some(pair) = rows.windows(2).find(|pair| pair[0].group == pair[1].group) {
            bail!(
                "row {} has several completions, and a mismatched one is made for rows of one",
                pair[0].group + 1
            );
        }
        ensure!(
            rows.len() > 1,
            "there is one row, and no other completion for KTO's baseline to look at: give more rows, or `loss: apo_zero`, which has no \
             baseline"
        );
        let mut known: HashMap<&[i32], usize> = HashMap::new();
        let mut prompt_of = Vec::with_capacity(rows.len());
        let mut rows_of: Vec<Vec<usize>> = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let prompt = *known.entry(&row.ids[..row.prompt]).or_insert(rows_of.len());
            if prompt == rows_of.len() {
                rows_of.push(Vec::new());
            }
            rows_of[prompt].push(index);
            prompt_of.push(prompt);
        }
        let mut largest = 0;
        for prompt in 1..rows_of.len() {
            if rows_of[prompt].len() > rows_of[largest].len() {
                largest = prompt;
            }
        }
        let order = rows_of.concat();
        let mut place_of = vec![0; rows.len()];
        for (place, &row) in order.iter().enumerate() {
            place_of[row] = place;
        }
        let others = order.iter().copied();
        Ok(Circle {
            back: match rows_of.len() {
                1 => 1,
                _ => rows_of[largest].len(),
            },
            others: others.filter(|row| prompt_of[*row] != largest).collect(),
            prompt_of,
            order,
            place_of,
            largest,
        })
    }

    /// The row whose completion goes behind the prompt of row `index`.
    fn partner(&self, rows: &[Completion<'_>], index: usize) -> Result<usize> {
        let count = self.order.len();
        let alone = self.others.is_empty();
        let fits = |&other: &usize| {
            let predicted = rows[index].prompt.max(1);
            let length = rows[index].prompt + rows[other].completion().len();
            other != index
                && (alone || self.prompt_of[other] != self.prompt_of[index])
                && length > predicted
        };
        let place = self.place_of[index];
        let before = self.order[(place + count - self.back) % count];
        if fits(&before) {
            return Ok(before);
        }
        let candidates = match self.prompt_of[index] == self.largest && !alone {
            true => &self.others,
            false => &self.order,
        };
        let length = candidates.len();
        let mut turn = (0..length).map(|step| candidates[(place + step) % length]);
        match turn.find(fits) {
            Some(found) => Ok(found),
            None => bail!(
                "row {} has no prompt, and no other row a completion of two tokens, of which the second could be predicted",
                rows[index].group + 1
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt and a completion.
    type Given<'a> = (&'a [i32], &'a [i32]);

    fn write(path: &std::path::Path, rows: &[Given<'_>]) -> Completions {
        let mut writer = CompletionsWriter::create(path).unwrap();
        for (group, (prompt, completion)) in rows.iter().enumerate() {
            let row = Completion {
                ids: &[*prompt, *completion].concat(),
                prompt: prompt.len(),
                group,
                value: 1.0,
            };
            writer.push(row).unwrap();
        }
        writer.finish().unwrap();
        Completions::open(path).unwrap()
    }

    /// The mismatched rows as (tokens of the prompt, tokens).
    fn made(rows: &[Given<'_>], max_length: usize) -> Result<Vec<(usize, Vec<i32>)>> {
        let folder = tempfile::tempdir()?;
        let tokens = write(&folder.path().join("tokens"), rows);
        let path = folder.path().join("mismatched");
        let summary = mismatch(&tokens, max_length, CompletionsWriter::create(&path)?)?;
        assert_eq!(summary.rows, 2 * rows.len() as u64);
        let file = Completions::open(&path)?;
        let mut mismatched = Vec::new();
        for (index, range) in file.groups()?.into_iter().enumerate() {
            assert_eq!(range.len(), 2);
            let (own, other) = (file.row(range.start)?, file.row(range.start + 1)?);
            let before = tokens.row(index)?;
            assert_eq!(own, before);
            assert_eq!(other.ids[..other.prompt], before.ids[..before.prompt]);
            assert!(other.value.is_nan());
            mismatched.push((other.prompt, other.ids.to_vec()));
        }
        Ok(mismatched)
    }

    /// The completions behind each prompt.
    fn completions(rows: &[Given<'_>]) -> Vec<Vec<i32>> {
        let all = made(rows, 99).unwrap().into_iter();
        all.map(|(prompt, ids)| ids[prompt..].to_vec()).collect()
    }

    #[test]
    fn different_prompts_take_the_completion_of_the_row_before_as_trl_does() {
        // TRL: [examples["completion_ids"][-1]] + examples["completion_ids"][:-1]
        let rows: &[Given<'_>] = &[(&[1], &[10, 11]), (&[2, 2], &[20]), (&[3], &[30, 31, 32])];
        assert_eq!(
            made(rows, 99).unwrap(),
            [
                (1, vec![1, 30, 31, 32]),
                (2, vec![2, 2, 10, 11]),
                (1, vec![3, 20])
            ]
        );
        // What is too long loses its end.
        let cut = made(rows, 3).unwrap();
        assert_eq!(cut[0], (1, vec![1, 30, 31]));
        assert_eq!(cut[1], (2, vec![2, 2, 10]));
    }

    #[test]
    fn no_prompt_meets_its_own_completions_and_each_is_used_once() {
        let rows: &[Given<'_>] = &[
            (&[1], &[10]),
            (&[1], &[11]),
            (&[2], &[20]),
            (&[1], &[12]),
            (&[3], &[30]),
            (&[2], &[21]),
        ];
        // In the order 10 11 12 20 21 30 each takes the third before it.
        let found = completions(rows);
        assert_eq!(
            found,
            [vec![20], vec![21], vec![10], vec![30], vec![12], vec![11]]
        );
    }

    #[test]
    fn a_prompt_with_most_of_the_rows_takes_the_others_in_turn() {
        let rows: &[Given<'_>] = &[
            (&[1], &[10]),
            (&[1], &[11]),
            (&[1], &[12]),
            (&[1], &[13]),
            (&[2], &[20]),
            (&[3], &[30]),
        ];
        let found = completions(rows);
        let (many, few) = found.split_at(4);
        assert!(many.iter().all(|ids| *ids == [20] || *ids == [30]));
        assert!(many.contains(&vec![20]) && many.contains(&vec![30]));
        assert!(few.iter().all(|ids| ids[0] < 20));
    }

    #[test]
    fn one_prompt_alone_takes_the_row_before() {
        let rows: &[Given<'_>] = &[(&[1], &[10]), (&[1], &[11]), (&[1], &[12])];
        assert_eq!(completions(rows), [vec![12], vec![10], vec![11]]);
    }

    #[test]
    fn a_single_row_has_no_other_completion() {
        let error = made(&[(&[1], &[10])], 99).unwrap_err().to_string();
        assert!(
            error.starts_with("there is one row, and no other completion"),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        let empty = write(&folder.path().join("none"), &[]);
        let writer = CompletionsWriter::create(&folder.path().join("made")).unwrap();
        assert!(mismatch(&empty, 99, writer).is_err());
    }

    #[test]
    fn a_completion_of_one_token_goes_behind_a_prompt_only() {
        // Behind no prompt its token would be the row's first, which nothing predicts.
        let rows: &[Given<'_>] = &[(&[], &[10, 11]), (&[2], &[20]), (&[3], &[30, 31])];
        assert_eq!(completions(rows), [vec![30, 31], vec![10, 11], vec![20]]);
        let rows: &[Given<'_>] = &[(&[], &[10, 11]), (&[3], &[30, 31]), (&[2], &[20])];
        assert_eq!(
            completions(rows),
            [vec![30, 31], vec![10, 11], vec![30, 31]]
        );
        let rows: &[Given<'_>] = &[(&[], &[10, 11]), (&[2], &[20])];
        let error = made(rows, 99).unwrap_err().to_string();
        assert!(error.starts_with("row 1 has no prompt"), "{error}");
    }

    #[test]
    fn several_completions_of_a_row_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let mut writer = CompletionsWriter::create(&path).unwrap();
        for ids in [[1, 2], [1, 3]] {
            let row = Completion {
                ids: &ids,
                prompt: 1,
                group: 4,
                value: 1.0,
            };
            writer.push(row).unwrap();
        }
        writer.finish().unwrap();
        let tokens = Completions::open(&path).unwrap();
        let writer = CompletionsWriter::create(&folder.path().join("made")).unwrap();
        let error = mismatch(&tokens, 9, writer).unwrap_err().to_string();
        assert!(
            error.starts_with("row 5 has several completions"),
            "{error}"
        );
    }
}

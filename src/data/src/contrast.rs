//! Reference answers against sampled ones, as pairs: the data of SPIN (arXiv 2401.01335).

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::layout::{Layout, Prompt};
use crate::row::Row;
use crate::store::{Dataset, DatasetSummary, DatasetWriter};
use crate::tokenize::name_row;

/// What a contrast made, and what it left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContrastReport {
    /// The pairs.
    pub pairs: DatasetSummary,
    /// Samples that are an answer to learn, word for word.
    pub same: u64,
    /// Samples that came before for their prompt.
    pub repeated: u64,
    /// Rows of `chosen` that have no sample.
    pub unanswered: u64,
    /// Samples whose prompt no row of `chosen` has.
    pub stray: u64,
}

/// Writes a pair for each row of `chosen` and each different sample in `rejected` for the same prompt, or with `first` one pair a
/// row: the answer is chosen, the sample rejected, and there is no margin. Pairs are in the order of `chosen`, then of
/// `rejected`; an answer that comes again for its prompt makes no pairs again.
///
/// Samples that are an answer of `chosen` to their prompt, word for word, are left out. Errors name a row without an answer or
/// a completion; no pair at all is one too.
pub fn contrast(
    chosen: &Dataset,
    rejected: &Dataset,
    first: bool,
    path: &Path,
) -> Result<ContrastReport> {
    let answered = |dataset: &Dataset, index: usize| -> Result<(Prompt, String)> {
        let row = dataset.row(index)?;
        match answer(&row) {
            Some((prompt, text)) => Ok((prompt, text.to_owned())),
            None => bail!("{} has no answer", name_row(index, &row)),
        }
    };
    let mut asked: HashMap<Prompt, Vec<String>> = HashMap::new();
    for index in 0..chosen.len() {
        let (prompt, text) = answered(chosen, index).context("in `chosen`")?;
        asked.entry(prompt).or_default().push(text);
    }
    let mut samples: HashMap<Prompt, Vec<String>> = HashMap::new();
    let (mut same, mut repeated, mut stray) = (0, 0, 0);
    for index in 0..rejected.len() {
        let (prompt, text) = answered(rejected, index).context("in `rejected`")?;
        let Some(answers) = asked.get(&prompt) else {
            stray += 1;
            continue;
        };
        let known = samples.entry(prompt).or_default();
        if answers.contains(&text) {
            same += 1;
        } else if known.contains(&text) {
            repeated += 1;
        } else {
            known.push(text);
        }
    }
    let mut writer = DatasetWriter::create(path, Layout::Preference)?;
    let (mut unanswered, mut seen) = (0, HashSet::new());
    for index in 0..chosen.len() {
        let (prompt, text) = answered(chosen, index)?;
        let Some(own) = samples.get(&prompt) else {
            unanswered += 1;
            continue;
        };
        if !seen.insert((prompt.clone(), text.clone())) {
            continue;
        }
        for sample in own.iter().take(if first { 1 } else { usize::MAX }) {
            writer.push(&Row::Preference {
                prompt: prompt.clone(),
                chosen: text.clone(),
                rejected: sample.clone(),
                margin: None,
            })?;
        }
    }
    let pairs = writer.finish()?;
    ensure!(
        pairs.rows > 0,
        "there is no pair: {same} of {} samples are the answers to learn, word for word, and the prompts of {stray} are none of `chosen`; \
         sample from the rows of `chosen` with `generate`, at a temperature above 0",
        rejected.len()
    );
    Ok(ContrastReport {
        pairs,
        same,
        repeated,
        unanswered,
        stray,
    })
}

/// The prompt and what answers it.
fn answer(row: &Row) -> Option<(Prompt, &str)> {
    match row {
        Row::Scored {
            prompt, completion, ..
        } => Some((prompt.clone(), completion)),
        row => {
            let (prompt, answer) = row.question();
            Some((prompt, answer?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Message;

    fn write(path: &Path, rows: &[Row]) -> Dataset {
        let mut writer = DatasetWriter::create(path, rows[0].layout()).unwrap();
        rows.iter().for_each(|row| writer.push(row).unwrap());
        writer.finish().unwrap();
        Dataset::open(path).unwrap()
    }

    /// (prompt, chosen, rejected) of each pair, and the report.
    type Made = (Vec<(Prompt, String, String)>, ContrastReport);

    fn made(chosen: &[Row], rejected: &[Row], first: bool) -> Result<Made> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let (chosen, rejected) = (write(&at("a"), chosen), write(&at("b"), rejected));
        let report = contrast(&chosen, &rejected, first, &at("pairs"))?;
        let dataset = Dataset::open(&at("pairs"))?;
        let pairs = (0..dataset.len()).map(|index| match dataset.row(index)? {
            Row::Preference {
                prompt,
                chosen,
                rejected,
                margin: None,
            } => Ok((prompt, chosen, rejected)),
            other => bail!("{other:?}"),
        });
        Ok((pairs.collect::<Result<_>>()?, report))
    }

    fn said(prompt: &str, completion: &str) -> Row {
        Row::PromptCompletion {
            prompt: prompt.to_owned(),
            completion: completion.to_owned(),
        }
    }

    fn pair(prompt: &str, chosen: &str, rejected: &str) -> (Prompt, String, String) {
        let prompt = Prompt::Text(prompt.to_owned());
        (prompt, chosen.to_owned(), rejected.to_owned())
    }

    #[test]
    fn answers_meet_the_samples_of_their_prompts() {
        let chosen = [said("a", "1"), said("b", "2"), said("c", "3")];
        // In an order of their own; the first is the answer itself, one comes twice, one answers nothing here.
        let rejected = [
            said("b", "2"),
            said("b", "x"),
            said("a", "y"),
            said("b", "z"),
            said("b", "x"),
            said("d", "w"),
        ];
        let (pairs, report) = made(&chosen, &rejected, false).unwrap();
        let expected = [
            pair("a", "1", "y"),
            pair("b", "2", "x"),
            pair("b", "2", "z"),
        ];
        assert_eq!(pairs, expected);
        assert_eq!(
            (
                report.same,
                report.repeated,
                report.unanswered,
                report.stray
            ),
            (1, 1, 1, 1)
        );
        let (pairs, _) = made(&chosen, &rejected, true).unwrap();
        assert_eq!(pairs, [pair("a", "1", "y"), pair("b", "2", "x")]);
    }

    #[test]
    fn several_answers_to_a_prompt_meet_each_sample_and_never_each_other() {
        let chosen = [said("a", "1"), said("a", "2"), said("a", "1")];
        let rejected = [said("a", "2"), said("a", "x")];
        let (pairs, report) = made(&chosen, &rejected, false).unwrap();
        assert_eq!(pairs, [pair("a", "1", "x"), pair("a", "2", "x")]);
        assert_eq!(report.same, 1);
    }

    #[test]
    fn conversations_and_scored_samples_are_joined() {
        let turn = |role: &str, content: &str| Message::new(role, content);
        let asked = vec![turn("system", "s"), turn("user", "u")];
        let talk = |text: &str| Row::Messages {
            messages: [&asked[..], &[turn("assistant", text)]].concat(),
        };
        let (pairs, _) = made(&[talk("good")], &[talk("bad")], false).unwrap();
        let expected = (
            Prompt::Chat(asked.clone()),
            "good".to_owned(),
            "bad".to_owned(),
        );
        assert_eq!(pairs, std::slice::from_ref(&expected));
        let scored = Row::Scored {
            prompt: Prompt::Chat(asked.clone()),
            completion: "bad".to_owned(),
            score: -1.0,
        };
        assert_eq!(
            made(&[talk("good")], &[scored], false).unwrap().0,
            [expected]
        );
    }

    #[test]
    fn nothing_to_contrast_is_an_error() {
        let error = |chosen: &[Row], rejected: &[Row]| {
            format!("{:#}", made(chosen, rejected, false).unwrap_err())
        };
        let text = error(&[said("a", "1")], &[said("a", "1"), said("b", "1")]);
        assert!(
            text.starts_with(
                "there is no pair: 1 of 2 samples are the answers to learn, word for word, and the prompts of 1 are none of `chosen`"
            ),
            "{text}"
        );
        let silent = Row::Messages {
            messages: vec![Message::new("user", "anyone?")],
        };
        let text = error(std::slice::from_ref(&silent), &[said("a", "1")]);
        assert_eq!(text, "in `chosen`: row 1 (anyone?) has no answer");
        let text = error(&[said("a", "1")], &[silent]);
        assert_eq!(text, "in `rejected`: row 1 (anyone?) has no answer");
    }
}

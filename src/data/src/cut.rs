//! Texts to prompts: the first words of a text, and what follows them.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::row::Row;
use crate::store::{Dataset, DatasetSummary, DatasetWriter};
use crate::tokenize::name_row;

/// Where texts are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOptions {
    /// Words of the prompt.
    pub prompt_words: usize,
    /// The most words of the completion; `None` takes all that follow.
    pub completion_words: Option<usize>,
}

/// Writes a prompt with its completion for each text that is long enough, and counts those that are not.
///
/// Words are parted by white space. A prompt ends with its last word, and the white space behind it begins the completion:
/// prompt and completion together are the text, or its beginning. Errors when no text is long enough.
pub fn cut(
    dataset: &Dataset,
    options: CutOptions,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(DatasetSummary, u64)> {
    let mut writer = DatasetWriter::create(path, crate::Layout::PromptCompletion)?;
    let mut short = 0;
    for index in 0..dataset.len() {
        let row = dataset.row(index)?;
        let text = whole(&row).with_context(|| name_row(index, &row))?;
        match parts(&text, options) {
            Some((prompt, completion)) => writer.push(&Row::PromptCompletion {
                prompt: prompt.to_owned(),
                completion: completion.to_owned(),
            })?,
            None => short += 1,
        }
        if (index + 1) % 1024 == 0 || index + 1 == dataset.len() {
            progress(index as u64 + 1, dataset.len() as u64);
        }
    }
    let summary = writer.finish()?;
    if summary.rows == 0 {
        bail!(
            "none of the {short} texts has more than {} words, so there is nothing to complete; give a smaller `prompt_words`",
            options.prompt_words
        );
    }
    Ok((summary, short))
}

/// The running text of a row.
fn whole(row: &Row) -> Result<String> {
    match row {
        Row::Text { text } | Row::Labelled { text, .. } => Ok(text.clone()),
        Row::PromptCompletion { prompt, completion } => Ok(format!("{prompt}{completion}")),
        other => bail!("rows of layout {} are no running text", other.layout()),
    }
}

/// The prompt and the completion of a text; `None` when no word follows the prompt.
fn parts(text: &str, options: CutOptions) -> Option<(&str, &str)> {
    let mut ends = word_ends(text);
    let prompt = ends.nth(options.prompt_words.checked_sub(1)?)?;
    let first = ends.next()?;
    let end = match options.completion_words {
        None => text.len(),
        // The last word may come before so many do.
        Some(words) => ends.take(words.checked_sub(1)?).last().unwrap_or(first),
    };
    Some((&text[..prompt], &text[prompt..end]))
}

/// The byte behind each word.
fn word_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    let next = |at: usize| text[at..].chars().next();
    text.char_indices()
        .filter(|(_, c)| !c.is_whitespace())
        .map(|(at, c)| at + c.len_utf8())
        .filter(move |end| next(*end).is_none_or(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_text(
        text: &str,
        prompt_words: usize,
        completion_words: Option<usize>,
    ) -> Option<(&str, &str)> {
        let options = CutOptions {
            prompt_words,
            completion_words,
        };
        parts(text, options)
    }

    #[test]
    fn a_prompt_ends_with_its_last_word() {
        let text = " A film\n\tthat  sings. ";
        assert_eq!(
            cut_text(text, 2, None),
            Some((" A film", "\n\tthat  sings. "))
        );
        assert_eq!(cut_text(text, 2, Some(1)), Some((" A film", "\n\tthat")));
        assert_eq!(
            cut_text(text, 2, Some(2)),
            Some((" A film", "\n\tthat  sings."))
        );
        assert_eq!(
            cut_text(text, 2, Some(9)),
            Some((" A film", "\n\tthat  sings."))
        );
        // White space of every kind parts words, and characters may have several bytes.
        assert_eq!(
            cut_text("für\u{a0}é\u{2003}🦀", 2, None),
            Some(("für\u{a0}é", "\u{2003}🦀"))
        );
    }

    #[test]
    fn a_text_without_a_word_behind_its_prompt_is_too_short() {
        for text in ["", "  ", "one", "one two", "one two \n"] {
            assert_eq!(cut_text(text, 2, None), None, "{text:?}");
        }
        assert!(cut_text("one two three", 2, None).is_some());
    }

    #[test]
    fn texts_are_cut_and_short_ones_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (rows, made) = (folder.path().join("rows"), folder.path().join("made"));
        let write = |rows_of: &[Row]| {
            let mut writer = DatasetWriter::create(&rows, rows_of[0].layout()).unwrap();
            rows_of.iter().for_each(|row| writer.push(row).unwrap());
            writer.finish().unwrap();
            let options = CutOptions {
                prompt_words: 2,
                completion_words: Some(1),
            };
            let mut said = Vec::new();
            let dataset = Dataset::open(&rows).unwrap();
            let result = cut(&dataset, options, &made, &mut |done, all| {
                said.push((done, all))
            });
            (result, said)
        };
        let labelled = |text: &str| Row::Labelled {
            text: text.to_owned(),
            label: "1".to_owned(),
        };
        let (result, said) = write(&[labelled("a b c d"), labelled("a b")]);
        let (summary, short) = result.unwrap();
        assert_eq!((summary.rows, short, said), (1, 1, vec![(2, 2)]));
        let expected = Row::PromptCompletion {
            prompt: "a b".to_owned(),
            completion: " c".to_owned(),
        };
        assert_eq!(Dataset::open(&made).unwrap().row(0).unwrap(), expected);
        let (prompt, completion) = ("a".to_owned(), "b c d".to_owned());
        write(&[Row::PromptCompletion { prompt, completion }])
            .0
            .unwrap();
        assert_eq!(
            Dataset::open(&made).unwrap().row(0).unwrap(),
            Row::PromptCompletion {
                prompt: "ab c".to_owned(),
                completion: " d".to_owned()
            }
        );
        let error = write(&[labelled("a b")]).0.unwrap_err().to_string();
        assert!(
            error.starts_with("none of the 1 texts has more than 2 words"),
            "{error}"
        );
        let messages = vec![crate::Message::new("user", "a b c")];
        let error = format!("{:#}", write(&[Row::Messages { messages }]).0.unwrap_err());
        assert_eq!(
            error,
            "row 1 (a b c): rows of layout messages are no running text"
        );
    }
}

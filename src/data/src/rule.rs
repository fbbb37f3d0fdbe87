//! Scores of texts by rule: words with values, a pattern, a length. What a judge without a model is made of.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use regex::Regex;

/// How a text is scored.
#[derive(Clone, Debug)]
pub enum Rule {
    /// The sum s of the values of its words, as s / √(s² + 15): between −1 and 1 (Hutto and Gilbert 2014, VADER's normalization).
    Lexicon(HashMap<String, f64>),
    /// 1 where the pattern is found, else 0.
    Pattern(Regex),
    /// −|words − wanted| / wanted.
    Length(usize),
}

impl Rule {
    /// Reads a lexicon: a word, a tab, its value, and whatever follows another tab; `#` begins a comment line.
    pub fn lexicon(text: &str) -> Result<Rule> {
        let mut values = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with("# ") {
                continue;
            }
            let mut parts = line.split('\t');
            let (word, value) = (parts.next().unwrap_or_default(), parts.next());
            let value = value.with_context(|| {
                format!(
                    "line {}: a word, a tab and its value are expected",
                    index + 1
                )
            })?;
            let value: f64 = value
                .trim()
                .parse()
                .with_context(|| format!("line {}: `{value}` is not a number", index + 1))?;
            ensure!(
                value.is_finite(),
                "line {}: {value} is not finite",
                index + 1
            );
            values.insert(word.to_lowercase(), value);
        }
        if values.is_empty() {
            bail!("there is no word in it");
        }
        Ok(Rule::Lexicon(values))
    }

    /// A pattern in the syntax of the `regex` crate.
    ///
    /// Errors say why it is none, and at which of its characters.
    pub fn pattern(pattern: &str) -> Result<Rule> {
        let regex = Regex::new(pattern).map_err(|error| explain(pattern, &error))?;
        Ok(Rule::Pattern(regex))
    }

    /// The score of a text.
    pub fn score(&self, text: &str) -> f64 {
        match self {
            Rule::Lexicon(values) => {
                let sum: f64 = words(text).filter_map(|word| values.get(&word)).sum();
                sum / (sum * sum + 15.0).sqrt()
            }
            Rule::Pattern(pattern) => f64::from(u8::from(pattern.is_match(text))),
            Rule::Length(wanted) => {
                let count = text.split_whitespace().count() as f64;
                let wanted = *wanted as f64;
                -(count - wanted).abs() / wanted
            }
        }
    }
}

/// What is wrong with a pattern. The crate draws it under the pattern, on lines of its own; of one line the place is a number here.
fn explain(pattern: &str, error: &regex::Error) -> anyhow::Error {
    let drawn = error.to_string();
    let Some((drawing, cause)) = drawn.rsplit_once("\nerror: ") else {
        return anyhow!("`{pattern}` can't be used as a regular expression: {drawn}");
    };
    // Behind a title and the pattern, which begins in the fifth column, the third line has marks under what is wrong.
    let marks = drawing.lines().nth(2).filter(|_| !pattern.contains('\n'));
    let column = marks.and_then(|marks| marks.chars().position(|c| c == '^'));
    match column {
        Some(column) if column >= MARGIN => anyhow!(
            "`{pattern}` is not a regular expression: {cause}, at character {}; a sign that is meant as it is has a `\\` before it",
            column + 1 - MARGIN
        ),
        _ => anyhow!("`{pattern}` is not a regular expression: {cause}"),
    }
}

/// The columns before a pattern in a drawing of what is wrong with it.
const MARGIN: usize = 4;

/// The words of a text in lower case: what white space parts, without marks at either end.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split_whitespace().map(|word| {
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        // A mark alone, such as a smiley, is a word of its own.
        if bare.is_empty() { word } else { bare }.to_lowercase()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_values() {
        let rule = Rule::lexicon("good\t1.9\t0.9\t[2, 1]\nawful\t-2.0\n").unwrap();
        let score = rule.score("A GOOD, (good) film.");
        assert!((score - 3.8 / (3.8f64 * 3.8 + 15.0).sqrt()).abs() < 1e-15);
        assert!(rule.score("awful") < 0.0);
        assert_eq!(rule.score("a film"), 0.0);
    }

    #[test]
    fn lexicons_name_their_broken_lines() {
        let message = |text: &str| format!("{:#}", Rule::lexicon(text).unwrap_err());
        assert!(message("good\t1\nbad\n").contains("line 2"));
        assert!(message("good\tmuch\n").contains("`much` is not a number"));
        assert!(message("good\tinf\n").contains("not finite"));
        assert!(message("\n").contains("no word"));
    }

    #[test]
    fn patterns_and_lengths() {
        let rule = Rule::pattern("(?i)yes").unwrap();
        assert_eq!((rule.score("Yes!"), rule.score("no")), (1.0, 0.0));
        let error = |pattern: &str| Rule::pattern(pattern).unwrap_err().to_string();
        for (pattern, wrong) in [
            (
                "(",
                "`(` is not a regular expression: unclosed group, at character 1;",
            ),
            (
                "señor [z-a]",
                "the start must be <= the end, at character 8;",
            ),
            (
                "a**(?=b)",
                "look-around, including look-ahead and look-behind, is not supported, at character 4;",
            ),
            ("(?x) a\nb(", "regular expression: unclosed group"),
            (
                "a{1000}{1000}{1000}",
                "can't be used as a regular expression",
            ),
        ] {
            assert!(error(pattern).contains(wrong), "{}", error(pattern));
        }
        assert_eq!(Rule::Length(4).score("one two three"), -0.25);
    }
}

//! Metrics of text against a reference: exact match, overlap of words (F1), and by the longest common subsequence (ROUGE-L).

use std::collections::HashMap;

/// How answers are made alike before they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalization {
    /// Without white space at their ends.
    Trimmed,
    /// As SQuAD's evaluation does: in lower case, without punctuation and articles, with single spaces.
    Squad,
}

impl Normalization {
    /// A text made alike.
    pub fn apply(self, text: &str) -> String {
        match self {
            Normalization::Trimmed => text.trim().to_owned(),
            Normalization::Squad => squad(text),
        }
    }

    /// F1 between 0 and 1 over the words of both texts, made alike, as SQuAD 2.0's evaluation has it: 2PR / (P + R), where P is the
    /// part of the candidate's words that the reference has, each as often as it has it, and R the other way round. Where one text
    /// has no words, 1 if the other has none either.
    pub fn token_f1(self, candidate: &str, reference: &str) -> f64 {
        let (candidate, reference) = (self.apply(candidate), self.apply(reference));
        let (candidate, reference): (Vec<_>, Vec<_>) =
            (split(&candidate).collect(), split(&reference).collect());
        if candidate.is_empty() || reference.is_empty() {
            return f64::from(u8::from(candidate == reference));
        }
        let mut left: HashMap<&str, usize> = HashMap::new();
        for word in &reference {
            *left.entry(word).or_default() += 1;
        }
        let mut same = 0usize;
        for word in &candidate {
            if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
                *count -= 1;
                same += 1;
            }
        }
        if same == 0 {
            return 0.0;
        }
        let precision = same as f64 / candidate.len() as f64;
        let recall = same as f64 / reference.len() as f64;
        2.0 * precision * recall / (precision + recall)
    }
}

/// SQuAD's `normalize_answer` (Rajpurkar et al., arXiv 1606.05250, `evaluate-v2.0.py`).
fn squad(text: &str) -> String {
    let text: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    // An article is a whole run of letters and digits, whatever stands around it; a space takes its place.
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_alphanumeric());
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        out += match word {
            "a" | "an" | "the" => " ",
            word => word,
        };
        let end = after.find(char::is_alphanumeric);
        let (between, next) = after.split_at(end.unwrap_or(after.len()));
        out += between;
        rest = next;
    }
    split(&out).collect::<Vec<_>>().join(" ")
}

/// The words between white space, of which Python knows four more than Unicode.
fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
        .filter(|word| !word.is_empty())
}

/// Whether two texts are equal but for white space at their ends.
pub fn exact_match(candidate: &str, reference: &str) -> bool {
    candidate.trim() == reference.trim()
}

/// ROUGE-L's F1 between 0 and 1 (Lin 2004) over words: runs of ASCII letters and digits in lower case, as Google's
/// `rouge_score` cuts them without stemming. Two texts without words score 0.
pub fn rouge_l(candidate: &str, reference: &str) -> f64 {
    let (candidate, reference) = (words(candidate), words(reference));
    if candidate.is_empty() || reference.is_empty() {
        return 0.0;
    }
    let common = common_subsequence(&candidate, &reference) as f64;
    if common == 0.0 {
        return 0.0;
    }
    let precision = common / candidate.len() as f64;
    let recall = common / reference.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The length of the longest common subsequence, with one row of the table in memory.
fn common_subsequence(first: &[String], second: &[String]) -> usize {
    let mut row = vec![0; second.len() + 1];
    for a in first {
        let mut diagonal = 0;
        for (j, b) in second.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if a == b {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    row[second.len()]
}

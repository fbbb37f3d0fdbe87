//! Metrics of text against a reference: exact match, and overlap by the longest common subsequence (ROUGE-L).

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

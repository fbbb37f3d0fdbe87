//! Patterns for dotted names, and the nearest name to one that is not there.

use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::iter::once;

/// Whether `pattern` is some whole parts of `name`, one after the other: `q_proj` and `layers.2` are of
/// `model.layers.2.self_attn.q_proj.weight`, `proj` and `layers` followed by half a number are not. A `*` stands for any characters, dots too.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut starts = once(0).chain(name.match_indices('.').map(|(at, _)| at + 1));
    !pattern.is_empty()
        && starts.any(|start| {
            let rest = &name[start..];
            let ends = rest.match_indices('.').map(|(at, _)| at);
            let mut ends = ends.chain(once(rest.len()));
            ends.any(|end| glob(pattern.as_bytes(), &rest.as_bytes()[..end]))
        })
}

/// Whether the text is the pattern with something for each `*`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last star is, and how far it reaches.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, reach)) = star {
            star = Some((at, reach + 1));
            (p, t) = (at + 1, reach + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Every pattern must match one of `names`, which are called `what`. The error says all that don't, each with the nearest names.
pub fn check<P: AsRef<str>, N: AsRef<str>>(patterns: &[P], names: &[N], what: &str) -> Result<()> {
    let alone = |pattern: &&P| {
        let mut names = names.iter();
        !names.any(|name| matches((*pattern).as_ref(), name.as_ref()))
    };
    let said: Vec<String> = (patterns.iter().filter(alone))
        .map(|pattern| {
            let pattern = pattern.as_ref();
            let candidates = names.iter().flat_map(|name| runs(name.as_ref(), pattern));
            format!("{pattern:?}{}", nearest(pattern, candidates.collect()))
        })
        .collect();
    if !said.is_empty() {
        bail!("no {what} is called {}", said.join("; nor "));
    }
    Ok(())
}

/// As many parts of `name`, one after the other, as `pattern` has; the whole name if it has fewer.
pub(crate) fn runs(name: &str, pattern: &str) -> Vec<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let count = pattern.split('.').count().min(parts.len());
    parts.windows(count).map(|run| run.join(".")).collect()
}

/// A hint with the up to three candidates nearest to `pattern`.
pub(crate) fn nearest(pattern: &str, candidates: BTreeSet<String>) -> String {
    // A number alone tells nobody what it is.
    let candidates = candidates
        .into_iter()
        .filter(|name| name.contains(|letter: char| letter.is_ascii_alphabetic()));
    let mut ranked: Vec<(usize, String)> = candidates
        .map(|name| (distance(pattern, &name), name))
        .collect();
    ranked.sort();
    let names: Vec<String> = ranked.into_iter().take(3).map(|(_, name)| name).collect();
    match &names[..] {
        [] => String::new(),
        [only] => format!(" (there is {only})"),
        [others @ .., last] => format!(" (the nearest are {} and {last})", others.join(", ")),
    }
}

/// Insertions, deletions and replacements between two names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.12.input_layernorm.weight",
        "model.norm.weight",
    ];

    fn found(pattern: &str) -> Vec<usize> {
        let all = NAMES.iter().enumerate();
        all.filter(|(_, name)| matches(pattern, name))
            .map(|(index, _)| index)
            .collect()
    }

    #[test]
    fn patterns_are_whole_parts_and_stars_are_anything() {
        assert_eq!(found("weight"), [0, 1, 2, 3]);
        assert_eq!(found("layers.1"), [1]);
        assert_eq!(found("model.layers.1.*"), [1]);
        assert_eq!(found("model.layers.1*"), [1, 2]);
        assert_eq!(found("norm"), [3]);
        assert_eq!(found("*norm"), [2, 3]);
        assert_eq!(found("*norm*"), [2, 3]);
        assert_eq!(found("l*s.*.q*j"), [1]);
        assert_eq!(found("model.norm.weight"), [3]);
        for nothing in [
            "",
            "proj",
            "layers.",
            ".norm",
            "model.norm.weight.x",
            "no*x",
        ] {
            assert!(found(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn patterns_that_match_nothing_are_told_with_the_nearest() {
        assert!(check(&["q_proj", "*norm"], &NAMES, "parameter").is_ok());
        let error = check(&["qproj", "norm", "layers.7"], &NAMES, "parameter").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no parameter is called \"qproj\" (the nearest are q_proj, norm and model); nor \"layers.7\" (the nearest are layers.1, layers.12 and model.layers)"
        );
    }
}

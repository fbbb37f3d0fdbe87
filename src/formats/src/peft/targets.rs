//! Which modules a list of names targets, with PEFT's rules.

use crate::patterns::nearest;
use anyhow::{Result, bail, ensure};
use std::collections::BTreeSet;

/// The word for every linear except the output head.
pub const ALL_LINEAR: &str = "all-linear";
/// The module path of the output head in Hugging Face's language models.
const OUTPUT_HEAD: &str = "lm_head";

/// The `modules` that `patterns` target, in the order of `modules`.
///
/// A pattern targets the module whose path it is, and those whose path ends with a dot and it; the word
/// `all-linear` targets every module except `lm_head`. A pattern without a match is an error that names
/// the nearest modules.
pub fn match_targets<P: AsRef<str>, M: AsRef<str>>(
    patterns: &[P],
    modules: &[M],
) -> Result<Vec<String>> {
    ensure!(
        !patterns.is_empty(),
        "no target modules; list some, or say {ALL_LINEAR}"
    );
    let mut matched = vec![false; modules.len()];
    let mut unmatched = Vec::new();
    for pattern in patterns {
        let pattern = pattern.as_ref();
        let mut found = false;
        for (module, matched) in modules.iter().zip(&mut matched) {
            if targets(pattern, module.as_ref()) {
                *matched = true;
                found = true;
            }
        }
        if !found {
            unmatched.push(format!(
                "{pattern:?}{}",
                nearest(pattern, endings(pattern, modules))
            ));
        }
    }
    if !unmatched.is_empty() {
        bail!("no linear module is called {}", unmatched.join("; nor "));
    }
    let chosen = modules.iter().zip(matched).filter(|(_, matched)| *matched);
    Ok(chosen
        .map(|(module, _)| module.as_ref().to_owned())
        .collect())
}

fn targets(pattern: &str, module: &str) -> bool {
    if pattern == ALL_LINEAR {
        return module != OUTPUT_HEAD;
    }
    match module.strip_suffix(pattern) {
        Some(before) => !pattern.is_empty() && (before.is_empty() || before.ends_with('.')),
        None => false,
    }
}

/// What a pattern might have meant: last names, or whole paths if it is a path.
fn endings<M: AsRef<str>>(pattern: &str, modules: &[M]) -> BTreeSet<String> {
    let parts = pattern.split('.').count();
    let ending = |module: &str| -> String {
        let all: Vec<&str> = module.split('.').collect();
        all[all.len().saturating_sub(parts)..].join(".")
    };
    let mut names: BTreeSet<String> = modules.iter().map(|m| ending(m.as_ref())).collect();
    names.insert(ALL_LINEAR.to_owned());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: [&str; 5] = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.11.self_attn.q_proj",
        "lm_head",
    ];

    #[test]
    fn names_match_whole_parts_of_the_path() {
        assert_eq!(
            match_targets(&["q_proj"], &MODULES).unwrap(),
            [MODULES[0], MODULES[2], MODULES[3]]
        );
        assert_eq!(
            match_targets(&["1.self_attn.q_proj", "lm_head"], &MODULES).unwrap(),
            [MODULES[2], MODULES[4]]
        );
        assert_eq!(
            match_targets(&[ALL_LINEAR], &MODULES).unwrap(),
            MODULES[..4]
        );
        assert!(match_targets(&["proj"], &MODULES).is_err());
        assert!(match_targets(&[""], &MODULES).is_err());
        assert!(match_targets::<&str, _>(&[], &MODULES).is_err());
    }

    #[test]
    fn a_pattern_without_match_names_the_nearest() {
        let error = match_targets(&["q_proj", "qproj"], &MODULES).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no linear module is called \"qproj\" (the nearest are q_proj, v_proj and lm_head)"
        );
    }
}

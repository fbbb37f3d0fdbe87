//! Which modules a list of names targets: with PEFT's rules in files, with those of all patterns in recipes.

use crate::patterns::{self, nearest, runs};
use anyhow::{Result, bail, ensure};

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
    matched(patterns, modules, ends_with, ending)
}

/// The same with the patterns of recipes ([`patterns::matches`]): some whole parts of a module's path, in which `*` stands for anything.
/// What PEFT targets by a name, this does, too.
pub fn choose_targets<P: AsRef<str>, M: AsRef<str>>(
    patterns: &[P],
    modules: &[M],
) -> Result<Vec<String>> {
    matched(patterns, modules, patterns::matches, runs)
}

fn matched<P: AsRef<str>, M: AsRef<str>>(
    patterns: &[P],
    modules: &[M],
    is: fn(&str, &str) -> bool,
    meant: fn(&str, &str) -> Vec<String>,
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
            if targets(pattern, module.as_ref(), is) {
                *matched = true;
                found = true;
            }
        }
        if !found {
            let meant = modules.iter().flat_map(|m| meant(m.as_ref(), pattern));
            let candidates = meant.chain([ALL_LINEAR.to_owned()]).collect();
            unmatched.push(format!("{pattern:?}{}", nearest(pattern, candidates)));
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

fn targets(pattern: &str, module: &str, is: fn(&str, &str) -> bool) -> bool {
    match pattern == ALL_LINEAR {
        true => module != OUTPUT_HEAD,
        false => is(pattern, module),
    }
}

/// Whether the path is the pattern, or ends with a dot and it.
fn ends_with(pattern: &str, module: &str) -> bool {
    match module.strip_suffix(pattern) {
        Some(before) => !pattern.is_empty() && (before.is_empty() || before.ends_with('.')),
        None => false,
    }
}

/// What a pattern might have meant of a module: its last name, or the end of its path if it is a path.
fn ending(module: &str, pattern: &str) -> Vec<String> {
    let parts = pattern.split('.').count();
    let all: Vec<&str> = module.split('.').collect();
    vec![all[all.len().saturating_sub(parts)..].join(".")]
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
    fn recipes_may_name_any_parts_and_leave_some_open() {
        for (pattern, wanted) in [
            ("q_proj", vec![0, 2, 3]),
            ("layers.1", vec![2]),
            ("layers.1*", vec![2, 3]),
            ("*_proj", vec![0, 1, 2, 3]),
            ("0.*.v*", vec![1]),
            ("lm_*", vec![4]),
        ] {
            let found = choose_targets(&[pattern], &MODULES).unwrap();
            let wanted: Vec<&str> = wanted.into_iter().map(|index| MODULES[index]).collect();
            assert_eq!(found, wanted, "{pattern}");
        }
        assert_eq!(
            choose_targets(&[ALL_LINEAR], &MODULES).unwrap(),
            MODULES[..4]
        );
        for nothing in ["proj", "layers.2", "q*k", ""] {
            assert!(choose_targets(&[nothing], &MODULES).is_err(), "{nothing}");
        }
        let error = choose_targets(&["layers.2"], &MODULES)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the nearest are layers.0, layers.1 and "),
            "{error}"
        );
        // PEFT knows neither.
        assert!(match_targets(&["layers.1"], &MODULES).is_err());
        assert!(match_targets(&["*_proj"], &MODULES).is_err());
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

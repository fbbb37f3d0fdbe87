//! Broken recipes: each `broken/NAME.yaml` gets the message in `broken/NAME.txt`, options from `broken/NAME.args`.
//!
//! `UPDATE=1 cargo test --test broken` writes the messages anew; read each of them as its user would.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Said, checkout, levain};

/// Every broken recipe, by name.
fn recipes() -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = fs::read_dir(checkout().join("tests/broken"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    list.sort();
    list
}

/// `levain check` of a broken recipe, from its own folder, with more options.
fn check(recipe: &Path, cache: &Path, more: &[&str]) -> Said {
    let options = fs::read_to_string(recipe.with_extension("args")).unwrap_or_default();
    let name = recipe.file_name().unwrap();
    Said::of(
        levain()
            .current_dir(recipe.parent().unwrap())
            .env("LEVAIN_CACHE", cache)
            .arg("check")
            .arg(name)
            .args(options.lines())
            .args(more),
    )
}

/// The places that a message names: file, line and column after ` --> `.
fn places(message: &str) -> Vec<&str> {
    message
        .lines()
        .filter_map(|l| l.trim_start().strip_prefix("--> "))
        .collect()
}

#[test]
fn every_broken_recipe_gets_its_message() {
    let update = std::env::var_os("UPDATE").is_some_and(|v| v == "1");
    let cache = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let all = recipes();
    assert!(all.len() > 54, "only {} broken recipes", all.len());
    for recipe in &all {
        let said = check(recipe, cache.path(), &[]);
        let name = recipe.file_name().unwrap().to_str().unwrap();
        assert_eq!(
            said.code,
            Some(2),
            "{name} is not refused as it should:\n{}{}",
            said.out,
            said.err
        );
        assert_eq!(said.out, "", "{name}: a mistake is told on standard error");
        let expected = recipe.with_extension("txt");
        if update {
            fs::write(&expected, &said.err).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != said.err {
            wrong.push(format!("{name} says:\n{}", said.err));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nUPDATE=1 writes the messages anew",
        wrong.join("\n")
    );
}

#[test]
fn every_message_names_file_line_and_column() {
    let cache = tempfile::tempdir().unwrap();
    for recipe in recipes() {
        let name = recipe.file_name().unwrap().to_str().unwrap();
        let said = check(&recipe, cache.path(), &[]);
        let problems = said.err.lines().filter(|l| l.starts_with("error")).count();
        let count: usize = said
            .err
            .lines()
            .last()
            .and_then(|l| l.split(' ').next())
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        assert_eq!(problems, count, "{name}:\n{}", said.err);
        let places = places(&said.err);
        assert_eq!(
            places.len(),
            count,
            "{name}: a problem without a place:\n{}",
            said.err
        );
        for place in &places {
            let mut parts = place.rsplitn(3, ':');
            let (column, line, file) = (parts.next(), parts.next(), parts.next());
            let number = |t: Option<&str>| {
                t.and_then(|t| t.parse::<usize>().ok())
                    .is_some_and(|n| n > 0)
            };
            assert!(
                number(column) && number(line) && (file == Some(name) || file == Some("--set")),
                "{name}: {place}"
            );
        }
        // For programs the same mistakes, at the same places.
        let answer = check(&recipe, cache.path(), &["--json"]).json();
        let listed: Vec<String> = answer["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| {
                format!(
                    "{}:{}:{}",
                    p["place"]["file"].as_str().unwrap(),
                    p["place"]["line"],
                    p["place"]["column"]
                )
            })
            .collect();
        assert_eq!(listed, places, "{name}");
    }
}

#[test]
fn no_broken_recipe_leaves_a_cache_behind() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    for recipe in recipes() {
        // What is wrong with a source or its rows can't be known before the cache was asked.
        let said = fs::read_to_string(recipe.with_extension("txt")).unwrap_or_default();
        let late = ["source", "first-rows", "layout-mismatch", "model-mismatch"];
        if !late
            .iter()
            .any(|code| said.contains(&format!("error[{code}]")))
        {
            check(&recipe, &cache, &[]);
            assert!(!cache.exists(), "{}", recipe.display());
        }
    }
}

#[test]
fn what_is_no_recipe_at_all_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let large = folder.path().join("large.yaml");
    let rows = "  rows: { kind: load_dataset, source: rows.jsonl }\n";
    fs::write(
        &large,
        format!("levain: 1\nstages:\n{rows}# {}\n", "x".repeat(4 << 20)),
    )
    .unwrap();
    let said = check(&large, &cache, &[]).expect(2);
    assert!(
        said.err.starts_with("error: large.yaml: ")
            && said.err.contains("bytes; a recipe has at most 4194304"),
        "{}",
        said.err
    );
    let told = "there is no recipe at nothing.yaml: is the path right? `levain init` writes a first recipe";
    let alone: [&str; 0] = [];
    for more in [&alone[..], &["--json"]] {
        let said = check(&folder.path().join("nothing.yaml"), &cache, more).expect(2);
        assert_eq!(said.err, format!("error: {told}\n"));
        match more {
            [] => assert_eq!(said.out, ""),
            _ => assert_eq!(
                said.json(),
                serde_json::json!({ "problems": [{ "code": "usage", "message": told, "place": null, "help": null }] })
            ),
        }
    }
    fs::create_dir(folder.path().join("folder.yaml")).unwrap();
    let said = check(&folder.path().join("folder.yaml"), &cache, &[]).expect(2);
    assert_eq!(
        said.err,
        "error: there is no recipe at folder.yaml: a recipe is a file: name one in it\n"
    );
}

#[test]
fn bytes_at_random_are_refused_and_never_crash() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let mut random = support::Random(17);
    let whole = fs::read(checkout().join("recipes/quickstart.yaml")).unwrap();
    for index in 0..40 {
        let mut bytes = whole.clone();
        // Cut, or with some bytes changed.
        if index % 4 == 0 {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        } else {
            for _ in 0..1 + random.below(8) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.below(256) as u8;
            }
        }
        let path = folder.path().join("random.yaml");
        fs::write(&path, &bytes).unwrap();
        let said = check(&path, &cache, &[]);
        assert!(
            matches!(said.code, Some(0 | 2)),
            "{:?}\n{}\n{}",
            said.code,
            String::from_utf8_lossy(&bytes),
            said.err
        );
        assert!(!said.err.contains("panicked"), "{}", said.err);
    }
}

//! The gallery: every recipe is fine, says what it is, and the ones whose sources are here run.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Said, checkout, files, levain};

fn gallery() -> Vec<PathBuf> {
    let list: Vec<_> = files(&checkout().join("recipes"))
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    assert!(!list.is_empty(), "the gallery is empty");
    list
}

fn plan(recipe: &Path, cache: &Path) -> serde_json::Value {
    Said::of(
        levain()
            .args(["plan", "--json", "--cache"])
            .arg(cache)
            .arg(recipe),
    )
    .expect(0)
    .json()
}

#[test]
fn every_recipe_is_fine_without_the_network() {
    let cache = tempfile::tempdir().unwrap();
    for recipe in gallery() {
        let name = recipe.display();
        Said::of(
            levain()
                .args(["check", "--cache"])
                .arg(cache.path())
                .arg(&recipe),
        )
        .expect(0);
        let plan = plan(&recipe, cache.path());
        let stages = plan["stages"].as_array().unwrap();
        assert!(!stages.is_empty(), "{name}");
        assert!(
            stages.iter().all(|s| s["verdict"] != "cached"),
            "{name}: cached in a new cache"
        );
        Said::of(
            levain()
                .args(["graph", "--cache"])
                .arg(cache.path())
                .arg(&recipe),
        )
        .expect(0);
    }
}

#[test]
fn every_recipe_begins_with_what_it_does_how_long_it_takes_and_what_one_sees() {
    for recipe in gallery() {
        let name = recipe.display();
        let text = fs::read_to_string(&recipe).unwrap();
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let schema = first
            .strip_prefix("# yaml-language-server: $schema=")
            .unwrap_or_else(|| panic!("{name}: no schema in the first line"));
        let schema = recipe.parent().unwrap().join(schema);
        assert!(
            schema.is_file(),
            "{name}: {} is not there",
            schema.display()
        );
        let block: String = lines
            .take_while(|l| l.starts_with('#'))
            .map(|l| l.to_lowercase() + "\n")
            .collect();
        assert!(
            block.lines().any(|l| l.len() > 20),
            "{name}: no word on what it does"
        );
        let has = |words: &[&str]| words.iter().any(|w| block.contains(w));
        assert!(
            has(&["second", "minute", "hour"]),
            "{name}: no word on how long it takes"
        );
        assert!(
            has(&["see", "look", "show", "before and after", "runs nothing"]),
            "{name}: no word on what one will see"
        );
        assert!(
            block.contains("next: ") || text.contains("# next: "),
            "{name}: no word on what to try next"
        );
    }
}

#[test]
fn recipes_whose_sources_are_here_run_twice() {
    for recipe in gallery() {
        let cache = tempfile::tempdir().unwrap();
        let plan = plan(&recipe, cache.path());
        let tensors = plan["stages"].as_array().unwrap().iter().any(|s| {
            kinds::contracts()
                .any(s["kind"].as_str().unwrap())
                .is_some_and(|c| c.pool == engine::contract::Pool::Torch)
        });
        if tensors || !plan["fetch"].as_array().unwrap().is_empty() {
            println!(
                "{}: planned, not run: it needs {}",
                recipe.display(),
                if tensors { "tensors" } else { "the network" }
            );
            continue;
        }
        // In a copy of the gallery, since outputs are written beside the recipe.
        let copy = cache.path().join("gallery");
        for file in files(&checkout().join("recipes")) {
            let to = copy.join(file.strip_prefix(checkout().join("recipes")).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&file, &to).unwrap();
        }
        let own = copy.join(recipe.strip_prefix(checkout().join("recipes")).unwrap());
        let run = || {
            Said::of(
                levain()
                    .args(["run", "--json", "--cache"])
                    .arg(cache.path())
                    .arg(&own),
            )
            .expect(0)
            .json()
        };
        assert_ne!(run()["counts"]["ran"], 0);
        assert_eq!(
            run()["counts"]["ran"],
            0,
            "{}: the second run works again",
            recipe.display()
        );
    }
}

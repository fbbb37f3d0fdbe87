//! What a look at datasets tells before anything runs.

extern crate levain_engine as engine;

mod support;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use engine::job::SourceFile;
use engine::peek::{Peek, Seen, look};
use serde_json::{Map, Value};
use support::{Kitchen, Told, same};

/// The first word of a file is the layout of its rows.
fn first_word(_: &Map<String, Value>, sources: &BTreeMap<String, Vec<SourceFile>>) -> Result<Seen> {
    let text = std::fs::read_to_string(&sources["source"][0].path)?;
    let word = text
        .split_whitespace()
        .next()
        .context("the file is empty")?;
    Ok(Seen {
        layout: word.to_owned(),
        words: format!("{word} rows"),
    })
}

const PEEKS: &[Peek] = &[Peek {
    kind: "read",
    look: first_word,
}];

const RECIPE: &str = "  a: { kind: read, source: a.txt }\n  b: { kind: keep, data: a }\n  c: { kind: keep, data: b }\n  \
                      d: { kind: sweet, data: c }\n  e: { kind: lower, data: a }\n  f: { kind: sweet, data: e }\n";

#[track_caller]
fn looked(kitchen: &Kitchen) -> String {
    let session = kitchen.open(RECIPE, &Told::default());
    match look(&session, &session.standings(), PEEKS) {
        Ok(seen) => {
            let words = seen
                .iter()
                .map(|s| s.as_ref().map_or("?", |s| s.words.as_str()));
            words.collect::<Vec<_>>().join("\n")
        }
        Err(error) => {
            let problems = error.downcast::<engine::diagnostic::Problems>().unwrap();
            assert!(engine::peek::found_all(&problems));
            let lines = problems
                .problems
                .iter()
                .map(|p| format!("{}: {}", p.code, p.message));
            lines.collect::<Vec<_>>().join("\n")
        }
    }
}

#[test]
fn a_layout_goes_through_stages_that_keep_it_and_is_unknown_behind_others() {
    let kitchen = Kitchen::new();
    kitchen.write("a.txt", "sweet dough");
    same(
        &looked(&kitchen),
        "sweet rows\nsweet rows\nsweet rows\n?\n?\n?",
    );
}

#[test]
fn an_input_that_cant_use_it_and_a_source_that_cant_be_read_are_told() {
    let kitchen = Kitchen::new();
    kitchen.write("a.txt", "sour dough");
    same(
        &looked(&kitchen),
        "layout-mismatch: `data` takes rows laid out as sweet, and those of `c` are sour rows",
    );
    kitchen.write("a.txt", " ");
    same(&looked(&kitchen), "first-rows: the file is empty");
}

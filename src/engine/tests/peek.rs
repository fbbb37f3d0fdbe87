//! What a look at datasets tells before anything runs.

extern crate levain_engine as engine;

mod support;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use engine::contract::{Contracts, Rows, Trial};
use engine::job::SourceFile;
use engine::known::{Glance, Looks};
use engine::peek::{Peek, Seen, look};
use serde_json::{Map, Value, json};
use support::{Kitchen, Told, same};

/// The first word of a file is the layout of its rows.
fn first_word(_: &Map<String, Value>, sources: &BTreeMap<String, Vec<SourceFile>>) -> Result<Seen> {
    let text = std::fs::read_to_string(&sources["source"][0].path)?;
    let word = text
        .split_whitespace()
        .next()
        .context("the file is empty")?;
    Ok(Seen {
        rows: match text.contains("unsalted") {
            true => Rows::of(word).without("salt"),
            false => Rows::of(word),
        },
        words: format!("{word} rows"),
    })
}

const PEEKS: &[Peek] = &[Peek {
    kind: "read",
    look: first_word,
}];

const LOOKS: Looks = Looks {
    peeks: PEEKS,
    ..Looks::NONE
};

const RECIPE: &str = "  a: { kind: read, source: a.txt }\n  b: { kind: keep, data: a }\n  c: { kind: keep, data: b }\n  \
                      d: { kind: sweet, data: c }\n  e: { kind: lower, data: a }\n  f: { kind: sweet, data: e }\n";

#[track_caller]
fn looked(kitchen: &Kitchen) -> String {
    looked_at(kitchen, RECIPE)
}

#[track_caller]
fn looked_at(kitchen: &Kitchen, recipe: &str) -> String {
    let session = kitchen.open(recipe, &Told::default());
    match look(&session, &session.standings(), &LOOKS) {
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

#[test]
fn what_a_field_says_is_held_against_the_rows() {
    let kitchen = Kitchen::new();
    kitchen.write("a.txt", "sweet dough");
    let recipe = "  a: { kind: read, source: a.txt }\n  b: { kind: keep, data: a }\n  \
                  c: { kind: blend, parts: { one: a, two: b }, first: two }\n";
    same(&looked_at(&kitchen, recipe), "sweet rows\nsweet rows\n?");
    kitchen.write("a.txt", "sweet unsalted dough");
    same(
        &looked_at(&kitchen, recipe),
        "layout-mismatch: `a` has no salt\nlayout-mismatch: `b` has no salt",
    );
}

/// Who tunes a soft model is told, with what is known of it.
const HARD_ONLY: &[Trial] = &[Trial {
    kind: "tune",
    attempt: |_| Vec::new(),
    attempt_inputs: Some(|_, inputs| {
        let models = (inputs.known)("model").into_iter();
        let soft = models.filter(|(_, known)| known.get("weights") == Some(&json!("soft")));
        soft.map(|(stage, known)| {
            let letters = known
                .get("alphabet")
                .map_or("?".to_owned(), Value::to_string);
            (
                "model",
                format!("`{stage}` is soft, with the letters {letters}"),
            )
        })
        .collect()
    }),
}];

/// What a model will say is what its recipe says.
const BY_RECIPE: Looks = Looks {
    glances: &[Glance {
        kind: "make",
        look: |params, _| Ok(params.clone().into_iter().collect()),
    }],
    ..Looks::NONE
};

#[test]
fn models_are_known_before_they_are_made_and_handed_on_as_far_as_they_are_alike() {
    let kitchen = Kitchen::new();
    let contracts = Contracts {
        trials: HARD_ONLY,
        ..support::kinds::contracts()
    };
    let told = Told {
        contracts,
        ..Told::default()
    };
    let recipe = |model: &str| {
        format!(
            "  a: {{ kind: make, weights: soft }}\n  b: {{ kind: make, weights: soft, alphabet: xyz }}\n  \
             c: {{ kind: make, weights: hard }}\n  rows: {{ kind: say, text: abc }}\n  \
             aw: {{ kind: weigh, data: a }}\n  bw: {{ kind: weigh, data: b }}\n  cw: {{ kind: weigh, data: c }}\n  \
             passed: {{ kind: pass, data: a }}\n  soft: {{ kind: longest, parts: {{ a: a, b: b }}, metrics: {{ a: aw, b: bw }} }}\n  \
             either: {{ kind: longest, parts: {{ a: a, c: c }}, metrics: {{ a: aw, c: cw }} }}\n  \
             tuned: {{ kind: tune, model: {model}, data: rows }}\n"
        )
    };
    let found = |model: &str| -> Vec<String> {
        let session = kitchen.open(&recipe(model), &told);
        let found = look(&session, &session.standings(), &BY_RECIPE).err();
        let problems = found.map(|e| e.downcast::<engine::diagnostic::Problems>().unwrap());
        let lines = problems.iter().flat_map(|p| {
            assert!(engine::peek::found_all(p));
            p.problems
                .iter()
                .map(|p| format!("{}: {}", p.code, p.message))
        });
        lines.collect()
    };
    let none: [&str; 0] = [];
    for (model, told) in [
        ("a", "`a` is soft, with the letters \"abc\""),
        ("passed", "`passed` is soft, with the letters \"abc\""),
        ("soft", "`soft` is soft, with the letters ?"),
    ] {
        assert_eq!(found(model), [format!("model-mismatch: {told}")], "{model}");
    }
    for fine in ["c", "either"] {
        assert_eq!(found(fine), none, "{fine}");
    }
}

#[test]
fn what_the_recipe_alone_shows_is_found_when_it_is_read() {
    let contracts = support::kinds::contracts();
    let problems = |stages: &str| -> Vec<String> {
        let text = format!("levain: 1\nstages:\n{stages}");
        let read = engine::recipe::check_text("r.yaml".as_ref(), text, &[], contracts);
        let found = read.err().map(|found| found.problems).unwrap_or_default();
        let lines = found
            .into_iter()
            .map(|p| format!("{}: {}", p.code, p.message));
        lines.collect()
    };
    let a = "  a: { kind: say, text: hm }\n";
    let blend = |more: &str| format!("{a}  b: {{ kind: blend, {more} }}\n");
    let none: [&str; 0] = [];
    // What is alone and has no name is called like its port.
    for fine in ["parts: a, first: parts", "parts: { x: a }, first: x"] {
        assert_eq!(problems(&blend(fine)), none, "{fine}");
    }
    for (wrong, told) in [
        ("parts: a, first: a", "out-of-range: there is no part `a`"),
        (
            "parts: { x: a }, first: y",
            "out-of-range: there is no part `y`",
        ),
        // A name that leads nowhere is told, and nothing that follows from it.
        (
            "parts: { x: n }, first: y",
            "bad-reference: there is no stage `n`",
        ),
    ] {
        assert_eq!(problems(&blend(wrong)), [told], "{wrong}");
    }
    assert_eq!(
        problems("  a: { kind: say, text: ugh }\n"),
        ["out-of-range: nobody says `ugh`"]
    );
}

//! Every field of every kind does what its class says: a semantic one is in the key and changes the output of some input, a numeric
//! one changes the last bits at most, an execution one changes nothing. A stage of each row below is run with both of its values.

#[path = "fields/encoders.rs"]
mod encoders;
#[path = "fields/heads.rs"]
mod heads;
#[path = "fields/kitchen.rs"]
mod kitchen;
#[path = "fields/measures.rs"]
mod measures;
#[path = "fields/models.rs"]
mod models;
#[path = "fields/preferences.rs"]
mod preferences;
mod support;
#[path = "fields/training.rs"]
mod training;

use std::collections::BTreeSet;

use engine::contract::{Class, Contract};
use kitchen::{SHARED, endpoint, kitchen};
use serde_json::Value;
use support::Said;
use support::artifacts::{difference, outputs, stage};

/// What a numeric field may change: the tolerance of f32, and four times that for weights after some steps of Adam.
const TOLERANCE: f64 = 4e-5;

/// A field of a kind and two of its values; an empty one leaves the field out.
struct Row {
    kind: &'static str,
    field: &'static str,
    values: [&'static str; 2],
    /// Other fields that the stage needs for the difference to be seen.
    with: &'static [(&'static str, &'static str)],
    /// Whether the difference is that the stage fails with the second value.
    fails: bool,
    /// Whether the difference is that `check` refuses the second value.
    refused: bool,
}

const fn row(kind: &'static str, field: &'static str, values: [&'static str; 2]) -> Row {
    Row {
        kind,
        field,
        values,
        with: &[],
        fails: false,
        refused: false,
    }
}

const fn fails(kind: &'static str, field: &'static str, values: [&'static str; 2]) -> Row {
    Row {
        fails: true,
        ..row(kind, field, values)
    }
}

const fn with(
    kind: &'static str,
    field: &'static str,
    values: [&'static str; 2],
    with: &'static [(&'static str, &'static str)],
) -> Row {
    Row {
        kind,
        field,
        values,
        with,
        fails: false,
        refused: false,
    }
}

const ROWS: &[Row] = &[
    row("load_dataset", "source", ["sums.jsonl", "more.jsonl"]),
    with(
        "load_dataset",
        "format",
        ["text", "prompt-completion"],
        &[("source", "both.jsonl")],
    ),
    row(
        "load_dataset",
        "columns",
        ["{}", "{ prompt: completion, completion: prompt }"],
    ),
    row("load_dataset", "replace", ["{}", "{ much: many }"]),
    // In the order given: `much` becomes `more` here, and `many` there.
    row(
        "load_dataset",
        "replace",
        ["{ much: many, many: more }", "{ many: more, much: many }"],
    ),
    row("load_dataset", "limit", ["", "2"]),
    row(
        "load_dataset",
        "where",
        ["{}", "{ completion: [\"1\", \"3\"] }"],
    ),
    row("split", "test", ["0.5", "2"]),
    row("split", "seed", ["1", "2"]),
    row("cut", "prompt_words", ["4", "2"]),
    row("cut", "completion_words", ["", "1"]),
    row("tokenize", "max_length", ["1024", "24"]),
    with(
        "tokenize",
        "truncation",
        ["keep_start", "keep_end"],
        &[("max_length", "24")],
    ),
    with(
        "tokenize",
        "truncation",
        ["keep_start", "drop"],
        &[("max_length", "50")],
    ),
    row("tokenize", "loss_on", ["completions", "last_turn"]),
    row("tokenize", "loss_on", ["completions", "all"]),
    row("generate", "n", ["1", "2"]),
    row("generate", "max_new_tokens", ["4", "8"]),
    row("generate", "temperature", ["0.0", "1.5"]),
    with("generate", "top_k", ["0", "2"], &[("temperature", "1.5")]),
    with(
        "generate",
        "top_p",
        ["1.0", "0.1"],
        &[("temperature", "1.5")],
    ),
    row("generate", "limit", ["", "2"]),
    with("generate", "seed", ["1", "2"], &[("temperature", "1.5")]),
    with("generate", "batch", ["16", "3"], &[("temperature", "1.5")]),
    fails("gate", "metric", ["base.loss", "base.perplexity"]),
    fails("gate", "min", ["0", "50"]),
    fails("gate", "max", ["50", "1"]),
    // Both have as many tokens, and then the first one wins.
    with("select", "metric", ["loss", "tokens"], &[("goal", "max")]),
    row("select", "goal", ["min", "max"]),
    fails("select", "at_least", ["0", "50"]),
    fails("select", "at_most", ["50", "0.001"]),
];

/// The rows of all kinds.
fn all_rows() -> impl Iterator<Item = &'static Row> {
    let others = [
        encoders::ROWS,
        heads::ROWS,
        models::ROWS,
        training::ROWS,
        measures::ROWS,
        preferences::ROWS,
    ];
    ROWS.iter().chain(others.into_iter().flatten())
}

/// The rest of a stage of this kind.
fn usual(kind: &str) -> &'static [(&'static str, &'static str)] {
    let elsewhere = [
        encoders::usual,
        heads::usual,
        models::usual,
        measures::usual,
        preferences::usual,
    ];
    if let Some(fields) = elsewhere.iter().find_map(|usual| usual(kind)) {
        return fields;
    }
    match kind {
        "load_dataset" => &[("source", "sums.jsonl")],
        "split" => &[("data", "sums")],
        "cut" => &[("data", "reviews")],
        "sft" => &[
            ("model", "thin"),
            ("data", "chats"),
            ("batch", "4"),
            ("epochs", "2"),
            ("learning_rate", "1.0e-2"),
        ],
        // A preparation of this one.
        "tokenize" => &[("kind", "sft"), ("model", "thin"), ("data", "chats")],
        "generate" => &[
            ("model", "base"),
            ("prompts", "chats"),
            ("max_new_tokens", "8"),
        ],
        "gate" => &[
            ("input", "sums"),
            ("metrics", "scores"),
            ("metric", "base.loss"),
            ("max", "50"),
        ],
        "select" => &[
            ("candidates", "{ base: base, other: other }"),
            ("metrics", "scores"),
            ("metric", "loss"),
            ("goal", "min"),
        ],
        _ => panic!("say in this test what a stage of the kind `{kind}` needs"),
    }
}

fn contract(kind: &str) -> &'static Contract {
    kinds::contracts()
        .any(kind)
        .unwrap_or_else(|| panic!("there is no kind `{kind}`: remove its rows"))
}

impl Row {
    fn class(&self) -> Class {
        let field = contract(self.kind).field(self.field);
        field
            .unwrap_or_else(|| panic!("`{}` has no `{}`: remove its row", self.kind, self.field))
            .class
    }

    /// The stage with one of the values. What must not be in the key has a seed of its own, so that no other row has made it.
    fn stage(&self, index: usize, value: usize) -> String {
        let mut fields = vec![("kind", self.kind)];
        let own = index.to_string();
        let own_seed = [("seed", own.as_str())];
        let draws = contract(self.kind).field("seed").is_some();
        let loose = self.class() != Class::Semantic && draws;
        let given = [(self.field, self.values[value])];
        let all = usual(self.kind).iter().chain(self.with).chain(&given);
        for (name, value) in all.chain(own_seed.iter().filter(|_| loose)) {
            fields.retain(|(other, _)| other != name);
            if !value.is_empty() {
                fields.push((name, value));
            }
        }
        let fields: Vec<String> = fields.iter().map(|(n, v)| format!("{n}: {v}")).collect();
        format!(
            "  {}: {{ {} }}\n",
            self.name(index, value),
            fields.join(", ")
        )
    }

    /// The stage's name: for a semantic field with its value, for others the same with both.
    fn name(&self, index: usize, value: usize) -> String {
        match self.class() {
            Class::Semantic => format!("{}_{}_{index}_{value}", self.kind, self.field),
            _ => format!("{}_{}_{index}", self.kind, self.field),
        }
    }

    /// The node that is compared: the stage, or the preparation that is of the row's kind.
    fn node(&self, index: usize, value: usize) -> String {
        let name = self.name(index, value);
        match self.kind {
            "tokenize" | "tokenize_completions" | "tokenize_pieces" | "tokenize_labelled" => {
                format!("{name} › tokens")
            }
            "mismatch" => format!("{name} › mismatched"),
            "reference" => format!("{name} › reference"),
            _ => name,
        }
    }
}

#[test]
fn every_field_has_a_row() {
    let rows: BTreeSet<(&str, &str)> = all_rows().map(|r| (r.kind, r.field)).collect();
    for contract in support::runnable() {
        for field in contract.fields {
            assert!(
                rows.contains(&(contract.kind, field.name)),
                "add a row for the field `{}` of `{}`: two values, and an input on which they differ if it is semantic",
                field.name,
                contract.kind
            );
        }
    }
    for row in all_rows() {
        row.class();
        assert_ne!(row.values[0], row.values[1]);
    }
}

#[test]
fn every_field_does_what_its_class_says() {
    let kitchen = kitchen();
    let indexed = || all_rows().enumerate();
    let semantic = |(_, row): &(usize, &Row)| row.class() == Class::Semantic;
    let mut first = SHARED.to_owned();
    let mut second = SHARED.to_owned();
    let mut failing = SHARED.to_owned();
    for (index, row) in indexed() {
        match row.class() {
            Class::Semantic if row.refused => first += &row.stage(index, 0),
            Class::Semantic if row.fails => {
                first += &row.stage(index, 0);
                failing += &row.stage(index, 1);
            }
            Class::Semantic => first += &(row.stage(index, 0) + &row.stage(index, 1)),
            _ => {
                first += &row.stage(index, 0);
                second += &row.stage(index, 1);
            }
        }
    }
    let endpoint = endpoint();
    for (name, text) in [("first", first), ("second", second), ("failing", failing)] {
        let text = text.replace("ENDPOINT", &endpoint.address);
        kitchen.write(&format!("{name}.yaml"), &text);
    }
    let (one, two) = (kitchen.path().join("one"), kitchen.path().join("two"));
    // A stage that asks people waits until it was answered.
    for (index, row) in indexed().filter(|(_, row)| row.kind == "label") {
        for value in [0, 1] {
            kitchen.label("first.yaml", &row.name(index, value), "--cache one");
        }
    }
    let run = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let mut command = kitchen.command(&words);
        command.env("LEVAIN_ALLOW_PROGRAMS", "1");
        command.env("FIRST_API_KEY", "first-key");
        Said::of(&mut command).expect(0).json()
    };
    let left = run("run first.yaml --json --cache one");
    let right = run("run second.yaml --json --cache two");
    let failed = kitchen.say("run failing.yaml --json --keep-going --cache one");
    let failed = failed.expect(1).json();
    let mut wrong = Vec::new();

    for (index, row) in indexed().filter(semantic) {
        if row.refused {
            kitchen.write("refused.yaml", &(SHARED.to_owned() + &row.stage(index, 1)));
            let said = kitchen.say("check refused.yaml --cache one").expect(2).err;
            assert!(said.contains("1 problem"), "{said}");
            continue;
        }
        let other = if row.fails { &failed } else { &left };
        let (a, b) = (
            stage(&left, &row.node(index, 0)),
            stage(other, &row.node(index, 1)),
        );
        let what = format!(
            "`{}` of `{}`: {} and {}",
            row.field, row.kind, row.values[0], row.values[1]
        );
        if a["key"] == b["key"] {
            wrong.push(format!("{what} have the same key"));
        }
        if row.fails && b["outcome"] != "failed" {
            wrong.push(format!("{what} both go through"));
        }
        if a["outputs"] == b["outputs"] {
            wrong.push(format!("{what} make the same"));
        }
    }
    let mut loose = 0;
    for (index, row) in indexed().filter(|r| !semantic(r)) {
        let (a, b) = (
            stage(&left, &row.node(index, 0)),
            stage(&right, &row.node(index, 1)),
        );
        let what = format!(
            "`{}` of `{}`: {} and {}",
            row.field, row.kind, row.values[0], row.values[1]
        );
        assert_eq!(
            (&a["outcome"], &b["outcome"]),
            (&"done".into(), &"done".into()),
            "{what}"
        );
        if a["key"] != b["key"] {
            wrong.push(format!("{what} have different keys"));
        }
        if row.class() == Class::Execution && a["outputs"] != b["outputs"] {
            wrong.push(format!("{what} make different bytes"));
        }
        let full = |cache: &std::path::Path, stage: &Value| outputs(cache, stage, usize::MAX);
        if let Some(place) = difference(&full(&one, a), &full(&two, b), TOLERANCE) {
            wrong.push(format!(
                "{what} differ by more than the last bits\n  {place}"
            ));
        }
        loose += 1;
    }
    assert!(loose > 3);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! Datasets that are joined: a carried one grows round after round, and one round more makes that round only.

mod support;

use support::artifacts::stage;
use support::watch::all_events;
use support::{Kitchen, text};

/// Round i brings the first i rows, and the first of them is there from the start.
const RECIPE: &str = "\
levain: 1
stages:
  start: { kind: load_dataset, source: rows.jsonl, limit: 1 }
  align:
    repeat: 3
    carry:
      rows: { first: start, then: all }
      once: { first: start, then: known }
    stages:
      new: { kind: load_dataset, source: rows.jsonl, limit: \"${round}\" }
      all: { kind: concat, data: [rows, new] }
      known: { kind: concat, data: { old: once, new: new }, distinct: true }
";

/// The numbers that the answers of a stage's rows tell.
fn answers(kitchen: &Kitchen, name: &str) -> Vec<String> {
    let said = kitchen.say(&format!("show growth.yaml {name} --rows 100 --json"));
    let rows = said.expect(0).json()["rows"].clone();
    let number = |answer: String| answer.replace("It is ", "").replace('.', "");
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| number(text(&row["completion"]))).collect()
}

#[test]
fn what_is_carried_grows_round_after_round() {
    let kitchen = Kitchen::new(6);
    kitchen.write("growth.yaml", RECIPE);
    kitchen.say("run growth.yaml --json").expect(0);
    assert_eq!(answers(&kitchen, "align[1].all"), ["1", "1"]);
    assert_eq!(answers(&kitchen, "align[2].all"), ["1", "1", "1", "2"]);
    assert_eq!(
        answers(&kitchen, "align[3].all"),
        ["1", "1", "1", "2", "1", "2", "3"]
    );
    assert_eq!(answers(&kitchen, "align[1].known"), ["1"]);
    assert_eq!(answers(&kitchen, "align[2].known"), ["1", "2"]);
    assert_eq!(answers(&kitchen, "align[3].known"), ["1", "2", "3"]);
    let said = |name: &str, words: &str| {
        let events = all_events(&kitchen.cache());
        let mut own = events.iter().filter(|event| event["stage"] == name);
        assert!(own.any(|event| event["text"] == words), "{name}: {words}");
    };
    said("align[3].all", "7 rows: 4 from `rows`, 3 from `new`");
    said(
        "align[3].known",
        "3 rows: 2 from `old`, 1 from `new`; left out, as they were there already: 2",
    );

    let more = kitchen.say("run growth.yaml --json --set stages.align.repeat=4");
    let more = more.expect(0).json();
    for (name, outcome) in [
        ("align[3].all", "hit"),
        ("align[3].known", "hit"),
        ("align[4].all", "done"),
        ("align[4].known", "done"),
    ] {
        assert_eq!(stage(&more, name)["outcome"], outcome, "{name}");
    }
}

#[test]
fn a_dataset_of_another_layout_is_named() {
    let kitchen = Kitchen::new(6);
    kitchen.write("texts.jsonl", "{\"text\": \"A loaf.\"}\n");
    kitchen.write(
        "growth.yaml",
        "\
levain: 1
stages:
  rows: { kind: load_dataset, source: rows.jsonl }
  texts: { kind: load_dataset, source: texts.jsonl }
  all: { kind: concat, data: [rows, texts] }
",
    );
    let said = kitchen.say("run growth.yaml").expect(2);
    let words = "the rows of `rows` are prompt-completion, those of `texts` text";
    assert!(said.err.contains(words), "{}", said.err);
}

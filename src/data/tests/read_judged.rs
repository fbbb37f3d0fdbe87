//! Sources that say how good texts are: preferences, rankings, desirable or not, scores, labels.

use std::path::Path;

use levain_data::{Format, Message, Prompt, ReadOptions, ReadReport, Row, read_files};
use serde_json::{Value, json};

/// Reads rows of JSON.
fn read(format: Format, rows: &[Value]) -> anyhow::Result<(ReadReport, Vec<Row>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    let options = ReadOptions {
        format,
        ..ReadOptions::default()
    };
    let mut found = Vec::new();
    let mut sink = |row| {
        found.push(row);
        Ok(())
    };
    let files = [("rows.jsonl".to_owned(), path)];
    let report = read_files(&files, &options, &mut sink, &mut |_| {})?;
    Ok((report, found))
}

/// The one row of a file, whose format is found.
fn auto(row: Value) -> (Format, Row) {
    let (report, mut rows) = read(Format::Auto, &[row]).unwrap();
    (report.format, rows.remove(0))
}

fn error(format: Format, row: Value) -> String {
    read(format, &[row]).unwrap_err().to_string()
}

fn text(text: &str) -> Prompt {
    Prompt::Text(text.into())
}

fn chat(turns: &[(&str, &str)]) -> Prompt {
    Prompt::Chat(turns.iter().map(|(r, c)| Message::new(*r, *c)).collect())
}

fn preference(prompt: Prompt, margin: Option<f64>) -> Row {
    Row::Preference {
        prompt,
        chosen: "good".into(),
        rejected: "bad".into(),
        margin,
    }
}

fn user(content: &str) -> Value {
    json!({ "role": "user", "content": content })
}

fn assistant(content: &str) -> Value {
    json!({ "role": "assistant", "content": content })
}

#[test]
fn preferences_are_read_in_every_spelling() {
    let asked = || chat(&[("user", "hi")]);
    let gpt = |value: &str| json!({ "from": "gpt", "value": value });
    let cases = [
        (
            json!({ "prompt": "hi", "chosen": "good", "rejected": "bad" }),
            text("hi"),
        ),
        (
            json!({ "prompt": "", "chosen": "good", "rejected": "bad" }),
            text(""),
        ),
        (
            json!({ "chosen": "good", "rejected": "bad", "prompt": [user("hi")] }),
            asked(),
        ),
        (
            json!({ "conversations": [{ "from": "human", "value": "hi" }], "chosen": gpt("good"), "rejected": gpt("bad") }),
            asked(),
        ),
        (
            json!({ "messages": [user("hi")], "chosen": "good", "rejected": [assistant("bad")] }),
            asked(),
        ),
        (
            json!({ "instruction": "hi", "input": "", "chosen": "good", "rejected": "bad" }),
            asked(),
        ),
        (
            json!({ "instruction": "hi", "input": "x", "system": "s", "chosen": "good", "rejected": "bad" }),
            chat(&[("system", "s"), ("user", "hi\n\nx")]),
        ),
        // The turns of the prompt are repeated.
        (
            json!({ "prompt": [user("hi")], "chosen": [user("hi"), assistant("good")], "rejected": [user("hi"), assistant("bad")] }),
            asked(),
        ),
        (
            json!({ "prompt": "hi", "messages": [], "chosen": [user("hi"), assistant("good")], "rejected": [user("hi"), assistant("bad")] }),
            asked(),
        ),
        (
            json!({ "prompt": "hi", "chosen": assistant("good"), "rejected": assistant("bad") }),
            asked(),
        ),
        // What both begin with.
        (
            json!({ "chosen": [user("hi"), assistant("good")], "rejected": [user("hi"), assistant("bad")], "prompt": null }),
            asked(),
        ),
        (
            json!({ "chosen": "hi good", "rejected": "hi bad" }),
            text("hi"),
        ),
    ];
    for (row, prompt) in cases {
        let name = row.to_string();
        let spaced = !row.as_object().unwrap().contains_key("prompt") && row["chosen"] == "hi good";
        let (format, row) = auto(row);
        assert_eq!(format, Format::Preference, "{name}");
        if spaced {
            let (chosen, rejected) = (" good".to_owned(), " bad".to_owned());
            let margin = None;
            assert_eq!(
                row,
                Row::Preference {
                    prompt,
                    chosen,
                    rejected,
                    margin
                }
            );
        } else {
            assert_eq!(row, preference(prompt, None), "{name}");
        }
    }
}

#[test]
fn a_margin_is_said_or_the_difference_of_two_scores() {
    for (name, value) in [
        ("margin", json!(0.5)),
        ("margin", json!("0.5")),
        ("margin", json!(null)),
    ] {
        let row = json!({ "prompt": "", "chosen": "good", "rejected": "bad", name: value });
        assert_eq!(
            auto(row).1,
            preference(text(""), (!value.is_null()).then_some(0.5))
        );
    }
    for (chosen, rejected) in [
        ("chosen_score", "rejected_score"),
        ("score_chosen", "score_rejected"),
    ] {
        let row =
            json!({ "prompt": "", "chosen": "good", "rejected": "bad", chosen: 7, rejected: 4.5 });
        assert_eq!(auto(row).1, preference(text(""), Some(2.5)));
        let row = json!({ "prompt": "", "chosen": "good", "rejected": "bad", chosen: 7 });
        assert_eq!(auto(row).1, preference(text(""), None));
    }
}

#[test]
fn a_prompt_that_is_not_said_is_the_one_that_trl_finds() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/data/completions.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = golden["prompts"].as_array().unwrap();
    assert!(cases.len() >= 5);
    for case in cases {
        let answer = |side: &str| match &case["expected"][side] {
            Value::String(text) => text.clone(),
            turns => turns[0]["content"].as_str().unwrap().to_owned(),
        };
        let expected = Row::Preference {
            prompt: serde_json::from_value(case["expected"]["prompt"].clone()).unwrap(),
            chosen: answer("chosen"),
            rejected: answer("rejected"),
            margin: None,
        };
        assert_eq!(auto(case["row"].clone()).1, expected);
    }
    // TRL would take `b ` for the prompt here, since Python's last character stands before the first.
    let (_, row) = auto(json!({ "chosen": "b ", "rejected": "c" }));
    assert_eq!(row.question().0, text(""));
}

#[test]
fn rankings_are_put_in_order() {
    let ranking = |prompt, completions: [&str; 3]| Row::Ranking {
        prompt,
        completions: completions.map(str::to_owned).to_vec(),
    };
    let row = json!({ "prompt": "p", "completions": ["a", "b", "c"] });
    assert_eq!(
        auto(row),
        (Format::Ranking, ranking(text("p"), ["a", "b", "c"]))
    );
    let row = json!({ "completions": ["a", "b", "c"], "ranks": [2, 3, 1] });
    assert_eq!(auto(row).1, ranking(text(""), ["c", "a", "b"]));
    let row =
        json!({ "instruction": "p", "completions": ["a", "b", "c"], "scores": [-1.5, 10, 2] });
    assert_eq!(
        auto(row).1,
        ranking(chat(&[("user", "p")]), ["b", "c", "a"])
    );
    let row = json!({ "prompt": [user("p")], "completions": [assistant("a"), [assistant("b")], [user("p"), assistant("c")]] });
    assert_eq!(
        auto(row).1,
        ranking(chat(&[("user", "p")]), ["a", "b", "c"])
    );
}

#[test]
fn completions_with_one_judgement_are_read() {
    let unpaired = |prompt, desirable| Row::Unpaired {
        prompt,
        completion: "a".into(),
        desirable,
    };
    let row = json!({ "prompt": "p", "completion": "a", "label": true });
    assert_eq!(auto(row), (Format::Unpaired, unpaired(text("p"), true)));
    let row = json!({ "prompt": [user("p")], "completion": [assistant("a")], "label": "False" });
    assert_eq!(auto(row).1, unpaired(chat(&[("user", "p")]), false));
    let row = json!({ "messages": [user("p"), assistant("a")], "label": false });
    assert_eq!(auto(row).1, unpaired(chat(&[("user", "p")]), false));
    let (_, rows) = read(
        Format::Unpaired,
        &[json!({ "completion": "a", "label": 1 })],
    )
    .unwrap();
    assert_eq!(rows, [unpaired(text(""), true)]);
    // Another label than true or false says nothing of a completion.
    let row = json!({ "prompt": "p", "completion": "a", "label": "news" });
    assert_eq!(auto(row).0, Format::PromptCompletion);

    let scored = |prompt, score| Row::Scored {
        prompt,
        completion: "a".into(),
        score,
    };
    for (row, expected) in [
        (
            json!({ "completion": "a", "score": 1.25 }),
            scored(text(""), 1.25),
        ),
        (
            json!({ "prompt": "p", "completion": "a", "score": "-2" }),
            scored(text("p"), -2.0),
        ),
        (
            json!({ "text": "a", "score": 1e300 }),
            scored(text(""), 1e300),
        ),
        (
            json!({ "messages": [user("p"), assistant("a")], "score": 0 }),
            scored(chat(&[("user", "p")]), 0.0),
        ),
    ] {
        assert_eq!(read(Format::Scored, &[row]).unwrap().1, [expected]);
    }

    for (label, kept) in [
        (json!("news"), "news"),
        (json!(1), "1"),
        // More digits than a float has.
        (json!(9_007_199_254_740_993_u64), "9007199254740993"),
        (json!(0.1), "0.1"),
        (json!(true), "true"),
    ] {
        let row = json!({ "text": "a", "label": label });
        let (text, label) = ("a".to_owned(), kept.to_owned());
        let (_, rows) = read(Format::Labelled, &[row]).unwrap();
        assert_eq!(rows, [Row::Labelled { text, label }]);
    }
}

#[test]
fn broken_rows_say_where_and_what() {
    use Format::{Labelled, Preference, Ranking, Scored, Unpaired};
    let pair = |chosen: Value, rejected: Value| json!({ "chosen": chosen, "rejected": rejected });
    let cases = [
        (
            error(
                Preference,
                json!({ "prompt": "p", "chosen": "a", "rejected": "a" }),
            ),
            "rows.jsonl:1:1: `chosen` and `rejected` are the same text, so neither is better",
        ),
        (
            error(
                Preference,
                pair(
                    json!([user("a"), assistant("x")]),
                    json!([user("b"), assistant("y")]),
                ),
            ),
            "rows.jsonl:1:11: the turns of `chosen` and `rejected` share no beginning",
        ),
        (
            error(Preference, pair(json!("a"), json!([assistant("b")]))),
            "there is no prompt: neither a field",
        ),
        (
            error(Preference, pair(assistant("a"), assistant("b"))),
            "there is no prompt: neither a field",
        ),
        (
            error(
                Preference,
                pair(
                    json!([user("a"), assistant("x"), user("b")]),
                    json!([user("a"), assistant("y")]),
                ),
            ),
            "`chosen` has 2 turns behind those of the prompt, expected one of the assistant",
        ),
        (
            error(
                Preference,
                json!({ "prompt": [user("a")], "chosen": user("x"), "rejected": "y" }),
            ),
            "rows.jsonl:1:52: `chosen` is said by `user`, expected the assistant",
        ),
        (
            error(
                Preference,
                json!({ "prompt": "", "chosen": "a", "rejected": "b", "margin": "much" }),
            ),
            "the field `margin` is not a finite number",
        ),
        (
            error(
                Preference,
                json!({ "prompt": "", "chosen": "a", "rejected": "b", "score_chosen": 1e308, "score_rejected": -1e308 }),
            ),
            "the number inf is not finite",
        ),
        (
            error(Preference, json!({ "prompt": "", "chosen": "a" })),
            "the field `rejected` is missing",
        ),
        (
            error(Ranking, json!({ "completions": "a" })),
            "the field `completions` is a string, expected a list of completions",
        ),
        (
            error(Ranking, json!({ "completions": ["a"] })),
            "a ranking has two completions or more, this one has one",
        ),
        (
            error(Ranking, json!({ "completions": ["a", 1] })),
            "the field `completions[1]` is a number",
        ),
        (
            error(Ranking, json!({ "completions": ["a", "b", "a"] })),
            "the completions 1 and 3 (from the best on) are the same text",
        ),
        (
            error(Ranking, json!({ "completions": ["a", "b"], "scores": [1] })),
            "the field `scores` has 1 entries for 2 completions",
        ),
        (
            error(
                Ranking,
                json!({ "completions": ["a", "b"], "scores": [1, 1] }),
            ),
            "the field `scores` has 1 twice, so it can't be told which of the two completions is better",
        ),
        (
            error(
                Ranking,
                json!({ "completions": ["a", "b"], "scores": [1, 2], "ranks": [1, 2] }),
            ),
            "only one of them can order",
        ),
        (
            error(Unpaired, json!({ "completion": "a", "label": "news" })),
            "rows.jsonl:1:27: the field `label` is `news`, expected true or false (or 1 or 0)",
        ),
        (
            error(Unpaired, json!({ "completion": "a", "label": null })),
            "the field `label` is null, expected true or false",
        ),
        (
            error(Unpaired, json!({ "messages": [user("a")], "label": true })),
            "the conversation does not end with the assistant's answer",
        ),
        (
            error(Unpaired, json!({ "label": true })),
            "the field `completion` is missing",
        ),
        (
            error(Scored, json!({ "text": "a", "score": [] })),
            "the field `score` is a list, expected a number",
        ),
        (
            error(Scored, json!({ "text": "a", "score": "nan" })),
            "the field `score` is not a finite number",
        ),
        (
            error(Labelled, json!({ "text": "a", "label": "" })),
            "the field `label` is empty",
        ),
        (
            error(Labelled, json!({ "text": "a", "label": [] })),
            "the field `label` is a list, expected a string, a number or a boolean",
        ),
    ];
    for (error, expected) in cases {
        assert!(
            error.contains(expected),
            "{error}\n  should say: {expected}"
        );
    }
}

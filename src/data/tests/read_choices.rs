//! Sources with questions and their choices.

use levain_data::{Format, Message, Prompt, ReadOptions, ReadReport, Row, read_files};
use serde_json::{Value, json};

fn read_text(format: Format, name: &str, text: &str) -> anyhow::Result<(ReadReport, Vec<Row>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    let options = ReadOptions {
        format,
        ..ReadOptions::default()
    };
    let mut found = Vec::new();
    let mut sink = |row| {
        found.push(row);
        Ok(())
    };
    let files = [(name.to_owned(), path)];
    let report = read_files(&files, &options, &mut sink, &mut |_| {})?;
    Ok((report, found))
}

fn read(format: Format, rows: &[Value]) -> anyhow::Result<(ReadReport, Vec<Row>)> {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    read_text(format, "rows.jsonl", &lines)
}

fn question(prompt: Prompt, answer: u32) -> Row {
    Row::Choices {
        prompt,
        choices: vec!["rye".into(), "oat".into(), "1".into()],
        answer,
    }
}

fn text(text: &str) -> Prompt {
    Prompt::Text(text.into())
}

#[test]
fn questions_are_read_in_every_spelling() {
    let choices = || json!(["rye", "oat", "1"]);
    let arc = |labels: Value| json!({ "text": ["rye", "oat", "1"], "label": labels });
    let cases = [
        (
            json!({ "question": "Which?", "choices": choices(), "answer": 1 }),
            1,
        ),
        (
            json!({ "prompt": "Which?", "choices": choices(), "answer": "B" }),
            1,
        ),
        (
            json!({ "question": "Which?", "choices": choices(), "answer": "c" }),
            2,
        ),
        (
            json!({ "question": "Which?", "choices": choices(), "answer": "oat" }),
            1,
        ),
        (
            json!({ "question": "Which?", "choices": choices(), "answer": "0" }),
            0,
        ),
        (
            json!({ "question": "Which?", "choices": arc(json!(["A", "B", "C"])), "answerKey": "B" }),
            1,
        ),
        (
            json!({ "question": "Which?", "choices": arc(json!(["1", "2", "3"])), "answerKey": "3" }),
            2,
        ),
        (
            json!({ "question": "Which?", "subject": "bread", "A": "rye", "B": "oat", "C": "1", "D": null, "answer": "A" }),
            0,
        ),
    ];
    for (row, answer) in cases {
        let name = row.to_string();
        let (report, rows) = read(Format::Auto, &[row]).unwrap();
        assert_eq!(report.format, Format::Choices, "{name}");
        assert_eq!(rows, [question(text("Which?"), answer)], "{name}");
    }
    let turns = json!([{ "role": "user", "content": "Which?" }]);
    for field in ["prompt", "messages"] {
        let row = json!({ field: turns, "choices": choices(), "answer": 2 });
        let (_, rows) = read(Format::Auto, &[row]).unwrap();
        let asked = Prompt::Chat(vec![Message::new("user", "Which?")]);
        assert_eq!(rows, [question(asked, 2)]);
    }
    // A place in JSON is a number; as a text it might be a choice.
    let row = json!({ "question": "Which?", "choices": choices(), "answer": 1 });
    assert_eq!(
        read(Format::Auto, &[row]).unwrap().1[0].question().1,
        Some("oat")
    );
}

#[test]
fn a_table_has_a_column_for_each_choice() {
    let table = "question,A,B,C,D,answer\nWhich?,rye,oat,1,,B\n\"Which, then?\",rye,oat,,,0\n";
    let (report, rows) = read_text(Format::Auto, "rows.csv", table).unwrap();
    assert_eq!(report.format, Format::Choices);
    assert_eq!(rows[0], question(text("Which?"), 1));
    let two = Row::Choices {
        prompt: text("Which, then?"),
        choices: vec!["rye".into(), "oat".into()],
        answer: 0,
    };
    assert_eq!(rows[1], two);
    let gap = "question,A,B,C,answer\nWhich?,rye,,oat,A\n";
    let error = read_text(Format::Choices, "rows.csv", gap).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("rows.csv:2:") && error.contains("a choice `C`, and none `B` before it"),
        "{error}"
    );
}

#[test]
fn a_question_that_has_no_one_answer_is_named_by_its_line() {
    let fine = json!({ "question": "Which?", "choices": ["rye", "oat"], "answer": 0 });
    let row = |choices: Value, answer: Value| json!({ "question": "Which?", "choices": choices, "answer": answer });
    let two = || json!(["rye", "oat"]);
    let cases = [
        (
            row(json!([]), json!(0)),
            "a question has two choices or more, this one has none",
        ),
        (
            row(json!(["rye"]), json!(0)),
            "a question has two choices or more, this one has one",
        ),
        (
            row(two(), json!(2)),
            "the field `answer` is 2, and there are 2 choices: expected 0 to 1",
        ),
        (row(two(), json!(-1)), "the field `answer` is -1"),
        (row(two(), json!(0.5)), "the field `answer` is 0.5"),
        (row(two(), json!("C")), "the field `answer` is `C`"),
        (row(two(), json!("wheat")), "the field `answer` is `wheat`"),
        (
            row(two(), json!(["rye"])),
            "the field `answer` is a list, expected the number, the letter or the text of a choice",
        ),
        (
            row(json!(["rye", " rye"]), json!(0)),
            "the choices 1 and 2 are the same text",
        ),
        (row(json!(["rye", " "]), json!(0)), "choice 2 is empty"),
        (row(json!(["rye", 2]), json!(0)), "`choices[1]` is a number"),
        (
            row(json!("rye"), json!(0)),
            "the field `choices` is a string, expected a list of texts",
        ),
        (
            row(json!(["1", "2"]), json!("1")),
            "may be the text of one choice or the place of another",
        ),
        (
            json!({ "question": "Which?", "answer": 0 }),
            "there are no choices: neither a list `choices` nor columns",
        ),
        (
            json!({ "choices": two(), "answer": 0 }),
            "the field `question` is missing",
        ),
        (
            row(json!({ "text": two(), "label": ["A"] }), json!("A")),
            "of different lengths",
        ),
        (
            row(json!({ "text": two(), "label": ["A", "B"] }), json!("C")),
            "is `C`, which is no label of the choices: A, B",
        ),
    ];
    for (row, wanted) in cases {
        let error = read(Format::Choices, &[fine.clone(), row.clone()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("rows.jsonl:2:") && error.contains(wanted),
            "{row}: {error}"
        );
    }
}

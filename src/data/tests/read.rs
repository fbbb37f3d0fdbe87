//! Sources: every format read, every kind of broken row named.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use levain_data::{Format, Message, ReadOptions, ReadReport, Row, peek, read_files};

/// Writes `content` under `name` and reads it.
fn read(
    name: &str,
    content: &[u8],
    options: &ReadOptions,
) -> anyhow::Result<(ReadReport, Vec<Row>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    let mut rows = Vec::new();
    let mut sink = |row| {
        rows.push(row);
        Ok(())
    };
    let report = read_files(&[(name.to_owned(), path)], options, &mut sink, &mut |_| {})?;
    Ok((report, rows))
}

fn auto(content: &str) -> anyhow::Result<(ReadReport, Vec<Row>)> {
    read("rows.json", content.as_bytes(), &ReadOptions::default())
}

fn options(format: Format) -> ReadOptions {
    ReadOptions {
        format,
        ..ReadOptions::default()
    }
}

fn chat(turns: &[(&str, &str)]) -> Row {
    Row::Messages {
        messages: turns
            .iter()
            .map(|(role, content)| Message::new(*role, *content))
            .collect(),
    }
}

fn pair(prompt: &str, completion: &str) -> Row {
    Row::PromptCompletion {
        prompt: prompt.into(),
        completion: completion.into(),
    }
}

#[test]
fn every_format_is_found_by_itself() {
    let (report, rows) = auto(r#"[{"text": "a\u00fc"}, {"text": "b"}]"#).unwrap();
    assert_eq!((report.format, report.rows), (Format::Text, 2));
    assert_eq!(rows[0], Row::Text { text: "aü".into() });

    let (report, rows) = auto(
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n\n{\"completion\": \"d\", \"prompt\": \"c\"}",
    )
    .unwrap();
    assert_eq!(report.format, Format::PromptCompletion);
    assert_eq!(rows, [pair("a", "b"), pair("c", "d")]);

    let (report, rows) = auto(
        r#"{"messages": [{"role": "system", "content": "s"}, {"content": [{"type": "text", "value": "a"}, {"type": "text", "text": "b"}], "role": "user", "loss_weight": 0.0}], "extra": {"x": [1, 2]}}"#,
    )
    .unwrap();
    assert_eq!(report.format, Format::Messages);
    assert_eq!(report.ignored, BTreeMap::from([("extra".to_owned(), 1)]));
    assert_eq!(rows, [chat(&[("system", "s"), ("user", "ab")])]);

    let (report, rows) =
        auto(r#" [ {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": null} ] "#)
            .unwrap();
    assert_eq!(report.format, Format::Messages);
    assert_eq!(rows, [chat(&[("user", "a"), ("assistant", "b")])]);

    let (report, rows) = auto(
        r#"[{"instruction": "i", "input": "", "output": "o"},
            {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["a", "b"]]},
            {"instruction": "i", "input": null, "output": "o", "history": null}]"#,
    )
    .unwrap();
    assert_eq!(report.format, Format::Alpaca);
    assert_eq!(rows[0], chat(&[("user", "i"), ("assistant", "o")]));
    let long = [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "i\n\nx"),
        ("assistant", "o"),
    ];
    assert_eq!(rows[1], chat(&long));
    assert_eq!(rows[2], rows[0]);
}

#[test]
fn lines_of_text_are_rows() {
    let (report, rows) = read("notes.txt", b"  one\r\n\n \ntwo", &ReadOptions::default()).unwrap();
    assert_eq!(report.format, Format::Text);
    assert_eq!(
        rows,
        [
            Row::Text {
                text: "  one".into()
            },
            Row::Text { text: "two".into() }
        ]
    );
}

#[test]
fn compressed_files_and_byte_order_marks_are_read() {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all("\u{feff}{\"text\": \"a\"}\n".as_bytes())
        .unwrap();
    let (report, rows) = read(
        "rows.jsonl.gz",
        &gz.finish().unwrap(),
        &ReadOptions::default(),
    )
    .unwrap();
    assert!(report.byte_order_mark);
    assert_eq!(rows.len(), 1);
}

#[test]
fn rows_longer_than_the_buffer_and_many_rows_are_streamed() {
    for array in [true, false] {
        let mut content = String::from(if array { "[" } else { "" });
        for i in 0..3000 {
            let text = "é\\\"]},".repeat(i % 97 * if i == 96 { 400 } else { 1 });
            content += &format!(
                "{}{{\"text\": \"{i} {text}\"}}",
                if i == 0 {
                    ""
                } else if array {
                    ",\n "
                } else {
                    "\n"
                }
            );
        }
        content += if array { "]\n" } else { "\n" };
        let (report, rows) = auto(&content).unwrap();
        assert_eq!(report.rows, 3000);
        let expected = |i: usize| {
            format!(
                "{i} {}",
                "é\"]},".repeat(i % 97 * if i == 96 { 400 } else { 1 })
            )
        };
        assert!(
            rows.iter()
                .enumerate()
                .all(|(i, row)| *row == Row::Text { text: expected(i) })
        );
    }
}

#[test]
fn columns_are_renamed_texts_replaced_and_rows_limited() {
    let settings = ReadOptions {
        format: Format::Auto,
        columns: BTreeMap::from([
            ("prompt".into(), "question".into()),
            ("completion".into(), "answer".into()),
        ]),
        replace: vec![
            ("{{name}}".into(), "Ferris".into()),
            ("Ferris the".into(), "the".into()),
        ],
        limit: Some(2),
        ..ReadOptions::default()
    };
    let content = r#"[{"question": "who?", "answer": "{{name}} the crab", "prompt": 3}, {"question": "{{name}}", "answer": ""}, 7"#;
    let (report, rows) = read("a.json", content.as_bytes(), &settings).unwrap();
    assert_eq!(rows, [pair("who?", "the crab"), pair("Ferris", "")]);
    assert_eq!(report.ignored.len(), 1);

    let wrong = ReadOptions {
        columns: BTreeMap::from([("promt".into(), "q".into())]),
        ..options(Format::PromptCompletion)
    };
    let error = read("a.json", b"[]", &wrong).unwrap_err().to_string();
    assert!(
        error.contains("`promt` is no field of format prompt-completion, is `prompt` meant?"),
        "{error}"
    );
}

/// The message for a broken file of JSON lines.
fn lines(format: Format, content: &str) -> String {
    read("rows.jsonl", content.as_bytes(), &options(format))
        .unwrap_err()
        .to_string()
}

/// The message for a broken array.
fn array(format: Format, content: &str) -> String {
    read("rows.json", content.as_bytes(), &options(format))
        .unwrap_err()
        .to_string()
}

#[test]
fn broken_rows_are_named_with_file_line_and_column() {
    use Format::{Alpaca, Messages, PromptCompletion, Text};
    let cases = [
        (
            lines(Text, "{\"text\": \"a\"}\n{\"text\": 3}\n"),
            "rows.jsonl:2:10: the field `text` is a number, expected a string (row: {\"text\": 3})",
        ),
        (
            lines(Text, "{\"text\": \"é\"\n"),
            "rows.jsonl:1:13: the object does not end on its line",
        ),
        (
            lines(Text, "{\"text\": \"ü\", x}\n"),
            "rows.jsonl:1:15: not JSON: key must be a string",
        ),
        (
            lines(Text, "{\"text\": \"a\"} {\"text\": \"b\"}\n"),
            "rows.jsonl:1:15: not JSON: trailing characters",
        ),
        (
            lines(Text, "\"a\"\n"),
            "rows.jsonl:1:1: expected an object {…}, one on each line, found a string",
        ),
        (
            lines(Text, "{\"text\": \"a\", \"score\": NaN}\n"),
            "NaN is not JSON",
        ),
        (
            lines(Text, "{\"text\": \"a\", \"text\": \"b\"}\n"),
            "rows.jsonl:1:23: the field `text` is there twice",
        ),
        (lines(Text, "{\"text\": \"\\ud800\"}\n"), "rows.jsonl:1:"),
        (
            lines(
                PromptCompletion,
                "{\"prompt\": \"a\", \"completions\": \"b\"}\n",
            ),
            "the field `completion` is missing, there are: completions; is `completions` meant?",
        ),
        (
            lines(
                PromptCompletion,
                "{\"prompt\": [], \"completion\": \"b\"}\n",
            ),
            "rows.jsonl:1:12: the field `prompt` is a list of turns",
        ),
        (
            lines(Messages, "{\"messages\": []}\n"),
            "rows.jsonl:1:14: the field `messages` is an empty list",
        ),
        (
            lines(
                Messages,
                "{\"messages\": [{\"role\": \"asistant\", \"content\": \"\"}]}\n",
            ),
            "rows.jsonl:1:24: messages[0].role: unknown role `asistant`, is `assistant` meant?",
        ),
        (
            lines(Messages, "{\"messages\": [{\"role\": \"user\"}]}\n"),
            "rows.jsonl:1:15: messages[0]: the field `content` is missing",
        ),
        (
            lines(
                Messages,
                "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}\n",
            ),
            "part of type `image`, only `text` can be read",
        ),
        (
            lines(Messages, "{\"messages\": [\"hi\"]}\n"),
            "rows.jsonl:1:15: the field `messages[0]` is a string, expected an object",
        ),
        (
            lines(Alpaca, "{\"instruction\": \"a\", \"output\": null}\n"),
            "the field `output` is null, expected a string",
        ),
        (
            lines(
                Alpaca,
                "{\"instruction\": \"a\", \"output\": \"b\", \"history\": [[\"x\"]]}\n",
            ),
            "rows.jsonl:1:49: an entry of `history` is not a pair",
        ),
        (
            array(Text, "[\n  {\"text\": \"a\"},\n  {\"text\": tru}\n]"),
            "rows.json:3:1",
        ),
        (
            array(Text, "[{\"text\": \"a\"}\n {\"text\": \"b\"}]"),
            "rows.json:2:2: expected `,` or `]` after a row",
        ),
        (
            array(Text, "[{\"text\": \"a\"},]"),
            "rows.json:1:16: a `,` before the `]`",
        ),
        (
            array(Text, "[{\"text\": \"a\"}, {\"text\": \"b"),
            "rows.json:1:17: the file ends in the middle of this row",
        ),
        (
            array(Text, "[{\"text\": \"a\"}"),
            "the file ends before the `]` of its array",
        ),
        (
            array(Text, "[{\"text\": \"a\"}] x"),
            "rows.json:1:17: text after the `]`",
        ),
        (
            array(Text, "[\n[1]]"),
            "rows.json:2:1: expected an object {…}, found a list",
        ),
        (array(Text, "[]"), "rows.json: no rows"),
        (array(Text, " \n "), "rows.json: no rows"),
        (array(Text, ""), "rows.json: no rows"),
    ];
    for (message, expected) in cases {
        assert!(
            message.contains(expected),
            "{message}\n  does not say\n{expected}"
        );
    }
}

#[test]
fn invalid_bytes_are_named_with_their_offset() {
    let error = read(
        "rows.jsonl",
        b"{\"text\": \"a\"}\n{\"text\": \"\xc3\xbc\xff\"}\n",
        &options(Format::Text),
    )
    .unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("rows.jsonl:2:12: invalid UTF-8: byte 0xff at offset 26 of the file"),
        "{error}"
    );
    let error = read("rows.jsonl", b"\xff\xfe{\0", &options(Format::Text))
        .unwrap_err()
        .to_string();
    assert!(error.contains("UTF-16"), "{error}");
    let error = read("rows.jsonl.gz", b"not gzip", &options(Format::Text))
        .unwrap_err()
        .to_string();
    assert!(error.contains("rows.jsonl.gz: cannot be read"), "{error}");
}

#[test]
fn several_broken_rows_are_reported_at_once() {
    let content: String = (0..30)
        .map(|i| {
            if i % 2 == 0 {
                "{\"text\": 1}\n"
            } else {
                "{\"text\": \"a\"}\n"
            }
        })
        .collect();
    let error = lines(Format::Text, &content);
    assert!(
        error.starts_with("10 broken rows (reading stopped here):\n  rows.jsonl:1:10: "),
        "{error}"
    );
    assert_eq!(error.lines().count(), 11);
    assert!(error.contains("rows.jsonl:19:10"), "{error}");
    let error = auto(&content).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 11, "{error}");
}

#[test]
fn an_unclear_format_lists_the_columns() {
    let error = auto(r#"[{"text": "a", "messages": []}]"#)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(
            "{text, messages} fit several formats (text, messages); say which one with `format`"
        ),
        "{error}"
    );
    let error = auto(r#"[{"prompts": "a", "completion": "b"}]"#)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("{prompts, completion} fit no format"),
        "{error}"
    );
    assert!(
        error.contains(
            "is `prompts` the `prompt` of format prompt-completion? (columns: { prompt: prompts })"
        ),
        "{error}"
    );
    for (columns, formats) in [
        (r#""text": "a", "label": "b""#, "text, labelled"),
        (r#""text": "a", "score": 1"#, "text, scored"),
        (
            r#""prompt": "a", "completion": "b", "score": 1"#,
            "prompt-completion, scored",
        ),
        (
            r#""completion": "b", "label": true, "score": 1"#,
            "unpaired, scored",
        ),
    ] {
        let error = auto(&format!("[{{{columns}}}]")).unwrap_err().to_string();
        assert!(
            error.contains(&format!("fit several formats ({formats})")),
            "{error}"
        );
    }
    let error = auto("[{\"text\": \"a\"}, {\"texts\": \"a\"}]")
        .unwrap_err()
        .to_string();
    assert!(error.contains("fit no format"), "{error}");
}

#[test]
fn several_files_are_one_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<(String, PathBuf)> = ["a.json", "b.jsonl"]
        .iter()
        .map(|name| {
            let path = folder.path().join(name);
            std::fs::write(&path, "{\"text\": \"x\"}\n").unwrap();
            ((*name).to_owned(), path)
        })
        .collect();
    let report = read_files(
        &files,
        &ReadOptions::default(),
        &mut |_| Ok(()),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(
        report.files,
        [("a.json".to_owned(), 1), ("b.jsonl".to_owned(), 1)]
    );
    assert_eq!(
        peek(&files, &ReadOptions::default(), &mut |_| ())
            .unwrap()
            .format,
        Format::Text
    );
    let missing = [("c.json".to_owned(), folder.path().join("c.json"))];
    let error = read_files(
        &missing,
        &ReadOptions::default(),
        &mut |_| Ok(()),
        &mut |_| {},
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("c.json: cannot be opened"),
        "{error}"
    );
}

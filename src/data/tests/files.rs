//! Parquet files and text metrics against their Python packages (tests/golden/make/data_files.py) and SQuAD's evaluation
//! (tests/golden/make/evaluation.py).

use std::path::{Path, PathBuf};

use levain_data::metrics::{Normalization, exact_match, rouge_l};
use levain_data::{Dataset, Format, Message, Prompt, ReadOptions, Row, read_into};
use serde::Deserialize;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/data/data")
        .join(name)
}

fn read(name: &str, path: PathBuf) -> anyhow::Result<(levain_data::ReadReport, Vec<Row>)> {
    read_as(Format::Auto, name, path)
}

fn read_as(
    format: Format,
    name: &str,
    path: PathBuf,
) -> anyhow::Result<(levain_data::ReadReport, Vec<Row>)> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("rows.arrow");
    let (report, summary) = read_into(
        &[(name.to_owned(), path)],
        &ReadOptions {
            format,
            ..ReadOptions::default()
        },
        &out,
        &mut |_| {},
    )?;
    let rows = Dataset::open(&out)?
        .iter()
        .collect::<anyhow::Result<Vec<Row>>>()?;
    assert_eq!(summary.rows, rows.len() as u64);
    Ok((report, rows))
}

#[test]
fn a_parquet_file_is_read() {
    let read_as = |format| read_as(format, "messages.parquet", golden("messages.parquet"));
    let (report, rows) = read_as(Format::Messages).unwrap();
    assert_eq!(
        report.ignored.keys().collect::<Vec<_>>(),
        ["score", "source"]
    );
    let chat = |user: &str, answer: &str| Row::Messages {
        messages: vec![
            Message::new("user", user),
            Message::new("assistant", answer),
        ],
    };
    assert_eq!(rows, [chat("Wie?", "So: 🦀"), chat("", "b")]);
    let error = read_as(Format::Auto).unwrap_err().to_string();
    assert!(
        error.contains("fit several formats (messages, scored)"),
        "{error}"
    );
    let error = read_as(Format::Scored).unwrap_err().to_string();
    assert_eq!(
        error,
        "messages.parquet, row 2: the field `score` is null, expected a number"
    );
}

#[test]
fn numbers_and_booleans_of_a_parquet_file_are_read() {
    let read_as = |format| read_as(format, "values.parquet", golden("values.parquet"));
    let prompt = || Prompt::Text(String::new());
    let (_, rows) = read_as(Format::Unpaired).unwrap();
    let desirable = [true, false].map(|desirable| Row::Unpaired {
        prompt: prompt(),
        completion: "a".into(),
        desirable,
    });
    assert_eq!(rows, desirable);
    // Every type of numbers, one after the other.
    let columns = [
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "half", "float",
        "double",
    ];
    for column in columns {
        let folder = tempfile::tempdir().unwrap();
        let options = ReadOptions {
            format: Format::Scored,
            columns: [("score".to_owned(), column.to_owned())].into(),
            ..ReadOptions::default()
        };
        let file = ("values.parquet".to_owned(), golden("values.parquet"));
        let out = folder.path().join("rows.arrow");
        read_into(&[file], &options, &out, &mut |_| {}).unwrap();
        let rows: Vec<Row> = Dataset::open(&out)
            .unwrap()
            .iter()
            .map(Result::unwrap)
            .collect();
        let scores = if column.contains("int") {
            [7.0, 100.0]
        } else {
            [0.5, -2.0]
        };
        let scored = scores.map(|score| Row::Scored {
            prompt: prompt(),
            completion: "a".into(),
            score,
        });
        assert_eq!(rows, scored, "{column}");
    }
    let error = read_as(Format::Scored).unwrap_err().to_string();
    assert_eq!(
        error,
        "values.parquet, row 1: the field `score` is a number that is not finite, expected a number"
    );
}

#[test]
fn a_broken_row_of_a_parquet_file_is_named() {
    let error = read("null.parquet", golden("null.parquet"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "null.parquet, row 2: the field `text` is null, expected a string"
    );
}

#[test]
fn a_damaged_parquet_file_is_an_error_or_other_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let bytes = std::fs::read(golden("messages.parquet")).unwrap();
    for length in [0, 4, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = format!("{:#}", read("a.parquet", path.clone()).unwrap_err());
        assert!(
            error.starts_with("a.parquet: not a Parquet file"),
            "{error}"
        );
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x55;
        std::fs::write(&path, &changed).unwrap();
        let _ = read("a.parquet", path.clone());
    }
}

#[derive(Deserialize)]
struct Score {
    candidate: String,
    reference: String,
    rouge_l: f64,
}

#[test]
fn rouge_l_is_that_of_google() {
    let scores: Vec<Score> =
        serde_json::from_slice(&std::fs::read(golden("rouge.json")).unwrap()).unwrap();
    assert!(scores.len() > 5);
    for score in scores {
        let ours = rouge_l(&score.candidate, &score.reference);
        assert!(
            (ours - score.rouge_l).abs() < 1e-12,
            "{} ~ {}: {ours}",
            score.candidate,
            score.reference
        );
    }
    assert!(exact_match(" 42\n", "42") && !exact_match("42", "43"));
}

#[derive(Deserialize)]
struct Compared {
    answer: String,
    known: String,
    normalized: String,
    #[serde(rename = "match")]
    matches: bool,
    f1: f64,
}

#[test]
fn answers_are_compared_as_squad_does() {
    let text = std::fs::read_to_string(golden("../evaluation/answers.json")).unwrap();
    let all: Vec<Compared> = serde_json::from_str(&text).unwrap();
    assert!(all.len() > 20 && all.iter().any(|one| one.matches));
    let squad = Normalization::Squad;
    for one in &all {
        let Compared { answer, known, .. } = one;
        let made = squad.apply(answer);
        assert_eq!(made, one.normalized, "{answer:?}");
        assert_eq!(made == squad.apply(known), one.matches, "{answer:?}");
        let f1 = squad.token_f1(answer, known);
        assert!((f1 - one.f1).abs() < 1e-12, "{answer:?}, {known:?}: {f1}");
    }
    let bare = Normalization::Trimmed;
    assert_eq!(bare.apply(" The Loaf.\n"), "The Loaf.");
    assert_eq!(bare.token_f1("The loaf", "the loaf"), 0.5);
}

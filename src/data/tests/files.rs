//! Parquet files and text metrics against their Python packages (tests/golden/make/data_files.py).

use std::path::{Path, PathBuf};

use levain_data::metrics::{exact_match, rouge_l};
use levain_data::{Dataset, Format, Message, ReadOptions, Row, read_into};
use serde::Deserialize;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/data/data")
        .join(name)
}

fn read(name: &str, path: PathBuf) -> anyhow::Result<(levain_data::ReadReport, Vec<Row>)> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("rows.arrow");
    let (report, summary) = read_into(
        &[(name.to_owned(), path)],
        &ReadOptions::default(),
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
    let (report, rows) = read("messages.parquet", golden("messages.parquet")).unwrap();
    assert_eq!(report.format, Format::Messages);
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

//! Laws of the files in the cache, and of splitting.

use std::path::Path;

use levain_data::{
    Dataset, DatasetWriter, Layout, Message, Portion, Prompt, Row, Tokens, TokensWriter, split,
    split_dataset,
};
use proptest::prelude::*;

fn prompt() -> impl Strategy<Value = Prompt> {
    let message = ("user|assistant", any::<String>()).prop_map(|(r, c)| Message::new(r, c));
    prop_oneof![
        any::<String>().prop_map(Prompt::Text),
        prop::collection::vec(message, 1..4).prop_map(Prompt::Chat),
    ]
}

fn number() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |number| number.is_finite())
}

fn rows() -> impl Strategy<Value = (Layout, Vec<Row>)> {
    let text = any::<String>().prop_map(|text| Row::Text { text });
    let pair = any::<(String, String)>()
        .prop_map(|(prompt, completion)| Row::PromptCompletion { prompt, completion });
    let message = any::<(String, String)>().prop_map(|(role, content)| Message { role, content });
    let chat = prop::collection::vec(message, 0..5).prop_map(|messages| Row::Messages { messages });
    let preference = (
        prompt(),
        any::<(String, String)>(),
        prop::option::of(number()),
    )
        .prop_map(|(prompt, (chosen, rejected), margin)| Row::Preference {
            prompt,
            chosen,
            rejected,
            margin,
        });
    let texts = prop::collection::vec(any::<String>(), 2..5);
    let ranking = (prompt(), texts).prop_map(|(prompt, completions)| Row::Ranking {
        prompt,
        completions,
    });
    let unpaired =
        (prompt(), any::<(String, bool)>()).prop_map(|(prompt, (completion, desirable))| {
            Row::Unpaired {
                prompt,
                completion,
                desirable,
            }
        });
    let scored =
        (prompt(), any::<String>(), number()).prop_map(|(prompt, completion, score)| Row::Scored {
            prompt,
            completion,
            score,
        });
    let labelled =
        any::<(String, String)>().prop_map(|(text, label)| Row::Labelled { text, label });
    let texts = prop::collection::vec(any::<String>(), 2..5);
    let choices = (prompt(), texts, any::<u32>()).prop_map(|(prompt, choices, answer)| {
        let answer = answer % choices.len() as u32;
        Row::Choices {
            prompt,
            choices,
            answer,
        }
    });
    let some = |row: BoxedStrategy<Row>| prop::collection::vec(row, 0..20);
    prop_oneof![
        some(text.boxed()).prop_map(|rows| (Layout::Text, rows)),
        some(pair.boxed()).prop_map(|rows| (Layout::PromptCompletion, rows)),
        some(chat.boxed()).prop_map(|rows| (Layout::Messages, rows)),
        some(preference.boxed()).prop_map(|rows| (Layout::Preference, rows)),
        some(ranking.boxed()).prop_map(|rows| (Layout::Ranking, rows)),
        some(unpaired.boxed()).prop_map(|rows| (Layout::Unpaired, rows)),
        some(scored.boxed()).prop_map(|rows| (Layout::Scored, rows)),
        some(labelled.boxed()).prop_map(|rows| (Layout::Labelled, rows)),
        some(choices.boxed()).prop_map(|rows| (Layout::Choices, rows)),
    ]
}

fn write(path: &Path, layout: Layout, rows: &[Row]) -> levain_data::DatasetSummary {
    let mut writer = DatasetWriter::create(path, layout).unwrap();
    rows.iter().for_each(|row| writer.push(row).unwrap());
    writer.finish().unwrap()
}

fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
    Dataset::open(path)?.iter().collect()
}

proptest! {
    #[test]
    fn what_is_written_is_read((layout, rows) in rows(), repeat in 1usize..200) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.arrow");
        // Repeated, so that there are several record batches.
        let rows: Vec<Row> = rows.iter().cycle().take(rows.len() * repeat).cloned().collect();
        let summary = write(&path, layout, &rows);
        prop_assert_eq!(summary.rows, rows.len() as u64);
        prop_assert_eq!(summary.layout, layout);
        prop_assert_eq!(summary.characters.max, rows.iter().map(Row::characters).max().unwrap_or(0));
        let dataset = Dataset::open(&path).unwrap();
        prop_assert_eq!(dataset.layout(), layout);
        prop_assert_eq!(dataset.len(), rows.len());
        prop_assert_eq!(&read(&path).unwrap(), &rows);
        prop_assert!(dataset.row(rows.len()).is_err());
        for row in rows.iter().take(20) {
            let json = serde_json::to_string(row).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Row>(&json).unwrap(), row);
        }
        let again = folder.path().join("again.arrow");
        write(&again, layout, &rows);
        prop_assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap());
    }

    #[test]
    fn tokens_that_are_written_are_read(rows in prop::collection::vec(prop::collection::vec(any::<(i32, bool)>(), 0..9), 0..40), repeat in 1usize..60) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.arrow");
        let rows: Vec<_> = rows.iter().cycle().take(rows.len() * repeat).cloned().collect();
        let mut writer = TokensWriter::create(&path).unwrap();
        for row in &rows {
            let (ids, trained): (Vec<i32>, Vec<bool>) = row.iter().copied().unzip();
            writer.push(&ids, &trained).unwrap();
        }
        let summary = writer.finish().unwrap();
        prop_assert_eq!(summary.tokens, rows.iter().map(|row| row.len() as u64).sum::<u64>());
        let tokens = Tokens::open(&path).unwrap();
        prop_assert_eq!(tokens.lengths().unwrap(), rows.iter().map(Vec::len).collect::<Vec<_>>());
        for (at, row) in rows.iter().enumerate() {
            let read = tokens.row(at).unwrap();
            prop_assert_eq!(read.mask().len(), read.ids.len());
            prop_assert_eq!(read.ids.iter().copied().zip(read.mask()).collect::<Vec<_>>(), row.clone());
        }
    }

    #[test]
    fn a_split_is_a_partition(rows in 2usize..500, share in 0.01f64..0.99, seed: u64) {
        let count = (share * rows as f64).round() as usize;
        let sides = split(rows, Portion::Fraction(share), seed);
        if count == 0 || count == rows {
            prop_assert!(sides.is_err());
        } else {
            let sides = sides.unwrap();
            prop_assert_eq!(sides.test.len(), count);
            prop_assert!(sides.train.is_sorted() && sides.test.is_sorted());
            let mut all = [sides.train.clone(), sides.test.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..rows).collect::<Vec<_>>());
            prop_assert_eq!(split(rows, Portion::Count(count as u64), seed).unwrap(), sides);
        }
    }

    #[test]
    fn a_changed_file_is_an_error_or_other_rows_but_no_panic(
        (layout, rows) in rows(), places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.arrow");
        write(&path, layout, &rows);
        let mut bytes = std::fs::read(&path).unwrap();
        for (place, byte) in &places {
            let at = place.index(bytes.len());
            bytes[at] = *byte;
        }
        std::fs::write(&path, &bytes).unwrap();
        let _ = read(&path);
        let _ = Tokens::open(&path);
    }
}

#[test]
fn every_truncation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.arrow");
    let rows: Vec<Row> = (0..3)
        .map(|i| Row::Text {
            text: format!("row {i}"),
        })
        .collect();
    write(&path, Layout::Text, &rows);
    let bytes = std::fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = format!("{:#}", Dataset::open(&path).unwrap_err());
        assert!(
            error.contains("rows.arrow: not a whole Arrow IPC file"),
            "{error}"
        );
    }
}

#[test]
fn every_single_changed_byte_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let rows_path = folder.path().join("rows.arrow");
    let tokens_path = folder.path().join("tokens.arrow");
    let chat = Row::Messages {
        messages: vec![Message::new("user", "é"), Message::new("assistant", "b")],
    };
    write(&rows_path, Layout::Messages, &[chat.clone(), chat]);
    let mut writer = TokensWriter::create(&tokens_path).unwrap();
    writer.push(&[1, 2, 3], &[false, true, true]).unwrap();
    writer.finish().unwrap();
    let pairs_path = folder.path().join("pairs.arrow");
    let pair = Row::Preference {
        prompt: Prompt::Text("é".into()),
        chosen: "a".into(),
        rejected: "b".into(),
        margin: Some(1.0),
    };
    write(&pairs_path, Layout::Preference, &[pair]);
    for path in [&rows_path, &tokens_path, &pairs_path] {
        let bytes = std::fs::read(path).unwrap();
        let changed = folder.path().join("changed.arrow");
        for at in 0..bytes.len() {
            for value in [0x00, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                std::fs::write(&changed, &bytes).unwrap();
                let _ = read(&changed);
                if let Ok(tokens) = Tokens::open(&changed) {
                    let _ = tokens
                        .iter()
                        .map(|row| row.map(|row| row.mask()))
                        .collect::<Vec<_>>();
                    let _ = tokens.lengths();
                }
            }
        }
    }
}

#[test]
fn rows_that_no_file_can_hold_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let push = |row: Row| {
        let path = folder.path().join("rows.arrow");
        let mut writer = DatasetWriter::create(&path, row.layout()).unwrap();
        writer.push(&row).unwrap_err().to_string()
    };
    let scored = |prompt, score| Row::Scored {
        prompt,
        completion: "x".into(),
        score,
    };
    let plain = || Prompt::Text(String::new());
    assert_eq!(
        push(scored(plain(), f64::NAN)),
        "row 1: the number NaN is not finite"
    );
    for turns in [vec![], vec![Message::new("text", "x")]] {
        let error = push(scored(Prompt::Chat(turns), 1.0));
        assert!(error.contains("has a turn of a known role"), "{error}");
    }
    let error = push(Row::Ranking {
        prompt: plain(),
        completions: vec!["x".into()],
    });
    assert!(
        error.contains("two completions or more, this one has one"),
        "{error}"
    );
}

#[test]
fn the_texts_of_a_row_can_be_changed_in_their_order() {
    let mut row = Row::Ranking {
        prompt: Prompt::Chat(vec![Message::new("user", "a")]),
        completions: vec!["b".into(), "c".into()],
    };
    for (place, text) in row.texts_mut().into_iter().enumerate() {
        text.push_str(&place.to_string());
    }
    let completions = vec!["b1".to_owned(), "c2".to_owned()];
    let prompt = Prompt::Chat(vec![Message::new("user", "a0")]);
    assert_eq!(row.question(), (prompt.clone(), Some("b1")));
    assert_eq!(
        row,
        Row::Ranking {
            prompt,
            completions
        }
    );
    assert_eq!(row.characters(), 6);
}

#[test]
fn another_kind_of_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, tokens) = (
        folder.path().join("rows.arrow"),
        folder.path().join("tokens.arrow"),
    );
    write(&rows, Layout::Text, &[Row::Text { text: "x".into() }]);
    TokensWriter::create(&tokens).unwrap().finish().unwrap();
    assert!(
        Tokens::open(&rows)
            .unwrap_err()
            .to_string()
            .contains("not a file of tokens")
    );
    let error = format!("{:#}", Dataset::open(&tokens).unwrap_err());
    assert!(
        error.contains("are no layout of a dataset (known: text, prompt-completion, messages, "),
        "{error}"
    );
    let mut writer = DatasetWriter::create(&rows, Layout::Messages).unwrap();
    let error = writer
        .push(&Row::Text { text: "x".into() })
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a row of layout text does not belong into a dataset of layout messages"),
        "{error}"
    );
}

#[test]
fn a_split_keeps_the_order_and_counts_duplicates() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let rows: Vec<Row> = (0..40)
        .map(|i| Row::Text {
            text: format!("{}", i / 2),
        })
        .collect();
    write(&path("all"), Layout::Text, &rows);
    let dataset = Dataset::open(&path("all")).unwrap();
    let report = split_dataset(
        &dataset,
        Portion::Fraction(0.25),
        17,
        &path("train"),
        &path("test"),
    )
    .unwrap();
    assert_eq!((report.train.rows, report.test.rows), (30, 10));
    let (train, test) = (read(&path("train")).unwrap(), read(&path("test")).unwrap());
    let shared = test.iter().filter(|row| train.contains(row)).count() as u64;
    assert_eq!(report.test_rows_in_train, shared);
    assert!(shared > 0);
    let other = split(40, Portion::Fraction(0.25), 18).unwrap();
    assert_ne!(split(40, Portion::Fraction(0.25), 17).unwrap(), other);
}

#[test]
fn empty_sides_are_errors() {
    let message = |test| split(4, test, 0).unwrap_err().to_string();
    assert!(message(Portion::Fraction(0.1)).contains("the test side would be empty"));
    assert!(message(Portion::Count(4)).contains("the train side would be empty"));
    assert!(message(Portion::Fraction(f64::NAN)).contains("is not a fraction"));
    assert!(split(0, Portion::Count(1), 0).is_err());
}

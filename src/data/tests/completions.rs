//! Tokenized completions against TRL's DPOTrainer (tests/golden/make/data_completions.py), and the tokenizing of datasets.

use std::path::{Path, PathBuf};

use levain_data::{
    ChatTemplate, Completion, Completions, CompletionsOptions, CompletionsReport,
    CompletionsWriter, Dataset, DatasetWriter, Encoder, Message, Prompt, Row, SpecialTokens,
    Truncation, tokenize_completions,
};
use serde::Deserialize;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/data")
}

#[derive(Deserialize)]
struct Golden {
    tokens: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    tokenizer: String,
    template: String,
    max_length: Option<usize>,
    rows: Vec<Row>,
    expected: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    prompt: usize,
    ids: [Vec<i32>; 2],
}

fn encoder(tokenizer: &str, template: &str) -> Encoder {
    let tokens = SpecialTokens {
        bos: Some("<|endoftext|>".into()),
        eos: Some("<|im_end|>".into()),
        pad: Some("<pad>".into()),
        unk: None,
    };
    let template = ChatTemplate::new(template, &tokens, None).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(folder().join(tokenizer)).unwrap();
    Encoder::new(tokenizer, tokens, Some(template)).unwrap()
}

/// The encoder of rows of plain text.
fn plain() -> Encoder {
    encoder("tokenizer.json", "")
}

fn options(max_length: usize, truncation: Truncation) -> CompletionsOptions {
    CompletionsOptions {
        max_length,
        truncation,
        threads: Some(1),
    }
}

fn whole() -> CompletionsOptions {
    options(1024, Truncation::KeepStart)
}

/// A completion that is not borrowed.
type Owned = (Vec<i32>, usize, usize, f64);

fn run(
    encoder: &Encoder,
    rows: &[Row],
    options: &CompletionsOptions,
) -> anyhow::Result<(CompletionsReport, Vec<Owned>, Vec<u8>)> {
    let folder = tempfile::tempdir()?;
    let (rows_path, path) = (
        folder.path().join("rows.arrow"),
        folder.path().join("c.arrow"),
    );
    let mut writer = DatasetWriter::create(&rows_path, rows[0].layout())?;
    rows.iter().try_for_each(|row| writer.push(row))?;
    writer.finish()?;
    let dataset = Dataset::open(&rows_path)?;
    let writer = CompletionsWriter::create(&path)?;
    let report = tokenize_completions(&dataset, encoder, options, writer, &mut |_, _| {})?;
    let file = Completions::open(&path)?;
    let owned = |row: Completion<'_>| (row.ids.to_vec(), row.prompt, row.group, row.value);
    let made = file
        .iter()
        .map(|row| row.map(owned))
        .collect::<Result<_, _>>()?;
    Ok((report, made, std::fs::read(&path)?))
}

fn error(rows: &[Row], options: &CompletionsOptions) -> String {
    format!("{:#}", run(&plain(), rows, options).unwrap_err())
}

fn pair(prompt: &str, chosen: &str, rejected: &str, margin: Option<f64>) -> Row {
    Row::Preference {
        prompt: Prompt::Text(prompt.into()),
        chosen: chosen.into(),
        rejected: rejected.into(),
        margin,
    }
}

#[test]
fn pairs_are_tokenized_as_trl_does() {
    let path = folder().join("completions.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(golden.tokens.len() >= 12);
    for case in golden.tokens {
        let name = format!("{} ({}, {:?})", case.name, case.tokenizer, case.max_length);
        let encoder = encoder(&case.tokenizer, &case.template);
        let options = options(case.max_length.unwrap_or(usize::MAX), Truncation::KeepStart);
        let (report, made, _) = run(&encoder, &case.rows, &options).unwrap();
        // TRL keeps a pair of which both sides are the same after the cut, or one has only a first token: no such is here.
        assert_eq!(report.dropped_same, 0, "{name}");
        let ours: Vec<_> = made
            .iter()
            .map(|(ids, prompt, ..)| (*prompt, ids.clone()))
            .collect();
        let theirs: Vec<_> = case
            .expected
            .iter()
            .flat_map(|row| row.ids.iter().map(|ids| (row.prompt, ids.clone())))
            .collect();
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn every_layout_has_its_completions_and_their_values() {
    let prompt = || Prompt::Text("Q:".to_owned());
    let values = |row: Row| -> Vec<f64> {
        let (_, made, _) = run(&plain(), &[row], &whole()).unwrap();
        assert!(
            made.iter()
                .all(|(_, prompt, group, _)| (*prompt, *group) == (made[0].1, 0))
        );
        made.into_iter().map(|(.., value)| value).collect()
    };
    let margin = values(pair("Q:", "a", "b", Some(1.5)));
    assert_eq!(margin[0], 1.5);
    assert!(margin[1].is_nan());
    assert!(
        values(pair("Q:", "a", "b", None))
            .iter()
            .all(|value| value.is_nan())
    );
    let completions = ["c", "a", "b"].map(str::to_owned).to_vec();
    let ranking = Row::Ranking {
        prompt: prompt(),
        completions,
    };
    assert_eq!(values(ranking), [0.0, 1.0, 2.0]);
    for desirable in [true, false] {
        let completion = "a".to_owned();
        let prompt = prompt();
        let row = Row::Unpaired {
            prompt,
            completion,
            desirable,
        };
        assert_eq!(values(row), [f64::from(u8::from(desirable))]);
    }
    let (completion, score) = ("a".to_owned(), -0.25);
    let scored = Row::Scored {
        prompt: Prompt::Text(String::new()),
        completion,
        score,
    };
    assert_eq!(values(scored), [-0.25]);
    let (prompt, completion) = ("Q:".to_owned(), "a".to_owned());
    let nothing = values(Row::PromptCompletion { prompt, completion });
    assert!(nothing.len() == 1 && nothing[0].is_nan());
    let error = error(&[Row::Text { text: "a".into() }], &whole());
    assert_eq!(error, "row 1 (a): rows of layout text have no completions");
}

#[test]
fn of_a_conversation_the_last_answer_is_the_completion() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    let encoder = encoder("tokenizer.json", template);
    let turns = [
        ("user", "1"),
        ("assistant", "2"),
        ("user", "3"),
        ("assistant", "42"),
        ("user", "5"),
    ];
    let messages = turns
        .map(|(role, content)| Message::new(role, content))
        .to_vec();
    let unanswered = Row::Messages {
        messages: messages[..1].to_vec(),
    };
    let rows = [unanswered, Row::Messages { messages }];
    let (report, made, _) = run(&encoder, &rows, &whole()).unwrap();
    let [(ids, prompt, 1, _)] = &made[..] else {
        panic!("{made:?}")
    };
    let text = |ids: &[i32]| {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        encoder.decode(&ids, false).unwrap()
    };
    let shown = (text(&ids[..*prompt]), text(&ids[*prompt..]));
    assert!(
        shown.0.ends_with("user: 3\nassistant:") || shown.0.ends_with("assistant: "),
        "{shown:?}"
    );
    assert!(shown.1.trim_start().starts_with("42"), "{shown:?}");
    assert_eq!((report.dropped_empty, report.dropped), (1, vec![0]));
    assert_eq!(
        report.lints.len(),
        1 + usize::from(report.merged_boundaries > 0)
    );
}

#[test]
fn what_is_too_long_is_cut_or_left_out_and_counted() {
    let long = pair(
        &"flour and water ".repeat(20),
        "mix",
        "mix flour and bake",
        None,
    );
    let rows = [pair("Q:", "a", "b", None), long];
    let (full, made, _) = run(&plain(), &rows, &whole()).unwrap();
    let (longest, prompt) = (made[3].0.len(), made[2].1);
    assert_eq!(full.longest, (longest as u64, 1));
    assert_eq!((full.truncated, full.completions.largest_group), (0, 2));

    let (end, kept, _) = run(&plain(), &rows, &options(20, Truncation::KeepEnd)).unwrap();
    assert_eq!((end.truncated, end.completions.groups), (1, 2));
    assert_eq!(kept[3].0, made[3].0[longest - 20..]);
    assert_eq!(kept[2].1, kept[3].1);
    assert_eq!(kept[2].0[kept[2].1..], made[2].0[prompt..]);

    // The prompt alone fills the row.
    let (start, kept, _) = run(&plain(), &rows, &options(20, Truncation::KeepStart)).unwrap();
    assert_eq!(
        (start.dropped_empty, start.truncated, kept.len()),
        (1, 0, 2)
    );
    // The first token of both completions is the same, and all that is left.
    let (same, ..) = run(&plain(), &rows, &options(prompt + 1, Truncation::KeepStart)).unwrap();
    assert_eq!((same.dropped_same, same.dropped), (1, vec![1]));
    let last = same.lints.last().unwrap();
    assert!(
        last.starts_with("1 of 2 rows were left out (0 too long, 0 with"),
        "{last}"
    );

    let (drop, kept, _) = run(&plain(), &rows, &options(20, Truncation::Drop)).unwrap();
    assert_eq!((drop.dropped_long, kept.len()), (1, 2));
    let message = error(&rows[1..], &options(20, Truncation::Drop));
    assert!(
        message.contains("nothing is left of any of the 1 rows; the longest has"),
        "{message}"
    );
    assert!(message.contains("max_length is 20: raise it"), "{message}");
    assert!(error(&rows, &options(1, Truncation::Drop)).contains("give at least 2"));
}

#[test]
fn completions_of_the_same_tokens_are_an_error_that_names_the_rows() {
    let mut rows = vec![pair("Q:", "a", "b", None)];
    // The EOS token stands at the end of both.
    rows.push(pair("Q:", "a", "a<|im_end|>", None));
    let message = error(&rows, &whole());
    let expected = "one row has two completions that can't be told apart; leave them out:\n  \
                    row 2 (Q:): completions 1 and 2 are the same tokens";
    assert_eq!(message, expected);
    rows.extend((0..20).map(|i| pair(&format!("{i}"), "x", "x<|im_end|>", None)));
    let message = error(&rows, &whole());
    assert!(
        message.starts_with("10 rows have two completions"),
        "{message}"
    );
    assert!(
        message.contains("(looking stopped here)") && message.lines().count() == 11,
        "{message}"
    );
}

#[test]
fn the_number_of_threads_does_not_change_the_bytes() {
    let text = |i: usize| "ja ".repeat(i % 9);
    let rows: Vec<Row> = (0..2500)
        .map(|i| pair(&format!("{i}?"), &text(i), &text(i + 1), Some(i as f64)))
        .collect();
    let with = |threads| {
        let options = CompletionsOptions {
            threads: Some(threads),
            ..options(8, Truncation::KeepEnd)
        };
        run(&plain(), &rows, &options).unwrap()
    };
    let ((one, _, bytes), (three, _, others)) = (with(1), with(3));
    assert_eq!(one, three);
    assert!(bytes == others);
}

#[test]
fn a_damaged_file_is_an_error_or_other_rows_but_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("completions.arrow");
    let row = |ids, prompt, group| Completion {
        ids,
        prompt,
        group,
        value: 1.0,
    };
    let mut writer = CompletionsWriter::create(&path).unwrap();
    writer.push(row(&[1, 2, 3], 2, 0)).unwrap();
    writer.push(row(&[1, 2, 4], 2, 0)).unwrap();
    writer.push(row(&[5], 0, 3)).unwrap();
    for (bad, message) in [
        (
            row(&[1], 2, 3),
            "completion 4 has 1 tokens and a prompt of 2",
        ),
        (
            row(&[1], 0, 2),
            "completion 4 is of group 2 and comes after group 3",
        ),
    ] {
        assert_eq!(writer.push(bad).unwrap_err().to_string(), message);
    }
    let summary = writer.finish().unwrap();
    assert_eq!(
        (summary.rows, summary.groups, summary.largest_group),
        (3, 2, 2)
    );
    assert_eq!((summary.tokens, summary.completion_tokens), (7, 3));
    let file = Completions::open(&path).unwrap();
    assert_eq!(file.groups().unwrap(), [0..2, 2..3]);
    assert_eq!(file.row(1).unwrap().completion(), [4]);
    let bytes = std::fs::read(&path).unwrap();
    let changed = folder.path().join("changed.arrow");
    for at in 0..bytes.len() {
        for value in [0x00, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            std::fs::write(&changed, &bytes).unwrap();
            if let Ok(file) = Completions::open(&changed) {
                let _ = file
                    .iter()
                    .map(|row| row.map(|row| row.completion().len()))
                    .collect::<Vec<_>>();
                let _ = file.groups();
            }
        }
    }
    let rows = folder.path().join("rows.arrow");
    DatasetWriter::create(&rows, levain_data::Layout::Text)
        .unwrap()
        .finish()
        .unwrap();
    let error = Completions::open(&rows).unwrap_err().to_string();
    assert!(
        error.contains("not a file of tokenized completions"),
        "{error}"
    );
}

//! Tokens and loss masks against TRL's SFTTrainer (tests/golden/make/data_tokens.py), and the tokenizing of datasets.

use std::path::{Path, PathBuf};

use levain_data::{
    ChatTemplate, Dataset, DatasetWriter, Encoder, LossOn, Message, Row, SpecialTokens,
    TokenizeOptions, TokenizeReport, Tokens, TokensWriter, Truncation, tokenize,
};
use serde::Deserialize;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/data")
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Case {
    name: String,
    tokenizer: String,
    template: String,
    loss_on: LossOn,
    max_length: Option<usize>,
    truncation: String,
    rows: Vec<Row>,
    expected: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    ids: Vec<i32>,
    trained: Vec<u8>,
}

#[derive(Deserialize)]
struct Template {
    name: String,
    source: String,
}

fn encoder(tokenizer: &str, template: Option<&str>) -> Encoder {
    let tokens = SpecialTokens {
        bos: Some("<|endoftext|>".into()),
        eos: Some("<|im_end|>".into()),
        pad: Some("<pad>".into()),
        unk: None,
    };
    let templates: Vec<Template> = read("templates.json");
    let source = |name: &str| match templates.iter().find(|template| template.name == name) {
        Some(template) => template.source.clone(),
        None => name.to_owned(),
    };
    let template = template.map(|name| ChatTemplate::new(&source(name), &tokens, None).unwrap());
    let tokenizer = tokenizers::Tokenizer::from_file(folder().join(tokenizer)).unwrap();
    Encoder::new(tokenizer, tokens, template).unwrap()
}

fn run(
    encoder: &Encoder,
    rows: &[Row],
    options: &TokenizeOptions,
) -> anyhow::Result<(TokenizeReport, Tokens, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let (rows_path, tokens_path) = (
        folder.path().join("rows.arrow"),
        folder.path().join("tokens.arrow"),
    );
    let mut writer = DatasetWriter::create(&rows_path, rows[0].layout())?;
    rows.iter().try_for_each(|row| writer.push(row))?;
    writer.finish()?;
    let dataset = Dataset::open(&rows_path)?;
    let writer = TokensWriter::create(&tokens_path)?;
    let report = tokenize(&dataset, encoder, options, writer, &mut |_, _| {})?;
    let bytes = std::fs::read(&tokens_path)?;
    Ok((report, Tokens::open(&tokens_path)?, bytes))
}

#[test]
fn tokens_and_masks_are_those_of_trl() {
    let cases: Vec<Case> = read("tokens.json");
    assert!(cases.len() >= 20);
    let mut found = Vec::new();
    for case in &cases {
        let encoder = encoder(&case.tokenizer, Some(&case.template));
        let truncation = match case.truncation.as_str() {
            "keep_start" => Truncation::KeepStart,
            _ => Truncation::KeepEnd,
        };
        let max_length = case.max_length.unwrap_or(usize::MAX);
        let options = TokenizeOptions {
            max_length,
            truncation,
            loss_on: case.loss_on,
            threads: Some(1),
        };
        let (_, tokens, _) = run(&encoder, &case.rows, &options).unwrap();
        // TRL counts the first token of a row as trained, though nothing predicts it; so it keeps rows of that one token.
        let theirs: Vec<(Vec<i32>, Vec<bool>)> = case
            .expected
            .iter()
            .map(|row| {
                let mut trained: Vec<bool> = row.trained.iter().map(|one| *one == 1).collect();
                trained[0] = false;
                (row.ids.clone(), trained)
            })
            .filter(|(_, trained)| trained.contains(&true))
            .collect();
        let ours: Vec<(Vec<i32>, Vec<bool>)> = tokens
            .iter()
            .map(|row| row.map(|row| (row.ids.to_vec(), row.mask())))
            .collect::<Result<_, _>>()
            .unwrap();
        for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            if ours != theirs {
                let ids: Vec<u32> = ours.0.iter().map(|id| *id as u32).collect();
                let texts = encoder.token_texts(&ids).unwrap();
                let name = format!("{} ({}, {})", case.name, case.tokenizer, case.template);
                found.push(format!(
                    "{name}, row {at}: {texts:?}\n  ours   {ours:?}\n  theirs {theirs:?}"
                ));
            }
        }
        assert_eq!(
            ours.len(),
            theirs.len(),
            "{} ({})",
            case.name,
            case.tokenizer
        );
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn chats() -> Vec<Row> {
    let turns = [
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
        ("assistant", "four\n"),
    ];
    let messages = turns
        .map(|(role, content)| Message::new(role, content))
        .to_vec();
    let system = [vec![Message::new("system", "Be brief.")], messages.clone()].concat();
    vec![
        Row::Messages { messages },
        Row::Messages { messages: system },
    ]
}

/// The texts of the stretches that are trained.
fn trained_texts(encoder: &Encoder, row: &Row, loss_on: LossOn) -> Vec<String> {
    let encoded = encoder.encode(row, loss_on).unwrap();
    let mut stretches: Vec<Vec<u32>> = Vec::new();
    let mut before = false;
    for (id, trained) in encoded.ids.iter().zip(&encoded.trained) {
        if *trained && !before {
            stretches.push(Vec::new());
        }
        if *trained {
            stretches.last_mut().unwrap().push(*id);
        }
        before = *trained;
    }
    stretches
        .iter()
        .map(|ids| encoder.decode(ids, false).unwrap())
        .collect()
}

#[test]
fn every_turn_of_the_assistant_is_trained_with_its_end() {
    let encoder = encoder("tokenizer.json", Some("smollm2"));
    for row in chats() {
        let texts = trained_texts(&encoder, &row, LossOn::Completions);
        assert_eq!(texts, ["two<|im_end|>\n", "four\n<|im_end|>\n"]);
        assert_eq!(
            trained_texts(&encoder, &row, LossOn::LastTurn),
            ["four\n<|im_end|>\n"]
        );
    }
}

#[test]
fn a_question_is_the_prompt_that_the_mask_leaves_out() {
    let encoder = encoder("tokenizer.json", Some("smollm2"));
    for row in chats() {
        let (prompt, answer) = row.question();
        let prompt = encoder.encode_prompt(&prompt).unwrap();
        let encoded = encoder.encode(&row, LossOn::LastTurn).unwrap();
        let first = encoded.trained.iter().position(|trained| *trained).unwrap();
        assert_eq!(prompt, encoded.ids[..first]);
        assert_eq!(answer, Some("four\n"));
    }
}

#[test]
fn a_template_that_rewrites_earlier_turns_is_refused_with_a_way_out() {
    // Thoughts are kept in the last turn only, as some reasoning models do.
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}{{ '<think>' }}\
                  {% endif %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let encoder = encoder("tokenizer.json", Some(source));
    let row = &chats()[0];
    let options = TokenizeOptions::default();
    let error = format!(
        "{:#}",
        run(&encoder, std::slice::from_ref(row), &options).unwrap_err()
    );
    assert!(
        error.starts_with("row 1 (one): the chat template writes"),
        "{error}"
    );
    assert!(
        error.contains("up to turn 2") && error.contains("last_turn"),
        "{error}"
    );
    assert_eq!(
        trained_texts(&encoder, row, LossOn::LastTurn),
        ["<think>four\n<|im_end|>"]
    );
}

#[test]
fn the_number_of_threads_does_not_change_the_bytes() {
    let encoder = encoder("tokenizer_bos.json", Some("smollm2"));
    let rows: Vec<Row> = (0..2500)
        .map(|i| {
            let messages = vec![
                Message::new("user", format!("{i}?")),
                Message::new("assistant", "ja ".repeat(i % 9)),
            ];
            Row::Messages { messages }
        })
        .collect();
    let with = |threads| TokenizeOptions {
        max_length: 64,
        threads: Some(threads),
        ..TokenizeOptions::default()
    };
    let (one, _, one_bytes) = run(&encoder, &rows, &with(1)).unwrap();
    let (three, tokens, three_bytes) = run(&encoder, &rows, &with(3)).unwrap();
    assert_eq!(one, three);
    assert!(one_bytes == three_bytes);
    assert_eq!(
        tokens.lengths().unwrap(),
        tokens
            .iter()
            .map(|row| row.unwrap().len())
            .collect::<Vec<_>>()
    );
    assert_eq!(one.eos_trained, 2500);
    assert_eq!(one.stops["<|im_end|>"], 2500);
}

#[test]
fn a_bos_that_is_there_already_is_not_added_again() {
    let encoder = encoder("tokenizer_bos.json", None);
    let bos = encoder.bos().unwrap();
    let count = |text: &str| {
        let row = Row::Text { text: text.into() };
        encoder
            .encode(&row, LossOn::All)
            .unwrap()
            .ids
            .iter()
            .filter(|id| **id == bos)
            .count()
    };
    assert_eq!((count("hi"), count("<|endoftext|>hi")), (1, 1));
}

#[test]
fn nothing_trained_is_an_error_that_says_why() {
    let encoder = encoder("tokenizer.json", Some("smollm2"));
    let user = Row::Messages {
        messages: vec![Message::new("user", "hi")],
    };
    let error = run(&encoder, &[user], &TokenizeOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(
            "no token of any of the 1 rows is trained; no row has a turn of the assistant"
        ),
        "{error}"
    );
    let options = TokenizeOptions {
        max_length: 10,
        truncation: Truncation::Drop,
        ..TokenizeOptions::default()
    };
    let error = run(&encoder, &chats(), &options).unwrap_err().to_string();
    assert!(error.contains("max_length is 10: raise it"), "{error}");
    let error = run(
        &encoder,
        &chats(),
        &TokenizeOptions {
            max_length: 1,
            ..options
        },
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("leaves no token to predict"), "{error}");
}

#[test]
fn dropped_rows_are_counted_and_named() {
    let encoder = encoder("tokenizer.json", Some("smollm2"));
    let mut rows = chats();
    rows.insert(
        1,
        Row::Messages {
            messages: vec![Message::new("user", "hi")],
        },
    );
    let opening = [("assistant", "I begin"), ("user", "x"), ("assistant", "y")];
    rows.push(Row::Messages {
        messages: opening
            .map(|(role, content)| Message::new(role, content))
            .to_vec(),
    });
    let (report, tokens, _) = run(&encoder, &rows, &TokenizeOptions::default()).unwrap();
    assert_eq!(
        (
            report.rows_read,
            report.dropped_untrained,
            report.opening_turns
        ),
        (4, 1, 1)
    );
    assert_eq!(report.dropped, [1]);
    assert_eq!(tokens.len(), 3);
    assert_eq!(report.lints.len(), 2, "{:?}", report.lints);
}

#[test]
fn an_unknown_special_token_is_an_error() {
    let tokenizer = tokenizers::Tokenizer::from_file(folder().join("tokenizer.json")).unwrap();
    let tokens = SpecialTokens {
        eos: Some("</s>".into()),
        ..SpecialTokens::default()
    };
    let error = Encoder::new(tokenizer, tokens, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the EOS token `</s>` is not in its vocabulary"),
        "{error}"
    );
}

#[test]
fn a_text_is_cut_or_begins_again_as_virtual_tokens() {
    for name in ["tokenizer.json", "tokenizer_bos.json"] {
        let encoder = encoder(name, None);
        let once = encoder.tokenizer().encode_fast("Be brief.", true).unwrap();
        let once = once.get_ids();
        let found = |count: usize| encoder.encode_repeated("Be brief.", count).unwrap();
        assert!(once.len() > 2);
        assert_eq!(found(2), once[..2]);
        assert_eq!(found(once.len()), once);
        let more = found(2 * once.len() + 1);
        assert_eq!(more, [once, once, &once[..1]].concat());
    }
    let plain = encoder("tokenizer.json", None);
    let error = plain.encode_repeated("", 3).unwrap_err().to_string();
    assert!(error.contains("no tokens"), "{error}");
}

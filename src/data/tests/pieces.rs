//! Running text to rows for masked language modelling, with a WordPiece tokenizer such as BERT's.

use formats::TokenizerFiles;
use formats::tokenizer::Masking;
use levain_data::{
    Dataset, DatasetWriter, Encoder, Piece, PiecesReport, Row, Tokens, TokensWriter,
    tokenize_pieces,
};
use serde_json::{Value, json};

const WORDS: [&str; 9] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bread", "##s", "rye", "is",
];

/// A tokenizer of nine words that begins a text with `[CLS]` and ends it with `[SEP]`.
fn files() -> TokenizerFiles {
    let ids = WORDS.iter().enumerate();
    let vocabulary: serde_json::Map<String, Value> = ids
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    let added: Vec<Value> = (0..5)
        .map(|id| {
            json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let special =
        |id: usize, kind: u32| json!({"SpecialToken": {"id": WORDS[id], "type_id": kind}});
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    let known = |id: usize| json!({"id": WORDS[id], "ids": [id], "tokens": [WORDS[id]]});
    let tokenizer = json!({
        "version": "1.0",
        // Left in the file by whoever made it; no row is to be cut or filled by it.
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(2, 0), text("A", 0), special(3, 0)],
            "pair": [special(2, 0), text("A", 0), special(3, 0), text("B", 1), special(3, 1)],
            "special_tokens": {"[CLS]": known(2), "[SEP]": known(3)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    TokenizerFiles {
        tokenizer_json: tokenizer.to_string(),
        masking: Some(Masking {
            cls_token: "[CLS]".to_owned(),
            sep_token: "[SEP]".to_owned(),
            mask_token: "[MASK]".to_owned(),
        }),
        ..TokenizerFiles::default()
    }
}

fn encoder() -> Encoder {
    Encoder::from_files(&files(), None).unwrap()
}

#[test]
fn a_text_is_cut_into_even_pieces_and_nothing_is_lost() {
    let encoder = encoder();
    assert_eq!((encoder.mask(), encoder.tokens_around()), (Some(4), 2));
    let whole = encoder
        .encode_pieces("Rye breads is [MASK] oat", 32)
        .unwrap();
    let expected = Piece {
        ids: vec![2, 7, 5, 6, 8, 4, 1, 3],
        free: vec![false, true, true, true, true, false, false, false],
    };
    assert_eq!(whole, [expected]);

    let text = "breads is rye ".repeat(5);
    let all: Vec<u32> = [5, 6, 8, 7].repeat(5);
    for (room, lengths) in [
        (20, vec![20]),
        (19, vec![10, 10]),
        (9, vec![6, 7, 7]),
        (1, vec![1; 20]),
    ] {
        let pieces = encoder.encode_pieces(&text, room + 2).unwrap();
        let found: Vec<usize> = pieces.iter().map(|piece| piece.ids.len() - 2).collect();
        assert_eq!(found, lengths, "{room}");
        let mut joined = Vec::new();
        for piece in &pieces {
            let (ids, last) = (&piece.ids, piece.ids.len() - 1);
            assert_eq!((ids[0], ids[last]), (2, 3));
            assert_eq!((piece.free[0], piece.free[last]), (false, false));
            joined.extend_from_slice(&ids[1..last]);
        }
        assert_eq!(joined, all);
    }
    assert!(encoder.encode_pieces("", 8).unwrap().is_empty());
    let error = encoder.encode_pieces("rye", 2).unwrap_err().to_string();
    assert!(error.contains("max_length: 2 leaves no room"), "{error}");
}

fn run(
    rows: &[Row],
    max_length: usize,
    threads: usize,
) -> anyhow::Result<(PiecesReport, Tokens, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (
        folder.path().join("rows.arrow"),
        folder.path().join("tokens.arrow"),
    );
    let mut writer = DatasetWriter::create(&from, rows[0].layout())?;
    for row in rows {
        writer.push(row)?;
    }
    writer.finish()?;
    let dataset = Dataset::open(&from)?;
    let writer = TokensWriter::create(&to)?;
    let report = tokenize_pieces(
        &dataset,
        &encoder(),
        max_length,
        Some(threads),
        writer,
        &mut |_, _| {},
    )?;
    Ok((report, Tokens::open(&to)?, std::fs::read(&to)?))
}

#[test]
fn a_dataset_becomes_the_pieces_of_its_texts() {
    let texts = ["rye", "", "[SEP] oat", "bread is bread is rye"];
    let rows = |make: &dyn Fn(String) -> Row| -> Vec<Row> {
        texts.iter().map(|text| make((*text).to_owned())).collect()
    };
    let plain = rows(&|text| Row::Text { text });
    let (report, tokens, bytes) = run(&plain, 5, 1).unwrap();
    assert_eq!((report.rows_read, report.cut, report.dropped), (4, 1, 2));
    // One text of one token, and one of two pieces; their special tokens are not free.
    assert_eq!((report.tokens.rows, report.tokens.trained), (3, 6));
    let found: Vec<Vec<i32>> = tokens.iter().map(|row| row.unwrap().ids.to_vec()).collect();
    assert_eq!(
        found,
        [vec![2, 7, 3], vec![2, 5, 8, 3], vec![2, 5, 8, 7, 3]]
    );
    assert_eq!(tokens.row(1).unwrap().mask(), [false, true, true, false]);

    let labelled = rows(&|text| Row::Labelled {
        text,
        label: "good".to_owned(),
    });
    assert_eq!(run(&labelled, 5, 3).unwrap().2, bytes);
    assert_eq!(run(&plain, 5, 3).unwrap().2, bytes);

    let nothing = [Row::Text {
        text: "oat [CLS]".to_owned(),
    }];
    let error = run(&nothing, 5, 1).unwrap_err().to_string();
    assert!(error.contains("none of the 1 texts"), "{error}");
    let turns = [Row::PromptCompletion {
        prompt: "rye".to_owned(),
        completion: "is".to_owned(),
    }];
    let error = format!("{:#}", run(&turns, 5, 1).unwrap_err());
    assert!(
        error.contains("row 1") && error.contains("format: text"),
        "{error}"
    );
}

//! Model files that are cut short, lie, or do not belong together, through the whole program: an error that names the file, nothing
//! kept of them, and a next run that works.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Kitchen, checkout, files, tiny};

/// What is done to the model's place, and the words that the error has.
type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a [&'a str]);

/// Changes a file's bytes.
fn change(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&path).unwrap();
    let before = bytes.clone();
    change(&mut bytes);
    assert_ne!(bytes, before, "{} is as it was", path.display());
    fs::write(&path, bytes).unwrap();
}

/// Replaces the first place where `from` stands by `to`.
fn edit(path: PathBuf, from: &str, to: &str) {
    change(path, |bytes| {
        let found: Vec<usize> = bytes
            .windows(from.len())
            .enumerate()
            .filter(|(_, window)| *window == from.as_bytes())
            .map(|(at, _)| at)
            .collect();
        assert!(!found.is_empty(), "there is no {from}");
        bytes.splice(found[0]..found[0] + from.len(), to.bytes());
    });
}

/// Runs a recipe with each damage in a kitchen of its own, and again with the model as it should be.
fn assert_refused(source: &str, place: &dyn Fn(&Kitchen), cases: &[Case<'_>]) {
    for (what, damage, words) in cases {
        let kitchen = Kitchen::new(4);
        place(&kitchen);
        kitchen.write(
            "model.yaml",
            &format!(
                "levain: 1\nstages:\n  base: {{ kind: load_model, source: {source} }}\n  thin: {{ kind: lora, model: base, r: 2 }}\n  \
                 rows: {{ kind: load_dataset, source: rows.jsonl }}\n"
            ),
        );
        damage(&kitchen.path().join(source));
        let said = kitchen.say("run model.yaml --json --keep-going").expect(1);
        for word in *words {
            assert!(
                said.err.contains(word),
                "{what}: `{word}` is missing in:\n{}",
                said.err
            );
        }
        assert!(
            !said.err.contains("panicked") && !said.err.contains("BUG"),
            "{what}:\n{}",
            said.err
        );
        let answer = said.json();
        assert_eq!(answer["failures"][0]["stage"], "base", "{what}: {answer:#}");
        assert_eq!(
            answer["counts"]["ran"], 1,
            "{what}: what needs no model goes on"
        );
        assert_eq!(
            files(&kitchen.cache().join("entries")).len(),
            1,
            "{what}: something was kept of it"
        );
        assert!(
            files(&kitchen.cache().join("tmp")).is_empty(),
            "{what}: something is left of it"
        );

        // What else a person asks of it is refused or answered, and never crashes.
        kitchen.say("show model.yaml base").expect(2);
        place(&kitchen);
        let answer = kitchen.say("run model.yaml --json").expect(0).json();
        assert_eq!(
            (&answer["counts"]["ran"], &answer["counts"]["hits"]),
            (&2.into(), &1.into()),
            "{what}"
        );
        kitchen.say("cache verify").expect(0);
    }
}

#[test]
fn folders_that_lie_are_refused_by_name() {
    let weights = |folder: &Path| folder.join("model.safetensors");
    let config = |folder: &Path| folder.join("config.json");
    let cut = |to: usize| move |folder: &Path| change(weights(folder), |bytes| bytes.truncate(to));
    let cases: &[Case<'_>] = &[
        (
            "a width that the weights do not have",
            &|f| edit(config(f), "\"hidden_size\": 32", "\"hidden_size\": 64"),
            &[
                "model.safetensors",
                "model.embed_tokens.weight",
                "[280, 32]",
                "[280, 64]",
            ],
        ),
        (
            "a layer that is not there",
            &|f| {
                edit(
                    config(f),
                    "\"num_hidden_layers\": 2",
                    "\"num_hidden_layers\": 3",
                )
            },
            &["model.safetensors", "model.layers.2", "missing"],
        ),
        (
            "a layer too many",
            &|f| {
                edit(
                    config(f),
                    "\"num_hidden_layers\": 2",
                    "\"num_hidden_layers\": 1",
                )
            },
            &["model.safetensors", "model.layers.1", "not expected"],
        ),
        (
            "fewer embeddings than tokens",
            &|f| edit(config(f), "\"vocab_size\": 280", "\"vocab_size\": 279"),
            &[
                "model.safetensors",
                "model.embed_tokens.weight",
                "[280, 32]",
                "[279, 32]",
            ],
        ),
        (
            "another architecture",
            &|f| {
                edit(
                    config(f),
                    "\"model_type\": \"llama\"",
                    "\"model_type\": \"mamba\"",
                )
            },
            &["config.json", "mamba", "llama"],
        ),
        (
            "half a config",
            &|f| change(config(f), |bytes| bytes.truncate(300)),
            &["config.json", "line"],
        ),
        (
            "another tokenizer",
            &|f| {
                let other = checkout().join("tests/golden/data/data/tokenizer.json");
                fs::copy(other, f.join("tokenizer.json")).unwrap();
            },
            &["token", "embeddings"],
        ),
        (
            "half a tokenizer",
            &|f| change(f.join("tokenizer.json"), |bytes| bytes.truncate(2000)),
            &["tokenizer.json"],
        ),
        (
            "no tokenizer",
            &|f| fs::remove_file(f.join("tokenizer.json")).unwrap(),
            &["tokenizer.json"],
        ),
        (
            "no weights",
            &|f| fs::remove_file(weights(f)).unwrap(),
            &[".safetensors", "config.json"],
        ),
        (
            "pickled weights",
            &|f| fs::rename(weights(f), f.join("pytorch_model.bin")).unwrap(),
            &["pickled", "pytorch_model.bin"],
        ),
        ("no byte", &cut(0), &["model.safetensors", "empty"]),
        ("some bytes", &cut(5), &["model.safetensors", "5 bytes"]),
        (
            "half a header",
            &cut(700),
            &["model.safetensors", "cut short"],
        ),
        (
            "half the numbers",
            &cut(40_000),
            &["model.safetensors", "bytes"],
        ),
        (
            "the last byte",
            &|f| change(weights(f), |bytes| bytes.truncate(bytes.len() - 1)),
            &["model.safetensors", "bytes"],
        ),
        (
            "a byte too many",
            &|f| change(weights(f), |bytes| bytes.push(0)),
            &["model.safetensors", "1 bytes after"],
        ),
        (
            "a header as long as the world",
            &|f| change(weights(f), |bytes| bytes[..8].fill(0xff)),
            &["model.safetensors", "18446744073709551615"],
        ),
        (
            "numbers of another size",
            &|f| edit(weights(f), "\"F32\"", "\"F16\""),
            &["model.safetensors", "needs"],
        ),
        (
            "a shape of another size",
            &|f| edit(weights(f), "[280,32]", "[281,32]"),
            &["model.safetensors", "needs"],
        ),
    ];
    assert_refused("model", &|kitchen| tiny::model(kitchen, "model"), cases);
}

#[test]
fn gguf_files_that_lie_are_refused_by_name() {
    let whole = checkout().join("tests/golden/data/formats/tiny.gguf");
    let cut = |to: usize| move |file: &Path| change(file.to_owned(), |bytes| bytes.truncate(to));
    let put = |at: usize, number: u64| {
        move |file: &Path| {
            change(file.to_owned(), |bytes| {
                bytes[at..at + 8].copy_from_slice(&number.to_le_bytes())
            })
        }
    };
    let cases: &[Case<'_>] = &[
        ("no byte", &cut(0), &["tiny.gguf"]),
        ("a magic alone", &cut(4), &["tiny.gguf"]),
        ("half the words", &cut(3000), &["tiny.gguf"]),
        ("half the numbers", &cut(20_000), &["tiny.gguf"]),
        (
            "the last byte",
            &|f| change(f.to_owned(), |bytes| bytes.truncate(bytes.len() - 1)),
            &["tiny.gguf"],
        ),
        (
            "another magic",
            &|f| edit(f.to_owned(), "GGUF", "GGML"),
            &["tiny.gguf"],
        ),
        (
            "another version",
            &|f| change(f.to_owned(), |bytes| bytes[4] = 77),
            &["tiny.gguf", "77"],
        ),
        ("tensors without end", &put(8, u64::MAX / 3), &["tiny.gguf"]),
        ("words without end", &put(16, 1 << 40), &["tiny.gguf"]),
        ("a text without end", &put(24, u64::MAX), &["tiny.gguf"]),
        (
            "another architecture",
            &|f| edit(f.to_owned(), "llama", "mamba"),
            &["tiny.gguf", "mamba"],
        ),
        (
            "a tensor of another name",
            &|f| edit(f.to_owned(), "blk.1.attn_q.weight", "blk.7.attn_q.weight"),
            &["tiny.gguf", "layers.1.self_attn.q_proj"],
        ),
    ];
    let place = |kitchen: &Kitchen| {
        fs::copy(&whole, kitchen.path().join("tiny.gguf")).unwrap();
    };
    assert_refused("tiny.gguf", &place, cases);
}

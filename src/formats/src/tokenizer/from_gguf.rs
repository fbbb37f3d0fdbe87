//! A tokenizer.json out of GGUF metadata, as transformers 5.23 builds it (integrations/gguf).

use super::{TokenizerFiles, post_processor};
use crate::gguf::{self, Value as Metadata};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

/// `tokenizer.ggml.token_type` of control tokens, such as `<|im_start|>`.
const CONTROL: i64 = 3;
/// `tokenizer.ggml.token_type` of tokens that a user added, such as `<think>`.
const USER_DEFINED: i64 = 4;

const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before merging.
enum Split {
    /// With the regular expression of GPT-2.
    Gpt2,
    /// With this regular expression.
    Regex(&'static str),
}

/// The cut that transformers uses for a `tokenizer.ggml.pre`. It gives the digit-splitting family
/// (`smollm`, `starcoder`...) the plain GPT-2 expression, where llama.cpp cuts before every digit first;
/// transformers is the reference here. Names that transformers does not know, and silently treats as
/// GPT-2, are refused.
fn split_of(pre: &str) -> Result<Split> {
    Ok(match pre {
        "gpt-2" | "gpt2" | "default" | "smollm" | "starcoder" | "refact" | "command-r"
        | "codeshell" | "exaone" | "minerva-7b" | "mpt" | "olmo" | "jais" | "trillion"
        | "phi-2" | "roberta-bpe" | "gigachat" => Split::Gpt2,
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "smaug-bpe" | "dbrx" => {
            Split::Regex(LLAMA3_SPLIT)
        }
        "qwen2" | "deepseek-r1-qwen" | "megrez" => Split::Regex(QWEN2_SPLIT),
        other => bail!(
            "the metadata tokenizer.ggml.pre is {other:?}, which is not supported; supported are smollm, gpt-2, starcoder, llama-bpe, qwen2 and their relatives: take the model as a Hugging Face folder"
        ),
    })
}

impl TokenizerFiles {
    /// Builds the tokenizer that a GGUF file describes: byte-level BPE (`gpt2`) only.
    pub fn from_gguf(file: &gguf::File) -> Result<TokenizerFiles> {
        build(file)
            .with_context(|| format!("cannot build the tokenizer of {}", file.path().display()))
    }
}

fn build(file: &gguf::File) -> Result<TokenizerFiles> {
    let model = file.require("tokenizer.ggml.model", "text", Metadata::as_str)?;
    ensure!(
        model == "gpt2",
        "the metadata tokenizer.ggml.model is {model:?}; supported is \"gpt2\", byte-level BPE: take the model as a Hugging Face folder"
    );
    let split = split_of(file.text("tokenizer.ggml.pre")?.unwrap_or("default"))?;
    let tokens = file.require(
        "tokenizer.ggml.tokens",
        "a list of texts",
        Metadata::as_texts,
    )?;
    let kinds = match file.metadata().get("tokenizer.ggml.token_type") {
        None => vec![1; tokens.len()],
        Some(value) => (value.as_integers())
            .filter(|kinds| kinds.len() == tokens.len())
            .ok_or_else(|| {
                anyhow!(
                    "the metadata tokenizer.ggml.token_type is {value}, expected {} whole numbers, one for each token",
                    tokens.len()
                )
            })?,
    };
    let alphabet = ByteAlphabet::new();
    let vocabulary = read_vocabulary(tokens, &alphabet)?;
    let merges = read_merges(file, &vocabulary)?;
    let special = |name: &str| -> Result<Option<String>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = file.count(&key)? else {
            return Ok(None);
        };
        match tokens.get(id) {
            Some(token) => Ok(Some(token.clone())),
            None => bail!("{key} is {id}, but there are {} tokens", tokens.len()),
        }
    };
    let (bos, eos) = (special("bos")?, special("eos")?);
    let (unk, pad) = (special("unknown")?, special("padding")?);

    // Added tokens are matched whole in the text: control tokens, the named ones, `<|endoftext|>`
    // (special in every GPT-2 tokenizer of transformers), and those a user added.
    let mut added = BTreeMap::new();
    for (token, kind) in tokens.iter().zip(&kinds) {
        if *kind == CONTROL || *kind == USER_DEFINED {
            // One that is not spelled in the alphabet is in the vocabulary under another spelling.
            if let Some(id) = vocabulary.get(token.as_str()) {
                added.insert(*id, (token.as_str(), *kind == CONTROL));
            }
        }
    }
    let named = [&bos, &eos, &unk, &pad]
        .into_iter()
        .flatten()
        .map(String::as_str);
    for token in named.chain(["<|endoftext|>"]) {
        if let Some(id) = vocabulary.get(token) {
            added.insert(*id, (token, true));
        }
    }
    let added: Vec<Value> = (added.into_iter())
        .map(|(id, (content, special))| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special,
            })
        })
        .collect();

    let add_bos = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(false) && bos.is_some();
    let add_eos = file.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false) && eos.is_some();
    let mut by_id: Vec<(&str, u32)> = vocabulary.iter().map(|(t, id)| (t.as_str(), *id)).collect();
    by_id.sort_by_key(|(_, id)| *id);
    let vocabulary: Map<String, Value> = (by_id.into_iter())
        .map(|(token, id)| (token.to_owned(), json!(id)))
        .collect();
    let mut tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer(split),
        "post_processor": null,
        "decoder": byte_level(true, true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": merges,
        },
    });
    tokenizer["post_processor"] = post_processor(
        &tokenizer,
        bos.as_deref().filter(|_| add_bos),
        eos.as_deref().filter(|_| add_eos),
    )?;
    Ok(TokenizerFiles {
        tokenizer_json: tokenizer.to_string(),
        chat_template: file.text("tokenizer.chat_template")?.map(str::to_owned),
        bos_token: bos,
        eos_token: eos,
        unk_token: unk,
        pad_token: pad,
        add_bos,
        add_eos,
        masking: None,
    })
}

fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn pre_tokenizer(split: Split) -> Value {
    match split {
        Split::Gpt2 => byte_level(false, true),
        Split::Regex(regex) => json!({
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated",
                    "invert": false,
                },
                byte_level(false, false),
            ],
        }),
    }
}

/// GPT-2's spelling of bytes as printable characters.
struct ByteAlphabet([char; 256]);

impl ByteAlphabet {
    fn new() -> ByteAlphabet {
        let mut next = 0x100;
        ByteAlphabet(std::array::from_fn(|byte| match byte as u8 {
            printable @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(printable),
            _ => {
                let letter = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
                next += 1;
                letter
            }
        }))
    }

    /// The token as the vocabulary spells it: as it is, unless it uses other characters.
    fn spell(&self, token: &str) -> String {
        if token.chars().all(|letter| self.0.contains(&letter)) {
            return token.to_owned();
        }
        token
            .bytes()
            .map(|byte| self.0[usize::from(byte)])
            .collect()
    }
}

fn read_vocabulary(tokens: &[String], alphabet: &ByteAlphabet) -> Result<HashMap<String, u32>> {
    let mut vocabulary = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        let id = u32::try_from(id)?;
        if let Some(other) = vocabulary.insert(alphabet.spell(token), id) {
            bail!("the tokens {other} and {id} of tokenizer.ggml.tokens are both {token:?}");
        }
    }
    Ok(vocabulary)
}

fn read_merges(
    file: &gguf::File,
    vocabulary: &HashMap<String, u32>,
) -> Result<Vec<(String, String)>> {
    let key = "tokenizer.ggml.merges";
    let lines = file.require(key, "a list of texts", Metadata::as_texts)?;
    let mut merges = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        let Some((left, right)) = line.split_once(' ').filter(|(_, r)| !r.contains(' ')) else {
            bail!(
                "the merge {index} of {key} is {line:?}, expected two tokens with a space between"
            );
        };
        for token in [left, right, &format!("{left}{right}")] {
            ensure!(
                vocabulary.contains_key(token),
                "the merge {index} of {key}, {line:?}, needs the token {token:?}, which is not in tokenizer.ggml.tokens"
            );
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

//! A model's tokenizer as files: tokenizer.json, its settings and the chat template.

mod from_gguf;

use crate::json;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The largest tokenizer file that is read, in bytes.
const MAXIMUM_FILE: u64 = 256 << 20;

/// Everything that turns text into token ids and conversations into text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizerFiles {
    /// The content of tokenizer.json.
    pub tokenizer_json: String,
    /// The Jinja template that turns a conversation into text.
    pub chat_template: Option<String>,
    /// The token before every text.
    pub bos_token: Option<String>,
    /// The token that ends a text.
    pub eos_token: Option<String>,
    /// The token for what the vocabulary lacks.
    pub unk_token: Option<String>,
    /// The token that fills rows up.
    pub pad_token: Option<String>,
    /// True if encoding with special tokens puts the BOS token in front.
    pub add_bos: bool,
    /// True if encoding with special tokens puts the EOS token behind.
    pub add_eos: bool,
    /// The special tokens of an encoder; a language model's tokenizer has none of them.
    pub masking: Option<Masking>,
}

/// The special tokens of an encoder's tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masking {
    /// The token before a text, `[CLS]`.
    pub cls_token: String,
    /// The token behind a text, `[SEP]`.
    pub sep_token: String,
    /// The token that stands for a hidden one, `[MASK]`.
    pub mask_token: String,
}

/// BERT's names of its special tokens, where no settings say others: the three of an encoder, padding and what the vocabulary lacks.
const BERT_TOKENS: [&str; 5] = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"];

impl TokenizerFiles {
    /// Reads the files of a Hugging Face model from pairs of the name in the model and the path on disk:
    /// tokenizer.json, and if there, tokenizer_config.json, special_tokens_map.json, chat_template.jinja.
    pub fn from_folder_files(files: &[(String, PathBuf)]) -> Result<TokenizerFiles> {
        let find = |name: &str| files.iter().find(|file| file.0 == name).map(|file| &file.1);
        let Some(path) = find("tokenizer.json") else {
            let names: Vec<&str> = files.iter().map(|file| file.0.as_str()).collect();
            bail!(
                "no tokenizer.json among the files [{}]; save the tokenizer with transformers' save_pretrained",
                names.join(", ")
            );
        };
        let mut tokenizer_json = json::read_text(path, MAXIMUM_FILE)?;
        let mut tokenizer: Value = json::parse(&tokenizer_json, path)?;
        ensure!(
            tokenizer.get("model").is_some_and(Value::is_object),
            "{}: there is no \"model\"; this is not a tokenizer.json",
            path.display()
        );
        let object = |name: &str| -> Result<Map<String, Value>> {
            match find(name) {
                Some(path) => json::parse_object(&json::read_text(path, MAXIMUM_FILE)?, path),
                None => Ok(Map::new()),
            }
        };
        let config = object("tokenizer_config.json")?;
        let special = object("special_tokens_map.json")?;
        let token = |key: &str| -> Result<Option<String>> {
            let value = [&config, &special]
                .into_iter()
                .find_map(|map| map.get(key).filter(|value| !value.is_null()));
            value.map(|value| token_text(key, value)).transpose()
        };
        let chat_template = match find("chat_template.jinja") {
            Some(path) => Some(json::read_text(path, MAXIMUM_FILE)?),
            None => read_template(config.get("chat_template"))?,
        };
        let (bos_token, eos_token) = (token("bos_token")?, token("eos_token")?);
        let stored = stored_ends(&tokenizer, bos_token.as_deref(), eos_token.as_deref());
        let flag = |key: &str| config.get(key).and_then(Value::as_bool);
        let (add_bos, add_eos) = (flag("add_bos_token"), flag("add_eos_token"));
        let wanted = (
            add_bos.unwrap_or(stored.0) && bos_token.is_some(),
            add_eos.unwrap_or(stored.1) && eos_token.is_some(),
        );
        // As in transformers, flags in the settings win over the template in tokenizer.json.
        if wanted != stored {
            let bos = bos_token.as_deref().filter(|_| wanted.0);
            let eos = eos_token.as_deref().filter(|_| wanted.1);
            let processor = post_processor(&tokenizer, bos, eos)
                .with_context(|| format!("cannot read {}", path.display()))?;
            tokenizer["post_processor"] = processor;
            tokenizer_json = tokenizer.to_string();
        }
        let of_bert = |key: &str, name: &str| -> Result<Option<String>> {
            let usual = || is_special(&tokenizer, name).then(|| name.to_owned());
            Ok(token(key)?.or_else(usual))
        };
        let [cls, sep, mask, pad, unk] = BERT_TOKENS;
        let masking = (
            of_bert("cls_token", cls)?,
            of_bert("sep_token", sep)?,
            of_bert("mask_token", mask)?,
        );
        let (mut pad_token, mut unk_token) = (token("pad_token")?, token("unk_token")?);
        // Of a language model's tokenizer, at most one or two of them are there.
        let masking = match masking {
            (Some(cls_token), Some(sep_token), Some(mask_token)) => {
                pad_token = of_bert("pad_token", pad)?;
                unk_token = of_bert("unk_token", unk)?;
                Some(Masking {
                    cls_token,
                    sep_token,
                    mask_token,
                })
            }
            _ => None,
        };
        Ok(TokenizerFiles {
            tokenizer_json,
            chat_template,
            bos_token,
            eos_token,
            unk_token,
            pad_token,
            add_bos: wanted.0,
            add_eos: wanted.1,
            masking,
        })
    }

    /// Reads the same files from a folder.
    pub fn load(folder: &Path) -> Result<TokenizerFiles> {
        let names = [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
        ];
        let files: Vec<(String, PathBuf)> = (names.iter())
            .map(|name| ((*name).to_owned(), folder.join(name)))
            .filter(|(_, path)| path.is_file())
            .collect();
        TokenizerFiles::from_folder_files(&files)
            .with_context(|| format!("cannot load the tokenizer in {}", folder.display()))
    }

    /// Writes tokenizer.json and tokenizer_config.json, which transformers' `AutoTokenizer` loads.
    /// Equal tokenizers give equal bytes.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut config = Map::new();
        let tokens = [
            ("bos_token", &self.bos_token),
            ("chat_template", &self.chat_template),
            ("eos_token", &self.eos_token),
            ("pad_token", &self.pad_token),
            ("unk_token", &self.unk_token),
        ];
        if let Some(masking) = &self.masking {
            for (key, value) in [
                ("cls_token", &masking.cls_token),
                ("mask_token", &masking.mask_token),
                ("sep_token", &masking.sep_token),
            ] {
                config.insert(key.to_owned(), json!(value));
            }
        }
        // Whether BOS and EOS are added stands in tokenizer.json; a second place could disagree.
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        for (key, value) in tokens {
            if let Some(value) = value {
                config.insert(key.to_owned(), json!(value));
            }
        }
        config.insert(
            "tokenizer_class".to_owned(),
            json!("PreTrainedTokenizerFast"),
        );
        let config = serde_json::to_string_pretty(&config)? + "\n";
        for (name, text) in [
            ("tokenizer.json", &self.tokenizer_json),
            ("tokenizer_config.json", &config),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// The tokenizer itself.
    pub fn tokenizer(&self) -> Result<tokenizers::Tokenizer> {
        self.tokenizer_json
            .parse()
            .map_err(|error| anyhow!("the tokenizer.json cannot be used: {error}"))
    }
}

/// A special token in one of Hugging Face's two forms: text, or an object with `content`.
fn token_text(key: &str, value: &Value) -> Result<String> {
    let text = match value {
        Value::Object(fields) => fields.get("content").and_then(Value::as_str),
        value => value.as_str(),
    };
    text.map(str::to_owned)
        .ok_or_else(|| anyhow!("tokenizer settings: {key} should be a token, but is {value}"))
}

/// Whether a tokenizer.json has a special token of this name.
fn is_special(tokenizer: &Value, name: &str) -> bool {
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let mut own = added.filter(|token| token["content"] == name);
    own.any(|token| token["special"] == true)
}

/// A chat template: text, or a list of named ones, of which `default` is taken.
fn read_template(value: Option<&Value>) -> Result<Option<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            match default.map(|entry| text(&entry["template"])) {
                Some(Some(template)) => Ok(Some(template)),
                _ => bail!("tokenizer settings: chat_template has no template named \"default\""),
            }
        }
        Some(value) => match text(value) {
            Some(template) => Ok(Some(template)),
            None => bail!("tokenizer settings: chat_template should be text"),
        },
    }
}

/// Whether the post-processor of a tokenizer.json puts BOS in front and EOS behind.
fn stored_ends(tokenizer: &Value, bos: Option<&str>, eos: Option<&str>) -> (bool, bool) {
    let processor = &tokenizer["post_processor"];
    let nested = processor["processors"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let template = std::iter::once(processor)
        .chain(nested)
        .find(|candidate| candidate["type"] == "TemplateProcessing");
    let Some(single) = template.and_then(|template| template["single"].as_array()) else {
        return (false, false);
    };
    let holds = |piece: Option<&Value>, token: Option<&str>| {
        let id = piece.and_then(|piece| piece["SpecialToken"]["id"].as_str());
        id.is_some() && id == token
    };
    (holds(single.first(), bos), holds(single.last(), eos))
}

/// The post-processor that transformers sets: BOS before and EOS after each text, where given.
fn post_processor(tokenizer: &Value, bos: Option<&str>, eos: Option<&str>) -> Result<Value> {
    let mut special = Map::new();
    for token in [bos, eos].into_iter().flatten() {
        let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
        let id = added
            .into_iter()
            .find(|added| added["content"] == token)
            .map_or(&tokenizer["model"]["vocab"][token], |added| &added["id"])
            .as_u64()
            .ok_or_else(|| anyhow!("the special token {token:?} is not in the vocabulary"))?;
        special.insert(
            token.to_owned(),
            json!({ "id": token, "ids": [id], "tokens": [token] }),
        );
    }
    let pieces = |sequence: &str, type_id: u32| -> Vec<Value> {
        let token = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": type_id } });
        let text = json!({ "Sequence": { "id": sequence, "type_id": type_id } });
        (bos.map(token).into_iter())
            .chain([text])
            .chain(eos.map(token))
            .collect()
    };
    let pair = [pieces("A", 0), pieces("B", 1)].concat();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": pieces("A", 0),
        "pair": pair,
        "special_tokens": special,
    }))
}

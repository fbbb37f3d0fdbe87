//! BERT encoders from outside: settings, the names that files have had, what is missing, strange or of another shape; and the special
//! tokens of their tokenizers.

use levain_formats::config::bert::stored_name;
use levain_formats::tokenizer::Masking;
use levain_formats::{
    BertConfig, BertParts, Dtype, ModelConfig, TokenizerFiles, Weights, safetensors,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const WHOLE: BertParts = BertParts {
    pooler: true,
    head: true,
};

fn settings(changes: &[(&str, Value)]) -> String {
    let mut config = json!({
        "model_type": "bert", "vocab_size": 40, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 3, "hidden_act": "gelu", "position_embedding_type": "absolute", "pad_token_id": 0,
        "hidden_dropout_prob": 0.1,
    });
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config.to_string()
}

fn config_with(changes: &[(&str, Value)]) -> anyhow::Result<BertConfig> {
    BertConfig::from_json(&settings(changes), Path::new("some/config.json"))
}

/// A file of tensors of zeros.
fn write(folder: &Path, tensors: &[(String, Vec<usize>)]) -> Weights {
    let tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape)| {
            let count: usize = shape.iter().product();
            (name.clone(), Dtype::F32, shape.clone(), vec![0; 4 * count])
        })
        .collect();
    let path = folder.join("model.safetensors");
    safetensors::write_file(&path, &tensors, &[("format", "pt")]).unwrap();
    Weights::open(&path).unwrap()
}

#[test]
fn settings_and_defaults_are_those_of_transformers() {
    let config = config_with(&[]).unwrap();
    assert_eq!(config.max_position_embeddings, 512);
    assert_eq!((config.type_vocab_size, config.layer_norm_eps), (2, 1e-12));
    assert_eq!((config.head_dim(), config.pad_token_id), (4, Some(0)));
    let linears = config.linear_shapes();
    assert_eq!(linears.len(), 12);
    let last = ("bert.encoder.layer.1.output.dense".to_owned(), 12, 20);
    assert_eq!(linears[11], last);
    // 5 + 2 · 16 of the encoder, 2 of the pooler, 5 of the head, whose decoder is the embedding.
    assert_eq!(config.tensor_shapes(BertParts::default()).len(), 37);
    assert_eq!(config.tensor_shapes(WHOLE).len(), 44);
    let encoder = (40 + 512 + 2 + 2) * 12 + 2 * (4 * 13 * 12 + 13 * 20 + 21 * 12 + 4 * 12);
    assert_eq!(config.parameter_count(BertParts::default()), encoder);
    let more = 13 * 12 + 13 * 12 + 2 * 12 + 40;
    assert_eq!(config.parameter_count(WHOLE), encoder + more);
    let either = ModelConfig::from_json(&settings(&[]), Path::new("c")).unwrap();
    assert_eq!(either, ModelConfig::Bert(config));
    assert_eq!(either.vocab_size(), 40);
}

#[test]
fn settings_of_other_functions_are_refused_by_name() {
    let cases = [
        ("model_type", json!("roberta"), "\"roberta\""),
        ("hidden_act", json!("relu"), "hidden_act is \"relu\""),
        (
            "position_embedding_type",
            json!("relative_key"),
            "position_embedding_type",
        ),
        ("is_decoder", json!(true), "is_decoder"),
        ("add_cross_attention", json!(true), "add_cross_attention"),
        ("tie_word_embeddings", json!(false), "tie_word_embeddings"),
        ("pruned_heads", json!({"0": [1]}), "pruned_heads"),
        (
            "quantization_config",
            json!({"quant_method": "awq"}),
            "quantization_config",
        ),
        ("hidden_size", json!(13), "not a multiple"),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        ("num_hidden_layers", json!(5000), "at most 4096"),
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        (
            "vocab_size",
            json!(1u64 << 40),
            "vocab_size is 1099511627776",
        ),
        ("layer_norm_eps", json!(-1.0), "layer_norm_eps is -1"),
        ("vocab_size", json!("many"), "vocab_size should be"),
        (
            "intermediate_size",
            json!(null),
            "intermediate_size is missing",
        ),
    ];
    for (key, value, word) in cases {
        let error = config_with(&[(key, value)]).unwrap_err().to_string();
        assert!(error.contains(word), "{key}: {error}");
        assert!(error.contains("some/config.json"), "{error}");
    }
    for (key, value) in [
        ("pruned_heads", json!({})),
        ("hidden_act", json!(null)),
        ("tie_word_embeddings", json!(true)),
    ] {
        config_with(&[(key, value)]).unwrap();
    }
    let llama = levain_formats::LlamaConfig::from_json(&settings(&[]), Path::new("c")).unwrap_err();
    assert!(llama.to_string().contains("an encoder"), "{llama}");
}

#[test]
fn a_file_is_compared_with_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_with(&[]).unwrap();
    let whole = config.tensor_shapes(WHOLE);
    assert_eq!(config.check(&write(folder.path(), &whole)).unwrap(), WHOLE);
    let bare = config.tensor_shapes(BertParts::default());
    let found = config.check(&write(folder.path(), &bare)).unwrap();
    assert_eq!(found, BertParts::default());

    // What carries nothing may stand beside it.
    let mut more = whole.clone();
    more.push(("bert.embeddings.position_ids".to_owned(), vec![1, 512]));
    more.push(("cls.predictions.decoder.weight".to_owned(), vec![40, 12]));
    more.push(("cls.predictions.decoder.bias".to_owned(), vec![40]));
    more.push(("cls.seq_relationship.weight".to_owned(), vec![2, 12]));
    more.push(("cls.seq_relationship.bias".to_owned(), vec![2]));
    assert_eq!(config.check(&write(folder.path(), &more)).unwrap(), WHOLE);

    let mut wrong = whole.clone();
    wrong.retain(|(name, _)| name != "bert.encoder.layer.1.output.LayerNorm.bias");
    wrong.retain(|(name, _)| name != "bert.pooler.dense.bias");
    wrong[0].1 = vec![41, 12];
    wrong.push(("classifier.weight".to_owned(), vec![2, 12]));
    wrong.push(("cls.predictions.decoder.weight".to_owned(), vec![40, 13]));
    let error = config.check(&write(folder.path(), &wrong)).unwrap_err();
    let error = error.to_string();
    for word in [
        "bert.encoder.layer.1.output.LayerNorm.bias is missing",
        "bert.pooler.dense.bias is missing",
        "bert.embeddings.word_embeddings.weight has the shape [41, 12], expected [40, 12]",
        "classifier.weight of shape [2, 12] is not expected",
        "cls.predictions.decoder.weight of shape [40, 13] is not expected",
        "another task",
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn files_may_have_other_names() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_with(&[]).unwrap();
    let encoder = BertParts {
        pooler: true,
        head: false,
    };
    // Saved from the encoder alone.
    let plain: Vec<_> = (config.tensor_shapes(encoder).into_iter())
        .map(|(name, shape)| (name.trim_start_matches("bert.").to_owned(), shape))
        .collect();
    let weights = write(folder.path(), &plain);
    assert_eq!(config.check(&weights).unwrap(), encoder);
    let name = "bert.encoder.layer.0.attention.self.query.weight";
    let found = stored_name(&weights, name).unwrap();
    assert_eq!(found, "encoder.layer.0.attention.self.query.weight");
    assert_eq!(stored_name(&weights, "bert.nothing"), None);

    // As the first checkpoints were.
    let old = |name: String| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        let name = name.replace("LayerNorm.bias", "LayerNorm.beta");
        name.replace("cls.predictions.bias", "cls.predictions.decoder.bias")
    };
    let renamed: Vec<_> = (config.tensor_shapes(WHOLE).into_iter())
        .map(|(name, shape)| (old(name), shape))
        .collect();
    let weights = write(folder.path(), &renamed);
    assert_eq!(config.check(&weights).unwrap(), WHOLE);
    let found = stored_name(&weights, "bert.embeddings.LayerNorm.bias").unwrap();
    assert_eq!(found, "bert.embeddings.LayerNorm.beta");

    // Both forms of one tensor are one too many.
    let mut twice = plain;
    twice.push(("bert.pooler.dense.bias".to_owned(), vec![12]));
    let error = config.check(&write(folder.path(), &twice)).unwrap_err();
    assert!(error.to_string().contains("is not expected"), "{error}");
}

/// The files of a tokenizer with these special tokens and these settings.
fn tokenizer(folder: &Path, special: &[&str], settings: Option<Value>) -> TokenizerFiles {
    let added: Vec<Value> = (special.iter().enumerate())
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let file = json!({"version": "1.0", "added_tokens": added, "model": {"type": "WordPiece", "vocab": {}}});
    let mut files: Vec<(String, PathBuf)> = vec![];
    let mut put = |name: &str, value: &Value| {
        std::fs::write(folder.join(name), value.to_string()).unwrap();
        files.push((name.to_owned(), folder.join(name)));
    };
    put("tokenizer.json", &file);
    if let Some(settings) = &settings {
        put("tokenizer_config.json", settings);
    }
    TokenizerFiles::from_folder_files(&files).unwrap()
}

#[test]
fn the_special_tokens_of_an_encoder_are_found_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let bert = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let found = tokenizer(folder.path(), &bert, None);
    let usual = Masking {
        cls_token: "[CLS]".to_owned(),
        sep_token: "[SEP]".to_owned(),
        mask_token: "[MASK]".to_owned(),
    };
    assert_eq!(found.masking, Some(usual));
    assert_eq!(found.pad_token.as_deref(), Some("[PAD]"));
    assert_eq!(found.unk_token.as_deref(), Some("[UNK]"));

    // What the settings say comes first.
    let said = json!({"mask_token": {"content": "<hidden>"}, "pad_token": "[UNK]"});
    let found = tokenizer(folder.path(), &bert, Some(said));
    let masking = found.masking.clone().unwrap();
    assert_eq!(masking.mask_token, "<hidden>");
    assert_eq!(found.pad_token.as_deref(), Some("[UNK]"));

    let again = tempfile::tempdir().unwrap();
    found.save(again.path()).unwrap();
    assert_eq!(TokenizerFiles::load(again.path()).unwrap(), found);

    // A language model's tokenizer has no such roles, even with one of the names.
    let found = tokenizer(folder.path(), &["<s>", "</s>", "[MASK]", "[PAD]"], None);
    assert_eq!((found.masking, found.pad_token), (None, None));
}

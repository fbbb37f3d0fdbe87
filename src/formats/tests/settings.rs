//! Settings files from outside: config.json, tokenizer and PEFT settings in their forms, old and wrong.

mod support;

use levain_formats::peft::{parse_lora_key, tensor_key};
use levain_formats::{AdapterConfig, Dtype, LlamaConfig, RopeScaling, TokenizerFiles, safetensors};
use serde_json::{Value, json};
use std::path::Path;
use support::golden;

fn config_with(changes: &[(&str, Value)]) -> anyhow::Result<LlamaConfig> {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "silu",
    });
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    LlamaConfig::from_json(&config.to_string(), Path::new("some/config.json"))
}

#[test]
fn old_configs_and_defaults_are_those_of_transformers() {
    let config = config_with(&[("pad_token_id", json!(-1)), ("bos_token_id", json!(1))]).unwrap();
    assert_eq!((config.head_dim, config.num_key_value_heads), (8, 4));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 10_000.0));
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(1), None));
    assert!(!config.tie_word_embeddings && config.eos_token_ids.is_empty());
    assert_eq!(
        config.linear_shapes()[6],
        ("model.layers.0.mlp.down_proj".to_owned(), 32, 64)
    );
    assert_eq!(config.linear_shapes().len(), 14);
    let old = config_with(&[
        ("rope_theta", json!(5e5)),
        ("rope_scaling", json!({ "type": "linear", "factor": 2 })),
    ]);
    let old = old.unwrap();
    assert_eq!(old.rope_theta, 5e5);
    assert_eq!(old.rope_scaling, Some(RopeScaling::Linear { factor: 2.0 }));
}

#[test]
fn configs_of_other_models_are_refused_by_name() {
    let cases = [
        ("model_type", json!("mistral"), "\"mistral\""),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("attention_dropout", json!(0.1), "attention_dropout is 0.1"),
        (
            "quantization_config",
            json!({"quant_method": "awq"}),
            "quantization_config",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 4.0}),
            "\"yarn\"",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "linear"}),
            "rope_scaling: factor is missing",
        ),
        (
            "rope_parameters",
            json!({"rope_theta": 0.0}),
            "rope_theta is 0",
        ),
        (
            "num_key_value_heads",
            json!(3),
            "multiple of num_key_value_heads",
        ),
        (
            "num_hidden_layers",
            json!(1_000_000_000u64),
            "num_hidden_layers",
        ),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        (
            "hidden_size",
            json!("32"),
            "hidden_size should be a whole number",
        ),
        ("hidden_size", json!(33), "multiple of num_attention_heads"),
        ("hidden_size", json!(null), "hidden_size is missing"),
        ("vocab_size", json!(u64::MAX), "vocab_size"),
        ("head_dim", json!(7), "head_dim is 7"),
        ("eos_token_id", json!(["x"]), "eos_token_id"),
        (
            "tie_word_embeddings",
            json!(1),
            "tie_word_embeddings should be true or false",
        ),
    ];
    for (key, value, expected) in cases {
        let message = config_with(&[(key, value.clone())])
            .unwrap_err()
            .to_string();
        assert!(message.starts_with("some/config.json: "), "{message}");
        assert!(message.contains(expected), "{key} = {value}: {message}");
    }
}

fn adapter_with(key: &str, value: Value) -> anyhow::Result<AdapterConfig> {
    let mut config = AdapterConfig {
        target_modules: vec!["q_proj".to_owned()],
        ..AdapterConfig::default()
    }
    .to_json();
    config[key] = value;
    AdapterConfig::from_json(&config.to_string(), Path::new("some/adapter_config.json"))
}

#[test]
fn adapter_settings_that_change_the_meaning_are_refused_by_name() {
    let refused = [
        ("peft_type", json!("IA3")),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("rank_pattern", json!({"q_proj": 4})),
        ("layers_to_transform", json!([1])),
        ("exclude_modules", json!(["lm_head"])),
        ("fan_in_fan_out", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("target_modules", json!(".*_proj")),
        ("target_modules", json!([])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("trainable_token_indices", json!([1])),
        ("arrow_config", json!({"top_k": 3})),
        ("a_later_invention", json!(0.5)),
        ("r", json!(0)),
        ("lora_alpha", json!("16")),
        ("lora_dropout", json!(1.0)),
    ];
    for (key, value) in refused {
        let message = adapter_with(key, value).unwrap_err().to_string();
        assert!(
            message.starts_with("some/adapter_config.json: "),
            "{message}"
        );
        assert!(message.contains(key), "{key}: {message}");
    }
    let harmless = [
        ("init_lora_weights", json!("gaussian")),
        ("peft_version", json!("0.9.0")),
        ("a_later_invention", json!(null)),
        ("revision", json!("main")),
    ];
    for (key, value) in harmless {
        adapter_with(key, value).unwrap();
    }
    let all = adapter_with("target_modules", json!("all-linear")).unwrap();
    assert_eq!(all.target_modules, ["all-linear"]);
    assert_eq!(all.to_json()["target_modules"], "all-linear");
}

#[test]
fn adapter_tensor_names_are_parsed_as_they_are_made() {
    let module = "model.layers.3.mlp.up_proj";
    for part in ["lora_A", "lora_B", "lora_magnitude_vector"] {
        assert_eq!(
            parse_lora_key(&tensor_key(module, part)),
            Some((module, part))
        );
    }
    assert_eq!(
        tensor_key("q", "lora_A"),
        "base_model.model.q.lora_A.weight"
    );
    for wrong in [
        "q.lora_A.weight",
        "base_model.model.q.lora_C.weight",
        "base_model.model.lora_A.weight",
        "base_model.model.q.lora_A",
        "",
    ] {
        assert_eq!(parse_lora_key(wrong), None, "{wrong}");
    }
}

#[test]
fn tokenizer_settings_are_read_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let error = || format!("{:#}", TokenizerFiles::load(folder.path()).unwrap_err());
    assert!(error().contains("no tokenizer.json"), "{}", error());
    write("tokenizer.json", "{}");
    assert!(error().contains("there is no \"model\""), "{}", error());
    std::fs::copy(
        golden("tiny/tokenizer.json"),
        folder.path().join("tokenizer.json"),
    )
    .unwrap();

    let bare = TokenizerFiles::load(folder.path()).unwrap();
    assert_eq!(
        (bare.bos_token, bare.chat_template, bare.add_bos),
        (None, None, false)
    );
    let config = json!({
        "bos_token": { "content": "<|im_start|>", "lstrip": false, "special": true },
        "eos_token": null,
        "chat_template": [{ "name": "tool_use", "template": "T" }, { "name": "default", "template": "D" }],
        "add_bos_token": true,
    });
    write("tokenizer_config.json", &config.to_string());
    write(
        "special_tokens_map.json",
        r#"{"bos_token": "<x>", "eos_token": {"content": "<|im_end|>"}}"#,
    );
    let files = TokenizerFiles::load(folder.path()).unwrap();
    assert_eq!(files.bos_token.as_deref(), Some("<|im_start|>"));
    assert_eq!(files.eos_token.as_deref(), Some("<|im_end|>"));
    assert_eq!(files.chat_template.as_deref(), Some("D"));
    // As in transformers, the flag in the settings wins over tokenizer.json.
    assert!(files.add_bos && !files.add_eos);
    let encoding = files.tokenizer().unwrap().encode("a", true).unwrap();
    assert_eq!((encoding.get_ids().len(), encoding.get_ids()[0]), (2, 1));
    write("chat_template.jinja", "J\n");
    assert_eq!(
        TokenizerFiles::load(folder.path())
            .unwrap()
            .chat_template
            .as_deref(),
        Some("J\n")
    );

    write("tokenizer_config.json", r#"{"bos_token": 5}"#);
    assert!(
        error().contains("bos_token should be a token"),
        "{}",
        error()
    );
    write(
        "tokenizer_config.json",
        r#"{"bos_token": "<none>", "add_bos_token": true}"#,
    );
    assert!(
        error().contains("\"<none>\" is not in the vocabulary"),
        "{}",
        error()
    );
    write("tokenizer_config.json", "{");
    assert!(
        error().contains("tokenizer_config.json: EOF"),
        "{}",
        error()
    );
}

#[test]
fn the_writer_refuses_what_no_reader_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    let write = |name: &str, shape: Vec<usize>, bytes: &[u8], twice: bool| {
        let one = (name.to_owned(), Dtype::F32, shape, bytes);
        let tensors = if twice {
            vec![one.clone(), one]
        } else {
            vec![one]
        };
        safetensors::write_file(&path, &tensors, &[]).map_err(|error| error.to_string())
    };
    write("a", vec![1], &[0; 4], false).unwrap();
    assert!(
        write("a", vec![2], &[0; 4], false)
            .unwrap_err()
            .contains("needs 8 bytes, but 4")
    );
    assert!(
        write("a", vec![1], &[0; 4], true)
            .unwrap_err()
            .contains("twice")
    );
    assert!(
        write("__metadata__", vec![1], &[0; 4], false)
            .unwrap_err()
            .contains("reserved")
    );
    assert!(
        write("a", vec![usize::MAX, 2], &[0; 4], false)
            .unwrap_err()
            .contains("too large")
    );
    let nowhere = Path::new("/no/such/folder/x.safetensors");
    let none: [(String, Dtype, Vec<usize>, Vec<u8>); 0] = [];
    assert!(
        safetensors::write_file(nowhere, &none, &[])
            .unwrap_err()
            .to_string()
            .contains("/no/such")
    );
}

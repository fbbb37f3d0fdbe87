//! Files and numbers made by the reference packages (tests/golden/make/formats.py), compared exactly.

mod support;

use levain_formats::gguf::{self, Quantization};
use levain_formats::peft::{match_targets, parse_lora_key, tensor_key};
use levain_formats::{
    AdapterConfig, Dtype, LlamaConfig, RopeScaling, Stored, TokenizerFiles, Weights, safetensors,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use support::{golden, golden_json};

fn hexadecimal(bytes: impl AsRef<[u8]>) -> String {
    (bytes.as_ref().iter())
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn the_data_was_made_by_the_script_beside_it() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/make/formats.py");
    let digest = hexadecimal(Sha256::digest(std::fs::read(script).unwrap()));
    assert_eq!(
        golden_json("made_by.json")["script_sha256"],
        digest,
        "run tests/golden/make/formats.py again"
    );
}

#[test]
fn dequantization_is_that_of_the_gguf_package() {
    let file = Weights::open(&golden("dequantize.safetensors")).unwrap();
    let cases = [
        "F32",
        "F16",
        "BF16",
        "Q4_1",
        "Q8_0",
        "Q4_1.quantized",
        "Q8_0.quantized",
    ];
    for case in cases {
        let name = case.split('.').next().unwrap();
        let quantization = Quantization::ALL
            .into_iter()
            .find(|q| q.name() == name)
            .unwrap();
        let expected = file.read_f32(&format!("{case}.f32")).unwrap();
        let stored = file.bytes(&format!("{case}.bytes")).unwrap();
        let mut numbers = vec![0.0; expected.len()];
        gguf::dequantize(quantization, stored, &mut numbers).unwrap();
        let mut unordered = 0;
        for (index, (ours, theirs)) in numbers.iter().zip(&expected).enumerate() {
            // The payload of a NaN that arithmetic makes is up to the processor; all else is exact.
            if ours.is_nan() && theirs.is_nan() && quantization.block_len() > 1 {
                unordered += 1;
                continue;
            }
            assert_eq!(
                ours.to_bits(),
                theirs.to_bits(),
                "{case}[{index}]: {ours} {theirs}"
            );
        }
        assert!(unordered < numbers.len() / 2, "{case} compares nothing");
    }
}

#[test]
fn a_file_of_python_is_read_and_written_to_the_same_bytes() {
    let path = golden("dtypes.safetensors");
    let weights = Weights::open(&path).unwrap();
    let stored = |name: &str| {
        (
            weights.get(name).unwrap().stored,
            weights.bytes(name).unwrap(),
        )
    };
    assert_eq!(
        stored("i16"),
        (Stored::Plain(Dtype::I16), &[0xd4, 0xfe, 0x2c, 0x01][..])
    );
    assert_eq!(stored("bool"), (Stored::Plain(Dtype::Bool), &[1, 0, 1][..]));
    assert_eq!(stored("u8"), (Stored::Plain(Dtype::U8), &[0, 255][..]));
    assert_eq!(weights.get("bf16").unwrap().shape, [4, 1, 2]);
    assert_eq!(weights.get("scalar").unwrap().shape, [0usize; 0]);
    assert_eq!(weights.read_f32("scalar").unwrap(), [2.5]);
    assert_eq!(weights.read_f32("empty").unwrap(), [0f32; 0]);
    assert_eq!(weights.read_f32("a é\"\\\n name").unwrap(), [1.0]);

    let tensors: Vec<_> = (weights.infos())
        .map(|info| {
            let Stored::Plain(dtype) = info.stored else {
                panic!("{info:?}")
            };
            let bytes = weights.bytes(&info.name).unwrap();
            (info.name.clone(), dtype, info.shape.clone(), bytes)
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.safetensors");
    safetensors::write_file(&copy, &tensors, &[("format", "pt")]).unwrap();
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&path).unwrap());
}

#[test]
fn a_gguf_model_has_the_weights_that_transformers_loads() {
    let ours = Weights::open(&golden("tiny.gguf")).unwrap();
    let theirs = Weights::open(&golden("tiny.safetensors")).unwrap();
    let names: Vec<&str> = ours.infos().map(|info| info.name.as_str()).collect();
    let expected: Vec<&str> = theirs.infos().map(|info| info.name.as_str()).collect();
    assert_eq!(names, expected);
    for info in theirs.infos() {
        assert_eq!(
            ours.get(&info.name).unwrap().shape,
            info.shape,
            "{}",
            info.name
        );
        let (a, b) = (
            ours.read_f32(&info.name).unwrap(),
            theirs.read_f32(&info.name).unwrap(),
        );
        assert!(bits(&a) == bits(&b), "{}", info.name);
    }
    assert!(ours.bytes("model.norm.weight").is_err());
    let message = ours.read_f32("model.nrm.weight").unwrap_err().to_string();
    assert!(
        message.contains("tiny.gguf") && message.contains("model.nrm.weight"),
        "{message}"
    );

    let config = LlamaConfig::from_gguf(ours.gguf().unwrap()).unwrap();
    config.check(&ours).unwrap();
    config.check(&theirs).unwrap();
    let count: usize = ours
        .infos()
        .map(|info| info.shape.iter().product::<usize>())
        .sum();
    assert_eq!(config.parameter_count(), count as u64);
}

#[test]
fn a_gguf_config_is_the_one_of_transformers() {
    let file = gguf::File::open(&golden("tiny.gguf")).unwrap();
    let text = std::fs::read_to_string(golden("tiny/config.json")).unwrap();
    let theirs = LlamaConfig::from_json(&text, Path::new("config.json")).unwrap();
    assert_eq!(LlamaConfig::from_gguf(&file).unwrap(), theirs);
    assert_eq!((file.version(), file.tensors().len()), (3, 20));
}

#[test]
fn configs_of_transformers_are_read_and_written_alike() {
    let scalings = [
        ("default", 10_000.0, None),
        (
            "linear",
            50_000.0,
            Some(RopeScaling::Linear { factor: 4.0 }),
        ),
        (
            "llama3",
            500_000.0,
            Some(RopeScaling::Llama3 {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192,
            }),
        ),
    ];
    for (name, rope_theta, rope_scaling) in scalings {
        let theirs = golden_json(&format!("config_{name}.json"));
        let path = Path::new("config.json");
        let config = LlamaConfig::from_json(&theirs.to_string(), path).unwrap();
        let expected = LlamaConfig {
            vocab_size: 300,
            hidden_size: 64,
            intermediate_size: 96,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 24,
            rms_norm_eps: 1e-5,
            rope_theta,
            tie_word_embeddings: true,
            attention_bias: true,
            mlp_bias: false,
            max_position_embeddings: 256,
            bos_token_id: Some(1),
            eos_token_ids: vec![2, 5],
            pad_token_id: Some(0),
            rope_scaling,
        };
        assert_eq!(config, expected, "{name}");
        let ours = config.to_json();
        assert_eq!(
            LlamaConfig::from_json(&ours.to_string(), path).unwrap(),
            expected
        );
        for (key, value) in ours.as_object().unwrap() {
            if let Some(written) = theirs.get(key).filter(|_| key != "architectures") {
                assert_eq!(value, written, "{name}: {key}");
            }
        }
    }
}

/// Compares a tokenizer with what transformers encoded.
fn check_tokens(files: &TokenizerFiles, expected: &Value, case: &str) {
    let tokenizer = files.tokenizer().unwrap();
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let strings = expected["strings"].as_array().unwrap();
    assert!(strings.len() > 40);
    for (index, text) in strings.iter().enumerate() {
        let text = text.as_str().unwrap();
        for (special, key) in [(true, "ids"), (false, "plain_ids")] {
            let encoding = tokenizer.encode(text, special).unwrap();
            assert_eq!(
                encoding.get_ids(),
                ids(&expected[key][index]),
                "{case} {key} {text:?}"
            );
        }
        let plain = ids(&expected["plain_ids"][index]);
        let decoded = tokenizer.decode(&plain, false).unwrap();
        assert_eq!(
            decoded,
            expected["decoded"][index].as_str().unwrap(),
            "{case} {text:?}"
        );
    }
    for (ours, key) in [
        (&files.bos_token, "bos"),
        (&files.eos_token, "eos"),
        (&files.unk_token, "unk"),
        (&files.pad_token, "pad"),
    ] {
        assert_eq!(ours.as_deref(), expected[key].as_str(), "{case} {key}");
    }
}

#[test]
fn tokenizers_out_of_gguf_encode_as_transformers_does() {
    let ends = [
        ("tiny", false, false),
        ("llama_bpe_ends", true, true),
        ("qwen2_bos", true, false),
        ("no_pre_added", false, false),
        ("smollm_2000", false, false),
    ];
    for (case, add_bos, add_eos) in ends {
        let file = gguf::File::open(&golden(&format!("{case}.gguf"))).unwrap();
        let files = TokenizerFiles::from_gguf(&file).unwrap();
        let expected = golden_json(&format!("{case}_tokens.json"));
        check_tokens(&files, &expected, case);
        assert_eq!((files.add_bos, files.add_eos), (add_bos, add_eos), "{case}");
        assert!(
            files
                .chat_template
                .as_deref()
                .unwrap()
                .contains("<|im_start|>")
        );

        let folder = tempfile::tempdir().unwrap();
        files.save(folder.path()).unwrap();
        let loaded = TokenizerFiles::load(folder.path()).unwrap();
        assert_eq!(loaded, files, "{case}");
    }
}

#[test]
fn a_folder_of_transformers_is_loaded() {
    let files = TokenizerFiles::load(&golden("tiny")).unwrap();
    check_tokens(&files, &golden_json("tiny_tokens.json"), "folder");
    let file = gguf::File::open(&golden("tiny.gguf")).unwrap();
    let from_gguf = TokenizerFiles::from_gguf(&file).unwrap();
    assert_eq!(files.chat_template, from_gguf.chat_template);
    let ours: Value = serde_json::from_str(&from_gguf.tokenizer_json).unwrap();
    let theirs: Value = serde_json::from_str(&files.tokenizer_json).unwrap();
    assert_eq!(ours, theirs);
}

#[test]
fn an_adapter_of_peft_is_read_and_written_alike() {
    let theirs = golden_json("adapter/adapter_config.json");
    let config = AdapterConfig::open(&golden("adapter/adapter_config.json")).unwrap();
    let expected = AdapterConfig {
        r: 4,
        lora_alpha: 10.0,
        lora_dropout: 0.05,
        target_modules: ["1.mlp.up_proj", "down_proj", "q_proj"]
            .map(str::to_owned)
            .into(),
        use_rslora: true,
        base_model_name_or_path: Some("some/base".to_owned()),
        ..AdapterConfig::default()
    };
    assert_eq!(config, expected);
    assert_eq!(config.scale(), 5.0);
    let mut written = config.to_json();
    written["init_lora_weights"] = json!("gaussian"); // Only says where training began.
    assert_eq!(written, theirs);

    let weights = Weights::open(&golden("adapter/adapter_model.safetensors")).unwrap();
    let file = gguf::File::open(&golden("tiny.gguf")).unwrap();
    let linears = LlamaConfig::from_gguf(&file).unwrap().linear_shapes();
    let modules: Vec<String> = serde_json::from_value(golden_json("adapter/modules.json")).unwrap();
    let names: Vec<&str> = linears.iter().map(|linear| linear.0.as_str()).collect();
    let mut targets = match_targets(&config.target_modules, &names).unwrap();
    assert_eq!(config.check(&weights, &linears).unwrap(), targets);
    targets.sort();
    assert_eq!(targets, modules);
    for info in weights.infos() {
        let (module, part) = parse_lora_key(&info.name).unwrap();
        assert_eq!(tensor_key(module, part), info.name);
    }
    let wrong = AdapterConfig { r: 8, ..config };
    let message = wrong.check(&weights, &linears).unwrap_err().to_string();
    assert!(
        message.contains("lora_A.weight has the shape [4, 32], expected [8, 32]"),
        "{message}"
    );
}

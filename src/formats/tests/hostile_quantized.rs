//! Quantized models that are broken or lie: each is named in the one error that the check of a model gives, before any work.

use levain_formats::quantized::{self, State};
use levain_formats::{Dtype, LlamaConfig, ModelConfig, Weights, nf4, safetensors};
use std::path::Path;

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A layer of width 64 whose linears are packed; k and v are of 32 × 64.
const CONFIG: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu"
}"#;
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const K: &str = "model.layers.0.self_attn.k_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const STATE: &str = "quant_state.bitsandbytes__nf4";

fn config() -> LlamaConfig {
    LlamaConfig::from_json(CONFIG, Path::new("config.json")).unwrap()
}

fn values(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0)
        .collect()
}

/// The tensors of a whole model in NF4, with nested scales or plain ones.
fn model(nested: bool) -> Vec<Tensor> {
    let config = config();
    let linears: Vec<String> = (config.linear_shapes().into_iter())
        .map(|(module, ..)| format!("{module}.weight"))
        .collect();
    let mut tensors = Vec::new();
    for (name, shape) in config.tensor_shapes() {
        let count: usize = shape.iter().product();
        if !linears.contains(&name) {
            tensors.push((name, Dtype::BF16, shape, vec![0; 2 * count]));
            continue;
        }
        let weight = nf4::quantize(&values(count), 64, nested, 1).unwrap();
        let state = State {
            block: 64,
            dtype: Dtype::BF16,
            shape: [shape[0], shape[1]],
            nested: match &weight.scales {
                nf4::Scales::Plain(_) => None,
                nf4::Scales::Nested { offset, .. } => Some((nf4::NESTED_BLOCK, f64::from(*offset))),
            },
        };
        tensors.extend(quantized::nf4_tensors(&name, weight, &state));
    }
    tensors
}

/// What the check says of these tensors; nothing where it is content.
fn said(tensors: &[Tensor]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    safetensors::write_file(&path, tensors, &[]).unwrap();
    let weights = Weights::open(&path).unwrap();
    let error = config().check(&weights).err()?;
    let message = format!("{error:#}");
    assert!(message.contains(&*path.to_string_lossy()), "{message}");
    Some(message)
}

/// The place of a part of a weight; of the weight itself where the part has no name.
fn place(tensors: &[Tensor], weight: &str, part: &str) -> usize {
    let name = match part {
        "" => weight.to_owned(),
        part => quantized::part(weight, part),
    };
    let found = tensors.iter().position(|tensor| tensor.0 == name);
    found.unwrap_or_else(|| panic!("there is no {name}"))
}

/// With other bytes in a part of a weight.
fn with_bytes(mut tensors: Vec<Tensor>, weight: &str, part: &str, bytes: Vec<u8>) -> Vec<Tensor> {
    let at = place(&tensors, weight, part);
    let tensor = &mut tensors[at];
    tensor.2 = vec![bytes.len() / tensor.1.size()];
    tensor.3 = bytes;
    tensors
}

/// With something else in the place of a text in a weight's state.
fn with_state(tensors: Vec<Tensor>, weight: &str, from: &str, to: &str) -> Vec<Tensor> {
    let at = place(&tensors, weight, STATE);
    let text = String::from_utf8(tensors[at].3.clone()).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    with_bytes(tensors, weight, STATE, text.replace(from, to).into_bytes())
}

#[track_caller]
fn refused(tensors: &[Tensor], words: &[&str]) {
    let message = said(tensors).expect("it was accepted");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

#[test]
fn models_as_they_should_be_are_fine() {
    for nested in [true, false] {
        assert_eq!(said(&model(nested)), None);
    }
}

#[test]
fn a_state_that_is_cut_short_is_no_json_wherever_it_ends() {
    let whole = model(true);
    let state = whole[place(&whole, Q, STATE)].3.clone();
    for length in 0..state.len() {
        let cut = with_bytes(whole.clone(), Q, STATE, state[..length].to_vec());
        // The root of the error is the parser's: it says where the text ends.
        refused(&cut, &[Q, "line 1"]);
    }
    let long = vec![b' '; (1 << 16) + 1];
    refused(
        &with_bytes(whole.clone(), Q, STATE, long),
        &[Q, "65537 bytes"],
    );
    let bad = with_bytes(whole, Q, STATE, vec![0xff, 0xfe]);
    refused(&bad, &[Q, "utf-8"]);
}

#[test]
fn a_state_that_lies_is_told_what_was_expected() {
    let lies = [
        ("[64, 64]", "[64, 65]", "[64,65]"),
        ("[64, 64]", "[32, 128]", "[32,128]"),
        ("[64, 64]", "[64, -64]", "[64,-64]"),
        ("[64, 64]", "\"all\"", "\"all\""),
        ("\"blocksize\": 64", "\"blocksize\": 48", "blocks of 48"),
        ("\"blocksize\": 64", "\"blocksize\": 0", "blocks of 0"),
        (
            "\"blocksize\": 64",
            "\"blocksize\": -64",
            "not a whole number",
        ),
        (
            "\"blocksize\": 64",
            "\"blocksize\": 1e3",
            "not a whole number",
        ),
        ("\"blocksize\": 64, ", "", "no blocksize"),
        ("\"nf4\"", "\"fp4\"", "fp4"),
        ("\"bfloat16\"", "\"int8\"", "int8"),
        (
            "\"nested_blocksize\": 256",
            "\"nested_blocksize\": 0",
            "nested blocks of 0",
        ),
        (
            "\"nested_dtype\": \"float32\"",
            "\"nested_dtype\": \"bfloat16\"",
            "nested_dtype",
        ),
        ("\"nested_offset\"", "\"offset\"", "no nested_offset"),
    ];
    for (from, to, word) in lies {
        refused(&with_state(model(true), Q, from, to), &[Q, word]);
    }
}

#[test]
fn scales_of_another_number_than_the_blocks_are_refused() {
    // A true block size, but not that of the scales: 64 · 64 values in blocks of 128 have 32 scales.
    let other = with_state(model(false), Q, "\"blocksize\": 64", "\"blocksize\": 128");
    refused(
        &other,
        &[Q, "absmax", "holds 64 numbers", "expected are 32"],
    );
    let fewer = with_bytes(model(false), Q, "absmax", vec![0; 63 * 4]);
    refused(
        &fewer,
        &[Q, "absmax", "holds 63 numbers", "expected are 64"],
    );
    let none = with_bytes(model(false), Q, "absmax", Vec::new());
    refused(&none, &[Q, "absmax", "holds 0 numbers"]);
    let nested = with_bytes(model(true), Q, "absmax", vec![0; 65]);
    refused(
        &nested,
        &[Q, "absmax", "holds 65 numbers", "expected are 64"],
    );
    let two = with_bytes(model(true), Q, "nested_absmax", vec![0; 8]);
    refused(
        &two,
        &[Q, "nested_absmax", "holds 2 numbers", "expected are 1"],
    );
    let map = with_bytes(model(true), Q, "nested_quant_map", vec![0; 255 * 4]);
    refused(&map, &[Q, "nested_quant_map", "expected are 256"]);
    let table = with_bytes(model(true), Q, "quant_map", vec![0; 15 * 4]);
    refused(&table, &[Q, "quant_map", "expected are 16"]);
    let codes = with_bytes(model(true), Q, "", vec![0; 2047]);
    refused(&codes, &[Q, "holds 2047 numbers", "expected are 2048"]);
}

#[test]
fn scales_of_the_other_form_than_the_state_says_are_refused() {
    // Plain scales under a state with nested ones, and the other way round.
    let mut tensors = model(true);
    let (at, from) = (place(&tensors, Q, "absmax"), model(false));
    tensors[at] = from[place(&from, Q, "absmax")].clone();
    refused(&tensors, &[Q, "absmax", "expected are 64 of U8"]);
    let mut tensors = model(false);
    let (at, from) = (place(&tensors, Q, "absmax"), model(true));
    tensors[at] = from[place(&from, Q, "absmax")].clone();
    refused(&tensors, &[Q, "absmax", "expected are 64 of F32"]);
}

#[test]
fn parts_that_are_missing_are_named() {
    for part in [
        "absmax",
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        STATE,
    ] {
        let mut tensors = model(true);
        tensors.remove(place(&tensors, Q, part));
        let name = quantized::part(Q, part);
        refused(&tensors, &[Q, &name]);
    }
}

#[test]
fn fp4_is_refused_by_its_name() {
    let mut tensors = model(true);
    let at = place(&tensors, Q, STATE);
    tensors[at].0 = quantized::part(Q, "quant_state.bitsandbytes__fp4");
    refused(&tensors, &[Q, "FP4", "NF4"]);
}

#[test]
fn int8_weights_need_their_rows_and_shape() {
    let with = |shape: [usize; 2], scales: usize| {
        let mut tensors = model(true);
        tensors.retain(|tensor| !tensor.0.starts_with(K));
        let codes = vec![1; shape[0] * shape[1]];
        tensors.extend(quantized::int8_tensors(K, shape, codes, &vec![1.0; scales]));
        tensors
    };
    assert_eq!(said(&with([32, 64], 32)), None);
    refused(&with([32, 64], 31), &[K, "SCB", "expected are 32"]);
    refused(&with([64, 32], 32), &[K, "[64, 32]", "[32, 64]"]);
    let mut tensors = with([32, 64], 32);
    let scales = quantized::beside(K, "SCB");
    tensors.retain(|tensor| tensor.0 != scales);
    refused(&tensors, &[K, &scales, "missing"]);
}

#[test]
fn everything_that_is_wrong_is_in_one_error() {
    let tensors = with_state(model(true), Q, "\"blocksize\": 64", "\"blocksize\": 48");
    let mut tensors = with_bytes(tensors, K, "absmax", vec![0; 7]);
    tensors.remove(place(&tensors, DOWN, STATE));
    tensors.push(("stray.weight".to_owned(), Dtype::U8, vec![1], vec![0]));
    refused(
        &tensors,
        &[
            Q,
            "blocks of 48",
            K,
            "holds 7 numbers",
            DOWN,
            "stray.weight",
        ],
    );
}

#[test]
fn parts_of_another_way_of_storing_are_strangers() {
    let bytes = |name: String| (name, Dtype::U8, vec![1], vec![0]);
    // Beside plain scales there are none of theirs, beside codes of four bits no scales of rows, and the other way round.
    let mut tensors = model(false);
    tensors.push(bytes(quantized::part(Q, "nested_absmax")));
    refused(&tensors, &["q_proj.weight.nested_absmax", "not expected"]);
    let mut tensors = model(true);
    tensors.push(bytes(quantized::beside(Q, "SCB")));
    refused(&tensors, &["q_proj.SCB", "not expected"]);
    let mut tensors = model(true);
    tensors.retain(|tensor| !tensor.0.starts_with(K));
    tensors.extend(quantized::int8_tensors(
        K,
        [32, 64],
        vec![1; 32 * 64],
        &[1.0; 32],
    ));
    tensors.push(bytes(quantized::part(K, "absmax")));
    refused(&tensors, &["k_proj.weight.absmax", "not expected"]);
    // Nor are there any beside a weight that is not quantized.
    for name in [quantized::part(Q, "absmax"), quantized::beside(Q, "SCB")] {
        let mut tensors = model(true);
        tensors.retain(|tensor| !tensor.0.starts_with(Q));
        tensors.push((
            Q.to_owned(),
            Dtype::BF16,
            vec![64, 64],
            vec![0; 2 * 64 * 64],
        ));
        assert_eq!(said(&tensors), None);
        tensors.push(bytes(name.clone()));
        refused(&tensors, &[&name, "not expected"]);
    }
}

#[test]
fn a_config_says_what_the_weights_are() {
    let described = |tensors: &[Tensor], quantization: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        safetensors::write_file(&path, tensors, &[]).unwrap();
        let weights = Weights::open(&path).unwrap();
        let text = format!("{{\"quantization_config\": {quantization}}}");
        let model = ModelConfig::Llama(config());
        let path = Path::new("some/config.json");
        match quantized::check_described(&text, path, &weights, &model) {
            Ok(remark) => remark,
            Err(error) => Some(error.to_string()),
        }
    };
    let packed = model(true);
    let mut mixed = model(true);
    mixed.retain(|tensor| !tensor.0.starts_with(K));
    let weight = nf4::quantize(&values(32 * 64), 64, false, 1).unwrap();
    let state = State {
        block: 64,
        dtype: Dtype::F16,
        shape: [32, 64],
        nested: None,
    };
    mixed.extend(quantized::nf4_tensors(K, weight, &state));
    let found = described(&mixed, "{ \"load_in_4bit\": true }").unwrap_or_default();
    assert!(found.contains("k_proj") && found.contains("F16"), "{found}");
    let mut plain = Vec::new();
    for (name, shape) in config().tensor_shapes() {
        let count: usize = shape.iter().product();
        plain.push((name, Dtype::BF16, shape, vec![0; 2 * count]));
    }
    for (tensors, quantization, wanted) in [
        (
            &packed,
            "null",
            Some("stored in four bits, and there is no quantization_config"),
        ),
        (
            &packed,
            "{ \"quant_method\": \"bitsandbytes\" }",
            Some("there is no quantization_config that says so"),
        ),
        (&plain, "null", None),
        (
            &packed,
            "{ \"load_in_4bit\": true, \"load_in_8bit\": false }",
            None,
        ),
        (
            &packed,
            "{ \"load_in_8bit\": true }",
            Some("is stored in four"),
        ),
        (
            &packed,
            "{ \"load_in_4bit\": true, \"bnb_4bit_use_double_quant\": true }",
            None,
        ),
        (
            &packed,
            "{ \"load_in_4bit\": true, \"bnb_4bit_use_double_quant\": false }",
            Some("bnb_4bit_use_double_quant is false, but the scales of"),
        ),
        (&plain, "{ \"quant_method\": \"gguf\" }", None),
        (
            &plain,
            "{ \"load_in_4bit\": true }",
            Some("no weight is quantized"),
        ),
        (
            &plain,
            "{ \"load_in_8bit\": true }",
            Some("no weight is quantized"),
        ),
    ] {
        let found = described(tensors, quantization);
        match wanted {
            None => assert_eq!(found, None, "{quantization}"),
            Some(words) => {
                let found = found.unwrap_or_default();
                assert!(
                    found.starts_with("some/config.json: ") && found.contains(words),
                    "{found}"
                );
            }
        }
    }
}

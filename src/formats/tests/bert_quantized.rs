//! Quantized encoders: under any of the names that files have, with a packed pooler as transformers leaves it, and what lies or is out of
//! place, named in the one error of the check; and adapters on encoders under PEFT's names of either class.

use levain_formats::peft::{PeftConfig, stored_key, tensor_key};
use levain_formats::quantized::{self, State};
use levain_formats::{BertConfig, BertParts, Dtype, ModelConfig, Weights, nf4, safetensors};
use serde_json::{Value, json};
use std::path::Path;

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

const WHOLE: BertParts = BertParts {
    pooler: true,
    head: true,
};
const QUERY: &str = "encoder.layer.0.attention.self.query.weight";
const OUTPUT: &str = "encoder.layer.1.output.dense.weight";
const POOLER: &str = "pooler.dense.weight";

/// Two layers of width 16 with 24 inside.
fn config() -> BertConfig {
    let text = json!({
        "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    });
    BertConfig::from_json(&text.to_string(), Path::new("config.json")).unwrap()
}

/// The weight of a linear in NF4 or int8.
fn packed(name: &str, shape: [usize; 2], eight: bool) -> Vec<Tensor> {
    let count = shape[0] * shape[1];
    let values: Vec<f32> = (0..count)
        .map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0)
        .collect();
    if eight {
        let (codes, largest) = quantized::to_int8(&values, shape[1]).unwrap();
        return quantized::int8_tensors(name, shape, codes, &largest);
    }
    let weight = nf4::quantize(&values, 64, true, 1).unwrap();
    let nested = match &weight.scales {
        nf4::Scales::Plain(_) => None,
        nf4::Scales::Nested { offset, .. } => Some((nf4::NESTED_BLOCK, f64::from(*offset))),
    };
    let state = State {
        block: 64,
        dtype: Dtype::F32,
        shape,
        nested,
    };
    quantized::nf4_tensors(name, weight, &state)
}

/// The tensors of an encoder whose layers are packed, and of `more` linears (names without `bert.`) as well; `bare` without `bert.`.
fn model(parts: BertParts, bare: bool, eight: bool, more: &[&str]) -> Vec<Tensor> {
    let config = config();
    let layers = config.linear_shapes();
    let mut tensors = Vec::new();
    for (name, shape) in config.tensor_shapes(parts) {
        let short = name.trim_start_matches("bert.");
        let of_layer = layers.iter().any(|(m, ..)| format!("{m}.weight") == name);
        let stored = if bare { short } else { &name };
        if of_layer || more.contains(&short) {
            tensors.extend(packed(stored, [shape[0], shape[1]], eight));
        } else {
            let count: usize = shape.iter().product();
            tensors.push((stored.to_owned(), Dtype::F32, shape, vec![0; 4 * count]));
        }
    }
    tensors
}

fn nf4_model() -> Vec<Tensor> {
    model(WHOLE, true, false, &[])
}

/// What is made of a file with these tensors.
fn open<T>(tensors: &[Tensor], with: impl FnOnce(&Weights) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    safetensors::write_file(&path, tensors, &[]).unwrap();
    with(&Weights::open(&path).unwrap())
}

#[track_caller]
fn refused(tensors: &[Tensor], words: &[&str]) {
    let error = open(tensors, |weights| config().check(weights).unwrap_err());
    let message = format!("{error:#}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

fn tensor<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    let found = tensors.iter_mut().find(|tensor| tensor.0 == name);
    found.unwrap_or_else(|| panic!("there is no {name}"))
}

#[test]
fn packed_encoders_are_read_under_their_names() {
    let encoder = BertParts {
        pooler: true,
        head: false,
    };
    let described = |eight: bool, weights: &Weights| {
        let said = match eight {
            true => "{\"quantization_config\": {\"load_in_8bit\": true}}",
            false => "{\"quantization_config\": {\"load_in_4bit\": true}}",
        };
        let model = ModelConfig::Bert(config());
        quantized::check_described(said, Path::new("config.json"), weights, &model)
    };
    for (parts, bare) in [(WHOLE, false), (WHOLE, true), (encoder, true)] {
        for eight in [false, true] {
            // transformers packs the pooler and the head's linear, too, unless it is told not to.
            let none: &[&str] = &[];
            for more in [none, &[POOLER]] {
                open(&model(parts, bare, eight, more), |weights| {
                    assert_eq!(config().check(weights).unwrap(), parts);
                    let model = ModelConfig::Bert(config());
                    assert!(model.is_quantized(weights).unwrap());
                    let outside = usize::from(parts.pooler) + usize::from(parts.head);
                    assert_eq!(model.linears_in(weights).len(), 12 + outside);
                    let tensors = model.tensors_in(weights);
                    let dense = quantized::Linear::Dense;
                    let stored = |t: &levain_formats::ModelTensor| t.storage(weights).unwrap();
                    let packed = tensors.iter().filter(|t| stored(t) != dense);
                    assert_eq!(packed.count(), 12 + more.len());
                    let query = tensors.iter().find(|t| t.name == format!("bert.{QUERY}"));
                    let query = query.unwrap();
                    assert_eq!(query.stored == QUERY, bare);
                    assert_eq!((query.linear, &query.shape), (true, &vec![16, 16]));
                    described(eight, weights).unwrap();
                    let error = described(!eight, weights).unwrap_err().to_string();
                    assert!(error.contains("quantization_config says"), "{error}");
                });
            }
        }
    }
}

#[test]
fn what_lies_is_named() {
    let part = |name: &str, word: &str| quantized::part(name, word);
    let state = part(QUERY, "quant_state.bitsandbytes__nf4");
    let mut lies = nf4_model();
    let text = String::from_utf8(tensor(&mut lies, &state).3.clone()).unwrap();
    let other = text.replace("[16, 16]", "[32, 8]").into_bytes();
    assert_ne!(other, text.as_bytes());
    let found = tensor(&mut lies, &state);
    (found.2, found.3) = (vec![other.len()], other);
    refused(
        &lies,
        &[
            QUERY,
            "[32,8], but the model's config asks for [16, 16]",
            "quantize the model again",
        ],
    );

    let mut cut = nf4_model();
    let found = tensor(&mut cut, OUTPUT);
    found.3.pop();
    found.2 = vec![found.3.len(), 1];
    refused(&cut, &[OUTPUT, "191 numbers of U8, expected are 192 of U8"]);

    let mut bare = nf4_model();
    bare.retain(|tensor| tensor.0 != state);
    refused(&bare, &[QUERY, "no", "quant_state"]);

    let mut eight = model(WHOLE, true, true, &[]);
    let scales = quantized::beside(OUTPUT, "SCB");
    let found = tensor(&mut eight, &scales);
    (found.2, found.3) = (vec![15], vec![0; 60]);
    refused(&eight, &[&scales, "15 numbers of F32, expected are 16"]);

    // A packed pooler is looked at as closely.
    let mut pooler = model(WHOLE, true, true, &[POOLER]);
    let scales = quantized::beside(POOLER, "SCB");
    tensor(&mut pooler, &scales).3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&pooler, &[&scales, "is no scale"]);
}

#[test]
fn what_is_out_of_place_is_named() {
    // Parts under the other form of the name belong to nothing.
    let absmax = quantized::part(QUERY, "absmax");
    let mut moved = nf4_model();
    tensor(&mut moved, &absmax).0 = format!("bert.{absmax}");
    refused(&moved, &[&absmax, "is missing"]);
    let mut twice = nf4_model();
    let stranger = format!("bert.{absmax}");
    twice.push((stranger.clone(), Dtype::U8, vec![4], vec![0; 4]));
    refused(&twice, &[&stranger, "is not expected"]);

    // Embeddings and norms are never packed.
    let words = "embeddings.word_embeddings.weight";
    for (name, shape) in [
        (words, vec![40, 16]),
        ("encoder.layer.0.output.LayerNorm.weight", vec![16]),
    ] {
        let mut codes = nf4_model();
        let count: usize = shape.iter().product();
        let found = tensor(&mut codes, name);
        (found.1, found.3) = (Dtype::I8, vec![1; count]);
        refused(&codes, &[name, "holds I8"]);
    }
    let mut codes = nf4_model();
    codes.retain(|tensor| tensor.0 != words);
    codes.extend(packed(words, [40, 16], false));
    refused(&codes, &[words, "[320, 1], expected [40, 16]"]);
}

#[test]
fn a_config_of_another_quantization_is_refused() {
    let with = |quantization: Value| {
        let text = json!({
            "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "quantization_config": quantization,
        });
        BertConfig::from_json(&text.to_string(), Path::new("config.json"))
    };
    let bits = json!({ "quant_method": "bitsandbytes", "load_in_8bit": true });
    assert_eq!(with(bits).unwrap(), config());
    let four = |kind: &str| json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": kind });
    assert_eq!(with(four("nf4")).unwrap(), config());
    let error = with(four("fp4")).unwrap_err().to_string();
    assert!(error.contains("fp4"), "{error}");
}

#[test]
fn transformers_is_told_what_is_not_packed_by_names_of_every_class() {
    let skipped = ["bert.encoder.layer.0.output.dense".to_owned()];
    let found = quantized::unconverted(&ModelConfig::Bert(config()), &skipped);
    let wanted = [
        "encoder.layer.0.output.dense",
        "pooler.dense",
        "cls",
        "classifier",
    ];
    assert_eq!(found, wanted);
}

/// What the check says of an adapter of rank 2 with these settings, whose tensors are for these modules, on a base with these parts.
fn adapted(settings: &Value, modules: &[&str], parts: BertParts) -> anyhow::Result<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_config.json");
    let mut all = json!({ "peft_type": "LORA", "r": 2, "task_type": "FEATURE_EXTRACTION" });
    for (key, value) in settings.as_object().unwrap() {
        all[key] = value.clone();
    }
    std::fs::write(&path, all.to_string()).unwrap();
    let settings = PeftConfig::open(&path).unwrap();
    let mut tensors: Vec<Tensor> = Vec::new();
    for module in modules {
        let (out, input) = match *module {
            name if name.ends_with("intermediate.dense") => (24, 16),
            _ => (16, 16),
        };
        for (part, shape) in [("lora_A", vec![2, input]), ("lora_B", vec![out, 2])] {
            let count: usize = shape.iter().product();
            let zeros = vec![0; 4 * count];
            tensors.push((tensor_key(module, part), Dtype::F32, shape, zeros));
        }
    }
    let base = ModelConfig::Bert(config());
    let linears = open(&model(parts, true, false, &[]), |weights| {
        base.linears_in(weights)
    });
    open(&tensors, |weights| settings.check(weights, &base, &linears))
}

#[test]
fn adapters_on_encoders_have_the_names_of_either_class() {
    let targets = |names: &[&str]| json!({ "target_modules": names });
    let at = |start: &str, part: &str| {
        [0, 1].map(|layer| format!("{start}encoder.layer.{layer}.attention.self.{part}"))
    };
    for start in ["", "bert."] {
        let names = at(start, "query");
        let names = [names[0].as_str(), names[1].as_str()];
        let found = adapted(&targets(&["query"]), &names, WHOLE).unwrap();
        assert_eq!(found, at("bert.", "query"));
        // PEFT writes the whole paths of `all-linear`.
        let found = adapted(&targets(&names), &names, WHOLE).unwrap();
        assert_eq!(found.len(), 2);
        let error = adapted(&targets(&["query"]), &names[..1], WHOLE).unwrap_err();
        assert!(
            error.to_string().contains("lora_A.weight is missing"),
            "{error}"
        );
    }
    // Both forms of one tensor are one too many.
    let (own, bare) = (at("bert.", "query"), at("", "query"));
    let names: Vec<&str> = own.iter().chain(&bare).map(String::as_str).collect();
    let error = adapted(&targets(&["query"]), &names, WHOLE).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("base_model.model.bert.encoder.layer.0"),
        "{error}"
    );
    assert!(error.contains("is not expected"), "{error}");
}

#[test]
fn what_is_outside_of_the_layers_is_adapted_where_the_file_has_it() {
    let dense = json!({ "target_modules": ["intermediate.dense", "pooler.dense"] });
    let layers = [
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.1.intermediate.dense",
    ];
    let names = [layers[0], layers[1], "pooler.dense"];
    let found = adapted(&dense, &names, WHOLE).unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[2], "bert.pooler.dense");
    // The base has no pooler.
    let error = adapted(&dense, &names, BertParts::default()).unwrap_err();
    assert!(error.to_string().contains("pooler.dense"), "{error}");
    // A name that means the pooler, too, of an adapter that was trained without one.
    let all: Vec<String> = (config().linear_shapes().into_iter())
        .map(|(module, ..)| module)
        .filter(|module| module.ends_with("attention.output.dense"))
        .collect();
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    let output = json!({ "target_modules": ["attention.output.dense"] });
    assert_eq!(adapted(&output, &names, WHOLE).unwrap(), all);
    let wide = json!({ "target_modules": ["dense"] });
    let mut some = vec![];
    for layer in 0..2 {
        some.push(format!("encoder.layer.{layer}.attention.output.dense"));
        some.push(format!("encoder.layer.{layer}.intermediate.dense"));
    }
    let names: Vec<&str> = some.iter().map(String::as_str).collect();
    let error = adapted(&wide, &names, WHOLE).unwrap_err().to_string();
    assert!(
        error.contains("output.dense.lora_A.weight is missing"),
        "{error}"
    );
    assert!(!error.contains("pooler"), "{error}");
    // Kinds of adapters that encoders do not have.
    let base = ModelConfig::Bert(config());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_config.json");
    let soft = json!({ "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "token_dim": 16 });
    std::fs::write(&path, soft.to_string()).unwrap();
    let soft = PeftConfig::open(&path).unwrap();
    let tensors = [(
        "prompt_embeddings".to_owned(),
        Dtype::F32,
        vec![3, 16],
        vec![0; 192],
    )];
    let error = open(&tensors, |weights| {
        soft.check(weights, &base, &[]).unwrap_err()
    });
    assert!(error.to_string().contains("language models"), "{error}");
}

#[test]
fn a_key_is_looked_up_under_both_names() {
    let module = "bert.encoder.layer.0.attention.self.query";
    let bare = tensor_key("encoder.layer.0.attention.self.query", "lora_A");
    let file = [(bare.clone(), Dtype::F32, vec![1], vec![0; 4])];
    open(&file, |weights| {
        assert_eq!(stored_key(weights, module, "lora_A"), bare);
        assert_eq!(
            stored_key(weights, module, "lora_B"),
            tensor_key(module, "lora_B")
        );
        let llama = "model.layers.0.self_attn.q_proj";
        assert_eq!(
            stored_key(weights, llama, "lora_A"),
            tensor_key(llama, "lora_A")
        );
    });
}

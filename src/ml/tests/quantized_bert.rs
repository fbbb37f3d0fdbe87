//! Quantized encoders: packed they are what their unpacked values are, under any of the names that files have; only adapters learn on them,
//! and adapters are written and read under PEFT's names of either class.

mod tiny;

use formats::config::{BertConfig, BertParts};
use formats::nf4;
use formats::peft::PeftConfig;
use formats::quantized::{self, State};
use formats::tensors::Weights;
use formats::{Dtype, safetensors};
use ml::kv_cache::Segments;
use ml::{Backbone, Bert, Kind, Params, Pass, Tensor};
use serde_json::{Value, json};
use std::path::Path;
use tiny::{adapter, close, distance, numbers, place, tokens};

const WHOLE: BertParts = BertParts {
    pooler: true,
    head: true,
};
const ALONE: BertParts = BertParts {
    pooler: true,
    head: false,
};

fn config() -> BertConfig {
    let text = r#"{"model_type":"bert","vocab_size":64,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,
        "num_attention_heads":4,"max_position_embeddings":48}"#;
    BertConfig::from_json(text, Path::new("tiny")).unwrap()
}

/// How the linears of the layers are stored, and the pooler's with them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Nf4,
    Int8,
    /// As the numbers that this one stands for.
    Values(bool),
}

/// An encoder from a file with these parts, whose names lack `bert.` where it is `bare`.
fn load(way: Way, parts: BertParts, bare: bool) -> (Bert, Params) {
    let config = config();
    let mut linears = config.linear_shapes();
    linears.extend(config.outside_shapes(BertParts {
        head: false,
        ..parts
    }));
    let mut tensors = Vec::new();
    for (name, shape) in config.tensor_shapes(parts) {
        let extents: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
        let values = match name.ends_with("LayerNorm.weight") {
            true => numbers(&name, &extents, 0.3) + 1.0,
            false => numbers(&name, &extents, 0.3),
        };
        let values: Vec<f32> = Vec::try_from(values.to_kind(Kind::Float).flatten(0, -1)).unwrap();
        let linear = linears.iter().any(|(m, ..)| format!("{m}.weight") == name);
        let stored = match bare {
            true => name.trim_start_matches("bert.").to_owned(),
            false => name,
        };
        match linear {
            true => tensors.extend(packed(&stored, [shape[0], shape[1]], &values, way)),
            false => tensors.push((stored, Dtype::F32, shape, bytes(&values))),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    safetensors::write_file(&path, &tensors, &[("format", "pt")]).unwrap();
    let weights = Weights::open(&path).unwrap();
    let mut params = Params::new();
    let model = Bert::load(&config, &weights, place(Kind::Float), &mut params).unwrap();
    (model, params)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    Dtype::F32.from_f32(values).unwrap()
}

type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

fn packed(name: &str, shape: [usize; 2], values: &[f32], way: Way) -> Vec<Stored> {
    let dense = |values: Vec<f32>| {
        let shape = shape.to_vec();
        vec![(name.to_owned(), Dtype::F32, shape, bytes(&values))]
    };
    match way {
        Way::Nf4 | Way::Values(false) => {
            let weight = nf4::quantize(values, 64, false, 1).unwrap();
            if way != Way::Nf4 {
                let scales = nf4::scales_of(&weight.scales);
                let value = |i: usize| nf4::TABLE[nf4::code(&weight.codes, i)] * scales[i / 64];
                return dense((0..values.len()).map(value).collect());
            }
            let state = State {
                block: 64,
                dtype: Dtype::F32,
                shape,
                nested: None,
            };
            quantized::nf4_tensors(name, weight, &state)
        }
        Way::Int8 | Way::Values(true) => {
            let (codes, largest) = quantized::to_int8(values, shape[1]).unwrap();
            if way != Way::Int8 {
                let value = |(i, code): (usize, &u8)| {
                    f32::from(*code as i8) * (largest[i / shape[1]] / 127.0)
                };
                return dense(codes.iter().enumerate().map(value).collect());
            }
            quantized::int8_tensors(name, shape, codes, &largest)
        }
    }
}

fn states(model: &Bert, pass: Pass, ids: &[i64]) -> Tensor {
    let segments = Segments::new(&[ids.len()], model.place).unwrap();
    model
        .hidden(pass, &model.tokens(ids).unwrap(), &segments)
        .unwrap()
}

#[test]
fn packed_encoders_are_their_values() {
    let ids = tokens(0, 20);
    for (way, eight) in [(Way::Nf4, false), (Way::Int8, true)] {
        let (plain, _) = load(Way::Values(eight), WHOLE, false);
        let wanted = states(&plain, Pass::eval(), &ids);
        assert_eq!(plain.packed_values(), 0);
        for (parts, bare) in [(WHOLE, false), (WHOLE, true), (ALONE, true)] {
            let what = format!("{way:?} {parts:?} bare {bare}");
            let (model, params) = load(way, parts, bare);
            let found = states(&model, Pass::eval(), &ids);
            close(&found, &wanted, 2e-5, &what);
            let first = (found.narrow(0, 0, 1), wanted.narrow(0, 0, 1));
            let pooled = model.pooled(&first.0).unwrap();
            close(&pooled, &plain.pooled(&first.1).unwrap(), 2e-5, &what);
            // Layers of 4 · 32² + 2 · 32 · 48 numbers, and the pooler's 32².
            assert_eq!(model.packed_values(), 2 * (4096 + 3072) + 1024);
            // Only biases are parameters of what is packed.
            let name = "bert.encoder.layer.1.attention.self.query";
            assert!(params.get(&format!("{name}.weight")).is_none());
            assert!(params.get(&format!("{name}.bias")).is_some());
            let backbone = Backbone::Bert(model);
            assert_eq!(backbone.packed_values(), 2 * (4096 + 3072) + 1024);
        }
    }
}

/// Trained numbers with their gradients, of a loss over all states.
fn gradients(model: &Bert, params: &Params) -> Vec<(String, Tensor)> {
    params.zero_grad();
    let found = states(model, Pass::train(5), &tokens(1, 17));
    let loss = (found.to_kind(Kind::Double) * numbers("g", &found.size(), 1.0)).sum(Kind::Double);
    loss.backward();
    let mut all = vec![("loss".to_owned(), loss.detach())];
    for (name, tensor) in params.trained() {
        all.push((name.to_owned(), tensor.grad().copy()));
    }
    all
}

/// Moves B away from zero.
fn moved(params: &Params) {
    ml::no_grad(|| {
        for (name, tensor) in params.trained().filter(|(name, _)| name.contains("lora_B")) {
            let fresh = numbers(name, &tensor.size(), 0.2).to_kind(tensor.kind());
            tensor.shallow_clone().copy_(&fresh);
        }
    });
}

#[test]
fn adapters_learn_on_packed_encoders_as_on_their_values() {
    for (way, eight) in [(Way::Nf4, false), (Way::Int8, true)] {
        let run = |way: Way, checkpointing: bool| {
            let (mut model, mut params) = load(way, WHOLE, true);
            params.train(|_| false);
            ml::lora::attach(model.linears_mut(), &adapter(4, 0.2), 3, &mut params).unwrap();
            moved(&params);
            model.checkpointing = checkpointing;
            gradients(&model, &params)
        };
        let (found, wanted) = (run(way, false), run(Way::Values(eight), false));
        assert_eq!(found.len(), 1 + 24);
        for ((name, found), (other, wanted)) in found.iter().zip(&wanted) {
            assert_eq!(name, other);
            close(found, wanted, 1e-4, &format!("{way:?}: {name}"));
        }
        for ((name, found), (_, again)) in found.iter().zip(&run(way, true)) {
            assert_eq!(found, again, "{way:?} with checkpointing: {name}");
        }
    }
}

/// The settings of an adapter, as PEFT writes them.
fn settings(more: Value) -> PeftConfig {
    let mut all = json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8 });
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_config.json");
    std::fs::write(&path, all.to_string()).unwrap();
    PeftConfig::open(&path).unwrap()
}

/// An encoder with an adapter from a file with these tensors.
fn attached(
    parts: BertParts,
    settings: &PeftConfig,
    tensors: &[(String, Tensor)],
) -> anyhow::Result<(Bert, Vec<String>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    ml::tensors::write(&path, tensors, &[("format", "pt")]).unwrap();
    let weights = Weights::open(&path).unwrap();
    let (mut model, mut params) = load(Way::Nf4, parts, false);
    let linears = model.all_linears_mut();
    let modules = ml::adapter::attach_to(linears, settings, &weights, &mut params)?;
    Ok((model, modules))
}

#[test]
fn adapters_are_written_and_read_under_the_names_of_either_class() {
    let ids = tokens(0, 20);
    for (parts, start) in [(WHOLE, "bert.encoder."), (ALONE, "encoder.")] {
        let (mut model, mut params) = load(Way::Nf4, parts, false);
        params.train(|_| false);
        let before = states(&model, Pass::eval(), &ids);
        ml::lora::attach(model.linears_mut(), &adapter(4, 0.0), 3, &mut params).unwrap();
        moved(&params);
        let wanted = states(&model, Pass::eval(), &ids);
        assert!(distance(&wanted, &before) > 1e-2);
        let own = model.adapter_tensors(false);
        assert_eq!(own.len(), 24);
        let start = format!("base_model.model.{start}");
        assert!(own.iter().all(|(name, _)| name.starts_with(&start)));
        // A classifier's class has `bert.` before all of them.
        let classified = model.adapter_tensors(true);
        let start = "base_model.model.bert.encoder.";
        assert!(classified.iter().all(|(name, _)| name.starts_with(start)));
        let config = PeftConfig::Lora(adapter(4, 0.0));
        for other in [WHOLE, ALONE] {
            for tensors in [&own, &classified] {
                let (again, modules) = attached(other, &config, tensors).unwrap();
                assert_eq!(modules.len(), 12);
                let found = states(&again, Pass::eval(), &ids);
                close(&found, &wanted, 1e-6, "from its file");
            }
        }
    }
}

#[test]
fn the_pooler_is_adapted_where_the_file_says_so() {
    let of = |module: &str| {
        let key = |part: &str| format!("base_model.model.{module}.{part}");
        vec![
            (key("lora_A.weight"), numbers("a", &[4, 32], 0.5)),
            (key("lora_B.weight"), numbers("b", &[32, 4], 0.5)),
        ]
    };
    let dense = settings(json!({ "target_modules": ["attention.output.dense", "pooler.dense"] }));
    let layers = [0, 1].map(|layer| format!("encoder.layer.{layer}.attention.output.dense"));
    let of_layers = || -> Vec<(String, Tensor)> {
        let modules = layers.iter();
        modules.flat_map(|module| of(module)).collect()
    };
    let mut whole = of_layers();
    whole.extend(of("pooler.dense"));
    let (model, modules) = attached(WHOLE, &dense, &whole).unwrap();
    assert_eq!(modules.len(), 3);
    let (plain, _) = load(Way::Nf4, WHOLE, false);
    let state = numbers("state", &[1, 32], 1.0).to_kind(Kind::Float);
    let (found, before) = (model.pooled(&state).unwrap(), plain.pooled(&state).unwrap());
    assert!(distance(&found, &before) > 1e-2);
    // It is written again with the rest.
    assert_eq!(model.adapter_tensors(false).len(), 6);

    let wide = settings(json!({ "target_modules": ["attention.output.dense", "dense"] }));
    let error = attached(WHOLE, &wide, &of_layers())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("intermediate.dense") && !error.contains("pooler"),
        "{error}"
    );
}

//! A tiny Llama with weights by formula, shared by the tests.
#![allow(dead_code)]

use anyhow::Result;
use formats::config::LlamaConfig;
use formats::peft::AdapterConfig;
use ml::random::Stream;
use ml::{Kind, Llama, Params, Place, Tensor};
use std::path::Path;

pub fn config() -> LlamaConfig {
    config_with(true)
}

pub fn config_with(tied: bool) -> LlamaConfig {
    let text = format!(
        r#"{{"model_type":"llama","vocab_size":64,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,"rope_theta":10000.0,
        "tie_word_embeddings":{tied},"max_position_embeddings":256,"hidden_act":"silu","bos_token_id":1,"eos_token_id":2}}"#
    );
    LlamaConfig::from_json(&text, Path::new("tiny")).unwrap()
}

/// Numbers in ±scale that depend on the name.
pub fn numbers(name: &str, shape: &[i64], scale: f64) -> Tensor {
    let mut stream = Stream::new(7, name);
    let count = shape.iter().product::<i64>();
    let numbers: Vec<f64> = (0..count)
        .map(|_| (stream.uniform() * 2.0 - 1.0) * scale)
        .collect();
    Tensor::from_slice(&numbers).view(shape)
}

pub fn source(name: &str, shape: &[i64]) -> Result<Tensor> {
    Ok(match name.ends_with("norm.weight") {
        true => numbers(name, shape, 0.3) + 1.0,
        false => numbers(name, shape, 0.3),
    })
}

/// Where these tests compute: the processor, or what `LEVAIN_DEVICE` names (`make test-cuda`; not run so far).
pub fn place(kind: Kind) -> Place {
    match std::env::var("LEVAIN_DEVICE") {
        Ok(device) if !device.is_empty() => Place::parse(&device, "f32").unwrap().with_kind(kind),
        _ => Place::cpu(kind),
    }
}

pub fn model(kind: Kind, params: &mut Params) -> Llama {
    Llama::build(&config(), place(kind), params, &mut source).unwrap()
}

pub fn adapter(r: usize, dropout: f64) -> AdapterConfig {
    let text = format!(
        r#"{{"peft_type":"LORA","r":{r},"lora_alpha":12,"lora_dropout":{dropout},"target_modules":"all-linear"}}"#
    );
    AdapterConfig::from_json(&text, Path::new("tiny")).unwrap()
}

/// A model with an adapter whose B is not zero.
pub fn adapted(kind: Kind, r: usize, dropout: f64) -> (Llama, Params) {
    let mut params = Params::new();
    let mut model = model(kind, &mut params);
    ml::lora::attach(model.linears_mut(), &adapter(r, dropout), 3, &mut params).unwrap();
    ml::no_grad(|| {
        for (name, tensor) in params.trained() {
            if name.contains("lora_B") {
                let fresh = numbers(name, &tensor.size(), 0.2).to_kind(tensor.kind());
                tensor.shallow_clone().copy_(&fresh);
            }
        }
    });
    (model, params)
}

/// Token ids of a row.
pub fn tokens(row: usize, length: usize) -> Vec<i64> {
    let mut stream = Stream::new(11, &format!("row {row}"));
    (0..length).map(|_| stream.below(64) as i64).collect()
}

/// The largest difference, relative to the largest value.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    assert_eq!(a.size(), b.size());
    let scale = b.abs().max().double_value(&[]).max(1e-30);
    let distance = (a - b).abs().max().double_value(&[]) / scale;
    assert!(!distance.is_nan(), "not a number");
    distance
}

#[track_caller]
pub fn close(a: &Tensor, b: &Tensor, tolerance: f64, what: &str) {
    let distance = distance(a, b);
    assert!(
        distance <= tolerance,
        "{what}: {distance:e} is above {tolerance:e}"
    );
}

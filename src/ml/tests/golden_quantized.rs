//! Quantized weights against bitsandbytes and transformers (tests/golden/make/ml_quantized.py): codes and scales bit for bit, unpacked values
//! bit for bit, products and gradients, and a whole model out of their files.

mod support;

use formats::config::LlamaConfig;
use formats::nf4::{self, Scales};
use formats::tensors::Weights;
use ml::adapter::Adapter;
use ml::kv_cache::Segments;
use ml::linear::Input;
use ml::lora::Lora;
use ml::quantized::Nf4;
use ml::{Inputs, Kind, Linear, Llama, Params, Pass, Tensor, Weight};
use support::{Golden, close, folder, place, tolerance};

/// Name and values to a scale.
const CASES: [(&str, usize); 6] = [
    ("96x128", 64),
    ("64x192", 128),
    ("3x37", 64),
    ("zeros", 64),
    ("borders", 64),
    ("72x128", 32),
];

fn golden() -> Golden {
    Golden::open(&[
        "quantized_maps",
        "quantized_nf4_0",
        "quantized_nf4_1",
        "quantized_nf4_2",
        "quantized_nf4_3",
    ])
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(Kind::Float).flatten(0, -1)).unwrap()
}

/// Bit for bit with a golden tensor.
fn same(golden: &Golden, name: &str, found: &Tensor) {
    let wanted = golden.get(name);
    assert_eq!(wanted.kind(), found.kind(), "{name}");
    let (wanted, found) = (wanted.flatten(0, -1), found.flatten(0, -1));
    let (wanted, found) = (
        ml::tensors::bytes(&wanted).unwrap(),
        ml::tensors::bytes(&found).unwrap(),
    );
    let differ = wanted.iter().zip(&found).filter(|(a, b)| a != b).count();
    assert!(
        wanted.len() == found.len() && differ == 0,
        "{name}: {differ} of {} bytes differ",
        found.len()
    );
}

fn kinds(name: &str) -> &'static [(&'static str, Kind)] {
    match name {
        "borders" | "72x128" => &[("f32", Kind::Float)],
        _ => &[("f32", Kind::Float), ("bf16", Kind::BFloat16)],
    }
}

#[test]
fn the_maps_are_those_of_bitsandbytes() {
    let golden = golden();
    same(&golden, "nf4", &Tensor::from_slice(&nf4::TABLE));
    same(
        &golden,
        "dynamic",
        &Tensor::from_slice(&nf4::dynamic_map(true)),
    );
    same(
        &golden,
        "unsigned_dynamic",
        &Tensor::from_slice(&nf4::dynamic_map(false)),
    );
}

#[test]
fn codes_scales_and_values_are_those_of_bitsandbytes() {
    let golden = golden();
    let mut whole = 0;
    for (name, block) in CASES {
        for (word, kind) in kinds(name) {
            let input = golden.get(&format!("{name}.input"));
            let size = input.size();
            let values = floats(&input.to_kind(*kind));
            let at = |part: &str| format!("{name}.{word}.{part}");
            let plain = nf4::quantize(&values, block, false, 2).unwrap();
            let Scales::Plain(scales) = &plain.scales else {
                panic!("not nested")
            };
            same(&golden, &at("codes"), &Tensor::from_slice(&plain.codes));
            if name == "zeros" {
                // Theirs may keep a tiny scale for a short last block of zeros, whose values are zeros in either case.
                close(
                    &Tensor::from_slice(scales),
                    golden.get(&at("absmax")),
                    1e-30,
                    &at("absmax"),
                );
            } else {
                same(&golden, &at("absmax"), &Tensor::from_slice(scales));
            }
            let doubly = nf4::quantize(&values, block, true, 2).unwrap();
            let Scales::Nested {
                codes,
                scales,
                offset,
            } = &doubly.scales
            else {
                panic!("nested")
            };
            assert_eq!(doubly.codes, plain.codes, "{name}");
            same(&golden, &at("nested.absmax"), &Tensor::from_slice(codes));
            same(
                &golden,
                &at("nested.nested_absmax"),
                &Tensor::from_slice(scales),
            );
            same(&golden, &at("nested.nested_offset"), &Tensor::from(*offset));
            let unpacked = Tensor::from_slice(&nf4::scales_of(&doubly.scales));
            same(&golden, &at("nested.scales"), &unpacked);

            for (weight, part) in [(&plain, "values"), (&doubly, "nested.values")] {
                let found = Weight::Nf4(Nf4::new(weight, block, (size[0], size[1]), *kind));
                let found = found.values(*kind).unwrap();
                let file = nf4::dequantize(weight, block, values.len());
                let file = Tensor::from_slice(&file).to_kind(*kind).view(&size[..]);
                assert_eq!(file, found, "{}", at(part));
                if golden.names("").any(|known| known == at(part)) {
                    same(&golden, &at(part), &found);
                    whole += 1;
                }
            }
        }
    }
    assert!(
        whole >= 3,
        "{whole} tensors were compared with their values"
    );
}

#[test]
fn a_linear_with_an_adapter_is_that_of_peft() {
    let golden = Golden::open(&[
        "quantized_nf4_0",
        "quantized_nf4_1",
        "quantized_nf4_2",
        "quantized_nf4_3",
        "quantized_linear",
    ]);
    let input = floats(&golden.get("96x128.input").to_kind(Kind::BFloat16));
    let packed = nf4::quantize(&input, 64, true, 1).unwrap();
    let mut linear = Linear::new(
        "l",
        Weight::Nf4(Nf4::new(&packed, 64, (96, 128), Kind::BFloat16)),
        None,
    );
    let leaf = |name: &str| {
        golden
            .get(name)
            .to_kind(Kind::Float)
            .detach()
            .copy()
            .set_requires_grad(true)
    };
    let (x, down, up) = (leaf("x"), leaf("a"), leaf("b"));
    linear.adapter = Some(Adapter::Lora(Lora {
        down: down.shallow_clone(),
        up: up.shallow_clone(),
        scale: 2.0,
        dropout: 0.0,
        dora: None,
    }));
    for plain in [false, true] {
        for leaf in [&x, &down, &up] {
            leaf.shallow_clone().zero_grad();
        }
        let y = match plain {
            false => linear.forward(Pass::eval(), Input::Plain(&x)),
            true => linear.plain(Pass::eval(), &x),
        };
        let y = y.unwrap();
        (&y * golden.get("way").to_kind(Kind::Float))
            .sum(Kind::Float)
            .backward();
        let tolerance = tolerance::of(Kind::Float);
        close(&y, golden.get("output"), tolerance, "output");
        for (leaf, name) in [(&x, "x"), (&down, "a"), (&up, "b")] {
            close(
                &leaf.grad(),
                golden.get(&format!("gradient.{name}")),
                tolerance,
                name,
            );
            close(
                &leaf.grad(),
                golden.get(&format!("bitsandbytes.gradient.{name}")),
                tolerance,
                name,
            );
        }
    }
}

#[test]
fn a_model_of_transformers_loads_and_says_the_same() {
    let golden = Golden::open(&["quantized_model"]);
    let at = folder().join("data/ml/quantized");
    let config_path = at.join("config.json");
    let text = std::fs::read_to_string(&config_path).unwrap();
    let config = LlamaConfig::from_json(&text, &config_path).unwrap();
    let file = ("model.safetensors".to_owned(), at.join("model.safetensors"));
    let weights = Weights::open_files(&[file]).unwrap();
    config.check(&weights).unwrap();
    let mut params = Params::new();
    let model = Llama::load(&config, &weights, place(Kind::Float), &mut params).unwrap();
    assert!(model.is_quantized());
    let lengths: Vec<usize> = golden
        .ids("lengths")
        .into_iter()
        .map(|n| n as usize)
        .collect();
    let ids = model.tokens(&golden.ids("tokens")).unwrap();
    let segments = Segments::new(&lengths, model.place).unwrap();
    let hidden = model
        .hidden(Pass::eval(), Inputs::Tokens(&ids), &segments, None)
        .unwrap();
    let logits = model.logits(Pass::eval(), &hidden).unwrap();
    close(
        &logits,
        golden.get("logits"),
        tolerance::of(Kind::Float),
        "logits",
    );
}

//! DoRA and (IA)³ against PEFT: logits, gradients and merged weights (tests/golden/make/ml_dora.py). Our rows are packed; theirs went through one
//! by one.

mod support;

use formats::peft::Ia3Config;
use ml::kv_cache::Segments;
use ml::sft::{Batch, Row};
use ml::{Inputs, Kind, Llama, Params, Pass, Tensor};
use serde_json::{Value, json};
use support::{Golden, adapter, close, fill, model, tokens, tolerance};

const LENGTHS: [usize; 5] = [13, 1, 7, 2, 24];

fn ids(index: usize) -> Vec<i64> {
    tokens(&format!("row {index}"), LENGTHS[index])
}

/// Logits of each row's last token.
fn last_logits(model: &Llama) -> Tensor {
    let segments = Segments::new(&LENGTHS, model.place).unwrap();
    let all: Vec<i64> = (0..LENGTHS.len()).flat_map(ids).collect();
    let tokens = model.tokens(&all).unwrap();
    let hidden = model
        .hidden(Pass::eval(), Inputs::Tokens(&tokens), &segments, None)
        .unwrap();
    let ends = LENGTHS.iter().scan(0, |end, length| {
        *end += *length as i64;
        Some(*end - 1)
    });
    let ends = Tensor::from_slice(&ends.collect::<Vec<i64>>()).to_device(model.place.device);
    let hidden = hidden.index_select(0, &ends);
    model.logits(Pass::eval(), &hidden).unwrap()
}

/// The parameters by formula: what scales is near one.
fn fill_all(params: &Params) {
    fill(params, |_| true);
    ml::no_grad(|| {
        for (name, tensor) in params.trained() {
            if name.ends_with(".lora_magnitude_vector") || name.ends_with(".ia3_l") {
                let mut tensor = tensor.shallow_clone();
                tensor += 1.0f64;
            }
        }
    });
}

/// The changes of the model's config that give every linear a bias.
fn biases(biased: bool) -> Value {
    json!({"attention_bias": biased, "mlp_bias": biased})
}

fn dora(kind: Kind, biased: bool, changes: Value) -> (Llama, Params) {
    let mut settings = changes;
    settings["use_dora"] = json!(true);
    let mut params = Params::new();
    let mut model = model(kind, biases(biased), &mut params);
    ml::lora::attach(model.linears_mut(), &adapter(settings), 0, &mut params).unwrap();
    fill_all(&params);
    (model, params)
}

fn ia3(kind: Kind, biased: bool, config: &Ia3Config) -> (Llama, Params) {
    let mut params = Params::new();
    let mut model = model(kind, biases(biased), &mut params);
    ml::ia3::attach(model.linears_mut(), config, &mut params).unwrap();
    fill_all(&params);
    (model, params)
}

/// Logits, the loss and its gradients, and merged weights.
fn compare(golden: &Golden, kind: Kind, model: &Llama, params: &Params) {
    let tolerance = tolerance::of(kind);
    close(
        &last_logits(model),
        golden.get("logits"),
        tolerance,
        "logits",
    );
    let rows: Vec<Row> = (0..LENGTHS.len())
        .map(|index| Row {
            tokens: ids(index),
            trained: vec![true; LENGTHS[index]],
            documents: vec![],
        })
        .collect();
    let batch = Batch::new(model, &rows).unwrap();
    let loss = batch.cross_entropy(model, Pass::train(0), 256).unwrap();
    close(&loss.sum, golden.get("loss"), tolerance, "loss");
    loss.sum.backward();
    for name in golden.names("gradient.") {
        let gradient = params.get(name).unwrap().grad();
        let expected = golden.get(&format!("gradient.{name}"));
        close(&gradient, expected, tolerance, &format!("{kind:?} {name}"));
    }
    for name in golden.names("merged.") {
        let linears = model.linears();
        let linear = linears.iter().find(|linear| linear.name == name).unwrap();
        let weight = linear.weight.values(linear.weight.kind()).unwrap();
        let merged = linear.adapter.as_ref().unwrap().merged(&weight).unwrap();
        let expected = golden.get(&format!("merged.{name}"));
        close(&merged, expected, tolerance, &format!("merged {name}"));
    }
}

#[test]
fn dora_is_that_of_peft() {
    let golden = Golden::open(&["dora"]);
    assert_eq!(golden.names("gradient.").count(), 12);
    for kind in [Kind::Double, Kind::Float] {
        let (model, params) = dora(kind, false, json!({}));
        assert_eq!(params.trained().count(), 14 * 3);
        compare(&golden, kind, &model, &params);
        let few = json!({"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]});
        for (name, biased, changes) in [
            ("biased", true, json!({})),
            ("rslora", false, json!({"use_rslora": true})),
            ("attention", false, few),
        ] {
            let (model, _params) = dora(kind, biased, changes);
            let tolerance = tolerance::of(kind);
            close(&last_logits(&model), golden.get(name), tolerance, name);
        }
    }
}

#[test]
fn ia3_is_that_of_peft() {
    let golden = Golden::open(&["ia3"]);
    assert_eq!(golden.names("gradient.").count(), 2);
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    // Of q, k and v, and of gate and up, one scales what goes in.
    let everywhere = Ia3Config {
        target_modules: vec!["all-linear".to_owned()],
        feedforward_modules: list(&["k_proj", "up_proj", "o_proj"]),
        ..Ia3Config::default()
    };
    for kind in [Kind::Double, Kind::Float] {
        let tolerance = tolerance::of(kind);
        let (model, params) = ia3(kind, false, &Ia3Config::default());
        assert_eq!(params.trained().count(), 6);
        compare(&golden, kind, &model, &params);
        let (model, _params) = ia3(kind, true, &Ia3Config::default());
        close(
            &last_logits(&model),
            golden.get("biased"),
            tolerance,
            "biased",
        );
        let (model, params) = ia3(kind, false, &everywhere);
        assert_eq!(params.trained().count(), 14);
        close(
            &last_logits(&model),
            golden.get("everywhere"),
            tolerance,
            "everywhere",
        );
    }
}

//! BERT against transformers: states, pooled states, logits, the loss and the gradients of every weight; LayerNorm and GELU against torch
//! (tests/golden/make/ml_bert.py). Our rows are packed; theirs went through one by one.

mod support;

use formats::config::{BertConfig, BertParts};
use ml::kv_cache::Segments;
use ml::layer_norm::LayerNorm;
use ml::{Backbone, Bert, Kind, Params, Pass, Tensor};
use serde_json::json;
use std::path::Path;
use support::{Golden, close, numbers, place, tokens, tolerance};

const LENGTHS: [usize; 6] = [13, 1, 7, 2, 24, 24];
const MASK: i64 = 3;

/// The formula of every weight.
fn weight(name: &str, shape: &[i64]) -> anyhow::Result<Tensor> {
    let numbers = numbers(name, shape, 0.3);
    Ok(match name.ends_with("LayerNorm.weight") {
        true => numbers + 1.0,
        false => numbers,
    })
}

fn model(kind: Kind, params: &mut Params) -> Bert {
    let settings = json!({
        "model_type": "bert", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 40, "layer_norm_eps": 1e-12,
    });
    let config = BertConfig::from_json(&settings.to_string(), Path::new("tiny")).unwrap();
    let parts = BertParts {
        pooler: true,
        head: true,
    };
    Bert::build(&config, parts, place(kind), params, &mut weight).unwrap()
}

fn rows() -> Vec<Vec<i64>> {
    let rows = LENGTHS.iter().enumerate();
    rows.map(|(index, length)| tokens(&format!("row {index}"), *length))
        .collect()
}

/// The states of all rows, packed.
fn states(model: &Bert, pass: Pass, rows: &[Vec<i64>]) -> Tensor {
    let segments = Segments::new(&LENGTHS, model.place).unwrap();
    let tokens = model.tokens(&rows.concat()).unwrap();
    model.hidden(pass, &tokens, &segments).unwrap()
}

fn indices(places: &[i64], model: &Bert) -> Tensor {
    Tensor::from_slice(places).to_device(model.place.device)
}

#[test]
fn states_pooled_states_and_logits_are_those_of_transformers() {
    let golden = Golden::open(&["bert"]);
    for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
        // The golden weights are not rounded to bf16, ours are.
        let tolerance = match kind {
            Kind::BFloat16 => 2.0 * tolerance::of(kind),
            kind => tolerance::of(kind),
        };
        let model = model(kind, &mut Params::new());
        let ours = states(&model, Pass::eval(), &rows());
        let what = |name: &str| format!("{name} {kind:?}");
        close(&ours, golden.get("states"), tolerance, &what("states"));
        let logits = model.masked_logits(Pass::eval(), &ours).unwrap();
        close(&logits, golden.get("logits"), tolerance, &what("logits"));
        let firsts = LENGTHS.iter().scan(0, |start, length| {
            let first = *start;
            *start += *length as i64;
            Some(first)
        });
        let firsts = indices(&firsts.collect::<Vec<_>>(), &model);
        let firsts = ours.index_select(0, &firsts);
        let backbone = Backbone::Bert(model);
        let pooled = backbone.pooled(&firsts).unwrap();
        close(&pooled, golden.get("pooled"), tolerance, &what("pooled"));
    }
}

#[test]
fn the_loss_of_hidden_tokens_and_its_gradients_are_those_of_transformers() {
    let golden = Golden::open(&["bert", "bert_gradients_0", "bert_gradients_1"]);
    for (kind, checkpointing, chunk) in [
        (Kind::Double, false, 256),
        (Kind::Double, true, 7),
        (Kind::Float, false, 7),
        (Kind::Float, true, 256),
    ] {
        let tolerance = tolerance::of(kind);
        let mut params = Params::new();
        let mut model = model(kind, &mut params);
        model.checkpointing = checkpointing;
        assert_eq!(params.train(|_| true), 44);
        let (mut seen, mut places, mut targets) = (rows(), Vec::new(), Vec::new());
        let mut start = 0;
        for row in &mut seen {
            for at in (1..row.len()).step_by(3) {
                places.push(start + at as i64);
                targets.push(row[at]);
                row[at] = MASK;
            }
            start += row.len() as i64;
        }
        assert_eq!(targets.len() as i64, golden.get("count").int64_value(&[]));
        let all = states(&model, Pass::train(0), &seen);
        let chosen = all.index_select(0, &indices(&places, &model));
        let targets = indices(&targets, &model);
        let pass = Pass::train(0);
        let found = model
            .masked_cross_entropy(pass, &chosen, &targets, chunk)
            .unwrap();
        let mean = found.sum / found.count as f64;
        close(&mean, golden.get("loss"), tolerance, "loss");
        let logits = model.masked_logits(pass, &chosen).unwrap();
        let right = logits.argmax(-1, false).eq_tensor(&targets);
        assert_eq!(
            found.correct as i64,
            right.sum(Kind::Int64).int64_value(&[])
        );
        mean.backward();
        let mut compared = 0;
        for (key, tensor) in params.trained() {
            let gradient = tensor.grad();
            if key.starts_with("bert.pooler.") || key.ends_with("key.bias") {
                // The bias of keys moves all scores of a query alike; transformers finds zero and rounding.
                assert!(!gradient.defined(), "{key} has no part in this");
            } else {
                let what = format!("{kind:?} gradient of {key}");
                close(&gradient, golden.get(key), tolerance, &what);
                compared += 1;
            }
        }
        assert_eq!(compared, 40);
    }
}

#[test]
fn layer_norm_and_gelu_are_those_of_torch() {
    let golden = Golden::open(&["bert"]);
    for kind in [Kind::Double, Kind::Float] {
        let tolerance = tolerance::of(kind);
        let leaf = |tensor: Tensor| tensor.to_kind(kind).set_requires_grad(true);
        let norm = LayerNorm {
            weight: leaf(weight("LayerNorm.weight", &[32]).unwrap()),
            bias: leaf(numbers("LayerNorm.bias", &[32], 0.3)),
            eps: 1e-12,
        };
        let x = leaf(numbers("layer norm x", &[5, 32], 2.0));
        let y = norm.forward(&x).unwrap();
        close(&y, golden.get("layer_norm"), tolerance, "layer norm");
        let slope = numbers("layer norm slope", &[5, 32], 1.0).to_kind(kind);
        (y * slope).sum(kind).backward();
        for (name, tensor) in [("x", &x), ("weight", &norm.weight), ("bias", &norm.bias)] {
            let expected = golden.get(&format!("layer_norm.{name}"));
            close(&tensor.grad(), expected, tolerance, name);
        }
        let g = numbers("gelu x", &[4, 9], 4.0).to_kind(kind);
        let ours = g.f_gelu("none").unwrap();
        close(&ours, golden.get("gelu"), tolerance, "gelu");
    }
}

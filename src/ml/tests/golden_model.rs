//! The whole model against transformers and its adapters against PEFT, logits and gradients of every weight
//! (tests/golden/make/ml_llama.py and ml_lora.py). Our rows are packed; theirs went through one by one.

mod support;

use formats::peft::AdapterConfig;
use formats::tensors::Weights;
use ml::kv_cache::Segments;
use ml::sft::{Batch, Row};
use ml::{Inputs, Kind, Llama, Params, Pass, Tensor};
use serde_json::{Value, json};
use support::{Golden, adapted, close, folder, model, tokens, tolerance};

const LENGTHS: [usize; 5] = [13, 1, 7, 2, 24];

fn ids(index: usize) -> Vec<i64> {
    tokens(&format!("row {index}"), LENGTHS[index])
}

/// Logits of these rows, packed.
fn logits(model: &Llama, pass: Pass, rows: &[usize]) -> Tensor {
    let lengths: Vec<usize> = rows.iter().map(|&index| LENGTHS[index]).collect();
    let ids: Vec<i64> = rows.iter().flat_map(|&index| ids(index)).collect();
    let segments = Segments::new(&lengths, model.place).unwrap();
    let tokens = model.tokens(&ids).unwrap();
    let hidden = model.hidden(pass, Inputs::Tokens(&tokens), &segments, None);
    model.logits(pass, &hidden.unwrap()).unwrap()
}

/// All rows, with those tokens trained that satisfy the condition; and the same documents in one row.
fn rows(trained: impl Fn(usize) -> bool) -> [Vec<Row>; 2] {
    let apart: Vec<Row> = (0..LENGTHS.len())
        .map(|index| Row {
            tokens: ids(index),
            trained: (0..LENGTHS[index]).map(&trained).collect(),
            documents: vec![],
        })
        .collect();
    let packed = Row {
        tokens: apart.iter().flat_map(|row| row.tokens.clone()).collect(),
        trained: apart.iter().flat_map(|row| row.trained.clone()).collect(),
        documents: LENGTHS.to_vec(),
    };
    [apart, vec![packed]]
}

fn all() -> Vec<usize> {
    (0..LENGTHS.len()).collect()
}

#[test]
fn logits_and_gradients_are_those_of_transformers() {
    for (name, tied) in [("tied", true), ("untied", false)] {
        let golden = Golden::open(&[
            &format!("llama_{name}"),
            &format!("llama_{name}_gradients_0"),
            &format!("llama_{name}_gradients_1"),
        ]);
        for kind in [Kind::Double, Kind::Float] {
            let tolerance = tolerance::of(kind);
            let mut params = Params::new();
            let model = model(kind, json!({"tie_word_embeddings": tied}), &mut params);
            let what = format!("{name} {kind:?}");
            let ours = logits(&model, Pass::eval(), &all());
            close(&ours, golden.get("logits"), tolerance, &what);

            let count = params.train(|_| true);
            assert_eq!(count, if tied { 20 } else { 21 });
            for rows in rows(|at| at % 3 != 2) {
                params.zero_grad();
                let batch = Batch::new(&model, &rows).unwrap();
                assert_eq!(batch.trained() as i64, golden.get("count").int64_value(&[]));
                let loss = batch.cross_entropy(&model, Pass::train(0), 16).unwrap();
                let mean = loss.sum / batch.trained() as f64;
                close(&mean, golden.get("loss"), tolerance, &what);
                mean.backward();
                for (key, tensor) in params.trained() {
                    let what = format!("{what} gradient of {key}");
                    close(&tensor.grad(), golden.get(key), tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn the_loss_from_labels_is_that_of_transformers() {
    for name in ["tied", "untied"] {
        let golden = Golden::open(&[&format!("llama_{name}")]);
        let mut params = Params::new();
        let changes = json!({"tie_word_embeddings": name == "tied"});
        let model = model(Kind::Float, changes, &mut params);
        let [rows, _] = rows(|at| at % 3 != 2);
        let scores = ml::sft::evaluate(&model, Pass::eval(), &rows[4..], 256).unwrap();
        let theirs = golden.numbers("labels_loss");
        support::near(&[scores.mean()], &theirs, tolerance::F32, name);
    }
}

#[test]
fn other_shapes_give_the_logits_of_transformers() {
    let golden = Golden::open(&["llama_variants"]);
    let rope = |more: Value| json!({"rope_parameters": more});
    let llama3 = json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    let variants = [
        (
            "theta",
            rope(json!({"rope_type": "default", "rope_theta": 100000.0})),
        ),
        ("bias", json!({"attention_bias": true, "mlp_bias": true})),
        ("head_dim", json!({"head_dim": 16})),
        ("heads", json!({"num_key_value_heads": 4})),
        (
            "linear",
            rope(json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})),
        ),
        ("llama3", rope(llama3)),
    ];
    assert_eq!(golden.names("").count(), variants.len());
    for (name, changes) in variants {
        for kind in [Kind::Double, Kind::Float] {
            let model = model(kind, changes.clone(), &mut Params::new());
            let ours = logits(&model, Pass::eval(), &[0, 2]);
            let what = format!("{name} {kind:?}");
            close(&ours, golden.get(name), tolerance::of(kind), &what);
        }
    }
}

#[test]
fn bf16_is_near_the_same_weights_in_f64() {
    let golden = Golden::open(&["llama_bf16"]);
    let model = model(Kind::BFloat16, json!({}), &mut Params::new());
    let ours = logits(&model, Pass::eval(), &all());
    close(&ours, golden.get("logits"), tolerance::BF16, "bf16 logits");
    let rows = &rows(|at| at % 3 != 2)[0];
    let scores = ml::sft::evaluate(&model, Pass::eval(), rows, 256).unwrap();
    let theirs = golden.numbers("loss");
    support::near(&[scores.mean()], &theirs, tolerance::BF16, "bf16 loss");
}

#[test]
fn lora_is_that_of_peft() {
    let golden = Golden::open(&["lora_0", "lora_1"]);
    for kind in [Kind::Double, Kind::Float] {
        let tolerance = tolerance::of(kind);
        let (model, params) = adapted(kind, json!({}));
        let ours = logits(&model, Pass::eval(), &all());
        close(&ours, golden.get("logits"), tolerance, "logits");
        let base = logits(&model, Pass::eval().without_adapters(), &all());
        close(&base, golden.get("base"), tolerance, "without adapters");

        let batch = Batch::new(&model, &rows(|_| true)[0]).unwrap();
        let loss = batch.cross_entropy(&model, Pass::train(0), 256).unwrap();
        close(&loss.sum, golden.get("loss"), tolerance, "loss");
        loss.sum.backward();
        assert_eq!(golden.names("gradient.").count(), params.trained().count());
        for (name, tensor) in params.trained() {
            let expected = golden.get(&format!("gradient.{name}"));
            close(
                &tensor.grad(),
                expected,
                tolerance,
                &format!("{kind:?} {name}"),
            );
        }

        let mut linears = model.linears().into_iter();
        let linear = linears.find(|l| l.name == "model.layers.1.self_attn.q_proj");
        let linear = linear.unwrap();
        let weight = linear.weight.values(linear.weight.kind()).unwrap();
        let merged = linear.adapter.as_ref().unwrap().merged(&weight);
        close(&merged.unwrap(), golden.get("merged"), tolerance, "merged");

        let (model, _) = adapted(kind, json!({"use_rslora": true}));
        let ours = logits(&model, Pass::eval(), &all());
        close(&ours, golden.get("rslora"), tolerance, "rslora");
        let few = json!({"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]});
        let (model, params) = adapted(kind, few);
        assert_eq!(params.trained().count(), 8);
        let ours = logits(&model, Pass::eval(), &all());
        close(
            &ours,
            golden.get("attention"),
            tolerance,
            "q_proj and v_proj",
        );
    }
}

#[test]
fn an_adapter_that_peft_saved_is_loaded_and_saved_again() {
    let golden = Golden::open(&["lora_0", "lora_1"]);
    let stored = folder().join("data/ml/adapter");
    let config = AdapterConfig::open(&stored.join("adapter_config.json")).unwrap();
    let weights = Weights::open(&stored.join("adapter_model.safetensors")).unwrap();
    let mut params = Params::new();
    let mut model = model(Kind::Float, json!({}), &mut params);
    let chosen = ml::lora::attach_stored(model.linears_mut(), &config, &weights, &mut params);
    assert_eq!(chosen.unwrap().len(), 14);
    let ours = logits(&model, Pass::eval(), &all());
    close(
        &ours,
        golden.get("logits"),
        tolerance::F32,
        "PEFT's adapter",
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    ml::adapter::save(&model, &path).unwrap();
    let again = Weights::open(&path).unwrap();
    assert_eq!(again.len(), weights.len());
    for info in weights.infos() {
        assert_eq!(again.get(&info.name), Some(info));
        assert!(again.bytes(&info.name).unwrap() == weights.bytes(&info.name).unwrap());
    }
}

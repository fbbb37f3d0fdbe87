//! Bottleneck adapters against AdapterHub's package `adapters`: logits, gradients, and the folders that it saved
//! (tests/golden/make/ml_bottleneck.py). Our rows are packed; theirs went through one by one.

mod support;

use formats::peft::{BottleneckConfig, CONFIG_FILE, NonLinearity, PeftConfig};
use formats::tensors::Weights;
use ml::kv_cache::Segments;
use ml::sft::{Batch, Row};
use ml::{Inputs, Kind, Llama, Params, Pass, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::{Golden, close, folder, model, numbers, tokens, tolerance};

const LENGTHS: [usize; 5] = [13, 1, 7, 2, 24];
const FORMS: [&str; 2] = ["houlsby", "pfeiffer"];
const KINDS: [Kind; 2] = [Kind::Double, Kind::Float];

fn ids(index: usize) -> Vec<i64> {
    tokens(&format!("row {index}"), LENGTHS[index])
}

/// Logits of each row's last token.
fn last_logits(model: &Llama, pass: Pass) -> Tensor {
    let segments = Segments::new(&LENGTHS, model.place).unwrap();
    let all: Vec<i64> = (0..LENGTHS.len()).flat_map(ids).collect();
    let tokens = model.tokens(&all).unwrap();
    let hidden = model
        .hidden(pass, Inputs::Tokens(&tokens), &segments, None)
        .unwrap();
    let ends = LENGTHS.iter().scan(0, |end, length| {
        *end += *length as i64;
        Some(*end - 1)
    });
    let ends = Tensor::from_slice(&ends.collect::<Vec<i64>>()).to_device(model.place.device);
    let hidden = hidden.index_select(0, &ends);
    model.logits(pass, &hidden).unwrap()
}

/// The settings of the golden values.
fn config(form: &str) -> BottleneckConfig {
    let usual = match form {
        "houlsby" => BottleneckConfig::houlsby(32),
        _ => BottleneckConfig::pfeiffer(32),
    };
    BottleneckConfig {
        reduction_factor: 8.0,
        ..usual
    }
}

/// The tiny model with adapters by formula.
fn adapted(kind: Kind, config: &BottleneckConfig) -> (Llama, Params) {
    let mut params = Params::new();
    let mut model = model(kind, json!({}), &mut params);
    let first = |name: &str, shape: &[i64]| Ok(numbers(name, shape, 0.2));
    ml::bottleneck::attach(&mut model, config, &mut params, first).unwrap();
    (model, params)
}

#[test]
fn logits_and_gradients_are_those_of_adapters() {
    let golden = Golden::open(&["bottleneck"]);
    for kind in KINDS {
        let tolerance = tolerance::of(kind);
        for (form, count) in FORMS.into_iter().zip([16, 8]) {
            let (model, params) = adapted(kind, &config(form));
            let found = last_logits(&model, Pass::eval());
            let wanted = golden.get(&format!("{form}.logits"));
            close(&found, wanted, tolerance, &format!("{form} logits"));
            let base = last_logits(&model, Pass::eval().without_adapters());
            close(&base, golden.get("base"), tolerance, "base");
            let rows: Vec<Row> = (0..LENGTHS.len())
                .map(|index| Row {
                    tokens: ids(index),
                    trained: vec![true; LENGTHS[index]],
                    documents: vec![],
                })
                .collect();
            let batch = Batch::new(&model, &rows).unwrap();
            let loss = batch.cross_entropy(&model, Pass::train(0), 256).unwrap();
            let wanted = golden.get(&format!("{form}.loss"));
            close(&loss.sum, wanted, tolerance, &format!("{form} loss"));
            loss.sum.backward();
            let prefix = format!("{form}.gradient.");
            let names: Vec<&str> = golden.names(&prefix).collect();
            let ours: Vec<&str> = params.trained().map(|(name, _)| name).collect();
            assert_eq!((names.len(), &names), (count, &ours));
            for name in names {
                let gradient = params.get(name).unwrap().grad();
                let wanted = golden.get(&format!("{prefix}{name}"));
                close(&gradient, wanted, tolerance, &format!("{form} {name}"));
            }
        }
    }
}

#[test]
fn every_setting_does_what_it_does_there() {
    let golden = Golden::open(&["bottleneck"]);
    let check = |config: &BottleneckConfig, name: &str| {
        for kind in KINDS {
            let (model, _params) = adapted(kind, config);
            let found = last_logits(&model, Pass::eval());
            close(&found, golden.get(name), tolerance::of(kind), name);
        }
    };
    for form in FORMS {
        for word in ["relu", "swish", "gelu", "gelu_new", "tanh"] {
            let non_linearity = NonLinearity::parse(word).unwrap();
            let config = BottleneckConfig {
                non_linearity,
                ..config(form)
            };
            check(&config, &format!("{form}.{word}"));
        }
        let scaled = BottleneckConfig {
            scaling: 0.5,
            reduction_factor: 9.0,
            ..config(form)
        };
        check(&scaled, &format!("{form}.scaled"));
    }
    let attention = BottleneckConfig {
        mh_adapter: true,
        output_adapter: false,
        ..config("pfeiffer")
    };
    check(&attention, "attention");
}

/// The names, shapes and bytes of a file of tensors.
fn content(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let weights = Weights::open(path).unwrap();
    let read = |name: &str| weights.bytes(name).unwrap().to_vec();
    let infos = weights.infos();
    infos
        .map(|info| (info.name.clone(), (info.shape.clone(), read(&info.name))))
        .collect()
}

#[test]
fn folders_of_adapters_are_read_and_written_alike() {
    let golden = Golden::open(&["bottleneck"]);
    for form in FORMS {
        let theirs: PathBuf = folder().join("data/ml/bottleneck").join(form);
        let settings = PeftConfig::open(&theirs.join(CONFIG_FILE)).unwrap();
        assert_eq!(settings, PeftConfig::Bottleneck(config(form)));
        assert_eq!(settings.weights_file(), "adapter.safetensors");
        let stored = settings.open_weights(&theirs).unwrap();
        let mut params = Params::new();
        let mut model = model(Kind::Float, json!({}), &mut params);
        let places =
            ml::adapter::attach_stored(&mut model, &settings, &stored, &mut params).unwrap();
        assert_eq!(places.len(), 2 * config(form).places().len());
        let wanted = golden.get(&format!("{form}.logits"));
        let found = last_logits(&model, Pass::eval());
        close(&found, wanted, tolerance::F32, form);

        let ours = tempfile::tempdir().unwrap();
        settings.save(&ours.path().join(CONFIG_FILE)).unwrap();
        let text = |folder: &Path| std::fs::read_to_string(folder.join(CONFIG_FILE)).unwrap();
        assert_eq!(text(ours.path()), text(&theirs));
        let file = ours.path().join(settings.weights_file());
        ml::adapter::save(&model, &file).unwrap();
        let (ours, theirs) = (
            content(&file),
            content(&theirs.join(settings.weights_file())),
        );
        assert_eq!(ours, theirs);
        let shapes = config(form).tensor_shapes(2).into_iter().collect();
        let found: BTreeMap<String, Vec<usize>> = (ours.into_iter())
            .map(|(name, (shape, _))| (name, shape))
            .collect();
        assert_eq!(found, shapes);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_a_way_out() {
    let theirs = folder().join("data/ml/bottleneck/pfeiffer");
    let stored = Weights::open(&theirs.join("adapter.safetensors")).unwrap();
    let attach = |settings: BottleneckConfig, changes: Value| {
        let mut params = Params::new();
        let mut model = model(Kind::Float, changes, &mut params);
        let settings = PeftConfig::Bottleneck(settings);
        let attached = ml::adapter::attach_stored(&mut model, &settings, &stored, &mut params);
        attached.map_err(|error| format!("{error:#}"))
    };
    let fails = |settings: BottleneckConfig, changes: Value, word: &str| {
        let message = attach(settings, changes).unwrap_err();
        assert!(message.contains(word), "{message}");
    };
    assert_eq!(attach(config("pfeiffer"), json!({})).unwrap().len(), 2);
    fails(config("houlsby"), json!({}), "attention_adapters");
    let narrower = BottleneckConfig {
        reduction_factor: 16.0,
        ..config("pfeiffer")
    };
    fails(narrower, json!({}), "shape");
    let shallower = json!({"num_hidden_layers": 1});
    fails(config("pfeiffer"), shallower, "belongs to no place");
    let deeper = json!({"num_hidden_layers": 3});
    fails(config("pfeiffer"), deeper, "is missing");
    let wider = json!({"hidden_size": 64, "head_dim": 16});
    fails(config("pfeiffer"), wider, "this one's is 64");
}

#[test]
fn a_pickle_is_never_opened() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pytorch_adapter.bin"), b"\x80\x02.").unwrap();
    let settings = PeftConfig::Bottleneck(config("houlsby"));
    let error = settings.open_weights(folder.path()).err().unwrap();
    let message = format!("{error:#}");
    assert!(
        message.contains("pickle") && message.contains("use_safetensors=True"),
        "{message}"
    );
}

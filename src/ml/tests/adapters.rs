//! Laws of adapters other than plain LoRA: a fresh one is the identity, the fused linear is the plain one with its gradients on every
//! kind of weight, merged is added, and files are read as they were written.

mod tiny;

use formats::nf4;
use formats::peft::{AdapterConfig, Ia3Config, PeftConfig};
use formats::tensors::Weights;
use ml::kv_cache::Segments;
use ml::linear::Input;
use ml::quantized::Nf4;
use ml::{Inputs, Kind, Linear, Llama, Params, Pass, Tensor, Weight};
use std::path::Path;
use tiny::{close, numbers, tokens};

/// Settings of DoRA.
fn dora(dropout: f64) -> AdapterConfig {
    AdapterConfig {
        use_dora: true,
        ..tiny::adapter(4, dropout)
    }
}

fn nf4(values: &Tensor, kind: Kind) -> Weight {
    let size = values.size();
    let flat = Vec::<f32>::try_from(values.to_kind(Kind::Float).view(-1)).unwrap();
    let packed = nf4::quantize(&flat, 32, true, 1).unwrap();
    Weight::Nf4(Nf4::new(&packed, 32, (size[0], size[1]), kind))
}

fn logits(model: &Llama, pass: Pass) -> Tensor {
    let row = tokens(0, 20);
    let segments = Segments::new(&[row.len()], model.place).unwrap();
    let tokens = model.tokens(&row).unwrap();
    let hidden = model.hidden(pass, Inputs::Tokens(&tokens), &segments, None);
    model.logits(pass, &hidden.unwrap()).unwrap()
}

/// Moves every trained parameter away from where it starts.
fn moved(params: &Params) {
    ml::no_grad(|| {
        for (name, tensor) in params.trained() {
            let step = numbers(name, &tensor.size(), 0.2).to_kind(tensor.kind());
            let mut tensor = tensor.shallow_clone();
            tensor += step;
        }
    });
}

#[test]
fn fresh_dora_is_the_identity_and_goes_without_a_trace() {
    for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
        for packed in [false, true] {
            let mut params = Params::new();
            let mut model = tiny::model(kind, &mut params);
            for linear in model.linears_mut() {
                if packed {
                    let values = linear.weight.values(Kind::Float).unwrap();
                    linear.weight = nf4(&values, kind);
                }
            }
            let before = logits(&model, Pass::eval());
            let count = params.iter().count();
            ml::lora::attach(model.linears_mut(), &dora(0.0), 3, &mut params).unwrap();
            assert_eq!(params.trained().count(), 14 * 3);
            assert_eq!(
                before,
                logits(&model, Pass::eval()),
                "{kind:?} packed {packed}"
            );
            let fresh = |model: &Llama| {
                let linears = model.linears().into_iter();
                let mut fresh = linears.map(|linear| {
                    let adapter = linear.adapter.as_ref().unwrap();
                    adapter.is_identity(&linear.weight).unwrap()
                });
                fresh.all(|fresh| fresh)
            };
            assert!(fresh(&model));
            moved(&params);
            assert!(!fresh(&model));
            assert_ne!(before, logits(&model, Pass::eval()));
            assert_eq!(before, logits(&model, Pass::eval().without_adapters()));
            ml::adapter::detach(&mut model, &mut params);
            assert_eq!(params.iter().count(), count);
        }
    }
}

#[test]
fn merged_dora_is_added() {
    let mut params = Params::new();
    let mut model = tiny::model(Kind::Double, &mut params);
    ml::lora::attach(model.linears_mut(), &dora(0.0), 3, &mut params).unwrap();
    moved(&params);
    let added = logits(&model, Pass::eval());
    for linear in model.linears_mut() {
        let adapter = linear.adapter.take().unwrap();
        let weight = linear.weight.values(Kind::Double).unwrap();
        linear.weight = Weight::Dense(adapter.merged(&weight).unwrap());
    }
    close(&logits(&model, Pass::eval()), &added, 1e-12, "merged");
}

/// A linear of this weight with a moved adapter.
fn linear(weight: Weight, settings: &AdapterConfig) -> (Linear, Params) {
    let (out, kind) = (weight.extents().0, weight.kind());
    let bias = numbers("bias", &[out], 0.5).to_kind(kind);
    let mut linear = Linear::new("l", weight, Some(bias));
    let mut params = Params::new();
    ml::lora::attach(vec![&mut linear], settings, 3, &mut params).unwrap();
    moved(&params);
    (linear, params)
}

/// y, the gradient to x, and those of the adapter.
fn results(
    run: impl FnOnce(&Tensor) -> Tensor,
    x: &Tensor,
    params: &Params,
) -> Vec<(String, Tensor)> {
    params.zero_grad();
    let x = x.detach().copy().set_requires_grad(true);
    let y = run(&x);
    let g = numbers("g", &y.size(), 1.0).to_kind(y.kind());
    (&y * g).sum(y.kind()).backward();
    let mut all = vec![("y".to_owned(), y.detach()), ("dx".to_owned(), x.grad())];
    for (name, tensor) in params.trained() {
        all.push((name.to_owned(), tensor.grad().copy()));
    }
    all
}

#[test]
fn the_fused_linear_with_dora_is_the_plain_one_on_every_weight() {
    let values = numbers("weight", &[48, 64], 0.7);
    for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 3e-2)] {
        let dense = Weight::Dense(values.to_kind(kind));
        for (what, weight) in [("dense", dense), ("nf4", nf4(&values, kind))] {
            for dropout in [0.0, 0.3] {
                let settings = dora(dropout);
                let x = numbers("x", &[9, 64], 1.0).to_kind(kind);
                let pass = Pass::train(5);
                let same = Weight::Dense(weight.values(kind).unwrap());
                let (one, params) = linear(weight.shallow_clone(), &settings);
                let fused = results(|x| one.forward(pass, Input::Plain(x)).unwrap(), &x, &params);
                let plain = results(|x| one.plain(pass, x).unwrap(), &x, &params);
                let (other, params) = linear(same, &settings);
                let unpacked = results(
                    |x| other.forward(pass, Input::Plain(x)).unwrap(),
                    &x,
                    &params,
                );
                assert_eq!(fused.len(), 5);
                for (index, (name, found)) in fused.iter().enumerate() {
                    let what = format!("{kind:?} {what} dropout {dropout}: {name}");
                    close(found, &plain[index].1, tolerance, &what);
                    close(found, &unpacked[index].1, tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn a_row_of_zeros_stays_one_and_makes_nothing_infinite() {
    let values = numbers("weight", &[8, 16], 0.7);
    ml::no_grad(|| {
        let mut row = values.narrow(0, 3, 1);
        let _ = row.zero_();
    });
    let mut linear = Linear::new("l", Weight::Dense(values.to_kind(Kind::Float)), None);
    let mut params = Params::new();
    ml::lora::attach(vec![&mut linear], &dora(0.0), 3, &mut params).unwrap();
    let x = numbers("x", &[5, 16], 1.0).to_kind(Kind::Float);
    let run = |x: &Tensor| linear.forward(Pass::train(0), Input::Plain(x)).unwrap();
    for (name, found) in results(run, &x, &params) {
        let finite = found.isfinite().all().int64_value(&[]);
        assert_eq!(finite, 1, "{name}");
    }
}

#[test]
fn dora_survives_its_file_and_says_what_is_missing() {
    let mut params = Params::new();
    let mut model = tiny::model(Kind::BFloat16, &mut params);
    ml::lora::attach(model.linears_mut(), &dora(0.0), 3, &mut params).unwrap();
    moved(&params);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    ml::adapter::save(&model, &path).unwrap();
    let load = |path: &Path, settings: &AdapterConfig| {
        let weights = Weights::open(path).unwrap();
        let mut params = Params::new();
        let mut other = tiny::model(Kind::BFloat16, &mut params);
        let attached =
            ml::lora::attach_stored(other.linears_mut(), settings, &weights, &mut params);
        attached.map(|_| other)
    };
    let again = load(&path, &dora(0.0)).unwrap();
    assert_eq!(logits(&model, Pass::eval()), logits(&again, Pass::eval()));
    let fail = |settings: AdapterConfig| format!("{:#}", load(&path, &settings).unwrap_err());
    assert!(fail(tiny::adapter(4, 0.0)).contains("lora_magnitude_vector"));
    let (plain, _params) = tiny::adapted(Kind::BFloat16, 4, 0.0);
    ml::adapter::save(&plain, &path).unwrap();
    assert!(fail(dora(0.0)).contains("lora_magnitude_vector\" is missing"));
}

#[test]
fn fresh_ia3_is_the_identity_and_goes_without_a_trace() {
    for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
        let mut params = Params::new();
        let mut model = tiny::model(kind, &mut params);
        let before = logits(&model, Pass::eval());
        let count = params.iter().count();
        let config = Ia3Config::default();
        ml::ia3::attach(model.linears_mut(), &config, &mut params).unwrap();
        assert_eq!(before, logits(&model, Pass::eval()));
        moved(&params);
        assert_ne!(before, logits(&model, Pass::eval()));
        assert_eq!(before, logits(&model, Pass::eval().without_adapters()));
        ml::adapter::detach(&mut model, &mut params);
        assert_eq!(params.iter().count(), count);
        assert_eq!(before, logits(&model, Pass::eval()));
    }
}

#[test]
fn the_fused_linear_with_ia3_is_the_plain_one_on_every_weight() {
    let values = numbers("weight", &[48, 64], 0.7);
    for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 3e-2)] {
        let dense = Weight::Dense(values.to_kind(kind));
        for (what, weight) in [("dense", dense), ("nf4", nf4(&values, kind))] {
            for fed in [false, true] {
                let config = Ia3Config {
                    target_modules: vec!["l".to_owned()],
                    feedforward_modules: if fed { vec!["l".to_owned()] } else { vec![] },
                    ..Ia3Config::default()
                };
                let bias = numbers("bias", &[48], 0.5).to_kind(kind);
                let mut linear = Linear::new("l", weight.shallow_clone(), Some(bias));
                let mut params = Params::new();
                ml::ia3::attach(vec![&mut linear], &config, &mut params).unwrap();
                moved(&params);
                let x = numbers("x", &[9, 64], 1.0).to_kind(kind);
                let pass = Pass::train(5);
                let fused = results(
                    |x| linear.forward(pass, Input::Plain(x)).unwrap(),
                    &x,
                    &params,
                );
                let plain = results(|x| linear.plain(pass, x).unwrap(), &x, &params);
                assert_eq!(fused.len(), 3);
                for ((name, found), (_, wanted)) in fused.iter().zip(&plain) {
                    let what = format!("{kind:?} {what} feedforward {fed}: {name}");
                    close(found, wanted, tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn ia3_is_merged_into_weight_and_bias() {
    for fed in [false, true] {
        let config = Ia3Config {
            target_modules: vec!["l".to_owned()],
            feedforward_modules: if fed { vec!["l".to_owned()] } else { vec![] },
            ..Ia3Config::default()
        };
        let weight = numbers("weight", &[48, 64], 0.7).to_kind(Kind::Float);
        let bias = numbers("bias", &[48], 0.5).to_kind(Kind::Float);
        let dense = Weight::Dense(weight.shallow_clone());
        let mut linear = Linear::new("l", dense, Some(bias.shallow_clone()));
        assert!(linear.merged_bias(&bias).unwrap().is_none());
        let mut params = Params::new();
        ml::ia3::attach(vec![&mut linear], &config, &mut params).unwrap();
        moved(&params);
        let x = numbers("x", &[9, 64], 1.0).to_kind(Kind::Float);
        let forward = |linear: &Linear| linear.forward(Pass::eval(), Input::Plain(&x)).unwrap();
        let wanted = forward(&linear);
        let merged = linear.merged(&weight).unwrap().unwrap();
        let moved_bias = linear.merged_bias(&bias).unwrap();
        // What scales inputs leaves the bias as it is.
        assert_eq!(moved_bias.is_none(), fed);
        let bias = moved_bias.unwrap_or(bias);
        let plain = Linear::new("l", Weight::Dense(merged), Some(bias));
        close(&forward(&plain), &wanted, 5e-6, &format!("fed {fed}"));
    }
}

#[test]
fn ia3_survives_its_file() {
    let mut params = Params::new();
    let mut model = tiny::model(Kind::Float, &mut params);
    let config = Ia3Config::default();
    ml::ia3::attach(model.linears_mut(), &config, &mut params).unwrap();
    moved(&params);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    let settings = folder.path().join("adapter_config.json");
    ml::adapter::save(&model, &path).unwrap();
    config.save(&settings).unwrap();
    let stored = Weights::open(&path).unwrap();
    let attach = |config: &PeftConfig| {
        let mut params = Params::new();
        let mut other = tiny::model(Kind::Float, &mut params);
        let attached = ml::adapter::attach_stored(&mut other, config, &stored, &mut params);
        attached.map(|modules| (other, modules))
    };
    let (other, modules) = attach(&PeftConfig::open(&settings).unwrap()).unwrap();
    assert_eq!(modules.len(), 6);
    assert_eq!(logits(&model, Pass::eval()), logits(&other, Pass::eval()));
    let fed = Ia3Config {
        feedforward_modules: vec![],
        ..config.clone()
    };
    let message = format!("{:#}", attach(&PeftConfig::Ia3(fed)).unwrap_err());
    assert!(
        message.contains("shape") && message.contains("feedforward"),
        "{message}"
    );
    let fewer = Ia3Config {
        target_modules: vec!["k_proj".to_owned(), "down_proj".to_owned()],
        ..config
    };
    let message = format!("{:#}", attach(&PeftConfig::Ia3(fewer)).unwrap_err());
    assert!(message.contains("v_proj"), "{message}");
}

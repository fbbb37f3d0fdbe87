//! LoRA of full rank reaches any weights: with an A that has an inverse, B = (W' − W) A⁻¹ / s makes of W exactly W'. With less than the full
//! rank the nearest is as far as the singular values that are left over (Eckart and Young 1936).

mod tiny;

use formats::peft::AdapterConfig;
use ml::adapter::Adapter;
use ml::kv_cache::Segments;
use ml::linear::Input;
use ml::{Inputs, Kind, Linear, Llama, Params, Pass, Place, Tensor, Weight};
use tiny::{close, numbers, tokens};

/// How near f64 and f32 come: A is near the identity, so that its inverse loses nothing.
const KINDS: [(Kind, f64); 2] = [(Kind::Double, 1e-12), (Kind::Float, 2e-5)];

/// A matrix of full column rank that is no identity.
fn down(name: &str, rows: i64, columns: i64, place: Place) -> Tensor {
    let eye = Tensor::eye_m(rows, columns, (Kind::Double, place.device));
    eye + numbers(name, &[rows, columns], 0.05).to_device(place.device)
}

/// What undoes A from the right: (A^T A)⁻¹ A^T, which is A⁻¹ where A is square.
fn inverse(down: &Tensor) -> Tensor {
    let turned = down.tr();
    Tensor::linalg_inv(&turned.matmul(down)).matmul(&turned)
}

/// Gives the adapter of a linear this A and the B with which its weight becomes `wanted`.
fn aim(linear: &Linear, down: &Tensor, wanted: &Tensor) {
    let Some(Adapter::Lora(lora)) = &linear.adapter else {
        panic!("{} has no LoRA", linear.name)
    };
    let weight = linear.weight.values(Kind::Double).unwrap();
    let up = (wanted - weight).matmul(&inverse(down)) / lora.scale;
    ml::no_grad(|| {
        let kind = lora.down.kind();
        lora.down.shallow_clone().copy_(&down.to_kind(kind));
        lora.up.shallow_clone().copy_(&up.to_kind(kind));
    });
}

fn settings(r: usize, rslora: bool) -> AdapterConfig {
    AdapterConfig {
        use_rslora: rslora,
        ..tiny::adapter(r, 0.0)
    }
}

#[test]
fn a_linear_becomes_any_other() {
    let (out, input) = (24, 16);
    for (kind, tolerance) in KINDS {
        let place = tiny::place(kind);
        let here = |name: &str, shape: &[i64], scale: f64| {
            numbers(name, shape, scale).to_device(place.device)
        };
        for rslora in [false, true] {
            let weight = here("weight", &[out, input], 0.7).to_kind(kind);
            let wanted = here("another weight", &[out, input], 2.0);
            let bias = here("bias", &[out], 0.5).to_kind(kind);
            let mut linear = Linear::new("l", Weight::Dense(weight), Some(bias.shallow_clone()));
            let mut params = Params::new();
            let config = settings(input as usize, rslora);
            ml::lora::attach(vec![&mut linear], &config, 3, &mut params).unwrap();
            aim(&linear, &down("A", input, input, place), &wanted);

            let own = linear.weight.values(kind).unwrap();
            let merged = linear.merged(&own).unwrap().unwrap();
            close(&merged, &wanted, tolerance, "the merged weight");
            let x = here("x", &[9, input], 1.0).to_kind(kind);
            let other = Linear::new("l", Weight::Dense(wanted.to_kind(kind)), Some(bias));
            let run = |linear: &Linear| linear.forward(Pass::eval(), Input::Plain(&x)).unwrap();
            close(&run(&linear), &run(&other), tolerance, "the result");
            // And the weight under it is as it was.
            let before = here("weight", &[out, input], 0.7).to_kind(kind);
            assert_eq!(linear.weight.values(kind).unwrap(), before);
        }
    }
}

fn logits(model: &Llama) -> Tensor {
    let row = tokens(0, 20);
    let segments = Segments::new(&[row.len()], model.place).unwrap();
    let tokens = model.tokens(&row).unwrap();
    let hidden = model.hidden(Pass::eval(), Inputs::Tokens(&tokens), &segments, None);
    model.logits(Pass::eval(), &hidden.unwrap()).unwrap()
}

/// A model whose linears have other weights, and else the same.
fn sibling(kind: Kind, params: &mut Params) -> Llama {
    let mut source = |name: &str, shape: &[i64]| match name.contains("_proj") {
        true => Ok(numbers(&format!("other {name}"), shape, 0.3)),
        false => tiny::source(name, shape),
    };
    Llama::build(&tiny::config(), tiny::place(kind), params, &mut source).unwrap()
}

#[test]
fn a_model_becomes_any_other_of_its_shape() {
    for (kind, tolerance) in KINDS {
        let (mut params, mut theirs) = (Params::new(), Params::new());
        let mut model = tiny::model(kind, &mut params);
        let other = sibling(kind, &mut theirs);
        // As wide as the widest input: no layer has a rank that is less than full.
        ml::lora::attach(model.linears_mut(), &settings(48, true), 3, &mut params).unwrap();
        assert!(tiny::distance(&logits(&model), &logits(&other)) > 0.1);
        for (linear, wanted) in model.linears().into_iter().zip(other.linears()) {
            let (input, _) = linear.extents();
            let wanted = wanted.weight.values(Kind::Double).unwrap();
            aim(linear, &down(&linear.name, 48, input, model.place), &wanted);
        }
        // Through two layers and the head errors add up.
        close(
            &logits(&model),
            &logits(&other),
            20.0 * tolerance,
            "the logits",
        );
    }
}

#[test]
fn a_smaller_rank_reaches_the_nearest_of_its_rank() {
    let (out, input, r) = (24, 16, 5);
    let place = tiny::place(Kind::Double);
    let here = |name: &str, scale: f64| numbers(name, &[out, input], scale).to_device(place.device);
    let (weight, wanted) = (here("weight", 0.7), here("another weight", 2.0));
    let (u, s, v) = (&wanted - &weight).svd(true, true);
    let mut linear = Linear::new("l", Weight::Dense(weight.shallow_clone()), None);
    let mut params = Params::new();
    let config = settings(r as usize, false);
    ml::lora::attach(vec![&mut linear], &config, 3, &mut params).unwrap();
    let Some(Adapter::Lora(lora)) = &linear.adapter else {
        panic!("there is no LoRA")
    };
    ml::no_grad(|| {
        let first = |tensor: &Tensor, dimension: i64| tensor.narrow(dimension, 0, r);
        let up = first(&u, 1) * first(&s, 0) / lora.scale;
        lora.up.shallow_clone().copy_(&up);
        lora.down.shallow_clone().copy_(&first(&v, 1).tr());
    });
    let square = |tensor: Tensor| tensor.square().sum(Kind::Double).double_value(&[]);
    let merged = linear.merged(&weight).unwrap().unwrap();
    let left = square(&wanted - merged);
    let smallest = square(s.narrow(0, r, input - r));
    assert!(smallest > 0.1);
    assert!(
        (left / smallest - 1.0).abs() < 1e-9,
        "{left} and {smallest}"
    );
}

//! Laws of packed weights: a product with one is the product with its values, whoever computes it; only inputs and adapters get a
//! gradient; merged into unpacked weights an adapter does what it did; and of checkpointing: the same numbers, bit for bit.

mod tiny;

use formats::nf4;
use ml::kv_cache::Segments;
use ml::linear::Input;
use ml::quantized::{Int8, Nf4};
use ml::{Inputs, Kind, Linear, Llama, Params, Pass, Tensor, Weight, torch};
use proptest::prelude::*;
use tiny::{close, numbers, tokens};

fn nf4(values: &Tensor, block: usize, nested: bool, kind: Kind) -> Weight {
    let size = values.size();
    let flat = Vec::<f32>::try_from(values.to_kind(Kind::Float).view(-1)).unwrap();
    let packed = nf4::quantize(&flat, block, nested, 2).unwrap();
    Weight::Nf4(Nf4::new(&packed, block, (size[0], size[1]), kind))
}

fn int8(values: &Tensor, kind: Kind) -> Weight {
    let size = values.size();
    let flat = Vec::<f32>::try_from(values.to_kind(Kind::Float).view(-1)).unwrap();
    let (codes, largest) = formats::quantized::to_int8(&flat, size[1] as usize).unwrap();
    let codes: Vec<i8> = codes.into_iter().map(|code| code as i8).collect();
    Weight::Int8(Int8 {
        codes: Tensor::from_slice(&codes).view([size[0], size[1]]),
        scales: Tensor::from_slice(&largest) / 127.0,
        kind,
    })
}

/// Every way of packing a weight of these extents.
fn ways(out: i64, input: i64, kind: Kind) -> Vec<(String, Weight)> {
    let values = numbers("weight", &[out, input], 0.7);
    let mut ways = vec![("int8".to_owned(), int8(&values, kind))];
    for block in [32, 64, 256] {
        for nested in [false, true] {
            let name = format!("nf4 {block} nested {nested}");
            ways.push((name, nf4(&values, block, nested, kind)));
        }
    }
    ways
}

/// y and the gradient to x.
fn product(weight: Weight, x: &Tensor, pass: Pass) -> (Tensor, Tensor) {
    let x = x.detach().set_requires_grad(true);
    let linear = Linear::new("l", weight, None);
    let y = linear.forward(pass, Input::Plain(&x)).unwrap();
    let g = numbers("g", &y.size(), 1.0).to_kind(y.kind());
    (&y * g).sum(y.kind()).backward();
    (y.detach(), x.grad())
}

#[test]
fn the_kernels_unpack_what_plain_operators_unpack() {
    // Odd numbers of columns: a block then begins and a byte ends within a row.
    for (out, input) in [(48, 64), (7, 33), (3, 37), (1, 1), (130, 515)] {
        for kind in [Kind::BFloat16, Kind::Float, Kind::Half] {
            for (name, weight) in ways(out, input, kind) {
                let what = format!("{out} x {input} {kind:?} {name}");
                // f64 is unpacked by plain operators.
                let plain = weight.values(Kind::Double).unwrap().to_kind(Kind::Float);
                assert_eq!(plain.size(), [out, input], "{what}");
                assert_eq!(weight.values(Kind::Float).unwrap(), plain, "{what}");
            }
        }
    }
}

#[test]
fn a_product_with_a_packed_weight_is_that_with_its_values() {
    for (out, input, rows) in [(48, 64, 5), (33, 70, 20), (130, 515, 64), (16, 300, 1)] {
        for kind in [Kind::BFloat16, Kind::Float] {
            let x = numbers("x", &[rows, input], 1.0).to_kind(kind);
            for (name, weight) in ways(out, input, kind) {
                let what = format!("{out} x {input} {kind:?} {name}, {rows} rows");
                let dense = Weight::Dense(weight.values(kind).unwrap());
                let decode = Pass {
                    decode: true,
                    ..Pass::eval()
                };
                for pass in [Pass::eval(), decode] {
                    let (y, dx) = product(weight.shallow_clone(), &x, pass);
                    let (wanted, wanted_dx) = product(dense.shallow_clone(), &x, pass);
                    if torch::native_bf16() {
                        close(&y, &wanted, 2e-2, &what);
                        close(&dx, &wanted_dx, 2e-2, &what);
                    } else {
                        // The same kernel over the same numbers in the same order.
                        if !pass.decode {
                            assert_eq!(y, wanted, "{what}");
                        }
                        let near = if kind == Kind::Float { 1e-5 } else { 1e-2 };
                        close(&y, &wanted, near, &what);
                        assert_eq!(dx, wanted_dx, "{what}: the gradient");
                    }
                }
                let reference = dense
                    .values(Kind::Double)
                    .unwrap()
                    .matmul(&x.to_kind(Kind::Double).tr());
                let (y, _) = product(weight, &x, Pass::eval());
                let tolerance = if kind == Kind::Float { 1e-5 } else { 1e-2 };
                close(&y, &reference.tr(), tolerance, &what);
            }
        }
    }
}

#[test]
fn libtorchs_product_unpacks_for_each_use() {
    for kind in [Kind::Float, Kind::Double] {
        let x = numbers("x", &[9, 70], 1.0).to_kind(kind);
        for (name, weight) in ways(33, 70, Kind::Float) {
            let x = x.detach().copy().set_requires_grad(true);
            let y = torch::unpacked_product(&x, &weight.stored()).unwrap();
            let g = numbers("g", &[9, 33], 1.0).to_kind(kind);
            (&y * &g).sum(kind).backward();
            let values = weight.values(kind).unwrap();
            close(&y, &x.matmul(&values.tr()), 1e-6, &name);
            close(&x.grad(), &g.matmul(&values), 1e-6, &name);
        }
    }
}

/// The tiny model with packed linears and an adapter.
fn model(kind: Kind, packed: bool) -> (Llama, Params) {
    let (mut model, mut params) = tiny::adapted(kind, 4, 0.2);
    if packed {
        for linear in model.linears_mut() {
            let values = linear.weight.values(Kind::Float).unwrap();
            linear.weight = nf4(&values, 32, true, kind);
            params.remove(&format!("{}.weight", linear.name));
        }
    }
    (model, params)
}

/// Loss and every gradient of a training forward.
fn gradients(model: &Llama, params: &Params) -> Vec<(String, Tensor)> {
    params.zero_grad();
    let rows = [tokens(0, 20), tokens(1, 7)];
    let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
    let segments = Segments::new(&lengths, model.place).unwrap();
    let ids = model.tokens(&rows.concat()).unwrap();
    let hidden = model
        .hidden(Pass::train(5), Inputs::Tokens(&ids), &segments, None)
        .unwrap();
    let loss = (hidden.to_kind(Kind::Double) * numbers("g", &hidden.size(), 1.0)).sum(Kind::Double);
    loss.backward();
    let mut all = vec![("loss".to_owned(), loss.detach())];
    for (name, tensor) in params.trained() {
        all.push((name.to_owned(), tensor.grad().copy()));
    }
    all
}

#[test]
fn checkpointing_gives_the_same_bits() {
    for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
        for packed in [false, true] {
            for whole in [false, true] {
                if packed && whole {
                    continue;
                }
                let (mut model, mut params) = model(kind, packed);
                if whole {
                    params.train(|_| true);
                }
                let plain = gradients(&model, &params);
                model.checkpointing = true;
                let again = gradients(&model, &params);
                assert_eq!(plain.len(), again.len());
                for ((name, a), (_, b)) in plain.iter().zip(&again) {
                    assert_eq!(a, b, "{kind:?} packed {packed} whole {whole}: {name}");
                }
            }
        }
    }
}

#[test]
fn only_adapters_learn_on_packed_weights_and_the_packed_stay() {
    let (model, params) = model(Kind::Float, true);
    assert!(model.is_quantized() && model.packed_values() > 0);
    assert!(
        params
            .iter()
            .all(|(name, _)| !name.ends_with("proj.weight"))
    );
    let before: Vec<Tensor> = codes(&model);
    let found = gradients(&model, &params);
    assert!(
        found.len() > 1
            && found
                .iter()
                .all(|(name, _)| name == "loss" || name.contains("lora"))
    );
    assert_eq!(before, codes(&model));
}

fn codes(model: &Llama) -> Vec<Tensor> {
    let linears = model.linears().into_iter();
    linears
        .map(|linear| match &linear.weight {
            Weight::Nf4(weight) => weight.codes.copy(),
            _ => panic!("{} is not packed", linear.name),
        })
        .collect()
}

#[test]
fn merged_into_unpacked_weights_is_packed_with_its_adapter() {
    // Merged, a weight is rounded to bf16 with its change in it: near the unmerged one, not equal.
    for (kind, tolerance) in [
        (Kind::Double, 1e-12),
        (Kind::Float, 2e-5),
        (Kind::BFloat16, 5e-2),
    ] {
        let (mut model, _params) = model(kind, true);
        let row = tokens(0, 20);
        let hidden = |model: &Llama| {
            let segments = Segments::new(&[row.len()], model.place).unwrap();
            let ids = model.tokens(&row).unwrap();
            model
                .hidden(Pass::eval(), Inputs::Tokens(&ids), &segments, None)
                .unwrap()
        };
        let added = hidden(&model);
        let wide = match kind {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        for linear in model.linears_mut() {
            let merged = linear.merged(&linear.weight.values(wide).unwrap());
            let merged = merged.unwrap().unwrap();
            linear.weight = Weight::Dense(merged.to_kind(kind));
            linear.adapter = None;
            assert!(
                linear
                    .merged(&linear.weight.values(wide).unwrap())
                    .unwrap()
                    .is_none()
            );
        }
        assert!(!model.is_quantized());
        close(&hidden(&model), &added, tolerance, &format!("{kind:?}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever the shape, packed and unpacked agree, and quantizing what was unpacked changes nothing more.
    #[test]
    fn unpacked_values_are_packed_to_themselves(out in 1i64..40, input in 1i64..90, block in 0usize..3, nested: bool) {
        let block = [32, 64, 128][block];
        let values = numbers("weight", &[out, input], 1.0);
        let first = nf4(&values, block, false, Kind::Float);
        let unpacked = first.values(Kind::Float).unwrap();
        let second = nf4(&unpacked, block, false, Kind::Float).values(Kind::Float).unwrap();
        prop_assert_eq!(&unpacked, &second);
        let error = (unpacked - values.to_kind(Kind::Float)).abs().max().double_value(&[]);
        prop_assert!(error <= 0.153, "{}", error);
        let doubly = nf4(&values, block, nested, Kind::Float).values(Kind::Float).unwrap();
        let error = (doubly - values.to_kind(Kind::Float)).abs().max().double_value(&[]);
        prop_assert!(error <= 0.25, "{}", error);
    }
}

//! Laws of bottleneck adapters: with an empty second projection they are the identity, they go without a trace, checkpointing and caches
//! change nothing, training leaves the base as it is, files are read as they were written.

mod tiny;

use anyhow::Result;
use formats::nf4;
use formats::peft::{BottleneckConfig, NonLinearity, PeftConfig};
use formats::tensors::Weights;
use ml::fit::{Next, Plan, Step, fit};
use ml::kv_cache::Segments;
use ml::optimizer::{Optimizer, Options, Rule, Schedule, Shape};
use ml::quantized::Nf4;
use ml::sft::{Batch, Row, Sft};
use ml::update::Updater;
use ml::{Inputs, Kind, Llama, Params, Pass, Tensor, Weight};
use tiny::{close, numbers, tokens};

const KINDS: [(Kind, f64); 3] = [
    (Kind::Double, 1e-12),
    (Kind::Float, 2e-5),
    (Kind::BFloat16, 2e-2),
];

fn forms() -> [BottleneckConfig; 2] {
    [
        BottleneckConfig::houlsby(32),
        BottleneckConfig::pfeiffer(32),
    ]
    .map(|config| BottleneckConfig {
        reduction_factor: 8.0,
        ..config
    })
}

/// Attaches adapters that start small, biases at 0.
fn attach(
    model: &mut Llama,
    config: &BottleneckConfig,
    params: &mut Params,
) -> Result<Vec<String>> {
    ml::bottleneck::attach(model, config, params, |name, shape| {
        let scale = if name.ends_with(".bias") { 0.0 } else { 0.035 };
        Ok(numbers(name, shape, scale))
    })
}

/// The tiny model with fresh adapters.
fn adapted(kind: Kind, config: &BottleneckConfig) -> (Llama, Params) {
    let mut params = Params::new();
    let mut model = tiny::model(kind, &mut params);
    let names = attach(&mut model, config, &mut params).unwrap();
    assert_eq!(names.len(), 2 * config.places().len());
    (model, params)
}

/// Changes the trained parameters whose names end so.
fn change(params: &Params, ending: &str, to: impl Fn(&str, &Tensor) -> Tensor) {
    ml::no_grad(|| {
        let mut changed = 0;
        for (name, tensor) in params.trained().filter(|(name, _)| name.ends_with(ending)) {
            let fresh = to(name, tensor).to_kind(tensor.kind());
            tensor.shallow_clone().copy_(&fresh);
            changed += 1;
        }
        assert!(changed > 0, "there is no {ending}");
    });
}

/// Moves every number of the adapters away from where it starts.
fn moved(params: &Params) {
    change(params, "", |name, tensor| {
        tensor + numbers(name, &tensor.size(), 0.2).to_kind(tensor.kind())
    });
}

fn logits(model: &Llama, pass: Pass) -> Tensor {
    let row = tokens(0, 20);
    let segments = Segments::new(&[row.len()], model.place).unwrap();
    let tokens = model.tokens(&row).unwrap();
    let hidden = model.hidden(pass, Inputs::Tokens(&tokens), &segments, None);
    model.logits(pass, &hidden.unwrap()).unwrap()
}

#[test]
fn an_empty_second_projection_is_the_identity_and_leaves_no_trace() {
    for (kind, _) in KINDS {
        for config in forms() {
            for packed in [false, true] {
                let mut params = Params::new();
                let mut model = tiny::model(kind, &mut params);
                for linear in model.linears_mut().into_iter().filter(|_| packed) {
                    let values = linear.weight.values(Kind::Float).unwrap();
                    let size = values.size();
                    let flat = Vec::<f32>::try_from(values.view(-1)).unwrap();
                    let codes = nf4::quantize(&flat, 32, true, 1).unwrap();
                    let extents = (size[0], size[1]);
                    linear.weight = Weight::Nf4(Nf4::new(&codes, 32, extents, kind));
                }
                let before = logits(&model, Pass::eval());
                let count = params.iter().count();
                attach(&mut model, &config, &mut params).unwrap();
                assert!(
                    params
                        .trained()
                        .all(|(name, _)| ml::adapter::is_parameter(name))
                );
                assert!(!ml::adapter::is_identity(&model).unwrap());
                assert_ne!(before, logits(&model, Pass::eval()));
                assert_eq!(before, logits(&model, Pass::eval().without_adapters()));
                change(&params, "adapter_up.weight", |_, tensor| {
                    tensor.zeros_like()
                });
                assert!(ml::adapter::is_identity(&model).unwrap());
                assert_eq!(before, logits(&model, Pass::eval()), "{kind:?} {config:?}");
                moved(&params);
                assert_ne!(before, logits(&model, Pass::eval()));
                ml::adapter::detach(&mut model, &mut params);
                assert_eq!(before, logits(&model, Pass::eval()));
                assert_eq!(params.iter().count(), count);
                assert!(ml::adapter::stored(&model).is_empty());
            }
        }
    }
}

#[test]
fn adapters_do_not_come_twice() {
    for config in forms() {
        let (mut model, mut params) = adapted(Kind::Float, &config);
        let again = attach(&mut model, &config, &mut params);
        assert!(again.unwrap_err().to_string().contains("already"));
    }
}

fn row(index: usize) -> Row {
    let tokens = tokens(index, 4 + (index * 7) % 30);
    Row {
        trained: (0..tokens.len()).map(|t| t % 4 != 2).collect(),
        tokens,
        documents: vec![],
    }
}

/// The loss of three rows, and every gradient.
fn gradients(model: &Llama, params: &Params) -> Vec<(String, Tensor)> {
    params.zero_grad();
    let rows: Vec<Row> = (0..3).map(row).collect();
    let batch = Batch::new(model, &rows).unwrap();
    let loss = batch.cross_entropy(model, Pass::train(1), 16).unwrap();
    loss.sum.backward();
    let mut all = vec![("loss".to_owned(), loss.sum.detach())];
    for (name, tensor) in params.trained() {
        all.push((name.to_owned(), tensor.grad().copy()));
    }
    all
}

#[test]
fn checkpointing_gives_the_same_bits() {
    for (kind, _) in KINDS {
        for config in forms() {
            let (mut model, params) = adapted(kind, &config);
            moved(&params);
            let plain = gradients(&model, &params);
            assert_eq!(plain.len(), 1 + 8 * config.places().len());
            model.checkpointing = true;
            let again = gradients(&model, &params);
            for ((name, a), (_, b)) in plain.iter().zip(&again) {
                assert_eq!(a, b, "{kind:?} {name}");
                assert!(b.abs().max().double_value(&[]) > 0.0, "{name} gets nothing");
            }
        }
    }
}

#[test]
fn a_cache_changes_nothing() {
    for (kind, tolerance) in KINDS {
        for config in forms() {
            let (model, params) = adapted(kind, &config);
            moved(&params);
            let whole = logits(&model, Pass::eval());
            let ids = tokens(0, 20);
            ml::no_grad(|| {
                let mut cache = model.cache(1, 20);
                let mut seen = 0;
                for length in [12, 1, 1, 6] {
                    let segments = cache.segments(&[0], &[length]).unwrap();
                    let pass = Pass {
                        decode: length == 1,
                        ..Pass::eval()
                    };
                    let next = model.tokens(&ids[seen..seen + length]).unwrap();
                    let hidden = model
                        .hidden(pass, Inputs::Tokens(&next), &segments, Some(&mut cache))
                        .unwrap();
                    let found = model.logits(pass, &hidden).unwrap();
                    let wanted = whole.narrow(0, seen as i64, length as i64);
                    close(&found, &wanted, tolerance, &format!("{kind:?} at {seen}"));
                    seen += length;
                }
            });
        }
    }
}

/// Copies of what is trained, or of what is not.
fn values(params: &Params, trained: bool) -> Vec<Tensor> {
    let chosen = params.iter().filter(|(_, param)| param.trained == trained);
    chosen
        .map(|(_, param)| param.tensor.detach().copy())
        .collect()
}

#[test]
fn training_moves_adapters_and_nothing_else() {
    for config in forms() {
        let (model, params) = adapted(Kind::Float, &config);
        let (base, fresh) = (values(&params, false), values(&params, true));
        let off = logits(&model, Pass::eval().without_adapters());
        let plan = Plan {
            seed: 9,
            epochs: 12,
            batch: 4,
            micro_batch: 4,
            max_steps: None,
            shuffle: true,
        };
        let rule = Rule::AdamW(Options::default());
        let mut updater = Updater {
            optimizer: Optimizer::new(rule, vec![]),
            schedule: Schedule {
                shape: Shape::Cosine,
                peak: 1e-2,
                warmup: 2,
                total: plan.steps(18),
            },
            clip: Some(1.0),
        };
        let mut objective = Sft {
            model: &model,
            rows: 18,
            read: Box::new(|index| Ok(row(index))),
            chunk: 16,
        };
        let mut losses = Vec::new();
        let taken = fit(
            &mut objective,
            &params,
            &mut updater,
            &plan,
            None,
            &mut |step: &Step| {
                losses.push(step.loss);
                Ok(Next::Go)
            },
        );
        assert_eq!(taken.unwrap(), losses.len());
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&losses[..5]), mean(&losses[losses.len() - 5..]));
        assert!(last < 0.95 * first, "{first} became {last}");
        assert_eq!(base, values(&params, false));
        for (before, after) in fresh.iter().zip(values(&params, true)) {
            assert_ne!(*before, after);
        }
        assert_eq!(off, logits(&model, Pass::eval().without_adapters()));
    }
}

#[test]
fn a_model_beside_another_has_adapters_of_its_own() {
    let [houlsby, pfeiffer] = forms();
    let (model, params) = adapted(Kind::Float, &houlsby);
    moved(&params);
    let mut own = Params::new();
    let mut other = Llama::beside(&model, &params, &mut own).unwrap();
    let base = logits(&model, Pass::eval().without_adapters());
    assert_eq!(base, logits(&other, Pass::eval()));
    attach(&mut other, &pfeiffer, &mut own).unwrap();
    assert_ne!(base, logits(&other, Pass::eval()));
    assert_eq!(base, logits(&model, Pass::eval().without_adapters()));
}

#[test]
fn files_are_read_as_they_were_written() {
    for (kind, _) in KINDS {
        for config in forms() {
            let config = BottleneckConfig {
                non_linearity: NonLinearity::GeluNew,
                scaling: 0.5,
                ..config
            };
            let (model, params) = adapted(kind, &config);
            moved(&params);
            let folder = tempfile::tempdir().unwrap();
            let settings = folder.path().join("adapter_config.json");
            PeftConfig::Bottleneck(config).save(&settings).unwrap();
            let settings = PeftConfig::open(&settings).unwrap();
            let path = folder.path().join(settings.weights_file());
            ml::adapter::save(&model, &path).unwrap();
            let stored = Weights::open(&path).unwrap();
            let mut again = Params::new();
            let mut other = tiny::model(kind, &mut again);
            ml::adapter::attach_stored(&mut other, &settings, &stored, &mut again).unwrap();
            let (ours, theirs) = (logits(&model, Pass::eval()), logits(&other, Pass::eval()));
            match kind {
                // Files are in f32.
                Kind::Double => close(&theirs, &ours, 1e-6, "a f64 model"),
                _ => assert_eq!(ours, theirs),
            }
        }
    }
}

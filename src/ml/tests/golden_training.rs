//! The update against torch's AdamW with transformers' schedules, and ten steps of training against a plain transformers and
//! PEFT loop and against TRL's trainer (tests/golden/make/ml_optimizer.py and ml_training.py).

mod support;

use ml::fit::{Next, Plan, Step, fit};
use ml::kv_cache::Segments;
use ml::optimizer::{Optimizer, Options, Rule, Schedule, Shape};
use ml::sft::{Row, Sft};
use ml::update::Updater;
use ml::{Inputs, Kind, Llama, Params, Pass, Tensor};
use serde_json::json;
use support::{Golden, adapter, close, fill, model, near, numbers, tokens, tolerance};

const STEPS: usize = 10;
const ROWS: usize = 40;

/// The settings of a case of ml_optimizer.py.
struct Case {
    name: &'static str,
    shape: Shape,
    clip: Option<f64>,
    options: Options,
}

fn cases() -> Vec<Case> {
    let case = |name, shape, clip, options| Case {
        name,
        shape,
        clip,
        options,
    };
    let decayed = Options {
        weight_decay: 0.1,
        ..Options::default()
    };
    let other = Options {
        beta1: 0.8,
        beta2: 0.95,
        eps: 1e-4,
        weight_decay: 0.3,
    };
    vec![
        case("constant", Shape::Constant, Some(1.0), decayed),
        case("linear", Shape::Linear, Some(1.0), decayed),
        case("cosine", Shape::Cosine, Some(1.0), decayed),
        case("unclipped", Shape::Linear, None, Options::default()),
        case("other_betas", Shape::Cosine, Some(2.5), other),
    ]
}

#[test]
fn ten_steps_of_adamw_are_those_of_torch() {
    let golden = Golden::open(&["optimizer"]);
    for kind in [Kind::Double, Kind::Float] {
        let tolerance = tolerance::of(kind);
        for case in cases() {
            let mut params = Params::new();
            for (name, shape) in [("norm.weight", vec![5]), ("proj.weight", vec![4, 3])] {
                let tensor = numbers(name, &shape, 1.0).to_kind(kind);
                params.add(name, &tensor, true).unwrap();
            }
            let mut updater = Updater {
                optimizer: Optimizer::new(
                    Rule::AdamW(case.options),
                    vec!["norm.weight".to_owned()],
                ),
                schedule: Schedule {
                    shape: case.shape,
                    peak: 0.05,
                    warmup: 3,
                    total: STEPS,
                },
                clip: case.clip,
            };
            let (mut rates, mut norms) = (Vec::new(), Vec::new());
            for step in 0..STEPS {
                // The gradient of a weighted sum is its weights; in two parts, which add up.
                for (name, tensor) in params.trained() {
                    let scale = 0.1 + 0.2 * step as f64;
                    let way = numbers(&format!("gradient {step} {name}"), &tensor.size(), scale);
                    for part in [0.25, 0.75] {
                        let sum = (tensor * way.to_kind(kind)).sum(kind) * part;
                        updater.add(&sum).unwrap();
                    }
                }
                let update = updater.step(&params, step).unwrap();
                rates.push(update.rate);
                norms.push(update.norm);
                for (name, tensor) in params.trained() {
                    let expected = golden.get(&format!("{}.{name}", case.name));
                    let what = format!("{kind:?} {} {name} after step {step}", case.name);
                    close(tensor, &expected.select(0, step as i64), tolerance, &what);
                }
            }
            // Learning rates are f64 whatever the parameters are.
            let expected = golden.numbers(&format!("{}.rates", case.name));
            near(&rates, &expected, 1e-12, case.name);
            let expected = golden.numbers(&format!("{}.norms", case.name));
            near(&norms, &expected, tolerance, case.name);
        }
    }
}

/// A prompt, then a completion that is trained.
fn row(index: usize) -> Row {
    let length = 4 + index * 7 % 19;
    let prompt = 1 + index * 5 % (length - 2);
    Row {
        tokens: tokens(&format!("row {index}"), length),
        trained: (0..length).map(|at| at >= prompt).collect(),
        documents: vec![],
    }
}

/// Ten steps of four rows.
fn train(model: &Llama, params: &Params, micro_batch: usize, weight_decay: f64) -> Vec<Step> {
    let plan = Plan {
        seed: 0,
        epochs: 1,
        batch: 4,
        micro_batch,
        max_steps: None,
        shuffle: false,
    };
    let mut objective = Sft {
        model,
        rows: ROWS,
        read: Box::new(|index| Ok(row(index))),
        chunk: 16,
    };
    let norms = params.trained().map(|(name, _)| name);
    let norms = norms.filter(|name| name.contains("norm"));
    let options = Options {
        weight_decay,
        ..Options::default()
    };
    let mut updater = Updater {
        optimizer: Optimizer::new(Rule::AdamW(options), norms.map(str::to_owned).collect()),
        schedule: Schedule {
            shape: Shape::Linear,
            peak: 1e-2,
            warmup: 2,
            total: plan.steps(ROWS),
        },
        clip: Some(1.0),
    };
    let mut steps = Vec::new();
    fit(
        &mut objective,
        params,
        &mut updater,
        &plan,
        None,
        &mut |step| {
            steps.push(step.clone());
            Ok(Next::Go)
        },
    )
    .unwrap();
    assert_eq!(steps.len(), STEPS);
    steps
}

/// The tiny model with a fresh adapter: A by formula, B zero.
fn lora(kind: Kind) -> (Llama, Params) {
    let mut params = Params::new();
    let mut model = model(kind, json!({}), &mut params);
    ml::lora::attach(model.linears_mut(), &adapter(json!({})), 0, &mut params).unwrap();
    fill(&params, |name| name.contains("lora_A"));
    (model, params)
}

fn losses(steps: &[Step]) -> Vec<f64> {
    steps.iter().map(|step| step.loss).collect()
}

fn norms(steps: &[Step]) -> Vec<f64> {
    steps.iter().map(|step| step.grad_norm).collect()
}

#[track_caller]
fn compare(steps: &[Step], golden: &Golden, name: &str, tolerance: f64, what: &str) {
    let at = |key: &str| golden.numbers(&format!("{name}.{key}"));
    let losses_of = format!("{what}: losses");
    near(&losses(steps), &at("losses"), tolerance, &losses_of);
    let norms_of = format!("{what}: norms");
    near(&norms(steps), &at("norms"), tolerance, &norms_of);
}

#[test]
fn ten_steps_of_lora_are_those_of_a_plain_peft_loop() {
    let golden = Golden::open(&["training"]);
    for (kind, micro_batch) in [(Kind::Double, 2), (Kind::Double, 3), (Kind::Float, 2)] {
        let tolerance = tolerance::of(kind);
        let (model, params) = lora(kind);
        let steps = train(&model, &params, micro_batch, 0.0);
        let what = format!("{kind:?} {micro_batch}");
        compare(&steps, &golden, "lora", tolerance, &what);
        let counts: Vec<f64> = steps.iter().map(|step| step.weight).collect();
        assert_eq!(counts, golden.numbers("lora.counts"));
        assert_eq!(
            golden.names("lora.final.").count(),
            params.trained().count()
        );
        let tolerance = match kind {
            Kind::Double => tolerance,
            _ => tolerance::after_adam(golden.numbers("lora.single")[0]),
        };
        for (name, tensor) in params.trained() {
            let expected = golden.get(&format!("lora.final.{name}"));
            let what = format!("{what} {name} after ten steps");
            close(tensor, expected, tolerance, &what);
        }
    }
}

#[test]
fn ten_steps_of_every_weight_are_those_of_a_plain_transformers_loop() {
    let golden = Golden::open(&["training"]);
    for kind in [Kind::Double, Kind::Float] {
        let tolerance = tolerance::of(kind);
        let mut params = Params::new();
        let model = model(kind, json!({"tie_word_embeddings": false}), &mut params);
        params.train(|_| true);
        let steps = train(&model, &params, 2, 0.05);
        compare(&steps, &golden, "full", tolerance, &format!("{kind:?}"));
        let ids = row(0).tokens;
        let logits: Tensor = ml::no_grad(|| {
            let segments = Segments::new(&[ids.len()], model.place).unwrap();
            let tokens = model.tokens(&ids).unwrap();
            let inputs = Inputs::Tokens(&tokens);
            let hidden = model.hidden(Pass::eval(), inputs, &segments, None).unwrap();
            model.logits(Pass::eval(), &hidden).unwrap()
        });
        let what = format!("{kind:?} logits after ten steps");
        close(&logits, golden.get("full.logits"), tolerance, &what);
    }
}

#[test]
fn losses_and_norms_are_those_that_trl_logs() {
    let golden = Golden::open(&["training"]);
    let (model, params) = lora(Kind::Float);
    let steps = train(&model, &params, 2, 0.0);
    compare(&steps, &golden, "trl", tolerance::F32, "TRL");
    let rates: Vec<f64> = steps.iter().map(|step| step.lr).collect();
    near(&rates, &golden.numbers("trl.rates"), 1e-12, "rates");
}

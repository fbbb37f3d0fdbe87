//! Preference losses against TRL's own trainers: tests/golden/rlhf/preference.py.

mod support;

use ml::completions::Row;
use ml::fit::Objective;
use ml::loss::TokenValues;
use ml::preference::free::{CpoLoss, Kto};
use ml::preference::pair::{Divergence, PairLoss, Settings};
use ml::preference::{Group, Method, Preference};
use ml::reward::{RewardLoss, group_loss};
use ml::{Kind, Llama, Params, Tensor};
use serde_json::{Value, json};
use support::{Rlhf, close, near, tolerance};

/// A model that is only asked for its vocabulary: the logits come from the file.
fn vocabulary() -> (Llama, Params) {
    let mut params = Params::new();
    let model = support::model(Kind::Double, json!({}), &mut params);
    (model, params)
}

/// Rows of the file: those of `input_ids` that are not padding, with the tokens before the completion as prompt.
fn rows(file: &Rlhf, prefix: &str) -> Vec<Row> {
    let matrix = |name: &str| file.matrix(&format!("{prefix}{name}"));
    let ids = matrix("input_ids");
    let (kept, completion) = (matrix("attention_mask"), matrix("completion_mask"));
    let rows = ids.iter().zip(&kept).zip(&completion);
    rows.map(|((ids, kept), completion)| {
        let length = kept.iter().filter(|x| **x == 1.0).count();
        Row {
            tokens: ids[..length].iter().map(|id| *id as i64).collect(),
            prompt: completion.iter().position(|x| *x == 1.0).unwrap(),
        }
    })
    .collect()
}

/// What logits `[rows, width, vocabulary]` say of the completions' tokens of some rows.
fn values(logits: &Tensor, rows: &[Row], chosen: &[usize]) -> TokenValues {
    let (mut logps, mut squares) = (Vec::new(), Vec::new());
    for &index in chosen {
        let row = &rows[index];
        let start = row.prompt as i64 - 1;
        let own = logits.select(0, index as i64);
        let own = own.narrow(0, start, row.completion() as i64);
        let logs = own.log_softmax(1, None::<Kind>);
        let targets = Tensor::from_slice(&row.tokens[row.prompt..]).unsqueeze(1);
        logps.push(logs.gather(1, &targets, false).squeeze_dim(1));
        squares.push((logs.detach() * 2.0).logsumexp(1i64, false));
    }
    TokenValues {
        log_probabilities: Tensor::cat(&logps, 0),
        entropies: Tensor::zeros([0], (Kind::Double, logits.device())),
        log_squares: Tensor::cat(&squares, 0),
    }
}

fn lists(values: &TokenValues, rows: &[Row], chosen: &[usize]) -> Vec<Vec<f32>> {
    let all: Vec<f64> = Vec::try_from(&values.log_probabilities.detach()).unwrap();
    let mut all = all.into_iter();
    chosen
        .iter()
        .map(|&i| {
            let own = all.by_ref().take(rows[i].completion());
            own.map(|x| x as f32).collect()
        })
        .collect()
}

fn text<'a>(settings: &'a Value, name: &str, default: &'a str) -> &'a str {
    settings
        .get(name)
        .and_then(Value::as_str)
        .unwrap_or(default)
}

fn number(settings: &Value, name: &str, default: f64) -> f64 {
    settings
        .get(name)
        .and_then(Value::as_f64)
        .unwrap_or(default)
}

fn flag(settings: &Value, name: &str) -> bool {
    settings.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn dpo(settings: &Value) -> Method {
    let words = settings["loss_type"].as_array().unwrap();
    let weights = settings.get("loss_weights").and_then(Value::as_array);
    let losses = words.iter().enumerate().map(|(i, word)| {
        let loss = PairLoss::parse(word.as_str().unwrap()).unwrap();
        (loss, weights.map_or(1.0, |w| w[i].as_f64().unwrap()))
    });
    let divergence = match text(settings, "f_divergence_type", "reverse_kl") {
        "reverse_kl" => Divergence::ReverseKl,
        "forward_kl" => Divergence::ForwardKl,
        "js_divergence" => Divergence::Js,
        "alpha_divergence" => Divergence::Alpha(number(settings, "f_alpha_divergence_coef", 0.5)),
        other => panic!("{other}"),
    };
    let losses: Vec<_> = losses.collect();
    let settings_of = Settings {
        beta: number(settings, "beta", 0.1),
        label_smoothing: number(settings, "label_smoothing", 0.0),
        divergence,
        discopop_tau: 0.05,
        ipo_averages: true,
    };
    ml::preference::pair::check(&losses, &settings_of).unwrap();
    Method::Dpo {
        losses,
        settings: settings_of,
        ld_alpha: settings.get("ld_alpha").and_then(Value::as_f64),
        weighted: flag(settings, "use_weighting"),
        soft_labels: false,
    }
}

/// The reference log-probabilities are kept as f32 in the product: so far apart may losses be that are computed in f64 otherwise.
const REFERENCE: f64 = 2e-6;

/// Runs every case of a file of pairs and compares loss, gradient and metrics.
fn pairs(name: &str, method: impl Fn(&Value) -> Method, referenced: bool) {
    let inputs = Rlhf::open("pairs");
    let all = rows(&inputs, "");
    let order: Vec<usize> = (0..4).flat_map(|pair| [pair, pair + 4]).collect();
    let reference = values(inputs.get("reference_logits"), &all, &order);
    let reference = lists(&reference, &all, &order);
    let (model, _params) = vocabulary();
    let golden = Rlhf::open(name);
    for (case, settings, line) in golden.cases(name) {
        let logits = inputs.get("policy_logits").copy().set_requires_grad(true);
        let read = |pair: usize| {
            Ok(Group {
                rows: vec![all[pair].clone(), all[pair + 4].clone()],
                reference: match referenced {
                    true => reference[2 * pair..2 * pair + 2].to_vec(),
                    false => Vec::new(),
                },
                value: f64::NAN,
            })
        };
        let method = method(&settings);
        let mut objective = Preference::new(&model, 4, Box::new(read), method.clone());
        let batch = objective.batch(&[0, 1, 2, 3]).unwrap();
        let found = values(&logits, &all, &order);
        let prompts = matches!(method, Method::Orpo { .. }).then(|| prompt_loss(&logits, &all));
        let batches = [batch];
        objective.count(&batches, 0.0);
        let loss = objective.loss_of(&batches[0], &found, prompts).unwrap();
        let mean = &loss.sum / loss.weight;
        mean.backward();
        let tolerance = match (line["dtype"] == "f32", referenced) {
            (true, _) => tolerance::F32,
            (false, true) => REFERENCE,
            (false, false) => tolerance::F64,
        };
        let what = format!("{name} {case}");
        let wanted = line["loss"].as_f64().unwrap();
        near(&[mean.double_value(&[])], &[wanted], tolerance, &what);
        let gradient = golden.get(&format!("gradient/{case}"));
        close(
            &logits.grad(),
            gradient,
            4.0 * tolerance,
            &format!("gradient of {what}"),
        );
        for (metric, sum) in &loss.sums {
            let Some(wanted) = line["metrics"].get(*metric).and_then(Value::as_f64) else {
                continue;
            };
            let ours = sum / loss.weight;
            assert!(
                (ours - wanted).abs() <= 1e-5 * wanted.abs().max(1.0),
                "{what}: {metric} is {ours}, TRL says {wanted}"
            );
        }
    }
}

/// The cross entropy of the prompts of the chosen rows.
fn prompt_loss(logits: &Tensor, rows: &[Row]) -> Tensor {
    let mut sum = Tensor::zeros([1], (Kind::Double, logits.device()));
    for (index, row) in rows.iter().take(4).enumerate() {
        for at in 1..row.prompt as i64 {
            let logs = logits.select(0, index as i64).select(0, at - 1);
            let logs = logs.log_softmax(0, None::<Kind>);
            sum -= logs.get(row.tokens[at as usize]);
        }
    }
    sum.sum(None::<Kind>)
}

#[test]
fn dpo_and_its_family() {
    pairs("dpo", dpo, true);
}

#[test]
fn divergences() {
    pairs("dpo_divergences", dpo, true);
}

#[test]
fn cpo_and_simpo() {
    let method = |settings: &Value| {
        let alpha = number(settings, "alpha", 0.0);
        let loss = match settings["loss_type"].as_str().unwrap() {
            // TRL's AlphaPO on sums is a mixture that no paper has: `sigmoid` with `alpha`.
            "sigmoid" => CpoLoss::Sigmoid { alpha },
            "hinge" => CpoLoss::Hinge,
            "ipo" => CpoLoss::Ipo,
            "simpo" | "alphapo" => CpoLoss::Simpo {
                gamma: number(settings, "simpo_gamma", 0.5),
                alpha,
            },
            other => panic!("{other}"),
        };
        let alphapo = settings["loss_type"] == "alphapo";
        Method::Cpo {
            loss,
            beta: number(settings, "beta", 0.1),
            label_smoothing: number(settings, "label_smoothing", 0.0),
            nll: number(settings, "cpo_alpha", if alphapo { 0.0 } else { 1.0 }),
        }
    };
    pairs("cpo", method, false);
}

#[test]
fn orpo() {
    let method = |settings: &Value| Method::Orpo {
        beta: number(settings, "beta", 0.1),
    };
    pairs("orpo", method, false);
}

#[test]
fn kto() {
    let inputs = Rlhf::open("pairs");
    let (all, mismatched) = (rows(&inputs, ""), rows(&inputs, "kl_"));
    let order: Vec<usize> = (0..8).collect();
    let of =
        |name: &str, rows: &[Row]| lists(&values(inputs.get(name), rows, &order), rows, &order);
    let reference = of("reference_logits", &all);
    let kl_reference = of("kl_reference_logits", &mismatched);
    let kl: [Vec<f64>; 2] = ["kl_policy_logits", "kl_reference_logits"].map(|name| {
        let found = of(name, &mismatched);
        found
            .iter()
            .map(|row| row.iter().map(|x| f64::from(*x)).sum())
            .collect()
    });
    let (model, _params) = vocabulary();
    let golden = Rlhf::open("kto");
    for (case, settings, line) in golden.cases("kto") {
        let labels: Vec<bool> = serde_json::from_value(settings["labels"].clone()).unwrap();
        let mut difference: f64 = kl[0].iter().zip(&kl[1]).map(|(p, q)| p - q).sum::<f64>() / 8.0;
        if text(&settings, "kl", "") == "exchanged" {
            difference = -difference;
        }
        let read = |row: usize| {
            Ok(Group {
                rows: vec![all[row].clone(), mismatched[row].clone()],
                reference: vec![reference[row].clone(), kl_reference[row].clone()],
                value: f64::from(u8::from(labels[row])),
            })
        };
        let method = Method::Kto(Kto {
            beta: number(&settings, "beta", 0.1),
            desirable_weight: number(&settings, "desirable_weight", 1.0),
            undesirable_weight: number(&settings, "undesirable_weight", 1.0),
            apo_zero: text(&settings, "loss_type", "kto") == "apo_zero_unpaired",
        });
        let mut objective = Preference::new(&model, 8, Box::new(read), method);
        let batches = [objective.batch(&order).unwrap()];
        let apo_zero = text(&settings, "loss_type", "kto") == "apo_zero_unpaired";
        objective.count(&batches, if apo_zero { 0.0 } else { difference.max(0.0) });
        let logits = inputs.get("policy_logits").copy().set_requires_grad(true);
        let found = values(&logits, &all, &order);
        let loss = objective.loss_of(&batches[0], &found, None).unwrap();
        let mean = &loss.sum / loss.weight;
        mean.backward();
        let wanted = line["loss"].as_f64().unwrap();
        near(&[mean.double_value(&[])], &[wanted], REFERENCE, &case);
        let gradient = golden.get(&format!("gradient/{case}"));
        close(&logits.grad(), gradient, 4.0 * REFERENCE, &case);
        for (metric, sum) in &loss.sums {
            let (ours, wanted) = (
                sum / loss.weight,
                line["metrics"][*metric].as_f64().unwrap(),
            );
            let apart = (ours - wanted).abs();
            assert!(
                apart <= REFERENCE * wanted.abs().max(1.0),
                "{case}: {metric} is {ours}, TRL says {wanted}"
            );
        }
        let mixed = labels.contains(&true) && labels.contains(&false);
        assert_eq!(loss.sums.len(), if mixed { 5 } else { 3 }, "{case}");
    }
}

#[test]
fn reward_models() {
    let inputs = Rlhf::open("pairs");
    let golden = Rlhf::open("reward_model");
    let margins = inputs.numbers("margins");
    for (case, settings, line) in golden.cases("reward_model") {
        let rewards = inputs.get("rewards").copy().set_requires_grad(true);
        let order = Tensor::from_slice(&[0i64, 4, 1, 5, 2, 6, 3, 7]);
        let loss = RewardLoss::Pairs {
            margins: flag(&settings, "margins"),
        };
        let centering = number(&settings, "center_rewards_coefficient", 0.0);
        let (sum, measured) = group_loss(
            loss,
            centering,
            &rewards.index_select(0, &order),
            &[2; 4],
            &margins,
        )
        .unwrap();
        let mean = sum / 4.0;
        mean.backward();
        let wanted = line["loss"].as_f64().unwrap();
        near(&[mean.double_value(&[])], &[wanted], tolerance::F64, &case);
        let gradient = golden.get(&format!("gradient/{case}"));
        close(&rewards.grad(), gradient, tolerance::F64, &case);
        for (metric, sum) in measured {
            let wanted = line["metrics"][metric].as_f64().unwrap();
            assert!((sum / 4.0 - wanted).abs() < 1e-6, "{case}: {metric}");
        }
    }
}

/// No trainer has it: (r − score)², summed, on scores of single rows.
#[test]
fn regression_on_scores_is_its_formula() {
    let rewards = Rlhf::open("pairs").numbers("rewards");
    let known = [0.5, -1.0, 2.0, 0.0, -0.25, 3.0, 1.0, -2.0];
    let own = Tensor::from_slice(&rewards).set_requires_grad(true);
    let (sum, measured) = group_loss(RewardLoss::Regression, 0.0, &own, &[1; 8], &known).unwrap();
    sum.backward();
    let pairs = rewards.iter().zip(&known);
    let errors: Vec<f64> = pairs.map(|(reward, score)| reward - score).collect();
    let wanted: f64 = errors.iter().map(|e| e * e).sum();
    near(&[sum.double_value(&[])], &[wanted], tolerance::F64, "value");
    let ours: Vec<f64> = Vec::try_from(own.grad()).unwrap();
    let wanted: Vec<f64> = errors.iter().map(|e| 2.0 * e).collect();
    near(&ours, &wanted, tolerance::F64, "gradient");
    let [(name, absolute)] = measured[..] else {
        panic!("{measured:?}")
    };
    let wanted: f64 = errors.iter().map(|e| e.abs()).sum();
    assert_eq!(name, "absolute_error");
    assert!((absolute - wanted).abs() < 1e-12);
}

/// −p log σ(βΔ) − (1−p) log σ(−βΔ) with p = σ(margin), whose derivative by Δ is β (σ(βΔ) − p). TRL has no labels of this kind.
#[test]
fn soft_labels_are_their_formula() {
    let inputs = Rlhf::open("pairs");
    let all = rows(&inputs, "");
    let order: Vec<usize> = (0..4).flat_map(|pair| [pair, pair + 4]).collect();
    let reference = values(inputs.get("reference_logits"), &all, &order);
    let reference = lists(&reference, &all, &order);
    let known = values(inputs.get("policy_logits"), &all, &order);
    let (model, _params) = vocabulary();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let settings: [(f64, Vec<f64>); 2] = [
        (0.1, inputs.numbers("margins")),
        (0.5, vec![-3.0, 0.0, 0.5, 8.0]),
    ];
    for (beta, margins) in &settings {
        let logps = known.log_probabilities.detach().copy();
        let numbers: Vec<f64> = Vec::try_from(&logps).unwrap();
        let mut numbers = numbers.iter();
        let ratios: Vec<f64> = reference
            .iter()
            .map(|row| {
                let policy: f64 = numbers.by_ref().take(row.len()).sum();
                policy - row.iter().map(|x| f64::from(*x)).sum::<f64>()
            })
            .collect();
        let mut wanted = 0.0;
        let mut gradient = Vec::new();
        for (pair, margin) in margins.iter().enumerate() {
            let p = sigmoid(*margin);
            let x = beta * (ratios[2 * pair] - ratios[2 * pair + 1]);
            wanted -= p * sigmoid(x).ln() + (1.0 - p) * sigmoid(-x).ln();
            let slope = beta * (sigmoid(x) - p);
            gradient.extend(vec![slope; reference[2 * pair].len()]);
            gradient.extend(vec![-slope; reference[2 * pair + 1].len()]);
        }

        let read = |pair: usize| {
            Ok(Group {
                rows: vec![all[pair].clone(), all[pair + 4].clone()],
                reference: reference[2 * pair..2 * pair + 2].to_vec(),
                value: margins[pair],
            })
        };
        let mut method = dpo(&json!({"loss_type": ["sigmoid"], "beta": beta}));
        if let Method::Dpo { soft_labels, .. } = &mut method {
            *soft_labels = true;
        }
        let mut objective = Preference::new(&model, 4, Box::new(read), method);
        let batches = [objective.batch(&[0, 1, 2, 3]).unwrap()];
        objective.count(&batches, 0.0);
        let own = logps.set_requires_grad(true);
        let found = TokenValues {
            log_probabilities: own.shallow_clone(),
            entropies: known.entropies.shallow_clone(),
            log_squares: known.log_squares.shallow_clone(),
        };
        let loss = objective.loss_of(&batches[0], &found, None).unwrap();
        loss.sum.backward();
        let what = format!("soft labels at β = {beta}");
        near(
            &[loss.sum.double_value(&[])],
            &[wanted],
            tolerance::F64,
            &what,
        );
        let ours: Vec<f64> = Vec::try_from(own.grad()).unwrap();
        near(&ours, &gradient, tolerance::F64, &what);
    }
}

#[test]
fn at_the_reference_the_loss_is_the_logarithm_of_two() {
    let inputs = Rlhf::open("pairs");
    let all = rows(&inputs, "");
    let order: Vec<usize> = (0..4).flat_map(|pair| [pair, pair + 4]).collect();
    let logits = inputs.get("policy_logits");
    let found = values(logits, &all, &order);
    let reference = lists(&found, &all, &order);
    let (model, _params) = vocabulary();
    for beta in [0.01, 0.1, 5.0] {
        let read = |pair: usize| {
            Ok(Group {
                rows: vec![all[pair].clone(), all[pair + 4].clone()],
                reference: reference[2 * pair..2 * pair + 2].to_vec(),
                value: f64::NAN,
            })
        };
        let method = dpo(&json!({"loss_type": ["sigmoid"], "beta": beta}));
        let mut objective = Preference::new(&model, 4, Box::new(read), method);
        let batches = [objective.batch(&[0, 1, 2, 3]).unwrap()];
        objective.count(&batches, 0.0);
        let loss = objective.loss_of(&batches[0], &found, None).unwrap();
        let mean = loss.sum.double_value(&[]) / loss.weight;
        assert!((mean - std::f64::consts::LN_2).abs() < 1e-5);
    }
}

#[test]
fn what_would_be_ignored_is_refused() {
    let settings = |label_smoothing: f64, divergence: Divergence| Settings {
        beta: 0.1,
        label_smoothing,
        divergence,
        discopop_tau: 0.05,
        ipo_averages: true,
    };
    let check = |loss: &str, settings: &Settings| {
        let loss = PairLoss::parse(loss).unwrap();
        ml::preference::pair::check(&[(loss, 1.0)], settings)
    };
    let plain = settings(0.0, Divergence::ReverseKl);
    let smooth = settings(0.1, Divergence::ReverseKl);
    assert!(check("exo_pair", &plain).is_err() && check("exo_pair", &smooth).is_ok());
    assert!(check("hinge", &smooth).is_err() && check("hinge", &plain).is_ok());
    assert!(check("robust", &settings(0.5, Divergence::ReverseKl)).is_err());
    assert!(check("apo_zero", &settings(0.0, Divergence::Js)).is_err());
    assert!(check("sigmoid", &settings(0.0, Divergence::Js)).is_ok());
}

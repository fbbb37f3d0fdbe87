//! PPO, GRPO and RLOO against TRL's own loops, and what TRL lacks against plain formulas: tests/golden/rlhf/*.py.

mod support;

use ml::completions::{Batch, Row};
use ml::ranking;
use ml::rl::advantage::{Estimator, GroupScale, KlControl, Moments, Shaping, gae};
use ml::rl::group::{self, Advantages, Normalizer, Objective, Ratio, Sizes};
use ml::rl::ppo::{self, Options};
use ml::rl::{Sampler, advantage};
use ml::{Kind, Params, Tensor};
use serde_json::{Value, json};
use support::{Rlhf, close, near, tolerance};

fn number(settings: &Value, name: &str, default: f64) -> f64 {
    settings
        .get(name)
        .and_then(Value::as_f64)
        .unwrap_or(default)
}

fn options(settings: &Value) -> Options {
    Options {
        sampler: Sampler {
            seed: 0,
            temperature: 0.7,
            max_new_tokens: 6,
            eos: vec![2],
            batch: 4,
        },
        updates: 1,
        batch: 4,
        minibatches: 1,
        micro_batch: 2,
        epochs: 2,
        gamma: number(settings, "gamma", 1.0),
        lambda: number(settings, "lam", 0.95),
        clip: 0.2,
        value_clip: 0.2,
        value_weight: 0.1,
        entropy_weight: 0.0,
        estimator: Estimator::parse(
            settings
                .get("kl_estimator")
                .and_then(Value::as_str)
                .unwrap_or("k1"),
        )
        .unwrap(),
        control: KlControl {
            coefficient: number(settings, "kl_coef", 0.05),
            adaptive: None,
        },
        shaping: Shaping::default(),
        missing_eos_penalty: number(settings, "missing_eos_penalty", 0.0),
        whiten_rewards: settings["whiten_rewards"] == true,
        whiten_advantages: true,
        advantage_clip: None,
        critic_warmup: 0,
        target_kl: None,
    }
}

/// The first so many numbers of each row, one after the other.
fn leading(rows: &[Vec<f64>], counts: &[usize]) -> Vec<f64> {
    let pairs = rows.iter().zip(counts);
    pairs.flat_map(|(row, &n)| row[..n].to_vec()).collect()
}

#[test]
fn ppo_is_trls() {
    let golden = Rlhf::open("ppo");
    for (case, settings, _) in golden.cases("ppo") {
        let of = |name: &str| golden.matrix(&format!("{case}/{name}"));
        let options = options(&settings);
        let lengths = golden.numbers(&format!("{case}/sequence_lengths"));
        let tokens: Vec<usize> = lengths.iter().map(|last| *last as usize + 1).collect();
        let steps: Vec<usize> = tokens.iter().map(|&n| n + usize::from(n < 6)).collect();
        let (old, reference, values) = (of("logprobs"), of("ref_logprobs"), of("values"));
        let scores = golden.numbers(&format!("{case}/scores"));
        let cut = |row: &[f64], n: usize| row[..n].to_vec();
        let rewards: Vec<Vec<f64>> = (0..tokens.len())
            .map(|i| {
                ppo::rewards(
                    &cut(&old[i], tokens[i]),
                    &cut(&reference[i], tokens[i]),
                    steps[i],
                    scores[i],
                    options.estimator,
                    options.control.coefficient,
                )
            })
            .collect();
        let wanted = leading(&of("rewards_raw"), &steps);
        near(
            &rewards.concat(),
            &wanted,
            tolerance::F64,
            &format!("{case}: rewards"),
        );
        let values: Vec<Vec<f64>> = values.iter().zip(&steps).map(|(v, &n)| cut(v, n)).collect();
        let (advantages, returns) = ppo::advantages(rewards, &values, &tokens, &options).unwrap();
        let wanted = leading(&of("advantages"), &tokens);
        near(
            &advantages.concat(),
            &wanted,
            tolerance::F64,
            &format!("{case}: advantages"),
        );
        let wanted = leading(&of("returns"), &steps);
        near(
            &returns.concat(),
            &wanted,
            tolerance::F64,
            &format!("{case}: returns"),
        );
        for epoch in ["epoch1", "epoch2"] {
            let part = |name: &str| of(&format!("{epoch}/{name}"));
            let one = |name: &str| golden.numbers(&format!("{case}/{epoch}/{name}"))[0];
            let rows: Vec<usize> = golden
                .numbers(&format!("{case}/{epoch}/indices"))
                .iter()
                .map(|i| *i as usize)
                .collect();
            let pick = |all: &[Vec<f64>]| -> Vec<f64> {
                rows.iter().flat_map(|&i| all[i].clone()).collect()
            };
            let own = |counts: &[usize]| rows.iter().map(|&i| counts[i]).collect::<Vec<_>>();
            let leaf = |name: &str, counts: &[usize]| {
                Tensor::from_slice(&leading(&part(name), &own(counts))).set_requires_grad(true)
            };
            let old: Vec<Vec<f64>> = old.iter().zip(&tokens).map(|(r, &n)| cut(r, n)).collect();
            let new = leaf("new_logprobs", &tokens);
            let (sum, clipped) = ppo::policy_loss(
                &new,
                &Tensor::from_slice(&pick(&old)),
                &Tensor::from_slice(&pick(&advantages)),
                options.clip,
            );
            let policy = sum / new.numel() as f64;
            near(
                &[policy.double_value(&[])],
                &[one("pg_loss")],
                tolerance::F64,
                &case,
            );
            assert!((clipped / new.numel() as f64 - one("pg_clipfrac")).abs() < 1e-6);
            let predicted = leaf("vpred", &steps);
            let (sum, clipped) = ppo::value_loss(
                &predicted,
                &Tensor::from_slice(&pick(&values)),
                &Tensor::from_slice(&pick(&returns)),
                options.value_clip,
            );
            let value = sum / predicted.numel() as f64;
            near(
                &[value.double_value(&[])],
                &[one("vf_loss")],
                tolerance::F64,
                &case,
            );
            assert!((clipped / predicted.numel() as f64 - one("vf_clipfrac")).abs() < 1e-6);
            let loss = policy + value * options.value_weight;
            near(
                &[loss.double_value(&[])],
                &[one("loss")],
                tolerance::F64,
                &case,
            );
            loss.backward();
            for (leaf, name, counts) in [
                (&new, "gradient_new_logprobs", &tokens),
                (&predicted, "gradient_vpred", &steps),
            ] {
                let ours: Vec<f64> = Vec::try_from(leaf.grad()).unwrap();
                let wanted = leading(&part(name), &own(counts));
                near(&ours, &wanted, tolerance::F64, &format!("{case}: {name}"));
            }
        }
    }
}

/// The twelve completions of grpo_inputs as a batch of a tiny model.
fn completions(inputs: &Rlhf) -> (Batch, Vec<usize>) {
    let mut params = Params::new();
    let model = support::model(Kind::Double, json!({}), &mut params);
    let (ids, mask) = (
        inputs.matrix("completion_ids"),
        inputs.matrix("completion_mask"),
    );
    let rows: Vec<Row> = ids
        .iter()
        .zip(&mask)
        .map(|(ids, mask)| {
            let length = mask.iter().filter(|x| **x == 1.0).count();
            let completion = ids[..length].iter().map(|id| *id as i64);
            Row {
                tokens: [3, 4].into_iter().chain(completion).collect(),
                prompt: 2,
            }
        })
        .collect();
    let counts = rows.iter().map(Row::completion).collect();
    (Batch::new(&model, &rows).unwrap(), counts)
}

const CUT: usize = 8;

fn grouped(name: &str, how: impl Fn(&Value) -> (Objective, Advantages)) {
    let inputs = Rlhf::open("grpo_inputs");
    let (batch, counts) = completions(&inputs);
    let golden = Rlhf::open(name);
    let of = |name: &str| leading(&inputs.matrix(name), &counts);
    for (case, settings, line) in golden.cases(name) {
        // Two micro-batches of TRL's are two losses; there is one batch here.
        if settings.get("gradient_accumulation_steps").is_some() {
            continue;
        }
        let (objective, how) = how(&settings);
        let mut rewards = inputs.numbers("rewards");
        if let Some(range) = settings.get("reward_clip_range") {
            let limit = range[1].as_f64().unwrap();
            rewards.iter_mut().for_each(|r| *r = r.clamp(-limit, limit));
        }
        let (old, reference) = (of("old_logps"), of("ref_logps"));
        let mut kl = Vec::new();
        let mut start = 0;
        for &count in &counts {
            let own = start..start + count;
            kl.push(own.map(|t| old[t] - reference[t]).sum::<f64>());
            start += count;
        }
        let truncated = settings["mask_truncated_completions"] == true;
        if truncated {
            kl[CUT] = 0.0;
        }
        let advantages = group::advantages(&rewards, &kl, 4, how);
        let wanted = golden.numbers(&format!("advantages/{case}"));
        near(
            &advantages,
            &wanted,
            tolerance::F64,
            &format!("{case}: advantages"),
        );
        let counted: Vec<bool> = (0..12).map(|row| !truncated || row != CUT).collect();
        let tokens: usize = (0..12).filter(|&i| counted[i]).map(|i| counts[i]).sum();
        let sizes = Sizes {
            completions: 12.0,
            tokens: tokens as f64,
            longest: 6.0,
            batch_tokens: tokens as f64,
        };
        let new = Tensor::from_slice(&of("policy_logps")).set_requires_grad(true);
        let old = match settings["on_policy"] == true {
            true => new.detach(),
            false => Tensor::from_slice(&old),
        };
        let reference = Tensor::from_slice(&reference);
        let old = (&old, Some(&reference));
        let loss =
            group::loss(&objective, &batch, &new, old, &advantages, &counted, &sizes).unwrap();
        loss.backward();
        let wanted = line["loss"].as_f64().unwrap();
        assert!(
            (loss.double_value(&[]) - wanted).abs() < 1e-12,
            "{case}: {} instead of {wanted}",
            loss.double_value(&[])
        );
        let wanted = leading(&golden.matrix(&format!("gradient/{case}")), &counts);
        let ours: Vec<f64> = Vec::try_from(new.grad()).unwrap();
        near(&ours, &wanted, tolerance::F64, &format!("{case}: gradient"));
    }
}

#[test]
fn grpo_is_trls() {
    grouped("grpo", |settings| {
        let clip = number(settings, "epsilon", 0.2);
        let objective = Objective {
            clip_low: clip,
            clip_high: number(settings, "epsilon_high", clip),
            beta: number(settings, "beta", 0.0),
            corrected: settings["use_bias_correction_kl"] != false,
            ratio: match settings["importance_sampling_level"] == "sequence" {
                true => Ratio::Mean,
                false => Ratio::Token,
            },
            normalizer: match settings["loss_type"].as_str().unwrap() {
                "grpo" => Normalizer::Completions,
                "bnpo" => Normalizer::Tokens,
                "dr_grpo" => Normalizer::Longest,
                _ => Normalizer::BatchTokens,
            },
        };
        let scale = match settings.get("scale_rewards").and_then(Value::as_str) {
            Some("batch") => GroupScale::Batch,
            Some("none") => GroupScale::None,
            _ => GroupScale::Group,
        };
        (objective, Advantages::Relative(scale))
    });
}

#[test]
fn rloo_is_trls() {
    grouped("rloo", |settings| {
        let clip = number(settings, "epsilon", 0.2);
        let objective = Objective {
            clip_low: clip,
            clip_high: number(settings, "epsilon_high", clip),
            beta: 0.0,
            corrected: false,
            ratio: Ratio::Whole,
            normalizer: Normalizer::Completions,
        };
        let how = Advantages::LeaveOneOut {
            beta: number(settings, "beta", 0.05),
            normalize: settings["normalize_advantages"] == true,
        };
        (objective, how)
    });
}

#[test]
fn what_trl_lacks_is_its_formula() {
    let golden = Rlhf::open("ppo_formulas");
    let lengths = golden.numbers("gae/lengths");
    let (rewards, values) = (golden.matrix("gae/rewards"), golden.matrix("gae/values"));
    for (name, gamma, lambda) in [("1_0.95", 1.0, 0.95), ("0.9_0.8", 0.9, 0.8)] {
        let wanted = golden.matrix(&format!("gae/{name}/advantages"));
        for (row, length) in lengths.iter().enumerate() {
            let n = *length as usize;
            let ours = gae(&rewards[row][..n], &values[row][..n], gamma, lambda);
            near(&ours, &wanted[row][..n], tolerance::F64, name);
        }
    }
    let (policy, reference) = (
        golden.numbers("kl/logprobs"),
        golden.numbers("kl/ref_logprobs"),
    );
    for (name, estimator) in [
        ("k1", Estimator::K1),
        ("k2", Estimator::K2),
        ("k3", Estimator::K3),
    ] {
        let pairs = policy.iter().zip(&reference);
        let ours: Vec<f64> = pairs.map(|(p, r)| estimator.of(*p, *r)).collect();
        near(
            &ours,
            &golden.numbers(&format!("kl/{name}")),
            tolerance::F64,
            name,
        );
    }
    let mut control = KlControl {
        coefficient: 0.15,
        adaptive: Some((6.0, 10000.0)),
    };
    let mut coefficients = vec![control.coefficient];
    for kl in golden.numbers("adaptive/kl") {
        control.update(kl, 256);
        coefficients.push(control.coefficient);
    }
    near(
        &coefficients,
        &golden.numbers("adaptive/coefficients"),
        tolerance::F64,
        "adaptive KL",
    );
    let shapes = [
        ("scaled", false, true, None),
        ("normalised", true, false, None),
        ("clipped", false, true, Some(0.8)),
    ];
    for (name, normalize, scale, clip) in shapes {
        let mut moments = Moments::default();
        let shaping = Shaping {
            normalize,
            scale,
            clip,
        };
        for batch in 0..4 {
            let mut scores = golden.numbers(&format!("moments/batch_{batch}"));
            shaping.apply(&mut scores, &mut moments);
            let wanted = golden.numbers(&format!("moments/{name}_{batch}"));
            near(&scores, &wanted, tolerance::F64, name);
            let mean = golden.numbers(&format!("moments/mean_{batch}"));
            near(&[moments.mean], &mean, tolerance::F64, "running mean");
        }
    }
    assert_eq!(advantage::leave_one_out(&[1.0, 3.0], 2), [-2.0, 2.0]);
}

#[test]
fn rankings_are_their_formulas() {
    let golden = Rlhf::open("rankings");
    for k in 2..=5 {
        let scores = golden.get(&format!("scores/{k}"));
        for row in 0..2 {
            type Loss = fn(&Tensor) -> anyhow::Result<Tensor>;
            let losses: [(&str, Loss); 2] = [
                ("pairwise", ranking::all_pairs),
                ("plackett_luce", ranking::plackett_luce),
            ];
            for (name, loss) in losses {
                let own = scores.select(0, row).copy().set_requires_grad(true);
                let value = loss(&own).unwrap();
                value.backward();
                let wanted = golden.numbers(&format!("{name}/{k}"))[row as usize];
                near(&[value.double_value(&[])], &[wanted], tolerance::F64, name);
                let gradient = golden.get(&format!("{name}_gradient/{k}")).select(0, row);
                close(&own.grad(), &gradient, tolerance::F64, name);
            }
        }
    }
}

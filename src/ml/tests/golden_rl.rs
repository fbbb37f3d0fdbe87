//! PPO, GRPO and RLOO against TRL's own loops, and what TRL lacks against plain formulas: tests/golden/rlhf/*.py.

mod support;

use ml::completions::{Batch, Row};
use ml::rl::advantage::{Estimator, GroupScale, KlControl, Shaping};
use ml::rl::group::{self, Advantages, Normalizer, Objective, Ratio, Sizes};
use ml::rl::ppo::{self, Options};
use ml::rl::{Episode, Sampler, penalized};
use ml::{Kind, Params, Tensor};
use serde_json::{Value, json};
use support::{Rlhf, near, tolerance};

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

/// TRL's rows as episodes: prompts padded with 0 on the left, responses after their end.
fn episodes(queries: &[Vec<f64>], responses: &[Vec<f64>], sampler: &Sampler) -> Vec<Episode> {
    let pairs = queries.iter().zip(responses).enumerate();
    pairs
        .map(|(prompt, (query, response))| {
            let ids = |row: &[f64]| row.iter().map(|id| *id as i64).collect::<Vec<_>>();
            let query: Vec<i64> = ids(query).into_iter().filter(|id| *id != 0).collect();
            let response = ids(response);
            let end = response.iter().position(|id| sampler.eos.contains(id));
            let own = &response[..end.map_or(response.len(), |at| at + 1)];
            Episode {
                row: Row {
                    tokens: [&query[..], own].concat(),
                    prompt: query.len(),
                },
                prompt,
                finished: end.is_some(),
            }
        })
        .collect()
}

#[test]
fn ppo_is_trls() {
    let golden = Rlhf::open("ppo");
    for (case, settings, _) in golden.cases("ppo") {
        let of = |name: &str| golden.matrix(&format!("{case}/{name}"));
        let options = options(&settings);
        let kept = |mask: &str| -> Vec<usize> {
            let rows = of(mask);
            let counts = rows
                .iter()
                .map(|row| row.iter().filter(|x| **x == 0.0).count());
            counts.collect()
        };
        let episodes = episodes(&of("queries"), &of("responses"), &options.sampler);
        let tokens: Vec<usize> = episodes.iter().map(|e| e.row.completion()).collect();
        assert_eq!(tokens, kept("padding_mask"), "{case}: tokens");
        let longest = options.sampler.max_new_tokens;
        let steps: Vec<usize> = episodes.iter().map(|e| ppo::steps(e, longest)).collect();
        assert_eq!(steps, kept("padding_mask_p1"), "{case}: steps");
        let (old, reference, values) = (of("logprobs"), of("ref_logprobs"), of("values"));
        // Only this case has a penalty; the others' scores are the reward model's own.
        let plain = if case == "missing_end" {
            "base"
        } else {
            case.as_str()
        };
        let same = |name: &str| golden.matrix(&format!("{plain}/{name}")) == of(name);
        assert!(same("queries") && same("responses"), "{case}");
        let raw = golden.numbers(&format!("{plain}/scores"));
        let scores = penalized(&raw, &episodes, options.missing_eos_penalty);
        let wanted = golden.numbers(&format!("{case}/scores"));
        near(&scores, &wanted, tolerance::F64, &format!("{case}: scores"));
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
        let clip = settings
            .get("reward_clip_range")
            .map(|range| range[1].as_f64().unwrap());
        let ended = Episode {
            finished: true,
            ..Episode::default()
        };
        let raw = inputs.numbers("rewards");
        let rewards = group::rewards(&raw, &vec![ended; raw.len()], 0.0, clip);
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

/// Of the estimators k3 alone is ever differentiated, by GRPO; the others are numbers in rewards. With the correction, k3 times the
/// ratio ρ = π/π_old, the derivative at ρ = 1 is k3′ + k3.
#[test]
fn the_kl_in_the_loss_is_its_formula() {
    let golden = Rlhf::open("ppo_formulas");
    let mut params = Params::new();
    let model = support::model(Kind::Double, json!({}), &mut params);
    let rows = [5, 4, 3].map(|count| Row {
        tokens: vec![3; count + 1],
        prompt: 1,
    });
    let batch = Batch::new(&model, &rows).unwrap();
    let (value, slope) = (golden.numbers("kl/k3"), golden.numbers("kl/gradient_k3"));
    assert_eq!(value.len(), 12);
    for corrected in [false, true] {
        let objective = Objective {
            clip_low: 0.2,
            clip_high: 0.2,
            // The mean of twelve tokens, so that this is their sum.
            beta: 12.0,
            corrected,
            ratio: Ratio::Token,
            normalizer: Normalizer::Tokens,
        };
        let sizes = Sizes {
            completions: 3.0,
            tokens: 12.0,
            longest: 5.0,
            batch_tokens: 12.0,
        };
        let new = golden.get("kl/logprobs").copy().set_requires_grad(true);
        let old = new.detach();
        let others = (&old, Some(golden.get("kl/ref_logprobs")));
        let nothing = [0.0; 3];
        let loss = group::loss(
            &objective, &batch, &new, others, &nothing, &[true; 3], &sizes,
        );
        let loss = loss.unwrap();
        let wanted: f64 = value.iter().sum();
        near(&[loss.double_value(&[])], &[wanted], tolerance::F64, "k3");
        loss.backward();
        let ours: Vec<f64> = Vec::try_from(new.grad()).unwrap();
        let pairs = slope.iter().zip(&value);
        let wanted: Vec<f64> = pairs
            .map(|(slope, value)| slope + if corrected { *value } else { 0.0 })
            .collect();
        near(&ours, &wanted, tolerance::F64, "gradient of k3");
    }
}

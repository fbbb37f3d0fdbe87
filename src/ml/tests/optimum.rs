//! PPO, RLOO and GRPO where the best policy is known: prompts with completions of three tokens from a vocabulary of sixteen, all 4096
//! of them counted through. The reward is the share of tokens that are the prompt's own; without a penalty the best mean reward
//! is 1, and with a penalty β KL(π‖π_ref) the best objective is β log Σ_y π_ref(y|x) exp(r(x, y) / β), a mean over the prompts.
//! What a policy reaches is counted as well, over all completions: nothing here is an estimate.

mod tiny;

use formats::config::LlamaConfig;
use ml::completions::{Batch, Row};
use ml::fit::Next;
use ml::optimizer::{Optimizer, Options as AdamOptions, Rule, Schedule, Shape};
use ml::reward::Head;
use ml::rl::advantage::{Estimator, GroupScale, KlControl, Shaping};
use ml::rl::group::{self, Advantages, Normalizer, Objective, Ratio};
use ml::rl::{Actor, Data, Episode, Reference, Sampler, ppo};
use ml::update::Updater;
use ml::{Kind, Llama, Params, Pass, Tensor, no_grad};
use std::path::Path;

const WORDS: i64 = 16;
const LENGTH: usize = 3;
const PROMPTS: usize = 4;
const SEEDS: [u64; 3] = [1, 2, 3];
/// How much of the way from the reference to the best is asked for.
const WANTED: f64 = 0.95;

/// One layer, two heads of keys for four of queries.
fn config() -> LlamaConfig {
    let text = format!(
        r#"{{"model_type":"llama","vocab_size":{WORDS},"hidden_size":32,"intermediate_size":48,"num_hidden_layers":1,
        "num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,"rope_theta":10000.0,
        "tie_word_embeddings":false,"max_position_embeddings":16,"hidden_act":"silu","bos_token_id":1,"eos_token_id":0}}"#
    );
    LlamaConfig::from_json(&text, Path::new("toy")).unwrap()
}

/// Near to uniform, so that every completion is tried: what a policy never samples no reward can teach.
fn source(name: &str, shape: &[i64]) -> anyhow::Result<Tensor> {
    let weight = tiny::source(name, shape)?;
    Ok(match name {
        "lm_head.weight" => weight * 0.2,
        _ => weight,
    })
}

fn model(params: &mut Params) -> Llama {
    let model = Llama::build(&config(), tiny::place(Kind::Float), params, &mut source);
    params.train(|_| true);
    model.unwrap()
}

fn prompt(index: usize) -> Vec<i64> {
    vec![1, 2 + index as i64]
}

/// The share of tokens that are the prompt's own.
fn reward(prompt: usize, completion: &[i64]) -> f64 {
    let own = WORDS - 1 - prompt as i64;
    let hits = completion.iter().filter(|token| **token == own).count();
    hits as f64 / LENGTH as f64
}

/// Every completion.
fn completions() -> Vec<Vec<i64>> {
    let digit = |number: i64, place: u32| number / WORDS.pow(place) % WORDS;
    let all = 0..WORDS.pow(LENGTH as u32);
    all.map(|number| {
        (0..LENGTH as u32)
            .map(|place| digit(number, place))
            .collect()
    })
    .collect()
}

/// log π(y|x) of every completion of each prompt.
fn logarithms(model: &Llama) -> Vec<Vec<f64>> {
    let of = |index: usize| -> Vec<f64> {
        let row = |completion: Vec<i64>| Row {
            tokens: [prompt(index), completion].concat(),
            prompt: 2,
        };
        let rows: Vec<Row> = completions().into_iter().map(row).collect();
        let batch = Batch::of_groups(model, &rows, &[rows.len()]).unwrap();
        let values = no_grad(|| batch.values(model, Pass::eval(), 1.0, false)).unwrap();
        let sums = batch.sums(&values.log_probabilities.to_kind(Kind::Double));
        Vec::try_from(sums.unwrap()).unwrap()
    };
    let all: Vec<Vec<f64>> = (0..PROMPTS).map(of).collect();
    for own in &all {
        let total: f64 = own.iter().map(|x| x.exp()).sum();
        assert!((total - 1.0).abs() < 1e-4, "probabilities sum to {total}");
    }
    all
}

/// The mean over prompts of what `of` makes of the sum over completions of a term of (log π, log π_ref, reward).
fn counted(
    policy: &[Vec<f64>],
    reference: &[Vec<f64>],
    term: impl Fn(f64, f64, f64) -> f64,
    of: impl Fn(f64) -> f64,
) -> f64 {
    let each = (0..PROMPTS).map(|index| {
        let pairs = policy[index].iter().zip(&reference[index]);
        let terms = pairs.zip(completions());
        let sum = terms.map(|((p, q), completion)| term(*p, *q, reward(index, &completion)));
        of(sum.sum())
    });
    each.sum::<f64>() / PROMPTS as f64
}

/// E[r] − β KL(π‖π_ref).
fn objective(policy: &[Vec<f64>], reference: &[Vec<f64>], beta: f64) -> f64 {
    let term = |p: f64, q: f64, r: f64| p.exp() * (r - beta * (p - q));
    counted(policy, reference, term, |sum| sum)
}

/// The largest value that any policy gives it.
fn best(reference: &[Vec<f64>], beta: f64) -> f64 {
    if beta == 0.0 {
        return 1.0;
    }
    let term = |_: f64, q: f64, r: f64| (q + r / beta).exp();
    counted(reference, reference, term, |sum| beta * sum.ln())
}

fn updater(rate: f64, updates: usize) -> Updater {
    Updater {
        optimizer: Optimizer::new(Rule::AdamW(AdamOptions::default()), vec![]),
        schedule: Schedule {
            shape: Shape::Linear,
            peak: rate,
            warmup: 0,
            total: updates,
        },
        clip: Some(1.0),
    }
}

fn sampler(seed: u64) -> Sampler {
    Sampler {
        seed,
        temperature: 1.0,
        max_new_tokens: LENGTH,
        eos: Vec::new(),
        batch: 128,
    }
}

fn data<'a>() -> Data<'a> {
    Data {
        prompts: PROMPTS,
        prompt: Box::new(|index| Ok(prompt(index))),
        score: Box::new(|episodes: &[Episode]| {
            let score = |e: &Episode| reward(e.prompt, &e.row.tokens[e.row.prompt..]);
            Ok(episodes.iter().map(score).collect())
        }),
        running: Box::new(|| true),
    }
}

/// How the algorithms are called: (actor, seed, β).
type Algorithm = fn(&mut Actor<'_>, u64, f64);

const UPDATES: usize = 200;
const RATE: f64 = 2e-3;

fn learn_by_ppo(actor: &mut Actor<'_>, seed: u64, beta: f64) {
    let mut params = Params::new();
    let critic = model(&mut params);
    let zero = Head::fresh(32, 0, 0.0);
    let head = Head::new(&zero, critic.place, &mut params).unwrap();
    params.train(|_| true);
    let mut critic = ppo::Critic {
        model: &critic,
        head: &head,
        params: &params,
        updater: updater(RATE, UPDATES),
    };
    let options = ppo::Options {
        sampler: sampler(seed),
        updates: UPDATES,
        batch: 64,
        minibatches: 1,
        micro_batch: 64,
        epochs: 4,
        gamma: 1.0,
        lambda: 0.95,
        clip: 0.2,
        value_clip: 0.2,
        value_weight: 0.5,
        entropy_weight: 0.0,
        estimator: Estimator::K1,
        control: KlControl {
            coefficient: beta,
            adaptive: None,
        },
        shaping: Shaping {
            normalize: false,
            scale: false,
            clip: None,
        },
        missing_eos_penalty: 0.0,
        whiten_rewards: false,
        whiten_advantages: true,
        advantage_clip: None,
        critic_warmup: 0,
        target_kl: None,
    };
    let (mut data, mut watch) = (data(), |_: ml::rl::Moment<'_>| Ok(Next::Go));
    let sources = (&mut data, &mut None);
    ppo::train(actor, &mut critic, sources, &options, None, &mut watch).unwrap();
}

fn grouped(actor: &mut Actor<'_>, seed: u64, objective: Objective, advantages: Advantages) {
    let options = group::Options {
        sampler: sampler(seed),
        updates: UPDATES,
        batch: 128,
        group: 16,
        minibatches: 1,
        epochs: 2,
        micro_batch: 64,
        objective,
        advantages,
        missing_eos_penalty: 0.0,
        mask_truncated: false,
        reward_clip: None,
    };
    let (mut data, mut watch) = (data(), |_: ml::rl::Moment<'_>| Ok(Next::Go));
    group::train(actor, &mut data, &options, None, &mut watch).unwrap();
}

fn learn_by_rloo(actor: &mut Actor<'_>, seed: u64, beta: f64) {
    let objective = Objective {
        clip_low: 0.2,
        clip_high: 0.2,
        beta: 0.0,
        corrected: false,
        ratio: Ratio::Whole,
        normalizer: Normalizer::Completions,
    };
    let advantages = Advantages::LeaveOneOut {
        beta,
        normalize: false,
    };
    grouped(actor, seed, objective, advantages);
}

fn learn_by_grpo(actor: &mut Actor<'_>, seed: u64, beta: f64) {
    let objective = Objective {
        clip_low: 0.2,
        clip_high: 0.2,
        beta,
        corrected: true,
        ratio: Ratio::Token,
        normalizer: Normalizer::BatchTokens,
    };
    // Rewards divided by a deviation would have another penalty than β against them.
    let scale = match beta == 0.0 {
        true => GroupScale::Group,
        false => GroupScale::None,
    };
    grouped(actor, seed, objective, Advantages::Relative(scale));
}

/// Every seed must go `WANTED` of the way from the reference to the best.
fn reaches_the_optimum(name: &str, learn: Algorithm, beta: f64) {
    let mut kept = Params::new();
    let reference = model(&mut kept);
    kept.train(|_| false);
    let from = logarithms(&reference);
    let (start, end) = (objective(&from, &from, beta), best(&from, beta));
    assert!(
        start < 0.3 * end,
        "{start} of {end}: nothing is to be learned"
    );
    for seed in SEEDS {
        let mut params = Params::new();
        let policy = model(&mut params);
        let mut actor = Actor {
            model: &policy,
            params: &params,
            updater: updater(RATE, UPDATES),
            reference: Reference::Model(&reference),
        };
        learn(&mut actor, seed, beta);
        drop(actor);
        let reached = objective(&logarithms(&policy), &from, beta);
        let part = (reached - start) / (end - start);
        println!(
            "{name}, β {beta}, seed {seed}: {start:.4} to {reached:.4} of {end:.4}, {part:.3}"
        );
        // No policy is better than the best, but for the rounding of f32.
        assert!(
            part <= 1.0 + 1e-3,
            "{name}, seed {seed}: {reached} of {end}"
        );
        assert!(
            part >= WANTED,
            "{name}, β {beta}, seed {seed}: {reached} of {end}, from {start}"
        );
    }
}

#[test]
fn ppo_finds_the_best_policy() {
    reaches_the_optimum("ppo", learn_by_ppo, 0.0);
    reaches_the_optimum("ppo", learn_by_ppo, 0.1);
}

#[test]
fn rloo_finds_the_best_policy() {
    reaches_the_optimum("rloo", learn_by_rloo, 0.0);
    reaches_the_optimum("rloo", learn_by_rloo, 0.1);
}

#[test]
fn grpo_finds_the_best_policy() {
    reaches_the_optimum("grpo", learn_by_grpo, 0.0);
    reaches_the_optimum("grpo", learn_by_grpo, 0.1);
}

#[test]
fn the_best_policy_has_the_best_value() {
    // π* ∝ π_ref exp(r / β) itself, put into the objective.
    let mut params = Params::new();
    let reference = logarithms(&model(&mut params));
    let beta = 0.1;
    let optimal: Vec<Vec<f64>> = (0..PROMPTS)
        .map(|index| {
            let raised = reference[index].iter().zip(completions());
            let raised: Vec<f64> = raised
                .map(|(q, completion)| q + reward(index, &completion) / beta)
                .collect();
            let total: f64 = raised.iter().map(|x| x.exp()).sum();
            raised.iter().map(|x| x - total.ln()).collect()
        })
        .collect();
    let value = objective(&optimal, &reference, beta);
    assert!((value - best(&reference, beta)).abs() < 1e-9);
}

//! Generation with a cache: many prompts at a time, each row's text a function of its own prompt and stream only.

use crate::linear::Pass;
use crate::llama::{Inputs, Llama};
use crate::place::HOST;
use crate::random::Stream;
use crate::sample::Sampling;
use anyhow::{Result, ensure};
use tch::{Kind, Tensor, no_grad};

/// A prompt and where its random numbers come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, at least one.
    pub tokens: Vec<i64>,
    /// The stream `sample <draw>` of the seed is this prompt's own.
    pub draw: u64,
}

/// How to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The choice of each token.
    pub sampling: Sampling,
    /// The seed of the streams.
    pub seed: u64,
    /// The most tokens to add.
    pub max_new_tokens: usize,
    /// Tokens that end a row; the one that ended it is part of the result.
    pub eos: Vec<i64>,
    /// Prompts at a time: does not change any text where the fused operators run.
    pub batch: usize,
}

/// What was added to a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<i64>,
    /// True if an end token came, false if the length ran out or the watcher stopped.
    pub finished: bool,
}

/// Generates for all prompts. `watch` gets each new token as (prompt, token) and stops everything by giving false.
pub fn generate(
    model: &Llama,
    pass: Pass,
    prompts: &[Prompt],
    options: &Options,
    watch: &mut dyn FnMut(usize, i64) -> bool,
) -> Result<Vec<Generated>> {
    options.sampling.check()?;
    ensure!(!prompts.is_empty(), "there are no prompts");
    ensure!(options.batch > 0, "a batch has at least one prompt");
    let positions = model.positions(pass);
    for (index, prompt) in prompts.iter().enumerate() {
        ensure!(!prompt.tokens.is_empty(), "prompt {index} has no tokens");
        ensure!(
            prompt.tokens.len() < positions,
            "prompt {index} has {} tokens, the model has {positions} positions",
            prompt.tokens.len()
        );
    }
    let pass = Pass {
        train: false,
        ..pass
    };
    let mut results = vec![Generated::default(); prompts.len()];
    // Prompts of like length share a batch; the order does not change any row's text.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&index| prompts[index].tokens.len());
    for chosen in order.chunks(options.batch) {
        if options.max_new_tokens == 0 {
            break;
        }
        let go = no_grad(|| batch(model, pass, prompts, chosen, options, &mut results, watch))?;
        if !go {
            break;
        }
    }
    Ok(results)
}

/// Generates for the prompts `chosen`; false if the watcher stopped.
fn batch(
    model: &Llama,
    pass: Pass,
    prompts: &[Prompt],
    chosen: &[usize],
    options: &Options,
    results: &mut [Generated],
    watch: &mut dyn FnMut(usize, i64) -> bool,
) -> Result<bool> {
    let positions = model.positions(pass);
    let longest = chosen
        .iter()
        .map(|&index| prompts[index].tokens.len())
        .max();
    let longest = longest.unwrap_or(0);
    let room = (longest + options.max_new_tokens).min(positions);
    let mut cache = model.cache(chosen.len(), room);
    let mut streams: Vec<Stream> = chosen
        .iter()
        .map(|&index| Stream::new(options.seed, &format!("sample {}", prompts[index].draw)))
        .collect();

    // Rows of the cache that still grow, and the tokens that each of them brings to the next forward.
    let mut active: Vec<usize> = (0..chosen.len()).collect();
    let mut tokens: Vec<i64> = chosen
        .iter()
        .flat_map(|&index| prompts[index].tokens.iter().copied())
        .collect();
    let mut lengths: Vec<usize> = chosen.iter().map(|&i| prompts[i].tokens.len()).collect();
    let mut decode = false;
    loop {
        let pass = Pass { decode, ..pass };
        let segments = cache.segments(&active, &lengths)?;
        let inputs = model.tokens(&tokens)?;
        let hidden = model.hidden(pass, Inputs::Tokens(&inputs), &segments, Some(&mut cache))?;
        let last = Tensor::from_slice(&segments.last()).to_device(model.place.device);
        let hidden = hidden.f_index_select(0, &last)?;
        // The last tokens always go through the kernel for few rows, so prompts cannot change each other's bits.
        let logits = model.logits(
            Pass {
                decode: true,
                ..pass
            },
            &hidden,
        )?;
        let next = choose(&logits, &active, &mut streams, &options.sampling)?;

        let mut still = Vec::with_capacity(active.len());
        tokens.clear();
        for (&row, token) in active.iter().zip(next) {
            let index = chosen[row];
            let result = &mut results[index];
            result.tokens.push(token);
            result.finished = options.eos.contains(&token);
            let full = result.tokens.len() >= options.max_new_tokens
                || prompts[index].tokens.len() + result.tokens.len() >= positions;
            if !watch(index, token) {
                return Ok(false);
            }
            if !result.finished && !full {
                still.push(row);
                tokens.push(token);
            }
        }
        if still.is_empty() {
            return Ok(true);
        }
        active = still;
        lengths = vec![1; active.len()];
        decode = true;
    }
}

/// The next token of each active row.
fn choose(
    logits: &Tensor,
    active: &[usize],
    streams: &mut [Stream],
    sampling: &Sampling,
) -> Result<Vec<i64>> {
    let logits = logits
        .f_to_kind(Kind::Float)?
        .f_to_device(HOST)?
        .contiguous();
    let size = logits.size();
    let words = usize::try_from(size[1])?;
    let mut numbers = vec![0f32; logits.numel()];
    logits.f_copy_data(&mut numbers, logits.numel())?;
    ensure!(
        !numbers.iter().any(|number| number.is_nan()),
        "the model's logits are not numbers: its weights are damaged, or the training diverged"
    );
    Ok(numbers
        .chunks(words)
        .zip(active)
        .map(|(row, &index)| {
            let uniform = match sampling.is_greedy() {
                true => 0.0,
                false => streams[index].uniform(),
            };
            sampling.choose(row, uniform) as i64
        })
        .collect())
}

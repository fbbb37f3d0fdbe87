//! Measures training steps and generation on random weights in the shape of SmolLM2-135M:
//! `step [bf16|f32] [steps] [layers] [threads]`.

use anyhow::{Context, Result};
use formats::config::LlamaConfig;
use formats::peft::AdapterConfig;
use ml::fit::{Next, Plan, fit};
use ml::generate::{Options, Prompt, generate};
use ml::optimizer::{Optimizer, Rule, Schedule, Shape};
use ml::sample::Sampling;
use ml::sft::{Row, Sft};
use ml::update::Updater;
use ml::{Llama, Params, Pass, Place, Tensor, place, torch};
use std::path::Path;
use std::time::Instant;

fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| -> f64 {
        let found = status.lines().find(|line| line.starts_with(name));
        let number = found.and_then(|line| line.split_whitespace().nth(1));
        number.and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e6
    };
    format!(
        "resident {:.2} GB, peak {:.2} GB",
        line("VmRSS:"),
        line("VmHWM:")
    )
}

/// Seconds of processor time of all threads: on a machine that does other things too, the number to compare.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks = |index: usize| -> f64 {
        fields
            .get(index)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| -> Result<usize> {
        arguments.get(index).map_or(Ok(default), |text| {
            text.parse().with_context(|| format!("{text} is no number"))
        })
    };
    let dtype = arguments.first().map_or("bf16", String::as_str);
    let (steps, layers) = (number(1, 5)?, number(2, 30)?);
    torch::keep_memory();
    place::set_threads(number(3, std::thread::available_parallelism()?.get())?);
    let place = Place::parse("cpu", dtype)?;
    println!("{:?}", place::numerics());
    let config = LlamaConfig::from_json(
        &format!(
            r#"{{"model_type":"llama","vocab_size":49152,"hidden_size":576,"intermediate_size":1536,"num_hidden_layers":{layers},
            "num_attention_heads":9,"num_key_value_heads":3,"rms_norm_eps":1e-5,"rope_theta":100000.0,
            "tie_word_embeddings":true,"max_position_embeddings":8192,"hidden_act":"silu","bos_token_id":1,"eos_token_id":2}}"#
        ),
        Path::new("example"),
    )?;
    let mut state = 1u64;
    let mut source = |name: &str, shape: &[i64]| -> Result<Tensor> {
        let count = shape.iter().product::<i64>();
        if name.ends_with("norm.weight") {
            return Ok(Tensor::ones(shape, (ml::Kind::Float, place.device)));
        }
        let numbers: Vec<f32> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.1
            })
            .collect();
        Ok(Tensor::from_slice(&numbers).view(shape))
    };
    let mut params = Params::new();
    let mut model = Llama::build(&config, place, &mut params, &mut source)?;
    let adapter = AdapterConfig::from_json(
        r#"{"peft_type":"LORA","r":8,"lora_alpha":16,"target_modules":"all-linear"}"#,
        Path::new("example"),
    )?;
    ml::lora::attach(model.linears_mut(), &adapter, 1, &mut params)?;
    println!("trained {:?}, {}", params.count(), peak());

    let rows: Vec<Row> = (0..4 * steps)
        .map(|row| {
            let tokens = (0..512).map(|i| ((row * 7919 + i * 104729) % 49152) as i64);
            Row {
                tokens: tokens.collect(),
                trained: vec![true; 512],
                documents: Vec::new(),
            }
        })
        .collect();
    let mut objective = Sft {
        model: &model,
        rows: rows.len(),
        read: Box::new(|row| Ok(rows[row].clone())),
        chunk: ml::loss::CHUNK,
    };
    let mut updater = Updater {
        optimizer: Optimizer::new(Rule::AdamW(Default::default()), Vec::new()),
        schedule: Schedule {
            shape: Shape::Linear,
            peak: 2e-4,
            warmup: 0,
            total: steps,
        },
        clip: Some(1.0),
    };
    let plan = Plan {
        seed: 1,
        epochs: 1,
        batch: 4,
        micro_batch: 4,
        max_steps: None,
        shuffle: true,
    };
    let mut seconds = Vec::new();
    let mut before = processor();
    fit(
        &mut objective,
        &params,
        &mut updater,
        &plan,
        None,
        &mut |step| {
            println!(
                "step {} loss {:.4} norm {:.4}: {:.0} tokens/s, {:.2} s of processor, {}",
                step.index,
                step.loss,
                step.grad_norm,
                step.tokens as f64 / step.seconds,
                processor() - before,
                peak()
            );
            before = processor();
            seconds.push(step.seconds);
            Ok(Next::Go)
        },
    )?;
    seconds.sort_by(f64::total_cmp);
    if let Some(median) = seconds.get(seconds.len() / 2) {
        println!(
            "training: median {:.0} tokens/s, {}",
            2048.0 / median,
            peak()
        );
    }

    for count in [1, 8] {
        let prompts: Vec<Prompt> = (0..count)
            .map(|row| Prompt {
                tokens: (0..64).map(|i| (row * 31 + i * 17) as i64 + 3).collect(),
                draw: row as u64,
            })
            .collect();
        let options = Options {
            sampling: Sampling {
                temperature: 0.7,
                top_k: 0,
                top_p: 1.0,
            },
            seed: 1,
            max_new_tokens: 64,
            eos: Vec::new(),
            batch: 8,
        };
        for adapters in [true, false] {
            let pass = Pass {
                adapters,
                ..Pass::eval()
            };
            let began = Instant::now();
            let before = processor();
            let mut first = None;
            generate(&model, pass, &prompts, &options, &mut |_, _| {
                first.get_or_insert_with(|| began.elapsed().as_secs_f64());
                true
            })?;
            let all = began.elapsed().as_secs_f64();
            println!(
                "generation, {count} prompts, adapters {adapters}: {:.0} tokens/s, first after {:.2} s, {:.2} s of processor",
                (64 * count) as f64 / all,
                first.unwrap_or(0.0),
                processor() - before
            );
        }
    }
    println!("{}", peak());
    Ok(())
}

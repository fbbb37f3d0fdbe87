//! Laws of virtual tokens: they go without a trace, a cache changes nothing, rows that share their beginning are the rows alone,
//! checkpointing gives the same bits, quantized weights and files take them, and positions are counted.

mod tiny;

use formats::nf4;
use formats::peft::{PeftConfig, SoftConfig, SoftKind};
use formats::tensors::Weights;
use ml::completions::{Batch, Row};
use ml::generate::{Options, Prompt, generate};
use ml::kv_cache::Segments;
use ml::quantized::Nf4;
use ml::sample::Sampling;
use ml::soft::{self, PARAMETER, Soft};
use ml::{Inputs, Kind, Llama, Params, Pass, Tensor, Weight, no_grad};
use tiny::{close, numbers, tokens};

const METHODS: [SoftKind; 2] = [SoftKind::Prompt, SoftKind::Prefix];
const KINDS: [(Kind, f64); 3] = [
    (Kind::Double, 1e-12),
    (Kind::Float, 4e-5),
    (Kind::BFloat16, 3e-2),
];
const VIRTUAL: usize = 5;

/// Puts virtual tokens before a model.
fn prepend(model: &mut Llama, method: SoftKind, params: &mut Params) -> SoftConfig {
    let config = SoftConfig::new(method, VIRTUAL, &model.config);
    let shape = config.shape(&model.config).unwrap();
    let start = numbers(
        "prompt_encoder.default.embedding.weight",
        &shape.map(|extent| extent as i64),
        0.5,
    );
    soft::attach(model, &config, &start, params).unwrap();
    config
}

fn tuned(kind: Kind, method: SoftKind) -> (Llama, Params) {
    let mut params = Params::new();
    let mut model = tiny::model(kind, &mut params);
    prepend(&mut model, method, &mut params);
    (model, params)
}

fn logits(model: &Llama, pass: Pass, rows: &[Vec<i64>]) -> Tensor {
    let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
    let segments = Segments::new(&lengths, model.place).unwrap();
    let tokens = model.tokens(&rows.concat()).unwrap();
    let hidden = model.hidden(pass, Inputs::Tokens(&tokens), &segments, None);
    model.logits(pass, &hidden.unwrap()).unwrap()
}

#[test]
fn virtual_tokens_go_without_a_trace() {
    for method in METHODS {
        for (kind, _) in KINDS {
            let mut params = Params::new();
            let mut model = tiny::model(kind, &mut params);
            let rows = [tokens(0, 9), tokens(1, 4)];
            let before = logits(&model, Pass::eval(), &rows);
            let (count, positions) = (params.iter().count(), model.positions(Pass::eval()));
            assert!(ml::adapter::is_identity(&model).unwrap());
            prepend(&mut model, method, &mut params);
            assert!(!ml::adapter::is_identity(&model).unwrap());
            assert!(ml::adapter::is_parameter(PARAMETER));
            assert_eq!(params.count().0, params.get(PARAMETER).unwrap().numel());
            assert_eq!(model.positions(Pass::eval()), positions - VIRTUAL);
            let off = Pass::eval().without_adapters();
            assert_eq!(model.positions(off), positions);
            assert_ne!(before, logits(&model, Pass::eval(), &rows));
            assert_eq!(before, logits(&model, off, &rows));
            ml::adapter::detach(&mut model, &mut params);
            assert_eq!(params.iter().count(), count);
            assert_eq!(before, logits(&model, Pass::eval(), &rows));
        }
    }
}

#[test]
fn rows_do_not_see_each_other() {
    for method in METHODS {
        for (kind, tolerance) in KINDS {
            let (model, _params) = tuned(kind, method);
            let rows: Vec<Vec<i64>> = [5, 1, 70, 13]
                .iter()
                .enumerate()
                .map(|(i, &n)| tokens(i, n))
                .collect();
            let packed = logits(&model, Pass::eval(), &rows);
            let alone: Vec<Tensor> = rows
                .iter()
                .map(|row| logits(&model, Pass::eval(), std::slice::from_ref(row)))
                .collect();
            let what = format!("packed rows of {method:?} in {kind:?}");
            close(&packed, &Tensor::cat(&alone, 0), tolerance, &what);
        }
    }
}

/// Embeddings of words before a row are the words before the row, and so are the keys and values that the model has of them.
#[test]
fn words_as_virtual_tokens_are_the_words() {
    let (words, row) = (tokens(7, VIRTUAL), tokens(0, 12));
    for (kind, tolerance) in KINDS {
        for method in METHODS {
            let mut params = Params::new();
            let mut model = tiny::model(kind, &mut params);
            let both = [words.clone(), row.clone()].concat();
            let whole = logits(&model, Pass::eval(), &[both]);
            let wanted = whole.narrow(0, VIRTUAL as i64, row.len() as i64);
            let start = match method {
                SoftKind::Prompt => {
                    let table = params.get("model.embed_tokens.weight").unwrap();
                    table.index_select(0, &model.tokens(&words).unwrap())
                }
                SoftKind::Prefix => soft::activations(&model, &words).unwrap(),
            };
            let config = SoftConfig::new(method, VIRTUAL, &model.config);
            soft::attach(&mut model, &config, &start, &mut params).unwrap();
            let found = logits(&model, Pass::eval(), std::slice::from_ref(&row));
            let what = format!("{method:?} in {kind:?}");
            close(&found, &wanted, tolerance, &what);
            // Trained numbers are the tokens' own: the model's stay as they are.
            let frozen = params.get("model.embed_tokens.weight").unwrap();
            assert!(!frozen.requires_grad());
        }
    }
}

#[test]
fn a_cache_changes_nothing() {
    for method in METHODS {
        for (kind, tolerance) in KINDS {
            let (model, _params) = tuned(kind, method);
            let rows = [tokens(0, 12), tokens(1, 7)];
            for pass in [Pass::eval(), Pass::eval().without_adapters()] {
                let whole = logits(&model, pass, &rows);
                let wanted = [whole.narrow(0, 0, 12), whole.narrow(0, 12, 7)];
                no_grad(|| {
                    let mut cache = model.cache(2, 12);
                    // Row 0 in three bites; row 1 begins later, and a second time after it was forgotten.
                    let bites: [(&[usize], &[usize]); 4] =
                        [(&[0], &[5]), (&[1, 0], &[6, 1]), (&[1], &[1]), (&[0], &[6])];
                    let mut seen = [0usize; 2];
                    let mut go = |cache: &mut ml::KvCache, chosen: &[usize], lengths: &[usize]| {
                        let segments = cache.segments(chosen, lengths).unwrap();
                        let mut ids = Vec::new();
                        for (&row, &length) in chosen.iter().zip(lengths) {
                            ids.extend_from_slice(&rows[row][seen[row]..seen[row] + length]);
                        }
                        let ids = model.tokens(&ids).unwrap();
                        let inputs = Inputs::Tokens(&ids);
                        let hidden = model.hidden(pass, inputs, &segments, Some(&mut *cache));
                        let logits = model.logits(pass, &hidden.unwrap()).unwrap();
                        let mut start = 0;
                        for (&row, &length) in chosen.iter().zip(lengths) {
                            let length = length as i64;
                            let wanted = wanted[row].narrow(0, seen[row] as i64, length);
                            let got = logits.narrow(0, start, length);
                            let what = format!("{method:?} in {kind:?}, row {row}");
                            close(&got, &wanted, tolerance, &what);
                            start += length;
                            seen[row] = (seen[row] + length as usize) % rows[row].len();
                        }
                    };
                    for (chosen, lengths) in bites {
                        go(&mut cache, chosen, lengths);
                    }
                    // What callers count are their own tokens.
                    assert_eq!((cache.filled(0), cache.filled(1)), (12, 7));
                    assert!(cache.segments(&[0], &[1]).is_err(), "the row is full");
                    cache.truncate(1, 0);
                    go(&mut cache, &[1], &[7]);
                    assert_eq!(cache.filled(1), 7);
                });
            }
        }
    }
}

#[test]
fn a_cache_goes_on_as_it_began() {
    let (model, _params) = tuned(Kind::Float, SoftKind::Prefix);
    let ids = model.tokens(&tokens(0, 3)).unwrap();
    let mut cache = model.cache(1, 12);
    let mut go = |pass: Pass| {
        let segments = cache.segments(&[0], &[3]).unwrap();
        no_grad(|| model.hidden(pass, Inputs::Tokens(&ids), &segments, Some(&mut cache)))
    };
    let _ = go(Pass::eval()).unwrap();
    let error = go(Pass::eval().without_adapters()).unwrap_err().to_string();
    assert!(error.contains("began behind 5 virtual tokens"), "{error}");
    // A cache from before the tokens were attached has no room for them.
    let mut params = Params::new();
    let mut other = tiny::model(Kind::Float, &mut params);
    let mut cache = other.cache(1, 12);
    prepend(&mut other, SoftKind::Prompt, &mut params);
    let segments = cache.segments(&[0], &[3]).unwrap();
    let inputs = Inputs::Tokens(&ids);
    let error = other.hidden(Pass::eval(), inputs, &segments, Some(&mut cache));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("do not fit"), "{error}");
}

/// Log-probabilities of the completions' tokens, and the gradient of their weighted sum.
fn measured(batch: &Batch, model: &Llama, params: &Params) -> (Tensor, Tensor) {
    params.zero_grad();
    let values = batch.values(model, Pass::train(0), 1.0, false).unwrap();
    let found = values.log_probabilities;
    let pattern = numbers("pattern", &found.size(), 1.0).to_kind(found.kind());
    (&found * pattern).sum(found.kind()).backward();
    let gradient = params.get(PARAMETER).unwrap().grad().copy();
    (found.detach(), gradient)
}

/// A prompt of so many tokens with these completions.
fn group(name: usize, prompt: usize, completions: &[&[i64]]) -> Vec<Row> {
    let asked = tokens(name, prompt);
    let rows = completions.iter().map(|completion| Row {
        tokens: [&asked[..], completion].concat(),
        prompt,
    });
    rows.collect()
}

/// Pairs that share a prompt, one without a prompt, and a ranking.
fn groups() -> (Vec<Row>, [usize; 3]) {
    let rows = [
        group(0, 67, &[&[5, 6, 7], &[8, 9]]),
        group(1, 0, &[&[5, 6, 7], &[8, 9]]),
        group(2, 9, &[&[5, 6, 7, 8], &[5, 6, 9], &[5, 6]]),
    ];
    (rows.concat(), [2, 2, 3])
}

#[test]
fn rows_that_share_their_beginning_see_virtual_tokens() {
    let (rows, sizes) = groups();
    for method in METHODS {
        for (kind, tolerance) in KINDS {
            let (model, params) = tuned(kind, method);
            let alone = Batch::new(&model, &rows).unwrap();
            let shared = Batch::of_groups(&model, &rows, &sizes).unwrap();
            assert!(shared.tokens() < alone.tokens());
            let (wanted, gradient) = measured(&alone, &model, &params);
            let (found, ours) = measured(&shared, &model, &params);
            let what = format!("{method:?} in {kind:?}");
            close(&found, &wanted, tolerance, &format!("values of {what}"));
            close(
                &ours,
                &gradient,
                4.0 * tolerance,
                &format!("gradient of {what}"),
            );
            assert!(gradient.abs().max().double_value(&[]) > 0.0, "{what}");
        }
    }
}

#[test]
fn checkpointing_gives_the_same_bits() {
    let (rows, sizes) = groups();
    for method in METHODS {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
            let (mut model, params) = tuned(kind, method);
            let batch = Batch::of_groups(&model, &rows, &sizes).unwrap();
            let (wanted, gradient) = measured(&batch, &model, &params);
            model.checkpointing = true;
            let (found, ours) = measured(&batch, &model, &params);
            assert_eq!(found, wanted, "{method:?} in {kind:?}");
            assert_eq!(ours, gradient, "{method:?} in {kind:?}");
        }
    }
}

/// Gradients against differences: the loss along a direction.
#[test]
fn gradients_are_slopes() {
    let (rows, sizes) = groups();
    for method in METHODS {
        let (model, params) = tuned(Kind::Double, method);
        let batch = Batch::of_groups(&model, &rows, &sizes).unwrap();
        let (_, gradient) = measured(&batch, &model, &params);
        let direction = numbers("direction", &gradient.size(), 1.0);
        let slope = (&gradient * &direction).sum(Kind::Double).double_value(&[]);
        let at = |step: f64| {
            no_grad(|| {
                let mut tensor = params.get(PARAMETER).unwrap().shallow_clone();
                tensor += &direction * step;
                let values = batch.values(&model, Pass::eval(), 1.0, false).unwrap();
                tensor -= &direction * step;
                let found = values.log_probabilities;
                let pattern = numbers("pattern", &found.size(), 1.0);
                (found * pattern).sum(Kind::Double).double_value(&[])
            })
        };
        let measured = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!(
            (measured - slope).abs() < 1e-6 * slope.abs().max(1.0),
            "{method:?}: {measured} along a slope of {slope}"
        );
    }
}

#[test]
fn quantized_weights_take_virtual_tokens() {
    let (rows, sizes) = groups();
    for method in METHODS {
        let mut params = Params::new();
        let mut model = tiny::model(Kind::Float, &mut params);
        let (mut plain, mut plain_params) = {
            let mut params = Params::new();
            (tiny::model(Kind::Float, &mut params), params)
        };
        for (linear, other) in model.linears_mut().into_iter().zip(plain.linears_mut()) {
            let values = linear.weight.values(Kind::Float).unwrap();
            let flat = Vec::<f32>::try_from(values.view(-1)).unwrap();
            let packed = nf4::quantize(&flat, 32, true, 1).unwrap();
            let (out, input) = linear.weight.extents();
            linear.weight = Weight::Nf4(Nf4::new(&packed, 32, (out, input), Kind::Float));
            other.weight = Weight::Dense(linear.weight.values(Kind::Float).unwrap());
        }
        prepend(&mut model, method, &mut params);
        prepend(&mut plain, method, &mut plain_params);
        let batch = Batch::of_groups(&model, &rows, &sizes).unwrap();
        let (found, ours) = measured(&batch, &model, &params);
        let (wanted, gradient) = measured(&batch, &plain, &plain_params);
        let what = format!("{method:?} on NF4");
        close(&found, &wanted, 4e-5, &what);
        close(&ours, &gradient, 2e-4, &what);
    }
}

#[test]
fn generated_texts_are_those_of_whole_forwards_and_fill_the_positions() {
    for method in METHODS {
        let (model, _params) = tuned(Kind::Double, method);
        let prompts: Vec<Prompt> = (0..3)
            .map(|i| Prompt {
                tokens: tokens(i, 3 + 4 * i),
                draw: i as u64,
            })
            .collect();
        let options = |max_new_tokens: usize| Options {
            sampling: Sampling::GREEDY,
            seed: 5,
            max_new_tokens,
            eos: vec![],
            batch: 2,
        };
        let made = generate(&model, Pass::eval(), &prompts, &options(8), &mut |_, _| {
            true
        });
        for (prompt, made) in prompts.iter().zip(made.unwrap()) {
            let mut row = prompt.tokens.clone();
            for token in made.tokens {
                let logits = logits(&model, Pass::eval(), std::slice::from_ref(&row));
                let best = logits.get(row.len() as i64 - 1).argmax(0, false);
                assert_eq!(token, best.int64_value(&[]), "{method:?}");
                row.push(token);
            }
        }
        // 256 positions less five virtual tokens.
        let most = model.positions(Pass::eval());
        assert_eq!(most, 251);
        let one = &prompts[..1];
        let made = generate(&model, Pass::eval(), one, &options(300), &mut |_, _| true).unwrap();
        assert_eq!(made[0].tokens.len() + one[0].tokens.len(), most);
        let long = [tokens(0, most + 1)];
        let segments = Segments::new(&[most + 1], model.place).unwrap();
        let ids = model.tokens(&long[0]).unwrap();
        let error = model.hidden(Pass::eval(), Inputs::Tokens(&ids), &segments, None);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("behind 5 virtual tokens"), "{error}");
    }
}

#[test]
fn virtual_tokens_survive_their_file_and_strangers_are_refused() {
    for method in METHODS {
        let mut params = Params::new();
        let mut model = tiny::model(Kind::Float, &mut params);
        let config = prepend(&mut model, method, &mut params);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter_model.safetensors");
        let settings = folder.path().join("adapter_config.json");
        ml::adapter::save(&model, &path).unwrap();
        config.save(&settings).unwrap();
        let attach = |config: &PeftConfig, path: &std::path::Path| {
            let mut params = Params::new();
            let mut other = tiny::model(Kind::Float, &mut params);
            let stored = Weights::open(path).unwrap();
            let attached = ml::adapter::attach_stored(&mut other, config, &stored, &mut params);
            attached.map(|modules| (other, modules))
        };
        let read = PeftConfig::open(&settings).unwrap();
        let (other, modules) = attach(&read, &path).unwrap();
        let fits = match (method, other.soft.as_ref().unwrap()) {
            (SoftKind::Prompt, Soft::Prompt(_)) => modules == ["model.embed_tokens"],
            (SoftKind::Prefix, Soft::Prefix(_)) => modules.len() == 2,
            _ => false,
        };
        assert!(fits, "{modules:?}");
        let rows = [tokens(0, 9)];
        assert_eq!(
            logits(&model, Pass::eval(), &rows),
            logits(&other, Pass::eval(), &rows)
        );

        let fail = |config: SoftConfig, path: &std::path::Path| {
            let error = attach(&PeftConfig::Soft(config), path).unwrap_err();
            format!("{error:#}")
        };
        let fewer = SoftConfig {
            num_virtual_tokens: VIRTUAL - 1,
            ..config.clone()
        };
        assert!(fail(fewer, &path).contains("shape"));
        let wider = SoftConfig {
            token_dim: Some(7),
            ..config.clone()
        };
        assert!(fail(wider, &path).contains("token_dim"));
        let mut tensors = ml::adapter::stored(&model);
        tensors.push((
            "base_model.score.weight".to_owned(),
            numbers("head", &[1, 32], 0.1),
        ));
        let more = folder.path().join("more.safetensors");
        ml::tensors::write(&more, &tensors, &[]).unwrap();
        assert!(fail(config.clone(), &more).contains("base_model.score.weight"));
        let judge = PeftConfig::Soft(config.clone()).for_task("SEQ_CLS", &["score"]);
        assert_eq!(judge.saved_key("score.weight"), "base_model.score.weight");
        attach(&judge, &more).unwrap();

        // One adapter on a model at a time.
        let start = model.soft.as_ref().unwrap().tensor().copy();
        let twice = soft::attach(&mut model, &config, &start, &mut params);
        let error = twice.unwrap_err().to_string();
        assert!(error.contains("already"), "{error}");
    }
}

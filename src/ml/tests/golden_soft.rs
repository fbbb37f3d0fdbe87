//! Prompt tuning and prefix tuning against PEFT: logits, gradients, greedy texts, and the prefix of a text (tests/golden/make/ml_soft.py). Our rows
//! are packed and see the virtual tokens once; theirs went through one by one, each behind its own.

mod support;

use formats::peft::{SoftConfig, SoftKind};
use ml::generate::{Options, Prompt, generate};
use ml::kv_cache::Segments;
use ml::sample::Sampling;
use ml::sft::{Batch, Row};
use ml::soft::{self, PARAMETER};
use ml::{Inputs, Kind, Llama, Params, Pass, Tensor};
use serde_json::{Value, json};
use support::{Golden, close, model, numbers, tokens, tolerance};

const LENGTHS: [usize; 5] = [13, 1, 7, 2, 24];
const VIRTUAL: usize = 5;
/// What PEFT calls the parameter, which the formula of its numbers knows.
const THEIRS: &str = "prompt_encoder.default.embedding.weight";
const METHODS: [(SoftKind, &str); 2] = [
    (SoftKind::Prompt, "prompt_tuning"),
    (SoftKind::Prefix, "prefix_tuning"),
];

fn ids(index: usize) -> Vec<i64> {
    tokens(&format!("row {index}"), LENGTHS[index])
}

/// Logits of each row's last token.
fn last_logits(model: &Llama, pass: Pass) -> Tensor {
    let segments = Segments::new(&LENGTHS, model.place).unwrap();
    let all: Vec<i64> = (0..LENGTHS.len()).flat_map(ids).collect();
    let tokens = model.tokens(&all).unwrap();
    let hidden = model.hidden(pass, Inputs::Tokens(&tokens), &segments, None);
    let last = Tensor::from_slice(&segments.last()).to_device(model.place.device);
    let hidden = hidden.unwrap().index_select(0, &last);
    model.logits(pass, &hidden).unwrap()
}

/// The tiny model behind so many virtual tokens by formula.
fn tuned(kind: Kind, method: SoftKind, count: usize, changes: Value) -> (Llama, Params) {
    let mut params = Params::new();
    let mut model = model(kind, changes, &mut params);
    let config = SoftConfig::new(method, count, &model.config);
    let shape = config.shape(&model.config).unwrap();
    let start = numbers(THEIRS, &shape.map(|extent| extent as i64), 0.2);
    soft::attach(&mut model, &config, &start, &mut params).unwrap();
    (model, params)
}

#[test]
fn virtual_tokens_are_those_of_peft() {
    for (method, name) in METHODS {
        let golden = Golden::open(&[name]);
        for kind in [Kind::Double, Kind::Float] {
            let tolerance = tolerance::of(kind);
            let what = |part: &str| format!("{name} in {kind:?}: {part}");
            let (model, params) = tuned(kind, method, VIRTUAL, json!({}));
            let trained: Vec<&str> = params.trained().map(|(name, _)| name).collect();
            assert_eq!(trained, [PARAMETER]);
            let ours = last_logits(&model, Pass::eval());
            close(&ours, golden.get("logits"), tolerance, &what("logits"));
            let off = last_logits(&model, Pass::eval().without_adapters());
            close(&off, golden.get("base"), tolerance, &what("without"));

            let rows: Vec<Row> = (0..LENGTHS.len())
                .map(|index| Row {
                    tokens: ids(index),
                    trained: vec![true; LENGTHS[index]],
                    documents: vec![],
                })
                .collect();
            let batch = Batch::new(&model, &rows).unwrap();
            let loss = batch.cross_entropy(&model, Pass::train(0), 256).unwrap();
            close(&loss.sum, golden.get("loss"), tolerance, &what("loss"));
            loss.sum.backward();
            let gradient = params.get(PARAMETER).unwrap().grad();
            let expected = golden.get("gradient");
            close(&gradient, expected, tolerance, &what("gradient"));

            let heads = json!({"head_dim": 12, "num_key_value_heads": 1});
            let (wide, _params) = tuned(kind, method, 1, heads);
            let ours = last_logits(&wide, Pass::eval());
            close(&ours, golden.get("wide"), tolerance, &what("wide heads"));
        }
    }
}

#[test]
fn greedy_texts_are_those_of_peft() {
    for (method, name) in METHODS {
        let golden = Golden::open(&[name]);
        let new = golden.get("greedy").size()[1] as usize;
        let expected = golden.ids("greedy");
        for kind in [Kind::Double, Kind::Float] {
            let (model, _params) = tuned(kind, method, VIRTUAL, json!({}));
            let prompts: Vec<Prompt> = (0..LENGTHS.len())
                .map(|index| Prompt {
                    tokens: ids(index),
                    draw: index as u64,
                })
                .collect();
            for batch in [1, 3, 8] {
                let options = Options {
                    sampling: Sampling::GREEDY,
                    seed: 0,
                    max_new_tokens: new,
                    eos: vec![],
                    batch,
                };
                let made = generate(&model, Pass::eval(), &prompts, &options, &mut |_, _| true);
                let made: Vec<i64> = made.unwrap().into_iter().flat_map(|g| g.tokens).collect();
                assert_eq!(made, expected, "{name} in {kind:?}, {batch} at a time");
            }
        }
    }
}

#[test]
fn the_prefix_of_a_text_is_that_of_peft() {
    let golden = Golden::open(&["prefix_tuning"]);
    for kind in [Kind::Double, Kind::Float] {
        let mut params = Params::new();
        let mut model = model(kind, json!({}), &mut params);
        let prefix = soft::activations(&model, &ids(0)[..VIRTUAL]).unwrap();
        let tolerance = tolerance::of(kind);
        close(&prefix, golden.get("activations"), tolerance, "activations");
        let config = SoftConfig::new(SoftKind::Prefix, VIRTUAL, &model.config);
        soft::attach(&mut model, &config, &prefix, &mut params).unwrap();
        let behind = last_logits(&model, Pass::eval()).get(2);
        close(&behind, golden.get("behind"), tolerance, "logits behind it");
    }
}

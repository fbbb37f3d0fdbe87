//! Greedy text against transformers.generate, token for token, and the distributions that sampling draws from against
//! transformers' filters (tests/golden/make/ml_generation.py).

mod support;

use ml::generate::{Generated, Options, Prompt, generate};
use ml::sample::Sampling;
use ml::{Kind, Params, Pass};
use serde_json::json;
use support::{Golden, model, tokens};

const LENGTHS: [usize; 4] = [1, 9, 30, 4];

/// Greedy answers to all prompts.
fn greedy(kind: Kind, eos: Vec<i64>, batch: usize) -> Vec<Generated> {
    let changes = json!({"tie_word_embeddings": false});
    let model = model(kind, changes, &mut Params::new());
    let prompts: Vec<Prompt> = (0..LENGTHS.len())
        .map(|index| Prompt {
            tokens: tokens(&format!("prompt {index}"), LENGTHS[index]),
            draw: index as u64,
        })
        .collect();
    let options = Options {
        sampling: Sampling::GREEDY,
        seed: 0,
        max_new_tokens: 60,
        eos,
        batch,
    };
    generate(&model, Pass::eval(), &prompts, &options, &mut |_, _| true).unwrap()
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let golden = Golden::open(&["generation"]);
    for kind in [Kind::Float, Kind::Double] {
        for batch in [1, 3, 8] {
            for (index, answer) in greedy(kind, vec![], batch).into_iter().enumerate() {
                let expected = golden.ids(&format!("greedy.{index}"));
                assert_eq!(
                    answer.tokens, expected,
                    "{kind:?}, prompt {index}, batch {batch}"
                );
                assert!(!answer.finished);
            }
        }
    }
}

#[test]
fn an_end_token_ends_a_row_and_no_other() {
    let golden = Golden::open(&["generation"]);
    let eos = golden.ids("eos")[0];
    let mut ended = 0;
    for (index, answer) in greedy(Kind::Float, vec![eos], 4).into_iter().enumerate() {
        let expected = golden.ids(&format!("ended.{index}"));
        assert_eq!(answer.tokens, expected, "prompt {index}");
        assert_eq!(answer.finished, expected.last() == Some(&eos));
        ended += usize::from(answer.finished);
    }
    assert_eq!(ended, 3);
}

/// The token that a uniform number chooses is the one whose interval of the golden distribution holds it, from just after the
/// interval's start to just before its end: so the distribution is that one to 2·10⁻⁶, without asking for it.
#[test]
fn sampling_draws_from_the_distribution_that_transformers_filters_leave() {
    // Filters of transformers are in f32.
    const MARGIN: f64 = 1e-6;
    let golden = Golden::open(&["generation"]);
    let filters = golden.numbers("filters");
    let mut cases = 0;
    for case in 0..3 {
        let logits = golden.numbers(&format!("logits.{case}"));
        let logits: Vec<f32> = logits.into_iter().map(|logit| logit as f32).collect();
        for (index, filter) in filters.chunks(3).enumerate() {
            let name = format!("probabilities.{case}.{index}");
            if !golden.names("").any(|known| known == name) {
                continue;
            }
            cases += 1;
            let sampling = Sampling {
                temperature: filter[0],
                top_k: filter[1] as usize,
                top_p: filter[2],
            };
            let mut start = 0.0;
            for (token, probability) in golden.numbers(&name).into_iter().enumerate() {
                let end = start + probability;
                if probability > 2.0 * MARGIN {
                    for uniform in [start + MARGIN, (start + end) / 2.0, end - MARGIN] {
                        let chosen = sampling.choose(&logits, uniform);
                        assert_eq!(chosen, token, "{name}: {sampling:?} at {uniform}");
                    }
                }
                start = end;
            }
            assert!((start - 1.0).abs() < 1e-9);
        }
    }
    assert_eq!(cases, 31);
}

//! `masked_lm`: masked language modelling, by which encoders are trained on running text.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, From, Inputs, Output, Pool, Port, Preparation, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::{Mistakes, language_models, trains_port};
use crate::lists::fields;
use crate::memory;
use crate::training::{RUNNING, Training, fits, learning};
use crate::words::{MASK_PROBABILITY, PIECE_FIELDS, PIECE_LENGTH, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct MaskedLm {
    /// What every training has.
    #[serde(flatten)]
    pub training: Training,
    /// The probability that a token is chosen.
    pub mask_probability: f64,
    /// See `tokenize_pieces`.
    pub max_length: usize,
}

/// A training of weights that can't be trained, and of a model that masks nothing.
fn fits_inputs(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let mut mistakes = language_models(inputs, "model");
    mistakes.extend(trains_port(params, inputs, "model"));
    mistakes
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "masked_lm",
    version: 1,
    about: "Trains an encoder (BERT) on running text by masked language modelling.",
    manual: "\
Each token of a text is chosen with the probability `mask_probability`, special tokens never; of a row in which none was, one that is drawn. Of
the chosen ones 80% are replaced by `[MASK]`, 10% by a token drawn from the whole vocabulary, and 10% stay. Minimised is the mean over the
chosen tokens of −log p(token | the row as it was made), over the whole batch, so that `micro_batch` changes the last bits only. What is hidden
is drawn anew in every epoch, from the stream `mask` of the seed, the epoch and the row, and stored nowhere.

A text longer than `max_length` is cut into as few pieces as fit, of lengths that differ by one token at most, each between the tokenizer's
`[CLS]` and `[SEP]`; a piece is a row of a batch, and nothing of a text is lost. Labels of `labelled` rows are not looked at.

p = softmax(E·LayerNorm(gelu(W h + b)) + c), with h the encoder's last state of the token, E the word embedding itself, and W, b, the norm and c
the head for masked tokens, `cls.predictions`. An encoder without that head gets a fresh one, and a note says so: W from N(0, 0.02²), drawn from
the stream `init` of the seed, the norm 1 and 0, b and c 0. `train: head` trains the head alone, which gives a saved encoder a head without
changing it. The pooler, which has no part in this, stays as it is. There is no dropout, whatever `config.json` says. With an adapter only the
adapter is trained, and the head must be there already.

The model that comes of it is a folder of transformers' `BertForMaskedLM`. The optimizer, its schedule and the choice of what is trained are those
of `sft`; the learning rate's default is that of transformers' `run_mlm.py`. The paper on task-adaptive pre-training takes 1e-4, β₂ = 0.98,
ε = 1e-6, `weight_decay` 0.01 and `warmup` 0.06, with batches of 256 rows.

Sources: Devlin et al., *BERT*, arXiv 1810.04805; task-adaptive pre-training: Gururangan et al., *Don't Stop Pretraining*, arXiv 2004.10964.",
    example: "adapted: { kind: masked_lm, model: headed, data: reviews, learning_rate: 1.0e-4, epochs: 3 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &learning(5e-5),
        &[MASK_PROBABILITY, PIECE_LENGTH],
        &RUNNING,
    ],
    ports: &[
        Port {
            name: "model",
            accepts: &[ArtifactType::Model],
            arity: Arity::One,
            layouts: &[],
            doc: "The encoder to train.",
        },
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["text", "labelled"],
            doc: "The texts to train on.",
        },
    ],
    outputs: &[
        Output::new("model", ArtifactType::Model, "The trained encoder with its head.")
            .keeps_tokenizer_of("model")
            .foreseen(memory::masked),
        Output::new("metrics", ArtifactType::Metrics, "Loss, rate and gradient norm of each step.")
            .metrics(|_, _| words(&["first_loss", "last_loss", "steps", "tokens"])),
    ],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize_pieces",
        inputs: &[("tokenizer", From::TokenizerOf("model")), ("data", From::Port("data"))],
        fields: &PIECE_FIELDS,
        replaces: &["data"],
    }],
    layout: None,
    check: fits,
    check_inputs: Some(fits_inputs),
    memory: Some(memory::of_masked),
};

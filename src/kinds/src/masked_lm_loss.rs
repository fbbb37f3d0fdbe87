//! `masked_lm_loss`: how well encoders tell hidden tokens of texts.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, FieldType, From, Need, Output, Pool, Port, Preparation, Repeatable, no_check,
};
use serde::Deserialize;

use crate::known::language_models;
use crate::words::{MASK_PROBABILITY, MICRO_BATCH, PIECE_FIELDS, PIECE_LENGTH, each, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskedLmLoss {
    /// The probability that a token is chosen.
    pub mask_probability: f64,
    /// See `tokenize_pieces`.
    pub max_length: usize,
    /// Where the stream `mask` starts.
    pub seed: u64,
    /// Rows at once.
    pub micro_batch: usize,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "masked_lm_loss",
    version: 1,
    about: "Measures encoders on texts: the loss of masked language modelling, and how many hidden tokens they tell.",
    manual: "\
Tokens of the texts are chosen and hidden as `masked_lm` does it, once, drawn from the stream `mask` of the seed and the row: the same ones for
every encoder with this tokenizer. *loss* is the mean over them of −log p in nats, *perplexity* its exponential, *token_accuracy* the fraction
of which the encoder finds the hidden token likeliest, and *tokens* how many they are. It is what `evaluate` is for language models; the two
losses are of different tasks and can't be compared.

Measured before and after a training on texts of a domain, on held-out texts of it the loss says how far the encoder has adapted, and on general
texts how much it has forgotten. An encoder without a head for masked tokens is refused: train one on it first (`masked_lm` with `train: head`).

Source: Devlin et al., *BERT*, arXiv 1810.04805.",
    example: "loss: { kind: masked_lm_loss, models: { before: headed, after: adapted }, data: halves.test }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        MASK_PROBABILITY,
        PIECE_LENGTH,
        field(
            "seed",
            FieldType::Seed,
            Need::Optional,
            "What is hidden is drawn from here; the recipe's seed unless given.",
        ),
        MICRO_BATCH,
    ],
    ports: &[
        Port {
            name: "models",
            accepts: &[ArtifactType::Model],
            arity: Arity::Many,
            layouts: &[],
            doc: "The encoders: one, a list, or a mapping from the names that the report uses.",
        },
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["text", "labelled"],
            doc: "The texts to measure on.",
        },
    ],
    outputs: &[Output::new("metrics", ArtifactType::Metrics, "Numbers of each encoder.").metrics(
        |_, named| each(&named("models"), &["loss", "perplexity", "token_accuracy", "tokens"]),
    )],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize_pieces",
        inputs: &[
            ("tokenizer", From::TokenizerOf("models")),
            ("data", From::Port("data")),
        ],
        fields: &PIECE_FIELDS,
        replaces: &["data"],
    }],
    layout: None,
    check: no_check,
    check_inputs: Some(|_, inputs| language_models(inputs, "models")),
    memory: None,
};

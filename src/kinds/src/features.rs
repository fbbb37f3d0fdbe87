//! `features`: vectors of texts, made once by a model that nothing trains, for any number of heads.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, Literal, Need, Output, Pool, Port, Repeatable,
    no_check,
};
use serde::Deserialize;

use crate::tokenize_labelled::{MAX_LENGTH, TEXTS, TRUNCATION, labelled};
use crate::words::{field, numeric};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    /// `mean`, `last`, `cls` or `pooler`.
    pub pooling: String,
    /// Whether vectors have the length 1.
    pub normalize: bool,
    /// See `tokenize_labelled`.
    pub max_length: usize,
    /// See `tokenize_labelled`.
    pub truncation: String,
    /// Texts at once.
    pub micro_batch: usize,
}

/// Which vector stands for a text.
pub(crate) const POOLING: Field = field(
    "pooling",
    FieldType::Choice(&[
        Choice {
            word: "mean",
            doc: "the mean of the last states of all tokens",
        },
        Choice {
            word: "last",
            doc: "the last token's state, the only one of a causal model that has seen everything",
        },
        Choice {
            word: "cls",
            doc: "the first token's state, of encoders only",
        },
        Choice {
            word: "pooler",
            doc: "the first token's state through BERT's pooler, tanh(W s + b)",
        },
    ]),
    Need::Default(Literal::Text("mean")),
    "Which vector stands for a text.",
);

/// Texts a forward pass takes at once, without a way back.
pub(crate) const FORWARD_BATCH: Field = numeric(
    "micro_batch",
    FieldType::Integer { min: 1, max: 65536 },
    Need::Default(Literal::Integer(16)),
    "Texts that go through the model at once: less needs less memory, and changes the last bits only.",
);

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "features",
    version: 2,
    about: "Turns labelled texts into vectors by a frozen model, for heads to be trained on.",
    manual: "\
Feature-based fine-tuning (BERT, arXiv 1810.04805, section 5.3): a model that is not trained reads each text once, and its vectors are
kept; `head` then trains on them as often as one likes. A vector is made of the states of the last layer, after the final norm:

| `pooling` | vector | of |
|---|---|---|
| `mean` | Σ_t s_t / n over all n tokens, those that the tokenizer puts around a text included (sentence-transformers, arXiv 1908.10084) | any model |
| `last` | s_n | any model; the usual one of causal models, as in `LlamaForSequenceClassification` |
| `cls` | s_1 | encoders |
| `pooler` | tanh(W s_1 + b) | encoders with a pooler, as in `BertForSequenceClassification` |

`normalize` divides each by its length, as sentence-transformers does after `mean` of all-MiniLM-L6-v2. Vectors are f32 whatever the model's
`dtype`; each row keeps its label, without white space around it. An adapter on the model counts. Rows of like length go together, and are written in the data's order.",
    example: "vectors: { kind: features, model: base, data: halves.train, max_length: 128 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        POOLING,
        field(
            "normalize",
            FieldType::Bool,
            Need::Default(Literal::Bool(false)),
            "Divide each vector by its length.",
        ),
        MAX_LENGTH,
        TRUNCATION,
        FORWARD_BATCH,
    ],
    ports: &[
        Port {
            name: "model",
            accepts: &[ArtifactType::Model],
            arity: Arity::One,
            layouts: &[],
            doc: "The model that reads the texts; it stays as it is.",
        },
        labelled("data", Arity::One, "The texts with their labels."),
    ],
    outputs: &[Output::new(
        "vectors",
        ArtifactType::Vectors,
        "A vector and a label of each text.",
    )
    .keeps_tokenizer_of("model")],
    preparations: &[TEXTS],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

//! `tokenize_labelled`: labelled texts → token ids. Hidden: a preparation of the kinds that read whole texts to say something of them.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, From, Literal, Need, Output, Pool, Port,
    Preparation, Repeatable, no_check,
};
use serde::Deserialize;

use crate::words::{TOKENIZER, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizeLabelled {
    /// Tokens a text may have, those included that the tokenizer puts around it.
    pub max_length: usize,
    /// `keep_start` or `keep_end`.
    pub truncation: String,
}

/// The longest text, in tokens.
pub(crate) const MAX_LENGTH: Field = field(
    "max_length",
    FieldType::Integer {
        min: 2,
        max: 1 << 20,
    },
    Need::Default(Literal::Integer(512)),
    "The longest text in tokens, what the tokenizer puts around it included; longer ones are cut.",
);

/// What is left of texts that are too long.
pub(crate) const TRUNCATION: Field = field(
    "truncation",
    FieldType::Choice(&[
        Choice {
            word: "keep_start",
            doc: "the end is cut off",
        },
        Choice {
            word: "keep_end",
            doc: "the start is cut off",
        },
    ]),
    Need::Default(Literal::Text("keep_start")),
    "What is left of texts longer than `max_length`; how many are cut is always said.",
);

/// The words that every kind that reads texts hands on.
pub(crate) const FIELDS: [&str; 2] = ["max_length", "truncation"];

/// Rows of texts with labels.
pub(crate) const fn labelled(name: &'static str, arity: Arity, doc: &'static str) -> Port {
    Port {
        name,
        accepts: &[ArtifactType::Dataset],
        arity,
        layouts: &["labelled"],
        doc,
    }
}

/// The texts of `data` as tokens of the model. The labels are still read from the rows.
pub(crate) const TEXTS: Preparation = Preparation {
    name: "tokens",
    kind: "tokenize_labelled",
    inputs: &[
        ("tokenizer", From::TokenizerOf("model")),
        ("data", From::Port("data")),
    ],
    fields: &FIELDS,
    replaces: &[],
};

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "tokenize_labelled",
    version: 1,
    about: "Turns labelled texts into token ids.",
    manual: "\
A text gets what the tokenizer itself puts before and after one, and no end token of ours: the ids are those of transformers'
`tokenizer(text, truncation=True, max_length=…)`, but that a text which begins with the token of the beginning gets no second one. No row is left out.",
    example: "",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[MAX_LENGTH, TRUNCATION],
    ports: &[
        TOKENIZER,
        labelled("data", Arity::One, "The texts."),
    ],
    outputs: &[Output::new(
        "tokens",
        ArtifactType::Tokens,
        "Ids of each text.",
    )],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

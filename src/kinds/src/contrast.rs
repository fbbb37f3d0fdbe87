//! `contrast`: reference answers against sampled ones, as preferences.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable, Rows,
    no_check,
};
use serde::Deserialize;

use crate::words::field;

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// `all` or `first`.
    pub pairs: String,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "contrast",
    version: 1,
    about: "Makes preferences of fine-tuning data: the answer of a row is chosen, a model's own answer rejected.",
    manual: "\
The rows of `chosen` and those of `rejected` are joined where their prompts are equal, in the order of `chosen`. A sample that is word for
word an answer of `chosen` to the same prompt is left out, and so is one that came before; how many is said, and how many prompts have no
sample. Pairs have no margin. No pair at all is an error: in the end the model writes what it is to learn. With samples of the model that
is then trained by `dpo` against itself, round after round, this is self-play fine-tuning (SPIN; Chen et al., arXiv 2401.01335).",
    example: "pairs: { kind: contrast, chosen: rows, rejected: tries }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[field(
        "pairs",
        FieldType::Choice(&[
            Choice { word: "all", doc: "a pair with each sample of the prompt" },
            Choice { word: "first", doc: "one pair, with the first sample that differs from the answer" },
        ]),
        Need::Default(Literal::Text("all")),
        "Which pairs are made where a prompt has several samples.",
    )],
    ports: &[
        Port {
            name: "chosen",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["prompt-completion", "messages"],
            doc: "Prompts with the answers to learn; of a conversation the assistant's last turn.",
        },
        Port {
            name: "rejected",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["prompt-completion", "messages", "scored"],
            doc: "Samples for the same prompts, as `generate` writes them.",
        },
    ],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "Pairs, laid out as preference.")],
    preparations: &[],
    layout: Some(|_, _| Some(Rows::of("preference").without("margin"))),
    check: no_check,
    check_inputs: None,
    memory: None,
};

//! `cut`: texts → prompts with their completions.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, Literal, Need, Output, Pool, Port, Repeatable, Rows, no_check,
};
use serde::Deserialize;

use crate::words::{count, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Words of the prompt.
    pub prompt_words: usize,
    /// The most words of the completion.
    pub completion_words: Option<usize>,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "cut",
    version: 1,
    about: "Makes prompts of texts: their first words, with what follows as the completion.",
    manual: "\
Words are what white space parts. A prompt is the text up to the end of its last word; the white space behind it begins the
completion, so that prompt and completion together are the text, or its beginning. Texts in which no word follows the prompt are
left out, and their number is said; none left is an error. Line breaks of HTML and the like are for `load_dataset` to replace.",
    example: "prompts: { kind: cut, data: reviews, prompt_words: 4, completion_words: 32 }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field("prompt_words", count(1), Need::Default(Literal::Integer(4)), "Words of the prompt."),
        field("completion_words", count(1), Need::Optional, "The most words of the completion; all that follow unless given."),
    ],
    ports: &[Port {
        name: "data",
        accepts: &[ArtifactType::Dataset],
        arity: Arity::One,
        layouts: &["text", "labelled", "prompt-completion"],
        doc: "The texts; of a prompt with its completion both, joined.",
    }],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "Prompts with their completions, laid out as prompt-completion.")],
    preparations: &[],
    layout: Some(|_, _| Some(Rows::of("prompt-completion"))),
    check: no_check,
    check_inputs: None,
    memory: None,
};

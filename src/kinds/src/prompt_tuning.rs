//! `prompt_tuning`: a model → the same model behind embeddings to train.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, Literal, Need, Output, Pool, Port, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::unadapted_language;
use crate::memory;
use crate::words::field;

/// The parameters; those of `prefix_tuning` are the same.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptTuning {
    /// How many tokens are put before every row.
    pub virtual_tokens: usize,
    /// Where they start: `vocabulary` or `random`; from the vocabulary unless given.
    pub init: Option<String>,
    /// The text that they start as.
    pub init_text: Option<String>,
    /// Where the stream `init` starts.
    pub seed: u64,
}

/// Where virtual tokens start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start<'a> {
    /// As words of the vocabulary.
    Vocabulary,
    /// As standard normal numbers.
    Random,
    /// As this text.
    Text(&'a str),
}

impl PromptTuning {
    /// Where the virtual tokens start.
    pub fn start(&self) -> Start<'_> {
        match (&self.init_text, self.init.as_deref()) {
            (Some(text), _) => Start::Text(text),
            (None, Some(RANDOM)) => Start::Random,
            _ => Start::Vocabulary,
        }
    }
}

impl Start<'_> {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Start::Vocabulary => VOCABULARY,
            Start::Random => RANDOM,
            Start::Text(_) => "text",
        }
    }
}

const VOCABULARY: &str = "vocabulary";
const RANDOM: &str = "random";

/// Two starts, or a text without a word.
pub(crate) fn check(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let text = params.get("init_text").and_then(Value::as_str);
    let Some(text) = text else {
        return Vec::new();
    };
    if text.trim().is_empty() {
        let message = "a text without a word is no start: leave `init_text` out".to_owned();
        return vec![("init_text", message)];
    }
    match params.get("init").and_then(Value::as_str) {
        Some(init) => {
            let message =
                format!("`init: {init}` and `init_text` are two starts: leave out one of them");
            vec![("init", message)]
        }
        None => Vec::new(),
    }
}

/// The fields of both kinds of virtual tokens.
pub(crate) const FIELDS: &[Field] = &[
    field(
        "virtual_tokens",
        FieldType::Integer { min: 1, max: 65536 },
        Need::Default(Literal::Integer(20)),
        "How many tokens are put before every row; the model's positions are fewer by so many.",
    ),
    field(
        "init",
        FieldType::Choice(&[
            Choice {
                word: VOCABULARY,
                doc: "as tokens that are drawn from the vocabulary, each as likely",
            },
            Choice {
                word: RANDOM,
                doc: "as numbers from N(0, 1)",
            },
        ]),
        Need::Optional,
        "Where they start, without `init_text`: `vocabulary` unless given.",
    ),
    field(
        "init_text",
        FieldType::Text,
        Need::Optional,
        "The text that they start as: its tokens, cut, or from the beginning again, until there are `virtual_tokens`.",
    ),
    field(
        "seed",
        FieldType::Seed,
        Need::Optional,
        "Where the draw of the start begins; the recipe's seed unless given.",
    ),
];

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "prompt_tuning",
    version: 1,
    about: "Puts embeddings to train before every row of a frozen model (prompt tuning).",
    manual: "\
Before the embeddings e(x_1) … e(x_t) of every row come those of `virtual_tokens` tokens that are no words, P = (p_1 … p_n), and the model
reads [P; e(x)]: P is all that is trained, n times the model's width, 11,520 numbers for 20 tokens before a Llama of 135 million
parameters. The first n positions are theirs; what rows say and what is generated is the words' alone. They are the same before every row,
so that their states are computed once for all rows of a batch.

They start as embeddings of words: of `init_text`, or of tokens drawn from the vocabulary. That is PEFT's `TEXT` and `SAMPLE_VOCAB`. PEFT's own
default, N(0, 1) (`init: random`), is many times longer than a model's embeddings, and in the paper words are the better start by far where
models are small. Nothing is an identity to begin with: a model with fresh virtual tokens is another than without. They need learning
rates some hundred times those of `lora`, such as 3.0e-2, and more steps. They can't be merged into weights. The files are PEFT's:
`adapter_model.safetensors` with `prompt_embeddings` in f32, and `adapter_config.json`.

Source: Lester et al., *The Power of Scale for Parameter-Efficient Prompt Tuning*, arXiv 2104.08691.",
    example: "prompted: { kind: prompt_tuning, model: base, virtual_tokens: 20, init_text: \"Answer in one short sentence.\" }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: FIELDS,
    ports: &[Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model to adapt." }],
    outputs: &[Output::new("model", ArtifactType::Model, "The model behind its virtual tokens, ready to train.").keeps_tokenizer_of("model").foreseen(memory::prompted)],
    preparations: &[],
    layout: None,
    check,
    check_inputs: Some(unadapted_language),
    memory: None,
};

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn there_is_one_start() {
        let problems = |params: Value| {
            let problems = check(params.as_object().unwrap());
            problems
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        assert!(problems(json!({})).is_empty());
        assert!(problems(json!({ "init": "random", "init_text": null })).is_empty());
        assert!(problems(json!({ "init_text": "Be brief." })).is_empty());
        assert_eq!(problems(json!({ "init_text": " " })), ["init_text"]);
        let both = json!({ "init": "vocabulary", "init_text": "Be brief." });
        assert_eq!(problems(both), ["init"]);

        let start = |init: Option<&str>, text: Option<&str>| {
            let params = PromptTuning {
                virtual_tokens: 2,
                init: init.map(str::to_owned),
                init_text: text.map(str::to_owned),
                seed: 1,
            };
            params.start().word()
        };
        assert_eq!(start(None, None), "vocabulary");
        assert_eq!(start(Some("vocabulary"), None), "vocabulary");
        assert_eq!(start(Some("random"), None), "random");
        assert_eq!(start(None, Some("Be brief.")), "text");
    }
}

//! `init_model`: a small model with random weights, and a tokenizer made of texts.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{POSITIVE, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitModel {
    /// The most tokens of the tokenizer.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; as many as query heads unless given.
    pub key_value_heads: Option<usize>,
    /// Width inside the feed-forward part; from `hidden` unless given.
    pub intermediate: Option<usize>,
    /// Tokens that the model sees at once.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// `f32` or `bf16`.
    pub dtype: String,
    /// Standard deviation of the weights.
    pub initializer_range: f64,
    /// Where the streams `init …` start.
    pub seed: u64,
}

impl InitModel {
    /// Key and value heads.
    pub fn key_value_heads(&self) -> usize {
        self.key_value_heads.unwrap_or(self.heads)
    }

    /// Width inside the feed-forward part: 8/3 of `hidden`, rounded up to a multiple of 64, unless given.
    pub fn intermediate(&self) -> usize {
        self.intermediate
            .unwrap_or_else(|| (self.hidden * 8).div_ceil(3).next_multiple_of(64))
    }
}

const fn extent(max: i64) -> FieldType {
    FieldType::Integer { min: 1, max }
}

/// Heads that do not part the width, or that the rotary embedding can't turn.
fn check(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let number = |name: &str| params.get(name).and_then(Value::as_u64);
    let mut problems = Vec::new();
    if let (Some(hidden), Some(heads)) = (number("hidden"), number("heads")) {
        if hidden % heads != 0 {
            let message =
                format!("{heads} heads do not part a width of {hidden} (`hidden`) evenly");
            problems.push(("heads", message));
        } else if (hidden / heads) % 2 != 0 {
            let message = format!(
                "a head would be {} wide (`hidden` / `heads`), and rotary embeddings turn pairs of numbers: make it even",
                hidden / heads
            );
            problems.push(("heads", message));
        }
    }
    if let (Some(heads), Some(few)) = (number("heads"), number("key_value_heads"))
        && heads % few != 0
    {
        let message = format!("{heads} heads can't share {few} key and value heads evenly");
        problems.push(("key_value_heads", message));
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "init_model",
    version: 1,
    about: "Makes a small Llama with random weights, and a tokenizer from the texts of a dataset.",
    manual: "\
The tokenizer is byte-level BPE as GPT-2's: texts are cut into words by its pattern, and the most frequent pair of neighbouring
tokens is merged until there are `vocabulary` tokens, or no pair is left that stands in the texts twice; of equally frequent pairs
that with the lowest ids. Its special tokens are `<|endoftext|>`, which ends a text, and `<|pad|>`; it has no chat template.

Weights are drawn from N(0, `initializer_range`²), each tensor from a stream `init NAME` of the seed; those of `o_proj` and
`down_proj` are divided by √(2 · `layers`), as in GPT-2. Norms start at 1. The head is the embedding. The files are in f32 and are
what transformers' `LlamaForCausalLM` and `AutoTokenizer` read.

Sources: Sennrich et al., arXiv 1508.07909 (BPE); Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019;
Touvron et al., arXiv 2302.13971 (Llama).",
    example: "small: { kind: init_model, data: reviews, vocabulary: 4096, hidden: 256, layers: 4, heads: 4 }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "vocabulary",
            FieldType::Integer { min: 258, max: 1 << 18 },
            Need::Default(Literal::Integer(4096)),
            "The most tokens; 258 are the bytes and two special tokens.",
        ),
        field("hidden", extent(8192), Need::Default(Literal::Integer(256)), "Width of the model."),
        field("layers", extent(256), Need::Default(Literal::Integer(4)), "Transformer blocks."),
        field("heads", extent(1024), Need::Default(Literal::Integer(4)), "Attention heads; each is `hidden` / `heads` wide, an even number."),
        field("key_value_heads", extent(1024), Need::Optional, "Key and value heads, a divisor of `heads`; as many as `heads` unless given."),
        field(
            "intermediate",
            extent(1 << 16),
            Need::Optional,
            "Width inside the feed-forward part; 8/3 of `hidden`, rounded up to a multiple of 64, unless given.",
        ),
        field("context", extent(1 << 20), Need::Default(Literal::Integer(512)), "Tokens that the model sees at once."),
        field("rope_theta", POSITIVE, Need::Default(Literal::Number(10_000.0)), "Base of the rotary frequencies."),
        field(
            "dtype",
            FieldType::Choice(&[
                Choice { word: "f32", doc: "everything in 32 bits" },
                Choice { word: "bf16", doc: "weights and activations in 16 bits, sums in 32" },
            ]),
            Need::Default(Literal::Text("f32")),
            "The type of the weights and activations in every stage that uses the model.",
        ),
        field("initializer_range", POSITIVE, Need::Default(Literal::Number(0.02)), "Standard deviation of the weights."),
        field("seed", FieldType::Seed, Need::Optional, "Where the draw of the weights starts; the recipe's seed unless given."),
    ],
    ports: &[Port {
        name: "data",
        accepts: &[ArtifactType::Dataset],
        arity: Arity::One,
        layouts: &[],
        doc: "The rows whose texts the tokenizer is made of.",
    }],
    outputs: &[Output::new("model", ArtifactType::Model, "The model.")],
    preparations: &[],
    layout: None,
    check,
    check_inputs: None,
    memory: None,
};

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problems(hidden: u64, heads: u64, key_value_heads: Option<u64>) -> Vec<&'static str> {
        let params =
            json!({ "hidden": hidden, "heads": heads, "key_value_heads": key_value_heads });
        let problems = check(params.as_object().unwrap());
        problems.into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn heads_must_part_the_width_into_even_parts() {
        assert!(problems(256, 4, None).is_empty());
        assert!(problems(256, 4, Some(2)).is_empty());
        assert_eq!(problems(256, 3, None), ["heads"]);
        assert_eq!(problems(12, 4, None), ["heads"]);
        assert_eq!(problems(256, 4, Some(3)), ["key_value_heads"]);
        assert_eq!(problems(256, 4, Some(8)), ["key_value_heads"]);
        assert_eq!(problems(10, 4, Some(3)), ["heads", "key_value_heads"]);
    }

    #[test]
    fn the_width_inside_follows_the_width() {
        let defaults = CONTRACT.fields.iter().map(|field| {
            let value = match field.need {
                Need::Default(literal) => literal.value(),
                _ if field.name == "seed" => json!(1),
                _ => Value::Null,
            };
            (field.name.to_owned(), value)
        });
        let mut params: InitModel =
            serde_json::from_value(Value::Object(defaults.collect())).unwrap();
        assert_eq!((params.intermediate(), params.key_value_heads()), (704, 4));
        params.intermediate = Some(100);
        assert_eq!(params.intermediate(), 100);
    }
}

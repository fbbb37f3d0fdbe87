//! `density_ratio`: completions → scores, by two models of which one is better aligned.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable, Rows,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{MICRO_BATCH, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DensityRatio {
    /// What a good completion is.
    pub criteria: Option<String>,
    /// Good and bad completions.
    pub examples: Option<String>,
    /// Where they stand around the prompt.
    pub template: String,
    /// `none` or `tokens`.
    pub normalize: String,
    /// Rows at once.
    pub micro_batch: usize,
}

/// What is wrong with a text that is filled in: a `{word}` that is none of its places, which would stay as it is.
pub(crate) fn unknown_place(text: &str, places: &[&str]) -> Option<String> {
    let is_word = |inside: &str| {
        inside.starts_with(char::is_alphabetic)
            && inside.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    let word = text
        .split('{')
        .skip(1)
        .filter_map(|after| after.split_once('}'))
        .map(|(inside, _)| inside)
        .find(|inside| is_word(inside) && !places.contains(inside))?;
    let known: Vec<String> = places
        .iter()
        .map(|place| format!("`{{{place}}}`"))
        .collect();
    Some(format!(
        "nothing is filled in at `{{{word}}}`: the places are {}; braces that are meant have a space behind them, `{{ {word}}}`",
        known.join(", ")
    ))
}

/// What would be ignored.
fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let text = |name: &str| params.get(name).and_then(Value::as_str);
    let template = text("template").unwrap_or_default();
    let mut problems = Vec::new();
    if !template.contains("{prompt}") {
        let message = "the template has no `{prompt}`: the models would not see what is answered";
        problems.push(("template", message.to_owned()));
    }
    for name in ["criteria", "examples"] {
        if text(name).is_some() && !template.contains(&format!("{{{name}}}")) {
            let message = format!("the template has no `{{{name}}}`, so that `{name}` is not read");
            problems.push((name, message));
        }
    }
    if let Some(message) = unknown_place(template, &["prompt", "criteria", "examples"]) {
        problems.push(("template", message));
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "density_ratio",
    version: 1,
    about: "Scores completions by how much likelier a better aligned model finds them than a less aligned one.",
    manual: "\
The score of a completion y of a prompt x is r(x, y) = log π_strong(y | x) − log π_weak(y | x), the sum over the tokens of the completion;
with `normalize: tokens` each of the two sums is divided by the number of its tokens. No judge is trained: the strong model is one that was
tuned to preferences, the weak one what it was tuned from, or another that is worse; the wider the gap, the better the scores (Xu et al.,
*Dr. SoW*, arXiv 2411.02481).

`criteria` says in words what a good completion is, `examples` shows some; both models read them in the prompt. `template` says where: it
takes the place of a plain prompt, or of the user's last turn in a conversation, with `{prompt}`, `{criteria}` and `{examples}` filled in. A
place without a value goes together with the blank line after it. Without `criteria` and `examples` and with the usual template the prompt
stays as it is. The rows that come out have the prompt as it was.

Each model reads text with its own tokenizer and chat template. A completion ends with the model's end of text or of turn, which counts as
one of its tokens, and begins where `dpo` sees it begin. A row that one of the models can't read whole is an error: cut short, the two
would be asked different things. Completions of a prompt that are the same word for word are scored once.",
    example: "scores: { kind: density_ratio, samples: tries, strong: tuned, weak: sft }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field("criteria", FieldType::Text, Need::Optional, "What makes a completion good, in words to the models."),
        field("examples", FieldType::Text, Need::Optional, "Prompts with good and bad completions, in words to the models."),
        field(
            "template",
            FieldType::Text,
            Need::Default(Literal::Text("{criteria}\n\n{examples}\n\n{prompt}")),
            "What the models read in the place of the prompt.",
        ),
        field(
            "normalize",
            FieldType::Choice(&[
                Choice { word: "none", doc: "sums over tokens: longer completions have scores further from 0" },
                Choice { word: "tokens", doc: "means over the tokens of each model" },
            ]),
            Need::Default(Literal::Text("none")),
            "What the log-probabilities are divided by.",
        ),
        MICRO_BATCH,
    ],
    ports: &[
        Port {
            name: "samples",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["prompt-completion", "messages", "scored", "preference", "ranking", "unpaired"],
            doc: "Prompts with completions.",
        },
        Port {
            name: "strong",
            accepts: &[ArtifactType::Model],
            arity: Arity::One,
            layouts: &[],
            doc: "The better aligned model.",
        },
        Port {
            name: "weak",
            accepts: &[ArtifactType::Model],
            arity: Arity::One,
            layouts: &[],
            doc: "The less aligned one; it may have another tokenizer.",
        },
    ],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "The completions with their scores; those of a prompt follow each other.")],
    preparations: &[],
    layout: Some(|_, _| Some(Rows::of("scored"))),
    check: fits,
    check_inputs: None,
    memory: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_known_or_named() {
        let places = ["prompt", "criteria"];
        for fine in [
            "",
            "{prompt}",
            "{criteria}\n\n{{prompt}}",
            "{ promt}",
            "{} { {\"a\": 1} {2} }",
            "{promt",
        ] {
            assert_eq!(unknown_place(fine, &places), None, "{fine}");
        }
        for (text, word) in [
            ("{prompt} {promt}", "`{promt}`"),
            ("{{Prompt}}", "`{Prompt}`"),
            ("{ {a_1} {prompt}", "`{a_1}`"),
        ] {
            let message = unknown_place(text, &places).unwrap_or_default();
            assert!(message.contains(word), "{text}: {message}");
            assert!(message.contains("`{prompt}`, `{criteria}`"), "{message}");
        }
    }
}

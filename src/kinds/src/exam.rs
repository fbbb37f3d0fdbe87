//! `exam`: questions with known answers, zero-shot or few-shot.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Inputs, Literal, Need, Output, Pool, Port, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{MAX_NEW_TOKENS, MICRO_BATCH, count, each, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exam {
    /// `multiple_choice` or `exact_match`.
    pub task: String,
    /// `text` or `letter`.
    pub answer_with: String,
    /// How a question of plain text is put.
    pub template: Option<String>,
    /// What comes before everything.
    pub instructions: Option<String>,
    /// Examples before each question.
    pub shots: usize,
    /// `squad` or `none`.
    pub normalization: String,
    /// `line` or `end`.
    pub until: String,
    /// Tokens of an answer.
    pub max_new_tokens: usize,
    /// Where the stream `shots` starts.
    pub seed: u64,
    /// Rows at once.
    pub micro_batch: usize,
}

impl Exam {
    /// How a question of plain text is put, as given or as usual.
    pub fn template(&self) -> &str {
        match (&self.template, self.answer_with.as_str()) {
            (Some(template), _) => template,
            (None, "letter") => "Question: {prompt}\n{choices}Answer:",
            (None, _) => "Question: {prompt}\nAnswer:",
        }
    }
}

fn names(params: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let own: &[&str] = match params.get("task").and_then(Value::as_str) {
        Some("exact_match") => &[
            "exact_match",
            "exact_match_low",
            "exact_match_high",
            "f1",
            "finished",
            "questions",
        ],
        _ => &[
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "accuracy_normalized",
            "accuracy_normalized_low",
            "accuracy_normalized_high",
            "questions",
        ],
    };
    each(&named("models"), own)
}

fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let template = params.get("template").and_then(Value::as_str);
    if template.is_some_and(|template| !template.contains("{prompt}")) {
        let message = "`template` has no `{prompt}`, so no question would be asked";
        return vec![("template", message.to_owned())];
    }
    Vec::new()
}

/// The layouts whose rows have answers.
const ANSWERED: &[&str] = &["choices", "prompt-completion", "messages"];

/// Examples that are not shown, and rows without the choices that the task asks for.
fn fits_inputs(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let word = |name: &str| params.get(name).and_then(Value::as_str);
    let examples = !(inputs.names)("examples").is_empty();
    if examples && params.get("shots").and_then(Value::as_u64) == Some(0) {
        let message =
            "`examples` are given, and `shots` is 0: say how many to show, or leave `examples` out";
        problems.push(("examples", message.to_owned()));
    }
    let chosen = word("task") == Some("multiple_choice");
    let letters = word("answer_with") == Some("letter");
    for port in ["data", "examples"] {
        for (stage, rows) in (inputs.rows)(port) {
            let layout = rows.layout;
            // What the port does not take has been said.
            if layout == "choices" || !ANSWERED.contains(&layout.as_str()) {
                continue;
            }
            let bare =
                format!("the rows of `{stage}` are laid out as {layout} and have no choices");
            if chosen && port == "data" {
                let way = "`task: exact_match` takes questions without them";
                problems.push((port, format!("{bare}: {way}")));
            } else if letters {
                let way = "leave `answer_with` out";
                problems.push((
                    port,
                    format!("{bare}, so that there are no letters to answer with: {way}"),
                ));
            }
        }
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "exam",
    version: 1,
    about: "Examines models on questions with known answers: multiple choice or exact match, zero-shot or few-shot.",
    manual: "\
**Multiple choice** takes rows of layout `choices`. Of each choice c the log-likelihood log p(c | question) is the sum over its tokens; no
end-of-text token is asked for. *accuracy* is the part of the questions whose likeliest choice is the right one, *accuracy_normalized*
the same with log p(c | question) / characters of c, so that long choices are not at a disadvantage; of equal ones the first counts. They are
`acc` and `acc_norm` of lm-evaluation-harness (`process_results` in `lm_eval/api/task.py`); as there, white space at the end of the question
counts as the choice's.

**Exact match** takes rows with one answer (`prompt-completion`, `messages`, or `choices`, whose right one it is). The model answers
greedily; its answer counts up to the first line break (`until: line`). *exact_match* is the part of the answers that equal the known one after
normalization, *f1* the mean F1 = 2PR / (P + R) of their words, *finished* how many came to their end. The normalization is that of
SQuAD (arXiv 1606.05250): lower case, no punctuation, no articles, single spaces.

*…_low* and *…_high* are the 95% interval of a proportion (Wilson 1927). Every number bears its model's name: `tuned.accuracy`.

A question of plain text is put by the `template`, in which `{prompt}` is what the row asks and `{choices}` a line `A. …` for each choice;
the answer comes after a space, unless the template ends in white space. Before it come the `instructions` and the shots, with their answers, each with
an empty line behind it. A question in turns goes through the model's chat template: instructions are the system's turn, shots are turns of the
user and the assistant, and there is no template. With `answer_with: letter` the choices are listed, and letters answer for them, as in MMLU
(arXiv 2009.03300).

The shots are the first ones of an order of the `examples` that is drawn from the seed: the same for every question and every model, but never
one that asks what the question asks. Without `examples` they come from the questions themselves. What was answered to each question, and
the log-likelihood of each choice, is in the file `samples.jsonl`, which `levain show` prints.",
    example: "quiz: { kind: exam, models: { base: base, tuned: tuned }, data: questions.test, examples: questions.train, shots: 5 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "task",
            FieldType::Choice(&[
                Choice { word: "multiple_choice", doc: "which choice is the likeliest" },
                Choice { word: "exact_match", doc: "what the model answers by itself" },
            ]),
            Need::Default(Literal::Text("multiple_choice")),
            "What a model has to do.",
        ),
        field(
            "answer_with",
            FieldType::Choice(&[
                Choice { word: "text", doc: "the text of a choice" },
                Choice { word: "letter", doc: "its letter, and the choices are listed in the question" },
            ]),
            Need::Default(Literal::Text("text")),
            "What the answer to a question with choices is.",
        ),
        field(
            "template",
            FieldType::Text,
            Need::Optional,
            "How a question of plain text is put; `\"Question: {prompt}\\nAnswer:\"` unless given, and with letters \
             `\"Question: {prompt}\\n{choices}Answer:\"`.",
        ),
        field("instructions", FieldType::Text, Need::Optional, "A text before everything."),
        field("shots", count(0), Need::Default(Literal::Integer(0)), "Examples with their answers before each question; 0 is zero-shot."),
        field(
            "normalization",
            FieldType::Choice(&[
                Choice { word: "squad", doc: "lower case, no punctuation, no articles, single spaces" },
                Choice { word: "none", doc: "only white space at the ends is taken off" },
            ]),
            Need::Default(Literal::Text("squad")),
            "`exact_match`: how both answers are made alike before they are compared.",
        ),
        field(
            "until",
            FieldType::Choice(&[
                Choice { word: "line", doc: "the first line break" },
                Choice { word: "end", doc: "the end-of-text token, or `max_new_tokens`" },
            ]),
            Need::Default(Literal::Text("line")),
            "`exact_match`: up to where an answer counts.",
        ),
        MAX_NEW_TOKENS,
        field("seed", FieldType::Seed, Need::Optional, "Where the order of the shots starts; the recipe's seed unless given."),
        MICRO_BATCH,
    ],
    ports: &[
        Port {
            name: "models",
            accepts: &[ArtifactType::Model],
            arity: Arity::Many,
            layouts: &[],
            doc: "The models: one, a list, or a mapping from the names that the report uses.",
        },
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: ANSWERED,
            doc: "The questions.",
        },
        Port {
            name: "examples",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::Optional,
            layouts: ANSWERED,
            doc: "Where shots come from; the questions themselves unless given.",
        },
    ],
    outputs: &[Output::new("metrics", ArtifactType::Metrics, "Numbers of each model, and its answer to each question.")
        .metrics(names)],
    preparations: &[],
    layout: None,
    check: fits,
    check_inputs: Some(fits_inputs),
    memory: None,
};

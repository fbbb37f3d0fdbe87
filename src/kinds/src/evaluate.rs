//! `evaluate`: how well models predict rows, and what they answer.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, FieldType, From, Literal, Need, Output, Pool, Port, Preparation, Repeatable,
    no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::language;
use crate::words::{
    LOSS_ON, MAX_LENGTH, MAX_NEW_TOKENS, MICRO_BATCH, TEMPERATURE, TOKENIZE_FIELDS, TRUNCATION,
    count, each, field, words,
};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Rows to answer.
    pub samples: usize,
    /// Tokens of an answer.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Where the stream `sample` starts.
    pub seed: u64,
    /// See `tokenize`.
    pub max_length: usize,
    /// See `tokenize`.
    pub truncation: String,
    /// See `tokenize`.
    pub loss_on: String,
    /// Rows at once.
    pub micro_batch: usize,
}

/// What a judge's scores say of a model: their mean, and what it is against the first model.
const JUDGED: [&str; 5] = [
    "score",
    "win_rate",
    "difference",
    "difference_low",
    "difference_high",
];

/// The name of a number under a judge: a lone judge has no name, and of several each has its own, `gold_score`.
pub fn under(judge: &str, measure: &str) -> String {
    match judge {
        "" => measure.to_owned(),
        name => format!("{name}_{measure}"),
    }
}

/// What is measured of each model; more of it under judges, and with a reference.
fn names(_: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut all = words(&["loss", "perplexity", "token_accuracy", "tokens"]);
    let judges = named("judge");
    if !judges.is_empty() {
        for judge in &judges {
            all.extend(JUDGED.map(|measure| under(judge, measure)));
        }
        all.extend(words(&["length", "finished", "diversity"]));
        if !named("reference").is_empty() {
            all.extend(words(&["kl", "kl_error"]));
        }
    }
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    each(&named("models"), &all)
}

/// What the first model is found to be when it is held against itself.
fn constant(_: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut first = named("models");
    first.truncate(1);
    let judges = named("judge");
    let of = |judge: &String| -> Vec<String> {
        let measures = JUDGED[1..].iter();
        measures.map(|measure| under(judge, measure)).collect()
    };
    let own: Vec<Vec<String>> = judges.iter().map(of).collect();
    let own: Vec<&str> = own.iter().flatten().map(String::as_str).collect();
    each(&first, &own)
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "evaluate",
    version: 2,
    about: "Measures models on rows: loss, perplexity, token accuracy, and answers side by side.",
    manual: "\
Over the counted tokens of all rows: *loss* is the mean of −log p(token | what comes before) in nats, *perplexity* its exponential,
*token accuracy* the fraction of tokens that the model finds likeliest. With `samples`, the first so many rows are answered by
every model from their prompt (what comes before the last answer), and the answers stand side by side with the reference.

With a `judge` every model answers the prompts of all rows, and the judge scores the answers: *score* is its mean, *win_rate* how often a
model's answer scores higher than that of the first model (ties count half), *difference* the mean of the paired differences with its 95%
interval (*difference_low*, *difference_high*), *length* the tokens of an answer, *finished* how many came to their end, *diversity* the
different pairs of words over all pairs (distinct-2). With a `reference`, *kl* is the mean over answers of log π − log π_ref of the whole
answer, and *kl_error* its standard error, deviation / √n.

Several judges score the same answers, each for itself. Their numbers then bear their names: with `judge: { gold: words, proxy: judge }` the
model `policy` has `policy.gold_score`, `policy.proxy_score`, `policy.gold_win_rate`, `policy.gold_difference`,
`policy.gold_difference_low` and so on; with one judge it is `policy.score`.",
    example: "scores: { kind: evaluate, models: { base: base, tuned: tuned }, data: halves.test, samples: 3 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field("samples", count(0), Need::Default(Literal::Integer(0)), "How many rows are answered by every model."),
        MAX_NEW_TOKENS,
        TEMPERATURE,
        field("seed", FieldType::Seed, Need::Optional, "Where sampling starts; the recipe's seed unless given."),
        MAX_LENGTH,
        TRUNCATION,
        LOSS_ON,
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
            layouts: &["text", "prompt-completion", "messages"],
            doc: "The rows to measure on.",
        },
        Port {
            name: "judge",
            accepts: &[ArtifactType::RewardModel, ArtifactType::Judge],
            arity: Arity::Any,
            layouts: &[],
            doc: "Who scores the models' answers to the rows' prompts: a reward model or a rule, or several by name.",
        },
        Port {
            name: "reference",
            accepts: &[ArtifactType::Model],
            arity: Arity::Optional,
            layouts: &[],
            doc: "With a judge: the model from which the KL of the answers is measured.",
        },
    ],
    outputs: &[Output::new("metrics", ArtifactType::Metrics, "Numbers and answers.")
        .metrics(names)
        .constant(constant)],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize",
        inputs: &[("tokenizer", From::TokenizerOf("models")), ("data", From::Port("data"))],
        fields: &TOKENIZE_FIELDS,
        replaces: &[],
    }],
    layout: None,
    check: no_check,
    check_inputs: Some(|_, inputs| language(inputs, "models")),
    memory: None,
};

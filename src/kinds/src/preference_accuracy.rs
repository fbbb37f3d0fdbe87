//! `preference_accuracy`: how often policies and judges prefer the completion that was chosen.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, From, Inputs, Literal, Need, Output, Pool, Port, Preparation, Repeatable,
    no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{COMPLETION_FIELDS, MAX_LENGTH, MICRO_BATCH, POSITIVE, TRUNCATION, each, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreferenceAccuracy {
    /// The scale of implicit rewards.
    pub beta: f64,
    /// Tokens a row may have.
    pub max_length: usize,
    /// `keep_start`, `keep_end` or `drop`.
    pub truncation: String,
    /// Completions at once.
    pub micro_batch: usize,
}

/// What is measured of whoever gives rewards.
const REWARDS: [&str; 6] = [
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "margin",
    "loss",
    "calibration_error",
];

/// What is measured of a policy without its reference.
const LIKELIHOODS: [&str; 8] = [
    "likelihood_accuracy",
    "likelihood_accuracy_low",
    "likelihood_accuracy_high",
    "likelihood_margin",
    "normalized_accuracy",
    "normalized_accuracy_low",
    "normalized_accuracy_high",
    "normalized_margin",
];

/// The names in a port: who is alone there is named like the port.
fn owners(port: &str, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let name = |name: String| match name.is_empty() {
        true => port.to_owned(),
        false => name,
    };
    named(port).into_iter().map(name).collect()
}

fn names(_: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut of_policies = LIKELIHOODS.to_vec();
    if !named("reference").is_empty() {
        of_policies.extend(REWARDS);
    }
    let mut all = each(&owners("policy", named), &of_policies);
    all.extend(each(&owners("policy", named), &["pairs"]));
    all.extend(each(&owners("judge", named), &REWARDS));
    all.extend(each(&owners("judge", named), &["pairs"]));
    all
}

/// Nobody to measure, a reference for nobody, and two who share a name.
fn fits_inputs(_: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let (policies, judges) = ((inputs.names)("policy"), (inputs.names)("judge"));
    let mut problems = Vec::new();
    if policies.is_empty() && judges.is_empty() {
        let message = "there is nobody to measure: give `policy`, `judge` or both";
        problems.push(("kind", message.to_owned()));
    }
    if policies.is_empty() && !(inputs.names)("reference").is_empty() {
        let message = "a `reference` is what a `policy` is measured against, and there is none: give a `policy`, or leave `reference` out";
        problems.push(("reference", message.to_owned()));
    }
    if let Some(name) = judges.iter().find(|name| policies.contains(name)) {
        let message =
            format!("a policy and a judge are both called `{name}`: give one of them another name");
        problems.push(("judge", message));
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "preference_accuracy",
    version: 1,
    about: "Measures how often policies and judges prefer the completion that was chosen.",
    manual: "\
Each row is one pair, a ranking all of its pairs. For a score s the *accuracy* is the part of the pairs with s(chosen) > s(rejected), where
equal scores count half, with its 95% interval (Wilson 1927: *accuracy_low*, *accuracy_high*); *margin* is the mean of s(chosen) − s(rejected),
*loss* the mean of −log σ(s(chosen) − s(rejected)), and *calibration_error* the expected calibration error: how sure σ(|s(chosen) − s(rejected)|)
is of its order against how often the order is right, in ten bins.

| whose | s(y) | measured |
|---|---|---|
| a judge | r(x, y) of a reward model, on its own scale; the score of a rule | `accuracy`, `margin`, `loss`, `calibration_error` |
| a policy with a `reference` | the implicit reward β [log π(y \\| x) − log π_ref(y \\| x)] (DPO, arXiv 2305.18290); the accuracy is TRL's `rewards/accuracies`, and β does not change it | the same |
| a policy | log π(y \\| x), whole completions (the ranking accuracy of arXiv 2405.19534) | `likelihood_accuracy`, `likelihood_margin` |
| a policy | log π(y \\| x) / tokens of y: free of length, as SimPO trains (arXiv 2405.14734) | `normalized_accuracy`, `normalized_margin` |

A policy at its reference has only ties: accuracy 0.5, loss ln 2. Numbers bear names: with `policy: { dpo: tuned }` it is `dpo.accuracy`; who is
alone without a name is called `policy` or `judge`. A policy reads each pair as `dpo` does, with the end-of-text token; judges read the text.",
    example: "agreement: { kind: preference_accuracy, policy: { sft: sft, dpo: tuned }, reference: sft, judge: { learned: judge }, data: pairs.test }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "beta",
            POSITIVE,
            Need::Default(Literal::Number(0.1)),
            "The scale of implicit rewards, as the policy was trained with: it changes their margin, loss and calibration, not their order.",
        ),
        MAX_LENGTH,
        TRUNCATION,
        MICRO_BATCH,
    ],
    ports: &[
        Port {
            name: "policy",
            accepts: &[ArtifactType::Model],
            arity: Arity::Any,
            layouts: &[],
            doc: "The policies: one, a list, or a mapping from the names that the report uses.",
        },
        Port {
            name: "reference",
            accepts: &[ArtifactType::Model],
            arity: Arity::Optional,
            layouts: &[],
            doc: "Where the policies come from: their implicit rewards are measured against it.",
        },
        Port {
            name: "judge",
            accepts: &[ArtifactType::RewardModel, ArtifactType::Judge],
            arity: Arity::Any,
            layouts: &[],
            doc: "Reward models and rules: one, a list, or a mapping from names.",
        },
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["preference", "ranking"],
            doc: "The comparisons, best those that no training saw.",
        },
    ],
    outputs: &[
        Output::new("metrics", ArtifactType::Metrics, "Numbers of each policy and judge.").metrics(names),
    ],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize_completions",
        inputs: &[("tokenizer", From::TokenizerOf("policy")), ("data", From::Port("data"))],
        fields: &COMPLETION_FIELDS,
        replaces: &[],
    }],
    layout: None,
    check: no_check,
    check_inputs: Some(fits_inputs),
    memory: None,
};

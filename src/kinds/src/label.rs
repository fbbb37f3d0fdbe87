//! `label`: people compare sampled completions.

use std::collections::BTreeSet;

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, Inputs, Literal, Need, Output, Pool, Port,
    Repeatable, Rows,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{count, each, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// `pairs` or `rankings`.
    pub ask: String,
    /// What people are asked.
    pub question: String,
    /// Who answers.
    pub annotators: Annotators,
    /// Prompts to ask about.
    pub limit: Option<usize>,
    /// Where the streams `sides`, `sides NAME` and `items NAME` start.
    pub seed: u64,
}

/// Who answers.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Annotators {
    /// One person.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Annotators {
    /// The names, in the recipe's order.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::One(name) => vec![name.clone()],
            Self::Many(names) => names.clone(),
        }
    }
}

/// The longest name of an annotator: it is the name of a file.
const LONGEST_NAME: usize = 64;

fn names_of(params: &Map<String, Value>) -> Vec<String> {
    let annotators = params.get("annotators").cloned().unwrap_or_default();
    let read = serde_json::from_value::<Annotators>(annotators);
    read.map(|annotators| annotators.names())
        .unwrap_or_default()
}

fn check(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut seen = BTreeSet::new();
    for name in names_of(params) {
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(plain) {
            let message = format!(
                "`{name}` is no name of an annotator: it is a word of letters, digits, `_` and `-`, at most {LONGEST_NAME} of them"
            );
            return vec![("annotators", message)];
        }
        // Not every file system tells `Anna` from `anna`.
        if !seen.insert(name.to_ascii_lowercase()) {
            return vec![(
                "annotators",
                format!("the annotator `{name}` is named twice"),
            )];
        }
    }
    Vec::new()
}

/// Numbers that are there whatever is asked.
const NUMBERS: [&str; 4] = ["comparisons", "answered", "skipped", "ties"];

/// Words of the metrics, which no set of samples may have for a name.
pub const TAKEN: [&str; 8] = [
    "comparisons",
    "answered",
    "skipped",
    "ties",
    "agreement",
    "kappa",
    "pairs",
    "annotators",
];

fn metrics(params: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut all: Vec<String> = NUMBERS.map(str::to_owned).into();
    let annotators = names_of(params);
    if annotators.len() > 1 {
        all.extend(["agreement", "kappa", "pairs"].map(str::to_owned));
    }
    let own: Vec<String> = annotators
        .iter()
        .map(|name| format!("annotators.{name}"))
        .collect();
    all.extend(each(&own, &["answered", "skipped", "ties"]));
    let sets = named("samples");
    if sets.len() > 1 {
        all.extend(each(&sets, &["win_rate"]));
    }
    all
}

/// How the first of several sets of samples does against itself.
fn constant(_: &Map<String, Value>, named: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut sets = named("samples");
    if sets.len() < 2 {
        return Vec::new();
    }
    sets.truncate(1);
    each(&sets, &["win_rate"])
}

/// Sets of samples whose own numbers would take the place of those of all.
fn fits_inputs(_: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let names = (inputs.names)("samples").into_iter();
    names
        .filter(|name| TAKEN.contains(&name.as_str()))
        .map(|name| {
            let message = format!(
                "a set of samples is called `{name}`, as one of the stage's numbers is: give it another name, `samples: {{ NAME: … }}`"
            );
            ("samples", message)
        })
        .collect()
}

/// More annotators and more prompts ask for more of the same: the answers so far count on.
const fn more(name: &'static str, ty: FieldType, need: Need, doc: &'static str) -> Field {
    Field {
        extendable: true,
        ..field(name, ty, need, doc)
    }
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "label",
    version: 1,
    about: "Asks people which of several sampled completions are better.",
    manual: "\
The run waits (exit code 3) until all annotators have answered all comparisons: `levain label RECIPE STAGE` asks them, at a terminal or
through files. Rows that follow each other and have the same prompt are one group, as `generate` with `n` writes them; of several sets of
samples, group i of one joins group i of the others. Completions that are the same word for word count once. A row of `preference` or
`ranking` is a group by itself. Nobody sees which model wrote a completion: the order of the comparisons, and of the completions in each, is
drawn for every annotator from streams of the seed.

`rows` holds every completion that was compared with its *score*: the share of its comparisons that it won, ties counting half, over all
annotators. In an order of n completions that is the mean of its normalized ranks (best 1, worst 0). `annotate` makes preferences, rankings
or labels of them without a judge, and its `min_margin` leaves out what people disagree about. Skipped comparisons do not count. Beside the
rows, `answers.jsonl` has every answer.

`metrics` counts *comparisons*, and over all annotators and for each (`annotators.NAME.…`) what was *answered*, *skipped*, and how many
pairs of completions were *ties*. With several annotators, over the *pairs* about which every one of them said something: *agreement*, the
share of pairs of annotators that said the same, and *kappa*, (agreement − p) / (1 − p) with p the agreement that chance would give: Cohen's for
two annotators, p = Σ_k n_1k n_2k / n²; Fleiss' for more, p = Σ_k (n_k / (n · annotators))². The categories k are *the first is better*, *the
second*, *equal*, where a draw says which of two is the first. Kappa is not a number where nothing but one category was ever given. With several
sets of samples, *NAME.win_rate* is how often a completion of that set is better than one of the first set, ties and equal texts counting half: a
blind comparison of models, best with one completion of each.

Answers are kept in the cache under what is asked, not under the stage's name: with more annotators or a higher `limit` those that were
given count on. `run --force` reads them again.

Source: Cohen 1960; Fleiss 1971.",
    example: "asked: { kind: label, samples: tries, question: \"Which answer is kinder?\", annotators: [anna, ben] }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Recorded,
    fields: &[
        field(
            "ask",
            FieldType::Choice(&[
                Choice { word: "pairs", doc: "every two completions of a prompt are compared" },
                Choice { word: "rankings", doc: "all completions of a prompt are put into an order" },
            ]),
            Need::Default(Literal::Text("pairs")),
            "What is made of the completions of one prompt.",
        ),
        field(
            "question",
            FieldType::Text,
            Need::Default(Literal::Text("Which answer is better?")),
            "What people are asked.",
        ),
        more(
            "annotators",
            FieldType::Either(&[FieldType::Text, FieldType::List { of: &FieldType::Text, min: 1 }]),
            Need::Default(Literal::Text("you")),
            "The names of those who answer: words of letters, digits, `_` and `-`. Each answers everything.",
        ),
        more("limit", count(1), Need::Optional, "Ask about the first so many prompts only."),
        field("seed", FieldType::Seed, Need::Optional, "Where the draw of orders starts; the recipe's seed unless given."),
    ],
    ports: &[Port {
        name: "samples",
        accepts: &[ArtifactType::Dataset],
        arity: Arity::OneOrMany,
        layouts: &["prompt-completion", "messages", "scored", "preference", "ranking", "unpaired"],
        doc: "Prompts with completions, or several such sets by name, with the same prompts.",
    }],
    outputs: &[
        Output::new("rows", ArtifactType::Dataset, "Completions with scores, and every answer."),
        Output::new("metrics", ArtifactType::Metrics, "Counts, agreement, win rates.").metrics(metrics).constant(constant),
    ],
    preparations: &[],
    layout: Some(|_, _| Some(Rows::of("scored"))),
    check,
    check_inputs: Some(fits_inputs),
    memory: None,
};

//! `rule`: a judge without a model.

use engine::artifact::ArtifactType;
use engine::contract::{Contract, FieldType, Need, Output, Pool, Repeatable};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::{count, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Words with values.
    pub lexicon: Option<Value>,
    /// A regular expression.
    pub pattern: Option<String>,
    /// Words wanted.
    pub length: Option<usize>,
}

fn one_of_three(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let names = ["lexicon", "pattern", "length"];
    let given = names
        .into_iter()
        .filter(|name| params.get(*name).is_some_and(|value| !value.is_null()));
    match given.count() {
        1 => Vec::new(),
        n => vec![(
            "lexicon",
            format!("a rule has one of `lexicon`, `pattern` and `length`, and {n} are given"),
        )],
    }
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "rule",
    version: 1,
    about: "A judge without a model: scores completions by their words, a pattern or their length.",
    manual: "\
| field | score of a completion |
|---|---|
| `lexicon` | s / √(s² + 15), s the sum of the values of its words (VADER's normalization, Hutto and Gilbert 2014) |
| `pattern` | 1 where the regular expression is found in it, else 0 |
| `length` | −abs(words − length) / length |

A lexicon is a text file: a word, a tab, its value; what follows another tab is ignored.",
    example: "gold: { kind: rule, lexicon: data/lexicon.txt }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field("lexicon", FieldType::Source, Need::Optional, "A file of words with their values; a source like that of `load_dataset`."),
        field("pattern", FieldType::Text, Need::Optional, "A regular expression."),
        field("length", count(1), Need::Optional, "How many words a completion should have."),
    ],
    ports: &[],
    outputs: &[Output::new("judge", ArtifactType::Judge, "The judge.")],
    preparations: &[],
    layout: None,
    check: one_of_three,
    check_inputs: None,
    memory: None,
};

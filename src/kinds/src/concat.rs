//! `concat`: datasets of one layout → one dataset.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, FieldType, Inputs, Literal, Need, Output, Pool, Port, Repeatable, no_check,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::words::field;

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concat {
    /// Whether rows that were there already are left out.
    pub distinct: bool,
}

/// Datasets that can't be joined.
fn fits_inputs(_: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let all = (inputs.rows)("data");
    let Some(((first, rows), others)) = all.split_first() else {
        return Vec::new();
    };
    let other = others.iter().find(|(_, own)| own.layout != rows.layout);
    let told = other.map(|(stage, own)| {
        let message = format!(
            "datasets of one layout are joined, and the rows of `{first}` are {}, those of `{stage}` {}",
            rows.layout, own.layout
        );
        ("data", message)
    });
    told.into_iter().collect()
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "concat",
    version: 1,
    about: "Joins datasets of one layout, one after the other.",
    manual: "\
The rows of the first dataset come first, then those of the second, and so on, each in its own order; how many came from which is said.
Datasets of different layouts are an error, and no row at all is one too. Pairs of which only some have a margin are of one layout: the
others have none afterwards either. With `distinct` a row comes once: where an earlier row, of whichever dataset, has the same value in
every column, it is left out, and how many are is said. In a `repeat`, what is carried grows by it:
`carry: { pairs: { first: start, then: all } }`.",
    example: "all: { kind: concat, data: [pairs, new] }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[field(
        "distinct",
        FieldType::Bool,
        Need::Default(Literal::Bool(false)),
        "Whether rows that were there already, word for word, are left out.",
    )],
    ports: &[Port {
        name: "data",
        accepts: &[ArtifactType::Dataset],
        arity: Arity::OneOrMany,
        layouts: &[],
        doc: "The datasets, all of one layout, in the order of their rows.",
    }],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "The rows of all, laid out as they were.")],
    preparations: &[],
    layout: Some(|_, of| of("data")),
    check: no_check,
    check_inputs: Some(fits_inputs),
    memory: None,
};

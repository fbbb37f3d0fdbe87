//! `split`: rows → training rows and held-out rows.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable, no_check,
};
use serde::Deserialize;

use crate::words::field;

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Below 1 a fraction, else a number of rows.
    pub test: f64,
    /// Where the stream `split` starts.
    pub seed: u64,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "split",
    version: 1,
    about: "Sets rows aside for testing, drawn by a seed.",
    manual: "\
A permutation is drawn from the stream `split` of the seed; its first rows are the test rows. Both sides keep the order of the
dataset. It depends on the seed, the number of rows and `test` alone: the same rows are held out whatever comes after. A side
without rows is an error; rows that stand on both sides word for word are counted and said.",
    example: "halves: { kind: split, data: rows, test: 0.1 }   # halves.train, halves.test",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "test",
            FieldType::Either(&[
                FieldType::Integer { min: 1, max: i64::MAX },
                FieldType::Number { min: 0.0, max: 0.999_999, above: true },
            ]),
            Need::Default(Literal::Number(0.1)),
            "How much is held out: a fraction below 1 (rounded to the nearest row; neither part may be empty), or a number of rows.",
        ),
        field("seed", FieldType::Seed, Need::Optional, "Where the draw starts; the recipe's seed unless given."),
    ],
    ports: &[Port { name: "data", accepts: &[ArtifactType::Dataset], arity: Arity::One, layouts: &[], doc: "The rows." }],
    outputs: &[
        Output::new("train", ArtifactType::Dataset, "The rows to train on."),
        Output::new("test", ArtifactType::Dataset, "The rows held out."),
    ],
    preparations: &[],
    layout: Some(|_, of| of("data")),
    check: no_check,
    check_inputs: None,
    memory: None,
};

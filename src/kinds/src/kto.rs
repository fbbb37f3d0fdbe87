//! `kto`: Kahneman-Tversky optimization, from completions that are desirable or not.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, From, Literal, Need, Pool, Port, Preparation,
    Repeatable,
};
use serde::Deserialize;

use crate::known::trains;
use crate::lists::fields;
use crate::memory;
use crate::rollout::REFERENCE;
use crate::training::{COMPLETIONS, POLICY, RUNNING, TRAINED, Training, fits, learning};
use crate::words::{MAX_LENGTH, POSITIVE, TRUNCATION, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Kto {
    /// What every training has.
    #[serde(flatten)]
    pub training: Training,
    /// See `tokenize_completions`.
    pub max_length: usize,
    /// See `tokenize_completions`.
    pub truncation: String,
    /// `kto` or `apo_zero`.
    pub loss: String,
    /// β.
    pub beta: f64,
    /// λ_D.
    pub desirable_weight: f64,
    /// λ_U.
    pub undesirable_weight: f64,
}

/// With a baseline or without.
pub(crate) const LOSS: Field = field(
    "loss",
    FieldType::Choice(&[
        Choice {
            word: "kto",
            doc: "1 − σ(β(x − z)) of desirable rows, 1 − σ(β(z − x)) of the others",
        },
        Choice {
            word: "apo_zero",
            doc: "the same with z = 0; APO-zero on unpaired rows (arXiv 2408.06266)",
        },
    ]),
    Need::Default(Literal::Text("kto")),
    "The loss of a row.",
);

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "kto",
    version: 2,
    about: "Trains a model on completions that are desirable or not, without pairs (KTO).",
    manual: "\
For a row with log-ratio x = log π(y|x) − log π_ref(y|x), summed over the completion's tokens, the loss is λ_D (1 − σ(β(x − z))) where it is
desirable and λ_U (1 − σ(β(z − x))) where it is not. The baseline z estimates KL(π‖π_ref): the mean over the rows of an update of the
log-ratio of *mismatched* rows, a prompt with the completion of another row, not below 0 and without gradient; it looks at the whole
`batch`, whatever the `micro_batch`.

Rows of one kind only, all desirable or all undesirable, are allowed, and said. Where the kinds are not equally many, Ethayarajh et al.
advise weights by which λ_D n_D / (λ_U n_U) is between 1 and 4/3; the stage says what it is. Rows come from `load_dataset` with
`format: unpaired` or from `annotate` with `make: unpaired`; at least two with `loss: kto`, since one has no other completion to be mismatched
with.

The mismatched rows and the reference's log-probabilities are computed once, before the training. TRL mismatches within a batch of
fixed order; here it is over all rows, so that batches can be drawn anew in each epoch, and no prompt meets its own completions where
several follow each other. Logged: β times the mean x of the desirable and of the other rows, and z. Source: arXiv 2402.01306, equations
7 and 8; defaults are TRL's.",
    example: "tuned: { kind: kto, model: sft, data: labels, beta: 0.1 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &learning(1e-6),
        &[
            MAX_LENGTH,
            TRUNCATION,
            LOSS,
            field("beta", POSITIVE, Need::Default(Literal::Number(0.1)), "β: how strongly the reference holds."),
            field("desirable_weight", POSITIVE, Need::Default(Literal::Number(1.0)), "λ_D: the weight of desirable rows."),
            field("undesirable_weight", POSITIVE, Need::Default(Literal::Number(1.0)), "λ_U: the weight of undesirable rows."),
        ],
        &RUNNING,
    ],
    ports: &[
        POLICY,
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["unpaired"],
            doc: "Completions that are desirable or not.",
        },
        REFERENCE,
    ],
    outputs: &TRAINED,
    preparations: &[
        COMPLETIONS,
        Preparation {
            name: "mismatched",
            kind: "mismatch",
            inputs: &[("tokens", From::Preparation("tokens"))],
            fields: &["loss", "max_length"],
            replaces: &[],
        },
        Preparation {
            name: "reference",
            kind: "reference",
            inputs: &[("model", From::PortOr("reference", "model")), ("tokens", From::Preparation("mismatched"))],
            fields: &["micro_batch"],
            replaces: &["reference"],
        },
    ],
    layout: None,
    check: fits,
    check_inputs: Some(trains),
    memory: Some(memory::of_rows),
};

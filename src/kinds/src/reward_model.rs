//! `reward_model`: a model with a scalar head, trained on comparisons or scores.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, From, Inputs, Literal, Need, Output, Pool, Port,
    Preparation, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::trains;
use crate::lists::fields;
use crate::memory;
use crate::training::{COMPLETIONS, RUNNING, Training, fits_with_head, learning};
use crate::words::{COMPLETION_FIELDS, MAX_LENGTH, NOT_NEGATIVE, TRUNCATION, field, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct RewardModel {
    /// What every training has.
    #[serde(flatten)]
    pub training: Training,
    /// See `tokenize_completions`.
    pub max_length: usize,
    /// See `tokenize_completions`.
    pub truncation: String,
    /// `all_pairs` or `plackett_luce`.
    pub ranking: String,
    /// Whether margins count.
    pub margins: bool,
    /// The weight of the centring term.
    pub centering: f64,
}

/// The layouts that rewards are learned from.
pub(crate) const COMPARED: &[&str] = &["preference", "ranking", "scored"];

/// Margins that are not there.
fn fits_inputs(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let mut problems = trains(params, inputs);
    if params.get("margins") != Some(&Value::Bool(true)) {
        return problems;
    }
    let rows = (inputs.rows)("data").into_iter();
    let bare = rows.filter(|(_, rows)| rows.empty.contains(&"margin"));
    problems.extend(bare.map(|(stage, _)| {
        let message = format!(
            "the rows of `{stage}` have no margins: have a judge give them with `annotate`, or leave `margins` out"
        );
        ("margins", message)
    }));
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "reward_model",
    version: 4,
    about: "Trains a scalar head on a causal model to tell better completions from worse ones.",
    manual: "\
The head is a linear map of the last token's state, r(x, y) = w·h; it starts normal with deviation 1/√(width + 1) (Stiennon et al.,
arXiv 2009.01325). With an adapter, the adapter and the head are trained; without one,
everything is, or the head and what `train` says. What is minimised follows
from the rows:

| rows | loss of a row |
|---|---|
| `preference` | −log σ(r_chosen − r_rejected − margin) (Bradley and Terry; the margin only with `margins`, Llama 2), and with `centering` c · (r_chosen + r_rejected)² (arXiv 2312.09244) |
| `ranking`, `all_pairs` | the mean of −log σ(r_i − r_j) over all pairs i < j: all pairs of a prompt in one batch (InstructGPT, arXiv 2203.02155) |
| `ranking`, `plackett_luce` | −Σ_i [r_i − log Σ_{j ≥ i} exp r_j] |
| `scored` | (r − score)² |

After training the mean and the deviation of r over the training completions are kept: judges give (r − mean) / deviation, so that
a KL coefficient means the same for every reward model. In the configuration of a whole model they stand as `reward_mean` and
`reward_deviation`, where `load_reward_model` finds them. With `test`, accuracy, margin and calibration on held-out rows are measured:
the expected calibration error compares how sure σ(|r_chosen − r_rejected|) is with how often that order is right, in ten bins; ties count
half.

The files are those of transformers' `AutoModelForSequenceClassification` with one label (`score.weight`); with an adapter PEFT's with
`modules_to_save: [score]`. transformers scores the last token that is not padding: where a model's end token is its padding as well, the
configuration names no padding, and transformers takes one row at a time. Completions always end with the end-of-text token, and are scored from their text: the policy may have
another tokenizer.",
    example: "judge: { kind: reward_model, model: tuned, data: pairs.train, test: pairs.test, learning_rate: 1.0e-4 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &learning(1e-4),
        &[
            MAX_LENGTH,
            TRUNCATION,
            field(
                "ranking",
                FieldType::Choice(&[
                    Choice { word: "all_pairs", doc: "the mean over all pairs of a ranking" },
                    Choice { word: "plackett_luce", doc: "the probability of the whole ranking" },
                ]),
                Need::Default(Literal::Text("all_pairs")),
                "What is minimised on rankings.",
            ),
            field("margins", FieldType::Bool, Need::Default(Literal::Bool(false)), "Subtract the margins of preference rows, which must have them."),
            field("centering", NOT_NEGATIVE, Need::Default(Literal::Number(0.0)), "c: keeps rewards of pairs around 0; 0.01 is usual, 0 is off."),
        ],
        &RUNNING,
    ],
    ports: &[
        Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model that gets the head." },
        Port { name: "data", accepts: &[ArtifactType::Dataset], arity: Arity::One, layouts: COMPARED, doc: "Comparisons or scores." },
        Port {
            name: "test",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::Optional,
            layouts: COMPARED,
            doc: "Held-out rows to measure on.",
        },
    ],
    outputs: &[
        Output::new("model", ArtifactType::RewardModel, "The reward model.").keeps_tokenizer_of("model").foreseen(memory::same),
        Output::new("metrics", ArtifactType::Metrics, "Loss and accuracy of each step, and what was measured on `test`.")
            .metrics(|_, _| words(&["first_loss", "last_loss", "steps", "tokens", "test.accuracy", "test.margin", "test.calibration_error", "test.loss", "test.pairs"])),
    ],
    preparations: &[
        COMPLETIONS,
        Preparation {
            name: "test_tokens",
            kind: "tokenize_completions",
            inputs: &[("tokenizer", From::TokenizerOf("model")), ("data", From::Port("test"))],
            fields: &COMPLETION_FIELDS,
            replaces: &["test"],
        },
    ],
    layout: None,
    check: fits_with_head,
    check_inputs: Some(fits_inputs),
    memory: Some(memory::of_scores),
};

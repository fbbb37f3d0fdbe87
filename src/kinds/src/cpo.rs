//! `cpo`: contrastive preference optimization, and SimPO, without a reference model.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Choice, Contract, FieldType, Literal, Need, Pool, Port, Repeatable};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::trains;
use crate::lists::fields;
use crate::memory;
use crate::training::{self, COMPLETIONS, POLICY, RUNNING, TRAINED, Training, learning};
use crate::words::{MAX_LENGTH, NOT_NEGATIVE, NUMBER, POSITIVE, TRUNCATION, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Cpo {
    /// What every training has.
    #[serde(flatten)]
    pub training: Training,
    /// See `tokenize_completions`.
    pub max_length: usize,
    /// See `tokenize_completions`.
    pub truncation: String,
    /// `sigmoid`, `hinge`, `ipo` or `simpo`.
    pub loss: String,
    /// β.
    pub beta: f64,
    /// ε.
    pub label_smoothing: f64,
    /// γ of SimPO.
    pub gamma: f64,
    /// α of AlphaPO.
    pub alpha: f64,
    /// The weight of the cross entropy.
    pub nll: Option<f64>,
}

/// γ of SimPO, unless given.
const GAMMA: f64 = 0.5;

fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let number = |name: &str| params.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    let loss = params
        .get("loss")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let mut problems = training::fits(params);
    let smooth = matches!(loss, "sigmoid" | "simpo");
    if number("label_smoothing") > 0.0 && !smooth {
        problems.push((
            "label_smoothing",
            format!("label smoothing does not change `{loss}`; leave it out"),
        ));
    }
    if number("alpha") != 0.0 && !smooth {
        problems.push((
            "alpha",
            format!("AlphaPO's shaping does not change `{loss}`; leave `alpha` out"),
        ));
    }
    let gamma = params.get("gamma").and_then(Value::as_f64);
    if gamma.is_some_and(|gamma| gamma != GAMMA) && loss != "simpo" {
        problems.push((
            "gamma",
            format!(
                "`gamma` is the margin of `simpo`; with `loss: {loss}` it does nothing: leave it out"
            ),
        ));
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "cpo",
    version: 3,
    about: "Trains a model on preferences without a reference model: CPO, SimPO and AlphaPO.",
    manual: "\
With p the sum of log π over a completion's tokens and |y| their number:

| loss | of a pair |
|---|---|
| `sigmoid` | −(1−ε) log σ(β(p_c − p_r)) − ε log σ(−β(p_c − p_r)) (CPO, arXiv 2401.08417) |
| `hinge` | max(0, 1 − β(p_c − p_r)) |
| `ipo` | (p_c/abs(c) − p_r/abs(r) − 1/(2β))² |
| `simpo` | sigmoid on averages with the target margin γ: β(p_c/abs(c) − p_r/abs(r)) − γ (SimPO, arXiv 2405.14734) |

`nll` times the cross entropy of the chosen completions is added: 1 by default, and 0 for `simpo`, as its paper has it (TRL's default is
1 there). With `alpha` the log-probability x becomes (1 − exp(−αx)) / α (AlphaPO, arXiv 2501.03884).",
    example: "tuned: { kind: cpo, model: sft, data: pairs, loss: simpo, beta: 2.0, gamma: 1.0 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &learning(1e-6),
        &[
            MAX_LENGTH,
            TRUNCATION,
            field(
                "loss",
                FieldType::Choice(&[
                    Choice { word: "sigmoid", doc: "CPO" },
                    Choice { word: "hinge", doc: "CPO with a hinge" },
                    Choice { word: "ipo", doc: "IPO on averages without a reference" },
                    Choice { word: "simpo", doc: "SimPO" },
                ]),
                Need::Default(Literal::Text("sigmoid")),
                "The loss of a pair.",
            ),
            field("beta", POSITIVE, Need::Default(Literal::Number(0.1)), "β; SimPO's paper uses 2 to 2.5."),
            field(
                "label_smoothing",
                FieldType::Number { min: 0.0, max: 0.5, above: false },
                Need::Default(Literal::Number(0.0)),
                "ε: the probability that a label is wrong.",
            ),
            field("gamma", NOT_NEGATIVE, Need::Default(Literal::Number(GAMMA)), "γ: the margin that `simpo` asks for."),
            field("alpha", NUMBER, Need::Default(Literal::Number(0.0)), "α of AlphaPO; 0 is off."),
            field("nll", NOT_NEGATIVE, Need::Optional, "The weight of the chosen completions' cross entropy; 1 unless given, 0 for `simpo`."),
        ],
        &RUNNING,
    ],
    ports: &[
        POLICY,
        Port { name: "data", accepts: &[ArtifactType::Dataset], arity: Arity::One, layouts: &["preference"], doc: "Pairs." },
    ],
    outputs: &TRAINED,
    preparations: &[
        COMPLETIONS,
    ],
    layout: None,
    check: fits,
    check_inputs: Some(trains),
    memory: Some(memory::of_groups),
};

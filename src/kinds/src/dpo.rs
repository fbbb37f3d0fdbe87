//! `dpo`: direct preference optimization and its family.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, From, Inputs, Literal, Need, Pool, Port,
    Preparation, Repeatable,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::trains;
use crate::lists::fields;
use crate::memory;
use crate::rollout::REFERENCE;
use crate::training::{self, COMPLETIONS, POLICY, RUNNING, TRAINED, Training, learning};
use crate::words::{MAX_LENGTH, POSITIVE, TRUNCATION, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Dpo {
    /// What every training has.
    #[serde(flatten)]
    pub training: Training,
    /// See `tokenize_completions`.
    pub max_length: usize,
    /// See `tokenize_completions`.
    pub truncation: String,
    /// One loss, or several with weights.
    pub loss: Losses,
    /// β.
    pub beta: f64,
    /// ε.
    pub label_smoothing: f64,
    /// `reverse_kl`, `forward_kl`, `js` or `alpha`.
    pub divergence: String,
    /// a of the alpha divergence.
    pub divergence_alpha: f64,
    /// τ.
    pub discopop_tau: f64,
    /// `averages` or `sums`.
    pub ipo_on: String,
    /// LD-DPO.
    pub ld_alpha: Option<f64>,
    /// WPO.
    pub weighted: bool,
    /// σ(margin) as label.
    pub soft_labels: bool,
}

/// One loss, or several with weights.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Losses {
    /// One.
    One(String),
    /// Several with weights.
    Weighted(serde_json::Map<String, serde_json::Value>),
}

/// The losses of a pair; a test holds this list and the rules of `fits` against those of `ml`.
pub const LOSSES: &[Choice] = &[
    Choice {
        word: "sigmoid",
        doc: "−(1−ε) log σ(βΔ) − ε log σ(−βΔ); DPO, with ε conservative DPO",
    },
    Choice {
        word: "hinge",
        doc: "max(0, 1 − βΔ); SLiC, RSO",
    },
    Choice {
        word: "ipo",
        doc: "(Δ of averages − 1/(2β))²; IPO",
    },
    Choice {
        word: "exo_pair",
        doc: "σ(βΔ) (log σ(βΔ) − log(1−ε)) + σ(−βΔ) (log σ(−βΔ) − log ε); EXO, needs ε > 0",
    },
    Choice {
        word: "nca_pair",
        doc: "−log σ(βc) − ½ log σ(−βc) − ½ log σ(−βr); NCA",
    },
    Choice {
        word: "robust",
        doc: "(−(1−ε) log σ(βΔ) + ε log σ(−βΔ)) / (1−2ε); needs ε < ½",
    },
    Choice {
        word: "bco_pair",
        doc: "−log σ(βc) − log σ(−βr); BCO",
    },
    Choice {
        word: "sppo_hard",
        doc: "(c − 1/(2β))² + (r + 1/(2β))²; SPPO",
    },
    Choice {
        word: "aot",
        doc: "sigmoid of the sorted differences of the batch; AOT",
    },
    Choice {
        word: "aot_unpaired",
        doc: "sigmoid of the sorted log-ratios of either side",
    },
    Choice {
        word: "apo_zero",
        doc: "1 − σ(βc) + σ(βr); APO-zero",
    },
    Choice {
        word: "apo_down",
        doc: "σ(βc) + 1 − σ(β(c − r)); APO-down",
    },
    Choice {
        word: "discopop",
        doc: "(1−m)(−log σ(βΔ)) + m exp(−βΔ), m = σ(βΔ/τ); DiscoPOP",
    },
    Choice {
        word: "sft",
        doc: "the mean of −log π over the chosen completions' tokens",
    },
    Choice {
        word: "sigmoid_norm",
        doc: "sigmoid on averages over tokens; length-normalized DPO",
    },
];

const LOSS: FieldType = FieldType::Either(&[
    FieldType::Choice(LOSSES),
    FieldType::Map {
        of: &POSITIVE,
        ordered: false,
    },
]);

/// a of the divergence `alpha`, unless given.
const DIVERGENCE_ALPHA: f64 = 0.5;

/// τ of `discopop`, unless given.
const DISCOPOP_TAU: f64 = 0.05;

/// What neither a loss of these nor the divergence reads.
fn unread(params: &Map<String, Value>, names: &[&str]) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let word = |name: &str| params.get(name).and_then(Value::as_str);
    let differs = |name: &str, usual: f64| {
        let given = params.get(name).and_then(Value::as_f64);
        given.is_some_and(|given| given != usual)
    };
    let divergence = word("divergence").unwrap_or_default();
    if differs("divergence_alpha", DIVERGENCE_ALPHA) && divergence != "alpha" {
        problems.push((
            "divergence_alpha",
            format!(
                "`divergence_alpha` is the a of `divergence: alpha`; with `divergence: {divergence}` it does nothing: leave it out"
            ),
        ));
    }
    let losses: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let losses = losses.join(", ");
    if differs("discopop_tau", DISCOPOP_TAU) && !names.contains(&"discopop") {
        problems.push((
            "discopop_tau",
            format!(
                "`discopop_tau` is the τ of `discopop`; with the loss {losses} it does nothing: leave it out"
            ),
        ));
    }
    if word("ipo_on") == Some("sums") && !names.contains(&"ipo") {
        problems.push((
            "ipo_on",
            format!(
                "`ipo_on` says what `ipo` compares; with the loss {losses} it does nothing: leave it out"
            ),
        ));
    }
    problems
}

/// What would be ignored, or has no meaning.
pub fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let mut problems = training::fits(params);
    let names: Vec<&str> = match params.get("loss") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Object(map)) => map.keys().map(String::as_str).collect(),
        _ => return problems,
    };
    if names.is_empty() {
        problems.push(("loss", "`loss` names no loss".to_owned()));
    }
    for name in &names {
        if !LOSSES.iter().any(|choice| choice.word == *name) {
            let known: Vec<&str> = LOSSES.iter().map(|choice| choice.word).collect();
            problems.push((
                "loss",
                format!("`{name}` is not a loss of pairs: {}", known.join(", ")),
            ));
        }
    }
    let number = |name: &str| params.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    let smoothing = number("label_smoothing");
    let smoothed = [
        "sigmoid",
        "sigmoid_norm",
        "exo_pair",
        "robust",
        "aot",
        "aot_unpaired",
    ];
    if smoothing > 0.0 && !names.iter().any(|name| smoothed.contains(name)) {
        problems.push((
            "label_smoothing",
            format!(
                "label smoothing changes only {}; leave it out",
                smoothed.join(", ")
            ),
        ));
    }
    if names.contains(&"exo_pair") && !(smoothing > 0.0 && smoothing < 1.0) {
        let message =
            "`exo_pair` needs a `label_smoothing` above 0: at 0 it is infinite; 0.001 is usual";
        problems.push(("label_smoothing", message.to_owned()));
    }
    if names.contains(&"robust") && smoothing >= 0.5 {
        let message = "`robust` needs a `label_smoothing` below 0.5: at 0.5 labels say nothing";
        problems.push(("label_smoothing", message.to_owned()));
    }
    let diverging = [
        "sigmoid",
        "sigmoid_norm",
        "hinge",
        "ipo",
        "exo_pair",
        "robust",
        "discopop",
        "sft",
    ];
    let divergence = params.get("divergence").and_then(Value::as_str);
    if divergence.is_some_and(|word| word != "reverse_kl")
        && let Some(name) = names.iter().find(|name| !diverging.contains(name))
    {
        problems.push((
            "divergence",
            format!(
                "`{name}` is made for the reverse KL; another divergence works with {}",
                diverging.join(", ")
            ),
        ));
    }
    let soft = params.get("soft_labels") == Some(&Value::Bool(true));
    if soft
        && !names
            .iter()
            .all(|name| matches!(*name, "sigmoid" | "sigmoid_norm"))
    {
        let message = "soft labels work with `sigmoid` and `sigmoid_norm` only";
        problems.push(("soft_labels", message.to_owned()));
    }
    if soft && smoothing > 0.0 {
        let message = "with `soft_labels` a label is σ(margin): leave `label_smoothing` out";
        problems.push(("label_smoothing", message.to_owned()));
    }
    let sorts = names.iter().any(|name| name.starts_with("aot"));
    if sorts && number("micro_batch") < number("batch") {
        let message = "`aot` sorts the whole batch: `micro_batch` must be at least `batch`";
        problems.push(("micro_batch", message.to_owned()));
    }
    if !names.is_empty() {
        problems.extend(unread(params, &names));
    }
    problems
}

/// What rankings do not read, labels of margins that are not there, and a model that can't be trained.
fn fits_inputs(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let mut problems = trains(params, inputs);
    let word = |name: &str| params.get(name).and_then(Value::as_str);
    let on = |name: &str| params.get(name) == Some(&Value::Bool(true));
    let number = |name: &str| params.get(name).and_then(Value::as_f64);
    let given = [
        ("loss", word("loss") != Some("sigmoid")),
        ("label_smoothing", number("label_smoothing") != Some(0.0)),
        ("divergence", word("divergence") != Some("reverse_kl")),
        ("ld_alpha", number("ld_alpha").is_some()),
        ("weighted", on("weighted")),
        ("soft_labels", on("soft_labels")),
    ];
    for (stage, rows) in (inputs.rows)("data") {
        if rows.layout == "ranking" {
            let idle = given.iter().filter(|(_, given)| *given);
            problems.extend(idle.map(|(name, _)| {
                let message = format!(
                    "`{name}` is about pairs, and the rows of `{stage}` are rankings, which take the list-wise loss: leave it out, or make \
                     pairs of them with `annotate`"
                );
                (*name, message)
            }));
        } else if on("soft_labels") && rows.empty.contains(&"margin") {
            problems.push((
                "soft_labels",
                format!(
                    "the rows of `{stage}` have no margins, of which `soft_labels` makes its labels: have a judge give them with `annotate`, or \
                     leave it out"
                ),
            ));
        }
    }
    problems
}

const fn number(name: &'static str, default: f64, doc: &'static str) -> Field {
    field(name, POSITIVE, Need::Default(Literal::Number(default)), doc)
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "dpo",
    version: 3,
    about: "Trains a model on preferences directly, without a reward model: DPO and its family.",
    manual: "\
For a pair with log-ratios c = log π(y_c|x) − log π_ref(y_c|x) and r of the rejected completion (sums over tokens), f the divergence's
map and Δ = f(c) − f(r), the loss is one of the words below, or a weighted sum of several (`loss: { sigmoid: 0.8, bco_pair: 0.2, sft: 1 }`).
Rankings of any length take the list-wise form: Plackett and Luce's −Σ_i [s_i − log Σ_{j ≥ i} exp s_j] of the scores s = β(log π − log π_ref).

| divergence | f(x) |
|---|---|
| `reverse_kl` | x |
| `forward_kl` | 1 − exp(−x) |
| `js` | ln 2 + log σ(x) |
| `alpha` | (exp((a−1)x) − 1) / (a−1) |

With `ld_alpha` tokens beyond the shorter completion's length count that much (LD-DPO, arXiv 2409.06411); with `weighted` pairs are
weighted by exp of the mean of log p − log Σp² of both completions (WPO, arXiv 2406.11827); with `soft_labels` the probability that the
chosen completion is better is σ(margin), for margins that a reward model gave (refined DPO, arXiv 2402.08005, read as
−p log σ(βΔ) − (1−p) log σ(−βΔ)). What would be ignored is refused.

The reference's log-probabilities are computed once, before the training, and shared by every loss and β. Where an adapter is trained,
only the adapter changes. Logged: rewards β c and β r, their difference, and how often it is positive. Sources: Rafailov et al., arXiv
2305.18290, and the papers named with the losses in `src/ml/src/preference/pair.rs`; defaults are TRL's.",
    example: "tuned: { kind: dpo, model: sft, data: pairs, beta: 0.1 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &learning(1e-6),
        &[
            MAX_LENGTH,
            TRUNCATION,
            field("loss", LOSS, Need::Default(Literal::Text("sigmoid")), "The loss of a pair, or a mapping from losses to weights."),
            number("beta", 0.1, "β: how strongly the reference holds."),
            field(
                "label_smoothing",
                FieldType::Number { min: 0.0, max: 0.999_999, above: false },
                Need::Default(Literal::Number(0.0)),
                "ε: the probability that a label is wrong.",
            ),
            field(
                "divergence",
                FieldType::Choice(&[
                    Choice { word: "reverse_kl", doc: "x" },
                    Choice { word: "forward_kl", doc: "1 − exp(−x)" },
                    Choice { word: "js", doc: "ln 2 + log σ(x)" },
                    Choice { word: "alpha", doc: "(exp((a−1)x) − 1) / (a−1)" },
                ]),
                Need::Default(Literal::Text("reverse_kl")),
                "What the log-ratios are mapped by (f-DPO, arXiv 2309.16240).",
            ),
            number("divergence_alpha", DIVERGENCE_ALPHA, "a of the divergence `alpha`."),
            number("discopop_tau", DISCOPOP_TAU, "τ of `discopop`."),
            field(
                "ipo_on",
                FieldType::Choice(&[
                    Choice { word: "averages", doc: "log-ratios divided by the tokens of their completion, as IPO's authors do" },
                    Choice { word: "sums", doc: "log-ratios of whole completions, as the paper writes them" },
                ]),
                Need::Default(Literal::Text("averages")),
                "What `ipo` compares.",
            ),
            field("ld_alpha", FieldType::Number { min: 0.0, max: 1.0, above: false }, Need::Optional, "LD-DPO: the weight of tokens beyond the shorter completion."),
            field("weighted", FieldType::Bool, Need::Default(Literal::Bool(false)), "WPO: weigh pairs by how likely the policy finds them."),
            field("soft_labels", FieldType::Bool, Need::Default(Literal::Bool(false)), "Labels are σ(margin) of the rows' margins."),
        ],
        &RUNNING,
    ],
    ports: &[
        POLICY,
        Port { name: "data", accepts: &[ArtifactType::Dataset], arity: Arity::One, layouts: &["preference", "ranking"], doc: "Comparisons." },
        REFERENCE,
    ],
    outputs: &TRAINED,
    preparations: &[
        COMPLETIONS,
        Preparation {
            name: "reference",
            kind: "reference",
            inputs: &[("model", From::PortOr("reference", "model")), ("tokens", From::Preparation("tokens"))],
            fields: &["micro_batch"],
            replaces: &["reference"],
        },
    ],
    layout: None,
    check: fits,
    check_inputs: Some(fits_inputs),
    memory: Some(memory::of_groups),
};

//! `revise`: prompts → pairs of a model's answer and its own revision of it.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable, Rows,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::density_ratio::unknown_place;
use crate::generate::{LIMIT, SAMPLING_BATCH, SAMPLING_SEED, TOP_K, TOP_P};
use crate::rollout::PROMPTED;
use crate::words::{MAX_NEW_TOKENS, TEMPERATURE, field};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revise {
    /// What asks for a critique.
    pub critique: String,
    /// What asks for a revision.
    pub revision: String,
    /// Tokens of each text.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Only the so many likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability.
    pub top_p: f64,
    /// Prompts to take.
    pub limit: Option<usize>,
    /// Where the stream `sample` starts.
    pub seed: u64,
    /// Texts at once.
    pub batch: usize,
}

/// The places of the two requests.
const PLACES: [(&str, &[&str]); 2] = [
    ("critique", &["prompt", "answer"]),
    ("revision", &["prompt", "answer", "critique"]),
];

fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    for (name, places) in PLACES {
        let request = params.get(name).and_then(Value::as_str);
        if let Some(message) = unknown_place(request.unwrap_or_default(), places) {
            problems.push((name, message));
        }
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "revise",
    version: 1,
    about: "Has a model answer prompts, criticise its answers and revise them: pairs without a judge.",
    manual: "\
A model answers each prompt, is asked what is bad about its answer (`critique`), and is asked for a better one (`revision`). The pair is
(chosen: the revision, rejected: the answer). This is how *Refined DPO* makes its pairs (Gallego, arXiv 2402.08005), after the critiques and
revisions of *Constitutional AI* (Bai et al., arXiv 2212.08073).

In a conversation each request is the user's next turn, after the model's own. After plain text it stands between blank lines. `{prompt}`,
`{answer}` and, in `revision`, `{critique}` are filled in where a request repeats them; a conversation's `{prompt}` is the user's last turn.
White space around a revision is taken off, and what an answer to plain text begins with is put before it: the two must not be told apart
by that.

A pair is left out where the revision is empty or is the answer again, and where the texts so far leave no room for the next one in the
model's positions; how many is said. What was cut off at `max_new_tokens` stays. The texts are all in `critiques.jsonl` beside the rows,
for reading. Answers, critiques and revisions are drawn from streams of their own, three for each prompt.

The model is not always right about what is better. Have a judge score the pairs: `annotate` gives them margins, and `dpo` with `soft_labels`
learns from them with the label σ(margin).",
    example: "revised: { kind: revise, model: sft, prompts: rows.train, temperature: 0.7, max_new_tokens: 256 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "critique",
            FieldType::Text,
            Need::Default(Literal::Text(
                "What is bad about this answer? Name its mistakes, what is missing, and what could be said better.",
            )),
            "What asks for a critique of the answer.",
        ),
        field(
            "revision",
            FieldType::Text,
            Need::Default(Literal::Text("Write the answer again, without these faults. Write the new answer only.")),
            "What asks for a revision of the answer.",
        ),
        MAX_NEW_TOKENS,
        TEMPERATURE,
        TOP_K,
        TOP_P,
        LIMIT,
        SAMPLING_SEED,
        SAMPLING_BATCH,
    ],
    ports: &[
        Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model that answers, criticises and revises." },
        Port {
            name: "prompts",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: PROMPTED,
            doc: "The rows whose prompts are answered.",
        },
    ],
    outputs: &[Output::new("rows", ArtifactType::Dataset, "Pairs: the revision is the chosen completion, the answer the rejected one.")],
    preparations: &[],
    layout: Some(|_, _| Some(Rows::of("preference").without("margin"))),
    check: fits,
    check_inputs: None,
    memory: None,
};

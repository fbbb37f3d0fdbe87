//! `best_of_n`: what picking the best of n samples by one judge is worth to another.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, Output, Pool, Port, Repeatable, no_check};
use serde::Deserialize;

use crate::words::{MICRO_BATCH, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestOfN {
    /// Completions at once.
    pub micro_batch: usize,
}

/// A judge by its port.
const fn judge(name: &'static str, doc: &'static str) -> Port {
    Port {
        name,
        accepts: &[ArtifactType::RewardModel, ArtifactType::Judge],
        arity: Arity::OneOrMany,
        layouts: &[],
        doc,
    }
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "best_of_n",
    version: 1,
    about: "Picks the best of n samples by a proxy judge, for growing n, and has a gold judge say what they are worth.",
    manual: "\
Rows that follow each other and have the same prompt are one pool, as `generate` with `n` writes them; every prompt has as many completions. For
n = 1, 2, 4, … up to that number, the best of n by `proxy` is scored by both judges. All subsets of n count alike, so one pool of N
completions serves every n (the unbiased estimator of Nakano et al. 2021, arXiv 2112.09332; Gao, Schulman and Hilton 2022, arXiv 2210.10760):

    score(n) = Σᵢ C(i − 1, n − 1) / C(N, n) · score of the i-th completion, sorted by proxy

Completions that were sampled more than once count as often; of several that the proxy scores the same, each is picked as often as the others. From
the model that sampled them, best-of-n is KL = ln n − (n − 1)/n nats away (at most that much where completions score the same).

`metrics.json` has a row for each n: `kl`, `proxy_score` and `gold_score` with their standard errors over prompts, and the gains over n = 1 with the
standard errors of the paired differences. `overoptimization` fits and draws them. In the summary, `proxy_score`, `gold_score`, `kl` and the gains
are those of the largest n; `best_n` is the n with the highest gold score, `best_gain` what it gains, and `drop` what is lost of that at the largest n.",
    example: "curve: { kind: best_of_n, samples: tries, proxy: judge, gold: words }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[MICRO_BATCH],
    ports: &[
        Port {
            name: "samples",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["prompt-completion", "messages", "scored"],
            doc: "Prompts with as many completions each, sampled at temperature 1 from one model.",
        },
        judge("proxy", "Who picks: a reward model or a rule, or several by name, whose scores are added."),
        judge("gold", "Who says what the pick is worth; it should have had no part in training the proxy."),
    ],
    outputs: &[Output::new("metrics", ArtifactType::Metrics, "A row for each n.").metrics(|_, _| {
        words(&[
            "prompts",
            "completions",
            "kl",
            "proxy_score",
            "gold_score",
            "proxy_gain",
            "gold_gain",
            "best_n",
            "best_gain",
            "drop",
        ])
    })],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

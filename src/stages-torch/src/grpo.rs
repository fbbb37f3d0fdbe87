//! `grpo`: the objective from the parameters.

use anyhow::{Result, bail};
use engine::job::{Drafts, Job, Reporter};
use kinds::grpo::Grpo;
use ml::rl::advantage::GroupScale;
use ml::rl::group::{Advantages, Normalizer, Objective, Ratio};

use crate::group::{Manner, learn};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Grpo = job.params()?;
    let manner = Manner {
        group: params.groups.group,
        objective: Objective {
            clip_low: params.groups.clip,
            clip_high: params.groups.clip_high.unwrap_or(params.groups.clip),
            beta: params.beta,
            corrected: params.corrected_kl,
            ratio: match params.ratio.as_str() {
                "token" => Ratio::Token,
                "sequence" => Ratio::Mean,
                other => bail!("`{other}` is not a ratio"),
            },
            normalizer: match params.loss.as_str() {
                "grpo" => Normalizer::Completions,
                "bnpo" => Normalizer::Tokens,
                "dr_grpo" => Normalizer::Longest,
                "dapo" => Normalizer::BatchTokens,
                other => bail!("`{other}` is not a loss"),
            },
        },
        advantages: Advantages::Relative(match params.scale.as_str() {
            "group" => GroupScale::Group,
            "batch" => GroupScale::Batch,
            "none" => GroupScale::None,
            other => bail!("`{other}` is not a scale"),
        }),
        mask_truncated: params.groups.mask_truncated,
        reward_clip: params.groups.reward_clip,
    };
    learn(job, cx, &params.rollout, manner)
}

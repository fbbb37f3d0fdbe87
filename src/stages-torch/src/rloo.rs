//! `rloo`: the objective from the parameters.

use anyhow::Result;
use engine::job::{Drafts, Job, Reporter};
use kinds::rloo::Rloo;
use ml::rl::group::{Advantages, Normalizer, Objective, Ratio};

use crate::group::{Manner, learn};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Rloo = job.params()?;
    let manner = Manner {
        group: params.groups.group,
        objective: Objective {
            clip_low: params.groups.clip,
            clip_high: params.groups.clip_high.unwrap_or(params.groups.clip),
            beta: 0.0,
            corrected: false,
            ratio: Ratio::Whole,
            normalizer: Normalizer::Completions,
        },
        advantages: Advantages::LeaveOneOut {
            beta: params.beta,
            normalize: params.normalize,
        },
        mask_truncated: params.groups.mask_truncated,
        reward_clip: params.groups.reward_clip,
    };
    learn(job, cx, &params.rollout, manner)
}

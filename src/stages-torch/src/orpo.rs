//! `orpo`: the method from the parameters.

use anyhow::Result;
use engine::job::{Drafts, Job, Reporter};
use kinds::orpo::Orpo;
use ml::preference::Method;

use crate::completions::Groups;
use crate::preference::learn;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Orpo = job.params()?;
    let method = Method::Orpo { beta: params.beta };
    let groups = Groups::open(job.input("tokens")?, &kinds::orpo::CONTRACT, "data")?;
    learn(job, cx, &params.training, groups, method)
}

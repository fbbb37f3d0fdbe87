//! `cpo`: the method from the parameters.

use anyhow::{Result, bail};
use engine::job::{Drafts, Job, Reporter};
use kinds::cpo::Cpo;
use ml::preference::Method;
use ml::preference::free::CpoLoss;

use crate::completions::Groups;
use crate::preference::learn;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Cpo = job.params()?;
    let loss = match params.loss.as_str() {
        "sigmoid" => CpoLoss::Sigmoid {
            alpha: params.alpha,
        },
        "hinge" => CpoLoss::Hinge,
        "ipo" => CpoLoss::Ipo,
        "simpo" => CpoLoss::Simpo {
            gamma: params.gamma,
            alpha: params.alpha,
        },
        other => bail!("`{other}` is not a loss"),
    };
    let usual = if params.loss == "simpo" { 0.0 } else { 1.0 };
    let method = Method::Cpo {
        loss,
        beta: params.beta,
        label_smoothing: params.label_smoothing,
        nll: params.nll.unwrap_or(usual),
    };
    let groups = Groups::open(job.input("tokens")?, &kinds::cpo::CONTRACT, "data")?;
    learn(job, cx, &params.training, groups, method)
}

//! `dpo`: the method from the parameters.

use anyhow::{Context, Result, bail, ensure};
use data::Layout;
use engine::job::{Drafts, Job, Reporter};
use kinds::dpo::{Dpo, Losses};
use ml::preference::Method;
use ml::preference::pair::{Divergence, PairLoss, Settings, check};
use serde_json::Value;

use crate::completions::Groups;
use crate::preference::learn;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Dpo = job.params()?;
    let groups = Groups::open(job.input("tokens")?, &kinds::dpo::CONTRACT, "data")?;
    let layout = job.input("tokens")?.summary.get("layout");
    let ranked = layout.and_then(Value::as_str) == Some(Layout::Ranking.name());
    let method = if ranked {
        ensure!(
            matches!(&params.loss, Losses::One(loss) if loss == "sigmoid")
                && params.label_smoothing == 0.0
                && params.divergence == "reverse_kl"
                && params.ld_alpha.is_none()
                && !params.weighted
                && !params.soft_labels,
            "rankings take the list-wise loss, which has no options but `beta`; make pairs of them for the others"
        );
        Method::Ranking { beta: params.beta }
    } else {
        pairs(&params)?
    };
    if params.soft_labels {
        for index in 0..groups.len() {
            ensure!(
                groups.group(index)?.1.is_finite(),
                "row {} has no margin, of which `soft_labels` makes its label; annotate the pairs with a judge",
                index + 1
            );
        }
    }
    learn(job, cx, &params.training, groups, method)
}

fn pairs(params: &Dpo) -> Result<Method> {
    let losses = match &params.loss {
        Losses::One(name) => vec![(PairLoss::parse(name)?, 1.0)],
        Losses::Weighted(map) => map
            .iter()
            .map(|(name, weight)| {
                let weight = weight.as_f64().context("a weight is a number")?;
                Ok((PairLoss::parse(name)?, weight))
            })
            .collect::<Result<_>>()?,
    };
    let settings = Settings {
        beta: params.beta,
        label_smoothing: params.label_smoothing,
        divergence: match params.divergence.as_str() {
            "reverse_kl" => Divergence::ReverseKl,
            "forward_kl" => Divergence::ForwardKl,
            "js" => Divergence::Js,
            "alpha" => Divergence::Alpha(params.divergence_alpha),
            other => bail!("`{other}` is not a divergence"),
        },
        discopop_tau: params.discopop_tau,
        ipo_averages: params.ipo_on == "averages",
    };
    check(&losses, &settings)?;
    Ok(Method::Dpo {
        losses,
        settings,
        ld_alpha: params.ld_alpha,
        weighted: params.weighted,
        soft_labels: params.soft_labels,
    })
}

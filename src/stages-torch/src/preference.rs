//! `dpo`, `cpo`, `orpo`: the objective from the parameters, and the training around it.

use anyhow::{Context, Result, bail, ensure};
use data::Layout;
use engine::job::{Drafts, Job, Reporter};
use kinds::cpo::Cpo;
use kinds::dpo::{Dpo, Losses};
use kinds::orpo::Orpo;
use kinds::training::Training;
use ml::preference::free::CpoLoss;
use ml::preference::pair::{Divergence, PairLoss, Settings, check};
use ml::preference::{Group, Method, Preference};
use serde_json::Value;

use crate::completions::Groups;
use crate::model::load;
use crate::reference;
use crate::training::{Counted, choose_trained, metrics, train, trained_model};

pub(crate) fn dpo(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Dpo = job.params()?;
    let groups = Groups::open(job.input("tokens")?)?;
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
    run(job, cx, &params.training, groups, method)
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

pub(crate) fn cpo(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
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
    let groups = Groups::open(job.input("tokens")?)?;
    run(job, cx, &params.training, groups, method)
}

pub(crate) fn orpo(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Orpo = job.params()?;
    let method = Method::Orpo { beta: params.beta };
    let groups = Groups::open(job.input("tokens")?)?;
    run(job, cx, &params.training, groups, method)
}

fn run(
    job: &Job,
    cx: &dyn Reporter,
    training: &Training,
    groups: Groups,
    method: Method,
) -> Result<Drafts> {
    let view = job.input("model")?;
    let reference = match job.inputs.contains_key("reference") {
        true => Some(reference::read(job.input("reference")?, &groups)?),
        false => None,
    };
    let mut loaded = load(view, job)?;
    choose_trained(&mut loaded.params, loaded.adapter.is_some(), cx);
    let read = |index: usize| {
        let (rows, value) = groups.group(index)?;
        let reference = reference.as_ref().map(|all| {
            let own = groups.range(index);
            all[own].to_vec()
        });
        Ok(Group {
            rows,
            reference: reference.unwrap_or_default(),
            value,
        })
    };
    let mut objective = Preference::new(&loaded.model, groups.len(), Box::new(read), method);
    let params = &loaded.params;
    let steps = train(job, cx, training, params, &mut objective, Counted::Rows)?;
    drop(objective);
    let metrics = metrics(job, &steps)?;
    let model = trained_model(job, view, &loaded)?;
    ml::torch::release_memory();
    Ok([("model".to_owned(), model), ("metrics".to_owned(), metrics)].into())
}

//! Names of metrics, as far as they can be told before anything runs.

use super::stop_if::Stop;
use super::{Binding, Guard, Pick, Stage, Target};
use crate::contract::{FieldType, Literal, MetricNames, Need, Output};
use crate::diagnostic::{Problem, Span};
use crate::metric::{listed, places};

const UNKNOWN: &str = "unknown-metric";
const CONSTANT: &str = "constant-metric";

/// Every name of a metric that its producer will not have.
pub(super) fn check(stages: &[Stage], problems: &mut Vec<Problem>) {
    for stage in stages {
        for field in stage.contract.fields {
            let FieldType::Metric { of, each } = field.ty else {
                continue;
            };
            let (Some(metrics), Some(metric)) = (
                stage.inputs.get(of),
                stage.params.get(field.name).and_then(|v| v.as_str()),
            ) else {
                continue;
            };
            let span = stage.spans.get(field.name).copied().unwrap_or(stage.span);
            let metrics = listing(metrics);
            if each == Some(of) {
                let below = format!(".{metric}");
                // Kinds that hand such numbers on call them by their usual names.
                let usual = match field.need {
                    Need::Default(Literal::Text(name)) => name,
                    _ => metric,
                };
                let fits =
                    |known: &String| known == metric || known == usual || known.ends_with(&below);
                for (_, pick) in metrics {
                    if missing(stages, pick, metric, &fits, span, problems) {
                        break;
                    }
                }
                continue;
            }
            let Some(each) = each else {
                alone(stages, metrics[0].1, metric, span, problems);
                continue;
            };
            let Some(owners) = stage.inputs.get(each).map(listing) else {
                continue;
            };
            let labels = |list: &[(&'_ str, &Pick<Target>)]| -> Vec<String> {
                list.iter().map(|(name, _)| (*name).to_owned()).collect()
            };
            let (owner_names, metric_names) = (labels(&owners), labels(&metrics));
            let owner_names: Vec<&str> = owner_names.iter().map(String::as_str).collect();
            let metric_names: Vec<&str> = metric_names.iter().map(String::as_str).collect();
            match places(&owner_names, &metric_names, metric) {
                Ok(places) => {
                    for (index, names) in places {
                        let name = names.last().map_or("", String::as_str);
                        let fits = |known: &String| names.contains(known);
                        if missing(stages, metrics[index].1, name, &fits, span, problems) {
                            break;
                        }
                    }
                }
                Err(message) => {
                    let span = stage.spans.get(of).copied().unwrap_or(stage.span);
                    problems.push(Problem::at("bad-reference", span, message));
                }
            }
        }
    }
}

/// The same of a `stop_if`.
pub(super) fn check_stop(
    stages: &[Stage],
    stop: &Stop<'_>,
    guard: &Guard,
    problems: &mut Vec<Problem>,
) {
    let metric = &guard.stop.metric;
    alone(stages, &guard.metrics, metric, stop.metric_span, problems);
}

/// A number that is held against limits by itself: it is there, and may be this or that.
fn alone(
    stages: &[Stage],
    pick: &Pick<Target>,
    metric: &str,
    span: Span,
    problems: &mut Vec<Problem>,
) {
    let fits = |known: &String| known == metric;
    if missing(stages, pick, metric, &fits, span, problems) {
        return;
    }
    let always = |target: &Target| {
        let (stage, output) = maker(stages, target)?;
        Some(names(stage, output.constant?))
    };
    let all: Option<Vec<Vec<String>>> = pick.from.iter().map(always).collect();
    let constant = all.is_some_and(|all| all.iter().all(|names| names.iter().any(fits)));
    // The same in every round is told once.
    let told = |p: &Problem| p.code == CONSTANT && p.span == Some(span);
    if let (true, Some(target)) = (constant, pick.from.last())
        && !problems.iter().any(told)
    {
        let message = format!(
            "`{metric}` of `{}` is the same whatever happens: no limit for it decides anything",
            stages[target.stage].name
        );
        let mut others = known(stages, pick).unwrap_or_default();
        let always = always(target).unwrap_or_default();
        others.retain(|name| !always.contains(name));
        problems.push(Problem::at(CONSTANT, span, message).help(listed(metric, &others)));
    }
}

/// What a port holds; one that takes one thing holds it without a name.
fn listing(binding: &Binding) -> Vec<(&str, &Pick<Target>)> {
    match binding {
        Binding::One(pick) => vec![("", pick)],
        Binding::Many(list) => list
            .iter()
            .map(|(name, pick)| (name.as_str(), pick))
            .collect(),
    }
}

/// Whether none of the metrics in `pick` `fits`, which then is a problem: there is no `name`.
fn missing(
    stages: &[Stage],
    pick: &Pick<Target>,
    name: &str,
    fits: &dyn Fn(&String) -> bool,
    span: Span,
    problems: &mut Vec<Problem>,
) -> bool {
    let Some(target) = pick.from.last() else {
        return false;
    };
    let Some(known) = known(stages, pick) else {
        return false;
    };
    if known.iter().any(fits) {
        return false;
    }
    // The same in every round is told once.
    let told = |p: &Problem| p.code == UNKNOWN && p.span == Some(span);
    if !problems.iter().any(told) {
        let message = format!("`{}` has no metric `{name}`", stages[target.stage].name);
        problems.push(Problem::at(UNKNOWN, span, message).help(listed(name, &known)));
    }
    true
}

/// The names that metrics will have. None when they can't be told.
fn known(stages: &[Stage], pick: &Pick<Target>) -> Option<Vec<String>> {
    let mut all = pick.from.iter().map(|target| of_target(stages, target));
    let first = all.next()??;
    all.all(|names| names.as_ref() == Some(&first))
        .then_some(first)
}

fn of_target(stages: &[Stage], target: &Target) -> Option<Vec<String>> {
    let (stage, output) = maker(stages, target)?;
    Some(names(stage, output.metrics?))
}

/// What metrics are made by: what a gate hands on has the names that it had before.
fn maker<'a>(stages: &'a [Stage], target: &Target) -> Option<(&'a Stage, &'static Output)> {
    let mut target = target;
    for _ in 0..stages.len() {
        let stage = &stages[target.stage];
        let output = stage.contract.output(target.output)?;
        if output.metrics.is_some() {
            return Some((stage, output));
        }
        let Binding::One(pick) = stage.inputs.get(output.handed_on()?)? else {
            return None;
        };
        let [only] = pick.from.as_slice() else {
            return None;
        };
        target = only;
    }
    None
}

/// The names that a stage gives to its numbers, or to some of them.
fn names(stage: &Stage, of: MetricNames) -> Vec<String> {
    let named = |port: &str| {
        let bound = stage.inputs.get(port).map(listing).unwrap_or_default();
        bound.iter().map(|(name, _)| (*name).to_owned()).collect()
    };
    of(&stage.params, &named)
}

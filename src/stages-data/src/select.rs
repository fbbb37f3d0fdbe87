//! `select`: the best of several, by a metric.

use anyhow::{Context, Result, bail};
use engine::event::Level;
use engine::job::{About as _, Draft, Drafts, Job, Reporter};
use engine::metric::{apart, number, places};
use kinds::select::Select;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let Select {
        metric,
        goal,
        at_least,
        at_most,
    } = job.params()?;
    let (candidates, metrics) = (job.inputs_of("candidates")?, job.inputs_of("metrics")?);
    let names = |list: &'_ [(String, engine::artifact::ArtifactView)]| -> Vec<String> {
        list.iter().map(|(name, _)| name.clone()).collect()
    };
    let (own, theirs) = (names(candidates), names(metrics));
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let places = places(&own, &theirs, &metric).map_err(anyhow::Error::msg)?;
    let mut values = Vec::new();
    for (name, (index, paths)) in own.iter().zip(&places) {
        let value = number(&metrics[*index].1.summary, paths)
            .with_context(|| format!("`{name}` can't be compared"))
            .about("metric")?;
        values.push(value);
    }
    let told = apart(&values);
    let all: Vec<String> = own
        .iter()
        .zip(&told)
        .map(|(n, v)| format!("{n} {v}"))
        .collect();
    let all = all.join(", ");
    let within =
        |value: f64| at_least.is_none_or(|l| value >= l) && at_most.is_none_or(|m| value <= m);
    let better = |new: f64, old: f64| match goal.as_str() {
        "min" => new < old,
        _ => new > old,
    };
    let mut best: Option<(usize, f64)> = None;
    for (index, value) in values.into_iter().enumerate() {
        if within(value) && best.is_none_or(|(_, old)| better(value, old)) {
            best = Some((index, value));
        }
    }
    let Some((index, _)) = best else {
        bail!("none of the candidates is within the limits; `{metric}`: {all}");
    };
    let (name, view) = &candidates[index];
    cx.note(
        Level::Info,
        &format!("`{name}` wins with {}; `{metric}`: {all}", told[index]),
    );
    Ok([("best".to_owned(), Draft::of(view))].into())
}

#[cfg(test)]
mod tests {
    use engine::artifact::ArtifactView;
    use engine::job::Draft;
    use serde_json::{Value, json};

    use crate::testing::{Ear, artifact, job};

    type Named<'a> = (&'a str, ArtifactView);

    /// What is said of three candidates, the last word being which one came out.
    fn select(metric: &str, goal: &str, metrics: &[Named<'_>]) -> Result<String, String> {
        within(json!({ "metric": metric, "goal": goal }), metrics)
    }

    fn within(params: Value, metrics: &[Named<'_>]) -> Result<String, String> {
        let candidates =
            ["a", "b", "c"].map(|name| (name, artifact("dataset", json!({ "rows": name }))));
        let many = [("candidates", candidates.as_slice()), ("metrics", metrics)];
        let ear = Ear::default();
        let drafts =
            super::run(&job("select", params, &[], &many), &ear).map_err(|e| format!("{e:#}"))?;
        let is = |(_, view): &&Named<'_>| drafts["best"] == Draft::of(view);
        let (name, _) = candidates.iter().find(is).expect("one of the candidates");
        Ok(format!("{} → {name}", ear.said()))
    }

    fn scores(value: Value) -> ArtifactView {
        artifact("metrics", value)
    }

    #[test]
    fn one_for_all_has_the_names_of_the_candidates() {
        let all = json!({ "a": { "loss": 2, "acc": 0.5 }, "b": { "loss": 1.5, "acc": 0.75 }, "c": { "loss": 1.5, "acc": 0.75 } });
        let all = [("scores", scores(all))];
        let of = |metric: &str, goal: &str| select(metric, goal, &all).unwrap();
        let losses = "`loss`: a 2, b 1.5, c 1.5";
        assert_eq!(
            of("loss", "min"),
            format!("`b` wins with 1.5; {losses} → b")
        );
        assert_eq!(of("loss", "max"), format!("`a` wins with 2; {losses} → a"));
        assert!(of("acc", "max").ends_with("→ b"));
    }

    #[test]
    fn values_are_told_short() {
        let all =
            json!({ "a": { "acc": 2.0 / 3.0 }, "b": { "acc": 1.0 / 7.0 }, "c": { "acc": 0 } });
        assert_eq!(
            select("acc", "max", &[("scores", scores(all))]).unwrap(),
            "`a` wins with 0.666667; `acc`: a 0.666667, b 0.142857, c 0 → a"
        );
    }

    #[test]
    fn who_is_outside_of_the_limits_cannot_win() {
        let all = json!({ "a": { "kl": 1 }, "b": { "kl": 2.5 }, "c": { "kl": 4 } });
        let all = [("scores", scores(all))];
        let of = |limits: Value| {
            let mut params = json!({ "metric": "kl", "goal": "max" });
            let own = limits.as_object().expect("limits").clone();
            params.as_object_mut().expect("a mapping").extend(own);
            within(params, &all)
        };
        let kls = "`kl`: a 1, b 2.5, c 4";
        let b = Ok(format!("`b` wins with 2.5; {kls} → b"));
        assert_eq!(of(json!({ "at_most": 3.0 })), b);
        assert_eq!(of(json!({ "at_most": 2.5, "at_least": 2.5 })), b);
        let none = "none of the candidates is within the limits; `kl`: a 1, b 2.5, c 4";
        assert_eq!(of(json!({ "at_most": 0.5 })), Err(none.to_owned()));
        let least = json!({ "goal": "min", "at_least": 2.0 });
        assert_eq!(of(least), b);
    }

    #[test]
    fn one_for_each_belongs_to_its_name_or_its_place() {
        let each = |names: [&'static str; 3]| {
            let mut loss = 0.0;
            names.map(|name| {
                loss += 1.0;
                (name, scores(json!({ "loss": loss })))
            })
        };
        let winner = |names| select("loss", "min", &each(names)).unwrap();
        assert!(winner(["x", "y", "z"]).ends_with("→ a"));
        assert!(winner(["c", "a", "b"]).ends_with("→ c"));
        let wrong = select("loss", "min", &each(["a", "b", "z"])).unwrap_err();
        assert!(wrong.starts_with("only one side has `c`"), "{wrong}");
        let wrong = select("loss", "min", &each(["a", "b", "c"])[..2]).unwrap_err();
        assert!(wrong.starts_with("3 candidates and 2 metrics"), "{wrong}");
    }

    #[test]
    fn what_is_no_number_is_never_best() {
        let all = json!({ "a": { "loss": 2 }, "b": { "loss": null }, "c": { "rank": 1 } });
        let all = [("scores", scores(all))];
        assert_eq!(
            select("loss", "min", &all),
            Err("`b` can't be compared: the metric `b.loss` is not a number".to_owned())
        );
        assert_eq!(
            select("rank", "max", &all),
            Err(
                "`a` can't be compared: there is no metric `a.rank`: there are `c.rank`, `a.loss`"
                    .to_owned()
            )
        );
    }
}

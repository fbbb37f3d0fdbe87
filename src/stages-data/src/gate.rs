//! `gate`: anything goes through as it is, or the run ends here.

use anyhow::{Result, anyhow};
use engine::event::Level;
use engine::job::{About as _, Draft, Drafts, Job, Reporter};
use engine::metric::{apart, number};
use kinds::gate::Gate;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let Gate { metric, min, max } = job.params()?;
    let value = number(
        &job.input("metrics")?.summary,
        std::slice::from_ref(&metric),
    )
    .about("metric")?;
    let limits = [min, max].into_iter().flatten();
    let beside: Vec<f64> = [value].into_iter().chain(limits).collect();
    let told = apart(&beside).swap_remove(0);
    if let Some(min) = min.filter(|min| value < *min) {
        let error = anyhow!("the gate is closed: `{metric}` is {told}, below {min}");
        return Err(error).about("min");
    }
    if let Some(max) = max.filter(|max| value > *max) {
        let error = anyhow!("the gate is closed: `{metric}` is {told}, above {max}");
        return Err(error).about("max");
    }
    cx.note(Level::Info, &format!("`{metric}` is {told}"));
    let same = Draft::of(job.input("input")?);
    Ok([("output".to_owned(), same)].into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{Ear, artifact, job};

    /// What a gate says of a loss of 2.5, and whether it lets the input through as it is.
    fn gate(params: serde_json::Value) -> Result<String, String> {
        let input = artifact("model", json!({ "parameters": 3 }));
        let metrics = artifact(
            "metrics",
            json!({ "tuned": { "loss": 2.5, "long": 7.0 / 3.0, "astray": null } }),
        );
        let job = job(
            "gate",
            params,
            &[("input", &input), ("metrics", &metrics)],
            &[],
        );
        let ear = Ear::default();
        let drafts = super::run(&job, &ear).map_err(|e| format!("{e:#}"))?;
        assert_eq!(drafts["output"], engine::job::Draft::of(&input));
        Ok(ear.said())
    }

    #[test]
    fn limits_are_inside() {
        let fine = Ok("`tuned.loss` is 2.5".to_owned());
        let limits = |min, max| json!({ "metric": "tuned.loss", "min": min, "max": max });
        assert_eq!(gate(limits(Some(2.5), Some(2.5))), fine);
        assert_eq!(gate(limits(None, Some(3.0))), fine);
        let closed = |why: &str| Err(format!("the gate is closed: `tuned.loss` is 2.5, {why}"));
        assert_eq!(gate(limits(Some(2.6), None)), closed("below 2.6"));
        assert_eq!(gate(limits(None, Some(2.4))), closed("above 2.4"));
    }

    #[test]
    fn what_is_no_number_does_not_go_through() {
        let of = |metric: &str| gate(json!({ "metric": metric, "min": null, "max": 9.0 }));
        assert_eq!(
            of("tuned.astray"),
            Err("the metric `tuned.astray` is not a number".to_owned())
        );
        assert_eq!(
            of("loss"),
            Err("there is no metric `loss`: there are `tuned.loss`, `tuned.long`".to_owned())
        );
    }

    #[test]
    fn a_value_is_told_short_unless_it_is_near_a_limit() {
        let of = |max: f64| gate(json!({ "metric": "tuned.long", "min": null, "max": max }));
        assert_eq!(of(9.0), Ok("`tuned.long` is 2.33333".to_owned()));
        assert_eq!(
            of(2.333_333),
            Err("the gate is closed: `tuned.long` is 2.3333333, above 2.333333".to_owned())
        );
    }
}

//! `contrast`: answers to learn and samples → pairs.

use anyhow::Result;
use data::contrast::contrast;
use data::store::Dataset;
use engine::event::Level;
use engine::job::{Drafts, Job, Reporter};
use kinds::contrast::Contrast;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Contrast = job.params()?;
    let open = |port: &str| Dataset::open(job.input(port)?.file("rows.arrow")?);
    let (chosen, rejected) = (open("chosen")?, open("rejected")?);
    let path = job.out.join("rows.arrow");
    let report = contrast(&chosen, &rejected, params.pairs == "first", &path)?;
    let mut left = Vec::new();
    for (count, what) in [
        (report.same, "samples are the answer itself"),
        (report.repeated, "samples came before"),
        (report.stray, "samples answer no row of `chosen`"),
        (report.unanswered, "rows of `chosen` have no sample"),
    ] {
        if count > 0 {
            left.push(format!("{count} {what}"));
        }
    }
    if !left.is_empty() {
        let text = format!("{} pairs; left out: {}", report.pairs.rows, left.join(", "));
        cx.note(Level::Info, &text);
    }
    let mut draft = crate::dataset_draft(path, &report.pairs)?;
    draft.summary.extend([
        ("same".to_owned(), report.same.into()),
        ("repeated".to_owned(), report.repeated.into()),
        ("unanswered".to_owned(), report.unanswered.into()),
        ("stray".to_owned(), report.stray.into()),
    ]);
    Ok([("rows".to_owned(), draft)].into())
}

//! `split`: rows → training rows and held-out rows.

use anyhow::Result;
use data::split::{Portion, split_dataset};
use data::store::Dataset;
use engine::event::Level;
use engine::job::{Drafts, Job, Reporter};
use kinds::split::Split;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Split = job.params()?;
    let portion = if params.test < 1.0 {
        Portion::Fraction(params.test)
    } else {
        Portion::Count(params.test as u64)
    };
    let dataset = Dataset::open(job.input("data")?.file("rows.arrow")?)?;
    let (train, test) = (job.out.join("train.arrow"), job.out.join("test.arrow"));
    let report = split_dataset(&dataset, portion, params.seed, &train, &test)?;
    if report.test_rows_in_train > 0 {
        let text = format!(
            "{} of the {} test rows stand word for word among the training rows: they measure memory, not skill",
            report.test_rows_in_train, report.test.rows
        );
        cx.note(Level::Warning, &text);
    }
    Ok([
        (
            "train".to_owned(),
            crate::dataset_draft(train, &report.train)?,
        ),
        ("test".to_owned(), crate::dataset_draft(test, &report.test)?),
    ]
    .into())
}

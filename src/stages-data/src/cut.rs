//! `cut`: texts → prompts with their completions.

use std::time::Instant;

use anyhow::Result;
use data::cut::{CutOptions, cut};
use data::store::Dataset;
use engine::event::Level;
use engine::job::{Drafts, Job, Reporter};
use kinds::cut::Cut;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Cut = job.params()?;
    let options = CutOptions {
        prompt_words: params.prompt_words,
        completion_words: params.completion_words,
    };
    let dataset = Dataset::open(job.input("data")?.file("rows.arrow")?)?;
    let path = job.out.join("rows.arrow");
    let start = Instant::now();
    let (summary, short) = cut(&dataset, options, &path, &mut |done, total| {
        crate::rows_done(cx, done, total, start);
    })?;
    cx.check()?;
    if short > 0 {
        let text = format!(
            "{short} of {} texts have no word behind the first {} and were left out",
            dataset.len(),
            options.prompt_words
        );
        cx.note(Level::Info, &text);
    }
    Ok([("rows".to_owned(), crate::dataset_draft(path, &summary)?)].into())
}

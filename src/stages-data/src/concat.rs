//! `concat`: datasets of one layout → one dataset.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use data::{Dataset, DatasetWriter, Row};
use engine::digest::Digest;
use engine::event::Level;
use engine::job::{Drafts, Job, Reporter};
use kinds::concat::Concat;

/// Rows between two looks at whether the run wants to stop.
const STRIDE: u64 = 1024;

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Concat = job.params()?;
    let mut sets: Vec<(&str, Dataset)> = Vec::new();
    for (name, view) in job.named("data")? {
        let set = Dataset::open(view.file("rows.arrow")?).with_context(|| format!("`{name}`"))?;
        sets.push((name, set));
    }
    let (first, set) = sets.first().context("port `data` is empty")?;
    let layout = set.layout();
    for (name, set) in &sets {
        ensure!(
            set.layout() == layout,
            "datasets of one layout are joined, and the rows of `{first}` are {layout}, those of `{name}` {}",
            set.layout()
        );
    }
    let total: u64 = sets.iter().map(|(_, set)| set.len() as u64).sum();
    let path = job.out.join("rows.arrow");
    let mut writer = DatasetWriter::create(&path, layout)?;
    let mut seen: HashSet<[u8; 16]> = HashSet::new();
    let (mut done, mut repeated): (u64, u64) = (0, 0);
    let mut parts = Vec::new();
    let start = Instant::now();
    for (name, set) in &sets {
        let mut taken: u64 = 0;
        for row in set.iter() {
            let row = row.with_context(|| format!("`{name}`"))?;
            if params.distinct && !seen.insert(fingerprint(&row)?) {
                repeated += 1;
            } else {
                writer.push(&row)?;
                taken += 1;
            }
            done += 1;
            if done.is_multiple_of(STRIDE) || done == total {
                cx.check()?;
                crate::rows_done(cx, done, total, start);
            }
        }
        parts.push(format!("{taken} from `{name}`"));
    }
    let summary = writer.finish()?;
    ensure!(summary.rows > 0, "there is no row to join");
    let mut text = format!("{} rows: {}", summary.rows, parts.join(", "));
    if repeated > 0 {
        text += &format!("; left out, as they were there already: {repeated}");
    }
    cx.note(Level::Info, &text);
    Ok([("rows".to_owned(), crate::dataset_draft(path, &summary)?)].into())
}

/// Sixteen bytes of the digest of a row's values, enough to tell rows apart.
fn fingerprint(row: &Row) -> Result<[u8; 16]> {
    // JSON keeps neighbouring texts apart.
    let digest = Digest::of_bytes(&serde_json::to_vec(row)?);
    let mut out = [0; 16];
    out.copy_from_slice(&digest.as_bytes()[..16]);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use data::{Layout, Prompt};
    use engine::artifact::ArtifactView;
    use serde_json::json;

    use super::*;
    use crate::testing::{Ear, artifact, job};

    fn text(text: &str) -> Row {
        Row::Text {
            text: text.to_owned(),
        }
    }

    fn pair(chosen: &str, margin: Option<f64>) -> Row {
        Row::Preference {
            prompt: Prompt::Text("Which?".to_owned()),
            chosen: chosen.to_owned(),
            rejected: "Neither.".to_owned(),
            margin,
        }
    }

    /// A dataset in `folder`.
    fn dataset(folder: &Path, name: &str, layout: Layout, rows: &[Row]) -> ArtifactView {
        let path = folder.join(format!("{name}.arrow"));
        let mut writer = DatasetWriter::create(&path, layout).unwrap();
        for row in rows {
            writer.push(row).unwrap();
        }
        writer.finish().unwrap();
        let mut view = artifact("dataset", json!({ "name": name }));
        view.files = vec![("rows.arrow".to_owned(), path)];
        view
    }

    /// The rows that are made of these datasets, and what is said.
    fn joined(distinct: bool, sets: &[(&str, Layout, &[Row])]) -> Result<(Vec<Row>, String)> {
        let folder = tempfile::tempdir()?;
        let views: Vec<(&str, ArtifactView)> = sets
            .iter()
            .map(|(name, layout, rows)| (*name, dataset(folder.path(), name, *layout, rows)))
            .collect();
        let params = json!({ "distinct": distinct });
        let mut job = job("concat", params, &[], &[("data", views.as_slice())]);
        job.out = folder.path().to_owned();
        let ear = Ear::default();
        let draft = run(&job, &ear)?.remove("rows").expect("its only output");
        let rows: Result<Vec<Row>> = Dataset::open(&draft.files[0].1)?.iter().collect();
        let rows = rows?;
        assert_eq!(draft.summary["rows"], json!(rows.len()));
        assert_eq!(draft.summary["layout"], json!(sets[0].1.name()));
        Ok((rows, ear.said()))
    }

    #[test]
    fn rows_follow_each_other_and_with_distinct_come_once() {
        let old = [text("a"), text("b"), text("a")];
        let new = [text("c"), text("b")];
        let sets: [(&str, Layout, &[Row]); 2] =
            [("old", Layout::Text, &old), ("new", Layout::Text, &new)];
        let (rows, said) = joined(false, &sets).unwrap();
        assert_eq!(rows, [&old[..], &new[..]].concat());
        assert_eq!(said, "5 rows: 3 from `old`, 2 from `new`");
        let (rows, said) = joined(true, &sets).unwrap();
        assert_eq!(rows, [text("a"), text("b"), text("c")]);
        assert_eq!(
            said,
            "3 rows: 2 from `old`, 1 from `new`; left out, as they were there already: 2"
        );
    }

    #[test]
    fn pairs_with_and_without_margins_are_of_one_layout() {
        let (with, without) = ([pair("This.", Some(0.5))], [pair("This.", None)]);
        let sets: [(&str, Layout, &[Row]); 3] = [
            ("with", Layout::Preference, &with),
            ("without", Layout::Preference, &without),
            ("again", Layout::Preference, &with),
        ];
        let (rows, _) = joined(true, &sets).unwrap();
        assert_eq!(rows, [with[0].clone(), without[0].clone()]);
    }

    #[test]
    fn other_layouts_and_no_rows_are_refused() {
        let (texts, pairs) = ([text("a")], [pair("This.", None)]);
        let error = joined(
            false,
            &[
                ("one", Layout::Text, &texts),
                ("two", Layout::Text, &texts),
                ("three", Layout::Preference, &pairs),
            ],
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("the rows of `one` are text, those of `three` preference"),
            "{error}"
        );
        let error = joined(false, &[("none", Layout::Text, &[])]).unwrap_err();
        assert_eq!(error.to_string(), "there is no row to join");
    }
}

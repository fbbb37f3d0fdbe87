//! `mismatch`: tokens of rows → the same, each with its prompt before another row's completion.

use anyhow::Result;
use data::completions::{Completions, CompletionsWriter};
use data::mismatch::mismatch;
use engine::artifact::ArtifactType;
use engine::job::{Draft, Drafts, Job, Reference, Reporter};
use kinds::mismatch::Mismatch;
use serde_json::json;

pub(crate) fn run(job: &Job, _: &dyn Reporter) -> Result<Drafts> {
    let params: Mismatch = job.params()?;
    let view = job.input("tokens")?;
    let tokens = Completions::open(view.file("completions.arrow")?)?;
    let path = job.out.join("completions.arrow");
    let mut writer = CompletionsWriter::create(&path)?;
    let made = if params.loss == "apo_zero" {
        for row in tokens.iter() {
            writer.push(row?)?;
        }
        writer.finish()?
    } else {
        mismatch(&tokens, params.max_length, writer)?
    };
    let mut summary = view.summary.clone();
    summary.extend([
        ("rows".to_owned(), json!(made.rows)),
        ("tokens".to_owned(), json!(made.tokens)),
        (
            "completion_tokens".to_owned(),
            json!(made.completion_tokens),
        ),
        ("largest_group".to_owned(), json!(made.largest_group)),
        ("lengths".to_owned(), json!(made.lengths)),
    ]);
    let draft = Draft {
        artifact: ArtifactType::Tokens,
        files: vec![("completions.arrow".to_owned(), path)],
        refs: view
            .refs
            .get("tokenizer")
            .map(|own| ("tokenizer".to_owned(), Reference::Artifact(own.digest)))
            .into_iter()
            .collect(),
        summary,
    };
    Ok([("tokens".to_owned(), draft)].into())
}

#[cfg(test)]
mod tests {
    use data::completions::Completion;

    use super::*;
    use crate::testing::{Ear, artifact, job};

    /// Rows of (prompt, completion) by `mismatch` with this loss: tokens of each made row, and the summary.
    fn made(loss: &str, rows: &[[&[i32]; 2]]) -> Result<(Vec<Vec<i32>>, Draft)> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("tokens.arrow");
        let mut writer = CompletionsWriter::create(&path)?;
        for (group, [prompt, completion]) in rows.iter().enumerate() {
            writer.push(Completion {
                ids: &[*prompt, completion].concat(),
                prompt: prompt.len(),
                group,
                value: 1.0,
            })?;
        }
        writer.finish()?;
        let mut tokens = artifact("tokens", json!({ "layout": "unpaired", "truncated": 2 }));
        tokens.files = vec![("completions.arrow".to_owned(), path)];
        let params = json!({ "loss": loss, "max_length": 4 });
        let mut job = job("mismatch", params, &[("tokens", &tokens)], &[]);
        job.out = folder.path().to_owned();
        let draft = run(&job, &Ear::default())?
            .remove("tokens")
            .expect("its only output");
        let file = Completions::open(&draft.files[0].1)?;
        let rows = file.iter().map(|row| Ok(row?.ids.to_vec()));
        Ok((rows.collect::<Result<_>>()?, draft))
    }

    #[test]
    fn a_baseline_doubles_the_rows_and_none_leaves_them() {
        let rows: &[[&[i32]; 2]] = &[[&[1], &[10]], [&[2, 2], &[20, 21, 22]]];
        let (made_of, draft) = made("kto", rows).unwrap();
        let expected = [
            vec![1, 10],
            vec![1, 20, 21, 22],
            vec![2, 2, 20, 21, 22],
            vec![2, 2, 10],
        ];
        assert_eq!(made_of, expected);
        for (name, value) in [
            ("layout", json!("unpaired")),
            ("truncated", json!(2)),
            ("rows", json!(4)),
            ("largest_group", json!(2)),
            ("completion_tokens", json!(8)),
        ] {
            assert_eq!(draft.summary[name], value, "{name}");
        }
        let (made_of, draft) = made("apo_zero", rows).unwrap();
        assert_eq!(made_of, [vec![1, 10], vec![2, 2, 20, 21, 22]]);
        assert_eq!(draft.summary["rows"], json!(2));
    }

    #[test]
    fn one_row_is_enough_only_without_a_baseline() {
        let row: &[[&[i32]; 2]] = &[[&[1], &[10]]];
        let error = made("kto", row).unwrap_err().to_string();
        assert!(error.contains("`loss: apo_zero`"), "{error}");
        assert_eq!(made("apo_zero", row).unwrap().0, [vec![1, 10]]);
    }
}

//! `tokenize_completions`: rows → token ids of prompts with their completions.

use std::time::Instant;

use anyhow::Result;
use data::completions::CompletionsWriter;
use data::tokenize_completions::{CompletionsOptions, tokenize_completions};
use engine::artifact::ArtifactType;
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reference, Reporter};
use kinds::tokenize_completions::TokenizeCompletions;

use crate::tokenize::{dataset, encoder, truncation};

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: TokenizeCompletions = job.params()?;
    let options = CompletionsOptions {
        max_length: params.max_length,
        truncation: truncation(&params.truncation)?,
        threads: Some(job.threads),
    };
    let encoder = encoder(job)?;
    let dataset = dataset(job)?;
    let path = job.out.join("completions.arrow");
    let start = Instant::now();
    let report = tokenize_completions(
        &dataset,
        &encoder,
        &options,
        CompletionsWriter::create(&path)?,
        &mut |done, total| crate::rows_done(cx, done, total, start),
    )?;
    cx.check()?;
    let made = &report.completions;
    cx.note(
        Level::Info,
        &format!(
            "{} completions of {} prompts, {} tokens, {} of them in completions",
            made.rows, made.groups, made.tokens, made.completion_tokens
        ),
    );
    if report.truncated > 0 {
        let text = format!(
            "{} rows have completions longer than max_length {} and were cut",
            report.truncated, options.max_length
        );
        cx.note(Level::Warning, &text);
    }
    for lint in &report.lints {
        cx.note(Level::Warning, lint);
    }
    let draft = Draft {
        artifact: ArtifactType::Tokens,
        files: vec![("completions.arrow".to_owned(), path)],
        refs: [(
            "tokenizer".to_owned(),
            Reference::Artifact(job.input("tokenizer")?.digest),
        )]
        .into(),
        summary: [
            ("rows".to_owned(), made.rows.into()),
            ("groups".to_owned(), made.groups.into()),
            ("tokens".to_owned(), made.tokens.into()),
            (
                "completion_tokens".to_owned(),
                made.completion_tokens.into(),
            ),
            ("largest_group".to_owned(), made.largest_group.into()),
            ("lengths".to_owned(), serde_json::to_value(made.lengths)?),
            ("layout".to_owned(), dataset.layout().name().into()),
            ("truncated".to_owned(), report.truncated.into()),
            ("dropped".to_owned(), serde_json::to_value(&report.dropped)?),
        ]
        .into(),
    };
    Ok([("tokens".to_owned(), draft)].into())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use data::{Completions, DatasetWriter, Message, Prompt, Row};
    use engine::artifact::ArtifactView;
    use engine::digest::Digest;
    use engine::event::What;
    use engine::job::Input;
    use serde_json::{Value, json};

    use super::*;

    /// Hears nothing.
    struct Deaf;

    impl Reporter for Deaf {
        fn emit(&self, _: What) {}

        fn cancelled(&self) -> bool {
            false
        }
    }

    fn view(artifact: ArtifactType, files: Vec<(String, PathBuf)>) -> Input {
        Input::One(Box::new(ArtifactView {
            digest: Digest::of_bytes(b"any"),
            artifact,
            files,
            refs: Default::default(),
            summary: Default::default(),
        }))
    }

    /// The draft for `rows` and these parameters, and the file that it names.
    fn tokens(
        folder: &Path,
        rows: &[Row],
        params: Value,
        threads: usize,
    ) -> Result<(Draft, Vec<u8>)> {
        let data = folder.join("rows.arrow");
        let mut writer = DatasetWriter::create(&data, rows[0].layout())?;
        rows.iter().try_for_each(|row| writer.push(row))?;
        writer.finish()?;
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/formats/tiny");
        let names = [
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ];
        let tokenizer = names
            .map(|name| (name.to_owned(), golden.join(name)))
            .to_vec();
        let inputs = [
            (
                "tokenizer".to_owned(),
                view(ArtifactType::Tokenizer, tokenizer),
            ),
            (
                "data".to_owned(),
                view(ArtifactType::Dataset, vec![("rows.arrow".to_owned(), data)]),
            ),
        ];
        let job = Job {
            stage: "tuned › tokens".to_owned(),
            recipe: "recipe.yaml".to_owned(),
            kind: "tokenize_completions".to_owned(),
            version: 1,
            params: serde_json::from_value(params)?,
            inputs: inputs.into(),
            sources: Default::default(),
            out: folder.to_owned(),
            snapshots: None,
            answers: None,
            device: "cpu".to_owned(),
            threads,
        };
        let draft = run(&job, &Deaf)?.remove("tokens").expect("its only output");
        let bytes = std::fs::read(&draft.files[0].1)?;
        Ok((draft, bytes))
    }

    fn pairs() -> Vec<Row> {
        let pair = |index: usize| Row::Preference {
            prompt: Prompt::Chat(vec![Message::new("user", format!("say {index}"))]),
            chosen: "loaf ".repeat(1 + index % 3),
            rejected: index.to_string(),
            margin: (index.is_multiple_of(2)).then_some(index as f64),
        };
        (0..40).map(pair).collect()
    }

    #[test]
    fn the_file_and_the_summary_agree_on_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let params = json!({ "max_length": 1024, "truncation": "keep_start" });
        let (draft, one) = tokens(folder.path(), &pairs(), params.clone(), 1).unwrap();
        let file = Completions::open(&draft.files[0].1).unwrap();
        assert_eq!(draft.files[0].0, "completions.arrow");
        assert_eq!((file.len(), file.groups().unwrap().len()), (80, 40));
        let expected = [
            ("rows", json!(80)),
            ("groups", json!(40)),
            ("largest_group", json!(2)),
            ("layout", json!("preference")),
            ("truncated", json!(0)),
            ("dropped", json!([])),
        ];
        for (name, value) in expected {
            assert_eq!(draft.summary[name], value, "{name}");
        }
        let (_, three) = tokens(folder.path(), &pairs(), params, 3).unwrap();
        assert!(one == three);
    }

    #[test]
    fn each_field_makes_a_difference() {
        let folder = tempfile::tempdir().unwrap();
        let with = |length: usize, truncation: &str| {
            let params = json!({ "max_length": length, "truncation": truncation });
            tokens(folder.path(), &pairs(), params, 1).unwrap().1
        };
        let whole = json!({ "max_length": 1024, "truncation": "keep_start" });
        let (draft, whole) = tokens(folder.path(), &pairs(), whole, 1).unwrap();
        let below = draft.summary["lengths"]["max"].as_u64().unwrap() as usize - 1;
        let cut = with(below, "keep_start");
        assert!(cut != whole);
        assert!(cut != with(below, "keep_end"));
        assert!(cut != with(below, "drop"));
        let wrong = json!({ "max_length": 40, "truncation": "keep" });
        let error = tokens(folder.path(), &pairs(), wrong, 1).unwrap_err();
        assert_eq!(error.to_string(), "`keep` is not a truncation");
    }
}

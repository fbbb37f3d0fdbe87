//! `revise`: answers, critiques of them, revisions; each step for all prompts before the next.

use anyhow::{Result, ensure};
use data::fill::fill;
use data::{Dataset, DatasetWriter, Layout, Message, Prompt, Row};
use engine::artifact::ArtifactType;
use engine::event::{Level, What};
use engine::job::{Draft, Drafts, Job, Reporter};
use kinds::revise::Revise;
use serde::Serialize;
use serde_json::json;

use crate::answers::{Manner, answer, questions, room, text};
use crate::model::{Loaded, load};

/// A text that the model wrote.
#[derive(Clone, Debug)]
struct Written {
    text: String,
    finished: bool,
    tokens: usize,
}

/// What was said about one prompt; a line of `critiques.jsonl`.
#[derive(Serialize)]
struct Line<'a> {
    prompt: &'a Prompt,
    answer: &'a str,
    critique: Option<&'a str>,
    revision: Option<&'a str>,
    /// Why there is no pair.
    left_out: Option<&'static str>,
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Revise = job.params()?;
    let dataset = Dataset::open(job.input("prompts")?.file("rows.arrow")?)?;
    let loaded = load(job.input("model")?, job)?;
    let count = params.limit.unwrap_or(usize::MAX);
    let questions = questions(&loaded, &dataset, count, params.max_new_tokens)?;
    let prompts: Vec<Prompt> = questions.into_iter().map(|q| q.prompt).collect();

    let asked: Vec<Option<Prompt>> = prompts.iter().cloned().map(Some).collect();
    let answers = write(&loaded, &params, 0, &asked, cx)?;
    let with_critique: Vec<Option<Prompt>> = prompts
        .iter()
        .zip(&answers)
        .map(|(prompt, answer)| {
            let answer = &answer.as_ref()?.text;
            let values = [("prompt", prompt.question()), ("answer", answer.as_str())];
            Some(after(prompt, answer, &fill(&params.critique, &values)))
        })
        .collect();
    let critiques = write(&loaded, &params, 1, &with_critique, cx)?;
    let with_revision: Vec<Option<Prompt>> = (0..prompts.len())
        .map(|at| {
            let (answer, critique) = (&answers[at].as_ref()?.text, &critiques[at].as_ref()?.text);
            let values = [
                ("prompt", prompts[at].question()),
                ("answer", answer.as_str()),
                ("critique", critique.as_str()),
            ];
            let request = fill(&params.revision, &values);
            Some(after(with_critique[at].as_ref()?, critique, &request))
        })
        .collect();
    let revisions = write(&loaded, &params, 2, &with_revision, cx)?;

    let path = job.out.join("rows.arrow");
    let mut writer = DatasetWriter::create(&path, Layout::Preference)?;
    let (mut lines, mut left_out, mut shown) = (String::new(), Vec::new(), false);
    for (at, prompt) in prompts.iter().enumerate() {
        let said = |all: &[Option<Written>]| all[at].as_ref().map(|w| w.text.clone());
        let (answer, critique, revision) = (said(&answers), said(&critiques), said(&revisions));
        let answer = answer.unwrap_or_default();
        let pair = pair(prompt, &answer, revision.as_deref());
        let line = Line {
            prompt,
            answer: &answer,
            critique: critique.as_deref(),
            revision: revision.as_deref(),
            left_out: pair.as_ref().err().copied(),
        };
        lines += &(serde_json::to_string(&line)? + "\n");
        match pair {
            Ok(row) => {
                if !shown {
                    sample(&line, cx);
                    shown = true;
                }
                writer.push(&row)?;
            }
            Err(why) => left_out.push(why),
        }
    }
    let summary = writer.finish()?;
    let of = |why: &str| left_out.iter().filter(|w| **w == why).count();
    let lost = format!(
        "{} of {} pairs were left out: {} revisions say the same as the answer, {} are empty, {} had no room",
        left_out.len(),
        prompts.len(),
        of(SAME),
        of(EMPTY),
        of(ROOM)
    );
    ensure!(
        summary.rows > 0,
        "no pair is left: {lost}; sample at a higher temperature, ask in other words, or take shorter prompts"
    );
    if !left_out.is_empty() {
        cx.note(Level::Info, &lost);
    }
    let written = || {
        [&answers, &critiques, &revisions]
            .into_iter()
            .flatten()
            .flatten()
    };
    let unfinished = written().filter(|w| !w.finished).count();
    if unfinished > 0 {
        let text = format!(
            "{unfinished} of {} texts were cut off at max_new_tokens {}",
            written().count(),
            params.max_new_tokens
        );
        cx.note(Level::Info, &text);
    }
    let side = job.out.join("critiques.jsonl");
    std::fs::write(&side, lines)?;
    let columns: Vec<_> = summary.layout.columns().iter().map(|(n, _)| *n).collect();
    let draft = Draft {
        artifact: ArtifactType::Dataset,
        files: vec![
            ("rows.arrow".to_owned(), path),
            ("critiques.jsonl".to_owned(), side),
        ],
        refs: Default::default(),
        summary: [
            ("rows".to_owned(), json!(summary.rows)),
            ("layout".to_owned(), json!(summary.layout.name())),
            ("columns".to_owned(), json!(columns)),
            (
                "characters".to_owned(),
                serde_json::to_value(summary.characters)?,
            ),
            ("left_out".to_owned(), json!(left_out.len())),
            ("unfinished".to_owned(), json!(unfinished)),
            (
                "tokens".to_owned(),
                json!(written().map(|w| w.tokens).sum::<usize>()),
            ),
        ]
        .into(),
    };
    ml::torch::release_memory();
    Ok([("rows".to_owned(), draft)].into())
}

const SAME: &str = "the revision is the answer again";
const EMPTY: &str = "the revision is empty";
const ROOM: &str = "the texts leave no room in the model's positions";

/// What the model writes after each prompt, where there is one and it leaves room; `step` of three tells the streams apart.
fn write(
    loaded: &Loaded,
    params: &Revise,
    step: usize,
    asked: &[Option<Prompt>],
    cx: &dyn Reporter,
) -> Result<Vec<Option<Written>>> {
    let room = room(&loaded.model, params.max_new_tokens);
    let mut prompts = Vec::new();
    let mut places = Vec::new();
    for (index, prompt) in asked.iter().enumerate() {
        let Some(prompt) = prompt else { continue };
        let ids = loaded.encoder.encode_prompt(prompt)?;
        if ids.len() <= room {
            places.push(index);
            prompts.push(ml::generate::Prompt {
                tokens: ids.into_iter().map(i64::from).collect(),
                draw: (3 * index + step) as u64,
            });
        }
    }
    let mut written = vec![None; asked.len()];
    if prompts.is_empty() {
        return Ok(written);
    }
    let manner = Manner {
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        seed: params.seed,
        max_new_tokens: params.max_new_tokens,
        batch: params.batch,
    };
    let found = answer(loaded, &prompts, &manner.options(loaded), cx)?;
    for (index, generated) in places.into_iter().zip(found) {
        written[index] = Some(Written {
            text: text(loaded, &generated)?,
            finished: generated.finished,
            tokens: generated.tokens.len(),
        });
    }
    Ok(written)
}

/// The next prompt: what was asked, what the model said, and a request about that.
fn after(prompt: &Prompt, said: &str, request: &str) -> Prompt {
    match prompt {
        Prompt::Text(text) => Prompt::Text(format!("{text}{}\n\n{request}\n\n", said.trim_end())),
        Prompt::Chat(turns) => {
            let next = [
                Message::new("assistant", said),
                Message::new("user", request),
            ];
            Prompt::Chat([&turns[..], &next].concat())
        }
    }
}

/// The pair of an answer and its revision, or why there is none.
fn pair(prompt: &Prompt, answer: &str, revision: Option<&str>) -> Result<Row, &'static str> {
    let revision = revision.ok_or(ROOM)?.trim();
    if revision.is_empty() {
        return Err(EMPTY);
    }
    if revision == answer.trim() {
        return Err(SAME);
    }
    let before = match prompt {
        Prompt::Text(_) => &answer[..answer.len() - answer.trim_start().len()],
        Prompt::Chat(_) => "",
    };
    Ok(Row::Preference {
        prompt: prompt.clone(),
        chosen: format!("{before}{revision}"),
        rejected: answer.to_owned(),
        margin: None,
    })
}

/// Shows people a pair.
fn sample(line: &Line<'_>, cx: &dyn Reporter) {
    let text = format!(
        "answer: {}\ncritique: {}\nrevision: {}",
        line.answer,
        line.critique.unwrap_or_default(),
        line.revision.unwrap_or_default()
    );
    cx.emit(What::Sample {
        title: line.prompt.question().to_owned(),
        text,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_follow_what_was_said() {
        let plain = after(&Prompt::Text("2 + 2 is".to_owned()), " five. ", "Why not?");
        assert_eq!(
            plain,
            Prompt::Text("2 + 2 is five.\n\nWhy not?\n\n".to_owned())
        );
        let asked = Prompt::Chat(vec![Message::new("user", "2 + 2?")]);
        let Prompt::Chat(turns) = after(&asked, "five", "Why not?") else {
            panic!("a conversation stays one")
        };
        let roles: Vec<_> = turns.iter().map(|turn| turn.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "user"]);
        assert_eq!(turns[2].content, "Why not?");
    }

    #[test]
    fn white_space_tells_no_revision_from_its_answer() {
        let plain = Prompt::Text("2 + 2 is".to_owned());
        let Ok(Row::Preference {
            chosen, rejected, ..
        }) = pair(&plain, " five", Some("\n\nfour\n"))
        else {
            panic!("there is a pair")
        };
        assert_eq!((chosen.as_str(), rejected.as_str()), (" four", " five"));
        assert_eq!(pair(&plain, " five", Some("\nfive ")).unwrap_err(), SAME);
        assert_eq!(pair(&plain, " five", Some(" \n")).unwrap_err(), EMPTY);
        assert_eq!(pair(&plain, " five", None).unwrap_err(), ROOM);
    }
}

//! What a run looks like in plain lines, from a stream of events.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use engine::diagnostic::{Place, SourceText};
use engine::digest::Digest;
use engine::event::{Event, Level, Sink, What};
use engine::plan::Verdict;

use super::{Detail, Terminal};
use crate::style::Style;

const RECIPE: &str =
    "levain: 1\nstages:\n  rows: { kind: split, data: chat }\n  sft: { kind: sft, data: rows }\n";

/// The place of `text` in the recipe.
fn at(text: &str) -> Option<Place> {
    let start = RECIPE.find(text).unwrap();
    let before = &RECIPE[..start];
    Some(Place {
        file: "recipe.yaml".to_owned(),
        line: before.matches('\n').count() + 1,
        column: start - before.rfind('\n').unwrap(),
        start,
        end: start + text.len(),
        option: 0,
    })
}

fn told(detail: Detail, events: Vec<(u64, &str, What)>) -> String {
    let sources = vec![SourceText {
        name: "recipe.yaml".to_owned(),
        text: RECIPE.to_owned(),
    }];
    told_of(sources, detail, events)
}

fn told_of(sources: Vec<SourceText>, detail: Detail, events: Vec<(u64, &str, What)>) -> String {
    let text = Arc::new(Mutex::new(String::new()));
    let writer = text.clone();
    let kinds = [
        ("sft", "sft"),
        ("rows", "split"),
        ("sft › tokens", "tokens"),
    ]
    .map(|(n, k)| (n.to_owned(), k.to_owned()))
    .into();
    let write = Box::new(move |line: &str| writer.lock().unwrap().push_str(line));
    let lines = super::Lines::new(write, detail != Detail::Quiet);
    let mut terminal =
        Terminal::with(kinds, Style::default(), detail, Box::new(lines)).pointing_into(sources);
    for (at, stage, what) in events {
        terminal.emit(&Event {
            at,
            stage: (!stage.is_empty()).then(|| stage.to_owned()),
            what,
        });
    }
    drop(terminal);
    text.lock().unwrap().clone()
}

fn key() -> Digest {
    Digest::of_bytes(b"key")
}

fn planned(stages: &[(&str, Verdict)]) -> What {
    What::Planned {
        recipe: "r".to_owned(),
        stages: stages.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect(),
    }
}

fn ended() -> What {
    What::Ended {
        ran: 1,
        hits: 1,
        failed: 0,
        waiting: 0,
        skipped: 0,
        milliseconds: 9,
    }
}

fn progress(done: u64) -> What {
    What::Progress {
        done,
        total: 60,
        unit: "steps".to_owned(),
        rate: Some((731.4, "tokens/s".to_owned())),
    }
}

fn run() -> Vec<(u64, &'static str, What)> {
    let metrics = |step, loss| What::Metrics {
        step,
        values: BTreeMap::from([("loss".to_owned(), loss)]),
    };
    vec![
        (
            0,
            "",
            planned(&[
                ("rows", Verdict::Cached),
                ("sft › tokens", Verdict::MayRun),
                ("sft", Verdict::WillRun),
            ]),
        ),
        (1, "rows", What::Hit { key: key() }),
        (1, "sft › tokens", What::Hit { key: key() }),
        (
            2,
            "sft",
            What::Started {
                kind: "sft".to_owned(),
                key: key(),
            },
        ),
        (1000, "sft", progress(1)),
        (2000, "sft", progress(2)),
        (6500, "sft", metrics(12, 1.23456)),
        (7000, "sft", progress(13)),
        (7100, "sft", progress(14)),
        (
            8000,
            "sft",
            What::Note {
                level: Level::Warning,
                text: "2 rows are longer than 512 tokens".to_owned(),
            },
        ),
        (
            60_002,
            "sft",
            What::Finished {
                outputs: BTreeMap::new(),
                milliseconds: 60_000,
            },
        ),
        (60_010, "", ended()),
    ]
}

#[test]
fn a_run_is_told_in_lines() {
    insta::assert_snapshot!(told(Detail::Usual, run()), @r"
    = rows          split           cached
    = sft › tokens  tokens          cached: its inputs came out as before
    · sft           sft             begins
      sft: 2/60 steps, 731 tokens/s, loss 1.2346, 5 min 19 s left
    warning: sft: 2 rows are longer than 512 tokens
    ✓ sft           sft             1 min 00 s  731 tokens/s, loss 1.2346
    ");
}

#[test]
fn a_quiet_run_tells_warnings_and_failures_only() {
    let mut events = run();
    events.insert(
        10,
        (
            8100,
            "sft",
            What::Failed {
                error: "the disk is full\nfree some space".to_owned(),
                place: at("sft"),
            },
        ),
    );
    events.truncate(11);
    insta::assert_snapshot!(told(Detail::Quiet, events), @r"
    warning: sft: 2 rows are longer than 512 tokens
    error[stage-failed]: `sft`: the disk is full
                         free some space
     --> recipe.yaml:4:3
      |
    4 |   sft: { kind: sft, data: rows }
      |   ^^^
    ");
}

/// A run that fails at the place.
fn failing(place: Option<Place>) -> Vec<(u64, &'static str, What)> {
    vec![
        (
            0,
            "",
            planned(&[("rows", Verdict::WillRun), ("sft", Verdict::MayRun)]),
        ),
        (
            0,
            "rows",
            What::Started {
                kind: "split".to_owned(),
                key: key(),
            },
        ),
        (
            1500,
            "rows",
            What::Failed {
                error: "rows.jsonl:3: not JSON\n  expected `,`".to_owned(),
                place,
            },
        ),
        (
            1501,
            "sft",
            What::Skipped {
                reason: "`rows` failed".to_owned(),
            },
        ),
        (1502, "", ended()),
    ]
}

#[test]
fn failures_are_drawn_whole_and_what_follows_is_skipped() {
    insta::assert_snapshot!(told(Detail::Usual, failing(at("chat"))), @r"
    · rows      split           begins
    ✗ rows      split           failed after 1.5 s
        error[stage-failed]: `rows`: rows.jsonl:3: not JSON
                               expected `,`
         --> recipe.yaml:3:30
          |
        3 |   rows: { kind: split, data: chat }
          |                              ^^^^
    – sft       sft             skipped: `rows` failed
    ");
}

#[test]
fn without_the_text_a_failure_says_its_place_and_without_a_place_what_it_is() {
    insta::assert_snapshot!(told_of(Vec::new(), Detail::Usual, failing(at("chat"))), @r"
    · rows      split           begins
    ✗ rows      split           failed after 1.5 s
        error[stage-failed]: `rows`: rows.jsonl:3: not JSON
                               expected `,`
         --> recipe.yaml:3:30
    – sft       sft             skipped: `rows` failed
    ");
    insta::assert_snapshot!(told(Detail::Usual, failing(None)), @r"
    · rows      split           begins
    ✗ rows      split           failed after 1.5 s
        error[stage-failed]: `rows`: rows.jsonl:3: not JSON
                               expected `,`
    – sft       sft             skipped: `rows` failed
    ");
}

#[test]
fn many_hits_are_one_line() {
    let names: Vec<String> = (0..1000).map(|i| format!("s{i}")).collect();
    let mut events = vec![(
        0,
        "",
        planned(
            &names
                .iter()
                .map(|n| (n.as_str(), Verdict::Cached))
                .collect::<Vec<_>>(),
        ),
    )];
    events.extend(
        names
            .iter()
            .map(|n| (1, n.as_str(), What::Hit { key: key() })),
    );
    events.push((2, "", ended()));
    assert_eq!(told(Detail::Usual, events), "= 1,000 stages in the cache\n");
}

#[test]
fn the_last_line_has_the_mean_speed() {
    let mut track = super::track::Track::new("sft", "sft", 0, 8);
    let tokens = |rate: f64| Some((rate, "tokens/s".to_owned()));
    track.progress(1000, 1, 3, "steps", tokens(300.0));
    track.progress(4000, 2, 3, "steps", tokens(100.0));
    assert_eq!(track.last_words().as_deref(), Some("150 tokens/s"));
}

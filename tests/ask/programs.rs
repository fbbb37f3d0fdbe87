//! Programs as judges: they run when they are allowed to, and what they do wrong is told.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::watch::{count, ended, gone, signal, until};
use super::support::{Kitchen, Said};
use super::{answers, kept, kitchen, numbers, recipe, scores};

/// Rates by the number of words, compares by it; and does what MODE says with the fourth question.
const JUDGE: &str = r#"
import json, os, sys, time
mode = os.environ.get("MODE", "")
questions = [json.loads(line) for line in sys.stdin]
with open(os.environ["LOG"], "a") as log:
    log.write(f"{len(questions)} {os.getpid()}\n")
for number, question in enumerate(questions):
    name = question["id"]
    if number == 3:
        if mode == "dies":
            print("out of flour", file=sys.stderr)
            sys.exit(7)
        if mode == "leaves":
            sys.exit(0)
        if mode == "sleeps":
            time.sleep(60)
        lines = {
            "nonsense": "I like this one",
            "stranger": json.dumps({"id": "somebody", "score": 3}),
            "twice": json.dumps({"id": questions[0]["id"], "score": 3}),
            "high": json.dumps({"id": name, "score": 11}),
            "nan": json.dumps({"id": name, "score": float("nan")}),
            "words": json.dumps({"id": name, "score": "good"}),
        }
        if mode in lines:
            print(lines[mode])
            continue
    if "completion" in question:
        print(json.dumps({"id": name, "score": len(question["completion"].split())}))
    else:
        a, b = len(question["a"].split()), len(question["b"].split())
        print(json.dumps({"id": name, "winner": "a" if a > b else "b" if b > a else "tie", "why": [a, b]}))
if mode == "stays":
    time.sleep(60)
"#;

const RUBRIC: &str = "samples: tries, how: rubric, program: [python3], script: judge.py";

fn with_judge() -> Kitchen {
    let kitchen = kitchen();
    kitchen.write("judge.py", JUDGE);
    kitchen
}

/// `levain` with these words, for a judge of this mode.
fn command(kitchen: &Kitchen, words: &str, mode: &str) -> Command {
    let mut command = kitchen.command(&words.split(' ').collect::<Vec<_>>());
    command
        .env("MODE", mode)
        .env("LOG", kitchen.path().join("log"));
    command
}

/// How many questions each start of the judge got, and the process that it was.
fn log(kitchen: &Kitchen) -> Vec<(usize, u32)> {
    let text = std::fs::read_to_string(kitchen.path().join("log")).unwrap_or_default();
    let line = |line: &str| {
        let (questions, process) = line.split_once(' ').unwrap();
        (questions.parse().unwrap(), process.parse().unwrap())
    };
    text.lines().map(line).collect()
}

const RUN: &str = "run asked.yaml --json --allow-programs";

#[test]
fn a_program_rates_and_compares() {
    let kitchen = with_judge();
    recipe(&kitchen, RUBRIC, "");
    let answer = Said::of(&mut command(&kitchen, RUN, "")).expect(0).json();
    let found: Vec<f64> = scores(&kitchen, &answer).iter().map(|row| row.2).collect();
    assert_eq!(found, [1.0, 2.0, 3.0, 4.0].repeat(3));
    assert_eq!(
        numbers(&kitchen, &answer),
        json!({ "calls": 12, "retries": 0, "score": 2.5 })
    );
    recipe(
        &kitchen,
        "samples: { sft: sft, dpo: dpo }, program: [python3, \"{script}\", unused], script: judge.py",
        "",
    );
    let answer = Said::of(&mut command(&kitchen, RUN, "")).expect(0).json();
    let found = numbers(&kitchen, &answer);
    assert_eq!(found["dpo"]["win_rate"], 4.0 / 6.0);
    assert_eq!(
        (&found["comparisons"], &found["inconsistent"]),
        (&json!(5), &json!(0.0))
    );
    // The program's own line is kept, with what it says besides.
    let first = answers(&kitchen.cache(), &answer)[0]["answer"].clone();
    let first: serde_json::Value = serde_json::from_str(first.as_str().unwrap()).unwrap();
    assert_eq!(
        (&first["winner"], &first["why"]),
        (&json!("b"), &json!([1, 2]))
    );
    assert_eq!(
        log(&kitchen).iter().map(|l| l.0).collect::<Vec<_>>(),
        [12, 10]
    );
}

#[test]
fn a_program_runs_only_when_it_is_allowed_to() {
    let kitchen = with_judge();
    recipe(&kitchen, RUBRIC, "");
    let said = Said::of(&mut command(&kitchen, "run asked.yaml", "")).expect(2);
    for part in [
        "the stage `asked` runs the program `python3 judge.py`",
        "asked.yaml:9:61",
        "--allow-programs",
        "LEVAIN_ALLOW_PROGRAMS=1",
    ] {
        assert!(said.err.contains(part), "{part:?} is not in\n{}", said.err);
    }
    // No stage has run before it, and there was no run.
    let cache = kitchen.cache();
    assert_eq!(
        (count(&cache.join("entries")), count(&cache.join("runs"))),
        (0, 0)
    );
    assert!(log(&kitchen).is_empty());
    // What it does not need runs.
    Said::of(&mut command(&kitchen, "run asked.yaml sft", "")).expect(0);
    let said = Said::of(&mut command(&kitchen, "check asked.yaml", "")).expect(0);
    assert!(
        said.out.contains(
            "asked: runs the program `python3 judge.py`, with `levain run --allow-programs` only"
        ),
        "{}",
        said.out
    );
    let said = Said::of(&mut command(&kitchen, "check asked.yaml --json", "")).expect(0);
    assert_eq!(
        said.json()["programs"],
        json!({ "asked": "python3 judge.py" })
    );
    let said = Said::of(&mut command(&kitchen, "plan asked.yaml", "")).expect(0);
    assert!(
        said.out.contains("--allow-programs") && said.out.contains("  asked: python3 judge.py"),
        "{}",
        said.out
    );
    let allowed = |value: &str| {
        Said::of(command(&kitchen, "run asked.yaml", "").env("LEVAIN_ALLOW_PROGRAMS", value))
    };
    let said = allowed("yes").expect(2);
    assert!(
        said.err.contains("LEVAIN_ALLOW_PROGRAMS is 1"),
        "{}",
        said.err
    );
    allowed("0").expect(2);
    allowed("1").expect(0);
    assert_eq!(log(&kitchen).len(), 1);
    // What is in the cache runs nothing.
    Said::of(&mut command(&kitchen, "run asked.yaml", "")).expect(0);
    let said = Said::of(&mut command(&kitchen, "plan asked.yaml", "")).expect(0);
    assert!(!said.out.contains("--allow-programs"), "{}", said.out);
    Said::of(&mut command(&kitchen, "run asked.yaml --force asked", "")).expect(2);
    assert_eq!(log(&kitchen).len(), 1);
}

#[test]
fn another_script_is_another_judge() {
    let kitchen = with_judge();
    recipe(&kitchen, RUBRIC, "");
    Said::of(&mut command(&kitchen, RUN, "")).expect(0);
    kitchen.write(
        "judge.py",
        &JUDGE.replace("len(question[\"completion\"].split())", "1"),
    );
    let said = Said::of(&mut command(&kitchen, "why asked.yaml asked", "")).expect(0);
    assert!(said.out.contains("script"), "{}", said.out);
    let answer = Said::of(&mut command(&kitchen, RUN, "")).expect(0).json();
    assert_eq!(numbers(&kitchen, &answer)["score"], 1.0);
    assert_eq!(log(&kitchen).len(), 2);
    // A script among the words would change unseen.
    recipe(&kitchen, "samples: tries, program: [python3, judge.py]", "");
    let said = Said::of(&mut command(&kitchen, "check asked.yaml", "")).expect(2);
    assert!(
        said.err.contains("name it with `script: judge.py`"),
        "{}",
        said.err
    );
}

#[test]
fn a_program_that_dies_loses_no_answer() {
    let kitchen = with_judge();
    recipe(&kitchen, RUBRIC, "");
    let said = Said::of(&mut command(&kitchen, RUN, "dies")).expect(1);
    for part in [
        "ended (exit status: 7) with 9 of 12 questions open",
        "its standard error ends with\n  out of flour",
        "3 of 12 answers are kept: the next run asks for the others only",
    ] {
        let failure = said.json()["failures"][0]["error"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(failure.contains(part), "{part:?} is not in\n{failure}");
    }
    assert_eq!(kept(&kitchen), 3);
    // Nor does cleaning up.
    kitchen
        .say("cache gc --older-than 0 --keep-runs 1")
        .expect(0);
    let said = Said::of(&mut command(&kitchen, RUN, "")).expect(0);
    assert_eq!(
        log(&kitchen).iter().map(|l| l.0).collect::<Vec<_>>(),
        [12, 9]
    );
    let found: Vec<f64> = scores(&kitchen, &said.json())
        .iter()
        .map(|row| row.2)
        .collect();
    assert_eq!(found, [1.0, 2.0, 3.0, 4.0].repeat(3));
}

#[test]
fn what_a_program_does_wrong_is_told() {
    let kitchen = with_judge();
    recipe(&kitchen, RUBRIC, "");
    for (mode, wanted) in [
        (
            "leaves",
            "ended (exit status: 0) with 9 of 12 questions open; it wrote nothing to standard error",
        ),
        (
            "nonsense",
            "an answer is a JSON object with the `id` of its question, and it wrote \"I like this one\"",
        ),
        ("stranger", "the `id` \"somebody\" is no question"),
        ("twice", "is answered already"),
        (
            "high",
            "the score must be a number from 1 to 10, and 11 is not",
        ),
        ("nan", "an answer is a JSON object"),
        (
            "words",
            "{\"id\": …, \"score\": 7} was expected: there is no number `score`",
        ),
    ] {
        let words = format!("{RUN} --cache {mode}");
        let said = Said::of(&mut command(&kitchen, &words, mode)).expect(1);
        let failure = said.json()["failures"][0]["error"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            failure.contains(wanted),
            "{mode}: {wanted:?} is not in\n{failure}"
        );
        assert!(
            failure.contains("3 of 12 answers are kept"),
            "{mode}: {failure}"
        );
    }
    recipe(&kitchen, "samples: tries, program: [no-such-judge]", "");
    let said = Said::of(&mut command(&kitchen, RUN, "")).expect(1);
    let failure = said.json()["failures"][0]["error"].to_string();
    assert!(
        failure.contains("the program `no-such-judge` can't be started"),
        "{failure}"
    );
}

#[test]
fn a_program_that_does_not_go_on_is_ended() {
    let kitchen = with_judge();
    recipe(&kitchen, &format!("{RUBRIC}, timeout_seconds: 2"), "");
    let begun = Instant::now();
    let said = Said::of(&mut command(&kitchen, RUN, "sleeps")).expect(1);
    let failure = said.json()["failures"][0]["error"].to_string();
    assert!(
        failure.contains("has written nothing for 2 s, and 9 of 12 questions are open"),
        "{failure}"
    );
    assert_eq!(kept(&kitchen), 3);
    let said = Said::of(&mut command(&kitchen, RUN, "stays")).expect(0);
    assert!(
        said.err.contains("has answered everything and did not end"),
        "{}",
        said.err
    );
    assert!(begun.elapsed() < Duration::from_secs(40));
    // Ctrl-C to the engine alone, while the program says nothing.
    let mut child = command(
        &kitchen,
        "run asked.yaml -q --allow-programs --cache other",
        "sleeps",
    )
    .spawn()
    .unwrap();
    until(&mut child, || (log(&kitchen).len() == 3).then_some(()))
        .expect("the run ended by itself");
    signal(child.id() as i32, libc::SIGINT);
    assert_eq!(ended(&mut child).code(), Some(130));
    for (_, process) in log(&kitchen) {
        gone(process);
    }
}

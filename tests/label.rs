//! People as judges: a run waits for them, `levain label` asks them, and what they answered outlives kills, renames and edits.

#[path = "label/comparisons.rs"]
mod comparisons;
mod support;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::artifacts::{outputs, stage};
use support::{Kitchen, files, text};

/// Four prompts with two completions each; `chosen` is the one whose text is longer.
fn pairs() -> String {
    let row = |i: usize| {
        format!(
            "{{\"prompt\": \"How is loaf {i}?\", \"chosen\": \"loaf {i} is fine\", \"rejected\": \"loaf {i}\"}}\n"
        )
    };
    (0..4).map(row).collect()
}

const RECIPE: &str = "\
levain: 1
seed: 17
stages:
  rows: { kind: load_dataset, source: pairs.jsonl, format: preference }
  asked: { kind: label, samples: rows, question: Which is longer?, annotators: [anna, ben] }
";

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    kitchen.write("pairs.jsonl", &pairs());
    kitchen.write("label.yaml", RECIPE);
    kitchen
}

/// What `name` would be asked, in that order: (id, completions as shown).
fn shown(kitchen: &Kitchen, recipe: &str, name: &str) -> Vec<(String, Vec<String>)> {
    let file = kitchen.path().join("shown.jsonl");
    let _ = fs::remove_file(&file);
    kitchen
        .say(&format!(
            "label {recipe} asked --as {name} --export shown.jsonl"
        ))
        .expect(0);
    let lines = fs::read_to_string(file).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let completions = line["completions"].as_array().unwrap().iter().map(text);
        (text(&line["id"]), completions.collect())
    };
    lines.lines().map(line).collect()
}

/// The lines by which somebody says that the longer one is better.
fn longer(shown: &[(String, Vec<String>)]) -> String {
    let better = |(_, texts): &(String, Vec<String>)| match texts[0].len() > texts[1].len() {
        true => "1\n",
        false => "2\n",
    };
    shown.iter().map(better).collect()
}

/// The files of answers in the cache.
fn answers(kitchen: &Kitchen) -> Vec<PathBuf> {
    files(&kitchen.cache().join("answers"))
}

/// The rows of the stage `asked` as (completion, score), and its metrics.
fn made(kitchen: &Kitchen, answer: &Value, name: &str) -> (Vec<(String, f64)>, Value) {
    let all = outputs(&kitchen.cache(), stage(answer, name), 0);
    let rows = all["rows"]["files"]["rows.arrow"].as_array().unwrap();
    let row = |row: &Value| (text(&row["completion"]), row["score"].as_f64().unwrap());
    (
        rows.iter().map(row).collect(),
        all["metrics"]["summary"].clone(),
    )
}

fn outcome(answer: &Value, name: &str) -> String {
    text(&stage(answer, name)["outcome"])
}

/// Waits until a file of answers has so many lines.
fn until_lines(child: &mut Child, file: &std::path::Path, count: usize) {
    let begin = Instant::now();
    while fs::read_to_string(file).map_or(0, |text| text.lines().count()) < count {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "no answer was written"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_run_waits_until_everybody_has_answered_and_a_kill_loses_nothing() {
    let kitchen = kitchen();
    let said = kitchen.say("run label.yaml").expect(3);
    assert!(
        said.err.contains(
            "0 of 8 comparisons are answered (anna 0 of 4, ben 0 of 4): `levain label label.yaml asked`"
        ),
        "{}",
        said.err
    );
    assert!(
        said.out
            .contains("waiting: `asked`: people go on with `levain label label.yaml asked`"),
        "{}",
        said.out
    );

    // Anna answers two, and is killed.
    let lines = longer(&shown(&kitchen, "label.yaml", "anna"));
    let mut child = kitchen
        .command(&["label", "label.yaml", "asked", "--as", "anna"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let first: String = lines.lines().take(2).map(|l| format!("{l}\n")).collect();
    let mut input = child.stdin.take().unwrap();
    input.write_all(first.as_bytes()).unwrap();
    let file = loop {
        if let Some(file) = answers(&kitchen).into_iter().next() {
            break file;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(file.ends_with("anna.jsonl"));
    until_lines(&mut child, &file, 2);

    // Meanwhile nobody else can answer as anna, but ben can.
    let other = kitchen
        .tell("label label.yaml asked --as anna", "1\n")
        .expect(2);
    assert!(
        other
            .err
            .contains("somebody is answering as `anna` just now"),
        "{}",
        other.err
    );
    let ben = longer(&shown(&kitchen, "label.yaml", "ben"));
    let said = kitchen
        .tell("label label.yaml asked --as ben", &ben)
        .expect(3);
    assert!(
        said.out.contains("2 of 4")
            && said
                .out
                .contains("Next: levain label label.yaml asked --as anna"),
        "{}",
        said.out
    );
    child.kill().unwrap();
    child.wait().unwrap();
    drop(input);

    // A line that the kill might have cut off is not an answer, and goes away.
    let mut torn = fs::read_to_string(&file).unwrap();
    torn.push_str("{\"id\":\"0123");
    fs::write(&file, &torn).unwrap();
    let said = kitchen.say("run label.yaml").expect(3);
    assert!(
        said.err.contains("the last answer of anna was cut off"),
        "{}",
        said.err
    );
    assert!(
        said.err
            .contains("6 of 8 comparisons are answered (anna 2 of 4, ben 4 of 4)"),
        "{}",
        said.err
    );

    let rest = longer(&shown(&kitchen, "label.yaml", "anna"));
    assert_eq!(
        rest,
        lines
            .lines()
            .skip(2)
            .map(|l| format!("{l}\n"))
            .collect::<String>()
    );
    let said = kitchen
        .tell("label label.yaml asked --as anna", &rest)
        .expect(0);
    assert!(said.err.contains("was cut off"), "{}", said.err);
    assert!(
        said.out
            .contains("agreement 100.0 %, kappa 1.00, over 4 pairs"),
        "{}",
        said.out
    );
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 4);

    // A collection of what is not needed takes no answer away.
    kitchen
        .say("cache gc --older-than 0 --keep-runs 0")
        .expect(0);
    assert_eq!(answers(&kitchen).len(), 2);

    let answer = kitchen.say("run label.yaml --json").expect(0).json();
    let (rows, metrics) = made(&kitchen, &answer, "asked");
    let expected = |i: usize| {
        [
            (format!("loaf {i} is fine"), 1.0),
            (format!("loaf {i}"), 0.0),
        ]
    };
    assert_eq!(rows, (0..4).flat_map(expected).collect::<Vec<_>>());
    for (name, value) in [
        ("comparisons", json!(4)),
        ("answered", json!(8)),
        ("skipped", json!(0)),
        ("ties", json!(0)),
        ("pairs", json!(4)),
        ("agreement", json!(1.0)),
        ("kappa", json!(1.0)),
    ] {
        assert_eq!(metrics[name], value, "{name}");
    }
    assert_eq!(metrics["annotators"]["ben"]["answered"], 4);

    // Again, and under another name: nothing is asked.
    let again = kitchen.say("run label.yaml --json").expect(0).json();
    assert_eq!(again["counts"]["ran"], 0);
    kitchen.write(
        "label.yaml",
        &RECIPE.replace("  asked:", "  # renamed\n  judged:"),
    );
    let renamed = kitchen.say("run label.yaml --json").expect(0).json();
    assert_eq!(outcome(&renamed, "judged"), "hit");
    assert_eq!(made(&kitchen, &renamed, "judged").0, rows);
    let shown = kitchen.say("show label.yaml judged.metrics").expect(0);
    assert!(shown.out.contains("kappa"), "{}", shown.out);
    kitchen.say("cache verify").expect(0);
}

#[test]
fn more_annotators_and_a_higher_limit_ask_only_for_what_is_new() {
    let kitchen = kitchen();
    let recipe = |limit: &str, annotators: &str, question: &str| {
        let recipe = RECIPE
            .replace("[anna, ben]", &format!("{annotators}{limit}"))
            .replace("Which is longer?", question);
        kitchen.write("label.yaml", &recipe);
    };
    recipe(", limit: 2", "anna", "Which is longer?");
    kitchen.say("run label.yaml").expect(3);
    let few = shown(&kitchen, "label.yaml", "anna");
    assert_eq!(few.len(), 2);
    kitchen
        .tell("label label.yaml asked", &longer(&few))
        .expect(0);
    let first = kitchen.say("run label.yaml --json").expect(0).json();
    assert_eq!(made(&kitchen, &first, "asked").0.len(), 4);

    recipe("", "[anna, ben]", "Which is longer?");
    let said = kitchen.say("run label.yaml").expect(3);
    assert!(
        said.err
            .contains("2 of 8 comparisons are answered (anna 2 of 4, ben 0 of 4)"),
        "{}",
        said.err
    );
    // Another question is another matter.
    recipe("", "[anna, ben]", "Which is kinder?");
    let said = kitchen.say("run label.yaml").expect(3);
    assert!(
        said.err.contains("0 of 8 comparisons are answered"),
        "{}",
        said.err
    );
    // And back again: what was answered under the first question is a hit.
    recipe(", limit: 2", "anna", "Which is longer?");
    let again = kitchen.say("run label.yaml --json").expect(0).json();
    assert_eq!(again["counts"]["ran"], 0);
}

#[test]
fn answers_are_taken_back_skipped_and_given_anew() {
    let kitchen = kitchen();
    kitchen.write("label.yaml", &RECIPE.replace("[anna, ben]", "you"));
    kitchen.say("run label.yaml rows").expect(0);
    // Five answers, one of them taken back, one skipped; the run has not waited yet.
    let all = shown(&kitchen, "label.yaml", "you");
    let said = kitchen
        .tell("label label.yaml asked", "=\nu\ns\n\n1\n=\n2\n")
        .expect(0);
    assert!(
        said.out.contains("4 of 4")
            && said.out.contains("1 equal")
            && said.out.contains("1 skipped"),
        "{}",
        said.out
    );
    assert!(
        said.out.contains("Next: levain run label.yaml"),
        "{}",
        said.out
    );
    let answer = kitchen.say("run label.yaml --json").expect(0).json();
    let (rows, metrics) = made(&kitchen, &answer, "asked");
    let score = |text: &String| {
        rows.iter()
            .find(|(known, _)| known == text)
            .map(|(_, score)| *score)
    };
    let scores: Vec<_> = all
        .iter()
        .map(|(_, texts)| [score(&texts[0]), score(&texts[1])])
        .collect();
    let expected = [
        [None, None],
        [Some(1.0), Some(0.0)],
        [Some(0.5), Some(0.5)],
        [Some(0.0), Some(1.0)],
    ];
    assert_eq!(scores, expected);
    assert_eq!(
        (&metrics["skipped"], &metrics["answered"]),
        (&json!(1), &json!(3))
    );
    assert_eq!(metrics.get("kappa"), None);

    // Taken back after the rows are made: they stay, until a run is told to read the answers again.
    kitchen.tell("label label.yaml asked", "u\n1\n").expect(0);
    let again = kitchen.say("run label.yaml --json").expect(0).json();
    assert_eq!(outcome(&again, "asked"), "hit");
    let forced = kitchen
        .say("run label.yaml --json --force asked")
        .expect(0)
        .json();
    assert_eq!(outcome(&forced, "asked"), "done");
    let (rows, _) = made(&kitchen, &forced, "asked");
    assert_eq!(
        rows.iter()
            .find(|(text, _)| *text == all[3].1[0])
            .unwrap()
            .1,
        1.0
    );

    // Everything skipped leaves nothing.
    kitchen.write(
        "label.yaml",
        &RECIPE
            .replace("[anna, ben]", "you")
            .replace("longer", "darker"),
    );
    kitchen
        .tell("label label.yaml asked", "s\ns\ns\ns\n")
        .expect(0);
    let said = kitchen.say("run label.yaml").expect(1);
    assert!(
        said.err
            .contains("nothing is left: every comparison was skipped"),
        "{}",
        said.err
    );
}

#[test]
fn answers_come_from_files_and_go_to_files() {
    let kitchen = kitchen();
    kitchen.say("run label.yaml").expect(3);
    let all = shown(&kitchen, "label.yaml", "anna");
    let line = |(id, texts): &(String, Vec<String>), answer: Value| {
        json!({ "id": id, "completions": texts, "answer": answer, "seconds": 3 }).to_string() + "\n"
    };
    // One is answered at the desk; the file answers it again, another with the sides turned, one as a number, one not.
    kitchen
        .tell("label label.yaml asked --as anna", "1\n")
        .expect(3);
    let mut turned = all[1].clone();
    turned.1.reverse();
    let file = line(&all[0], json!("2"))
        + &line(&turned, json!("1"))
        + &line(&all[2], json!(2))
        + &line(&all[3], Value::Null);
    kitchen.write("done.jsonl", &file);
    let import = "label label.yaml asked --as anna --import done.jsonl";
    let said = kitchen.say(import).expect(3);
    assert!(
        said.out.starts_with("done.jsonl: 2 new answers, 1 already answered otherwise, which stays as it is, 1 without an answer\n"),
        "{}",
        said.out
    );
    let answer = kitchen.say(&format!("{import} --json")).expect(3).json();
    assert_eq!(
        answer["imported"],
        json!({ "new": 0, "already_answered": 2, "answered_otherwise": 1, "open": 1 })
    );
    assert_eq!(answer["open"], json!({ "anna": 1, "ben": 4 }));
    assert_eq!(shown(&kitchen, "label.yaml", "anna"), [all[3].clone()]);

    kitchen
        .tell("label label.yaml asked --as anna", "=\n")
        .expect(3);
    let ben = shown(&kitchen, "label.yaml", "ben");
    kitchen.write(
        "ben.jsonl",
        &ben.iter()
            .map(|one| line(one, json!("s")))
            .collect::<String>(),
    );
    kitchen
        .say("label label.yaml asked --as ben --import ben.jsonl")
        .expect(0);
    let answer = kitchen.say("run label.yaml --json").expect(0).json();
    let (rows, metrics) = made(&kitchen, &answer, "asked");
    let score = |text: &String| rows.iter().find(|(known, _)| known == text).unwrap().1;
    let scores: Vec<f64> = all.iter().map(|(_, texts)| score(&texts[0])).collect();
    assert_eq!(scores, [1.0, 0.0, 0.0, 0.5]);
    // They have no pair in common about which both said something.
    assert_eq!(
        (&metrics["pairs"], &metrics["kappa"]),
        (&json!(0), &Value::Null)
    );

    // An exported file is not written over: somebody may have answered in it.
    let said = kitchen
        .say("label label.yaml asked --as ben --export ben.jsonl")
        .expect(2);
    assert!(said.err.contains("is there already"), "{}", said.err);
}

#[test]
fn what_can_not_be_an_answer_is_told_with_its_line() {
    let kitchen = kitchen();
    let early = kitchen.say("label label.yaml asked --as anna").expect(2);
    assert!(
        early
            .err
            .contains("has nothing to ask yet: depends on `rows`; `levain run label.yaml asked`"),
        "{}",
        early.err
    );
    kitchen.say("run label.yaml").expect(3);
    let refused = |words: &str, input: &str, why: &str| {
        let said = kitchen
            .tell(&format!("label label.yaml {words}"), input)
            .expect(2);
        assert!(said.err.contains(why), "{words}: {}", said.err);
    };
    refused(
        "asked",
        "1\n",
        "say who you are with `--as anna` or `--as ben`",
    );
    refused(
        "asked --as ana",
        "1\n",
        "`ana` is no annotator of `asked`: did you mean `anna`?",
    );
    refused("rows", "1\n", "`rows` is of the kind `load_dataset`");
    refused("askd", "1\n", "did you mean `asked`?");
    refused(
        "asked --as anna",
        "1\nboth\n2\n",
        "line 2: `both` is no answer: write `1` or `2`",
    );
    refused(
        "asked --as anna",
        "u\nu\n",
        "line 2: there is no answer to take back",
    );
    refused(
        "asked --as anna",
        "1\n1\n1\n1\n1\n",
        "line 5: everything is answered already",
    );

    let ben = shown(&kitchen, "label.yaml", "ben");
    let first = &ben[0].0;
    let texts = json!(ben[0].1);
    let good = format!("{{\"id\": \"{}\", \"answer\": \"1\"}}\n", ben[1].0);
    let cases = [
        (
            format!("{{\"id\": \"{first}\", \"answer\": \"3\"}}\n"),
            "line 2: `3` is no answer",
        ),
        (
            format!("{{\"id\": \"{first}\", \"answer\": true}}\n"),
            "line 2: `true` is no answer",
        ),
        (
            "{\"id\": \"0123456789abcdef\", \"answer\": \"1\"}\n".to_owned(),
            "line 2: this stage asks about no comparison 0123456789abcdef",
        ),
        (
            "{\"answer\": \"1\"}\n".to_owned(),
            "line 2: a JSON object with `id` and `answer` is expected",
        ),
        ("1,2\n".to_owned(), "line 2: a JSON object"),
        (
            format!(
                "{{\"id\": \"{first}\", \"completions\": [\"x\", \"y\"], \"answer\": \"1\"}}\n"
            ),
            "line 2: the completions are not those of the comparison",
        ),
        (
            format!(
                "{{\"id\": \"{first}\", \"completions\": [{0}, {0}], \"answer\": \"1\"}}\n",
                texts[0]
            ),
            "line 2: the completions are not those",
        ),
        (
            format!("{{\"id\": \"{}\", \"answer\": \"2\"}}\n", ben[1].0),
            "line 2: the comparison",
        ),
    ];
    for (line, why) in cases {
        kitchen.write("bad.jsonl", &(good.clone() + &line));
        refused("asked --as ben --import bad.jsonl", "", why);
        refused(
            "asked --as ben --import bad.jsonl",
            "",
            "bad.jsonl: nothing was imported",
        );
    }
    refused(
        "asked --as ben --import none.jsonl",
        "",
        "none.jsonl can't be read",
    );
    assert_eq!(shown(&kitchen, "label.yaml", "ben"), ben);

    // A damaged line in the middle of somebody's answers is not passed over.
    let file = answers(&kitchen)
        .into_iter()
        .find(|f| f.ends_with("anna.jsonl"))
        .unwrap();
    let whole = fs::read_to_string(&file).unwrap();
    for (damage, why) in [
        ("no\n", "this is no answer"),
        ("{\"id\":\"x\"}\n", "an answer has `ranks`"),
    ] {
        fs::write(&file, format!("{damage}{whole}")).unwrap();
        let said = kitchen.say("label label.yaml asked --status").expect(4);
        assert!(
            said.err.contains("anna.jsonl:1: ") && said.err.contains(why),
            "{}",
            said.err
        );
        let said = kitchen.say("run label.yaml").expect(1);
        assert!(said.err.contains("anna.jsonl:1: "), "{}", said.err);
    }
}

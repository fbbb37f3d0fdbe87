//! Models compared by people, orders, mistakes, and a terminal.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use serde_json::json;

use super::support::artifacts::{outputs, stage};
use super::support::{Kitchen, Said};
use super::*;

/// Six prompts that two models have answered; twice with the same words.
fn models(kitchen: &Kitchen) {
    let row = |i: usize, word: &str| {
        format!("{{\"prompt\": \"Bake {i}\", \"completion\": \"{word}\"}}\n")
    };
    let plain: String = (0..6).map(|i| row(i, &format!("bread {i}"))).collect();
    let tuned = (0..6).map(|i| match i {
        0 | 1 => row(i, &format!("bread {i}")),
        _ => row(i, &format!("bread {i} with butter")),
    });
    kitchen.write("plain.jsonl", &plain);
    kitchen.write("tuned.jsonl", &tuned.collect::<String>());
}

#[test]
fn two_models_are_compared_by_people_who_do_not_know_which_is_which() {
    let kitchen = Kitchen::new(0);
    models(&kitchen);
    kitchen.write(
        "label.yaml",
        "\
levain: 1
seed: 3
stages:
  plain: { kind: load_dataset, source: plain.jsonl }
  tuned: { kind: load_dataset, source: tuned.jsonl }
  asked: { kind: label, samples: { sft: plain, dpo: tuned }, annotators: [anna, ben, cleo] }
  passed: { kind: gate, input: asked.rows, metrics: asked.metrics, metric: dpo.win_rate, min: 0.5 }
",
    );
    kitchen.say("run label.yaml").expect(3);
    let mut first = Vec::new();
    for name in ["anna", "ben", "cleo"] {
        let all = shown(&kitchen, "label.yaml", name);
        assert_eq!(all.len(), 4);
        let exported = fs::read_to_string(kitchen.path().join("shown.jsonl")).unwrap();
        assert!(
            !exported.contains("sft") && !exported.contains("dpo"),
            "{exported}"
        );
        first.extend(all.iter().map(|(_, texts)| texts[0].contains("butter")));
        // Cleo likes the plain one, once.
        let mut lines = longer(&all);
        if name == "cleo" {
            let other = if lines.starts_with('1') { "2" } else { "1" };
            lines.replace_range(0..1, other);
        }
        kitchen.tell(&format!("label label.yaml asked --as {name}"), &lines);
    }
    assert!(first.contains(&true) && first.contains(&false));
    let answer = kitchen.say("run label.yaml --json").expect(0).json();
    let (rows, metrics) = made(&kitchen, &answer, "asked");
    assert_eq!(rows.len(), 8);
    // Per annotator two ties of equal texts and four answers; of the twelve answers the second model wins eleven.
    let won = (6.0 * 0.5 + 11.0) / 18.0;
    assert!(
        (metrics["dpo"]["win_rate"].as_f64().unwrap() - won).abs() < 1e-12,
        "{metrics}"
    );
    assert_eq!(metrics["sft"]["win_rate"], 0.5);
    // Of four pairs they all agree about three; about the other, one of three pairs of annotators.
    assert!((metrics["agreement"].as_f64().unwrap() - (3.0 + 1.0 / 3.0) / 4.0).abs() < 1e-12);
    assert_eq!(outcome(&answer, "passed"), "done");
}

#[test]
fn completions_are_put_into_an_order_with_ties() {
    let kitchen = Kitchen::new(0);
    kitchen.write(
        "ranks.jsonl",
        "{\"prompt\": \"p\", \"completions\": [\"a\", \"b\", \"c\"]}\n{\"prompt\": \"q\", \"completions\": [\"d\", \"e\"]}\n",
    );
    kitchen.write(
        "label.yaml",
        "\
levain: 1
seed: 3
stages:
  rows: { kind: load_dataset, source: ranks.jsonl, format: ranking }
  asked: { kind: label, samples: rows, ask: rankings }
  pairs: { kind: annotate, samples: asked, min_margin: 0.8 }
",
    );
    kitchen.say("run label.yaml").expect(3);
    // The best is the last of the alphabet; `a` and `b` are as good.
    let lines: String = shown(&kitchen, "label.yaml", "you")
        .iter()
        .map(|(_, texts)| {
            let number = |text: &str| texts.iter().position(|t| t == text).map(|at| at + 1);
            match number("c") {
                Some(c) => format!("{c} {}={}\n", number("a").unwrap(), number("b").unwrap()),
                None => format!("{}\n", number("e").unwrap()),
            }
        })
        .collect();
    let said = kitchen.tell("label label.yaml asked", "1 2 2\n").expect(2);
    assert!(said.err.contains("write"), "{}", said.err);
    kitchen.tell("label label.yaml asked", &lines).expect(0);
    let answer = kitchen.say("run label.yaml --json").expect(0).json();
    let (rows, metrics) = made(&kitchen, &answer, "asked");
    let expected = [("a", 0.25), ("b", 0.25), ("c", 1.0), ("d", 0.0), ("e", 1.0)];
    assert_eq!(rows, expected.map(|(text, score)| (text.to_owned(), score)));
    assert_eq!(
        (&metrics["comparisons"], &metrics["ties"]),
        (&json!(2), &json!(1))
    );
    // Scored rows need no judge; `c` is better than `a` and `b` by less than is asked for.
    let pairs = outputs(&kitchen.cache(), stage(&answer, "pairs"), 0);
    let pairs = &pairs["rows"]["files"]["rows.arrow"];
    let expected = json!([{ "prompt": "q", "chosen": "e", "rejected": "d", "margin": 1.0 }]);
    assert_eq!(pairs, &expected);
}

#[test]
fn the_command_that_a_waiting_stage_names_can_be_typed() {
    let kitchen = kitchen();
    kitchen.write("two words.yaml", RECIPE);
    let option = "asked.question=Whose is it?";
    let said = Said::of(&mut kitchen.command(&["run", "two words.yaml", "--set", option]));
    let said = said.expect(3);
    let told = "`levain label 'two words.yaml' --set 'asked.question=Whose is it?' asked`";
    assert!(said.err.contains(told), "{}", said.err);
    assert!(said.out.contains(told), "{}", said.out);
}

#[test]
fn bad_names_and_nothing_to_compare_are_found() {
    let kitchen = kitchen();
    let refused = |annotators: &str, why: &str| {
        kitchen.write("bad.yaml", &RECIPE.replace("[anna, ben]", annotators));
        let said: Said = kitchen.say("check bad.yaml").expect(2);
        assert!(said.err.contains(why), "{annotators}: {}", said.err);
    };
    refused("[anna, \"../ben\"]", "`../ben` is no name of an annotator");
    refused("[anna, Anna]", "the annotator `Anna` is named twice");
    refused("[]", "annotators");
    models(&kitchen);
    kitchen.write(
        "alone.yaml",
        &RECIPE.replace("pairs.jsonl, format: preference", "plain.jsonl"),
    );
    let said = kitchen.say("run alone.yaml").expect(1);
    assert!(
        said.err
            .contains("none of 6 prompts has two different completions"),
        "{}",
        said.err
    );
    kitchen.write(
        "taken.yaml",
        &RECIPE
            .replace("pairs.jsonl, format: preference", "plain.jsonl")
            .replace("samples: rows", "samples: { kappa: rows, b: rows }"),
    );
    let said = kitchen.say("check taken.yaml").expect(2);
    assert!(
        said.err.contains("a set of samples is called `kappa`"),
        "{}",
        said.err
    );
}

/// A terminal of 90 columns: what a person types into, and the end that a program takes for one.
fn terminal() -> (fs::File, fs::File) {
    use std::os::fd::FromRawFd as _;
    let (mut person, mut program) = (0, 0);
    let size = libc::winsize {
        ws_row: 40,
        ws_col: 90,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `openpty` writes two descriptors, which the files own from then on, and only reads the size.
    unsafe {
        let made = libc::openpty(
            &mut person,
            &mut program,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            &size,
        );
        assert_eq!(made, 0);
        (
            fs::File::from_raw_fd(person),
            fs::File::from_raw_fd(program),
        )
    }
}

#[test]
fn at_a_terminal_a_key_is_an_answer() {
    use std::io::Read as _;
    let kitchen = kitchen();
    kitchen.write("label.yaml", &RECIPE.replace("[anna, ben]", "you"));
    kitchen.say("run label.yaml").expect(3);
    let all = shown(&kitchen, "label.yaml", "you");
    let (mut person, program) = terminal();
    let end = || Stdio::from(program.try_clone().unwrap());
    let mut child = kitchen
        .command(&["label", "label.yaml", "asked"])
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    drop(program);
    // What is on the screen until it asks for a key; then the key, without Enter.
    let mut screens = Vec::new();
    for key in ["1", "x", "2", "u", "=", "q"] {
        let mut screen = Vec::new();
        while !screen.ends_with("› ".as_bytes()) {
            let mut bytes = [0; 4096];
            let read = person.read(&mut bytes).unwrap();
            screen.extend_from_slice(&bytes[..read]);
        }
        screens.push(String::from_utf8(screen).unwrap());
        person.write_all(key.as_bytes()).unwrap();
    }
    let mut last = Vec::new();
    // The end of a terminal is an error on Linux.
    let _ = person.read_to_end(&mut last);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(3));
    let told = |screen: usize, text: &str| {
        let screen = &screens[screen];
        assert!(screen.contains(text), "{text}:\n{screen}");
    };
    told(0, "1 of 4 · Which is longer?");
    told(0, &format!("{:41} │ {}", all[0].1[0], all[0].1[1]));
    told(1, "2 of 4");
    told(2, "`x` is no answer");
    told(3, "3 of 4");
    // The answer that was taken back is asked for again.
    told(4, "2 of 4");
    told(4, &format!("{:41} │ {}", all[1].1[0], all[1].1[1]));
    told(5, "3 of 4");
    let last = String::from_utf8_lossy(&last);
    assert!(
        last.contains("2 of 4") && last.contains("1 equal"),
        "{last}"
    );
}

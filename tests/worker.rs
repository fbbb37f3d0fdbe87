//! The engine's side of the worker's protocol, with workers that are shell scripts: wrong ones are refused before any work,
//! one that dies fails its stage and nothing else.

mod support;

use std::fs;

use engine::worker::Hello;

use support::scripted::{BAKES, hello, line, worker};
use support::{Kitchen, Said, checkout, files};

const RECIPE: &str = "\
levain: 1
stages:
  base: { kind: load_model, source: tiny.gguf, dtype: f32 }
  rows: { kind: load_dataset, source: rows.jsonl, format: text }
  scores: { kind: evaluate, models: base, data: rows }
";

/// A kitchen with a model, rows, and a recipe that ends in a tensor stage.
fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    fs::copy(
        checkout().join("tests/golden/data/formats/tiny.gguf"),
        kitchen.path().join("tiny.gguf"),
    )
    .unwrap();
    kitchen.write(
        "rows.jsonl",
        "{\"text\": \"one loaf\"}\n{\"text\": \"two loaves\"}\n",
    );
    kitchen.write("bake.yaml", RECIPE);
    kitchen
}

fn run(kitchen: &Kitchen, worker: &std::path::Path) -> Said {
    Said::of(
        kitchen
            .command(&["run", "bake.yaml", "--json"])
            .env("LEVAIN_WORKER", worker),
    )
}

#[test]
fn another_worker_is_refused_before_any_work() {
    let other_kinds = |change: fn(&mut Vec<(String, u32)>)| {
        let mut hello = hello();
        change(&mut hello.kinds);
        line(hello)
    };
    let wrong: [(String, &[&str]); 6] = [
        (
            line(Hello {
                protocol: 0,
                ..hello()
            }),
            &["speaks protocol 0, this levain speaks 2"],
        ),
        (
            line(Hello {
                build: "0.0.9 (source)".to_owned(),
                ..hello()
            }),
            &["is of build 0.0.9 (source), this levain of"],
        ),
        (
            other_kinds(|k| k.iter_mut().for_each(|(_, v)| *v += 1)),
            &["has other kinds: ", "`sft` here version 3, there version 4"],
        ),
        (
            other_kinds(|k| k.retain(|(n, _)| n != "sft")),
            &["`sft` here version 3, there absent"],
        ),
        (
            other_kinds(|k| k.push(("zymurgy".to_owned(), 3))),
            &["`zymurgy` here absent, there version 3"],
        ),
        (
            "usage: worker FILE".to_owned(),
            &["does not say hello", "is it a Levain worker of this build?"],
        ),
    ];
    for (hello, words) in wrong {
        let kitchen = kitchen();
        let said = run(&kitchen, &worker(&kitchen, &hello, "cat > /dev/null")).expect(4);
        for word in words.iter().chain(&["worker.sh"]) {
            assert!(
                said.err.contains(word),
                "`{word}` is missing in:\n{}",
                said.err
            );
        }
        assert!(
            files(&kitchen.cache().join("entries")).is_empty(),
            "work was done before the worker was refused"
        );
        assert!(
            files(&kitchen.cache().join("runs")).is_empty(),
            "a run in which nothing happened is listed"
        );
    }
}

#[test]
fn a_worker_that_is_missing_or_does_not_start_is_said_before_any_work() {
    let kitchen = kitchen();
    let said = run(&kitchen, &kitchen.path().join("no-worker")).expect(4);
    assert!(
        said.err.contains("there is no worker at") && said.err.contains("make build"),
        "{}",
        said.err
    );
    let dies = worker(
        &kitchen,
        "",
        "echo 'libtorch.so: cannot open shared object file' >&2\nexit 127",
    );
    fs::write(
        &dies,
        "#!/bin/sh\necho 'libtorch.so: cannot open shared object file' >&2\nexit 127\n",
    )
    .unwrap();
    let said = run(&kitchen, &dies).expect(4);
    assert!(
        said.err.contains("cannot open shared object file") && said.err.contains("levain doctor"),
        "{}",
        said.err
    );
    let not_a_program = kitchen.write("text.txt", "hello");
    let said = run(&kitchen, &not_a_program).expect(4);
    assert!(said.err.contains("can't be started"), "{}", said.err);
    assert!(files(&kitchen.cache().join("entries")).is_empty());
    // What needs no tensors needs no worker.
    let said = Said::of(
        kitchen
            .command(&["run", "bake.yaml", "rows", "base"])
            .env("LEVAIN_WORKER", "/no/worker"),
    );
    said.expect(0);
}

#[test]
fn a_worker_that_dies_fails_its_stage_and_the_next_run_works() {
    let deaths = [
        (
            "read -r job; kill -9 $$",
            "the worker was killed (signal 9): most often the machine ran out of memory",
        ),
        (
            "read -r job; kill -SEGV $$",
            "the worker crashed (signal 11)",
        ),
        (
            "read -r job; echo 'assertion failed' >&2; exit 3",
            "assertion failed",
        ),
        (
            "read -r job; echo '{\"failed\":\"the loss is not a number\"}'; cat > /dev/null",
            "the loss is not a number",
        ),
        (
            "read -r job; echo 'Segmentation fault'; cat > /dev/null",
            "the worker wrote `Segmentation fault`",
        ),
        (
            "read -r job; echo '{\"done\":{}}'; cat > /dev/null",
            "did not make its output `metrics`",
        ),
    ];
    for (death, words) in deaths {
        let kitchen = kitchen();
        let said = run(&kitchen, &worker(&kitchen, &line(hello()), death)).expect(1);
        assert!(
            said.err.contains(words),
            "`{words}` is missing in:\n{}",
            said.err
        );
        let answer = said.json();
        assert_eq!(answer["failures"][0]["stage"], "scores");
        assert_eq!(
            (&answer["counts"]["failed"], &answer["counts"]["ran"]),
            (&1.into(), &3.into()),
            "{answer:#}"
        );
        let answer = run(&kitchen, &worker(&kitchen, &line(hello()), BAKES))
            .expect(0)
            .json();
        assert_eq!(
            (&answer["counts"]["ran"], &answer["counts"]["hits"]),
            (&1.into(), &3.into()),
            "{answer:#}"
        );
        // Now all is cached, and no worker is asked.
        run(&kitchen, &kitchen.path().join("no-worker")).expect(0);
        kitchen.say("cache verify").expect(0);
    }
}

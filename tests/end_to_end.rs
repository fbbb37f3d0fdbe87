//! The real program on recipes without tensors: every command, exit codes, where the cache is, secrets, a full disk, a cache
//! that can only be read.

mod support;

use std::fs;
use std::path::Path;

use support::hardship::{bound, limited, seal, unseal};
use support::{Kitchen, Said, digests, files, text};

fn names(answer: &serde_json::Value, word: &str, of: &str) -> Vec<String> {
    answer["stages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|s| s[word] == of)
        .map(|s| text(&s["name"]))
        .collect()
}

#[test]
fn a_first_day_with_levain() {
    let kitchen = Kitchen::new(40);
    // A first recipe is written and is fine; what it needs is not here yet, which is said.
    let said = kitchen.say("init new").expect(0);
    assert!(
        said.out.contains("levain plan new/quickstart.yaml"),
        "{}",
        said.out
    );
    let said = kitchen.say("check new/quickstart.yaml").expect(0);
    assert!(
        said.out.starts_with("OK new/quickstart.yaml: ") && said.out.contains("not here yet"),
        "{}",
        said.out
    );

    kitchen.say("check tour.yaml").expect(0);
    let plan = kitchen.say("plan tour.yaml --json").expect(0).json();
    assert_eq!(names(&plan, "verdict", "will_run"), ["rows"]);
    assert_eq!(names(&plan, "verdict", "may_run"), ["halves", "again"]);
    let first = kitchen.say("run tour.yaml --json").expect(0).json();
    assert_eq!(first["counts"]["ran"], 3);
    assert_eq!(digests(&first).len(), 5);
    assert!(
        kitchen.path().join("out/kept/rows.arrow").is_file()
            || kitchen.path().join("out/kept/test.arrow").is_file()
    );

    // Again: nothing runs, and the plan says so beforehand.
    let plan = kitchen.say("plan tour.yaml --json").expect(0).json();
    assert_eq!(names(&plan, "verdict", "cached").len(), 3);
    let again = kitchen.say("run tour.yaml --json").expect(0).json();
    assert_eq!(
        (&again["counts"]["ran"], &again["counts"]["hits"]),
        (&0.into(), &3.into())
    );
    assert_eq!(digests(&again), digests(&first));
    assert_eq!(digests(&plan), digests(&first));
    assert_eq!(again["exports"][0]["written"], 0);

    // A change reruns what depends on it, and `why` says it before.
    let said = kitchen
        .say("why tour.yaml halves --set params.part=0.5")
        .expect(0);
    assert!(said.out.contains("test 0.25 → 0.5"), "{}", said.out);
    let other = kitchen
        .say("run tour.yaml --set params.part=0.5 --json")
        .expect(0)
        .json();
    assert_eq!(names(&other, "outcome", "hit"), ["rows"]);
    assert_eq!(names(&other, "outcome", "done"), ["halves", "again"]);
    assert_eq!(other["exports"][0]["written"], 1);

    // What was made can be looked at and taken away.
    let said = kitchen.say("show tour.yaml halves.test --rows 2").expect(0);
    assert!(
        said.out.contains("10 rows of layout prompt-completion")
            && said.out.contains("How much is"),
        "{}",
        said.out
    );
    let shown = kitchen
        .say("show tour.yaml halves.test --json --rows 100")
        .expect(0)
        .json();
    assert_eq!(shown["rows"].as_array().unwrap().len(), 10);
    kitchen.say("export tour.yaml rows taken").expect(0);
    assert!(kitchen.path().join("taken/rows.arrow").is_file());
    for format in ["mermaid", "dot"] {
        assert!(
            kitchen
                .say(&format!("graph tour.yaml --format {format}"))
                .expect(0)
                .out
                .contains("halves")
        );
    }
    let runs = kitchen.say("runs tour.yaml").expect(0).out;
    assert_eq!(
        runs.lines().filter(|l| l.contains("tour")).count(),
        3,
        "{runs}"
    );
    for kind in ["load_dataset", "split", "sft"] {
        assert!(kitchen.say("kinds").expect(0).out.contains(kind));
        assert!(
            kitchen
                .say(&format!("kinds {kind}"))
                .expect(0)
                .out
                .contains(kind)
        );
    }
    let schema = kitchen.say("schema").expect(0).json();
    assert_eq!(schema["type"], "object");
    assert_eq!(kitchen.say("schema --json").expect(0).json(), schema);
    let completions = kitchen.say("completions fish --json").expect(0).json();
    assert!(text(&completions["script"]).contains("levain"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            kitchen
                .say(&format!("completions {shell}"))
                .expect(0)
                .out
                .contains("levain")
        );
    }
    // All in one cache, beside the recipe, in which all is as it should be.
    assert!(kitchen.cache().join("entries").is_dir());
    kitchen.say("cache verify").expect(0);
}

#[test]
fn the_outputs_folder_is_restored() {
    let kitchen = Kitchen::new(12);
    kitchen.say("run tour.yaml").expect(0);
    let kept = files(&kitchen.path().join("out"));
    let before: Vec<_> = kept.iter().map(|f| fs::read(f).unwrap()).collect();
    assert!(!kept.is_empty());
    fs::remove_dir_all(kitchen.path().join("out")).unwrap();
    let answer = kitchen.say("run tour.yaml --json").expect(0).json();
    assert_eq!(answer["counts"]["ran"], 0);
    let rows = kept.iter().find(|f| f.ends_with("rows.arrow")).unwrap();
    fs::write(rows, "edited").unwrap();
    kitchen.say("run tour.yaml").expect(0);
    assert_eq!(
        kept.iter()
            .map(|f| fs::read(f).unwrap())
            .collect::<Vec<_>>(),
        before
    );
}

#[test]
fn exit_codes_tell_mistakes_failures_and_machines_apart() {
    let kitchen = Kitchen::new(8);
    assert_eq!(kitchen.say("--help").code, Some(0));
    assert_eq!(kitchen.say("--version").code, Some(0));
    kitchen.say("run").expect(2);
    kitchen.say("bake tour.yaml").expect(2);
    kitchen.say("run nothing.yaml").expect(2);
    kitchen.say("run tour.yaml no-such-stage").expect(2);
    kitchen.say("run tour.yaml --device tpu").expect(2);
    kitchen.say("run tour.yaml --threads 0").expect(2);
    kitchen.say("run tour.yaml --set params.part=2.5").expect(2);
    kitchen.say("show tour.yaml rows").expect(2);
    kitchen.say("run tour.yaml --cache tour.yaml").expect(4);
    kitchen
        .say("run tour.yaml --cache tour.yaml/cache")
        .expect(4);
    // A mistake in the first rows is seen before anything runs, one further down by the stage.
    for (rows, code) in [(1, 2), (50, 1)] {
        let text = "{\"text\": \"one\"}\n".repeat(rows) + "{\"text\": \n";
        kitchen.write("rows.jsonl", &text);
        let said = kitchen.say("run tour.yaml").expect(code);
        let place = format!("rows.jsonl:{}:", rows + 1);
        assert!(said.err.contains(&place), "{}", said.err);
    }
    kitchen.write(
        "remote.yaml",
        "levain: 1\nstages:\n  rows: { kind: load_dataset, source: 'pypi:nothing==1#rows.json' }\n",
    );
    let said = kitchen.say("run remote.yaml --offline").expect(4);
    assert!(
        said.err.contains("pypi:nothing==1#rows.json") && said.err.contains("--offline"),
        "{}",
        said.err
    );
}

#[test]
fn rows_that_cant_be_used_are_told_with_their_place() {
    for (rows, words) in [
        (
            &b"{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\"\n"[..],
            &["rows.jsonl:2:"][..],
        ),
        (
            b"{\"prompt\": \"a\", \"completion\": \"\xff\"}\n",
            &["rows.jsonl:1:", "UTF-8"],
        ),
        (b"", &["rows.jsonl", "no rows"]),
        (b"\n\n", &["rows.jsonl", "no rows"]),
    ] {
        let kitchen = Kitchen::new(1);
        fs::write(kitchen.path().join("rows.jsonl"), rows).unwrap();
        let said = kitchen.say("run tour.yaml").expect(2);
        assert!(said.err.contains("--> tour.yaml:"), "{}", said.err);
        for word in words {
            assert!(
                said.err.contains(word),
                "`{word}` is missing in:\n{}",
                said.err
            );
        }
        assert!(
            !kitchen.path().join("out").exists()
                && files(&kitchen.cache().join("entries")).is_empty()
        );
        // And the next run works.
        fs::write(
            kitchen.path().join("rows.jsonl"),
            "{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"c\"}\n{\"text\": \"d\"}\n",
        )
        .unwrap();
        kitchen.say("run tour.yaml").expect(0);
    }
}

#[test]
fn a_cache_is_named_by_the_option_then_the_environment_then_the_place() {
    let kitchen = Kitchen::new(8);
    let of =
        |command: &mut std::process::Command| text(&Said::of(command).expect(0).json()["cache"]);
    let end = |place: &str| place.rsplit('/').next().unwrap().to_owned();
    let words = ["run", "tour.yaml", "--json"];
    assert_eq!(
        end(&of(kitchen
            .command(&words)
            .env("LEVAIN_CACHE", "by-environment"))),
        "by-environment"
    );
    assert_eq!(
        end(&of(kitchen
            .command(&words)
            .args(["--cache", "by-option"])
            .env("LEVAIN_CACHE", "by-environment"))),
        "by-option"
    );
    assert!(!kitchen.cache().exists());
    // The nearest one above the recipe.
    kitchen.say("run tour.yaml").expect(0);
    kitchen.write(
        "deep/down/other.yaml",
        &support::RECIPE.replace("source: rows", "source: ../../rows"),
    );
    let answer = kitchen
        .say("run deep/down/other.yaml --json")
        .expect(0)
        .json();
    assert_eq!(
        Path::new(&text(&answer["cache"])),
        kitchen.cache().canonicalize().unwrap()
    );
    assert_eq!(answer["counts"]["hits"], 3);
}

#[test]
fn secrets_are_found_nowhere() {
    let kitchen = Kitchen::new(8);
    let secret = "hf_kneading0secret0value0that0must0not0leak";
    kitchen.write("remote.yaml", "levain: 1\nstages:\n  rows: { kind: load_dataset, source: 'hf://datasets/owner/rows@main/rows.jsonl' }\n");
    for words in [
        &["-vv", "run", "tour.yaml"][..],
        &["-vv", "run", "remote.yaml"],
        &["plan", "tour.yaml", "--json"],
        &["-vv", "doctor"],
    ] {
        // Nothing listens at this address; the failing request carries the token.
        let said = Said::of(
            kitchen
                .command(words)
                .env("HF_TOKEN", secret)
                .env("HF_ENDPOINT", "http://127.0.0.1:9")
                .env("LEVAIN_LOG", "trace"),
        );
        assert!(
            !said.out.contains(secret) && !said.err.contains(secret),
            "{words:?} tells the secret"
        );
    }
    let mut looked = 0;
    for file in files(kitchen.path()) {
        let bytes = fs::read(&file).unwrap();
        assert!(
            !bytes.windows(secret.len()).any(|w| w == secret.as_bytes()),
            "{} holds the secret",
            file.display()
        );
        looked += 1;
    }
    assert!(looked > 10);
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let calm = Kitchen::new(3000);
    let expected = digests(&calm.say("run tour.yaml --json").expect(0).json());
    let sizes: Vec<u64> = files(&calm.cache().join("objects"))
        .iter()
        .map(|f| fs::metadata(f).unwrap().len())
        .collect();
    let largest = sizes.iter().copied().max().unwrap();
    let kitchen = Kitchen::new(3000);
    let mut failed = 0;
    // From a disk that takes nothing to one that lacks a byte for the largest file.
    for bytes in [
        0,
        1,
        60,
        300,
        700,
        1000,
        2000,
        4096,
        10_000,
        largest / 4,
        largest / 2,
        largest - 1,
    ] {
        let said = Said::of(limited(
            &mut kitchen.command(&["run", "tour.yaml", "--json"]),
            bytes,
        ));
        assert!(
            matches!(said.code, Some(0 | 1 | 4)),
            "{bytes} bytes: {:?}\n{}\n{}",
            said.code,
            said.out,
            said.err
        );
        if said.code != Some(0) {
            failed += 1;
            assert!(
                said.err.contains("File too large"),
                "{bytes} bytes: the cause is not said:\n{}\n{}",
                said.out,
                said.err
            );
            assert!(
                !said.err.contains("panicked"),
                "{bytes} bytes:\n{}",
                said.err
            );
        }
        if kitchen.cache().join("entries").is_dir() {
            kitchen.say("cache verify").expect(0);
        }
    }
    assert!(failed > 6, "only {failed} runs felt the limit");
    let answer = kitchen.say("run tour.yaml --json").expect(0).json();
    assert_eq!(digests(&answer), expected);
}

#[test]
fn a_cache_that_can_only_be_read_gives_hits_and_says_what_it_lacks() {
    let kitchen = Kitchen::new(8);
    kitchen.say("run tour.yaml").expect(0);
    let run = |words: &[&str]| Said::of(bound(&kitchen).args(words));
    seal(&kitchen.cache());
    let hits = run(&["run", "tour.yaml", "--json"]);
    let misses = run(&["run", "tour.yaml", "--set", "params.part=0.5"]);
    let shown = run(&["show", "tour.yaml", "rows"]);
    let planned = run(&["plan", "tour.yaml"]);
    unseal(&kitchen.cache());
    assert_eq!(hits.expect(0).json()["counts"]["hits"], 3);
    let misses = misses.expect(1);
    assert!(
        misses
            .err
            .contains("can't be written; name another with `--cache DIR` or LEVAIN_CACHE"),
        "{}",
        misses.err
    );
    shown.expect(0);
    planned.expect(0);
    kitchen.say("run tour.yaml --set params.part=0.5").expect(0);
}

#[test]
fn two_runs_at_once_work_on_one_cache() {
    let kitchen = Kitchen::new(3000);
    let words = ["run", "tour.yaml", "--json"];
    let mut children: Vec<_> = (0..4)
        .map(|_| {
            kitchen
                .command(&words)
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let answers: Vec<serde_json::Value> = children
        .drain(..)
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            serde_json::from_slice(&output.stdout).unwrap()
        })
        .collect();
    assert!(answers.iter().all(|a| digests(a) == digests(&answers[0])));
    let ran: u64 = answers
        .iter()
        .map(|a| a["counts"]["ran"].as_u64().unwrap())
        .sum();
    assert_eq!(ran, 3, "the same work was done twice");
    kitchen.say("cache verify").expect(0);
}

#[test]
fn a_run_of_one_stage_needs_its_own_sources_only() {
    let kitchen = Kitchen::new(8);
    kitchen.write(
        "two.yaml",
        "levain: 1\nstages:\n  rows: { kind: load_dataset, source: rows.jsonl }\n  \
         far: { kind: load_dataset, source: 'pypi:nothing==1#rows.json' }\n",
    );
    kitchen.say("run two.yaml --offline").expect(4);
    kitchen.say("run two.yaml rows --offline").expect(0);
}

#[test]
fn an_output_that_cant_be_written_says_why() {
    let kitchen = Kitchen::new(8);
    fs::create_dir_all(kitchen.path().join("out")).unwrap();
    kitchen.write("out/kept", "mine");
    let said = kitchen.say("run tour.yaml").expect(1);
    assert!(
        said.err.contains("outputs.kept") && said.err.contains("out/kept"),
        "{}",
        said.err
    );
    assert_eq!(
        fs::read_to_string(kitchen.path().join("out/kept")).unwrap(),
        "mine"
    );
}

#[test]
fn an_option_is_wrong_where_it_stands_and_takes_a_parameters_place() {
    let kitchen = Kitchen::new(8);
    let refused = |option: &str, words: &str| {
        let said = kitchen
            .say(&format!("check tour.yaml --set {option}"))
            .expect(2);
        assert!(
            said.err.contains(words) && said.err.contains("--> --set:1:"),
            "{option}: {}",
            said.err
        );
    };
    refused("params.part=often", "`test` is");
    refused("params.part=", "is set to nothing");
    refused("halves.test=", "is set to nothing");
    // The only use of the parameter is gone, which is no mistake.
    kitchen
        .say("check tour.yaml --set halves.test=0.5")
        .expect(0);
}

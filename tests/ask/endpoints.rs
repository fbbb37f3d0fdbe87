//! Chat endpoints as judges.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::artifacts::{outputs, stage};
use super::support::endpoint::{Asked, Endpoint, Reply};
use super::support::watch::{ended, signal, until};
use super::support::{Kitchen, Said, digests, files};
use super::{answers, kept, kitchen, numbers, recipe, scores};

/// The judge finds the answer with more words better.
fn longer(asked: &Asked) -> Reply {
    let words = |title: &str| asked.part(title).split_whitespace().count();
    let verdict = match words("Answer A").cmp(&words("Answer B")) {
        std::cmp::Ordering::Greater => "A",
        std::cmp::Ordering::Equal => "TIE",
        std::cmp::Ordering::Less => "B",
    };
    Reply::Says(format!("I counted.\n\n{verdict}"))
}

/// The words of a stage that asks this endpoint.
fn words(endpoint: &Endpoint, more: &str) -> String {
    format!(
        "endpoint: \"{}\", model: judge-7b, {more}",
        endpoint.address
    )
}

const TWO: &str = "samples: { sft: sft, dpo: dpo }";

#[test]
fn two_models_are_compared() {
    let kitchen = kitchen();
    let endpoint = Endpoint::start(longer);
    recipe(&kitchen, &words(&endpoint, TWO), "");
    let answer = kitchen.say("run asked.yaml --json").expect(0).json();
    // Five prompts have two texts; the sixth has one, which ties with itself.
    let found = numbers(&kitchen, &answer);
    for (name, wanted) in [
        ("calls", json!(10)),
        ("retries", json!(0)),
        ("comparisons", json!(5)),
        ("ties", json!(1.0 / 5.0)),
        ("inconsistent", json!(0.0)),
        ("first_position_share", json!(0.5)),
        ("prompt_tokens", json!(100)),
        ("completion_tokens", json!(30)),
        ("score", json!(0.5)),
        ("sft", json!({ "score": 2.0 / 6.0, "win_rate": 0.5 })),
        ("dpo", json!({ "score": 4.0 / 6.0, "win_rate": 4.0 / 6.0 })),
    ] {
        assert_eq!(found[name], wanted, "{name}: {found}");
    }
    let rows = scores(&kitchen, &answer);
    assert_eq!(rows.len(), 11);
    assert_eq!(
        rows[0],
        ("How many is 0 + 1?".to_owned(), "loaf".to_owned(), 0.0)
    );
    assert_eq!(
        rows[1],
        ("How many is 0 + 1?".to_owned(), "loaf loaf".to_owned(), 1.0)
    );
    assert_eq!(
        rows[10],
        ("How many is 5 + 1?".to_owned(), "loaf loaf".to_owned(), 0.5)
    );
    // Every answer, in the order of the questions.
    let said = answers(&kitchen.cache(), &answer);
    assert_eq!(said.len(), 10);
    assert_eq!(
        (
            &said[0]["prompt"],
            &said[0]["a"],
            &said[0]["b"],
            &said[0]["answer"]
        ),
        (&json!(1), &json!(1), &json!(2), &json!("I counted.\n\nB"))
    );
    assert_eq!(
        (&said[1]["a"], &said[1]["answer"]),
        (&json!(2), &json!("I counted.\n\nA"))
    );

    let seen = endpoint.seen();
    assert_eq!(seen.len(), 10);
    for asked in &seen {
        assert_eq!(asked.path, "/v1/chat/completions");
        assert_eq!(asked.headers.get("authorization"), None);
        let mut body = asked.body.clone();
        assert_eq!(body["messages"][0]["role"], "user");
        body.as_object_mut().unwrap().remove("messages");
        assert_eq!(
            body,
            json!({ "model": "judge-7b", "temperature": 0.0, "max_tokens": 1024, "seed": 17 })
        );
    }

    // What was answered is not asked again: not by a second run, not under another name, only by force.
    kitchen.say("run asked.yaml").expect(0);
    let text = std::fs::read_to_string(kitchen.path().join("asked.yaml")).unwrap();
    kitchen.write("renamed.yaml", &text.replace("asked:", "judged:"));
    kitchen.say("run renamed.yaml").expect(0);
    assert_eq!(endpoint.seen().len(), 10);
    kitchen.say("run asked.yaml --force asked").expect(0);
    assert_eq!(endpoint.seen().len(), 20);
    assert_eq!(kept(&kitchen), 0);
}

#[test]
fn scored_rows_need_no_other_judge() {
    let kitchen = kitchen();
    let endpoint = Endpoint::start(longer);
    let pairs = "  pairs: { kind: annotate, samples: asked }\n";
    recipe(&kitchen, &words(&endpoint, TWO), pairs);
    let answer = kitchen.say("run asked.yaml --json").expect(0).json();
    // Four of the six prompts have a better and a worse completion.
    let pairs = outputs(&kitchen.cache(), stage(&answer, "pairs"), 0);
    assert_eq!(pairs["rows"]["summary"]["rows"], 4);
}

#[test]
fn a_judge_who_always_says_a_finds_nothing() {
    let kitchen = kitchen();
    let endpoint = Endpoint::start(|_| Reply::Says("A".to_owned()));
    recipe(&kitchen, &words(&endpoint, "samples: tries"), "");
    let answer = kitchen.say("run asked.yaml --json").expect(0).json();
    let found = numbers(&kitchen, &answer);
    let share = |name: &str| found[name].as_f64().unwrap();
    assert_eq!(
        (
            share("inconsistent"),
            share("ties"),
            share("first_position_share")
        ),
        (1.0, 1.0, 1.0)
    );
    assert_eq!(found["comparisons"], 18);
    let rows = scores(&kitchen, &answer);
    assert_eq!(rows.len(), 12);
    assert!(rows.iter().all(|(_, _, score)| *score == 0.5), "{rows:?}");
}

#[test]
fn a_rubric_gives_every_completion_a_number() {
    let kitchen = kitchen();
    let endpoint = Endpoint::start(|asked| {
        let count = asked.part("Answer").split_whitespace().count();
        Reply::Says(format!("Rated.\n**{}**", count as f64 / 2.0))
    });
    let more = "samples: tries, how: rubric, min: 0, max: 3, criteria: \"How long is it?\", examples: [\"loaf: 0.5\"], temperature: 0.7, seed: 5";
    recipe(&kitchen, &words(&endpoint, more), "");
    let answer = kitchen.say("run asked.yaml --json").expect(0).json();
    let found: Vec<f64> = scores(&kitchen, &answer).iter().map(|row| row.2).collect();
    assert_eq!(found, [0.5, 1.0, 1.5, 2.0].repeat(3));
    assert_eq!(numbers(&kitchen, &answer)["score"], 1.25);
    let seen = endpoint.seen();
    assert_eq!(seen.len(), 12);
    for part in [
        "How long is it?",
        "[Example 1]\nloaf: 0.5",
        "a number from 0 (worst) to 3 (best)",
    ] {
        assert!(seen[0].prompt().contains(part), "{}", seen[0].prompt());
    }
    assert_eq!(
        (&seen[0].body["temperature"], &seen[0].body["seed"]),
        (&json!(0.7), &json!(5))
    );
    // Four loaves are rated 2, which another range does not have: that is no answer.
    recipe(
        &kitchen,
        &words(&endpoint, "samples: tries, how: rubric, min: 0, max: 1.5"),
        "",
    );
    let said = kitchen.say("run asked.yaml").expect(1);
    assert!(
        said.err
            .contains("the score must be a number from 0 to 1.5, and 2 is not"),
        "{}",
        said.err
    );
}

#[test]
fn what_fails_in_passing_is_asked_again() {
    let kitchen = kitchen();
    let calm = Endpoint::start(longer);
    let warm = format!("{TWO}, temperature: 0.5");
    recipe(&kitchen, &words(&calm, &warm), "");
    let wanted = kitchen.say("run asked.yaml --json").expect(0).json();
    let wild = Endpoint::start(|asked| match asked.number {
        0 => Reply::Refuses(429, "Retry-After: 0\r\n", "slow down".to_owned()),
        1 => Reply::Refuses(500, "Retry-After: 0\r\n", String::new()),
        2 => Reply::Says("I like both.".to_owned()),
        3 => Reply::Hangs(Duration::from_millis(2500)),
        4 => Reply::Refuses(503, "Retry-After: 0\r\n", "{}".to_owned()),
        5 => Reply::Hangs(Duration::ZERO),
        _ => longer(asked),
    });
    recipe(
        &kitchen,
        &words(&wild, &format!("{warm}, timeout_seconds: 1, parallel: 2")),
        "",
    );
    let found = kitchen.say("run asked.yaml --json").expect(0).json();
    assert_eq!(scores(&kitchen, &found), scores(&kitchen, &wanted));
    let mut numbers = [numbers(&kitchen, &found), numbers(&kitchen, &wanted)];
    assert_eq!(numbers[0]["retries"], 6);
    numbers[0]["retries"] = 0.into();
    assert_eq!(numbers[0], numbers[1]);
    assert_eq!(wild.seen().len(), 16);
    // The question whose answer could not be read was asked with another seed.
    let seen = wild.seen();
    let again = seen.iter().filter(|asked| asked.body["seed"] == 18);
    let again: std::collections::BTreeSet<&str> = again.map(Asked::prompt).collect();
    assert_eq!(again.into_iter().collect::<Vec<_>>(), [seen[2].prompt()]);
    // The order of the answers is that of the questions.
    let ids = |answer| -> Vec<_> {
        answers(&kitchen.cache(), answer)
            .iter()
            .map(|a| a["id"].clone())
            .collect()
    };
    assert_eq!(ids(&found), ids(&wanted));
}

#[test]
fn an_answer_that_can_not_be_read_fails_the_stage_and_costs_no_other() {
    let kitchen = kitchen();
    let well = Arc::new(AtomicBool::new(false));
    let judge = well.clone();
    let endpoint = Endpoint::start(move |asked| {
        if asked.part("Prompt").contains("2 + 1") && !judge.load(Ordering::SeqCst) {
            return Reply::Says(format!("I like {} the end", "both ".repeat(60)));
        }
        longer(asked)
    });
    recipe(
        &kitchen,
        &words(
            &endpoint,
            &format!("{TWO}, parallel: 1, attempts: 2, temperature: 0.5"),
        ),
        "",
    );
    let said = kitchen.say("run asked.yaml").expect(1);
    for part in [
        "an answer of `judge-7b` about prompt 3 can't be read (2 attempts)",
        "the last line must be the verdict, `A`, `B` or `TIE`, and nothing else",
        "I like both both",
        "4 of 10 answers are kept: the next run asks for the others only",
    ] {
        assert!(said.err.contains(part), "{part:?} is not in\n{}", said.err);
    }
    assert!(!said.err.contains("the end"), "{}", said.err);
    assert_eq!((kept(&kitchen), endpoint.seen().len()), (4, 6));
    well.store(true, Ordering::SeqCst);
    let answer = kitchen.say("run asked.yaml --json").expect(0).json();
    assert_eq!(endpoint.seen().len(), 6 + 6);
    assert_eq!(numbers(&kitchen, &answer)["calls"], 10);
}

#[test]
fn at_temperature_0_an_answer_that_can_not_be_read_is_asked_for_once() {
    let kitchen = kitchen();
    let endpoint = Endpoint::start(|asked| match asked.number {
        // What fails in passing is asked again at every temperature.
        0 => Reply::Refuses(500, "Retry-After: 0\r\n", String::new()),
        _ => Reply::Says("I like both.".to_owned()),
    });
    recipe(
        &kitchen,
        &words(&endpoint, &format!("{TWO}, parallel: 1")),
        "",
    );
    let said = kitchen.say("run asked.yaml").expect(1);
    let told =
        "about prompt 1 can't be read (asked once: at `temperature: 0` it says the same again";
    assert!(said.err.contains(told), "{}", said.err);
    assert_eq!(endpoint.seen().len(), 2);
}

#[test]
fn a_kill_and_ctrl_c_lose_no_answer() {
    for what in [libc::SIGKILL, libc::SIGINT] {
        let kitchen = kitchen();
        let endpoint = Endpoint::start(|asked| {
            std::thread::sleep(Duration::from_millis(40));
            longer(asked)
        });
        recipe(
            &kitchen,
            &words(&endpoint, "samples: tries, parallel: 2"),
            "",
        );
        let mut child = kitchen
            .command(&["run", "asked.yaml", "-q"])
            .spawn()
            .unwrap();
        until(&mut child, || (kept(&kitchen) >= 8).then_some(())).expect("the run ended by itself");
        signal(child.id() as i32, what);
        let status = ended(&mut child);
        // What was on its way arrives.
        std::thread::sleep(Duration::from_millis(300));
        let (here, asked) = (kept(&kitchen), endpoint.seen().len());
        assert!((8..36).contains(&here), "{here}");
        if what == libc::SIGINT {
            // Requests that had begun were waited for.
            assert_eq!((status.code(), here), (Some(130), asked));
        }
        // A kill may tear the line that is being written.
        let path = files(&kitchen.cache().join("partial")).remove(0);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"id\": \"0123");
        std::fs::write(&path, text).unwrap();
        let said = Said::of(&mut kitchen.command(&["run", "asked.yaml", "--json"])).expect(0);
        assert_eq!(endpoint.seen().len(), asked + 36 - here);
        assert!(
            said.err.contains(&format!("{here} of 36 answers are here")),
            "{}",
            said.err
        );
        let calm =
            Said::of(&mut kitchen.command(&["run", "asked.yaml", "--json", "--cache", "calm"]))
                .expect(0);
        assert_eq!(digests(&said.json()), digests(&calm.json()));
    }
}

/// Nothing below the kitchen, and nothing that was said, holds the secret.
fn assert_secret(kitchen: &Kitchen, said: &Said, secret: &str) {
    assert!(
        !said.out.contains(secret) && !said.err.contains(secret),
        "{}\n{}",
        said.out,
        said.err
    );
    let all = files(kitchen.path());
    assert!(all.len() > 5);
    for path in all {
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        assert!(!found, "{}", path.display());
    }
}

#[test]
fn a_key_goes_to_the_endpoint_and_nowhere_else() {
    let kitchen = kitchen();
    let secret = "sk-levain-0123456789";
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    // One that repeats what it was sent, in a refusal and in its answers.
    let endpoint = Endpoint::start(move |asked| {
        let sent = asked
            .headers
            .get("authorization")
            .cloned()
            .unwrap_or_default();
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            let body = json!({ "error": { "message": format!("{sent} is wrong") } });
            return Reply::Refuses(401, "", body.to_string());
        }
        Reply::Says(format!("You sent {sent}.\nTIE"))
    });
    recipe(
        &kitchen,
        &words(
            &endpoint,
            &format!("{TWO}, key_from: JUDGE_API_KEY, parallel: 1"),
        ),
        "",
    );
    let run = |key: Option<&str>| {
        let mut command = kitchen.command(&["run", "asked.yaml", "--json"]);
        command
            .env("LEVAIN_LOG", "trace")
            .env_remove("JUDGE_API_KEY");
        if let Some(key) = key {
            command.env("JUDGE_API_KEY", key);
        }
        Said::of(&mut command)
    };
    let said = run(None).expect(1);
    assert!(
        said.err.contains("the environment variable JUDGE_API_KEY"),
        "{}",
        said.err
    );
    let said = run(Some("two words")).expect(1);
    assert!(
        said.err.contains("JUDGE_API_KEY does not hold a key") && !said.err.contains("two words"),
        "{}",
        said.err
    );
    assert!(endpoint.seen().is_empty());
    let said = run(Some(secret)).expect(1);
    assert!(
        said.err.contains("HTTP 401") && said.err.contains("Bearer … is wrong"),
        "{}",
        said.err
    );
    assert_secret(&kitchen, &said, secret);
    let said = run(Some(secret)).expect(0);
    assert_secret(&kitchen, &said, secret);
    let seen = endpoint.seen();
    assert_eq!(seen.len(), 11);
    assert!(
        seen.iter()
            .all(|asked| asked.headers["authorization"] == format!("Bearer {secret}"))
    );
    assert_eq!(
        answers(&kitchen.cache(), &said.json())[0]["answer"],
        "You sent Bearer ….\nTIE"
    );
    // The name of the variable is no part of the key of the cache.
    let text = std::fs::read_to_string(kitchen.path().join("asked.yaml")).unwrap();
    kitchen.write(
        "asked.yaml",
        &text.replace("JUDGE_API_KEY", "OTHER_API_KEY"),
    );
    run(None).expect(0);
}

#[test]
fn what_lasts_is_told_at_once() {
    let kitchen = kitchen();
    let begun = Instant::now();
    let fails = |endpoint: &Endpoint, more: &str, wanted: &str| {
        recipe(&kitchen, &words(endpoint, &format!("{TWO}, {more}")), "");
        let said = kitchen.say("run asked.yaml").expect(1);
        assert!(
            said.err.contains(wanted),
            "{wanted:?} is not in\n{}",
            said.err
        );
        assert!(
            said.err.contains("0 of 10 answers are kept"),
            "{}",
            said.err
        );
    };
    let patient = |_: &Asked| Reply::Refuses(429, "Retry-After: 3600\r\n", String::new());
    fails(
        &Endpoint::start(patient),
        "parallel: 1",
        "it asks to wait 3600 s",
    );
    let broken =
        Endpoint::start(|_| Reply::Refuses(500, "Retry-After: 0\r\n", "out of memory".to_owned()));
    fails(
        &broken,
        "retries: 2, parallel: 1",
        "HTTP 500 Internal Server Error (\"out of memory\") (tried 3 times)",
    );
    assert_eq!(broken.seen().len(), 3);
    let lost = |_: &Asked| Reply::Refuses(404, "", "<html>".to_owned());
    fails(
        &Endpoint::start(lost),
        "parallel: 1",
        "`endpoint` is the address before `/chat/completions`",
    );
    let other = |_: &Asked| Reply::Refuses(200, "", "<html>hello".to_owned());
    fails(
        &Endpoint::start(other),
        "parallel: 1",
        "no chat completion came back but \"<html>hello\"",
    );
    let silent = Endpoint::start(|_| Reply::Hangs(Duration::from_secs(30)));
    fails(
        &silent,
        "retries: 0, timeout_seconds: 0.3",
        "no answer in time",
    );
    let mut gone = Endpoint::start(longer);
    gone.address = "http://127.0.0.1:9/v1".to_owned();
    fails(&gone, "parallel: 1", "does the endpoint run?");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn there_is_something_to_compare() {
    let kitchen = kitchen();
    let endpoint = Endpoint::start(longer);
    recipe(&kitchen, &words(&endpoint, "samples: sft"), "");
    let said = kitchen.say("run asked.yaml").expect(1);
    assert!(
        said.err.contains("there is nothing to compare"),
        "{}",
        said.err
    );
    recipe(
        &kitchen,
        &words(&endpoint, "samples: { sft: sft, score: dpo }"),
        "",
    );
    let said = kitchen.say("check asked.yaml").expect(2);
    assert!(
        said.err.contains("a set of samples is called `score`"),
        "{}",
        said.err
    );
    recipe(
        &kitchen,
        &words(&endpoint, "samples: { sft: sft, dpo: tries }"),
        "",
    );
    let said = kitchen.say("run asked.yaml").expect(1);
    assert!(
        said.err.contains("sample the same prompts with each"),
        "{}",
        said.err
    );
    assert!(endpoint.seen().is_empty());
}

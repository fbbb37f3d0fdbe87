//! Ctrl-C and SIGTERM: the first stops a training with a snapshot, and the next run goes on from it; the second ends the program at once.

mod support;

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use support::watch::{all_events, ended, resumed, signal, snapshot, until, worker_of};
use support::{Kitchen, Said, digests, scripted, tiny};

/// A training of so many steps, which writes no snapshot unless it is asked to stop.
fn training(kitchen: &Kitchen, steps: u64) -> PathBuf {
    tiny::model(kitchen, "model");
    let recipe = format!(
        "\
levain: 1
seed: 5
threads: 1
stages:
  base: {{ kind: load_model, source: model, dtype: f32 }}
  rows: {{ kind: load_dataset, source: rows.jsonl }}
  thin: {{ kind: lora, model: base, r: 4, dropout: 0.05 }}
  tuned: {{ kind: sft, model: thin, data: rows, batch: 4, max_steps: {steps}, snapshot_seconds: 100000 }}
  scores: {{ kind: evaluate, models: tuned, data: rows }}
"
    );
    kitchen.write("train.yaml", &recipe)
}

/// A run in a process group of its own, as a terminal or a service manager makes one.
fn start(kitchen: &Kitchen, cache: &str) -> Child {
    kitchen
        .command(&["run", "train.yaml", "--json", "--cache", cache])
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Whether the stage `tuned` of a run in this cache has taken some steps.
fn trains(cache: &Path) -> Option<()> {
    let steps = all_events(cache).into_iter();
    let mut steps = steps.filter(|e| e["stage"] == "tuned" && e["event"] == "metrics");
    steps.nth(10).map(drop)
}

/// Sends `what` to the group or to the engine alone while a training is at work; gives what was said.
fn stopped(kitchen: &Kitchen, cache: &str, steps: &mut u64, what: i32, group: bool) -> Said {
    let folder = kitchen.path().join(cache);
    loop {
        training(kitchen, *steps);
        let mut child = start(kitchen, cache);
        let pid = child.id() as i32;
        until(&mut child, || trains(&folder)).expect("the training ended before it had begun");
        signal(if group { -pid } else { pid }, what);
        let status = ended(&mut child);
        let (mut out, mut err) = (String::new(), String::new());
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        if snapshot(&folder).is_some() || !matches!(status.code(), Some(0 | 130)) {
            return Said {
                code: status.code(),
                out,
                err,
            };
        }
        // The training was over before the signal came.
        std::fs::remove_dir_all(&folder).unwrap();
        *steps *= 2;
    }
}

#[test]
fn a_stopped_training_writes_a_snapshot_and_ends_with_the_same_bytes() {
    let kitchen = Kitchen::new(60);
    let mut steps = 300;
    for (what, group) in [
        (libc::SIGINT, true),
        (libc::SIGINT, false),
        (libc::SIGTERM, true),
        (libc::SIGTERM, false),
    ] {
        let said = stopped(&kitchen, "cache", &mut steps, what, group).expect(130);
        let answer = said.json();
        assert_eq!(answer["cancelled"], true);
        assert_eq!(
            (&answer["counts"]["failed"], &answer["failures"]),
            (&0.into(), &serde_json::json!([])),
            "{answer:#}"
        );
        let step = snapshot(&kitchen.cache()).unwrap();
        assert!(step > 10 && step < steps, "{step} of {steps}");
        let run = |cache| {
            Said::of(&mut kitchen.command(&["run", "train.yaml", "--json", "--cache", cache]))
        };
        let answer = run("cache").expect(0).json();
        assert_eq!(resumed(&answer), Some(step));
        let calm = run("calm").expect(0).json();
        assert_eq!(resumed(&calm), None);
        assert_eq!(digests(&answer), digests(&calm));
        for cache in ["cache", "calm"] {
            std::fs::remove_dir_all(kitchen.path().join(cache)).unwrap();
        }
    }
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    for what in [libc::SIGINT, libc::SIGTERM] {
        let kitchen = Kitchen::new(4);
        training(&kitchen, 1000);
        // A worker that does not listen: as long as levain waits for it, it runs.
        let deaf = scripted::worker(
            &kitchen,
            &scripted::greeting(),
            "trap '' INT TERM\ncat > /dev/null",
        );
        let mut child = kitchen
            .command(&["run", "train.yaml", "--json"])
            .env("LEVAIN_WORKER", &deaf)
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let group = -(child.id() as i32);
        let saw = |wanted: &'static str| {
            let cache = kitchen.cache();
            move || {
                let text = |e: &serde_json::Value| e.to_string().contains(wanted);
                all_events(&cache).iter().any(text).then_some(())
            }
        };
        until(&mut child, saw("\"kind\":\"sft\"")).expect("the run ended by itself");
        signal(group, what);
        until(&mut child, saw("stopping: 1 running stage"))
            .expect("the run did not wait for its stage");
        assert!(child.try_wait().unwrap().is_none());
        signal(group, what);
        assert_eq!(ended(&mut child).code(), Some(130));
        // Nothing is half-written, and the next run works.
        kitchen.say("cache verify").expect(0);
        kitchen.say("run train.yaml thin").expect(0);
    }
}

#[test]
fn a_signal_while_nothing_trains_stops_the_run_as_well() {
    let kitchen = Kitchen::new(4);
    training(&kitchen, 50);
    // The worker takes its time to say hello: the signal comes before any stage has begun.
    let slow = kitchen.path().join("hello");
    let script = format!(
        "#!/bin/sh\ntrap '' INT\nwhile [ ! -e {} ]; do sleep 0.01; done\n",
        slow.display()
    );
    let worker = scripted::worker(&kitchen, &scripted::greeting(), "cat > /dev/null");
    let rest = std::fs::read_to_string(&worker)
        .unwrap()
        .replacen("#!/bin/sh\n", &script, 1);
    std::fs::write(&worker, rest).unwrap();
    let mut child = kitchen
        .command(&["run", "train.yaml", "--json"])
        .env("LEVAIN_WORKER", &worker)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let planned = || {
        all_events(&kitchen.cache())
            .iter()
            .any(|e| e["event"] == "planned")
            .then_some(())
    };
    until(&mut child, planned).expect("the run ended by itself");
    signal(child.id() as i32, libc::SIGINT);
    kitchen.write("hello", "");
    assert_eq!(ended(&mut child).code(), Some(130));
    assert!(worker_of(child.id()).is_none());
    kitchen.say("run train.yaml").expect(0);
}

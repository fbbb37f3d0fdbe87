//! `levain` or its worker killed at any moment: the next run ends with the same bytes as one that was left alone.

mod support;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use support::kill::{assert_recovers, calm, kill, killed_at_random, long_enough, with_snapshot};
use support::watch::worker_of;
use support::{Kitchen, Random, Said, digests, levain, tiny};

const RECIPE: &str = "\
levain: 1
seed: 5
stages:
  rows: { kind: load_dataset, source: rows.jsonl, replace: { loaf: bread } }
  few: { kind: load_dataset, source: rows.jsonl, limit: 9000 }
  one: { kind: split, data: rows, test: 0.5 }
  two: { kind: split, data: one.train, test: 0.5 }
  three: { kind: split, data: one.test, test: 0.25 }
  four: { kind: split, data: few, test: 100 }
  five: { kind: split, data: two.test, test: 0.5 }
outputs:
  kept: { from: five.test, to: out/kept }
";

#[test]
fn a_killed_run_is_taken_up_by_the_next() {
    let kitchen = Kitchen::new(60_000);
    let recipe = kitchen.write("bake.yaml", RECIPE);
    for killed in killed_at_random(&recipe, 30, 17, &Some) {
        assert_eq!(killed.code, None);
    }
}

#[test]
fn what_killed_runs_left_disturbs_nothing_and_is_not_taken_for_a_result() {
    let kitchen = Kitchen::new(20_000);
    let recipe = kitchen.write("bake.yaml", RECIPE);
    let cache = kitchen.cache();
    let run = || {
        Said::of(
            levain()
                .args(["run", "--json", "--cache"])
                .arg(&cache)
                .arg(&recipe),
        )
    };
    let mut random = Random(29);
    // Many kills in one cache: each run goes on from what the ones before it had finished.
    for _ in 0..8 {
        let mut child = levain()
            .args(["run", "--cache"])
            .arg(&cache)
            .arg(&recipe)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(5 + random.below(120)));
        let _ = child.kill();
        child.wait().unwrap();
    }
    let answer = run().expect(0).json();
    let calm = Said::of(
        levain()
            .args(["run", "--json", "--cache"])
            .arg(kitchen.path().join("calm"))
            .arg(&recipe),
    )
    .expect(0)
    .json();
    assert_eq!(digests(&answer), digests(&calm));
    // A listing of runs, a collection of what is not needed, and a further run.
    Said::of(levain().args(["runs", "--cache"]).arg(&cache)).expect(0);
    Said::of(levain().args(["cache", "gc", "--cache"]).arg(&cache)).expect(0);
    assert_eq!(digests(&run().expect(0).json()), digests(&calm));
}

/// Every kind of stage on a tiny model, with so many steps of training and a snapshot every second. In the middle of the training a second layer
/// begins, whose optimizer then counts steps of its own.
fn training(kitchen: &Kitchen, steps: u64) -> PathBuf {
    tiny::model(kitchen, "model");
    let half = steps / 2;
    let recipe = format!(
        "\
levain: 1
seed: 5
threads: 1
stages:
  base: {{ kind: load_model, source: model, dtype: f32 }}
  rows: {{ kind: load_dataset, source: rows.jsonl }}
  halves: {{ kind: split, data: rows, test: 0.2 }}
  thin: {{ kind: lora, model: base, r: 4, dropout: 0.05 }}
  tuned: {{ kind: sft, model: thin, data: halves.train, batch: 4, max_steps: {steps}, unfreeze_every: {half}, \
snapshot_seconds: 1 }}
  scores: {{ kind: evaluate, models: {{ before: base, after: tuned }}, data: halves.test, samples: 2, max_new_tokens: 8 }}
  tries: {{ kind: generate, model: tuned, prompts: halves.test, n: 2, temperature: 0.8, max_new_tokens: 16 }}
outputs:
  adapter: {{ from: tuned, format: peft, to: out/adapter }}
"
    );
    kitchen.write("train.yaml", &recipe)
}

#[test]
fn a_killed_training_is_taken_up_by_the_next_run() {
    let kitchen = Kitchen::new(60);
    let recipe = long_enough(&kitchen, &training, 400);
    for killed in killed_at_random(&recipe, 30, 5, &Some) {
        assert_eq!(killed.code, None);
    }
}

#[test]
fn a_killed_worker_is_said_and_its_work_is_taken_up_by_the_next_run() {
    let kitchen = Kitchen::new(60);
    let recipe = long_enough(&kitchen, &training, 400);
    let all = killed_at_random(&recipe, 30, 23, &worker_of);
    for killed in &all {
        // A worker that dies while it has nothing to do is replaced by another.
        if killed.code == Some(0) {
            continue;
        }
        // 4 when it had not even said hello.
        assert!(
            matches!(killed.code, Some(1 | 4)),
            "{:?}\n{}",
            killed.code,
            killed.err
        );
        assert!(
            killed.err.contains("the worker was killed (signal 9)"),
            "{}",
            killed.err
        );
    }
    assert!(all.iter().any(|killed| killed.code == Some(1)));
}

#[test]
fn a_training_killed_after_a_snapshot_goes_on_from_there() {
    let kitchen = Kitchen::new(60);
    let cache = kitchen.path().join("killed");
    let mut steps = 400;
    let victims: [fn(u32) -> Option<u32>; 2] = [Some, worker_of];
    for victim in victims {
        let (recipe, child) = with_snapshot(&kitchen, &training, &mut steps, &cache);
        let pid = victim(child.id()).unwrap();
        let mut killed = kill(child, pid, &cache);
        let (wanted, _) = calm(&recipe, &kitchen.path().join("calm"));
        assert_recovers(&mut killed, &recipe, &cache, &wanted);
        assert!(
            killed.resumed.is_some_and(|step| step < steps),
            "{:?}",
            killed.resumed
        );
        std::fs::remove_dir_all(kitchen.path().join("calm")).unwrap();
        std::fs::remove_dir_all(&cache).unwrap();
    }
}

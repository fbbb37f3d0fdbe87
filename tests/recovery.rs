//! `levain` or its worker killed at any moment: the next run ends with the same bytes as one that was left alone.

mod support;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::watch::{count, ended, gone, resumed, signal, snapshot, until, worker_of};
use support::{Kitchen, Random, Said, digests, levain, tiny};

/// What was seen of one kill.
struct Killed {
    /// How the run ended.
    code: Option<i32>,
    /// What it said.
    err: String,
    /// The step of the newest snapshot that it left.
    snapshot: Option<u64>,
    /// The step after which the next run went on.
    resumed: Option<u64>,
}

fn run(recipe: &Path, cache: &Path) -> Command {
    let mut command = levain();
    command
        .args(["run", "--json", "--cache"])
        .arg(cache)
        .arg(recipe);
    command
}

/// Starts a run that nobody listens to but this test.
fn start(recipe: &Path, cache: &Path) -> Child {
    run(recipe, cache)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills `pid`, a part of the run `child`; waits until nothing of the run is left, and says what there is to see.
fn kill(mut child: Child, pid: u32, cache: &Path) -> Killed {
    let worker = worker_of(child.id());
    signal(pid as i32, libc::SIGKILL);
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    let code = ended(&mut child).code();
    // A worker without its engine ends by itself.
    worker.into_iter().for_each(gone);
    Killed {
        code,
        err,
        snapshot: snapshot(cache),
        resumed: None,
    }
}

/// After a kill: the next run ends with the digests of a run that was left alone, what is cached is whole, and a further run
/// finds all of it.
fn assert_recovers(
    killed: &mut Killed,
    recipe: &Path,
    cache: &Path,
    wanted: &[(String, String, String)],
) {
    let answer = Said::of(&mut run(recipe, cache)).expect(0).json();
    assert_eq!(digests(&answer), wanted);
    killed.resumed = resumed(&answer);
    let stages = answer["stages"].as_array().unwrap();
    // A kill between the publishing of a training and the removal of its snapshots leaves some that nobody needs.
    if !stages
        .iter()
        .any(|s| s["name"] == "tuned" && s["outcome"] == "hit")
    {
        assert_eq!(
            killed.resumed, killed.snapshot,
            "a snapshot is there to go on from"
        );
        assert_eq!(
            count(&cache.join("partial")),
            0,
            "what is done needs no snapshot"
        );
    }
    let again = Said::of(&mut run(recipe, cache)).expect(0).json();
    assert_eq!(again["counts"]["ran"], 0);
    Said::of(levain().args(["cache", "verify", "--cache"]).arg(cache)).expect(0);
}

/// The digests of a run that is left alone, and how long it took.
fn calm(recipe: &Path, cache: &Path) -> (Vec<(String, String, String)>, Duration) {
    let begin = Instant::now();
    let answer = Said::of(&mut run(recipe, cache)).expect(0).json();
    let wanted = digests(&answer);
    assert!(
        !wanted.is_empty() && resumed(&answer).is_none(),
        "{answer:#}"
    );
    (wanted, begin.elapsed())
}

/// Runs `recipe` undisturbed, and `kills` times in a new cache with SIGKILL at a random moment and a run after it: all must end
/// with the same digests. `victim` maps the process id of `levain` to the one that is killed.
fn killed_at_random(
    recipe: &Path,
    kills: usize,
    seed: u64,
    victim: &dyn Fn(u32) -> Option<u32>,
) -> Vec<Killed> {
    let places = tempfile::tempdir().unwrap();
    let (wanted, mut takes) = calm(recipe, &places.path().join("calm"));
    let mut random = Random(seed);
    let mut all = Vec::new();
    let mut late = 0;
    while all.len() < kills {
        let cache = places.path().join("killed");
        let mut child = start(recipe, &cache);
        std::thread::sleep(takes.mul_f64(random.below(1000) as f64 / 1000.0));
        let pid = victim(child.id());
        match pid.filter(|_| child.try_wait().unwrap().is_none()) {
            Some(pid) => {
                let engine = child.id() == pid;
                let mut killed = kill(child, pid, &cache);
                assert_recovers(&mut killed, recipe, &cache, &wanted);
                // It may have ended by itself between the look and the signal: then nothing was killed.
                if engine && killed.code == Some(0) {
                    late += 1;
                    assert!(late < 4 * kills, "{late} of {kills} kills came too late");
                } else {
                    all.push(killed);
                }
            }
            // There was nobody to kill, most likely because this run was faster than the first: a new attempt, a bit earlier.
            None => {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{output:?}");
                late += 1;
                takes = takes.mul_f64(0.95);
                assert!(late < 4 * kills, "{late} of {kills} kills came too late");
            }
        }
        std::fs::remove_dir_all(&cache).unwrap();
    }
    let went_on = all.iter().filter(|k| k.resumed.is_some()).count();
    println!(
        "{kills} kills within {takes:?}, {late} more too late; {went_on} runs went on from a snapshot"
    );
    all
}

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

/// Every kind of stage on a tiny model, with so many steps of training and a snapshot every second.
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
  halves: {{ kind: split, data: rows, test: 0.2 }}
  thin: {{ kind: lora, model: base, r: 4, dropout: 0.05 }}
  tuned: {{ kind: sft, model: thin, data: halves.train, batch: 4, max_steps: {steps}, snapshot_seconds: 1 }}
  scores: {{ kind: evaluate, models: {{ before: base, after: tuned }}, data: halves.test, samples: 2, max_new_tokens: 8 }}
  tries: {{ kind: generate, model: tuned, prompts: halves.test, n: 2, temperature: 0.8, max_new_tokens: 16 }}
outputs:
  adapter: {{ from: tuned, format: peft, to: out/adapter }}
"
    );
    kitchen.write("train.yaml", &recipe)
}

/// Starts trainings of more and more steps until one is still at work when its first snapshot is there.
fn with_snapshot(kitchen: &Kitchen, steps: &mut u64, cache: &Path) -> (PathBuf, Child) {
    loop {
        let recipe = training(kitchen, *steps);
        let mut child = start(&recipe, cache);
        if until(&mut child, || snapshot(cache)).is_some() && child.try_wait().unwrap().is_none() {
            return (recipe, child);
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        std::fs::remove_dir_all(cache).unwrap();
        *steps *= 2;
    }
}

/// The recipe of a training that lasts somewhat longer than it takes to its first snapshot.
fn long_enough(kitchen: &Kitchen) -> PathBuf {
    let cache = kitchen.path().join("trial");
    let mut steps = 400;
    let (_, child) = with_snapshot(kitchen, &mut steps, &cache);
    let pid = child.id();
    let seen = kill(child, pid, &cache).snapshot.unwrap();
    std::fs::remove_dir_all(cache).unwrap();
    training(kitchen, seen * 7 / 4)
}

#[test]
fn a_killed_training_is_taken_up_by_the_next_run() {
    let kitchen = Kitchen::new(60);
    let recipe = long_enough(&kitchen);
    for killed in killed_at_random(&recipe, 30, 5, &Some) {
        assert_eq!(killed.code, None);
    }
}

#[test]
fn a_killed_worker_is_said_and_its_work_is_taken_up_by_the_next_run() {
    let kitchen = Kitchen::new(60);
    let recipe = long_enough(&kitchen);
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
        let (recipe, child) = with_snapshot(&kitchen, &mut steps, &cache);
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

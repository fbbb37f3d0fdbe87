//! `levain` killed at random moments: the next run ends with the same bytes as one that was left alone.

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{Kitchen, Random, Said, digests, files, levain};

/// Runs `recipe` undisturbed, and `kills` times in a new cache with SIGKILL at a random moment and a run after it: all must end
/// with the same digests. `victim` maps the process id of `levain` to the one that is killed, and `variables` go to both.
fn killed_at_random(
    recipe: &Path,
    kills: u64,
    seed: u64,
    variables: &[(&str, &Path)],
    victim: &dyn Fn(u32) -> Option<u32>,
) {
    let places = tempfile::tempdir().unwrap();
    let command = |cache: &Path| {
        let mut command = levain();
        command
            .args(["run", "--json", "--cache"])
            .arg(cache)
            .arg(recipe)
            .envs(variables.iter().copied());
        command
    };
    let start = Instant::now();
    let calm = Said::of(&mut command(&places.path().join("calm")))
        .expect(0)
        .json();
    let takes = start.elapsed();
    let wanted = digests(&calm);
    assert!(
        !wanted.is_empty() && calm["counts"]["hits"] == 0,
        "{calm:#}"
    );
    let mut random = Random(seed);
    let (mut hit, mut leftovers) = (0, 0);
    for kill in 0..kills {
        let cache = places.path().join(kill.to_string());
        let mut child = command(&cache)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(takes.mul_f64(random.below(1000) as f64 / 1000.0));
        if let Some(pid) = victim(child.id()) {
            // SAFETY: sends a signal to a process that this test started.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
        let status = child.wait().unwrap();
        hit += u64::from(!status.success());
        let begun = cache.join("tmp");
        leftovers += if begun.is_dir() {
            files(&begun).len()
        } else {
            0
        };
        let answer = Said::of(&mut command(&cache)).expect(0).json();
        assert_eq!(digests(&answer), wanted, "kill {kill}");
        // What is cached now is whole, and a further run finds all of it.
        let again = Said::of(&mut command(&cache)).expect(0).json();
        assert_eq!(again["counts"]["ran"], 0, "kill {kill}");
        Said::of(levain().args(["cache", "verify", "--cache"]).arg(&cache)).expect(0);
        std::fs::remove_dir_all(&cache).unwrap();
    }
    println!(
        "{hit} of {kills} kills met a run of {takes:?} at work and left {leftovers} files behind"
    );
    assert!(
        hit * 2 >= kills,
        "only {hit} of {kills} kills met a run at work"
    );
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
    killed_at_random(&recipe, 30, 17, &[], &Some);
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

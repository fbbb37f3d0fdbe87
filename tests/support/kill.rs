//! `levain` or its worker killed at any moment, and what the next run makes of it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::watch::{count, ended, gone, resumed, signal, snapshot, until, worker_of};
use super::{Kitchen, Random, Said, digests, levain};

/// What was seen of one kill.
pub struct Killed {
    /// How the run ended.
    pub code: Option<i32>,
    /// What it said.
    pub err: String,
    /// The step of the newest snapshot that it left.
    pub snapshot: Option<u64>,
    /// The step after which the next run went on.
    pub resumed: Option<u64>,
}

fn run(recipe: &Path, cache: &Path) -> Command {
    let mut command = levain();
    command
        .args(["run", "--json", "--cache"])
        .arg(cache)
        .arg(recipe);
    command
}

/// Starts a run that nobody listens to but the test.
pub fn start(recipe: &Path, cache: &Path) -> Child {
    run(recipe, cache)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills `pid`, a part of the run `child`; waits until nothing of the run is left, and says what there is to see.
pub fn kill(mut child: Child, pid: u32, cache: &Path) -> Killed {
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
/// finds all of it. The training of the recipe is called `tuned`.
pub fn assert_recovers(
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
pub fn calm(recipe: &Path, cache: &Path) -> (Vec<(String, String, String)>, Duration) {
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
pub fn killed_at_random(
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

/// Writes the recipe of a training of so many steps, with a snapshot every second.
pub type Training<'a> = &'a dyn Fn(&Kitchen, u64) -> PathBuf;

/// Starts trainings of more and more steps until one is still at work when its first snapshot is there.
pub fn with_snapshot(
    kitchen: &Kitchen,
    training: Training<'_>,
    steps: &mut u64,
    cache: &Path,
) -> (PathBuf, Child) {
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

/// The recipe of a training that lasts somewhat longer than it takes to its first snapshot; `steps` is where the search begins.
pub fn long_enough(kitchen: &Kitchen, training: Training<'_>, mut steps: u64) -> PathBuf {
    let cache = kitchen.path().join("trial");
    let (_, child) = with_snapshot(kitchen, training, &mut steps, &cache);
    let pid = child.id();
    let seen = kill(child, pid, &cache).snapshot.unwrap();
    std::fs::remove_dir_all(cache).unwrap();
    training(kitchen, (seen * 7 / 4).max(seen + 1))
}

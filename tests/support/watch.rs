//! What a run leaves to see while it is at work: its events, its snapshots, its worker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::files;

/// Every event in the run's folder; a last line that is not whole yet is left out.
pub fn events(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Every event of every run in a cache.
pub fn all_events(cache: &Path) -> Vec<Value> {
    let runs = fs::read_dir(cache.join("runs")).into_iter().flatten();
    runs.flat_map(|run| events(&run.unwrap().path())).collect()
}

/// The step or update after which the run of this answer went on, when it went on from a snapshot.
pub fn resumed(answer: &Value) -> Option<u64> {
    let run = PathBuf::from(answer["run"].as_str()?);
    events(&run).iter().find_map(|event| {
        let text = event["text"].as_str()?;
        let after = text.strip_prefix("goes on from the snapshot after ")?;
        let (what, number) = after.split_once(' ').unwrap();
        assert!(matches!(what, "step" | "update"), "{text}");
        Some(number.parse().unwrap())
    })
}

/// The step of the newest whole snapshot in a cache.
pub fn snapshot(cache: &Path) -> Option<u64> {
    let partial = cache.join("partial");
    if !partial.is_dir() {
        return None;
    }
    // Folders vanish while one looks: nothing but names is asked for.
    let stages = fs::read_dir(partial).unwrap().flatten();
    let steps = stages.flat_map(|stage| fs::read_dir(stage.path()).into_iter().flatten().flatten());
    steps
        .filter_map(|step| {
            step.file_name()
                .to_str()?
                .strip_prefix("step-")?
                .parse()
                .ok()
        })
        .max()
}

/// Waits until `seen` gives something, or the child ends.
pub fn until<T>(child: &mut Child, seen: impl Fn() -> Option<T>) -> Option<T> {
    loop {
        let over = child.try_wait().unwrap().is_some();
        match seen() {
            Some(found) => return Some(found),
            None if over => return None,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The end of a child that has to end by itself; one that hangs is killed and fails the test.
pub fn ended(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None if begin.elapsed() > Duration::from_secs(120) => {
                child.kill().unwrap();
                panic!("the process {} does not end", child.id());
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The worker that the process `parent` started, while it is there.
pub fn worker_of(parent: u32) -> Option<u32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in brackets may hold anything; state and parent follow it. A zombie is no worker any more.
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let mut words = rest.split(' ');
        let alive = words.next()? != "Z";
        (alive && name.starts_with("levain-worker") && words.next()?.parse() == Ok(parent))
            .then_some(pid)
    })
}

/// Whether a process is there, zombies left out.
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .starts_with('Z')
    })
}

/// Waits until a process is gone that has to end by itself.
pub fn gone(pid: u32) {
    let begin = Instant::now();
    while alive(pid) {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "the process {pid} does not end"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal to a process that a test started; to its whole group when `pid` is negative.
pub fn signal(pid: i32, signal: i32) {
    // SAFETY: sends a signal and touches nothing of ours.
    let sent = unsafe { libc::kill(pid, signal) };
    assert!(
        sent == 0 || !alive(pid.unsigned_abs()),
        "signal {signal} to {pid}"
    );
}

/// How many files lie below `folder`, which need not be there.
pub fn count(folder: &Path) -> usize {
    if folder.is_dir() {
        files(folder).len()
    } else {
        0
    }
}

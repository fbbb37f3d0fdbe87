//! `ppo` and `grpo` killed or stopped at any moment: the next run ends with the same bytes as one that was left alone.

mod support;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use support::kill::{assert_recovers, calm, kill, killed_at_random, long_enough, with_snapshot};
use support::watch::{all_events, ended, resumed, signal, snapshot, until, worker_of};
use support::{Kitchen, Said, digests, tiny};

/// A policy that learns by `kind` in so many updates; `more` are further fields of its stage.
fn training(kitchen: &Kitchen, kind: &str, updates: u64, more: &str) -> PathBuf {
    tiny::model(kitchen, "model");
    let recipe = format!(
        "\
levain: 1
seed: 5
threads: 1
stages:
  base: {{ kind: load_model, source: model, dtype: f32 }}
  rows: {{ kind: load_dataset, source: rows.jsonl }}
  thin: {{ kind: lora, model: base, r: 4 }}
  words: {{ kind: rule, length: 3 }}
  tuned: {{ kind: {kind}, model: thin, reward: words, prompts: rows, updates: {updates}, batch: 8, temperature: 1.0, \
learning_rate: 1.0e-3, {more} }}
  tries: {{ kind: generate, model: tuned, prompts: rows, n: 2, temperature: 0.8, max_new_tokens: 8 }}
"
    );
    kitchen.write("train.yaml", &recipe)
}

/// With an adaptive penalty and running moments, which a snapshot has to hold as well.
fn ppo(kitchen: &Kitchen, updates: u64) -> PathBuf {
    let more = "epochs: 2, minibatches: 2, max_new_tokens: 12, kl_target: 0.5, kl_horizon: 100, normalize_scores: true, \
                critic_warmup: 1, snapshot_seconds: 1";
    training(kitchen, "ppo", updates, more)
}

fn grpo(kitchen: &Kitchen, updates: u64) -> PathBuf {
    let more = "epochs: 2, group: 4, max_new_tokens: 12, beta: 0.1, snapshot_seconds: 1";
    training(kitchen, "grpo", updates, more)
}

type Recipe = fn(&Kitchen, u64) -> PathBuf;

/// Ten kills at random moments, of the engine and of its worker in turn.
fn survives_kills(recipe: Recipe, seed: u64) {
    let kitchen = Kitchen::new(12);
    let path = long_enough(&kitchen, &recipe, 16);
    let victims: [&dyn Fn(u32) -> Option<u32>; 2] = [&Some, &worker_of];
    for (victim, seed) in victims.into_iter().zip(seed..) {
        let killed = killed_at_random(&path, 5, seed, victim);
        assert_eq!(killed.len(), 5);
    }
}

#[test]
fn a_killed_ppo_is_taken_up_by_the_next_run() {
    survives_kills(ppo, 41);
}

#[test]
fn a_killed_grpo_is_taken_up_by_the_next_run() {
    survives_kills(grpo, 43);
}

#[test]
fn what_was_killed_after_a_snapshot_goes_on_from_there() {
    let recipes: [Recipe; 2] = [ppo, grpo];
    for recipe in recipes {
        let kitchen = Kitchen::new(12);
        let cache = kitchen.path().join("killed");
        let mut updates = 16;
        let (path, child) = with_snapshot(&kitchen, &recipe, &mut updates, &cache);
        let pid = child.id();
        let mut killed = kill(child, pid, &cache);
        let (wanted, _) = calm(&path, &kitchen.path().join("calm"));
        assert_recovers(&mut killed, &path, &cache, &wanted);
        assert!(
            killed.resumed.is_some_and(|update| update < updates),
            "{:?} of {updates}",
            killed.resumed
        );
    }
}

/// The updates that the runs in a cache have told of.
fn updates(cache: &Path) -> u64 {
    let events = all_events(cache).into_iter();
    let updates = events.filter(|e| e["stage"] == "tuned" && e["event"] == "metrics");
    updates
        .filter_map(|e| e["step"].as_u64())
        .max()
        .unwrap_or(0)
}

/// Sends SIGINT to a run of `kind` after some updates, so that most likely completions are being sampled; whether that was so.
fn stopped_while_sampling(kind: &str, more: &str) -> bool {
    const UPDATES: u64 = 40;
    let kitchen = Kitchen::new(12);
    let cache = kitchen.cache();
    // Long completions and one epoch: nearly all of the time goes into sampling. No snapshot but the one that is asked for.
    let more = format!("epochs: 1, max_new_tokens: 80, snapshot_seconds: 100000{more}");
    training(&kitchen, kind, UPDATES, &more);
    let run = |cache: &str| {
        let mut command = kitchen.command(&["run", "train.yaml", "--json", "--cache", cache]);
        command.process_group(0);
        command
    };
    let mut child = run("cache")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until(&mut child, || (updates(&cache) >= 3).then_some(())).expect("the run ended by itself");
    std::thread::sleep(Duration::from_millis(10));
    signal(-(child.id() as i32), libc::SIGINT);
    assert_eq!(ended(&mut child).code(), Some(130));
    let after = updates(&cache);
    // The snapshot is of the last finished update, whether the one at work came to its end or was given up.
    assert_eq!(snapshot(&cache), Some(after));
    let whole = |cache: &str| Said::of(&mut run(cache)).expect(0).json();
    let answer = whole("cache");
    assert_eq!(resumed(&answer), Some(after));
    let calm = whole("calm");
    assert_eq!(resumed(&calm), None);
    assert_eq!(digests(&answer), digests(&calm));
    let said = format!("stopped while completions were sampled: goes on after update {after}");
    all_events(&cache)
        .iter()
        .any(|e| e["text"] == said.as_str())
}

#[test]
fn ctrl_c_while_completions_are_sampled_leaves_the_last_update() {
    for (kind, more) in [("ppo", ""), ("grpo", ", group: 4")] {
        let mut attempts = 0;
        while !stopped_while_sampling(kind, more) {
            attempts += 1;
            assert!(attempts < 8, "{kind}: no signal came while sampling");
        }
    }
}

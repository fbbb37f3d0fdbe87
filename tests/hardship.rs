//! Runs with tensors where things break: damaged blobs, damaged snapshots, a full disk, a cache that can only be read. Each is a
//! clear error or none, nothing that was kept is lost, and the next run ends with the bytes of an undisturbed one.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use support::artifacts::stage;
use support::hardship::{bound, limited, seal, unseal};
use support::watch::{ended, events, resumed, signal, snapshot, until};
use support::{Kitchen, Said, digests, files, scripted, text, tiny};

const RECIPE: &str = "\
levain: 1
seed: 5
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  rows: { kind: load_dataset, source: rows.jsonl }
  thin: { kind: lora, model: base, r: 4 }
  tuned: { kind: sft, model: thin, data: rows, max_steps: 4 }
  scores: { kind: evaluate, models: tuned, data: rows }
";

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(20);
    tiny::model(&kitchen, "model");
    kitchen.write("train.yaml", RECIPE);
    kitchen
}

/// The blob of a file that a stage made.
fn blob(kitchen: &Kitchen, answer: &Value, of: &str, output: &str, file: &str) -> PathBuf {
    let cache = engine::cache::Cache::open(&kitchen.cache()).unwrap();
    let digest = serde_json::from_value(stage(answer, of)["outputs"][output].clone()).unwrap();
    cache.view(digest).unwrap().file(file).unwrap().clone()
}

/// Changes a byte in the middle of a blob; `unseen` keeps its length and time, as a failing disk would.
fn damage(blob: &Path, unseen: bool) {
    let mut bytes = fs::read(blob).unwrap();
    let time = fs::metadata(blob).unwrap().modified().unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::remove_file(blob).unwrap();
    fs::write(blob, bytes).unwrap();
    if unseen {
        let file = fs::File::options().write(true).open(blob).unwrap();
        file.set_modified(time).unwrap();
    }
}

#[test]
fn a_damaged_blob_is_set_aside_and_made_anew() {
    let kitchen = kitchen();
    let run = || kitchen.say("run train.yaml --json").expect(0).json();
    let first = run();
    for (index, (of, output, file)) in [
        ("base", "model", "model.safetensors"),
        ("base", "model", "config.json"),
        ("rows", "rows", "rows.arrow"),
        ("tuned › tokens", "tokens", "tokens.arrow"),
        ("thin", "model", "adapter_model.safetensors"),
        ("tuned", "model", "adapter_model.safetensors"),
        ("tuned", "metrics", "metrics.json"),
        ("scores", "metrics", "metrics.json"),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{file} of {of}");
        let path = blob(&kitchen, &first, of, output, file);
        let unseen = index % 2 == 1;
        damage(&path, unseen);
        if unseen {
            let said = kitchen.say("cache verify").expect(1);
            assert!(
                said.out.contains("was damaged and is in quarantine now"),
                "{what}:\n{}",
                said.out
            );
        }
        let answer = run();
        assert_eq!(digests(&answer), digests(&first), "{what}");
        // Nodes of one key do their work once: which of them did it is chance.
        let mut nodes = answer["stages"].as_array().unwrap().iter();
        let key = &stage(&answer, of)["key"];
        assert!(
            nodes.any(|node| node["key"] == *key && node["outcome"] == "done"),
            "{what}: the damaged blob was used"
        );
        assert_eq!(
            files(&kitchen.cache().join("quarantine")).len(),
            1,
            "{what}"
        );
        fs::remove_dir_all(kitchen.cache().join("quarantine")).unwrap();
        kitchen.say("cache verify").expect(0);
        assert_eq!(run()["counts"]["ran"], 0, "{what}");
    }
}

/// Starts a training, asks it to stop, and gives the folder of its snapshot.
fn stopped(kitchen: &Kitchen) -> PathBuf {
    let mut steps = 300;
    loop {
        kitchen.write(
            "train.yaml",
            &RECIPE.replace("max_steps: 4", &format!("max_steps: {steps}")),
        );
        let mut child = kitchen
            .command(&["run", "train.yaml"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let trains = || {
            let all = support::watch::all_events(&kitchen.cache());
            all.iter()
                .any(|e| e["stage"] == "tuned" && e["event"] == "metrics")
                .then_some(())
        };
        until(&mut child, trains).expect("the training ended before it had begun");
        signal(child.id() as i32, libc::SIGINT);
        let code = ended(&mut child).code();
        if snapshot(&kitchen.cache()).is_some() {
            assert_eq!(code, Some(130));
            let of_snapshot = |f: &PathBuf| f.to_str().unwrap().contains("/step-");
            let mut found = files(&kitchen.cache().join("partial"))
                .into_iter()
                .filter(of_snapshot);
            return found.next().unwrap().parent().unwrap().to_owned();
        }
        // The training was over before the signal came.
        fs::remove_dir_all(kitchen.cache()).unwrap();
        steps *= 2;
    }
}

#[test]
fn a_damaged_snapshot_is_not_used() {
    let kitchen = kitchen();
    let folder = stopped(&kitchen);
    let calm = kitchen
        .say("run train.yaml --json --cache calm")
        .expect(0)
        .json();
    // Each damage begins from the same stopped run.
    let (name, keep) = (
        folder.strip_prefix(kitchen.path()).unwrap(),
        kitchen.path().join("keep"),
    );
    fs::rename(kitchen.cache(), &keep).unwrap();
    let names: BTreeSet<String> = files(&keep.join(name.strip_prefix("cache").unwrap()))
        .iter()
        .map(|f| f.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert!(names.len() > 3, "{names:?}");
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("one byte", |path| damage(path, true)),
        ("cut short", |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(fs::metadata(path).unwrap().len() / 2).unwrap();
        }),
        ("gone", |path| fs::remove_file(path).unwrap()),
    ];
    for (index, file) in names.iter().enumerate() {
        let (what, damage) = damages[index % damages.len()];
        copy(&keep, &kitchen.cache());
        damage(&folder.join(file));
        let answer = kitchen.say("run train.yaml --json").expect(0).json();
        assert_eq!(
            resumed(&answer),
            None,
            "{file} {what}: the snapshot was used"
        );
        let run = PathBuf::from(text(&answer["run"]));
        let said = |e: &Value| {
            e["level"] == "warning"
                && e["text"]
                    .as_str()
                    .is_some_and(|t| t.contains("the snapshot after step"))
        };
        assert!(
            events(&run).iter().any(said),
            "{file} {what}: nothing is said of it"
        );
        assert_eq!(digests(&answer), digests(&calm), "{file} {what}");
        fs::remove_dir_all(kitchen.cache()).unwrap();
    }
    // And the one that nobody damaged is used.
    copy(&keep, &kitchen.cache());
    let answer = kitchen.say("run train.yaml --json").expect(0).json();
    assert_eq!(resumed(&answer), snapshot(&keep));
    assert_eq!(digests(&answer), digests(&calm));
}

/// Copies a cache: blobs keep their time.
fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let copy = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&path, &copy).unwrap();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::File::open(&copy).unwrap().set_modified(time).unwrap();
    }
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let calm = kitchen();
    let expected = digests(&calm.say("run train.yaml --json").expect(0).json());
    let kitchen = kitchen();
    // What comes before the training is there; then the disk fills.
    kitchen.say("run train.yaml thin rows").expect(0);
    let sizes: BTreeSet<u64> = files(&calm.cache())
        .iter()
        .filter(|f| !f.starts_with(calm.cache().join("runs")))
        .map(|f| fs::metadata(f).unwrap().len())
        .collect();
    let largest = *sizes.last().unwrap();
    let mut failed = BTreeSet::new();
    for bytes in [
        0,
        100,
        600,
        1500,
        3000,
        6000,
        12_000,
        20_000,
        largest / 2,
        largest - 1,
    ] {
        let mut command = kitchen.command(&["run", "train.yaml", "--json"]);
        let said = Said::of(limited(&mut command, bytes));
        assert!(
            matches!(said.code, Some(0 | 1 | 4)),
            "{bytes} bytes: {:?}\n{}",
            said.code,
            said.err
        );
        if said.code != Some(0) {
            assert!(
                said.err.contains("File too large"),
                "{bytes} bytes: the cause is not said:\n{}",
                said.err
            );
            assert!(
                !said.err.contains("panicked") && !said.err.contains("crashed"),
                "{bytes} bytes:\n{}",
                said.err
            );
            let answer: Value = serde_json::from_str(&said.out).unwrap_or_default();
            let stages = answer["failures"].as_array().into_iter().flatten();
            failed.extend(stages.map(|f| text(&f["stage"])));
        }
        kitchen.say("cache verify").expect(0);
    }
    assert!(failed.contains("tuned"), "only {failed:?} felt the limit");
    let answer = kitchen.say("run train.yaml --json").expect(0).json();
    assert_eq!(digests(&answer), expected);
}

#[test]
fn a_cache_that_can_only_be_read_gives_hits_and_says_what_it_lacks() {
    let kitchen = kitchen();
    let first = kitchen.say("run train.yaml --json").expect(0).json();
    // What is asked for is refused before a worker gets any work; a script that only greets will do.
    let worker = scripted::worker(&kitchen, &scripted::greeting(), "cat > /dev/null");
    let run = |words: &[&str]| Said::of(bound(&kitchen).args(words).env("LEVAIN_WORKER", &worker));
    seal(&kitchen.cache());
    let hits = run(&["run", "train.yaml", "--json"]);
    let misses = run(&[
        "run",
        "train.yaml",
        "--json",
        "--set",
        "tuned.learning_rate=1.0e-3",
    ]);
    unseal(&kitchen.cache());
    let hits = hits.expect(0).json();
    assert_eq!(
        (&hits["counts"]["ran"], digests(&hits)),
        (&0.into(), digests(&first))
    );
    let misses = misses.expect(1);
    assert!(
        misses
            .err
            .contains("can't be written; name another with `--cache DIR` or LEVAIN_CACHE"),
        "{}",
        misses.err
    );
    assert_eq!(misses.json()["failures"][0]["stage"], "tuned");
    let answer = kitchen
        .say("run train.yaml --json --set tuned.learning_rate=1.0e-3")
        .expect(0)
        .json();
    assert_eq!(answer["counts"]["ran"], 2);
}

//! What happens to toy runs when the cache, the disk, the sources or the outputs are not as they should be, and when several run at once.

extern crate levain_engine as engine;

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use engine::cache::{Cache, Taken};
use engine::event::What;

use support::{CHAIN, Kitchen, Ran, Told, artifact, check, run, same, try_run};

/// Replaces a blob: they are read only, and a hard link would change with it.
fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_deleted_blob_is_a_miss() {
    let kitchen = Kitchen::new();
    let first = kitchen.run(CHAIN, &Told::default());
    fs::remove_file(kitchen.blob(&first.outcome, "a", "text")).unwrap();
    let ran = check(
        &kitchen,
        CHAIN,
        "a will run\nb may run\nc may run",
        "a done\nb hit\nc hit",
    );
    assert_eq!(ran.digests(), first.digests());
}

#[test]
fn a_damaged_blob_is_set_aside_and_made_anew() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 3] = [
        ("one byte", |b| b[0] ^= 1),
        ("cut", |b| b.truncate(1)),
        ("longer", |b| b.extend(b"more")),
    ];
    for (what, damage) in damages {
        let kitchen = Kitchen::new();
        let first = kitchen.run(CHAIN, &Told::default());
        let blob = kitchen.blob(&first.outcome, "a", "text");
        overwrite(&blob, damage);
        let ran = check(
            &kitchen,
            CHAIN,
            "a will run\nb may run\nc may run",
            "a done\nb hit\nc hit",
        );
        assert_eq!(ran.digests(), first.digests(), "{what}");
        assert_eq!(kitchen.files("quarantine").len(), 1, "{what}");
        assert_eq!(fs::read_to_string(&blob).unwrap(), "Flour", "{what}");
    }
}

#[test]
fn a_damaged_manifest_is_set_aside_and_made_anew() {
    let kitchen = Kitchen::new();
    let first = kitchen.run(CHAIN, &Told::default());
    let manifest = kitchen
        .cache()
        .object_path(artifact(&first.outcome, "b", "text"));
    overwrite(&manifest, |bytes| bytes[3] ^= 1);
    let ran = check(
        &kitchen,
        CHAIN,
        "a cached\nb will run\nc may run",
        "a hit\nb done\nc hit",
    );
    assert_eq!(ran.digests(), first.digests());
    // The same blob touched and not changed is no damage.
    fs::File::options()
        .read(true)
        .open(&manifest)
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    same(
        &kitchen.plan(CHAIN, &Told::default()),
        "a cached\nb cached\nc cached",
    );
}

#[test]
fn an_entry_that_cant_be_read_is_a_miss() {
    let damages: [fn(&mut Vec<u8>); 4] = [
        |b| b.truncate(b.len() / 2),
        |b| b.clear(),
        |b| b.fill(0),
        |b| {
            *b = br#"{"record":{},"outputs":{},"reaches":[],"tokenizers":{},"provenance":{}}"#
                .to_vec()
        },
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        let kitchen = Kitchen::new();
        let recipe = "  a: { kind: say, text: Flour }\n";
        let first = kitchen.run(recipe, &Told::default());
        let entries = kitchen.files("entries");
        assert_eq!(entries.len(), 1);
        overwrite(&entries[0], damage);
        let ran = check(&kitchen, recipe, "a will run", "a done");
        assert_eq!(ran.digests(), first.digests(), "damage {index}");
    }
}

#[test]
fn leftovers_of_killed_runs_disturb_nothing() {
    let kitchen = Kitchen::new();
    let cache = kitchen.cache();
    let session = kitchen.open(CHAIN, &Told::default());
    let key = session.standings()[0].record.as_ref().unwrap().key();
    // A lease of a process that is gone, half a lease, private folders, half a blob.
    fs::write(
        cache.root().join("leases").join(key.to_string()),
        "999999999 no-boot",
    )
    .unwrap();
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::options()
        .write(true)
        .open(cache.root().join("leases").join(key.to_string()))
        .unwrap()
        .set_modified(old)
        .unwrap();
    assert!(
        !cache.at_work(),
        "a process that is gone is taken for one at work"
    );
    fs::create_dir(cache.root().join("tmp/work-abc")).unwrap();
    fs::write(cache.root().join("tmp/work-abc/text.txt"), "Fl").unwrap();
    fs::write(cache.root().join("tmp/.tmpabc"), "{\"rec").unwrap();
    fs::create_dir_all(cache.root().join("partial").join(key.to_string())).unwrap();
    same(
        &kitchen.run(CHAIN, &Told::default()).text(),
        "a done\nb done\nc done",
    );
}

/// Takes the right to write from a folder and all in it, or gives it back.
fn set_writable(folder: &Path, writable: bool) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            set_writable(&path, writable);
        }
    }
    fs::set_permissions(
        folder,
        fs::Permissions::from_mode(if writable { 0o755 } else { 0o555 }),
    )
    .unwrap();
}

#[test]
fn a_read_only_cache_gives_hits_and_a_clear_error_for_the_rest() {
    // Permissions do not bind root: the whole-program tests run this with a user of their own.
    if unsafe { libc::geteuid() } == 0 {
        println!(
            "skipped: permissions do not bind root; tests/end_to_end.rs does the same as another user"
        );
        return;
    }
    let kitchen = Kitchen::new();
    kitchen.run(CHAIN, &Told::default());
    let cache = kitchen.cache();
    set_writable(cache.root(), false);
    let hits = run(
        &mut kitchen.open_in(CHAIN, &Told::default(), cache.clone()),
        &Told::default(),
    );
    let ran = try_run(
        &mut kitchen.open_in(
            &CHAIN.replace("Flour", "Rye"),
            &Told::default(),
            cache.clone(),
        ),
        &Told::default(),
    );
    set_writable(cache.root(), true);
    same(&hits.text(), "a hit\nb hit\nc hit");
    let text = ran.unwrap().text();
    assert!(
        text.contains("can't be written; name another with `--cache DIR` or LEVAIN_CACHE"),
        "{text}"
    );
}

#[test]
fn a_cache_that_cant_be_made_is_a_clear_error() {
    let kitchen = Kitchen::new();
    kitchen.write("file", "");
    for place in ["file", "file/cache"] {
        let error = format!(
            "{:#}",
            Cache::open(&kitchen.path().join(place)).unwrap_err()
        );
        assert!(
            error.contains(place)
                && error.contains("name another with `--cache DIR` or LEVAIN_CACHE"),
            "{error}"
        );
    }
}

#[test]
fn two_runs_at_once_do_the_work_once() {
    let kitchen = Kitchen::new();
    let recipe = "  a: { kind: slow, text: x, milliseconds: 400 }\n  b: { kind: slow, text: y, milliseconds: 400 }\n  c: { kind: join, parts: [a, b] }\n";
    let runs: Vec<Ran> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| kitchen.run(recipe, &Told::default())))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let finished = |stage: &str| {
        let of = |r: &Ran| {
            r.events
                .iter()
                .filter(|e| {
                    e.stage.as_deref() == Some(stage) && matches!(e.what, What::Finished { .. })
                })
                .count()
        };
        runs.iter().map(of).sum::<usize>()
    };
    assert_eq!([finished("a"), finished("b"), finished("c")], [1, 1, 1]);
    assert!(
        runs.iter()
            .all(|r| r.outcome.lock.complete && r.digests() == runs[0].digests())
    );
}

#[test]
fn a_source_that_changes_while_a_stage_runs_is_not_published() {
    let kitchen = Kitchen::new();
    kitchen.write("notes.txt", "starter");
    let recipe = "  a: { kind: scribble, source: notes.txt }\n  b: { kind: lower, data: a }\n";
    let text = kitchen.run(recipe, &Told::default()).text();
    assert!(
        text.starts_with("a failed\nb skipped\n")
            && text.contains("notes.txt changed while it was used"),
        "{text}"
    );
    assert!(
        text.contains("nothing made of it was kept; run again"),
        "{text}"
    );
    assert_eq!(kitchen.files("entries").len(), 0);
}

#[test]
fn a_source_counts_by_its_content_alone() {
    let kitchen = Kitchen::new();
    kitchen.write("one.txt", "starter");
    let recipe = "  a: { kind: read, source: one.txt }\n";
    kitchen.run(recipe, &Told::default());
    kitchen.write("two.txt", "starter");
    same(
        &kitchen.plan("  a: { kind: read, source: two.txt }\n", &Told::default()),
        "a cached",
    );
    kitchen.write("one.txt", "starter");
    same(&kitchen.plan(recipe, &Told::default()), "a cached");
    kitchen.write("one.txt", "Starter");
    same(&kitchen.plan(recipe, &Told::default()), "a will run");
}

#[test]
fn outputs_are_restored_and_only_where_they_differ() {
    let kitchen = Kitchen::new();
    let recipe = "levain: 1\nstages:\n  a: { kind: say, text: Flour }\n  b: { kind: halves, data: a }\n\
                  outputs:\n  whole: { from: a, to: out/whole }\n  right: { from: b.right, to: out/right }\n";
    let written = |ran: &Ran| {
        ran.outcome
            .exports
            .iter()
            .map(|e| e.written)
            .collect::<Vec<_>>()
    };
    let ran = kitchen.run(recipe, &Told::default());
    assert_eq!(written(&ran), [1, 1]);
    let whole = kitchen.path().join("out/whole/text.txt");
    assert_eq!(fs::read_to_string(&whole).unwrap(), "Flour");
    assert_eq!(written(&kitchen.run(recipe, &Told::default())), [0, 0]);
    // Edited: the user's copy may be written to, and never touches the cache.
    fs::write(&whole, "mine").unwrap();
    let ran = kitchen.run(recipe, &Told::default());
    assert_eq!((written(&ran), ran.started()), (vec![1, 0], 0));
    assert_eq!(fs::read_to_string(&whole).unwrap(), "Flour");
    // Deleted, and a link in its place.
    fs::remove_dir_all(kitchen.path().join("out")).unwrap();
    assert_eq!(written(&kitchen.run(recipe, &Told::default())), [1, 1]);
    kitchen.write("elsewhere.txt", "Flour");
    fs::remove_file(&whole).unwrap();
    std::os::unix::fs::symlink(kitchen.path().join("elsewhere.txt"), &whole).unwrap();
    assert_eq!(written(&kitchen.run(recipe, &Told::default())), [1, 0]);
    assert!(fs::symlink_metadata(&whole).unwrap().is_file());
    // A folder that can't be written fails the run, and loses nothing.
    fs::remove_dir_all(kitchen.path().join("out")).unwrap();
    kitchen.write("out", "in the way");
    let ran = kitchen.run(recipe, &Told::default());
    assert_eq!((ran.outcome.failures.len(), ran.started()), (2, 0));
    assert!(
        ran.outcome
            .failures
            .iter()
            .all(|f| f.stage.starts_with("outputs.") && f.error.contains("can't be written"))
    );
}

#[test]
fn outputs_touch_nothing_that_is_not_theirs() {
    let kitchen = Kitchen::new();
    let recipe = |text: &str, of: &str| {
        format!(
            "levain: 1\nstages:\n  a: {{ kind: say, text: {text} }}\n  b: {{ kind: halves, data: a }}\n\
             outputs:\n  kept: {{ from: {of}, to: mine }}\n"
        )
    };
    let refused = |ran: &Ran, why: &str| {
        let [failure] = &ran.outcome.failures[..] else {
            panic!("{:?}", ran.outcome.failures)
        };
        let fits = failure.stage == "outputs.kept" && failure.error.contains(why);
        assert!(fits, "{failure:?}");
    };
    let mine = kitchen.path().join("mine");
    // Somebody's folder.
    fs::create_dir(&mine).unwrap();
    kitchen.write("mine/text.txt", "the only copy");
    refused(
        &kitchen.run(&recipe("Flour", "a"), &Told::default()),
        "no output of a recipe wrote",
    );
    assert_eq!(
        fs::read_to_string(mine.join("text.txt")).unwrap(),
        "the only copy"
    );
    // One of its own, with somebody's file beside it, which stays.
    fs::remove_dir_all(&mine).unwrap();
    // What a kill left of a first list does not make the folder somebody's.
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join(format!("{}x7Qa", engine::export::MARK)), "{").unwrap();
    let ran = kitchen.run(&recipe("Flour", "a"), &Told::default());
    assert!(
        ran.outcome.failures.is_empty(),
        "{:?}",
        ran.outcome.failures
    );
    kitchen.write("mine/notes.txt", "rye");
    kitchen.run(&recipe("Water", "a"), &Told::default());
    assert_eq!(fs::read_to_string(mine.join("text.txt")).unwrap(), "Water");
    assert_eq!(fs::read_to_string(mine.join("notes.txt")).unwrap(), "rye");
    // A file in the way of a new name.
    let list = mine.join(engine::export::MARK);
    fs::write(&list, "{ \"files\": {} }").unwrap();
    refused(
        &kitchen.run(&recipe("Flour", "a"), &Told::default()),
        "was not written by this recipe",
    );
    assert_eq!(fs::read_to_string(mine.join("text.txt")).unwrap(), "Water");
    // A link that leads out.
    fs::remove_dir_all(&mine).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &mine).unwrap();
    refused(
        &kitchen.run(&recipe("Flour", "a"), &Told::default()),
        "leads out of the recipe's folder",
    );
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn a_lease_is_held_by_one_and_given_back() {
    let kitchen = Kitchen::new();
    let cache = kitchen.cache();
    let key = engine::digest::Digest::of_bytes(b"key");
    let Taken::Ours(lease) = cache.lease(key) else {
        panic!("nobody holds the lease")
    };
    assert!(cache.at_work() && matches!(cache.lease(key), Taken::Theirs));
    drop(lease);
    assert!(!cache.at_work() && matches!(cache.lease(key), Taken::Ours(_)));
    // One whose process is gone is taken over at once: no waiting for a heartbeat.
    let path = cache.root().join("leases").join(key.to_string());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    fs::write(&path, format!("2147483646 {}", boot.trim())).unwrap();
    assert!(!cache.at_work() && matches!(cache.lease(key), Taken::Ours(_)));
}

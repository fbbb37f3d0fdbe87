//! Files and folders: digests, what is refused, the memo, and changes while a stage runs.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use engine::digest::Digest;
use engine::source::{Entry, Memo, digest_of, recheck};
use serde_json::json;

use crate::store::{Bench, contents, named};

fn entry(name: &str, text: &str) -> Entry {
    Entry {
        name: name.into(),
        size: text.len() as u64,
        digest: Digest::of_bytes(text.as_bytes()),
    }
}

/// Gives a file an age, so that the memo trusts it.
fn age(path: &Path, seconds: u64) {
    let then = SystemTime::now() - Duration::from_secs(seconds);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(then).unwrap();
}

#[test]
fn a_file_has_the_digest_of_its_bytes() {
    let bench = Bench::new();
    bench.write("data/rows.json", "[]");
    let resolved = bench.local(json!("data/rows.json")).unwrap().unwrap();
    // `printf '[]' | b3sum`, by the Python package blake3 1.0.11.
    let expected = "d53d18c23212ea7b6300594bb89bce60218f6eff2b9d628b8cc42d3e79bbd5ab";
    assert_eq!(resolved.digest.to_string(), expected);
    assert_eq!(contents(&resolved), named(&[("rows.json", "[]")]));
    assert_eq!(
        (resolved.location.as_str(), resolved.remote),
        ("data/rows.json", false)
    );
    let pinned = json!({"from": "data/rows.json", "blake3": expected});
    assert_eq!(bench.fetch(pinned).unwrap().digest, resolved.digest);
}

#[test]
fn a_folder_is_its_files_by_name_without_the_hidden_ones() {
    let bench = Bench::new();
    for (name, text) in [
        ("f/b.txt", "b"),
        ("f/a/z.txt", "z"),
        ("f/a.txt", "a"),
        ("f/.git/x", "x"),
        ("f/.hidden", "h"),
    ] {
        bench.write(name, text);
    }
    let resolved = bench.local(json!("f")).unwrap().unwrap();
    let files = [("a.txt", "a"), ("a/z.txt", "z"), ("b.txt", "b")];
    assert_eq!(contents(&resolved), named(&files));
    assert_eq!(
        resolved.digest,
        digest_of(&files.map(|(name, text)| entry(name, text)))
    );
    let mut skipped = resolved.skipped.clone();
    skipped.sort();
    assert_eq!(skipped, [".git is hidden", ".hidden is hidden"]);
    // A name is part of it, where the folder is is not.
    std::fs::rename(bench.base().join("f"), bench.base().join("g")).unwrap();
    assert_eq!(
        bench.local(json!("g/")).unwrap().unwrap().digest,
        resolved.digest
    );
    std::fs::rename(bench.base().join("g/b.txt"), bench.base().join("g/c.txt")).unwrap();
    assert_ne!(
        bench.local(json!("g")).unwrap().unwrap().digest,
        resolved.digest
    );
}

#[test]
fn several_files_keep_their_order_and_unique_names() {
    let bench = Bench::new();
    bench.write("2024/rows.json", "b");
    bench.write("2023/rows.json", "a");
    let one = bench
        .local(json!(["2024/rows.json", "2023/rows.json"]))
        .unwrap()
        .unwrap();
    assert_eq!(
        contents(&one),
        named(&[("rows.json", "b"), ("2/rows.json", "a")])
    );
    assert_eq!(
        one.digest,
        digest_of(&[entry("rows.json", "b"), entry("2/rows.json", "a")])
    );
    let other = bench
        .local(json!(["2023/rows.json", "2024/rows.json"]))
        .unwrap()
        .unwrap();
    assert_ne!(one.digest, other.digest);
    let with_folder = bench
        .local(json!(["2023/rows.json", "2024"]))
        .unwrap()
        .unwrap();
    assert_eq!(
        contents(&with_folder),
        named(&[("rows.json", "a"), ("2024/rows.json", "b")])
    );
}

#[test]
fn what_is_not_there_has_a_nearest_name() {
    let bench = Bench::new();
    bench.write("data/alpaca_en_demo.json", "[]");
    let message = bench.refusal(json!("data/alpaca_en_dmeo.json"));
    assert!(
        message.contains("the nearest name") && message.contains("`alpaca_en_demo.json`"),
        "{message}"
    );
    let message = bench.refusal(json!("dta/alpaca_en_demo.json"));
    assert!(message.contains("`data`"), "{message}");
    let message = bench.refusal(json!("data/alpaca_en_demo.json/x"));
    assert!(message.contains("is not there"), "{message}");
}

#[test]
fn what_cannot_be_pinned_is_refused() {
    let bench = Bench::new();
    let pipe = std::ffi::CString::new(bench.base().join("pipe").to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    std::fs::create_dir(bench.base().join("empty")).unwrap();
    bench.write("only-hidden/.x", "x");
    bench.write("with-pipe/a", "a");
    std::fs::rename(
        bench.base().join("pipe"),
        bench.base().join("with-pipe/pipe"),
    )
    .unwrap();
    symlink("nowhere", bench.base().join("dangling")).unwrap();
    symlink("loop", bench.base().join("loop")).unwrap();
    for (source, part) in [
        ("with-pipe/pipe", "is a pipe"),
        (
            "with-pipe",
            "is a pipe: a folder of a source may only hold files",
        ),
        ("/dev/null", "is a device"),
        ("empty", "has no files"),
        ("only-hidden", "has no files (left out: .x is hidden)"),
        ("dangling", "is a link to something that is not there"),
        ("loop", "cannot be read"),
    ] {
        let message = bench.refusal(json!(source));
        assert!(message.contains(part), "{source}: {message}");
    }
    let memo = Memo::none()
        .digest(&bench.base().join("with-pipe/pipe"))
        .unwrap_err();
    assert!(memo.to_string().contains("is a pipe"), "{memo}");
}

#[test]
fn links_stay_in_their_folder() {
    let bench = Bench::new();
    bench.write("secret", "s");
    bench.write("f/a", "a");
    symlink("a", bench.base().join("f/b")).unwrap();
    assert_eq!(
        contents(&bench.fetch(json!("f")).unwrap()),
        named(&[("a", "a"), ("b", "a")])
    );
    symlink("../secret", bench.base().join("f/c")).unwrap();
    let message = bench.refusal(json!("f"));
    assert!(
        message.contains("f/c is a link out of the folder"),
        "{message}"
    );
    // The hub's own cache is made of links into `blobs`.
    bench.write("models--o--r/blobs/1", "{}");
    std::fs::create_dir_all(bench.base().join("models--o--r/snapshots/c")).unwrap();
    symlink(
        "../../blobs/1",
        bench.base().join("models--o--r/snapshots/c/config.json"),
    )
    .unwrap();
    let resolved = bench.fetch(json!("models--o--r/snapshots/c")).unwrap();
    assert_eq!(contents(&resolved), named(&[("config.json", "{}")]));
}

#[test]
fn the_first_alternative_that_matches_wins_and_all_failures_are_told() {
    let bench = Bench::new();
    bench.write("old.json", "old");
    bench.write("new.json", "new");
    let pin = Digest::of_bytes(b"new").to_string();
    let resolved = bench
        .fetch(json!({"from": ["none.json", "old.json", "new.json"], "blake3": pin}))
        .unwrap();
    assert_eq!(resolved.location, "new.json");
    let message = bench.refusal(json!({"from": ["none.json", "old.json"], "blake3": pin}));
    for part in [
        "none.json: it is not there",
        "old.json: its blake3 is",
        &pin,
        "the recipe's pin",
    ] {
        assert!(message.contains(part), "{message}");
    }
    // A lock says nothing of a user's own file.
    let spec = engine::source::parse_spec(&json!("old.json")).unwrap();
    let known = Some(Digest::of_bytes(b"new"));
    bench.with(|resolver| {
        assert_eq!(
            resolver.fetch(&spec, known).unwrap().digest,
            Digest::of_bytes(b"old")
        )
    });
}

#[test]
fn the_memo_remembers_old_files_and_distrusts_young_ones() {
    let bench = Bench::new();
    let path = bench.write("rows", "one");
    let memo = Memo::new(bench.folder.path().join("memo"));
    let entries =
        || std::fs::read_dir(bench.folder.path().join("memo")).map_or(0, |dir| dir.count());
    assert_eq!(memo.digest(&path).unwrap(), (Digest::of_bytes(b"one"), 3));
    assert_eq!(entries(), 0, "a file this young may change without a trace");
    // Its change time is young too, and only waiting makes it old.
    std::thread::sleep(Duration::from_millis(2100));
    memo.digest(&path).unwrap();
    assert_eq!(entries(), 1);
    // The entry is believed: a digest put there by hand comes back.
    let file = std::fs::read_dir(bench.folder.path().join("memo"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let line = std::fs::read_to_string(&file).unwrap();
    let forged = line.replace(
        &Digest::of_bytes(b"one").to_string(),
        &Digest::of_bytes(b"forged").to_string(),
    );
    std::fs::write(&file, &forged).unwrap();
    assert_eq!(memo.digest(&path).unwrap().0, Digest::of_bytes(b"forged"));
    // Any change of the file ends that, even one that keeps size and modification time.
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, "two").unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    assert_eq!(memo.digest(&path).unwrap().0, Digest::of_bytes(b"two"));
    // A damaged entry is as good as none.
    for text in ["", "1 2 3", "garbage"] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(memo.digest(&path).unwrap().0, Digest::of_bytes(b"two"));
    }
    let inode = std::fs::metadata(&path).unwrap().ino();
    std::fs::write(&file, forged.replace(' ', &format!(" {inode} "))).unwrap();
    assert_eq!(memo.digest(&path).unwrap().0, Digest::of_bytes(b"two"));
}

#[test]
fn a_file_that_changes_while_it_is_used_is_noticed() {
    let bench = Bench::new();
    let path = bench.write("f/rows", "one");
    bench.write("f/other", "x");
    let resolved = bench.fetch(json!("f")).unwrap();
    recheck(&resolved, &bench.memo).unwrap();
    std::fs::write(&path, "two").unwrap();
    age(&path, 100);
    let message = format!("{:#}", recheck(&resolved, &bench.memo).unwrap_err());
    assert!(
        message.contains("rows changed while it was used"),
        "{message}"
    );
    std::fs::remove_file(&path).unwrap();
    let message = format!("{:#}", recheck(&resolved, &bench.memo).unwrap_err());
    assert!(message.contains("cannot be read"), "{message}");
}

//! Addresses: whole files, resumed ones, silence, lies about lengths, pins, and the store instead of the network.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use engine::digest::Digest;
use engine::source::{Memo, Resolver, parse_spec};
use serde_json::json;

use crate::server::{Reply, Server};
use crate::store::{Bench, Store, contents, named};

fn long() -> Vec<u8> {
    (0..400_000u32).flat_map(|n| n.to_le_bytes()).collect()
}

#[test]
fn a_file_is_fetched_once_and_then_found() {
    let server = Server::start(|request| match request.path.as_str() {
        "/a/rows.json?token=s3cret" => Reply::new(200, "[1]"),
        _ => Reply::new(404, ""),
    });
    let mut bench = Bench::new();
    let source = json!(format!("{}/a/rows.json?token=s3cret", server.address));
    assert!(bench.local(source.clone()).unwrap().is_none());
    let resolved = bench.fetch(source.clone()).unwrap();
    assert_eq!(contents(&resolved), named(&[("rows.json", "[1]")]));
    assert_eq!(resolved.digest, Digest::of_bytes(b"[1]"));
    assert!(resolved.remote && resolved.location.ends_with("/a/rows.json?…"));
    assert!(!bench.notes().contains("s3cret"));
    assert_eq!(bench.told.borrow().last(), Some(&(3, Some(3))));
    // Found again, with and without the network; nothing is left behind.
    assert!(bench.local(source.clone()).unwrap().is_some());
    bench.offline = true;
    assert_eq!(bench.fetch(source.clone()).unwrap().digest, resolved.digest);
    assert_eq!(server.seen().len(), 1);
    assert!(bench.parts().is_empty(), "{:?}", bench.parts());
    // An update asks again.
    (bench.offline, bench.update) = (false, true);
    bench.fetch(source).unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn a_cut_connection_is_resumed_where_it_stopped() {
    let body = long();
    let whole = body.clone();
    let server = Server::start(move |request| {
        let mut reply = Reply::file(request, &body, "\"one\"");
        if request.range().is_none_or(|start| start < 1_000_000) {
            reply.cut = Some(600_000);
        }
        reply
    });
    let bench = Bench::new();
    let resolved = bench.fetch(json!(format!("{}/x", server.address))).unwrap();
    assert_eq!(resolved.digest, Digest::of_bytes(&whole));
    let ranges: Vec<Option<usize>> = server
        .seen()
        .iter()
        .map(|request| request.range())
        .collect();
    assert_eq!(ranges, [None, Some(600_000), Some(1_200_000)]);
    assert!(
        server.seen()[1..]
            .iter()
            .all(|request| request.header("if-range") == Some("\"one\""))
    );
}

#[test]
fn a_later_run_goes_on_and_a_changed_file_begins_anew() {
    let (body, other) = (long(), long().iter().map(|b| b ^ 1).collect::<Vec<u8>>());
    let (whole, changed) = (body.clone(), other.clone());
    let phase = std::sync::Arc::new(AtomicUsize::new(0));
    let now = phase.clone();
    let server = Server::start(move |request| {
        let phase = now.load(Ordering::SeqCst);
        let mut reply = match phase {
            2 => Reply::file(request, &other, "\"two\""),
            _ => Reply::file(request, &body, "\"one\""),
        };
        if phase == 0 {
            // Every try breaks at the same place, and only the first one gets there.
            reply.cut = Some(if request.range().is_some() {
                0
            } else {
                500_000
            });
        }
        reply
    });
    let bench = Bench::new();
    let source = json!(format!("{}/x", server.address));
    let message = bench.refusal(source.clone());
    assert!(message.contains("tried 3 times"), "{message}");
    assert_eq!(
        bench.parts().len(),
        2,
        "the part and its tag stay: {:?}",
        bench.parts()
    );
    let other_bench = Bench::new();
    other_bench.refusal(source.clone());
    phase.store(1, Ordering::SeqCst);
    assert_eq!(
        bench.fetch(source.clone()).unwrap().digest,
        Digest::of_bytes(&whole)
    );
    assert_eq!(server.seen().last().unwrap().range(), Some(500_000));
    phase.store(2, Ordering::SeqCst);
    assert_eq!(
        other_bench.fetch(source).unwrap().digest,
        Digest::of_bytes(&changed)
    );
}

#[test]
fn busy_and_silent_servers_are_asked_again() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503, ""),
        1 => Reply::new(429, "").header("Retry-After", "0"),
        _ => Reply::new(200, "x"),
    });
    let bench = Bench::new();
    bench.fetch(json!(format!("{}/x", server.address))).unwrap();
    let silent = Server::start(|_| {
        let mut reply = Reply::new(200, "0123456789");
        reply.silence = Some(Duration::from_secs(20));
        reply
    });
    let before = Instant::now();
    let message = bench.refusal(json!(format!("{}/x", silent.address)));
    assert!(message.contains("the connection broke"), "{message}");
    assert!(before.elapsed() < Duration::from_secs(15));
    let patient = Server::start(|_| Reply::new(429, "").header("Retry-After", "7200"));
    let message = bench.refusal(json!(format!("{}/x", patient.address)));
    assert!(
        message.contains("HTTP 429") && message.contains("wait 7200 s"),
        "{message}"
    );
}

#[test]
fn errors_name_the_address_the_status_and_the_cause() {
    let server = Server::start(|request| match request.path.as_str() {
        "/loop" => Reply::redirect("/loop"),
        "/plain" => Reply::redirect("http://host.example/x"),
        _ => Reply::new(404, "no"),
    });
    let bench = Bench::new();
    for (path, part) in [
        ("/none?sig=abc", "/none?…: HTTP 404 Not Found"),
        ("/loop", "more than 10 redirects"),
        ("/plain", "plain http can be changed on the way"),
    ] {
        let message = bench.refusal(json!(format!("{}{path}", server.address)));
        assert!(
            message.contains(part) && !message.contains("sig=abc"),
            "{message}"
        );
    }
    assert_eq!(bench.blobs(), 0);
    // Nobody listens on the port of the endpoint of a bench.
    let message = bench.refusal(json!("http://127.0.0.1:1/x"));
    assert!(
        message.contains("no connection to 127.0.0.1:1"),
        "{message}"
    );
}

#[test]
fn a_wrong_pin_falls_to_the_next_alternative() {
    let server = Server::start(|request| match request.path.as_str() {
        "/old" => Reply::new(200, "old"),
        "/new" => Reply::new(200, "new"),
        _ => Reply::new(404, ""),
    });
    let bench = Bench::new();
    let at = |path: &str| format!("{}{path}", server.address);
    let pin = Digest::of_bytes(b"new");
    let all = json!({"from": [at("/none"), at("/old"), at("/new")], "blake3": pin});
    let resolved = bench.fetch(all.clone()).unwrap();
    assert_eq!(resolved.location, at("/new"));
    assert_eq!(bench.blobs(), 1, "what nobody asked for is not kept");
    // What is pinned and in the store needs no place at all.
    let seen = server.seen().len();
    let elsewhere = bench
        .fetch(json!({"from": ["gone.json", at("/gone")], "blake3": pin}))
        .unwrap();
    assert_eq!((elsewhere.digest, server.seen().len()), (pin, seen));
    let message =
        bench.refusal(json!({"from": [at("/none"), at("/old")], "blake3": Digest::of_bytes(b"x")}));
    assert!(
        message.contains("/none: ")
            && message.contains("HTTP 404")
            && message.contains("/old: its blake3 is"),
        "{message}"
    );
}

#[test]
fn a_lock_binds_what_is_outside() {
    let server = Server::start(|_| Reply::new(200, "new"));
    let bench = Bench::new();
    let spec = parse_spec(&json!(format!("{}/x", server.address))).unwrap();
    let (old, new) = (Digest::of_bytes(b"old"), Digest::of_bytes(b"new"));
    bench.with(|resolver| {
        let message = format!("{:#}", resolver.fetch(&spec, Some(old)).unwrap_err());
        assert!(message.contains("the lock"), "{message}");
        assert_eq!(resolver.fetch(&spec, Some(new)).unwrap().digest, new);
        // The note now says `new`; a lock that says `old` is not satisfied by it.
        assert!(resolver.local(&spec, Some(old)).unwrap().is_none());
        assert!(resolver.local(&spec, Some(new)).unwrap().is_some());
    });
}

#[test]
fn offline_says_what_to_place_where_and_takes_the_alternative_that_is_here() {
    let mut bench = Bench::new();
    bench.write("copy.json", "[]");
    let both = json!({"from": ["https://host.example/x.json", "copy.json"]});
    assert!(
        bench.local(both.clone()).unwrap().is_none(),
        "an unasked alternative comes first"
    );
    let spec = parse_spec(&both).unwrap();
    let (own, other) = (Digest::of_bytes(b"[]"), Digest::of_bytes(b"other"));
    bench.with(|resolver| {
        assert!(resolver.local(&spec, Some(other)).unwrap().is_none());
        assert!(resolver.local(&spec, Some(own)).unwrap().is_some());
    });
    bench.offline = true;
    assert_eq!(bench.fetch(both).unwrap().location, "copy.json");
    let message = bench.refusal(json!("https://host.example/x.json"));
    assert!(
        message.contains("https://host.example/x.json") && message.contains("copy the file here"),
        "{message}"
    );
}

#[test]
fn a_blob_that_left_the_store_is_fetched_again() {
    let server = Server::start(|_| Reply::new(200, "x"));
    let bench = Bench::new();
    let source = json!(format!("{}/x", server.address));
    let resolved = bench.fetch(source.clone()).unwrap();
    std::fs::remove_file(&resolved.files[0].path).unwrap();
    let message = engine::source::recheck(&resolved, &bench.memo)
        .unwrap_err()
        .to_string();
    assert!(message.contains("left the cache"), "{message}");
    assert!(bench.local(source.clone()).unwrap().is_none());
    bench.fetch(source).unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn two_processes_at_once_both_get_the_whole_file() {
    let body = long();
    let whole = Digest::of_bytes(&body);
    let server = Server::start(move |request| {
        let mut reply = Reply::file(request, &body, "\"one\"");
        reply.silence = Some(Duration::from_millis(100));
        reply
    });
    let bench = Bench::new();
    let (folder, network) = (bench.base(), &bench.network);
    let spec = parse_spec(&json!(format!("{}/x", server.address))).unwrap();
    std::thread::scope(|scope| {
        let one = || {
            let (store, memo) = (Store::beside(&folder), Memo::none());
            let resolver = Resolver::new(&folder, &store, &memo, network);
            resolver.fetch(&spec, None).unwrap().digest
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), whole);
        }
    });
    assert!(bench.parts().is_empty(), "{:?}", bench.parts());
}

#[test]
fn a_part_that_became_a_blob_is_not_written_to() {
    let body = long();
    let whole = body.clone();
    let phase = std::sync::Arc::new(AtomicUsize::new(0));
    let now = phase.clone();
    let server = Server::start(move |request| {
        let mut reply = Reply::file(request, &body, "\"one\"");
        if now.load(Ordering::SeqCst) == 0 {
            reply.cut = Some(1000);
        }
        reply
    });
    let mut bench = Bench::new();
    bench.network.retries = 0;
    let source = json!(format!("{}/x", server.address));
    bench.refusal(source.clone());
    // What a process leaves that dies between linking the blob and removing the part.
    let parts = bench.folder.path().join("store/parts");
    let name = bench
        .parts()
        .into_iter()
        .find(|name| name.ends_with(".part"))
        .unwrap();
    let blob = bench.folder.path().join("store/blobs/linked");
    std::fs::hard_link(parts.join(name), &blob).unwrap();
    let before = std::fs::read(&blob).unwrap();
    phase.store(1, Ordering::SeqCst);
    assert_eq!(
        bench.fetch(source).unwrap().digest,
        Digest::of_bytes(&whole)
    );
    assert_eq!(std::fs::read(&blob).unwrap(), before);
}

//! The hub's protocol: revisions, file lists, redirects that leave the token behind, published digests, refusals.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::digest::Digest;
use serde_json::json;
use sha2::Digest as _;

use crate::server::{Reply, Request, Server};
use crate::store::{Bench, contents, named};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A hub with one model and one dataset repository, whose large files are on another host.
#[derive(Clone, Default)]
struct Hub {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// What the hub asks for, if it asks.
    token: Option<&'static str>,
    /// Where large files (`*.safetensors`, `*.gguf`) are.
    elsewhere: String,
    /// The sha256 that it publishes instead of the true one.
    lie: Option<String>,
    /// Whether the list tells sizes and digests, as it does with `?blobs=true`.
    terse: bool,
}

impl Hub {
    fn with(files: &[(&'static str, &str)]) -> Hub {
        Hub {
            files: files
                .iter()
                .map(|(name, text)| (*name, text.as_bytes().to_vec()))
                .collect(),
            ..Hub::default()
        }
    }

    fn answer(&self, request: &Request) -> Reply {
        if let Some(token) = self.token
            && request.header("authorization") != Some(&format!("Bearer {token}"))
        {
            return Reply::new(401, "").header("X-Error-Code", "RepoNotFound");
        }
        let path = request.path.as_str();
        for repository in ["models/o/r", "datasets/o/r"] {
            if let Some(revision) = path.strip_prefix(&format!("/api/{repository}/revision/")) {
                return match revision {
                    "main?blobs=true" | "v1?blobs=true" | "refs%2Fpr%2F1?blobs=true" => self.list(),
                    commit if commit.starts_with(COMMIT) => self.list(),
                    _ => Reply::new(404, "").header("X-Error-Code", "RevisionNotFound"),
                };
            }
        }
        let files = [
            format!("/o/r/resolve/{COMMIT}/"),
            format!("/datasets/o/r/resolve/{COMMIT}/"),
        ];
        let Some(name) = files.iter().find_map(|prefix| path.strip_prefix(prefix)) else {
            return Reply::new(404, "").header("X-Error-Code", "RepoNotFound");
        };
        let Some(bytes) = self.files.get(name) else {
            return Reply::new(404, "").header("X-Error-Code", "EntryNotFound");
        };
        match is_large(name) {
            true => Reply::redirect(format!("{}/{name}?X-Signature=s1gned", self.elsewhere))
                .header("X-Repo-Commit", COMMIT)
                .header("X-Linked-Size", bytes.len().to_string())
                .header(
                    "X-Linked-ETag",
                    format!("\"{}\"", self.lie.clone().unwrap_or(sha256(bytes))),
                ),
            false => Reply::file(
                request,
                bytes,
                "\"0123456789abcdef0123456789abcdef01234567\"",
            )
            .header("X-Repo-Commit", COMMIT),
        }
    }

    fn list(&self) -> Reply {
        let files = self
            .files
            .iter()
            .map(|(name, bytes)| match (self.terse, is_large(name)) {
                (true, _) => json!({"rfilename": name}),
                (false, true) => json!({"rfilename": name, "size": bytes.len(), "blobId": "1",
                "lfs": {"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 130}}),
                (false, false) => json!({"rfilename": name, "size": bytes.len(), "blobId": "1"}),
            });
        let list = json!({"id": "o/r", "sha": COMMIT, "siblings": files.collect::<Vec<_>>()});
        Reply::new(200, list.to_string()).header("Content-Type", "application/json")
    }

    /// The hub, and the host of its large files.
    fn start(mut self) -> (Server, Server) {
        let files = self.files.clone();
        let store = Server::start(move |request| {
            let name = request
                .path
                .trim_start_matches('/')
                .split('?')
                .next()
                .unwrap_or_default();
            Reply::file(request, &files[name], "\"large\"")
        });
        self.elsewhere = store.address.clone();
        (Server::start(move |request| self.answer(request)), store)
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

fn model() -> Hub {
    Hub::with(&[
        (".gitattributes", "x"),
        ("README.md", "x"),
        ("config.json", "{}"),
        ("model.safetensors", "weights"),
        ("consolidated.safetensors", "weights again"),
        ("pytorch_model.bin", "pickle"),
        ("onnx/config.json", "x"),
        ("1_Pooling/config.json", "pool"),
        ("tokenizer.json", "tok"),
        ("chat_template.jinja", "tpl"),
        ("merges.txt", "m"),
        ("model.Q4.gguf", "gguf"),
    ])
}

fn bench(server: &Server) -> Bench {
    let mut bench = Bench::new();
    bench.network.hf_endpoint = server.address.clone();
    bench
}

#[test]
fn of_a_model_repository_only_what_is_used_is_fetched() {
    let (hub, store) = model().start();
    let bench = bench(&hub);
    let resolved = bench.fetch(json!("hf://o/r@v1")).unwrap();
    let expected = [
        ("1_Pooling/config.json", "pool"),
        ("chat_template.jinja", "tpl"),
        ("config.json", "{}"),
        ("merges.txt", "m"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tok"),
    ];
    assert_eq!(contents(&resolved), named(&expected));
    assert_eq!(resolved.revision.as_deref(), Some(COMMIT));
    assert_eq!(store.paths(), ["/model.safetensors?X-Signature=s1gned"]);
    assert!(bench.notes().contains(COMMIT));
    let sizes: u64 = resolved.files.iter().map(|file| file.size).sum();
    assert_eq!(bench.told.borrow().last(), Some(&(sizes, Some(sizes))));
    // Found again without a request, by the location and by the digest.
    let seen = hub.seen().len();
    assert_eq!(
        bench.local(json!("hf://o/r@v1")).unwrap().unwrap().digest,
        resolved.digest
    );
    let by_digest = json!({"from": "hf://o/other@v9", "blake3": resolved.digest});
    assert_eq!(
        contents(&bench.local(by_digest).unwrap().unwrap()),
        named(&expected)
    );
    // Another name of the same commit needs the list, and no file.
    bench.fetch(json!("hf://o/r")).unwrap();
    assert_eq!(hub.seen().len(), seen + 1);
    // The same as the folder would be on disk.
    for (name, text) in expected {
        bench.write(&format!("copy/{name}"), text);
    }
    assert_eq!(
        bench.local(json!("copy")).unwrap().unwrap().digest,
        resolved.digest
    );
}

#[test]
fn one_file_or_a_folder_may_be_named() {
    let (hub, _store) = model().start();
    let bench = bench(&hub);
    let one = bench
        .fetch(json!("hf://o/r@refs%2Fpr%2F1/model.Q4.gguf"))
        .unwrap();
    assert_eq!(contents(&one), named(&[("model.Q4.gguf", "gguf")]));
    assert_eq!(one.digest, Digest::of_bytes(b"gguf"));
    let folder = bench.fetch(json!("hf://o/r@v1/1_Pooling")).unwrap();
    assert_eq!(contents(&folder), named(&[("config.json", "pool")]));
    assert_ne!(
        folder.digest,
        Digest::of_bytes(b"pool"),
        "a folder of one file is still a folder"
    );
}

#[test]
fn datasets_have_their_own_addresses() {
    let (hub, _store) = Hub::with(&[
        ("data/a.jsonl", "a"),
        ("data/b.parquet", "b"),
        ("dataset_infos.json", "x"),
        ("load.py", "x"),
    ])
    .start();
    let bench = bench(&hub);
    let resolved = bench
        .fetch(json!(format!("hf://datasets/o/r@{COMMIT}")))
        .unwrap();
    assert_eq!(
        contents(&resolved),
        named(&[("data/a.jsonl", "a"), ("data/b.parquet", "b")])
    );
    assert!(hub.paths()[0].starts_with("/api/datasets/o/r/revision/"));
    assert!(hub.paths()[1].starts_with("/datasets/o/r/resolve/"));
}

#[test]
fn a_token_is_sent_to_the_hub_and_to_nobody_else() {
    let mut private = model();
    private.token = Some("hf_s3cret");
    let (hub, store) = private.start();
    let mut bench = bench(&hub);
    let message = bench.refusal(json!("hf://o/r@v1/config.json"));
    assert!(
        message.contains("HTTP 401") && message.contains("set HF_TOKEN"),
        "{message}"
    );
    bench.network.hf_token = Some("hf_wrong".into());
    let message = bench.refusal(json!("hf://o/r@v1/config.json"));
    assert!(
        message.contains("has no right to it") && !message.contains("hf_wrong"),
        "{message}"
    );
    bench.network.hf_token = Some("hf_s3cret".into());
    bench.fetch(json!("hf://o/r@v1")).unwrap();
    assert_eq!(store.seen().len(), 1);
    assert!(
        store
            .seen()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    assert!(!bench.notes().contains("hf_s3cret") && !bench.notes().contains("s1gned"));
}

#[test]
fn bytes_that_are_not_the_published_ones_are_refused() {
    for terse in [true, false] {
        let mut lying = model();
        lying.lie = Some(sha256(b"other"));
        lying.terse = terse;
        if !terse {
            // The list tells the true digest, the host of the files gives other bytes.
            lying.lie = None;
        }
        let files = lying.files.clone();
        let wrong = Server::start(move |request| {
            let name = request
                .path
                .trim_start_matches('/')
                .split('?')
                .next()
                .unwrap_or_default();
            Reply::file(
                request,
                &files[name].iter().map(|b| b ^ 1).collect::<Vec<_>>(),
                "",
            )
        });
        lying.elsewhere = wrong.address.clone();
        let hub = Server::start(move |request| lying.answer(request));
        let bench = bench(&hub);
        let message = bench.refusal(json!("hf://o/r@v1/model.safetensors"));
        assert!(
            message.contains("not the published ones") && message.contains("sha256"),
            "{message}"
        );
        assert!(!message.contains("s1gned"), "{message}");
        assert_eq!((bench.blobs(), bench.parts().len()), (0, 0));
    }
}

#[test]
fn a_killed_fetch_goes_on_at_the_byte_where_it_was() {
    let body: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let mut large = model();
    large.files.insert("model.safetensors", body.clone());
    let whole = body.clone();
    let count = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let store = Server::start(move |request| {
        let mut reply = Reply::file(request, &body, "\"large\"");
        if counter.fetch_add(1, Ordering::SeqCst) < 3 {
            // The first connection breaks, the others get nothing.
            reply.cut = Some(if request.range().is_none() {
                700_000
            } else {
                0
            });
        }
        reply
    });
    large.elsewhere = store.address.clone();
    let hub = Server::start(move |request| large.answer(request));
    let bench = bench(&hub);
    bench.refusal(json!("hf://o/r@v1"));
    let before = hub
        .paths()
        .iter()
        .filter(|path| path.ends_with("config.json"))
        .count();
    let resolved = bench.fetch(json!("hf://o/r@v1")).unwrap();
    assert!(
        resolved
            .files
            .iter()
            .any(|file| file.digest == Digest::of_bytes(&whole))
    );
    assert_eq!(store.seen().last().unwrap().range(), Some(700_000));
    let after = hub
        .paths()
        .iter()
        .filter(|path| path.ends_with("config.json"))
        .count();
    assert_eq!(before, after, "files that had come are not fetched again");
    assert!(bench.parts().is_empty());
}

#[test]
fn refusals_name_what_is_wrong_and_the_nearest_right_word() {
    let (hub, _store) = model().start();
    let bench = bench(&hub);
    for (source, part) in [
        ("hf://o/r@v2", "o/r has no revision `v2`"),
        (
            "hf://o/none@v1",
            "there is no model o/none, or it is private",
        ),
        ("hf://datasets/o/none@v1", "there is no dataset o/none"),
        ("hf://o/r@v1/confg.json", "the nearest is `config.json`"),
        ("hf://o/r@v1/pytorch_model.bin", "is a pickle"),
    ] {
        let message = bench.refusal(json!(source));
        assert!(
            message.contains(part) && message.contains(source),
            "{message}"
        );
    }
    let (pickles, _store) = Hub::with(&[("config.json", "{}"), ("pytorch_model.bin", "x")]).start();
    let message = self::bench(&pickles).refusal(json!("hf://o/r"));
    assert!(
        message.contains("as pickles only (`pytorch_model.bin`)"),
        "{message}"
    );
    let (ggufs, _store) = Hub::with(&[("a.Q4.gguf", "{}"), ("b.Q8.gguf", "x")]).start();
    let message = self::bench(&ggufs).refusal(json!("hf://o/r"));
    assert!(message.contains("hf://o/r@main/a.Q4.gguf"), "{message}");
    let (bad, _store) = Hub::with(&[("../evil.json", "x")]).start();
    let message = self::bench(&bad).refusal(json!("hf://o/r"));
    assert!(message.contains("leaves the repository"), "{message}");
    let nonsense = Server::start(|_| Reply::new(200, "<html>"));
    let message = self::bench(&nonsense).refusal(json!("hf://o/r"));
    assert!(message.contains("not the answer of a hub"), "{message}");
}

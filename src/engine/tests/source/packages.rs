//! Package indexes: JSON and HTML pages, wheels and source archives, and archives made to do harm.

use std::io::Write;

use engine::digest::Digest;
use engine::source::{Pip, PipConfig, parse_spec};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::Digest as _;
use zip::write::SimpleFileOptions;

use crate::server::{Reply, Request, Server};
use crate::store::{Bench, contents, named};

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn wheel(files: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in files {
        match text.strip_prefix("link:") {
            Some(to) => zip
                .add_symlink(*name, to, SimpleFileOptions::default())
                .unwrap(),
            None => {
                zip.start_file(*name, SimpleFileOptions::default()).unwrap();
                zip.write_all(text.as_bytes()).unwrap();
            }
        }
    }
    zip.finish().unwrap().into_inner()
}

/// A source archive; `name-1.0/` is put before every name, which is written as it is, however wicked.
fn sdist(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        let name = format!("toy-1.0/{name}");
        let (kind, body) = match text.strip_prefix("link:") {
            Some(to) => {
                header.set_link_name(to).unwrap();
                (tar::EntryType::Symlink, "")
            }
            None => (tar::EntryType::Regular, *text),
        };
        header.set_entry_type(kind);
        header.set_size(body.len() as u64);
        if name.len() < 100 {
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, body.as_bytes()).unwrap();
        } else {
            tar.append_data(&mut header, name, body.as_bytes()).unwrap();
        }
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Json,
    Html,
}

/// An index with the package `toy`, whose archives are on another host, and a bench whose pip asks it.
struct Index {
    server: Server,
    files: Server,
    bench: Bench,
}

impl Index {
    fn new(form: Form, archives: Vec<(&'static str, Vec<u8>)>) -> Index {
        Index::lying(form, archives, None)
    }

    fn lying(form: Form, archives: Vec<(&'static str, Vec<u8>)>, lie: Option<String>) -> Index {
        let held = archives.clone();
        let files = Server::start(move |request| {
            let name = request.path.trim_start_matches("/packages/");
            match held.iter().find(|(file, _)| *file == name) {
                Some((_, bytes)) => Reply::file(request, bytes, ""),
                None => Reply::new(404, ""),
            }
        });
        let host = files.address.clone();
        let server = Server::start(move |request| match request.path.as_str() {
            "/simple/toy-package/" => page(form, &host, &archives, lie.as_deref()),
            "/simple/locked/" => Reply::new(401, ""),
            _ => Reply::new(404, ""),
        });
        let mut bench = Bench::new();
        bench.network.pip = Pip::Fixed(PipConfig {
            index_url: Some(server.address.replace("http://", "http://me:w%40rd@") + "/simple"),
            ..PipConfig::default()
        });
        Index {
            server,
            files,
            bench,
        }
    }
}

fn page(form: Form, host: &str, archives: &[(&'static str, Vec<u8>)], lie: Option<&str>) -> Reply {
    let digest = |bytes: &[u8]| lie.map_or_else(|| sha256(bytes), str::to_owned);
    if form == Form::Json {
        let files = archives.iter().map(|(name, bytes)| {
            json!({"filename": name, "url": format!("{host}/packages/{name}"), "size": bytes.len(),
                "hashes": {"sha256": digest(bytes)}, "yanked": false, "requires-python": ">=3.9"})
        });
        let page = json!({"meta": {"api-version": "1.1"}, "name": "toy-package", "files": files.collect::<Vec<_>>()});
        return Reply::new(200, page.to_string())
            .header("Content-Type", "application/vnd.pypi.simple.v1+json");
    }
    let mut page = String::from("<!DOCTYPE html><html><body>\n");
    for (name, bytes) in archives {
        let link = format!("{host}/packages/{name}#sha256={}", digest(bytes));
        page += &format!("<a href=\"{link}\" data-requires-python=\"&gt;=3.9\">{name}</a><br/>\n");
    }
    Reply::new(200, page).header("Content-Type", "text/html")
}

const WHEEL: &str = "toy_package-1.0-py3-none-any.whl";
const SDIST: &str = "toy_package-1.0.tar.gz";

fn toy() -> Vec<(&'static str, Vec<u8>)> {
    let long = "data/a-name-so-long-that-the-header-of-an-entry-does-not-hold-it-and-another-entry-before-it-must-say-what-it-is.json";
    vec![
        (
            "toy_package-0.9-py3-none-any.whl",
            wheel(&[("toy/a.json", "old")]),
        ),
        (
            WHEEL,
            wheel(&[
                ("toy/a.json", "[1]"),
                ("toy/data/b.json", "b"),
                ("toy/data/sub/c.json", "c"),
            ]),
        ),
        (
            "toy_package-1.0-cp311-cp311-linux_x86_64.whl",
            wheel(&[("toy/lib.so", "so")]),
        ),
        (
            SDIST,
            sdist(&[
                ("toy/a.json", "[2]"),
                ("data/identity.json", "who"),
                (long, "long"),
            ]),
        ),
    ]
}

#[test]
fn a_file_comes_out_of_the_wheel_and_is_found_again() {
    for form in [Form::Json, Form::Html] {
        let index = Index::new(form, toy());
        let source = json!("pypi:Toy_Package==1.0#toy/a.json");
        let resolved = index.bench.fetch(source.clone()).unwrap();
        assert_eq!(contents(&resolved), named(&[("a.json", "[1]")]));
        assert_eq!(resolved.digest, Digest::of_bytes(b"[1]"));
        assert_eq!(index.files.paths(), [format!("/packages/{WHEEL}")]);
        assert!(index.bench.local(source).unwrap().is_some());
        assert!(
            index.bench.parts().is_empty(),
            "the wheel itself is not kept"
        );
        assert_eq!(index.bench.blobs(), 1);
        // The index's password is for the index alone, and is not written down.
        let basic = |request: &Request| request.header("authorization").map(str::to_owned);
        // `printf 'me:w@rd' | base64`
        assert_eq!(
            basic(&index.server.seen()[0]).as_deref(),
            Some("Basic bWU6d0ByZA==")
        );
        assert_eq!(basic(&index.files.seen()[0]), None);
        assert!(!index.bench.notes().contains("w@rd") && !index.bench.notes().contains("w%40rd"));
    }
}

#[test]
fn what_no_wheel_has_comes_out_of_the_source_archive() {
    let index = Index::new(Form::Html, toy());
    let long = "data/a-name-so-long-that-the-header-of-an-entry-does-not-hold-it-and-another-entry-before-it-must-say-what-it-is.json";
    index.bench.with(|resolver| {
        let fetch = |path: &str| {
            resolver.fetch(
                &parse_spec(&json!(format!("pypi:toy-package==1.0#{path}"))).unwrap(),
                None,
            )
        };
        assert_eq!(
            contents(&fetch("data/identity.json").unwrap()),
            named(&[("identity.json", "who")])
        );
        assert_eq!(fetch(long).unwrap().digest, Digest::of_bytes(b"long"));
        assert_eq!(fetch("toy/lib.so").unwrap().digest, Digest::of_bytes(b"so"));
    });
    // Three paths, and every archive was downloaded once.
    assert_eq!(index.files.paths().len(), 3, "{:?}", index.files.paths());
    assert!(index.bench.parts().is_empty());
}

#[test]
fn a_folder_of_a_package_is_a_folder() {
    let index = Index::new(Form::Json, toy());
    let resolved = index
        .bench
        .fetch(json!("pypi:toy-package==1.0#toy/data/"))
        .unwrap();
    assert_eq!(
        contents(&resolved),
        named(&[("b.json", "b"), ("sub/c.json", "c")])
    );
    let out_of_sdist = index
        .bench
        .fetch(json!([
            "pypi:toy-package==1.0#data/identity.json",
            "pypi:toy-package==1.0#toy/data/"
        ]))
        .unwrap();
    assert_eq!(
        contents(&out_of_sdist),
        named(&[
            ("identity.json", "who"),
            ("data/b.json", "b"),
            ("data/sub/c.json", "c")
        ])
    );
}

#[test]
fn archives_of_find_links_are_used_without_an_index() {
    let mut bench = Bench::new();
    let path = bench.write("wheels/toy_package-1.0-py3-none-any.whl", &toy()[1].1);
    bench.network.pip = Pip::Fixed(PipConfig {
        find_links: vec![path.parent().unwrap().to_str().unwrap().into()],
        no_index: true,
        ..PipConfig::default()
    });
    let resolved = bench
        .fetch(json!("pypi:toy.package==1.0.0#toy/a.json"))
        .unwrap();
    assert_eq!(contents(&resolved), named(&[("a.json", "[1]")]));
    let message = bench.refusal(json!("pypi:other==1.0#x"));
    assert!(message.contains("find-links hold no other"), "{message}");
}

#[test]
fn refusals_name_the_nearest_right_word() {
    let index = Index::new(Form::Json, toy());
    for (source, part) in [
        ("pypi:toys-package==1.0#x", "has no package toys-package"),
        ("pypi:toy-package==2.0#x", "the last versions are 0.9, 1.0"),
        (
            "pypi:toy-package==1.0#toy/b.json",
            "the nearest is `toy/a.json`",
        ),
        (
            "pypi:toy-package==1.0#toy/data",
            "it is a folder, written `toy/data/`",
        ),
        (
            "pypi:locked==1.0#x",
            "put the index's user name and password into pip's configuration",
        ),
    ] {
        let message = index.bench.refusal(json!(source));
        assert!(
            message.contains(part) && message.contains(source) && !message.contains("w%40rd"),
            "{message}"
        );
    }
}

#[test]
fn an_archive_that_is_not_the_published_one_is_refused() {
    let index = Index::lying(Form::Html, toy(), Some(sha256(b"other")));
    let message = index
        .bench
        .refusal(json!("pypi:toy-package==1.0#toy/a.json"));
    assert!(message.contains("not the published ones"), "{message}");
    assert_eq!((index.bench.blobs(), index.bench.parts().len()), (0, 0));
}

/// A wheel whose one entry says another size than it has, in both places where a zip says it.
fn liar(declared: u32) -> Vec<u8> {
    let text = "x".repeat(5000);
    let mut bytes = wheel(&[("toy/a.json", &text)]);
    let central = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    for at in [22, central + 24] {
        bytes[at..at + 4].copy_from_slice(&declared.to_le_bytes());
    }
    bytes
}

#[test]
fn archives_made_to_do_harm_do_none() {
    let wheels = [
        (
            wheel(&[("toy/../../evil.json", "x"), ("toy/a.json", "ok")]),
            "toy/",
            "leaves its folder",
        ),
        (
            wheel(&[("toy//etc/evil.json", "x")]),
            "toy/",
            "leaves its folder",
        ),
        (
            wheel(&[("toy/a.json", "link:/etc/passwd")]),
            "toy/a.json",
            "is a link",
        ),
        (liar(10), "toy/a.json", "declares 10 bytes and has more"),
        (liar(4_000_000_000), "toy/a.json", "which cannot be"),
        (b"PK\x05\x06 nonsense".to_vec(), "toy/a.json", "not a wheel"),
    ];
    for (bytes, path, part) in wheels {
        let index = Index::new(Form::Json, vec![(WHEEL, bytes)]);
        let message = index
            .bench
            .refusal(json!(format!("pypi:toy-package==1.0#{path}")));
        assert!(message.contains(part), "{part}: {message}");
        assert_eq!(index.bench.blobs(), 0);
    }
    let mut cut = sdist(&[("data/a.json", &"x".repeat(100_000))]);
    cut.truncate(cut.len() / 2);
    let archives = [
        (
            sdist(&[("data/../../evil", "x")]),
            "data/",
            "leaves its folder",
        ),
        (
            sdist(&[("data/a.json", "link:/etc/passwd")]),
            "data/a.json",
            "is a link or a special file",
        ),
        (
            sdist(&[("data/a.json", "1"), ("data/a.json", "2")]),
            "data/a.json",
            "is there twice",
        ),
        (cut, "data/a.json", "data/a.json"),
        (b"not gzip".to_vec(), "data/a.json", "not a source archive"),
    ];
    for (bytes, path, part) in archives {
        let index = Index::new(Form::Json, vec![(SDIST, bytes)]);
        let message = index
            .bench
            .refusal(json!(format!("pypi:toy-package==1.0#{path}")));
        assert!(message.contains(part), "{part}: {message}");
        assert_eq!(index.bench.blobs(), 0);
    }
    // A wicked name that nobody asked for harms nobody.
    let index = Index::new(
        Form::Json,
        vec![(SDIST, sdist(&[("../../../evil", "x"), ("a.json", "ok")]))],
    );
    assert_eq!(
        contents(
            &index
                .bench
                .fetch(json!("pypi:toy-package==1.0#a.json"))
                .unwrap()
        ),
        named(&[("a.json", "ok")])
    );
}

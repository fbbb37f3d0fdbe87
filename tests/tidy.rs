//! The house is in order: who may import whom, how long files are, what is not there.

#[path = "tidy/golden.rs"]
mod golden;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use support::checkout;

/// Who may import whom. Dependencies of tests are not arrows.
const ARROWS: [(&str, &[&str]); 9] = [
    (".", &["cli", "engine", "kinds", "stages-torch"]),
    (
        "src/cli",
        &["stages-data", "kinds", "data", "formats", "engine"],
    ),
    ("src/stages-data", &["kinds", "data", "formats", "engine"]),
    (
        "src/stages-torch",
        &["kinds", "data", "ml", "formats", "engine"],
    ),
    ("src/kinds", &["formats", "engine"]),
    ("src/data", &["formats"]),
    ("src/ml", &["formats"]),
    ("src/formats", &[]),
    ("src/engine", &[]),
];

/// Every file of the checkout that people write, as (path from the top, text); what is not text is left out.
fn sources() -> Vec<(String, String)> {
    let top = checkout();
    let mut list = Vec::new();
    let mut folders = vec![top.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path
                .strip_prefix(&top)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if kind.is_dir() {
                if !matches!(name.as_str(), "target" | ".git" | "cache")
                    && !name.ends_with("__pycache__")
                {
                    folders.push(path);
                }
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(&path)
            {
                list.push((name, text));
            }
        }
    }
    list.sort();
    assert!(list.len() > 100, "only {} files", list.len());
    list
}

/// The files among [`sources`] that end in one of `endings`; there must be some.
fn ending(endings: &[&str]) -> Vec<(String, String)> {
    let list: Vec<_> = sources()
        .into_iter()
        .filter(|(name, _)| endings.iter().any(|e| name.ends_with(e)))
        .collect();
    assert!(!list.is_empty());
    list
}

/// (section, key) of every line of a manifest that sets one.
fn manifest(folder: &str) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(checkout().join(folder).join("Cargo.toml")).unwrap();
    let mut section = String::new();
    let mut list = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            let key = key
                .trim()
                .split('.')
                .next()
                .unwrap_or_default()
                .trim_matches('"')
                .to_owned();
            list.push((section.clone(), key, value.trim().to_owned()));
        }
    }
    list
}

fn dependencies(folder: &str, tests_too: bool) -> Vec<String> {
    let wanted = |s: &str| {
        (s.ends_with("dependencies") && (tests_too || !s.ends_with("dev-dependencies")))
            && !s.starts_with("workspace")
    };
    manifest(folder)
        .into_iter()
        .filter(|(s, _, _)| wanted(s))
        .map(|(_, key, _)| key)
        .collect()
}

#[test]
fn crates_import_only_what_the_map_allows() {
    let names: BTreeSet<&str> = [
        "cli",
        "stages-data",
        "stages-torch",
        "kinds",
        "data",
        "ml",
        "formats",
        "engine",
    ]
    .into_iter()
    .collect();
    let mut found: BTreeSet<String> = [".".to_owned()].into();
    for entry in fs::read_dir(checkout().join("src")).unwrap() {
        let path = entry.unwrap().path();
        if path.join("Cargo.toml").is_file() {
            found.insert(format!(
                "src/{}",
                path.file_name().unwrap().to_str().unwrap()
            ));
        }
    }
    let mapped: BTreeSet<String> = ARROWS
        .iter()
        .map(|(folder, _)| (*folder).to_owned())
        .collect();
    assert_eq!(found, mapped, "the crates and the map of this test");
    let mut arrows = 0;
    for (folder, allowed) in ARROWS {
        for dependency in dependencies(folder, false) {
            let own = dependency
                .strip_prefix("levain-")
                .unwrap_or(&dependency)
                .to_owned();
            if names.contains(own.as_str()) {
                assert!(
                    allowed.contains(&own.as_str()),
                    "{folder} may not import `{own}`"
                );
                arrows += 1;
            }
        }
        for torch in ["tch", "torch-sys"] {
            let has = dependencies(folder, true).iter().any(|d| d == torch);
            assert!(
                !has || folder == "src/ml",
                "{folder} may not know `{torch}`: tensors belong to src/ml"
            );
        }
    }
    assert!(arrows > 15, "only {arrows} arrows were looked at");
}

#[test]
fn levain_itself_links_no_tensors() {
    let optional = manifest(".").into_iter().any(|(s, k, v)| {
        s == "dependencies" && k == "stages-torch" && v.contains("optional = true")
    });
    assert!(
        optional,
        "the root package may know `stages-torch` only behind the feature `torch`"
    );
    let mut looked = 0;
    for (name, text) in ending(&[".rs"]) {
        if [
            "src/cli/",
            "src/stages-data/",
            "src/kinds/",
            "src/data/",
            "src/formats/",
            "src/engine/",
            "src/bin/levain.rs",
        ]
        .iter()
        .any(|f| name.starts_with(f))
        {
            looked += 1;
            for word in ["tch::", "torch_sys::", "ml::", "stages_torch::"] {
                let used = text
                    .lines()
                    .any(|l| l.trim_start().starts_with(&format!("use {word}")));
                assert!(!used, "{name} uses {word}");
            }
        }
    }
    assert!(looked > 50);
}

#[test]
fn files_are_short_enough_to_read() {
    let files = ending(&[".rs", ".cpp", ".h", ".py"]);
    assert!(files.len() > 100);
    for (name, text) in files {
        let lines = text.lines().count();
        assert!(lines <= 600, "{name} has {lines} lines: split it");
    }
}

#[test]
fn every_file_says_what_it_is() {
    for (name, text) in ending(&[".rs"]) {
        let first = text
            .lines()
            .find(|l| !l.trim().is_empty() && !l.starts_with("#!["))
            .unwrap_or_default();
        assert!(
            first.starts_with("//! ") && first.len() > 12,
            "{name} begins with no sentence about itself"
        );
    }
}

#[test]
fn nothing_is_left_to_do() {
    // Put together here, or this file would find itself.
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[", "ignore"),
        concat!("dbg", "!("),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    for (name, text) in ending(&[".rs", ".py", ".cpp", ".h"]) {
        for (index, line) in text.lines().enumerate() {
            for word in words {
                assert!(!line.contains(word), "{name}:{}: `{word}`", index + 1);
            }
        }
    }
}

#[test]
fn one_file_knows_where_tensors_live() {
    let word = concat!("Device", "::Cpu");
    let mut seen = 0;
    for (name, text) in ending(&[".rs"]) {
        seen += usize::from(text.contains(word));
        let test = name.starts_with("tests/")
            || name.contains("/tests/")
            || name.contains("/examples/")
            || name.contains("/benches/")
            || name.starts_with("benches/");
        if name == "src/ml/src/place.rs" || test {
            continue;
        }
        // What follows is a module of tests.
        let program = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code = program
            .lines()
            .map(|l| l.split("//").next().unwrap_or_default());
        assert!(
            !code.into_iter().any(|l| l.contains(word)),
            "{name} names a device: ask src/ml/src/place.rs"
        );
    }
    assert!(seen > 0, "nobody knows where tensors live");
}

#[test]
fn no_host_of_a_registry_is_named() {
    let hosts = [
        concat!("pypi", ".org"),
        concat!("python", "hosted.org"),
        concat!("crates", ".io"),
        concat!("npm", "js.org"),
        concat!("proxy.go", "lang.org"),
        concat!("download.py", "torch.org"),
        concat!("hugging", "face.co"),
    ];
    // The hub's own address is the default of HF_ENDPOINT, in one place; cargo writes where it found its packages.
    let exempt = |name: &str, host: &str| {
        name == "Cargo.lock"
            || (name == "src/engine/src/source/network.rs" && host.ends_with("face.co"))
    };
    for (name, text) in sources() {
        for host in hosts {
            assert!(
                !text.contains(host) || exempt(&name, host),
                "{name} names {host}"
            );
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let text = fs::read_to_string(checkout().join("Cargo.toml")).unwrap();
    let mut looked = 0;
    let mut before = "";
    let table = text
        .split("[workspace.dependencies]")
        .nth(1)
        .and_then(|t| t.split("\n[").next())
        .unwrap();
    for line in table.lines().filter(|l| !l.trim().is_empty()) {
        let own = line.contains("path = ");
        if !line.starts_with('#') && !own {
            looked += 1;
            let reason = line.split_once(" # ").map_or("", |(_, r)| r);
            assert!(
                reason.len() > 3 || before.starts_with('#'),
                "Cargo.toml: `{line}` without its reason"
            );
        }
        before = line;
    }
    assert!(looked > 20);
    // And is used by somebody.
    let used: BTreeSet<String> = ARROWS
        .iter()
        .flat_map(|(folder, _)| dependencies(folder, true))
        .collect();
    for (_, name, _) in manifest(".")
        .into_iter()
        .filter(|(s, _, _)| s == "workspace.dependencies")
    {
        assert!(used.contains(&name), "Cargo.toml: nobody uses `{name}`");
    }
}

/// The names of files in `folder` that hold `word`, without `.rs`.
fn holding(folder: &str, word: &str) -> BTreeSet<String> {
    let files = ending(&[".rs"]).into_iter().filter(|(name, text)| {
        Path::new(name).parent() == Some(Path::new(folder)) && text.contains(word)
    });
    files
        .map(|(name, _)| {
            Path::new(&name)
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[test]
fn every_kind_has_its_contract_its_file_and_its_implementation() {
    let all: Vec<_> = kinds::contracts().all().collect();
    assert!(all.len() > 5);
    let listed: BTreeSet<String> = all.iter().map(|c| c.kind.to_owned()).collect();
    assert_eq!(listed.len(), all.len(), "a kind is listed twice");
    assert_eq!(
        holding("src/kinds/src", "pub const CONTRACT"),
        listed,
        "the files of contracts and the list"
    );
    for (pool, folder) in [
        (engine::contract::Pool::Cpu, "src/stages-data/src"),
        (engine::contract::Pool::Torch, "src/stages-torch/src"),
    ] {
        let wanted: BTreeSet<String> = all
            .iter()
            .filter(|c| c.pool == pool)
            .map(|c| c.kind.to_owned())
            .collect();
        let files = holding(folder, "fn run(job: &Job");
        assert_eq!(
            files, wanted,
            "the files in {folder} and the kinds that run there"
        );
        let list = fs::read_to_string(checkout().join(folder).join("lib.rs")).unwrap();
        let declared: BTreeSet<String> = list
            .split("Implementation {")
            .filter_map(|p| p.split("kind: \"").nth(1))
            .filter_map(|p| p.split('"').next())
            .map(ToOwned::to_owned)
            .collect();
        assert_eq!(declared, wanted, "the list in {folder}/lib.rs");
    }
    for contract in all {
        for preparation in contract.preparations {
            assert!(
                kinds::contracts().any(preparation.kind).is_some(),
                "`{}` prepares by an unknown `{}`",
                contract.kind,
                preparation.kind
            );
            for field in preparation.fields {
                assert!(
                    contract.field(field).is_some(),
                    "`{}` hands on `{field}`, which it does not have",
                    contract.kind
                );
            }
        }
        let words: Vec<_> = contract.words().collect();
        let distinct: BTreeSet<_> = words.iter().collect();
        assert_eq!(
            distinct.len(),
            words.len(),
            "`{}` has a word twice",
            contract.kind
        );
    }
}

//! Golden values are those that the script beside them makes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{self, checkout};

/// What a golden file says of the script that made it: (script, sha256), and the sha256 of what scripts share.
fn certificate(path: &Path) -> Vec<(String, String)> {
    let bytes = fs::read(path).unwrap();
    let head =
        String::from_utf8_lossy(&bytes[..bytes.len().min(1 << 16)]).replace(['"', '\\', ' '], "");
    let after = |word: &str| {
        head.split_once(word).map(|(_, rest)| {
            rest.split([',', '}', '\n'])
                .next()
                .unwrap_or_default()
                .to_owned()
        })
    };
    let folder = path
        .parent()
        .and_then(Path::file_name)
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let script = after("script:").unwrap_or_else(|| format!("{folder}.py"));
    let mut list: Vec<_> = after("script_sha256:")
        .map(|digest| (script.clone(), digest))
        .into_iter()
        .collect();
    if let Some(digest) = after("common_sha256:") {
        let area = script
            .split(['_', '.'])
            .next()
            .unwrap_or_default()
            .to_owned();
        list.push((format!("{area}_common.py"), digest));
    }
    list
}

#[test]
fn golden_values_have_the_script_that_made_them() {
    let make = checkout().join("tests/golden/make");
    let scripts: Vec<String> = fs::read_dir(&make)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".py"))
        .collect();
    assert!(!scripts.is_empty());
    let mut folders: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in support::files(&checkout().join("tests/golden/data")) {
        let rest = file
            .strip_prefix(checkout().join("tests/golden/data"))
            .unwrap();
        let area = rest
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .to_owned();
        folders.entry(area).or_default().push(file);
    }
    assert!(folders.len() > 2);
    let mut certified = 0;
    for (area, files) in &folders {
        let own = |s: &String| {
            s.strip_prefix(area.as_str())
                .is_some_and(|rest| rest.starts_with(['_', '.']))
        };
        assert!(
            scripts.iter().any(own),
            "tests/golden/data/{area} has no script tests/golden/make/{area}*.py"
        );
        for file in files {
            let size = fs::metadata(file).unwrap().len();
            assert!(
                size <= 400_000,
                "{}: {size} bytes are too many for a golden file",
                file.display()
            );
            for (script, wanted) in certificate(file) {
                let path = make.join(&script);
                assert!(
                    path.is_file(),
                    "{} says that {script} made it, which is not there",
                    file.display()
                );
                let found = sha256(&fs::read(&path).unwrap());
                assert_eq!(
                    found,
                    wanted,
                    "{} was made by another {script} than this: make it anew",
                    file.display()
                );
                certified += 1;
            }
        }
    }
    assert!(certified > 0, "no golden file says who made it");
    println!("{certified} certificates agree");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

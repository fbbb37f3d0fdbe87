//! A kitchen for tests of whole programs: a folder with a recipe and its rows, and `levain` with an environment of its own.

#![allow(dead_code)] // each test program uses a part of it

pub mod artifacts;
pub mod endpoint;
pub mod hardship;
pub mod kill;
pub mod scripted;
pub mod tiny;
pub mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Variables that would change what `levain` does.
const VARIABLES: [&str; 10] = [
    "LEVAIN_CACHE",
    "LEVAIN_ALLOW_PROGRAMS",
    "LEVAIN_WORKER",
    "LEVAIN_LOG",
    "HF_TOKEN",
    "HF_ENDPOINT",
    "NO_COLOR",
    "CLICOLOR_FORCE",
    "RUST_LOG",
    "RUST_BACKTRACE",
];

/// The top of the checkout.
pub fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The contracts of every kind that a recipe can bring to run: a hidden one only as a preparation of another.
pub fn runnable() -> Vec<&'static engine::contract::Contract> {
    let contracts = kinds::contracts();
    let prepares = |kind: &str| {
        let mut owners = contracts.kinds.iter();
        owners.any(|owner| owner.preparations.iter().any(|p| p.kind == kind))
    };
    contracts
        .all()
        .filter(|c| contracts.kind(c.kind).is_some() || prepares(c.kind))
        .collect()
}

/// `levain` in a clean environment.
pub fn levain() -> Command {
    program(Path::new(env!("CARGO_BIN_EXE_levain")))
}

/// Any copy of `levain` in a clean environment.
pub fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    VARIABLES.iter().for_each(|name| {
        command.env_remove(name);
    });
    command.args(["--color", "never"]).stdin(Stdio::null());
    command
}

/// How a program ended and what it said.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(command: &mut Command) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = command
            .output()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let text = |bytes| String::from_utf8(bytes).expect("programs print UTF-8");
        Self {
            code: status.code(),
            out: text(stdout),
            err: text(stderr),
        }
    }

    /// The same, when it has to end with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "standard output:\n{}\nstandard error:\n{}",
            self.out,
            self.err
        );
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|e| panic!("{e}:\n{}\n{}", self.out, self.err))
    }
}

/// Rows, a recipe without tensors, and a place for the cache.
pub struct Kitchen {
    folder: tempfile::TempDir,
}

/// Rows are read, split twice, and written to a folder.
pub const RECIPE: &str = "\
levain: 1
name: tour
seed: 17
params: { part: 0.25 }
stages:
  rows: { kind: load_dataset, source: rows.jsonl }
  halves: { kind: split, data: rows, test: \"${params.part}\" }
  again: { kind: split, data: halves.train, test: 0.5 }
outputs:
  kept: { from: halves.test, to: out/kept }
# next: try another part
";

impl Kitchen {
    /// With `rows` rows and [`RECIPE`] as `tour.yaml`.
    pub fn new(rows: usize) -> Self {
        let kitchen = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let row = |i: usize| {
            format!(
                "{{\"prompt\": \"How much is {i} + 1?\", \"completion\": \"It is {}.\"}}\n",
                i + 1
            )
        };
        kitchen.write("rows.jsonl", &(0..rows).map(row).collect::<String>());
        kitchen.write("tour.yaml", RECIPE);
        kitchen
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn cache(&self) -> PathBuf {
        self.path().join("cache")
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// `levain` in the kitchen with these words.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = levain();
        command.current_dir(self.path()).args(words);
        command
    }

    /// Runs `levain` in the kitchen with these words and this on its standard input.
    pub fn tell(&self, words: &str, input: &str) -> Said {
        let file = self.write("input.txt", input);
        let mut command = self.command(&words.split_whitespace().collect::<Vec<_>>());
        Said::of(command.stdin(fs::File::open(file).unwrap()))
    }

    /// Answers all that a stage of the kind `label` asks: of two completions the first is better, then the second, then both are
    /// equal, and so on; of three the last is the best. `more` are further options.
    pub fn label(&self, recipe: &str, stage: &str, more: &str) {
        self.say(&format!("run {recipe} {stage} -q {more}"));
        let label = |words: &str| self.say(&format!("label {recipe} {stage} {more} {words}"));
        let status = label("--json").json();
        for name in status["open"].as_object().expect("annotators").keys() {
            let file = self.path().join("answers.jsonl");
            let _ = fs::remove_file(&file);
            label(&format!("--as {name} --export answers.jsonl")).expect(0);
            let lines = fs::read_to_string(&file).unwrap();
            let answered = lines.lines().enumerate().map(|(index, line)| {
                let mut line: Value = serde_json::from_str(line).unwrap();
                line["answer"] = match line["completions"].as_array().unwrap().len() {
                    2 => ["1", "2", "="][index % 3],
                    _ => "3 1=2",
                }
                .into();
                format!("{line}\n")
            });
            self.write("answers.jsonl", &answered.collect::<String>());
            label(&format!("--as {name} --import answers.jsonl"));
        }
        label("--status").expect(0);
    }

    /// Runs `levain` in the kitchen with these words, which may hold no spaces.
    pub fn say(&self, words: &str) -> Said {
        Said::of(&mut self.command(&words.split_whitespace().collect::<Vec<_>>()))
    }
}

/// (stage, output, digest) of every stage in the answer of `run --json` or `plan --json`.
pub fn digests(answer: &Value) -> Vec<(String, String, String)> {
    let mut list = Vec::new();
    for stage in answer["stages"].as_array().expect("stages") {
        for (output, digest) in stage["outputs"].as_object().into_iter().flatten() {
            list.push((text(&stage["name"]), output.clone(), text(digest)));
        }
    }
    list.sort();
    list
}

/// A JSON text.
pub fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is not a text"))
        .to_owned()
}

/// Every file below `folder`, sorted; links are not followed.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path())
            } else {
                found.push(entry.path())
            }
        }
    }
    found.sort();
    found
}

/// Numbers that look random and are the same in every run (xorshift).
pub struct Random(pub u64);

impl Random {
    /// The next one, below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

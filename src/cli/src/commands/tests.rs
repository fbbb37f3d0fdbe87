//! Commands on a small recipe without tensors: what they print and how they end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::{CommandFactory, Parser as _};

use crate::context::Context;
use crate::failure::{Status, for_programs, status_of, text_of};
use crate::options::Options;

/// A folder with a recipe, its rows and its cache.
struct Kitchen {
    folder: tempfile::TempDir,
}

const RECIPE: &str = "\
levain: 1
name: tour
seed: 17
params: { part: 0.25 }
stages:
  rows: { kind: load_dataset, source: rows.jsonl }
  halves: { kind: split, data: rows, test: \"${params.part}\" }
outputs:
  kept: { from: halves.test, to: out/kept }
# next: try another part
";

impl Kitchen {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rows: String = (0..8)
            .map(|i| {
                format!(
                    "{{\"prompt\": \"{i} + 1 = \", \"completion\": \"{}\"}}\n",
                    i + 1
                )
            })
            .collect();
        fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
        let kitchen = Self { folder };
        kitchen.write(RECIPE);
        kitchen
    }

    fn write(&self, recipe: &str) {
        fs::write(self.recipe(), recipe).unwrap();
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn recipe(&self) -> PathBuf {
        self.path().join("tour.yaml")
    }

    /// Runs `levain` with these words, `tour.yaml` being the recipe, and answers with how it ended and what it printed.
    fn levain(&self, words: &str) -> (Status, String) {
        let recipe = self.recipe().display().to_string();
        let cache = self.path().join("cache").display().to_string();
        let words = words.split(' ').map(|w| {
            if w == "tour.yaml" {
                recipe.clone()
            } else {
                w.to_owned()
            }
        });
        let all = ["levain", "-q", "--color", "never", "--cache", &cache]
            .map(str::to_owned)
            .into_iter()
            .chain(words);
        let options = Options::try_parse_from(all).unwrap_or_else(|e| panic!("{e}"));
        let mut context = Context::new(&options.global);
        context.printed = Some(Mutex::new(String::new()));
        let (status, mut text) = match super::run(&options.command, &context) {
            Ok(status) => (status, String::new()),
            Err(error) => {
                let text = match options.command.json() {
                    true => format!("{:#}\n", for_programs(&error)),
                    false => text_of(&error, false),
                };
                (status_of(&error), text)
            }
        };
        text.insert_str(0, &context.printed.unwrap().into_inner().unwrap());
        (status, self.tidy(&text))
    }

    /// Without what differs from run to run: places, digests, times.
    fn tidy(&self, text: &str) -> String {
        let mut out = String::new();
        let text = text.replace(&self.path().display().to_string(), "KITCHEN");
        let text = text.replace(
            &self.path().canonicalize().unwrap().display().to_string(),
            "KITCHEN",
        );
        for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let (body, end) = word.split_at(
                word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric())
                    .len(),
            );
            let hex = body
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
                && matches!(body.len(), 12 | 64);
            out.push_str(if hex { "DIGEST" } else { body });
            out.push_str(end);
        }
        let time = |line: &str| {
            line.rfind(" in ")
                .filter(|_| line.ends_with('s'))
                .map_or(line.to_owned(), |at| format!("{} in TIME", &line[..at]))
        };
        out.lines().map(|l| time(l) + "\n").collect()
    }

    fn json(&self, words: &str) -> serde_json::Value {
        let (status, text) = self.levain(words);
        assert_eq!(status, Status::Done, "{text}");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }
}

#[test]
fn help_is_the_one_that_was_read_last() {
    Options::command().debug_assert();
    insta::assert_snapshot!("help", Options::command().render_help());
}

#[test]
fn the_manual_of_commands_names_every_command_and_exit_code() {
    let manual = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/commands.md"
    ))
    .unwrap();
    for command in Options::command().get_subcommands() {
        assert!(
            manual.contains(&format!("\n## `levain {}", command.get_name())),
            "docs/commands.md lacks `{}`",
            command.get_name()
        );
        for option in command
            .get_arguments()
            .filter_map(|a| a.get_long())
            .filter(|o| *o != "help")
        {
            assert!(
                manual.contains(&format!("--{option}")),
                "docs/commands.md lacks `--{option}` of `{}`",
                command.get_name()
            );
        }
    }
    for line in crate::options::AFTER_HELP
        .lines()
        .filter(|l| l.starts_with("  ") && l.trim().starts_with(|c: char| c.is_ascii_digit()))
    {
        let (code, words) = line.trim().split_once(' ').unwrap();
        assert!(
            manual.contains(&format!("| {code} | {} |", words.trim())),
            "docs/commands.md lacks exit code {code}"
        );
    }
}

#[test]
fn a_first_run_and_a_second() {
    let kitchen = Kitchen::new();
    let (status, text) = kitchen.levain("check tour.yaml");
    assert_eq!(status, Status::Done);
    insta::assert_snapshot!(text, @r"
    OK KITCHEN/tour.yaml: 2 stages, 1 output
      rows: prompt-completion
    ");

    let (_, text) = kitchen.levain("plan tour.yaml");
    insta::assert_snapshot!(text, @r"
    will run  rows    load_dataset  DIGEST  nothing in the cache has its record
    may run   halves  split         ·             depends on `rows`

    2 nodes: 0 cached, 1 will run, 1 may run
    ");

    let (status, text) = kitchen.levain("run tour.yaml");
    assert_eq!(status, Status::Done);
    insta::assert_snapshot!(text, @r"
    kept  KITCHEN/out/kept  1 file written
    2 ran in TIME
    Next: try another part
    ");

    let (status, text) = kitchen.levain("run tour.yaml");
    assert_eq!(status, Status::Done);
    insta::assert_snapshot!(text, @r"
    kept  KITCHEN/out/kept  as it should be
    2 cached in TIME
    Next: try another part
    ");
    let plan = kitchen.json("plan tour.yaml --json");
    let run = kitchen.json("run tour.yaml --json");
    assert_eq!(
        run["counts"],
        serde_json::json!({ "ran": 0, "hits": 2, "failed": 0, "waiting": 0, "skipped": 0 })
    );
    for (planned, ran) in plan["stages"]
        .as_array()
        .unwrap()
        .iter()
        .zip(run["stages"].as_array().unwrap())
    {
        for word in ["name", "kind", "verdict", "key", "outputs"] {
            assert_eq!(planned[word], ran[word]);
        }
        assert_eq!(ran["outcome"], "hit");
    }
}

#[test]
fn why_names_what_changed() {
    let kitchen = Kitchen::new();
    kitchen.levain("run tour.yaml");
    insta::assert_snapshot!(kitchen.levain("why tour.yaml halves --set params.part=0.5").1, @r"
    halves (split) will run: nothing in the cache has its record; what changed since the last run:
      test 0.25 → 0.5
    ");
    insta::assert_snapshot!(kitchen.levain("why tour.yaml halves --record").1, @r"
    halves (split) cached: its outputs are in the cache

    Its record:
      input.data  DIGEST
      kind        split
      param.seed  17
      param.test  0.25
      version     1
      key         DIGEST
    ");
    fs::write(
        kitchen.path().join("rows.jsonl"),
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n",
    )
    .unwrap();
    insta::assert_snapshot!(kitchen.levain("why tour.yaml rows").1, @r"
    rows (load_dataset) will run: nothing in the cache has its record; what changed since the last run:
      source source: changed (DIGEST → DIGEST)
    ");
    let (status, text) = kitchen.levain("why tour.yaml halfs");
    assert_eq!(status, Status::Mistake);
    insta::assert_snapshot!(text, @"error: KITCHEN/tour.yaml has no stage `halfs`; did you mean `halves`?");
}

#[test]
fn show_prints_rows() {
    let kitchen = Kitchen::new();
    let (status, text) = kitchen.levain("show tour.yaml halves.test");
    assert_eq!(status, Status::Mistake);
    assert!(
        text.contains("has not run") && text.contains("levain run"),
        "{text}"
    );
    kitchen.levain("run tour.yaml");
    insta::assert_snapshot!(kitchen.levain("show tour.yaml rows --rows 1").1, @r"
    rows (load_dataset): dataset DIGEST
    made in TIME
      8 rows of layout prompt-completion
      prompt      Utf8
      completion  Utf8

      characters in a row: 9 to 9, 9.0 on average

    row 0
      prompt      0 + 1 =
      completion  1
    7 more rows; `--rows COUNT` prints more, `--json` prints them whole
    ");
    let value = kitchen.json("show tour.yaml halves.test --rows 9 --json");
    assert_eq!(value["count"], 2);
    assert_eq!(value["rows"].as_array().unwrap().len(), 2);
    let (status, text) = kitchen.levain("show tour.yaml halves.tset");
    assert_eq!(status, Status::Mistake);
    insta::assert_snapshot!(text, @"error: `halves` has no output `tset`; it has `halves.train`, `halves.test`");
    let (_, text) = kitchen.levain("show tour.yaml rows --tokens");
    insta::assert_snapshot!(text, @"error: `rows` reads no tokens; no stage of this recipe does");
}

#[test]
fn mistakes_end_with_2_and_leave_no_cache_behind() {
    let kitchen = Kitchen::new();
    kitchen.write(&RECIPE.replace("test:", "tset:"));
    let (status, text) = kitchen.levain("plan tour.yaml");
    assert_eq!(status, Status::Mistake);
    assert!(
        text.contains("tour.yaml:7:38") && text.contains("did you mean `test`?"),
        "{text}"
    );
    for command in ["check", "plan", "run", "graph", "fetch"] {
        let (status, text) = kitchen.levain(&format!("{command} tour.yaml --json"));
        assert_eq!(status, Status::Mistake);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["problems"][0]["code"], "unknown-key", "{command}");
    }
    assert!(!kitchen.path().join("cache").exists());
    let (status, text) = kitchen.levain("run nothing.yaml");
    assert_eq!(status, Status::Mistake);
    insta::assert_snapshot!(text, @"error: there is no recipe at nothing.yaml: is the path right? `levain init` writes a first recipe");
    let (status, _) = kitchen.levain("run tour.yaml --device tpu");
    assert_eq!(status, Status::Mistake);
}

#[test]
fn what_is_no_mistake_of_a_recipe_is_told_to_programs_as_well() {
    let kitchen = Kitchen::new();
    let told = |words: &str, status: Status, code: &str, message: &str| {
        let (found, text) = kitchen.levain(&format!("{words} --json"));
        assert_eq!(found, status, "{words}");
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        let problem = &answer["problems"][0];
        assert_eq!(problem["code"], code, "{words}");
        let said = problem["message"].as_str().unwrap();
        assert!(said.contains(message), "{words}: {said}");
        assert!(problem["place"].is_null(), "{words}");
    };
    for command in ["check", "plan", "run", "graph", "fetch"] {
        let words = format!("{command} nothing.yaml");
        told(
            &words,
            Status::Mistake,
            "usage",
            "there is no recipe at nothing.yaml",
        );
    }
    for command in ["why", "show"] {
        let words = format!("{command} tour.yaml halfs");
        told(&words, Status::Mistake, "usage", "`halves`");
    }
    for words in ["kinds slit", "runs show 0000"] {
        told(words, Status::Mistake, "usage", "");
    }
    // A file in the place of the cache.
    fs::remove_dir_all(kitchen.path().join("cache")).unwrap();
    fs::write(kitchen.path().join("cache"), "").unwrap();
    told(
        "cache size",
        Status::Mistake,
        "usage",
        "there is no cache at",
    );
    for command in ["check", "plan", "run"] {
        let words = format!("{command} tour.yaml");
        told(&words, Status::Machine, "machine", "KITCHEN/cache");
    }
}

#[test]
fn rows_without_margins_are_known_before_and_after_they_are_loaded() {
    let kitchen = Kitchen::new();
    let recipe = |field: &str| {
        kitchen.write(&format!(
            "levain: 1\nstages:\n  rows: {{ kind: load_dataset, source: rows.jsonl }}\n  \
             halves: {{ kind: split, data: rows, test: 1 }}\n  small: {{ kind: init_model, data: rows }}\n  \
             tuned: {{ kind: dpo, model: small, data: halves.train, {field} }}\n"
        ));
    };
    let pairs = |more: &str| {
        let pair = |i: usize| {
            format!("{{\"prompt\": \"{i}\", \"chosen\": \"a\", \"rejected\": \"b\"{more}}}\n")
        };
        let text: String = (0..4).map(pair).collect();
        fs::write(kitchen.path().join("rows.jsonl"), text).unwrap();
    };
    pairs("");
    for _ in 0..2 {
        recipe("soft_labels: true");
        let (status, text) = kitchen.levain("check tour.yaml");
        assert_eq!(status, Status::Mistake, "{text}");
        assert!(
            text.contains("the rows of `halves` have no margins, of which `soft_labels`"),
            "{text}"
        );
        // The second look is at rows that the cache has.
        recipe("beta: 0.2");
        let (status, text) = kitchen.levain("run tour.yaml halves");
        assert_eq!(status, Status::Done, "{text}");
    }
    pairs(", \"margin\": 1.5");
    recipe("soft_labels: true");
    assert_eq!(kitchen.levain("check tour.yaml").0, Status::Done);
}

#[test]
fn a_broken_row_fails_its_stage_and_skips_what_follows() {
    let kitchen = Kitchen::new();
    fs::write(
        kitchen.path().join("rows.jsonl"),
        "{\"text\": \"one\"}\n".repeat(50) + "{\"text\": \"two\"\n",
    )
    .unwrap();
    let (status, text) = kitchen.levain("run tour.yaml");
    assert_eq!(status, Status::Failed, "{text}");
    assert!(
        text.contains("1 failed, 1 skipped")
            && text.contains("failed: `rows`")
            && !text.contains("Next:"),
        "{text}"
    );
}

#[test]
fn export_writes_and_refuses() {
    let kitchen = Kitchen::new();
    kitchen.levain("run tour.yaml");
    let to = kitchen.path().join("exported");
    let (status, text) = kitchen.levain(&format!("export tour.yaml rows {}", to.display()));
    assert_eq!(status, Status::Done, "{text}");
    insta::assert_snapshot!(text, @"KITCHEN/exported: 1 file of dataset DIGEST");
    let (status, text) = kitchen.levain(&format!("export tour.yaml rows {}", to.display()));
    assert_eq!(status, Status::Mistake);
    insta::assert_snapshot!(text, @"error: KITCHEN/exported is not empty: name another folder, or add `--force` to write into it");
    let (status, _) = kitchen.levain(&format!("export tour.yaml rows {} --force", to.display()));
    assert_eq!(status, Status::Done);
    let (status, _) = kitchen.levain(&format!(
        "export tour.yaml rows {}/peft --format peft",
        to.display()
    ));
    assert_eq!(status, Status::Mistake);
}

#[test]
fn graphs_are_drawn() {
    let kitchen = Kitchen::new();
    insta::assert_snapshot!(kitchen.levain("graph tour.yaml --verdicts").1, @r#"
    flowchart TD
      n0["rows<br/><small>load_dataset</small>"]:::willrun
      n1["halves<br/><small>split</small>"]:::mayrun
      n0 --> n1
      classDef cached fill:#d3f2d5,stroke:#2e7d32,color:#000
      classDef willrun fill:#fff3c4,stroke:#b28704,color:#000
      classDef mayrun fill:#d4ecf7,stroke:#0277bd,color:#000
      classDef skipped fill:#eeeeee,stroke:#757575,color:#000
    "#);
    insta::assert_snapshot!(kitchen.levain("graph tour.yaml --format dot").1, @r##"
    digraph "tour" {
      node [shape=box, style="rounded,filled", fillcolor="#ffffff"];
      n0 [label="rows\nload_dataset"];
      n1 [label="halves\nsplit"];
      n0 -> n1;
    }
    "##);
}

#[test]
fn runs_are_listed_and_told_again() {
    let kitchen = Kitchen::new();
    assert_eq!(kitchen.levain("runs").1, "no runs in KITCHEN/cache\n");
    kitchen.levain("run tour.yaml");
    kitchen.levain("run tour.yaml");
    let (_, text) = kitchen.levain("runs");
    assert_eq!(text.lines().count(), 2);
    assert!(
        text.contains("2 ran, 0 cached, 0 failed") && text.contains("0 ran, 2 cached, 0 failed"),
        "{text}"
    );
    assert_eq!(
        kitchen.levain("runs elsewhere").1,
        "no runs in KITCHEN/cache\n"
    );
    assert_eq!(kitchen.levain("runs tour.yaml").1, text);
    let (_, text) = kitchen.levain("runs show last");
    assert!(
        text.contains("= rows") && text.contains("0 ran, 2 cached"),
        "{text}"
    );
    assert_eq!(kitchen.levain("runs show 0000").0, Status::Mistake);
    assert_eq!(kitchen.levain("runs show 1").0, Status::Mistake);
}

#[test]
fn the_cache_is_verified_and_mended() {
    let kitchen = Kitchen::new();
    kitchen.levain("run tour.yaml");
    let (status, text) = kitchen.levain("cache verify");
    assert_eq!(status, Status::Done, "{text}");
    let rows = kitchen.json("show tour.yaml rows --json");
    assert!(
        rows["files"][0]["path"]
            .as_str()
            .unwrap()
            .starts_with("KITCHEN/cache/objects/")
    );
    let blob = fs::read_dir(kitchen.path().join("cache/objects"))
        .unwrap()
        .flatten()
        .flat_map(|d| fs::read_dir(d.path()).unwrap().flatten())
        .next()
        .unwrap()
        .path();
    let mut bytes = fs::read(&blob).unwrap();
    bytes[0] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let (status, text) = kitchen.levain("cache verify");
    assert_eq!(status, Status::Failed);
    assert!(
        text.contains("was damaged and is in quarantine now"),
        "{text}"
    );
    assert_eq!(kitchen.levain("run tour.yaml").0, Status::Done);
    assert_eq!(kitchen.levain("cache verify").0, Status::Done);
    let size = kitchen.json("cache size --json");
    assert!(size["folders"]["objects"]["bytes"].as_u64().unwrap() > 0);
    let gc = kitchen.json("cache gc --older-than 0 --keep-runs 1 --dry-run --json");
    assert_eq!(gc["entries"], 0);
}

#[test]
fn init_writes_a_recipe_and_refuses_to_replace_it() {
    let kitchen = Kitchen::new();
    let folder = kitchen.path().join("new");
    let (status, text) = kitchen.levain(&format!("init {} --from cache-tour", folder.display()));
    assert_eq!(status, Status::Done);
    insta::assert_snapshot!(text, @r"
    wrote KITCHEN/new/cache-tour.yaml and KITCHEN/new/recipe.schema.json

    Type next:
      levain plan KITCHEN/new/cache-tour.yaml   what would run, and why
      levain run KITCHEN/new/cache-tour.yaml    run it
    ");
    let written = fs::read_to_string(folder.join("cache-tour.yaml")).unwrap();
    assert!(
        written.starts_with("# yaml-language-server: $schema=recipe.schema.json\n"),
        "{written}"
    );
    let (status, text) = kitchen.levain(&format!("init {} --from cache-tour", folder.display()));
    assert_eq!(status, Status::Mistake);
    insta::assert_snapshot!(text, @"error: KITCHEN/new/cache-tour.yaml is there already and stays as it is: name another folder, or remove it first");
}

#[test]
fn kinds_have_their_manual() {
    let kitchen = Kitchen::new();
    let (_, text) = kitchen.levain("kinds");
    for contract in ::kinds::contracts().kinds {
        assert!(text.contains(contract.about));
        let (status, manual) = kitchen.levain(&format!("kinds {}", contract.kind));
        assert_eq!(status, Status::Done);
        for field in contract.fields {
            assert!(
                manual.contains(&format!("\n  {}  (", field.name)),
                "{manual}"
            );
        }
    }
    insta::assert_snapshot!(kitchen.levain("kinds split").1);
    let (status, text) = kitchen.levain("kinds splt");
    assert_eq!(status, Status::Mistake);
    insta::assert_snapshot!(text, @"error: there is no kind `splt`; did you mean `split`?");
}

#[test]
fn completions_know_the_commands() {
    let kitchen = Kitchen::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            kitchen
                .levain(&format!("completions {shell}"))
                .1
                .contains("doctor")
        );
    }
}

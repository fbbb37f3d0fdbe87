//! A stage that fails while it runs is shown where the recipe has it, drawn as `levain check` draws mistakes, for people and for programs.

mod support;

use std::fs;

use serde_json::Value;
use support::scripted::{greeting, worker};
use support::{Kitchen, Said, checkout, text, tiny};

const ROWS: &str = "\
levain: 1
stages:
  rows: { kind: load_dataset, source: rows.jsonl }
  halves: { kind: split, data: rows, test: 0.5 }
";

/// A kitchen whose rows break behind those that are looked at beforehand, in two files.
fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(80);
    let rows = fs::read_to_string(kitchen.path().join("rows.jsonl")).unwrap();
    kitchen.write("rows.jsonl", &format!("{rows}{{\"prompt\": \n"));
    kitchen.write("other.jsonl", &format!("{rows}{{\"prompt\": \n"));
    kitchen.write("late.yaml", ROWS);
    kitchen
}

/// `stage file:line:column` of every failure that `run --json` tells, sorted.
fn failures(said: &Said) -> Vec<String> {
    let answer = said.json();
    let all = answer["failures"].as_array().unwrap().iter();
    let shown = all.map(|failure| {
        let place = &failure["place"];
        let (stage, file) = (text(&failure["stage"]), text(&place["file"]));
        format!("{stage} {file}:{}:{}", place["line"], place["column"])
    });
    let mut shown: Vec<String> = shown.collect();
    shown.sort();
    shown
}

#[test]
fn a_failure_is_drawn_like_a_mistake() {
    let kitchen = kitchen();
    let drawn = " --> late.yaml:3:39
  |
3 |   rows: { kind: load_dataset, source: rows.jsonl }
  |                                       ^^^^^^^^^^
";
    // In the lines of a run it stands below that of its stage.
    let said = kitchen.say("run late.yaml").expect(1);
    let inside: String = drawn.lines().map(|line| format!("    {line}\n")).collect();
    assert!(said.err.contains(&inside), "{}", said.err);
    let lines: Vec<&str> = said.err.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("✗ rows"));
    let title = lines[at.unwrap() + 1];
    assert!(
        title.starts_with("    error[stage-failed]: `rows`: "),
        "{title}"
    );
    let quiet = kitchen.say("run late.yaml -q").expect(1);
    assert!(
        quiet.err.starts_with("error[stage-failed]: `rows`: "),
        "{}",
        quiet.err
    );
    assert!(quiet.err.ends_with(drawn), "{}", quiet.err);
    // An old run is told with the recipe that it had, under its whole path.
    let id = kitchen.say("runs late.yaml --json").expect(0).json();
    let id = text(&id[0]["id"]);
    kitchen.write("late.yaml", "levain: 1\n");
    let shown = kitchen.say(&format!("runs show {id}")).expect(0).out;
    let words = ["late.yaml:3:39", "    3 |   rows: { kind: load_dataset,"];
    for words in words {
        assert!(shown.contains(words), "`{words}`:\n{shown}");
    }
}

#[test]
fn programs_get_the_place_that_check_gives() {
    let kitchen = kitchen();
    let said = kitchen.say("run late.yaml --json").expect(1);
    assert_eq!(failures(&said), ["rows late.yaml:3:39"]);
    let place = said.json()["failures"][0]["place"].clone();
    let (start, end) = (place["start"].as_u64(), place["end"].as_u64());
    let shown = &ROWS[start.unwrap() as usize..end.unwrap() as usize];
    assert_eq!(shown, "rows.jsonl");
    // The same words, and no others.
    kitchen.write("late.yaml", &ROWS.replace("0.5", "1.5"));
    let mistake = kitchen.say("check late.yaml --json").expect(2).json();
    let words = |place: &Value| -> Vec<String> {
        let place = place.as_object().unwrap();
        place.keys().cloned().collect()
    };
    assert_eq!(words(&place), words(&mistake["problems"][0]["place"]));
    // What an option says is wrong in the option, of which there may be several.
    kitchen.write("late.yaml", ROWS);
    let options = "--set halves.test=2 --set rows.source=other.jsonl";
    let said = kitchen
        .say(&format!("run late.yaml --json {options}"))
        .expect(1);
    assert_eq!(failures(&said), ["rows --set:1:13"]);
    assert_eq!(said.json()["failures"][0]["place"]["option"], 2);
    assert!(
        said.err.contains("1 | rows.source=other.jsonl"),
        "{}",
        said.err
    );
}

#[test]
fn a_worker_says_which_word_it_is_about() {
    let kitchen = Kitchen::new(0);
    let model = checkout().join("tests/golden/data/formats/tiny.gguf");
    fs::copy(model, kitchen.path().join("tiny.gguf")).unwrap();
    kitchen.write("rows.jsonl", "{\"text\": \"one loaf\"}\n");
    let recipe = "\
levain: 1
stages:
  base: { kind: load_model, source: tiny.gguf, dtype: f32 }
  rows: { kind: load_dataset, source: rows.jsonl, format: text }
  scores: { kind: evaluate, models: base, data: rows }
";
    kitchen.write("bake.yaml", recipe);
    for (reply, place) in [
        (
            "{\"failed_about\":{\"word\":\"data\",\"error\":\"too stale\"}}",
            "scores bake.yaml:5:49",
        ),
        // A field that the recipe leaves out has no place but its stage's.
        (
            "{\"failed_about\":{\"word\":\"max_length\",\"error\":\"too stale\"}}",
            "scores bake.yaml:5:3",
        ),
        ("{\"failed\":\"too stale\"}", "scores bake.yaml:5:3"),
    ] {
        let rest = format!("read -r job; echo '{reply}'; cat > /dev/null");
        let worker = worker(&kitchen, &greeting(), &rest);
        let mut command = kitchen.command(&["run", "bake.yaml", "--json"]);
        let said = Said::of(command.env("LEVAIN_WORKER", worker)).expect(1);
        assert_eq!(failures(&said), [place], "{}", said.err);
        assert_eq!(said.json()["failures"][0]["error"], "too stale");
    }
}

#[test]
fn trainings_point_at_the_setting_that_they_refuse() {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    kitchen.write("chats.jsonl", &tiny::chats(4));
    let recipe = "\
levain: 1
seed: 3
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  chats: { kind: load_dataset, source: chats.jsonl }
  thin: { kind: lora, model: base, r: 4 }
  grid:
    matrix: { rate: [0.01, 0.001] }
    stages:
      tuned:
        kind: sft
        model: thin
        data: chats
        learning_rate: \"${matrix.rate}\"
        learning_rates: { lora_C: 0.1 }
  still: { kind: sft, model: base, data: chats, train: ['*norm*'], weight_decay: 0.1 }
";
    kitchen.write("grid.yaml", recipe);
    let said = kitchen.say("run grid.yaml --json --keep-going").expect(1);
    assert_eq!(
        failures(&said),
        [
            "grid[rate=0.001].tuned grid.yaml:16:25",
            "grid[rate=0.01].tuned grid.yaml:16:25",
            "still grid.yaml:17:82",
        ]
    );
    for words in [
        "error[stage-failed]: `grid[rate=0.01].tuned`: `learning_rates`: no trained parameter is called \"lora_C\"",
        "16 |         learning_rates: { lora_C: 0.1 }",
        "lora_A",
    ] {
        assert!(said.err.contains(words), "`{words}`:\n{}", said.err);
    }
}

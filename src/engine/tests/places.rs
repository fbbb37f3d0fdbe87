//! Where the recipe says what failed while it ran: by hand, in groups, in preparations, in options, in `outputs`.

extern crate levain_engine as engine;

mod support;

use engine::event::What;
use support::{Kitchen, Told, run};

/// What fails of a recipe, sorted: `stage line:column text`, with the text that is pointed at. An option has its number before it.
fn failures(kitchen: &Kitchen, recipe: &str, set: &[&'static str]) -> Vec<String> {
    let told = Told {
        set: set.to_vec(),
        keep_going: true,
        ..Told::default()
    };
    let mut session = kitchen.open(recipe, &told);
    let ran = run(&mut session, &told);
    let mut events = ran.events.iter().filter_map(|event| match &event.what {
        What::Failed { place, .. } => Some((event.stage.as_deref(), place)),
        _ => None,
    });
    let shown = ran.outcome.failures.iter().map(|failure| {
        let told = (Some(failure.stage.as_str()), &failure.place);
        assert_eq!(events.next(), Some(told), "the log says the same");
        let place = failure.place.as_ref().unwrap();
        let source = &session.recipe.sources[place.option];
        assert_eq!(place.file, source.name);
        let option = match place.option {
            0 => String::new(),
            option => format!("--set {option}: "),
        };
        let text = &source.text[place.start..place.end];
        let (stage, line, column) = (&failure.stage, place.line, place.column);
        format!("{option}{stage} {line}:{column} {text}")
    });
    let mut shown: Vec<String> = shown.collect();
    assert_eq!(events.next(), None);
    shown.sort();
    shown
}

#[test]
fn a_stage_that_fails_is_at_its_name() {
    let recipe = "  first:\n    kind: fail\n  second: { kind: crash }\n  third: { kind: lie }\n";
    let found = failures(&Kitchen::new(), recipe, &[]);
    assert_eq!(
        found,
        ["first 4:3 first", "second 6:3 second", "third 7:3 third"]
    );
}

#[test]
fn stages_of_a_group_are_where_they_are_written() {
    let recipe = "  \
grid:
    matrix: { size: [1, 2] }
    stages:
      bad: { kind: fail }
  dough:
    repeat: 2
    stages:
      inner:
        matrix: { mood: [calm] }
        stages:
          worse: { kind: crash }
";
    let found = failures(&Kitchen::new(), recipe, &[]);
    assert_eq!(
        found,
        [
            "dough[1].inner[mood=calm].worse 14:11 worse",
            "dough[2].inner[mood=calm].worse 14:11 worse",
            "grid[size=1].bad 7:7 bad",
            "grid[size=2].bad 7:7 bad",
        ]
    );
}

#[test]
fn what_is_about_one_word_is_at_its_value() {
    let kitchen = Kitchen::new();
    kitchen.write("note.txt", "Flour");
    let recipe = "  a: { kind: say, text: Flour }\n  b: { kind: sweet, data: a }\n  \
                  c: { kind: scribble, source: note.txt }\n";
    let found = failures(&kitchen, recipe, &[]);
    assert_eq!(found, ["b 5:27 a", "c 6:32 note.txt"]);
}

#[test]
fn a_preparation_is_at_the_words_of_its_stage() {
    let recipe = "  base: { kind: make, weights: w }\n  rows: { kind: say, text: stale }\n  \
                  tuned: { kind: tune, model: base, data: rows }\n";
    let found = failures(&Kitchen::new(), recipe, &[]);
    assert_eq!(found, ["tuned › tokens 6:43 rows"]);
    // A field that is not given has no place of its own; one that is given has.
    let odd = recipe.replace("stale", "odd");
    let found = failures(&Kitchen::new(), &odd, &[]);
    assert_eq!(found, ["tuned › tokens 6:3 tuned"]);
    let odd = odd.replace("data: rows", "data: rows, length: 6");
    let found = failures(&Kitchen::new(), &odd, &[]);
    assert_eq!(found, ["tuned › tokens 6:57 6"]);
}

#[test]
fn options_and_parameters_have_places_too() {
    let recipe = "\
levain: 1
params: { rows: b }
stages:
  a: { kind: say, text: Flour }
  b: { kind: say, text: Water }
  c: { kind: sweet, data: \"${params.rows}\" }
";
    let kitchen = Kitchen::new();
    let found = failures(&kitchen, recipe, &[]);
    assert_eq!(found, ["c 6:27 \"${params.rows}\""]);
    let found = failures(&kitchen, recipe, &["a.text=Rye", "params.rows=a"]);
    assert_eq!(found, ["--set 2: c 1:13 a"]);
    let found = failures(&kitchen, recipe, &["c.data=a"]);
    assert_eq!(found, ["--set 1: c 1:8 a"]);
    let found = failures(&kitchen, recipe, &["a={ kind: fail }"]);
    assert_eq!(found, ["--set 1: a 1:1 a", "c 6:27 \"${params.rows}\""]);
}

#[test]
fn an_output_that_can_not_be_written_is_at_its_name() {
    let kitchen = Kitchen::new();
    kitchen.write("out", "in the way");
    let recipe = "\
levain: 1
stages:
  a: { kind: say, text: Flour }
outputs:
  mine: { from: a, to: out }
";
    let found = failures(&kitchen, recipe, &[]);
    assert_eq!(found, ["outputs.mine 5:3 mine"]);
}

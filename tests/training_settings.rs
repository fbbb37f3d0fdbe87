//! Settings of trainings that would do nothing are refused before the first step, those that do little are said, and gradual unfreezing goes
//! through the whole program.

mod support;

use support::artifacts::stage;
use support::{Kitchen, files, tiny};

/// What every recipe here begins with.
const SHARED: &str = "\
levain: 1
seed: 3
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  chats: { kind: load_dataset, source: chats.jsonl }
  thin: { kind: lora, model: base, r: 4 }
  scaled: { kind: ia3, model: base }
";

/// A kitchen with a recipe of these stages more, each `name: fields` of `sft`.
fn kitchen(stages: &[(&str, &str)]) -> Kitchen {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    kitchen.write("chats.jsonl", &tiny::chats(12));
    let stages = stages.iter().map(|(name, fields)| {
        format!(
            "  {name}: {{ kind: sft, data: chats, batch: 4, learning_rate: 1.0e-2, warmup: 0, {fields} }}\n"
        )
    });
    kitchen.write(
        "bake.yaml",
        &(SHARED.to_owned() + &stages.collect::<String>()),
    );
    kitchen
}

/// Everything that was noted in any run.
fn events(kitchen: &Kitchen) -> String {
    let all = files(&kitchen.cache());
    let logs = all.iter().filter(|path| path.ends_with("events.jsonl"));
    let texts: Vec<String> = logs
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    assert!(!texts.is_empty());
    texts.concat()
}

#[test]
fn what_would_do_nothing_is_refused_before_the_first_step() {
    let cases = [
        (
            "shadowed",
            "model: base, learning_rates: { mlp.up_proj: 0.1, up_proj: 0.2 }",
            "holds for nothing",
        ),
        (
            "everything",
            "model: thin, learning_rates: { '*': 0.1 }",
            "`learning_rate` means nothing",
        ),
        (
            "level",
            "model: base, train: [layers.1], layer_decay: 0.9",
            "all that is trained is at one depth",
        ),
        (
            "at_once",
            "model: base, train: [layers.1], unfreeze_every: 2",
            "is at one depth and begins in the first step",
        ),
        (
            "undecayed",
            "model: base, train: ['*norm*'], weight_decay: 0.1",
            "`weight_decay` does nothing here",
        ),
        (
            "scales",
            "model: scaled, weight_decay: 0.1",
            "`weight_decay` does nothing here",
        ),
    ];
    let stages = cases.map(|(name, fields, _)| (name, fields));
    let kitchen = kitchen(&stages);
    let said = kitchen.say("run bake.yaml --json --keep-going").expect(1);
    let answer = said.json();
    for (name, _, message) in cases {
        assert_eq!(
            stage(&answer, name)["outcome"],
            "failed",
            "{name}:\n{}",
            said.err
        );
        assert!(said.err.contains(message), "{name}:\n{}", said.err);
    }
    // Nobody took a step.
    assert!(!events(&kitchen).contains("\"grad_norm\""));
}

#[test]
fn layers_begin_in_their_turns() {
    let kitchen = kitchen(&[
        ("at_once", "model: base, max_steps: 3"),
        ("gradual", "model: base, max_steps: 3, unfreeze_every: 1"),
        ("late", "model: base, max_steps: 3, unfreeze_every: 100"),
        (
            "last",
            "model: base, max_steps: 3, train: { last_layers: 1 }",
        ),
        ("small", "model: thin, max_steps: 1, optimizer: adamw_8bit"),
        ("small_too", "model: thin, max_steps: 1"),
    ]);
    let said = kitchen.say("run bake.yaml --json").expect(0).json();
    let digest = |name: &str| stage(&said, name)["outputs"]["model"].clone();
    // What waits for longer than the run is a frozen weight, to the last byte.
    assert_eq!(digest("late"), digest("last"));
    assert_ne!(digest("gradual"), digest("at_once"));
    assert_ne!(digest("gradual"), digest("late"));
    assert_eq!(digest("small"), digest("small_too"));
    let events = events(&kitchen);
    assert!(events.contains("3 steps; the last parameters begin in step 3\""));
    assert!(events.contains(
        "the last parameters begin in step 201: 10 of 20 parameter tensors are never trained"
    ));
    assert!(events.contains("`optimizer: adamw_8bit` is `adamw` here"));
}

#[test]
fn a_row_that_is_too_long_is_said_before_the_first_step() {
    let kitchen = kitchen(&[("tuned", "model: thin, epochs: 100, max_length: 512")]);
    let long = format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": \"Say\"}}, {{\"role\": \"assistant\", \"content\": \"{}\"}}]}}\n",
        "rye ".repeat(120)
    );
    kitchen.write("chats.jsonl", &(tiny::chats(12) + &long));
    let said = kitchen.say("run bake.yaml").expect(1).err;
    assert!(said.contains("row 13 of `data` has "), "{said}");
    assert!(said.contains("set `max_length` to 128 or less"), "{said}");
    assert!(!said.contains("in step"), "{said}");
}

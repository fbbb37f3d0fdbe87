//! Gates, selections and rounds that stop, with trainings and evaluations: what runs, what comes out, and what the commands say of it.

mod support;

use serde_json::Value;
use support::artifacts::stage;
use support::{Kitchen, text, tiny};

/// Three rounds that train on and on; a loss that went up ends them.
const RECIPE: &str = "\
levain: 1
seed: 17
threads: 1
params: { limit: 100 }
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  chats: { kind: load_dataset, source: chats.jsonl }
  halves: { kind: split, data: chats, test: 0.25 }
  thin: { kind: lora, model: base, r: 4 }
  align:
    repeat: 3
    carry: { policy: { first: thin, then: tuned } }
    stop_if: { metrics: scores, metric: tuned.loss, below: \"${params.limit}\" }
    stages:
      tuned: { kind: sft, model: policy, data: halves.train, learning_rate: 1.0e-2, batch: 4 }
      scores: { kind: evaluate, models: tuned, data: halves.test }
  rounds: { kind: evaluate, models: \"align[*].tuned\", data: halves.test }
  best: { kind: select, candidates: \"align[*].tuned\", metrics: rounds, metric: loss, goal: min }
  worst: { kind: select, candidates: \"align[*].tuned\", metrics: \"align[*].scores\", metric: tuned.loss, goal: max }
  good: { kind: gate, input: best, metrics: align.scores, metric: tuned.perplexity, max: 1.0e+6 }
  late: { kind: generate, model: \"align[3].tuned\", prompts: halves.test, max_new_tokens: 2 }
outputs:
  adapter: { from: good, format: peft, to: out/good }
  late: { from: late, to: out/late }
";

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    kitchen.write("chats.jsonl", &tiny::chats(12));
    kitchen.write("rounds.yaml", RECIPE);
    kitchen
}

fn digest(answer: &Value, name: &str, output: &str) -> String {
    text(&stage(answer, name)["outputs"][output])
}

/// The loss of a model in an evaluation, as `show` tells it.
fn loss(kitchen: &Kitchen, name: &str, model: &str) -> f64 {
    let shown = kitchen.say(&format!("show rounds.yaml {name} --json"));
    let shown = shown.expect(0).json();
    shown["summary"][model]["loss"].as_f64().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn what_a_stage_took_is_shown() {
    let kitchen = kitchen();
    kitchen.say("run rounds.yaml align[1].tuned").expect(0);
    let shown = kitchen.say("show rounds.yaml align[1].tuned --json");
    let made = shown.expect(0).json()["provenance"].clone();
    // libtorch alone is tens of megabytes.
    let peak = made["peak_memory"].as_u64().unwrap();
    assert!((30_000_000..100_000_000_000).contains(&peak), "{peak}");
    let shown = kitchen.say("show rounds.yaml align[1].tuned").expect(0).out;
    assert!(shown.contains(" of memory at most\n"), "{shown}");
}

#[test]
fn rounds_that_stop_end_well_and_a_second_run_finds_all_of_them() {
    let kitchen = kitchen();
    let said = kitchen.say("run rounds.yaml --json").expect(0);
    let first = said.json();
    let value = loss(&kitchen, "align[1].scores", "tuned");
    // A person is told six digits; the metric keeps all.
    let value = engine::metric::short(value);
    assert!(value.len() < 9, "{value}");
    let reason = format!("`align` stopped after round 1: `tuned.loss` is {value}, below 100");
    for name in [
        "align[2].tuned",
        "align[3].tuned › tokens",
        "rounds › tokens[2]",
        "late",
    ] {
        assert_eq!(stage(&first, name)["outcome"], "skipped", "{name}");
        assert_eq!(stage(&first, name)["reason"], reason.as_str(), "{name}");
    }
    let tuned = digest(&first, "align[1].tuned", "model");
    for (name, output) in [("best", "best"), ("worst", "best"), ("good", "output")] {
        assert_eq!(digest(&first, name, output), tuned, "{name}");
    }
    assert!(
        kitchen
            .path()
            .join("out/good/adapter_model.safetensors")
            .exists()
    );
    assert!(!kitchen.path().join("out/late").exists());
    assert!(
        said.err.contains(&format!(
            "outputs.late: `out/late` is left as it is: {reason}"
        )),
        "{}",
        said.err
    );

    let second = kitchen.say("run rounds.yaml --json").expect(0).json();
    assert_eq!(second["counts"]["ran"], 0, "{second:#}");
    assert_eq!(second["counts"]["skipped"], first["counts"]["skipped"]);
    let plan = kitchen.say("plan rounds.yaml").expect(0).out;
    assert!(
        plan.contains(&reason) && plan.contains(" 0 will run, 0 may run, "),
        "{plan}"
    );
    let runs = kitchen.say("runs --json").expect(0).json();
    assert_eq!(runs[0]["outcome"], "done", "{runs:#}");
    let why = kitchen.say("why rounds.yaml align[2].tuned").expect(0).out;
    assert!(why.contains(&format!("skipped: {reason}")), "{why}");
    let graph = kitchen.say("graph rounds.yaml --verdicts").expect(0).out;
    assert!(
        graph.contains("-->|stop_if|") && graph.contains(":::skipped"),
        "{graph}"
    );
    let resolved = kitchen.say("plan rounds.yaml --resolved").expect(0).out;
    assert!(
        resolved.contains("unless: [\"align[1].scores: tuned.loss below 100\"]"),
        "{resolved}"
    );
    let said = kitchen.say("show rounds.yaml align[2].tuned");
    assert!(
        said.expect(2)
            .err
            .contains(&format!("`align[2].tuned` does not run: {reason}"))
    );
    // What people call `align.tuned` is the one that ran.
    let shown = kitchen
        .say("show rounds.yaml align.tuned --json")
        .expect(0)
        .json();
    assert_eq!(shown["digest"], tuned.as_str());

    // Without a limit that holds the other rounds follow, and the first is not run again.
    let more = "run rounds.yaml --json --set params.limit=-1";
    let all = kitchen.say(more).expect(0).json();
    assert_eq!(all["counts"]["skipped"], 0);
    assert_eq!(stage(&all, "align[1].tuned")["outcome"], "hit");
    kitchen.write("rounds.yaml", &RECIPE.replace("limit: 100", "limit: -1"));
    let losses: Vec<f64> = ["1", "2", "3"].map(|n| loss(&kitchen, "rounds", n)).into();
    let place = |better: fn(f64, f64) -> bool| {
        let mut best = 0;
        (1..3).for_each(|i| {
            if better(losses[i], losses[best]) {
                best = i
            }
        });
        digest(&all, &format!("align[{}].tuned", best + 1), "model")
    };
    assert_eq!(digest(&all, "best", "best"), place(|new, old| new < old));
    assert_eq!(digest(&all, "worst", "best"), place(|new, old| new > old));
    assert!(kitchen.path().join("out/late").exists());
}

#[test]
fn a_gate_says_what_is_wrong_and_copies_nothing() {
    let kitchen = kitchen();
    let gate = |limit: &str| {
        format!(
            "levain: 1\nseed: 17\nthreads: 1\nstages:\n  base: {{ kind: load_model, source: model, dtype: f32 }}\n  \
             chats: {{ kind: load_dataset, source: chats.jsonl }}\n  \
             scores: {{ kind: evaluate, models: base, data: chats }}\n  \
             good: {{ kind: gate, input: base, metrics: scores, metric: base.loss, {limit} }}\n"
        )
    };
    kitchen.write("gate.yaml", &gate("max: 1000"));
    let fine = kitchen.say("run gate.yaml --json").expect(0).json();
    assert_eq!(
        digest(&fine, "good", "output"),
        digest(&fine, "base", "model")
    );
    let objects = support::files(&kitchen.cache().join("objects")).len();
    kitchen.write("gate.yaml", &gate("max: 0.5"));
    let said = kitchen.say("run gate.yaml --json").expect(1);
    let error = text(&said.json()["failures"][0]["error"]);
    assert!(
        error.starts_with("the gate is closed: `base.loss` is ") && error.ends_with(", above 0.5"),
        "{error}"
    );
    kitchen.write("gate.yaml", &gate("min: 0.5"));
    kitchen.say("run gate.yaml").expect(0);
    assert_eq!(
        support::files(&kitchen.cache().join("objects")).len(),
        objects
    );
}

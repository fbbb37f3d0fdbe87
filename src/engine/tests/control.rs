//! `stop_if`, and stages that hand on what they are given, with toy kinds: which rounds run, who takes which, what a second run finds.

extern crate levain_engine as engine;

mod support;

use support::{Kitchen, Told, artifact, check, same};

/// Rounds that each add a text to what is carried, until it is longer than `above`.
fn rounds(count: usize, above: usize) -> String {
    format!(
        "  start: {{ kind: say, text: Flour }}\n  \
         dough:\n    repeat: {count}\n    carry: {{ now: {{ first: start, then: mixed }} }}\n    \
         stop_if: {{ metrics: size, metric: bytes, above: {above} }}\n    stages:\n      \
         water: {{ kind: say, text: \"w${{round}}\" }}\n      \
         mixed: {{ kind: join, parts: {{ a: now, b: water }} }}\n      \
         size: {{ kind: weigh, data: mixed }}\n  \
         last: {{ kind: lower, data: dough.mixed }}\n  \
         all: {{ kind: join, parts: \"dough[*].water\" }}\n  \
         best: {{ kind: longest, parts: \"dough[*].mixed\", metrics: \"dough[*].size\" }}\n"
    )
}

const STOPPED: &str = "`dough` stopped after round 2: `bytes` is 21, above 20";

#[test]
fn a_round_in_which_it_holds_is_the_last_one() {
    let kitchen = Kitchen::new();
    let ran = check(
        &kitchen,
        &rounds(4, 20),
        "start will run
         dough[1].water will run\ndough[1].mixed may run\ndough[1].size may run
         dough[2].water may run\ndough[2].mixed may run\ndough[2].size may run
         dough[3].water may run\ndough[3].mixed may run\ndough[3].size may run
         dough[4].water may run\ndough[4].mixed may run\ndough[4].size may run
         last may run\nall may run\nbest may run",
        "all done\nbest done
         dough[1].mixed done\ndough[1].size done\ndough[1].water done
         dough[2].mixed done\ndough[2].size done\ndough[2].water done
         dough[3].mixed skipped\ndough[3].size skipped\ndough[3].water skipped
         dough[4].mixed skipped\ndough[4].size skipped\ndough[4].water skipped
         last done\nstart done",
    );
    assert!(ran.outcome.lock.complete && ran.outcome.failed == 0);
    let text = |name: &str, output: &str| kitchen.text(&ran.outcome, name, output);
    assert_eq!(text("dough[2].mixed", "text").len(), 21);
    assert_eq!(
        text("last", "text"),
        text("dough[2].mixed", "text").to_lowercase()
    );
    assert_eq!(text("all", "text"), "1=w1\n2=w2\n");
    assert_eq!(
        artifact(&ran.outcome, "best", "best"),
        artifact(&ran.outcome, "dough[2].mixed", "text")
    );
    let reason = |name: &str| ran.outcome.lock.stages[name].reason.as_deref();
    assert_eq!(reason("dough[4].water"), Some(STOPPED));
    assert_eq!(reason("last"), None);
    same(
        &kitchen.plan(&rounds(4, 20), &Told::default()),
        "start cached
         dough[1].water cached\ndough[1].mixed cached\ndough[1].size cached
         dough[2].water cached\ndough[2].mixed cached\ndough[2].size cached
         dough[3].water skipped\ndough[3].mixed skipped\ndough[3].size skipped
         dough[4].water skipped\ndough[4].mixed skipped\ndough[4].size skipped
         last cached\nall cached\nbest cached",
    );
}

#[test]
fn a_key_knows_what_it_was_given_and_not_how_many_rounds_there_might_have_been() {
    let kitchen = Kitchen::new();
    kitchen.run(&rounds(4, 20), &Told::default());
    let more = kitchen.run(&rounds(9, 20), &Told::default());
    assert_eq!(more.outcome.ran, 0, "{}", more.log());
    // Another limit that holds after the same round, and one that lets two more run.
    assert_eq!(kitchen.run(&rounds(4, 13), &Told::default()).outcome.ran, 0);
    let more = kitchen.run(&rounds(4, 1000), &Told::default());
    assert_eq!(more.outcome.ran, 6 + 3, "{}", more.log());
    assert_eq!(more.outcome.skipped, 0);
    // And without any: the same rounds.
    let without = rounds(4, 0).replace("stop_if: { metrics: size, metric: bytes, above: 0 }", "");
    assert_eq!(kitchen.run(&without, &Told::default()).outcome.ran, 0);
}

#[test]
fn both_limits_count_and_neither_is_inside() {
    let stops_after = |limits: &str| {
        let recipe = rounds(3, 0).replace("above: 0", limits);
        let ran = Kitchen::new().run(&recipe, &Told::default());
        let round =
            |n: usize| ran.outcome.lock.stages[&format!("dough[{n}].size")].outcome == "done";
        (1..=3).filter(|n| round(*n)).count()
    };
    // Rounds have 13, 21 and 29 bytes.
    assert_eq!(stops_after("above: 13"), 2);
    assert_eq!(stops_after("below: 13"), 3);
    assert_eq!(stops_after("below: 13.5"), 1);
    assert_eq!(stops_after("below: 3, above: 12"), 1);
    assert_eq!(stops_after("below: 3, above: 100"), 3);
}

#[test]
fn who_needs_a_skipped_round_is_skipped_and_outputs_follow_the_last_that_ran() {
    let kitchen = Kitchen::new();
    let recipe = format!(
        "levain: 1\nname: test\nstages:\n{}  \
         third: {{ kind: lower, data: \"dough[3].mixed\" }}\n  \
         after: {{ kind: join, parts: [third, start] }}\n  \
         model: {{ kind: make, weights: w }}\n  \
         tuned: {{ kind: tune, model: model, data: \"dough[3].mixed\" }}\n\
         outputs:\n  kept: {{ from: dough.mixed, to: out/kept }}\n  late: {{ from: third, to: out/late }}\n",
        rounds(4, 20)
    );
    let ran = kitchen.run(&recipe, &Told::default());
    let stages = &ran.outcome.lock.stages;
    for name in ["third", "after", "tuned", "tuned › tokens"] {
        assert_eq!(stages[name].outcome, "skipped", "{name}");
        assert_eq!(stages[name].reason.as_deref(), Some(STOPPED), "{name}");
    }
    assert!(ran.outcome.lock.complete && ran.outcome.failures.is_empty());
    let kept = std::fs::read_to_string(kitchen.path().join("out/kept/text.txt")).unwrap();
    assert_eq!(kept, kitchen.text(&ran.outcome, "dough[2].mixed", "text"));
    assert!(!kitchen.path().join("out/late").exists());
    let note = format!("outputs.late note `out/late` is left as it is: {STOPPED}\n");
    assert!(ran.log().contains(&note), "{}", ran.log());
    let session = kitchen.open(&recipe, &Told::default());
    let name = |asked: &str| {
        session.plan.nodes[session.find(asked).unwrap().0]
            .name
            .clone()
    };
    assert_eq!(name("dough.mixed"), "dough[2].mixed");
    assert_eq!(name("dough[3].mixed"), "dough[3].mixed");
    assert_eq!(
        session.artifact("third").unwrap_err().to_string(),
        format!("`third` does not run: {STOPPED}")
    );
    let standings = session.standings();
    let why = engine::explain::why(&session, &standings, session.find("third").unwrap().0);
    assert_eq!(why.unwrap().reason, STOPPED);
    // One of them alone needs what could have been the last round.
    let told = Told {
        targets: vec!["last"],
        ..Told::default()
    };
    let fresh = Kitchen::new().run(&recipe, &told);
    assert_eq!(fresh.outcome.lock.stages["last"].outcome, "done");
    assert!(!fresh.outcome.lock.stages.contains_key("third"));
}

#[test]
fn a_failure_in_a_later_round_is_none_of_a_stop() {
    let kitchen = Kitchen::new();
    // The last round that ran is not the last one that did not fail.
    let recipe = rounds(3, 1000).replace(
        "w${round}\" }",
        "w${round}\" }\n      hurt: { kind: fail, data: now }",
    );
    let recipe = recipe.replace("b: water }", "b: water, c: hurt }");
    let ran = kitchen.run(
        &recipe,
        &Told {
            keep_going: true,
            ..Told::default()
        },
    );
    assert!(!ran.outcome.lock.complete);
    assert_eq!(
        ran.outcome.lock.stages["last"].reason.as_deref(),
        Some("`dough[1].mixed` did not run")
    );
}

#[test]
fn what_can_not_be_told_is_a_failure() {
    let kitchen = Kitchen::new();
    let recipe = rounds(2, 20).replace("text: Flour", "text: astray");
    let ran = kitchen.run(&recipe, &Told::default());
    let failure = &ran.outcome.failures[0];
    assert_eq!(failure.stage, "dough[2].water");
    assert_eq!(
        failure.error,
        "whether `dough` stops after round 1 can't be told: the metric `bytes` is not a number"
    );
    assert!(!ran.outcome.lock.complete);
    // What is cached tells it before: nothing else comes of it.
    let again = kitchen.run(&recipe, &Told::default());
    assert_eq!(&again.outcome.failures[0], failure);
    assert_eq!(again.outcome.ran, 0);
}

#[test]
fn rounds_of_rounds_stop_each_by_their_own() {
    let kitchen = Kitchen::new();
    let recipe = "  \
        start: { kind: say, text: s }\n  \
        outer:\n    repeat: 3\n    carry: { top: { first: start, then: inner.mixed } }\n    \
          stop_if: { metrics: weight, metric: bytes, above: 28 }\n    stages:\n      \
          inner:\n        repeat: 3\n        carry: { now: { first: top, then: mixed } }\n        \
            stop_if: { metrics: size, metric: bytes, above: 17 }\n        stages:\n          \
            add: { kind: say, text: \"r${round}\" }\n          \
            mixed: { kind: join, parts: { a: now, b: add } }\n          \
            size: { kind: weigh, data: mixed }\n      \
          weight: { kind: weigh, data: inner.mixed }\n  \
        last: { kind: pass, data: outer.inner.mixed }\n  \
        each: { kind: join, parts: \"outer[*].inner.mixed\" }\n  \
        early: { kind: join, parts: \"outer[1].inner[*].mixed\" }\n";
    let ran = kitchen.run(recipe, &Told::default());
    let done: Vec<&str> = ran
        .outcome
        .lock
        .stages
        .iter()
        .filter(|(name, stage)| name.ends_with("mixed") && stage.outcome == "done")
        .map(|(name, _)| name.as_str())
        .collect();
    // 9, 17 and 25 bytes; then 33, which is above both limits.
    assert_eq!(
        done,
        [
            "outer[1].inner[1].mixed",
            "outer[1].inner[2].mixed",
            "outer[1].inner[3].mixed",
            "outer[2].inner[1].mixed"
        ]
    );
    assert!(ran.outcome.lock.complete, "{}", ran.text());
    assert_eq!(
        artifact(&ran.outcome, "last", "same"),
        artifact(&ran.outcome, "outer[2].inner[1].mixed", "text")
    );
    let lines = |name: &str| kitchen.text(&ran.outcome, name, "text");
    assert!(lines("each").starts_with("1=") && !lines("each").contains("\n3="));
    assert!(lines("each").contains("\n2="));
    assert!(lines("early").starts_with("1=") && lines("early").contains("\n3="));
    assert_eq!(kitchen.run(recipe, &Told::default()).started(), 0);
}

#[test]
fn a_model_of_the_last_round_is_tokenized_for_without_waiting() {
    let kitchen = Kitchen::new();
    let recipe = "  \
        base: { kind: make, weights: w }\n  \
        rows: { kind: say, text: abacus }\n  \
        align:\n    repeat: 3\n    carry: { policy: { first: base, then: tuned } }\n    \
          stop_if: { metrics: size, metric: bytes, above: 18 }\n    stages:\n      \
          tuned: { kind: tune, model: policy, data: rows }\n      \
          size: { kind: weigh, data: tuned }\n  \
        gated: { kind: pass, data: align.tuned }\n  \
        more: { kind: tune, model: gated, data: rows, rate: 0.25 }\n";
    let session = kitchen.open(recipe, &Told::default());
    let base = session.plan.find("base").unwrap();
    let rows = session.plan.find("rows").unwrap();
    for round in 1..=3 {
        let tokens = session.plan.find(&format!("align[{round}].tuned/tokens"));
        let needs = session.plan.needs(tokens.unwrap());
        assert!(needs.contains(&base) && needs.contains(&rows), "{needs:?}");
    }
    let ran = check(
        &kitchen,
        recipe,
        "base will run\nrows will run
         align[1].tuned may run\nalign[1].size may run\nalign[2].tuned may run\nalign[2].size may run
         align[3].tuned may run\nalign[3].size may run\ngated may run\nmore may run
         align[1].tuned › tokens may run\nalign[2].tuned › tokens may run\nalign[3].tuned › tokens may run
         more › tokens may run",
        "align[1].size done\nalign[1].tuned done\nalign[1].tuned › tokens done
         align[2].size done\nalign[2].tuned done\nalign[2].tuned › tokens hit
         align[3].size skipped\nalign[3].tuned skipped\nalign[3].tuned › tokens skipped
         base done\ngated done\nmore done\nmore › tokens hit\nrows done",
    );
    assert_eq!(
        artifact(&ran.outcome, "gated", "same"),
        artifact(&ran.outcome, "align[2].tuned", "model")
    );
}

#[test]
fn what_is_handed_on_is_the_very_same_and_nothing_else() {
    let kitchen = Kitchen::new();
    let recipe = "  a: { kind: say, text: Flour }\n  b: { kind: pass, data: a }\n  c: { kind: lower, data: b }\n";
    let ran = check(
        &kitchen,
        recipe,
        "a will run\nb may run\nc may run",
        "a done\nb done\nc done",
    );
    assert_eq!(
        artifact(&ran.outcome, "a", "text"),
        artifact(&ran.outcome, "b", "same")
    );
    // With the gate or without: the key of what comes after is the same.
    let without = kitchen.run(
        "  a: { kind: say, text: Flour }\n  c: { kind: lower, data: a }\n",
        &Told::default(),
    );
    assert_eq!(without.outcome.ran, 0);
    let ran = kitchen.run(
        "  a: { kind: say, text: Flour }\n  b: { kind: change, data: a }\n",
        &Told::default(),
    );
    assert_eq!(
        ran.outcome.failures[0].error,
        "BUG: the output `same` of `change` is none of `data`"
    );
}

#[test]
fn a_chain_may_be_longer_than_the_stack_is_deep() {
    let chain = |first: &str| {
        let mut recipe = format!("  s0: {first}\n");
        for index in 1..20_000 {
            recipe += &format!("  s{index}: {{ kind: lower, data: s{} }}\n", index - 1);
        }
        recipe
    };
    // All but two are hits as soon as the second is done: what is in small letters stays as it is.
    let ran = Kitchen::new().run(&chain("{ kind: say, text: flour }"), &Told::default());
    assert_eq!((ran.outcome.ran, ran.outcome.hits), (2, 19_998));
    let ran = Kitchen::new().run(&chain("{ kind: fail }"), &Told::default());
    assert_eq!((ran.outcome.failed, ran.outcome.skipped), (1, 19_999));
}

//! Plans and runs of toy recipes: what is cached, what runs, in which order, and what becomes of stages that do not end well.

extern crate levain_engine as engine;

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::event::What;

use support::{CHAIN, Kitchen, Ran, Told, artifact, check, kinds, same, try_run};

/// The plan after a first recipe was run.
#[track_caller]
fn after(first: &str, second: &str, plan: &str) {
    let kitchen = Kitchen::new();
    kitchen.run(first, &Told::default());
    same(&kitchen.plan(second, &Told::default()), plan);
}

#[test]
fn a_chain_runs_in_order_and_then_not_at_all() {
    let kitchen = Kitchen::new();
    let ran = check(
        &kitchen,
        CHAIN,
        "a will run\nb may run\nc may run",
        "a done\nb done\nc done",
    );
    same(
        &ran.log(),
        "planned test: a will run, b may run, c may run
         a started say
         a finished text
         b started lower
         b finished text
         c started lower
         c finished text
         ended: 3 ran, 0 hits, 0 failed, 0 waiting, 0 skipped",
    );
    assert_eq!(kitchen.text(&ran.outcome, "c", "text"), "flour");
    same(
        &kitchen.run(CHAIN, &Told::default()).log(),
        "planned test: a cached, b cached, c cached
         a hit
         b hit
         c hit
         ended: 0 ran, 3 hits, 0 failed, 0 waiting, 0 skipped",
    );
}

#[test]
fn everything_comes_after_what_it_needs_however_it_is_written() {
    let kitchen = Kitchen::new();
    let recipe = "  z: { kind: join, parts: { y: y, x: x.right } }\n  y: { kind: lower, data: w }\n  \
                  x: { kind: halves, data: y }\n  w: { kind: say, text: Sour }\n";
    let session = kitchen.open(recipe, &Told::default());
    let place = |node: usize| session.plan.order.iter().position(|n| *n == node).unwrap();
    assert_eq!(session.plan.order.len(), session.plan.nodes.len());
    for node in 0..session.plan.nodes.len() {
        for need in session.plan.needs(node) {
            assert!(place(need) < place(node));
        }
    }
    let ran = kitchen.run(recipe, &Told::default());
    assert_eq!(kitchen.text(&ran.outcome, "z", "text"), "y=sour\nx=ur\n");
}

#[test]
fn what_changes_nothing_reruns_nothing() {
    let first = "  a: { kind: say, text: Flour, seed: 3 }\n  b: { kind: lower, data: a }\n";
    let cached = "a cached\nb cached";
    for same in [
        // Comments, layout, order of keys and of stages, quotes, defaults written out.
        "  # a comment\n  a:\n    text: \"Flour\"   # another\n    seed: 3\n    kind: say\n  b:\n    data: a\n    kind: lower\n",
        "  a: { kind: say, text: Flour, seed: 3, mood: calm }\n  b: { kind: lower, data: a }\n",
        // Numeric and execution fields.
        "  a: { kind: say, text: Flour, seed: 3, chunk: 7, pace: 9 }\n  b: { kind: lower, data: a }\n",
        // The recipe's own words.
        "levain: 1\nname: other\nseed: 99\ndevice: cpu\nthreads: 3\nstages:\n  a: { kind: say, text: Flour, seed: 3 }\n  b: { kind: lower, data: a }\n",
        "levain: 1\nparams: { t: Flour }\nstages:\n  a: { kind: say, text: '${params.t}', seed: 3 }\n  b: { kind: lower, data: a }\n",
    ] {
        after(first, same, cached);
    }
    after(
        first,
        "  renamed: { kind: say, text: Flour, seed: 3 }\n  also: { kind: lower, data: renamed }\n",
        "renamed cached\nalso cached",
    );
    after(
        first,
        "  b: { kind: lower, data: a }\n  a: { kind: say, text: Flour, seed: 3 }\n",
        "b cached\na cached",
    );
    let kitchen = Kitchen::new();
    kitchen.run(first, &Told::default());
    for told in [
        Told {
            device: Some("cuda:1"),
            ..Told::default()
        },
        Told {
            threads: Some(5),
            ..Told::default()
        },
    ] {
        same(&kitchen.run(first, &told).text(), "a hit\nb hit");
    }
}

#[test]
fn a_change_reruns_its_dependents_and_nothing_else() {
    let two = |text: &str| {
        format!(
            "  a: {{ kind: say, text: {text} }}\n  b: {{ kind: lower, data: a }}\n  x: {{ kind: say, text: salt }}\n  y: {{ kind: join, parts: [x, b] }}\n  z: {{ kind: lower, data: x }}\n"
        )
    };
    let kitchen = Kitchen::new();
    kitchen.run(&two("Flour"), &Told::default());
    check(
        &kitchen,
        &two("Rye"),
        "a will run\nb may run\nx cached\ny may run\nz cached",
        "a done\nb done\nx hit\ny done\nz hit",
    );
    // And back: the first results are still there.
    check(
        &kitchen,
        &two("Flour"),
        "a cached\nb cached\nx cached\ny cached\nz cached",
        "a hit\nb hit\nx hit\ny hit\nz hit",
    );
    // A name inside a port that takes several is part of what the stage sees.
    after(
        "  x: { kind: say, text: salt }\n  y: { kind: join, parts: { one: x } }\n",
        "  x: { kind: say, text: salt }\n  y: { kind: join, parts: { two: x } }\n",
        "x cached\ny will run",
    );
    // So is their order.
    after(
        "  w: { kind: say, text: water }\n  x: { kind: say, text: salt }\n  y: { kind: join, parts: { w: w, x: x } }\n",
        "  w: { kind: say, text: water }\n  x: { kind: say, text: salt }\n  y: { kind: join, parts: { x: x, w: w } }\n",
        "w cached\nx cached\ny will run",
    );
}

#[test]
fn the_recipes_seed_reaches_stages_without_one() {
    let recipe = |seed: u32| {
        format!(
            "levain: 1\nseed: {seed}\nstages:\n  a: {{ kind: say, text: x }}\n  b: {{ kind: say, text: x, seed: 5 }}\n"
        )
    };
    after(&recipe(1), &recipe(2), "a will run\nb cached");
    after(&recipe(1), &recipe(5), "a cached\nb cached");
}

#[test]
fn a_stage_that_makes_the_same_bytes_again_stops_the_wave() {
    let kitchen = Kitchen::new();
    kitchen.run(CHAIN, &Told::default());
    let other = CHAIN.replace("Flour", "FLOUR");
    check(
        &kitchen,
        &other,
        "a will run\nb may run\nc may run",
        "a done\nb done\nc hit",
    );
}

#[test]
fn a_new_field_at_its_neutral_value_keeps_the_key_and_a_new_version_does_not() {
    let kitchen = Kitchen::new();
    let recipe = "  a: { kind: say, text: Flour }\n  b: { kind: lower, data: a }\n";
    kitchen.run(recipe, &Told::default());
    let later = Told {
        contracts: kinds::later(),
        ..Told::default()
    };
    same(&kitchen.plan(recipe, &later), "a cached\nb cached");
    same(
        &kitchen.plan(&recipe.replace("Flour", "Flour, times: 1"), &later),
        "a cached\nb cached",
    );
    same(
        &kitchen.plan(&recipe.replace("Flour", "Flour, times: 2"), &later),
        "a will run\nb may run",
    );
    let newer = Told {
        contracts: kinds::newer(),
        ..Told::default()
    };
    same(&kitchen.plan(recipe, &newer), "a will run\nb may run");
    // The newer kind makes the same bytes: what comes after it is still there.
    same(&kitchen.run(recipe, &newer).text(), "a done\nb hit");
}

#[test]
fn options_set_values_and_are_the_same_as_the_recipe() {
    let kitchen = Kitchen::new();
    let recipe =
        "levain: 1\nparams: { t: Flour }\nstages:\n  a: { kind: say, text: '${params.t}' }\n";
    let ran = kitchen.run(
        recipe,
        &Told {
            set: vec!["params.t=Rye", "a.mood=loud"],
            ..Told::default()
        },
    );
    assert_eq!(kitchen.text(&ran.outcome, "a", "text"), "RYE");
    same(
        &kitchen.plan(
            "  a: { kind: say, text: Rye, mood: loud }\n",
            &Told::default(),
        ),
        "a cached",
    );
    same(&kitchen.plan(recipe, &Told::default()), "a will run");
}

#[test]
fn preparations_are_shared_and_wait_for_no_training() {
    let recipe = |rate: &str, length: u32| {
        format!(
            "  base: {{ kind: make, weights: w }}\n  rows: {{ kind: say, text: abcabcabc }}\n  \
             one: {{ kind: tune, model: base, data: rows, rate: {rate}, length: {length} }}\n  \
             two: {{ kind: tune, model: one, data: rows, length: {length} }}\n"
        )
    };
    let kitchen = Kitchen::new();
    let ran = kitchen.run(&recipe("0.5", 4), &Told::default());
    // Both tokenize the same rows with the tokenizer that comes from `base`: one of the two finds the other's work.
    let tokens = |ran: &Ran, name: &str| artifact(&ran.outcome, name, "tokens");
    assert_eq!(tokens(&ran, "one › tokens"), tokens(&ran, "two › tokens"));
    assert_eq!(
        kitchen.text(&ran.outcome, "two", "model"),
        "w + 0.5 × abca + 0.5 × abca"
    );
    let session = kitchen.open(&recipe("0.5", 4), &Told::default());
    let (two, one) = (
        session.plan.find("two/tokens").unwrap(),
        session.plan.find("one").unwrap(),
    );
    assert!(
        !session.plan.needs(two).contains(&one),
        "tokenizing waits for a training"
    );
    // Another rate: nothing is tokenized again.
    check(
        &kitchen,
        &recipe("0.25", 4),
        "base cached\nrows cached\none will run\ntwo may run\none › tokens cached\ntwo › tokens cached",
        "base hit\none done\none › tokens hit\nrows hit\ntwo done\ntwo › tokens hit",
    );
    // Another length beyond the end of the rows: the tokens are made anew, turn out the same, and nothing is trained.
    let kitchen = Kitchen::new();
    kitchen.run(&recipe("0.5", 20), &Told::default());
    let ran = kitchen.run(&recipe("0.5", 30), &Told::default());
    assert_eq!(ran.outcome.lock.stages["one"].outcome, "hit");
    assert_eq!(ran.outcome.lock.stages["two"].outcome, "hit");
}

#[test]
fn an_extendable_field_is_in_the_key_and_not_in_what_snapshots_are_filed_under() {
    let kitchen = Kitchen::new();
    let of = |recipe: &str| {
        let session = kitchen.open(recipe, &Told::default());
        let record = session.standings()[0].record.clone().unwrap();
        (record.key(), session.plan.partial(0, &record))
    };
    let (key, partial) = of("  a: { kind: long, steps: 10 }\n");
    let (longer, same_partial) = of("  a: { kind: long, steps: 20 }\n");
    let (faster, other_partial) = of("  a: { kind: long, steps: 10, rate: 0.25 }\n");
    assert_ne!(key, longer);
    assert_eq!(partial, same_partial);
    assert_ne!(key, faster);
    assert_ne!(partial, other_partial);
}

#[test]
fn a_failure_skips_what_needs_it() {
    let recipe = "  a: { kind: say, text: x }\n  b: { kind: fail, data: a }\n  c: { kind: lower, data: b }\n  d: { kind: lower, data: c }\n";
    check(
        &Kitchen::new(),
        recipe,
        "a will run\nb may run\nc may run\nd may run",
        "a done\nb failed\nc skipped\nd skipped\n! b: it fails, as it should",
    );
    let kitchen = Kitchen::new();
    let with = |milliseconds: u32| {
        format!(
            "{recipe}  e: {{ kind: lower, data: a }}\n  f: {{ kind: slow, text: y, milliseconds: {milliseconds} }}\n  g: {{ kind: lower, data: f }}\n"
        )
    };
    let other = with(10);
    let ran = kitchen.run(
        &other,
        &Told {
            keep_going: true,
            ..Told::default()
        },
    );
    same(
        &ran.text(),
        "a done\nb failed\nc skipped\nd skipped\ne done\nf done\ng done\n! b: it fails, as it should",
    );
    // Without `keep_going` what already runs may end, and nothing new begins.
    let ran = Kitchen::new().run(&with(3000), &Told::default());
    let stages = &ran.outcome.lock.stages;
    assert_eq!(
        (stages["b"].outcome.as_str(), stages["g"].outcome.as_str()),
        ("failed", "skipped")
    );
    // What was done is kept for the next run.
    same(
        &kitchen.plan(&other, &Told::default()),
        "a cached\nb will run\nc may run\nd may run\ne cached\nf cached\ng cached",
    );
}

#[test]
fn a_stage_that_crashes_or_lies_fails_alone() {
    let kitchen = Kitchen::new();
    let recipe = "  a: { kind: crash }\n  b: { kind: lie }\n  c: { kind: say, text: x }\n";
    let ran = kitchen.run(
        recipe,
        &Told {
            keep_going: true,
            ..Told::default()
        },
    );
    let text = ran.text();
    assert!(text.starts_with("a failed\nb failed\nc done\n"), "{text}");
    assert!(
        text.contains("! a: the stage crashed: it crashes, as it should\n"),
        "{text}"
    );
    assert!(
        text.contains("! b: BUG: `lie` did not make its output `text`\n"),
        "{text}"
    );
}

#[test]
fn a_stage_that_waits_for_a_person_is_no_failure() {
    let kitchen = Kitchen::new();
    let answer = kitchen.path().join("answer.txt");
    let recipe = format!(
        "  a: {{ kind: ask, question: Which flour?, answer: {} }}\n  b: {{ kind: lower, data: a }}\n  c: {{ kind: say, text: x }}\n",
        answer.display()
    );
    let ran = kitchen.run(&recipe, &Told::default());
    same(&ran.text(), "a waiting\nb skipped\nc done");
    assert_eq!(
        (
            ran.outcome.failed,
            ran.outcome.waiting,
            ran.outcome.lock.complete
        ),
        (0, 1, false)
    );
    assert!(ran.events.iter().any(|e| matches!(&e.what, What::Waiting { reason } if reason == "answer `Which flour?` and run again")));
    fs::write(&answer, "RYE").unwrap();
    let ran = kitchen.run(&recipe, &Told::default());
    same(&ran.text(), "a done\nb done\nc hit");
    assert_eq!(kitchen.text(&ran.outcome, "b", "text"), "rye");
    // What was answered stays, whatever the person would say today; forced, the person is asked again and the new answer counts.
    fs::write(&answer, "SPELT").unwrap();
    let ran = kitchen.run(&recipe, &Told::default());
    same(&ran.text(), "a hit\nb hit\nc hit");
    let force = Told {
        force: vec!["a"],
        ..Told::default()
    };
    same(
        &kitchen.run(&recipe, &force).text(),
        "a done\nb done\nc hit",
    );
    let ran = kitchen.run(&recipe, &Told::default());
    same(&ran.text(), "a hit\nb hit\nc hit");
    assert_eq!(kitchen.text(&ran.outcome, "b", "text"), "spelt");
}

#[test]
fn two_stages_with_one_record_do_the_work_once_and_wait_for_no_other_process() {
    let kitchen = Kitchen::new();
    let recipe = "  a: { kind: slow, text: x, milliseconds: 300 }\n  b: { kind: slow, text: x, milliseconds: 300 }\n  \
                  c: { kind: say, text: y }\n";
    let ran = kitchen.run(recipe, &Told::default());
    same(&ran.text(), "a done\nb hit\nc done");
    let noted = |event: &engine::event::Event| matches!(event.what, What::Note { .. });
    assert!(!ran.events.iter().any(noted), "{}", ran.log());
}

#[test]
fn why_looks_past_a_run_that_made_nothing() {
    let kitchen = Kitchen::new();
    kitchen.run(CHAIN, &Told::default());
    // The changed stage fails, so this run has a lock in which its key leads nowhere.
    let broken = CHAIN.replace("kind: say, text: Flour", "kind: crash");
    assert_ne!(broken, CHAIN);
    kitchen.run(&broken, &Told::default());
    let session = kitchen.open(&CHAIN.replace("Flour", "Rye"), &Told::default());
    let index = session.plan.find("a").unwrap();
    let why = engine::explain::why(&session, &session.standings(), index).unwrap();
    let (before, after) = (Some("Flour".to_owned()), Some("Rye".to_owned()));
    assert_eq!(why.changes, [("param.text".to_owned(), before, after)]);
}

#[test]
fn targets_run_with_what_they_need_and_force_runs_what_is_cached() {
    let kitchen = Kitchen::new();
    let recipe = format!("{CHAIN}  x: {{ kind: say, text: salt }}\n");
    let ran = kitchen.run(
        &recipe,
        &Told {
            targets: vec!["b"],
            ..Told::default()
        },
    );
    same(&ran.text(), "a done\nb done");
    same(
        &kitchen.plan(&recipe, &Told::default()),
        "a cached\nb cached\nc will run\nx will run",
    );
    let ran = kitchen.run(
        &recipe,
        &Told {
            force: vec!["a"],
            ..Told::default()
        },
    );
    same(&ran.text(), "a done\nb hit\nc done\nx done");
    let mut session = kitchen.open(&recipe, &Told::default());
    let error = try_run(
        &mut session,
        &Told {
            targets: vec!["bb"],
            ..Told::default()
        },
    )
    .err()
    .unwrap();
    assert_eq!(
        error.to_string(),
        "there is no stage `bb`; did you mean `b`?"
    );
}

#[test]
fn a_run_stops_when_asked_to() {
    let kitchen = Kitchen::new();
    let recipe =
        "  a: { kind: slow, text: x, milliseconds: 60000 }\n  b: { kind: lower, data: a }\n";
    let stop = Arc::new(AtomicBool::new(false));
    let told = Told {
        stop: stop.clone(),
        ..Told::default()
    };
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::SeqCst);
        });
        kitchen.run(recipe, &told)
    });
    same(&ran.text(), "a skipped\nb skipped");
    assert!(ran.outcome.cancelled && ran.outcome.failed == 0);
    same(
        &kitchen.plan(recipe, &Told::default()),
        "a will run\nb may run",
    );
    assert_eq!(
        kitchen.files("leases").len() + kitchen.files("tmp").len(),
        0,
        "a stopped run leaves something behind"
    );
}

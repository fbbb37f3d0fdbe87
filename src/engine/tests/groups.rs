//! `repeat`, `matrix` and `when` with toy kinds: what they unroll to, what is reused, and what every mistake is told.

extern crate levain_engine as engine;

mod support;

use support::{Kitchen, Told, check, same};

/// Rounds that each add a text to what is carried.
fn rounds(count: usize) -> String {
    format!(
        "  start: {{ kind: say, text: Flour }}\n  \
         dough:\n    repeat: {count}\n    carry: {{ now: {{ first: start, then: mixed }} }}\n    stages:\n      \
         water: {{ kind: say, text: \"w${{round}}\" }}\n      \
         mixed: {{ kind: join, parts: {{ a: now, b: water }} }}\n  \
         last: {{ kind: lower, data: dough.mixed }}\n"
    )
}

#[test]
fn what_is_carried_goes_from_round_to_round() {
    let kitchen = Kitchen::new();
    let ran = check(
        &kitchen,
        &rounds(2),
        "start will run\ndough[1].water will run\ndough[1].mixed may run\ndough[2].water will run\ndough[2].mixed may run\nlast may run",
        "dough[1].mixed done\ndough[1].water done\ndough[2].mixed done\ndough[2].water done\nlast done\nstart done",
    );
    let text = |name: &str| kitchen.text(&ran.outcome, name, "text");
    assert_eq!(text("dough[1].mixed"), "a=Flour\nb=w1\n");
    assert_eq!(text("dough[2].mixed"), "a=a=Flour\nb=w1\n\nb=w2\n");
    assert_eq!(text("last"), text("dough[2].mixed").to_lowercase());
}

#[test]
fn more_rounds_reuse_the_ones_before() {
    let kitchen = Kitchen::new();
    kitchen.run(&rounds(3), &Told::default());
    let ran = kitchen.run(&rounds(5), &Told::default());
    let (text, log) = (ran.text(), ran.log());
    for round in 1..=3 {
        assert!(text.contains(&format!("dough[{round}].mixed hit")), "{log}");
    }
    assert!(text.contains("dough[4].mixed done\n"), "{log}");
    assert!(text.contains("dough[5].mixed done\n"), "{log}");
    assert_eq!(
        ran.outcome.ran, 5,
        "two rounds of two stages, and `last`: {log}"
    );
}

#[test]
fn rounds_are_named_from_outside_one_by_one_and_all_together() {
    let kitchen = Kitchen::new();
    let recipe = format!(
        "{}  second: {{ kind: lower, data: \"dough[2].mixed\" }}\n  all: {{ kind: join, parts: \"dough[*].water\" }}\n  \
         some: {{ kind: join, parts: [start, \"dough[*].water\", \"dough[1].water\"] }}\n",
        rounds(3)
    );
    let ran = kitchen.run(&recipe, &Told::default());
    let text = |name: &str| kitchen.text(&ran.outcome, name, "text");
    assert_eq!(text("second"), text("dough[2].mixed").to_lowercase());
    assert_eq!(text("all"), "1=w1\n2=w2\n3=w3\n");
    assert_eq!(
        text("some"),
        "start=Flour\ndough[1].water=w1\ndough[2].water=w2\ndough[3].water=w3\ndough[1].water=w1\n"
    );
    let session = kitchen.open(&recipe, &Told::default());
    let name = |asked: &str| {
        session
            .find(asked)
            .map(|(node, _)| session.plan.nodes[node].name.clone())
    };
    assert_eq!(name("dough.mixed").as_deref(), Some("dough[3].mixed"));
    assert_eq!(name("dough[1].mixed").as_deref(), Some("dough[1].mixed"));
    assert_eq!(name("dough[4].mixed"), None);
}

#[test]
fn a_matrix_is_every_combination_but_what_is_excluded() {
    let kitchen = Kitchen::new();
    let recipe = "  \
        loaf:\n    matrix: { flour: [rye, spelt], grams: [500, 1000] }\n    exclude: [{ flour: rye, grams: 1000 }]\n    stages:\n      \
          say: { kind: say, text: \"${matrix.grams} g ${matrix.flour}\" }\n      \
          low: { kind: lower, data: say }\n  \
        all: { kind: join, parts: loaf.low }\n  \
        one: { kind: lower, data: \"loaf[flour=rye].say\" }\n  \
        two: { kind: join, parts: { s: \"loaf[flour=spelt].say\", r: \"loaf[grams=5e2,flour=rye].say\" } }\n";
    let ran = kitchen.run(recipe, &Told::default());
    let text = |name: &str| kitchen.text(&ran.outcome, name, "text");
    assert_eq!(
        text("all"),
        "flour=rye,grams=500=500 g rye\nflour=spelt,grams=500=500 g spelt\nflour=spelt,grams=1000=1000 g spelt\n"
    );
    assert_eq!(text("one"), "500 g rye");
    assert_eq!(
        text("two"),
        "s[flour=spelt,grams=500]=500 g spelt\ns[flour=spelt,grams=1000]=1000 g spelt\nr=500 g rye\n"
    );
    // Cells that are written out, and a cell more, which is all that runs.
    let cells = |more: &str| {
        format!(
            "  loaf:\n    matrix: [{{ flour: rye, grams: 500 }}, {{ flour: spelt, grams: 1000 }}{more}]\n    stages:\n      \
             say: {{ kind: say, text: \"${{matrix.grams}} g ${{matrix.flour}}\" }}\n"
        )
    };
    same(
        &kitchen.plan(&cells(", { flour: oat, grams: 1 }"), &Told::default()),
        "loaf[flour=rye,grams=500].say cached\nloaf[flour=spelt,grams=1000].say cached\nloaf[flour=oat,grams=1].say will run",
    );
}

#[test]
fn groups_stand_in_groups() {
    let kitchen = Kitchen::new();
    let recipe = "  \
        size:\n    matrix: { n: [1, 2] }\n    stages:\n      \
          from: { kind: say, text: \"s${matrix.n}\" }\n      \
          dough:\n        repeat: 2\n        carry: { now: { first: from, then: mixed } }\n        stages:\n          \
            mixed: { kind: join, parts: [now] }\n          \
            told: { kind: say, text: \"${matrix.n}/${round}\" }\n  \
        all: { kind: join, parts: \"size.dough[*].told\" }\n  \
        ends: { kind: join, parts: size.dough.told }\n";
    let ran = kitchen.run(recipe, &Told::default());
    let text = |name: &str| kitchen.text(&ran.outcome, name, "text");
    assert_eq!(text("all"), "n=1,1=1/1\nn=1,2=1/2\nn=2,1=2/1\nn=2,2=2/2\n");
    assert_eq!(text("ends"), "n=1=1/2\nn=2=2/2\n");
    assert_eq!(text("size[n=2].dough[1].mixed"), "now=s2\n");
}

#[test]
fn every_round_has_a_seed_of_its_own_and_every_cell_the_recipes() {
    let kitchen = Kitchen::new();
    let recipe = "  \
        top: { kind: say, text: x }\n  \
        r: { repeat: 2, stages: { s: { kind: say, text: x }, own: { kind: say, text: x, seed: 5 } } }\n  \
        m: { matrix: { a: [1, 2] }, stages: { s: { kind: say, text: x }, t: { kind: say, text: \"t${matrix.a}\" } } }\n  \
        c: { matrix: { a: [1, 2] }, seed: \"${matrix.a}\", stages: {\n    \
          s: { kind: say, text: x }, r: { repeat: 1, stages: { s: { kind: say, text: x } } } } }\n  \
        d: { repeat: 1, seed: 7, stages: { s: { kind: say, text: x } } }\n";
    let session = kitchen.open(recipe, &Told::default());
    let seed = |name: &str| {
        session.plan.nodes[session.plan.find(name).unwrap()].params["seed"]
            .as_u64()
            .unwrap()
    };
    let own = session.recipe.seed;
    assert_eq!([seed("top"), seed("m[a=1].s"), seed("m[a=2].s")], [own; 3]);
    assert_eq!(
        [seed("r[1].s"), seed("r[2].s")],
        [
            engine::recipe::derive(own, 1),
            engine::recipe::derive(own, 2)
        ]
    );
    assert_eq!([seed("r[1].own"), seed("r[2].own")], [5; 2]);
    // Where the group has a seed, that of the recipe counts for nothing.
    assert_eq!([seed("c[a=1].s"), seed("c[a=2].s")], [1, 2]);
    assert_eq!(seed("c[a=2].r[1].s"), engine::recipe::derive(2, 1));
    assert_eq!(seed("d[1].s"), engine::recipe::derive(7, 1));
}

#[test]
fn when_knows_parameters_and_leaves_out() {
    let kitchen = Kitchen::new();
    let recipe = "  \
        a: { kind: say, text: x, when: true }\n  \
        b: { kind: say, text: y, when: false }\n  \
        c: { kind: say, text: z, when: \"2 == 2.0\" }\n  \
        d: { repeat: 2, when: \"ppo != ppo\", stages: { s: { kind: say, text: x } } }\n  \
        m: { matrix: { a: [1, 2] }, stages: { s: { kind: say, text: \"s${matrix.a}\", when: \"${matrix.a} == 2\" } } }\n";
    same(
        &kitchen.plan(recipe, &Told::default()),
        "a will run\nc will run\nm[a=2].s will run",
    );
}

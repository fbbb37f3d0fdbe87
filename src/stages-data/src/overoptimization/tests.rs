//! Points with known coefficients, roll-backs, and what is refused.

use data::overoptimization::{Fit, Law};
use engine::artifact::ArtifactView;
use serde_json::{Value, json};

use crate::testing::{Ear, artifact, job};

type Named<'a> = (&'a str, ArtifactView);

struct Made {
    summary: Value,
    said: String,
    chart: String,
    points: Value,
}

fn params(law: &str, separate: bool) -> Value {
    json!({ "law": law, "separate": separate, "proxy": "proxy_score", "gold": "gold_score", "kl": "kl" })
}

fn run_on(params: Value, one: Option<&ArtifactView>, many: &[Named<'_>]) -> Result<Made, String> {
    let folder = tempfile::tempdir().unwrap();
    let one: Vec<_> = one.iter().map(|view| ("scores", *view)).collect();
    let all = [("scores", many)];
    let all = if one.is_empty() { &all[..] } else { &[] };
    let mut job = job("overoptimization", params, &one, all);
    job.out = folder.path().to_owned();
    let ear = Ear::default();
    let drafts = super::run(&job, &ear).map_err(|e| format!("{e:#}"))?;
    let draft = &drafts["metrics"];
    let names: Vec<&str> = draft.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["chart.svg", "metrics.json"]);
    let text = |at: usize| std::fs::read_to_string(&draft.files[at].1).unwrap();
    Ok(Made {
        summary: json!(draft.summary),
        said: ear.said(),
        chart: text(0),
        points: serde_json::from_str(&text(1)).unwrap(),
    })
}

fn run(law: &str, scores: &ArtifactView) -> Result<Made, String> {
    run_on(params(law, false), Some(scores), &[])
}

/// An evaluation of models named by their place, from (KL, proxy, gold).
fn scores(points: &[(f64, f64, f64)]) -> ArtifactView {
    let models = points.iter().enumerate().map(|(at, (kl, proxy, gold))| {
        let own = json!({ "loss": 2.0, "kl": kl, "proxy_score": proxy, "gold_score": gold });
        (format!("m{at}"), own)
    });
    artifact(
        "metrics",
        Value::Object(models.collect::<serde_json::Map<_, _>>()),
    )
}

fn law(name: &str, alpha: f64, beta: f64) -> Fit {
    Fit {
        law: if name == "rl" { Law::Rl } else { Law::BestOfN },
        alpha,
        beta,
        errors: None,
        r2: None,
    }
}

/// Points on two curves, off 0 at the start: 3 and 5 are what the start scores.
fn synthetic(name: &str, kls: &[f64]) -> ArtifactView {
    on_curves(name, law(name, 0.8, 0.3), kls)
}

fn on_curves(name: &str, gold: Fit, kls: &[f64]) -> ArtifactView {
    let proxy = law(name, 1.3, 0.05);
    let at = |kl: &f64| {
        let d = kl.sqrt();
        (*kl, 3.0 + proxy.gain(d), 5.0 + gold.gain(d))
    };
    scores(&kls.iter().map(at).collect::<Vec<_>>())
}

#[track_caller]
fn close(value: &Value, wanted: f64) {
    let found = value.as_f64().expect("a number");
    assert!((found - wanted).abs() < 1e-9, "{found}, not {wanted}");
}

#[test]
fn coefficients_are_found_again() {
    for name in ["best_of_n", "rl"] {
        // In any order.
        let made = run(name, &synthetic(name, &[6.0, 0.0, 1.5, 0.3, 16.0])).unwrap();
        let told = &made.summary;
        close(&told["proxy"]["alpha"], 1.3);
        close(&told["proxy"]["beta"], 0.05);
        close(&told["gold"]["alpha"], 0.8);
        close(&told["gold"]["beta"], 0.3);
        close(&told["gold"]["r2"], 1.0);
        assert!(told["gold"]["alpha_error"].as_f64().unwrap() < 1e-7);
        let peak = match name {
            "rl" => (0.8f64 / 0.3 - 1.0).exp(),
            _ => 0.8 / 0.6,
        };
        close(&told["peak_d"], peak);
        close(&told["peak_gain"], law(name, 0.8, 0.3).gain(peak));
        assert_eq!(told["points"], 5);
    }
}

#[test]
fn what_the_fitted_gold_curve_does_is_told_as_it_is() {
    for (name, alpha, beta, told) in [
        ("best_of_n", 0.8, 0.3, "peaks at d = 1.33 with +0.533"),
        ("best_of_n", 0.8, -0.3, "does not turn down"),
        ("best_of_n", -0.5, 0.3, "falls from the start"),
        ("best_of_n", -0.8, -0.05, "falls from the start"),
        (
            "best_of_n",
            -0.8,
            -0.2,
            "falls from the start, and rises again from d = 2.00 on",
        ),
        (
            "rl",
            -0.5,
            -0.3,
            "falls from the start, and rises again from d = 1.95 on",
        ),
        (
            "rl",
            -0.5,
            0.1,
            "peaks at d = 0.00 with +0.000, before every point, and falls from there on",
        ),
    ] {
        let points = on_curves(name, law(name, alpha, beta), &[0.0, 0.3, 1.5, 6.0, 16.0]);
        let said = run(name, &points).unwrap().said;
        let told = format!("the fitted gold curve {told}");
        assert!(said.lines().any(|line| line == told), "{told}: {said}");
    }
}

#[test]
fn the_best_point_the_drop_and_whether_it_is_hacked() {
    let made = run(
        "best_of_n",
        &synthetic("best_of_n", &[0.0, 0.3, 1.5, 6.0, 16.0]),
    )
    .unwrap();
    let told = &made.summary;
    let gain = |kl: f64| law("best_of_n", 0.8, 0.3).gain(kl.sqrt());
    assert_eq!((&told["best"], &told["hacked"]), (&json!("m2"), &json!(1)));
    close(&told["best_kl"], 1.5);
    close(&told["best_gain"], gain(1.5));
    close(&told["best_score"], 5.0 + gain(1.5));
    close(&told["gold_score"], 5.0 + gain(16.0));
    close(&told["drop"], gain(1.5) - gain(16.0));
    assert!(made.said.contains("the proxy is hacked"), "{}", made.said);
    let rows = made.points["points"].as_array().unwrap();
    close(&rows[3]["d"], 6.0f64.sqrt());
    close(&rows[3]["gold_gain"], gain(6.0));
    let before = run("best_of_n", &synthetic("best_of_n", &[0.0, 0.3, 0.9, 1.5])).unwrap();
    assert_eq!(before.summary["hacked"], 0);
    assert_eq!(before.summary["drop"], 0.0);
    // The top is at d = 1.33, the last point at 1.22.
    assert!(before.said.contains("that is extrapolated"));
}

#[test]
fn intervals_of_an_evaluation_decide_what_is_a_fall() {
    let of = |half: f64| {
        let model = |kl: f64, proxy: f64, gold: f64| {
            json!({
                "kl": kl, "proxy_score": proxy, "gold_score": gold,
                "proxy_difference_low": proxy - half, "proxy_difference_high": proxy + half,
                "gold_difference_low": gold - half, "gold_difference_high": gold + half,
            })
        };
        let all = json!({ "a": model(0.0, 0.0, 0.0), "b": model(1.0, 1.0, 0.5), "c": model(2.0, 2.0, 0.2) });
        run("none", &artifact("metrics", all)).unwrap()
    };
    // √2 · half/1.96 against a fall of 0.3: 0.289 and 0.303.
    assert_eq!(of(0.40).summary["hacked"], 1);
    assert_eq!(of(0.42).summary["hacked"], 0);
    let rows = of(0.40).points;
    close(&rows["points"][1]["gold_gain_error"], 0.4 / 1.959_964);
}

#[test]
fn rounds_grow_by_what_came_before() {
    let own = |kl: f64, proxy: f64, gold: f64| {
        artifact(
            "metrics",
            json!({ "policy": { "kl": kl, "proxy_score": proxy, "gold_score": gold } }),
        )
    };
    let first = [
        ("before", own(0.0, 0.0, 0.0)),
        ("scores", own(1.0, 1.0, 0.5)),
    ];
    let first = run_on(params("none", false), None, &first).unwrap();
    assert_eq!(first.summary["hacked"], 0);
    assert_eq!(first.summary.get("gold"), None);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.json");
    std::fs::write(&path, first.points.to_string()).unwrap();
    let mut kept = artifact("metrics", first.summary);
    kept.files = vec![("metrics.json".to_owned(), path)];
    let second = [("before", kept), ("scores", own(4.0, 2.0, 0.1))];
    let second = run_on(params("none", false), None, &second).unwrap();
    assert_eq!(second.summary["hacked"], 1);
    assert_eq!(second.summary["best"], "scores");
    let names: Vec<&Value> = second.points["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["name"])
        .collect();
    assert_eq!(names, ["before", "scores", "scores 2"]);
}

#[test]
fn the_last_point_is_that_of_the_last_round_whatever_its_kl() {
    let round = |kl: f64, proxy: f64, gold: f64| scores(&[(0.0, 0.0, 0.0), (kl, proxy, gold)]);
    let rounds = [("1", round(0.4, 0.5, -0.1)), ("2", round(0.3, 0.6, 0.2))];
    let rose = run_on(params("none", false), None, &rounds).unwrap();
    assert_eq!(rose.summary["best"], "2.m1");
    assert_eq!(rose.summary["drop"], 0.0);
    assert_eq!(rose.summary["kl"], 0.3);
    let [one, two] = rounds;
    let fell = run_on(params("none", false), None, &[two, one]).unwrap();
    close(&fell.summary["drop"], 0.3);
}

#[test]
fn several_curves_have_their_names() {
    let kls = [0.0, 0.3, 1.5, 6.0];
    let both = [
        ("small & new", synthetic("rl", &kls)),
        ("large", synthetic("rl", &kls)),
    ];
    let made = run_on(params("rl", true), None, &both).unwrap();
    close(&made.summary["small & new"]["gold"]["alpha"], 0.8);
    close(&made.summary["large"]["gold"]["beta"], 0.3);
    assert!(made.points["curves"]["large"]["points"].is_array());
    assert!(made.chart.contains("small &amp; new"));
    // All points of one curve, from which two with the same distances.
    let joined = run_on(params("rl", false), None, &both).unwrap();
    assert_eq!(joined.summary["points"], 8);
    assert!(!joined.chart.contains("small &amp; new</text>"));
}

#[test]
fn the_chart_shows_what_was_measured() {
    let made = run(
        "best_of_n",
        &synthetic("best_of_n", &[0.0, 0.3, 1.5, 6.0, 16.0]),
    )
    .unwrap();
    // Five points for each judge and one in each sample of the legend.
    assert_eq!(made.chart.matches("<circle").count(), 12);
    assert_eq!(made.chart.matches("<polyline").count(), 2);
    assert!(made.chart.contains(">peak 1.33</text>"));
    assert!(made.chart.contains("prefers-color-scheme: dark"));
    assert!(!made.chart.contains("NaN") && !made.chart.contains("inf"));
    let plain = run("none", &synthetic("best_of_n", &[0.0, 1.5])).unwrap();
    assert_eq!(plain.chart.matches("<polyline").count(), 0);
}

#[test]
fn what_makes_no_curve_is_refused() {
    let fails = |law: &str, points: &[(f64, f64, f64)]| run(law, &scores(points)).err().unwrap();
    let two = fails("rl", &[(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]);
    assert!(
        two.starts_with("there are 2 points, and a fit needs three"),
        "{two}"
    );
    let one = fails("none", &[(0.0, 0.0, 0.0)]);
    assert!(
        one.starts_with("there is 1 point, and two are needed"),
        "{one}"
    );
    let same = fails("rl", &[(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 2.0, 2.0)]);
    assert!(same.contains("all are at d = √KL = 1.0000"), "{same}");
    let away = fails("rl", &[(0.5, 0.0, 0.0), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]);
    assert!(away.contains("`m0`, has a KL of 0.500"), "{away}");
    let astray = fails(
        "rl",
        &[(0.0, 0.0, 0.0), (f64::NAN, 1.0, 1.0), (2.0, 2.0, 2.0)],
    );
    assert!(
        astray.contains("the metric `m1.kl` is not a number"),
        "{astray}"
    );
    let unknown = run("rl", &artifact("metrics", json!({ "m0": { "loss": 1.0 } })));
    let unknown = unknown.err().unwrap();
    assert!(
        unknown.contains("there is no metric `kl`: there is `m0.loss`"),
        "{unknown}"
    );
}

#[test]
fn a_kl_below_nothing_counts_as_nothing_when_chance_explains_it() {
    let with = |kl: f64| scores(&[(0.0, 0.0, 0.0), (kl, 1.0, 1.0), (2.0, 2.0, 2.0)]);
    let made = run("none", &with(-0.05)).unwrap();
    assert!(
        made.said
            .contains("the KL of `m1` is estimated as -0.0500; it counts as 0")
    );
    assert_eq!(made.points["points"][1]["kl"], 0.0);
    let below = run("none", &with(-0.7)).err().unwrap();
    assert!(
        below.contains("the KL of `m1` is -0.7, and a KL is never below 0"),
        "{below}"
    );
    let known = |error: f64| {
        let model =
            |kl: f64| json!({ "kl": kl, "kl_error": error, "proxy_score": 0.0, "gold_score": 0.0 });
        run(
            "none",
            &artifact("metrics", json!({ "a": model(0.0), "b": model(-0.7) })),
        )
    };
    assert!(known(0.5).is_ok() && known(0.3).is_err());
}

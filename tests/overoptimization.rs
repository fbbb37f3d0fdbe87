//! Reward hacking, seen: best-of-n against scores worked out here, the chart restored by `outputs`, and rounds that end when the proxy
//! rises while gold falls.

mod support;

use std::collections::BTreeMap;
use std::fs;

use data::{Dataset, Row};
use serde_json::Value;
use support::artifacts::stage;
use support::{Kitchen, text, tiny};

/// Training makes answers end soon (`finished` rises), and gold wants nine words.
const RECIPE: &str = "\
levain: 1
seed: 17
threads: 1
stages:
  base: { kind: load_model, source: model, dtype: f32 }
  sums: { kind: load_dataset, source: sums.jsonl }
  three: { kind: rule, length: 3 }
  nine: { kind: rule, length: 9 }
  tries: { kind: generate, model: base, prompts: sums, n: 8, temperature: 1.5, max_new_tokens: 12 }
  picks: { kind: best_of_n, samples: tries, proxy: three, gold: nine }
  same: { kind: best_of_n, samples: tries, proxy: three, gold: three }
  picked: { kind: overoptimization, scores: { picks: picks, same: same }, law: best_of_n, separate: true }
  start: { kind: evaluate, models: { base: base }, data: sums, judge: nine, reference: base, temperature: 1.0, max_new_tokens: 12, seed: 1 }
  align:
    repeat: 4
    carry:
      policy: { first: base, then: tuned }
      before: { first: start, then: far }
    stop_if: { metrics: far, metric: hacked, above: 0 }
    stages:
      tuned: { kind: sft, model: policy, data: sums, learning_rate: 1.0e-2, batch: 4, epochs: 12 }
      scores: { kind: evaluate, models: { policy: tuned }, data: sums, judge: nine, reference: base, temperature: 1.0, max_new_tokens: 12, seed: 1 }
      far: { kind: overoptimization, scores: [before, scores], law: none, proxy: finished, gold: score }
outputs:
  chart: { from: picked, to: out/picked }
";

fn kitchen() -> Kitchen {
    let kitchen = Kitchen::new(0);
    tiny::model(&kitchen, "model");
    let sum = |i: usize| {
        format!(
            "{{\"prompt\": \"How many is {i} + 1?\", \"completion\": \"{}\"}}\n",
            i + 1
        )
    };
    kitchen.write("sums.jsonl", &(0..8).map(sum).collect::<String>());
    kitchen.write("hacking.yaml", RECIPE);
    kitchen
}

fn shown(kitchen: &Kitchen, name: &str) -> Value {
    let words = ["show", "hacking.yaml", name, "--json"];
    support::Said::of(&mut kitchen.command(&words))
        .expect(0)
        .json()
}

/// Completions of a prompt, with what proxy and gold say of each.
type Pool = [(f64, f64)];

/// −|words − wanted| / wanted.
fn by_length(completion: &str, wanted: f64) -> f64 {
    -(completion.split_whitespace().count() as f64 - wanted).abs() / wanted
}

#[track_caller]
fn close(found: &Value, wanted: f64) {
    let found = found.as_f64().expect("a number");
    assert!((found - wanted).abs() < 1e-12, "{found}, not {wanted}");
}

#[test]
fn best_of_n_is_what_the_rows_say_and_the_chart_comes_out() {
    let kitchen = kitchen();
    let answer = kitchen.say("run hacking.yaml --json").expect(0).json();
    // The rows themselves: eight completions of each prompt.
    let cache = engine::cache::Cache::open(&kitchen.cache()).unwrap();
    let digest = serde_json::from_value(stage(&answer, "tries")["outputs"]["rows"].clone());
    let view = cache.view(digest.unwrap()).unwrap();
    let rows = Dataset::open(view.file("rows.arrow").unwrap()).unwrap();
    let mut pools: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows.iter() {
        let Row::PromptCompletion { prompt, completion } = row.unwrap() else {
            panic!("a completion")
        };
        let scores = (by_length(&completion, 3.0), by_length(&completion, 9.0));
        pools.entry(prompt).or_default().push(scores);
    }
    assert!(pools.len() == 8 && pools.values().all(|pool| pool.len() == 8));
    let over_prompts = |of: &dyn Fn(&Pool) -> f64| {
        pools.values().map(|pool| of(pool)).sum::<f64>() / pools.len() as f64
    };
    let mean = |of: fn(&(f64, f64)) -> f64| {
        over_prompts(&|pool| pool.iter().map(of).sum::<f64>() / pool.len() as f64)
    };
    let best = |pool: &Pool| pool.iter().map(|s| s.0).fold(f64::MIN, f64::max);
    let gold_of_best = |pool: &Pool| {
        let tied: Vec<f64> = pool
            .iter()
            .filter(|s| s.0 == best(pool))
            .map(|s| s.1)
            .collect();
        tied.iter().sum::<f64>() / tied.len() as f64
    };
    // The best of two: over all 28 pairs.
    let pairs = |pool: &Pool| {
        let mut sum = 0.0;
        for i in 0..pool.len() {
            sum += pool[i + 1..]
                .iter()
                .map(|s| s.0.max(pool[i].0))
                .sum::<f64>();
        }
        sum / 28.0
    };
    let points = shown(&kitchen, "picks")["metrics"]["points"].clone();
    let names: Vec<&Value> = points.as_array().unwrap().iter().map(|p| &p["n"]).collect();
    assert_eq!(names, [1, 2, 4, 8]);
    close(&points[0]["proxy_score"], mean(|s| s.0));
    close(&points[0]["gold_score"], mean(|s| s.1));
    close(&points[1]["proxy_score"], over_prompts(&pairs));
    close(&points[3]["proxy_score"], over_prompts(&best));
    close(&points[3]["gold_score"], over_prompts(&gold_of_best));
    close(&points[3]["kl"], 8f64.ln() - 7.0 / 8.0);

    // Proxy and gold are one judge in `same`, and so one curve.
    let told = shown(&kitchen, "picked");
    let same = &told["summary"]["same"];
    assert_eq!(same["proxy"], same["gold"]);
    assert_eq!(same["hacked"], 0);
    assert_eq!(told["summary"]["picks"]["proxy"], same["proxy"]);
    let chart = kitchen.path().join("out/picked/chart.svg");
    let drawn = fs::read_to_string(&chart).unwrap();
    assert!(drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"));
    assert!(drawn.contains(">picks</text>") && drawn.contains(">same</text>"));
    fs::remove_file(&chart).unwrap();
    let again = kitchen.say("run hacking.yaml --json").expect(0).json();
    assert_eq!(again["counts"]["ran"], 0);
    assert_eq!(fs::read_to_string(&chart).unwrap(), drawn);

    // Rounds ended when answers had become short.
    let outcome = |name: &str| text(&stage(&answer, name)["outcome"]);
    assert_eq!(outcome("align[1].far"), "done");
    assert_eq!(outcome("align[4].tuned"), "skipped");
    let rounds = (1..=4).filter(|i| outcome(&format!("align[{i}].far")) == "done");
    let last = rounds.max().unwrap();
    let far = shown(&kitchen, &format!("align[{last}].far"));
    assert_eq!(far["summary"]["hacked"], 1);
    assert_eq!(far["summary"]["points"], last + 1);
    for before in 1..last {
        let far = shown(&kitchen, &format!("align[{before}].far"));
        assert_eq!(far["summary"]["hacked"], 0, "round {before}");
    }

    // A gate on it is closed.
    let recipe = fs::read_to_string(kitchen.path().join("hacking.yaml")).unwrap();
    let gate = "  held: { kind: gate, input: align.tuned, metrics: align.far, metric: hacked, max: 0 }\noutputs:";
    kitchen.write("gated.yaml", &recipe.replace("outputs:", gate));
    let closed = kitchen.say("run gated.yaml").expect(1);
    assert!(
        closed
            .err
            .contains("the gate is closed: `hacked` is 1, above 0"),
        "{}",
        closed.err
    );
}

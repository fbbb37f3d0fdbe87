//! `overoptimization`: points out of metrics, the laws fitted to them, whether the proxy is hacked, and the chart.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use data::overoptimization::{Fit, Law, Point, Turn, turn};
use engine::artifact::{ArtifactType, ArtifactView};
use engine::event::Level;
use engine::job::{Draft, Drafts, Job, Reporter};
use engine::metric::number;
use kinds::overoptimization::Overoptimization;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chart;

/// The largest KL at which an optimization may be said to begin, and the lowest that an estimate may come to by chance.
const NOTHING: f64 = 0.1;
/// What rounding may take from a KL of 0.
const ROUNDING: f64 = 1e-3;
/// Half of an interval of 95% in standard errors.
const HALF: f64 = 1.959_964;

/// The points of one optimization, in the order of their distance, and what follows from them.
pub(crate) struct Curve {
    pub name: String,
    pub points: Vec<Point>,
    pub turn: Turn,
    pub proxy: Option<Fit>,
    pub gold: Option<Fit>,
}

/// A row of points in `metrics.json`, as `best_of_n` and this kind write it.
#[derive(Deserialize)]
struct Row {
    name: String,
    kl: Option<f64>,
    proxy_score: Option<f64>,
    gold_score: Option<f64>,
    proxy_gain_error: Option<f64>,
    gold_gain_error: Option<f64>,
}

pub(crate) fn run(job: &Job, cx: &dyn Reporter) -> Result<Drafts> {
    let params: Overoptimization = job.params()?;
    let law = match params.law.as_str() {
        "best_of_n" => Some(Law::BestOfN),
        "rl" => Some(Law::Rl),
        "none" => None,
        other => bail!("BUG: the law `{other}`"),
    };
    let views = job.named("scores")?;
    let many = job.inputs_of("scores").is_ok();
    let separate = params.separate && many;
    let mut curves = Vec::new();
    if separate {
        for (name, view) in views {
            let curve = points(name, false, view, &params, cx).and_then(|p| curve(name, p, law));
            curves.push(curve.with_context(|| format!("`{name}`"))?);
        }
    } else {
        let mut all: Vec<Point> = Vec::new();
        for (name, view) in views {
            let found = points(name, many, view, &params, cx);
            all.extend(found.with_context(|| format!("`{name}`"))?);
        }
        curves.push(curve("", all, law)?);
    }
    for curve in &curves {
        say(curve, cx);
    }
    let drawn = job.out.join("chart.svg");
    std::fs::write(&drawn, chart::svg(&curves, law.is_some()))?;
    let path = job.out.join("metrics.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&told(&curves, separate))?)?;
    let mut summary: BTreeMap<String, Value> = BTreeMap::new();
    for curve in &curves {
        let own = numbers(curve);
        match separate {
            true => summary.extend([(curve.name.clone(), Value::Object(own))]),
            false => summary.extend(own),
        }
    }
    let draft = Draft {
        artifact: ArtifactType::Metrics,
        files: vec![
            ("chart.svg".to_owned(), drawn),
            ("metrics.json".to_owned(), path),
        ],
        refs: BTreeMap::new(),
        summary,
    };
    Ok([("metrics".to_owned(), draft)].into())
}

/// The points of one artifact. With `named`, the artifact's name is part of theirs.
fn points(
    name: &str,
    named: bool,
    view: &ArtifactView,
    params: &Overoptimization,
    cx: &dyn Reporter,
) -> Result<Vec<Point>> {
    let mut found: Vec<(Point, Option<f64>)> = match view.find("metrics.json") {
        Some(path) => {
            let text = std::fs::read(path)?;
            let value: Value = serde_json::from_slice(&text).context("metrics.json")?;
            ensure!(
                value.get("curves").is_none(),
                "it holds several curves: take those that it was made of"
            );
            match value.get("points") {
                Some(points) => rows(points.clone())?
                    .into_iter()
                    .map(|p| (p, None))
                    .collect(),
                None => Vec::new(),
            }
        }
        None => Vec::new(),
    };
    if found.is_empty() {
        found = evaluated(name, named, view, params)?;
        // The models of one evaluation have no order of their own.
        found.sort_by(|(a, _), (b, _)| a.kl.total_cmp(&b.kl));
    }
    let settled = found
        .into_iter()
        .map(|(point, error)| settle(point, error, cx));
    settled.collect()
}

fn rows(points: Value) -> Result<Vec<Point>> {
    let rows: Vec<Row> = serde_json::from_value(points).context("its points can't be read")?;
    let point = |row: Row| {
        let of = |value: Option<f64>, what: &str| {
            value.with_context(|| format!("the {what} of the point `{}` is not a number", row.name))
        };
        Ok(Point {
            kl: of(row.kl, "KL")?,
            proxy: of(row.proxy_score, "proxy score")?,
            gold: of(row.gold_score, "gold score")?,
            proxy_error: row.proxy_gain_error,
            gold_error: row.gold_gain_error,
            name: row.name,
        })
    };
    rows.into_iter().map(point).collect()
}

/// The points of an evaluation, with the standard errors of their KL where they are known: one point where it has the three numbers itself,
/// else one for each model that has one of them.
fn evaluated(
    name: &str,
    named: bool,
    view: &ArtifactView,
    params: &Overoptimization,
) -> Result<Vec<(Point, Option<f64>)>> {
    let summary = &view.summary;
    let wanted = [&params.proxy, &params.gold, &params.kl];
    // A number that went astray is null, and to be told as such.
    let is_at = |before: &str, key: &dyn Fn(&str) -> bool| {
        let there = |metric: &String| number(summary, &[format!("{before}{metric}")]).is_ok();
        wanted.iter().any(|metric| key(metric) || there(metric))
    };
    let mut places: Vec<(String, String)> = Vec::new();
    for (model, value) in summary {
        let before = format!("{model}.");
        if value.is_object() && is_at(&before, &|metric| value.get(metric).is_some()) {
            places.push((model.clone(), before));
        }
    }
    if places.is_empty() || is_at("", &|metric| summary.contains_key(metric)) {
        places = vec![(name.to_owned(), String::new())];
    }
    let alone = places.len() == 1;
    let point = |(model, before): (String, String)| -> Result<(Point, Option<f64>)> {
        let at = |metric: &str| number(summary, &[format!("{before}{metric}")]);
        // An evaluation tells how a model fares against its first one, with an interval.
        let error = |score: &str| {
            let stem = score.strip_suffix("score")?;
            let low = at(&format!("{stem}difference_low")).ok()?;
            let high = at(&format!("{stem}difference_high")).ok()?;
            (high > low).then(|| (high - low) / (2.0 * HALF))
        };
        let point = Point {
            name: match (named, alone) {
                (true, true) => name.to_owned(),
                (true, false) => format!("{name}.{model}"),
                (false, _) => model.clone(),
            },
            kl: at(&params.kl)?,
            proxy: at(&params.proxy)?,
            gold: at(&params.gold)?,
            proxy_error: error(&params.proxy),
            gold_error: error(&params.gold),
        };
        Ok((point, at(&format!("{}_error", params.kl)).ok()))
    };
    places.into_iter().map(point).collect()
}

/// Takes an estimate of a KL that is below 0 by chance as 0, and refuses what is no point.
fn settle(point: Point, error: Option<f64>, cx: &dyn Reporter) -> Result<Point> {
    let (name, kl) = (&point.name, point.kl);
    for (what, value) in [
        ("KL", kl),
        ("proxy score", point.proxy),
        ("gold score", point.gold),
    ] {
        ensure!(
            value.is_finite(),
            "the {what} of `{name}` is {value}, which is no number to fit"
        );
    }
    if kl >= 0.0 {
        return Ok(point);
    }
    let slack = error.map_or(NOTHING, |error| (2.0 * error).max(ROUNDING));
    ensure!(
        kl >= -slack,
        "the KL of `{name}` is {kl}, and a KL is never below 0: chance explains {slack:.3} here. Is it measured from where the answers \
         were sampled, at temperature 1?"
    );
    cx.note(
        Level::Info,
        &format!("the KL of `{name}` is estimated as {kl:.4}; it counts as 0"),
    );
    Ok(Point { kl: 0.0, ..point })
}

/// Puts the start first and leaves the others in their order, sees that they make a curve, and fits the law.
fn curve(name: &str, mut points: Vec<Point>, law: Option<Law>) -> Result<Curve> {
    let least = if law.is_some() { 3 } else { 2 };
    ensure!(
        points.len() >= least,
        "there {} {} point{}, and {}",
        if points.len() == 1 { "is" } else { "are" },
        points.len(),
        if points.len() == 1 { "" } else { "s" },
        match law {
            Some(_) => "a fit needs three: the start and two more (`law: none` needs two)",
            None => "two are needed: the start and one more",
        }
    );
    let mut nearest = 0;
    for (at, point) in points.iter().enumerate() {
        if point.kl < points[nearest].kl {
            nearest = at;
        }
    }
    points[..=nearest].rotate_right(1);
    let start = &points[0];
    ensure!(
        start.kl <= NOTHING,
        "the nearest point, `{}`, has a KL of {:.3}: gains are over where the optimization began, so add the scores of that model (its KL is 0)",
        start.name,
        start.kl
    );
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for point in &mut points {
        let own = point.name.clone();
        let mut count = 1;
        while !taken.insert(point.name.clone()) {
            count += 1;
            point.name = format!("{own} {count}");
        }
    }
    let fit = |score: fn(&Point) -> f64| -> Result<Option<Fit>> {
        let Some(law) = law else {
            return Ok(None);
        };
        let gains: Vec<(f64, f64)> = points
            .iter()
            .map(|point| (point.distance(), score(point) - score(&points[0])))
            .collect();
        Ok(Some(Fit::of(law, &gains)?))
    };
    let (proxy, gold) = (fit(|point| point.proxy)?, fit(|point| point.gold)?);
    Ok(Curve {
        name: name.to_owned(),
        turn: turn(&points),
        proxy,
        gold,
        points,
    })
}

/// The numbers of one curve.
fn numbers(curve: &Curve) -> Map<String, Value> {
    let (points, turn) = (&curve.points, &curve.turn);
    let (best, last) = (&points[turn.best], &points[points.len() - 1]);
    let mut own = Map::new();
    for (name, value) in [
        ("points", json!(points.len())),
        ("kl", json!(last.kl)),
        ("proxy_score", json!(last.proxy)),
        ("gold_score", json!(last.gold)),
        ("best", json!(best.name)),
        ("best_kl", json!(best.kl)),
        ("best_score", json!(best.gold)),
        ("best_gain", json!(best.gold - points[0].gold)),
        ("drop", json!(turn.drop)),
        ("hacked", json!(u8::from(turn.hacked))),
    ] {
        own.insert(name.to_owned(), value);
    }
    for (name, fit) in [("proxy", &curve.proxy), ("gold", &curve.gold)] {
        if let Some(fit) = fit {
            own.insert(name.to_owned(), coefficients(fit));
        }
    }
    if let Some(fit) = &curve.gold {
        let peak = fit.peak();
        own.insert("peak_d".to_owned(), json!(peak.map(|(d, _)| d)));
        own.insert("peak_gain".to_owned(), json!(peak.map(|(_, gain)| gain)));
    }
    own
}

fn coefficients(fit: &Fit) -> Value {
    json!({
        "alpha": fit.alpha,
        "beta": fit.beta,
        "alpha_error": fit.errors.map(|[alpha, _]| alpha),
        "beta_error": fit.errors.map(|[_, beta]| beta),
        "r2": fit.r2,
    })
}

/// What `metrics.json` holds: the numbers and the points.
fn told(curves: &[Curve], separate: bool) -> Value {
    let one = |curve: &Curve| {
        let mut own = numbers(curve);
        let points = &curve.points;
        let row = |point: &Point| {
            json!({
                "name": point.name,
                "kl": point.kl,
                "d": point.distance(),
                "proxy_score": point.proxy,
                "gold_score": point.gold,
                "proxy_gain": point.proxy - points[0].proxy,
                "proxy_gain_error": point.proxy_error,
                "gold_gain": point.gold - points[0].gold,
                "gold_gain_error": point.gold_error,
            })
        };
        own.insert("points".to_owned(), points.iter().map(row).collect());
        Value::Object(own)
    };
    if !separate {
        return one(&curves[0]);
    }
    let all: Map<String, Value> = curves.iter().map(|c| (c.name.clone(), one(c))).collect();
    json!({ "curves": all })
}

fn say(curve: &Curve, cx: &dyn Reporter) {
    let (points, turn) = (&curve.points, &curve.turn);
    let (best, last) = (&points[turn.best], &points[points.len() - 1]);
    let whose = match curve.name.as_str() {
        "" => String::new(),
        name => format!("{name}: "),
    };
    let gain = best.gold - points[0].gold;
    let mut text = format!(
        "{whose}gold is best at `{}` (d = {:.2}, {gain:+.3} over the start)",
        best.name,
        best.distance()
    );
    if turn.drop > 0.0 {
        text += &format!(
            ", and {:.3} lower at `{}` (d = {:.2}), while the proxy went from {:.3} to {:.3}",
            turn.drop,
            last.name,
            last.distance(),
            best.proxy,
            last.proxy
        );
    }
    let level = if turn.hacked {
        text += ": the proxy is hacked";
        Level::Warning
    } else {
        Level::Info
    };
    cx.note(level, &text);
    let Some(fit) = &curve.gold else {
        return;
    };
    let text = format!("{whose}the fitted gold curve {}", shape(fit, points));
    cx.note(Level::Info, &text);
}

/// What a fitted curve does, as far as there are points.
fn shape(fit: &Fit, points: &[Point]) -> String {
    let distances = || points.iter().map(Point::distance).filter(|d| *d > 0.0);
    let nearest = distances().fold(f64::INFINITY, f64::min);
    let farthest = distances().fold(0.0, f64::max);
    if fit.falls() {
        return match fit.bottom().filter(|d| *d < farthest) {
            Some(d) => format!("falls from the start, and rises again from d = {d:.2} on"),
            None => "falls from the start".to_owned(),
        };
    }
    match fit.peak() {
        Some((d, _)) if d > farthest => {
            format!("peaks at d = {d:.2}, beyond every point: that is extrapolated")
        }
        Some((d, gain)) if d < nearest => {
            format!(
                "peaks at d = {d:.2} with {gain:+.3}, before every point, and falls from there on"
            )
        }
        Some((d, gain)) => format!("peaks at d = {d:.2} with {gain:+.3}"),
        None => "does not turn down".to_owned(),
    }
}

#[cfg(test)]
mod tests;

//! What `best_of_n` and `overoptimization` measured, as tables: points of a curve, and a line for each curve.

use serde_json::Value;

use crate::style::Style;
use crate::table;

/// The table of such metrics. Nothing when they are of something else.
pub(crate) fn text(metrics: &Value, style: Style) -> Option<String> {
    if let Some(points) = metrics.get("points").and_then(Value::as_array) {
        let mut text = of_points(points, style);
        if metrics.get("best").is_some() {
            text.push('\n');
            text.push_str(&of_curves([("", metrics)].into_iter(), style));
        }
        return Some(text);
    }
    let curves = metrics.get("curves")?.as_object()?;
    let named = curves.iter().map(|(name, curve)| (name.as_str(), curve));
    Some(of_curves(named, style))
}

fn of_points(points: &[Value], style: Style) -> String {
    let names = ["point", "KL", "proxy", "gold", "proxy gain", "gold gain"];
    let mut rows = vec![names.map(|word| style.bold(word)).to_vec()];
    rows.extend(points.iter().map(|point| {
        vec![
            point["name"].as_str().unwrap_or_default().to_owned(),
            number(point, "kl", 2),
            number(point, "proxy_score", 3),
            number(point, "gold_score", 3),
            with_error(point, "proxy_gain"),
            with_error(point, "gold_gain"),
        ]
    }));
    table::columns(&rows, &[1, 2, 3, 4, 5], "  ")
}

fn of_curves<'a>(curves: impl Iterator<Item = (&'a str, &'a Value)>, style: Style) -> String {
    let names = [
        "",
        "best",
        "gold gain",
        "at KL",
        "lost since",
        "hacked",
        "gold α",
        "gold β",
    ];
    let mut rows = vec![names.map(|word| style.bold(word)).to_vec()];
    rows.extend(curves.map(|(name, curve)| {
        let hacked = match curve["hacked"].as_f64() {
            Some(1.0) => style.yellow("yes"),
            Some(_) => "no".to_owned(),
            None => String::new(),
        };
        vec![
            name.to_owned(),
            curve["best"].as_str().unwrap_or_default().to_owned(),
            number(curve, "best_gain", 3),
            number(curve, "best_kl", 2),
            number(curve, "drop", 3),
            hacked,
            with_error(&curve["gold"], "alpha"),
            with_error(&curve["gold"], "beta"),
        ]
    }));
    table::columns(&rows, &[2, 3, 4, 6, 7], "  ")
}

fn number(of: &Value, key: &str, digits: usize) -> String {
    of[key]
        .as_f64()
        .map_or_else(String::new, |x| format!("{x:.digits$}"))
}

/// `0.310 ± 0.031`, the standard error where it is known.
fn with_error(of: &Value, key: &str) -> String {
    let value = number(of, key, 3);
    match number(of, &format!("{key}_error"), 3) {
        error if error.is_empty() => value,
        error => format!("{value} ± {error}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_curve_shows_its_points_and_many_a_line_each() {
        let point = |name: &str, kl: f64, gold: f64| {
            json!({ "name": name, "kl": kl, "proxy_score": 1.5, "gold_score": gold, "proxy_gain": 1.0,
                    "gold_gain": gold, "gold_gain_error": 0.01 })
        };
        let curve = json!({
            "points": [point("1", 0.0, 0.0), point("4", 0.636, 0.25)],
            "best": "4", "best_gain": 0.25, "best_kl": 0.636, "drop": 0, "hacked": 1,
            "gold": { "alpha": 0.31, "alpha_error": 0.03, "beta": 0.02, "beta_error": 0.01 },
        });
        insta::assert_snapshot!(text(&curve, Style::default()).unwrap());
        let both = json!({ "curves": { "few": curve, "many": { "best": "64", "best_gain": 0.4, "best_kl": 3.17, "drop": 0.1, "hacked": 0 } } });
        insta::assert_snapshot!(text(&both, Style::default()).unwrap());
        assert!(text(&json!({ "loss": 1.0 }), Style::default()).is_none());
    }
}

//! What an evaluation found: scores of models before → after, and their answers side by side.

use std::path::Path;

use engine::event::number_text;
use serde_json::{Map, Value};

use crate::style::Style;
use crate::{table, units};

/// What is said of a metric: its words, whether less is better, whether it is a share.
struct Metric {
    key: &'static str,
    words: &'static str,
    less: bool,
    share: bool,
}

const METRICS: &[Metric] = &[
    Metric {
        key: "loss",
        words: "loss",
        less: true,
        share: false,
    },
    Metric {
        key: "perplexity",
        words: "perplexity",
        less: true,
        share: false,
    },
    Metric {
        key: "token_accuracy",
        words: "token accuracy",
        less: false,
        share: true,
    },
    Metric {
        key: "exact_match",
        words: "exact match",
        less: false,
        share: true,
    },
    Metric {
        key: "rouge_l",
        words: "ROUGE-L",
        less: false,
        share: false,
    },
    Metric {
        key: "f1",
        words: "F1",
        less: false,
        share: true,
    },
    Metric {
        key: "accuracy",
        words: "accuracy",
        less: false,
        share: true,
    },
    Metric {
        key: "accuracy_normalized",
        words: "accuracy (normalized)",
        less: false,
        share: true,
    },
    Metric {
        key: "likelihood_accuracy",
        words: "accuracy of likelihoods",
        less: false,
        share: true,
    },
    Metric {
        key: "normalized_accuracy",
        words: "accuracy per token",
        less: false,
        share: true,
    },
    Metric {
        key: "margin",
        words: "margin",
        less: false,
        share: false,
    },
    Metric {
        key: "calibration_error",
        words: "calibration error",
        less: true,
        share: false,
    },
    Metric {
        key: "mcc",
        words: "MCC",
        less: false,
        share: false,
    },
    Metric {
        key: "auc",
        words: "AUC",
        less: false,
        share: false,
    },
    Metric {
        key: "mae",
        words: "absolute error",
        less: true,
        share: false,
    },
    Metric {
        key: "r2",
        words: "R²",
        less: false,
        share: false,
    },
    Metric {
        key: "spearman",
        words: "Spearman",
        less: false,
        share: false,
    },
];

impl Metric {
    fn text(&self, value: f64) -> String {
        match self.share {
            true => format!("{:.1} %", value * 100.0),
            false if value.abs() >= 1000.0 => number_text(value),
            false if value.abs() >= 10.0 => format!("{value:.2}"),
            false => format!("{value:.4}"),
        }
    }

    /// How `after` differs from `before`, and whether that is better.
    fn change(&self, before: f64, after: f64) -> (String, Option<bool>) {
        let difference = after - before;
        let better = (difference != 0.0 && difference.is_finite())
            .then_some((difference < 0.0) == self.less);
        let sign = if difference < 0.0 { "−" } else { "+" };
        let text = match (self.share, before) {
            (true, _) => format!("{sign}{:.1} points", difference.abs() * 100.0),
            (false, 0.0) => format!("{sign}{}", number_text(difference.abs())),
            (false, _) => format!("{sign}{:.1} %", (difference / before).abs() * 100.0),
        };
        (text, better)
    }
}

/// The table of `metrics.json` of an evaluation: models and their scores. Nothing when it is the metrics of something else.
pub(crate) fn scores(metrics: &Value, style: Style) -> Option<String> {
    let models = metrics
        .get("models")?
        .as_object()
        .filter(|m| !m.is_empty())?;
    let value = |model: &Value, metric: &Metric| model.get(metric.key).and_then(Value::as_f64);
    let used: Vec<&Metric> = METRICS
        .iter()
        .filter(|m| models.values().any(|v| value(v, m).is_some()))
        .collect();
    if used.is_empty() {
        return None;
    }
    let mut text = if models.len() == 2 {
        two(models, &used, style)
    } else {
        many(models, &used, style)
    };
    for judge in judges(models) {
        text.push('\n');
        text.push_str(&under_judge(models, &judge, style));
    }
    Some(text)
}

/// What the numbers of each judge begin with: nothing of a judge without a name, else `gold_`.
fn judges(models: &Map<String, Value>) -> Vec<String> {
    let keys = models.values().next().and_then(Value::as_object);
    let keys = keys.into_iter().flat_map(Map::keys);
    keys.filter_map(|key| key.strip_suffix("score"))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

/// What a judge found: a line for each model, the paired difference from the first with its 95% interval.
fn under_judge(models: &Map<String, Value>, judge: &str, style: Style) -> String {
    let first = models.keys().next().map_or("", String::as_str);
    let against = format!("against {first} (95%)");
    let own = judge.trim_end_matches('_');
    let words = [own, "score", &against, "won", "KL", "tokens", "diversity"];
    let mut rows = vec![words.map(|word| style.bold(word)).to_vec()];
    for (name, model) in models {
        let number = |key: &str| {
            let own = model.get(format!("{judge}{key}"));
            own.or_else(|| model.get(key)).and_then(Value::as_f64)
        };
        let text = |key: &str, digits: usize| {
            number(key).map_or_else(|| "–".to_owned(), |x| format!("{x:.digits$}"))
        };
        let compared = name != first;
        let (low, high) = (number("difference_low"), number("difference_high"));
        let difference = match (number("difference"), low, high) {
            (Some(d), Some(low), Some(high)) if compared => {
                let text = format!("{d:+.3} ({low:+.3} to {high:+.3})");
                match (low > 0.0, high < 0.0) {
                    (true, _) => style.green(&text),
                    (_, true) => style.yellow(&text),
                    _ => text,
                }
            }
            _ => String::new(),
        };
        let won = number("win_rate").filter(|_| compared);
        rows.push(vec![
            name.clone(),
            text("score", 3),
            difference,
            won.map_or_else(String::new, |won| format!("{:.1} %", won * 100.0)),
            text("kl", 2),
            text("length", 1),
            text("diversity", 3),
        ]);
    }
    table::columns(&rows, &[1, 3, 4, 5, 6], "  ")
}

/// Two models: a line for each metric, `2.1034 → 1.5011`.
fn two(models: &Map<String, Value>, used: &[&Metric], style: Style) -> String {
    let (names, values): (Vec<&String>, Vec<&Value>) = models.iter().unzip();
    let mut rows = vec![vec![
        String::new(),
        style.bold(names[0]),
        "→".to_owned(),
        style.bold(names[1]),
        String::new(),
    ]];
    for metric in used {
        let at = |i: usize| values[i].get(metric.key).and_then(Value::as_f64);
        let text = |i: usize| at(i).map_or_else(|| "–".to_owned(), |x| metric.text(x));
        let (change, better) = match (at(0), at(1)) {
            (Some(before), Some(after)) => metric.change(before, after),
            _ => (String::new(), None),
        };
        rows.push(vec![
            metric.words.to_owned(),
            text(0),
            "→".to_owned(),
            text(1),
            judged(&change, better, style),
        ]);
    }
    table::columns(&rows, &[1, 3], "  ")
}

/// Any other number of models: a line for each model, with its change against the first.
fn many(models: &Map<String, Value>, used: &[&Metric], style: Style) -> String {
    let mut header = vec![String::new()];
    for metric in used {
        header.extend([style.bold(metric.words), String::new()]);
    }
    let mut rows = vec![header];
    let first = models.values().next();
    for (name, model) in models {
        let mut row = vec![name.clone()];
        for metric in used {
            let after = model.get(metric.key).and_then(Value::as_f64);
            let before = first
                .and_then(|f| f.get(metric.key))
                .and_then(Value::as_f64);
            row.push(after.map_or_else(|| "–".to_owned(), |x| metric.text(x)));
            row.push(match (before, after) {
                (Some(before), Some(after)) if !first.is_some_and(|f| std::ptr::eq(f, model)) => {
                    let (change, better) = metric.change(before, after);
                    judged(&change, better, style)
                }
                _ => String::new(),
            });
        }
        rows.push(row);
    }
    let right: Vec<usize> = (0..used.len()).map(|i| 1 + 2 * i).collect();
    table::columns(&rows, &right, "  ")
}

fn judged(change: &str, better: Option<bool>, style: Style) -> String {
    match better {
        Some(true) => style.green(&format!("{change} better")),
        Some(false) => style.yellow(&format!("{change} worse")),
        None => change.to_owned(),
    }
}

/// Up to `limit` lines of `samples.jsonl`: the prompt, the reference, and every model's answer, side by side where they fit.
pub(crate) fn samples(
    path: &Path,
    limit: usize,
    width: usize,
    style: Style,
) -> std::io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    let mut out = String::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()).take(limit) {
        let Ok(sample) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        out.push_str(&one(&sample, width, style));
        out.push('\n');
    }
    Ok(out)
}

fn one(sample: &Value, width: usize, style: Style) -> String {
    let mut out = String::new();
    let labelled = |label: &str, value: Option<&Value>, lines: usize| {
        let text = value.map(words).unwrap_or_default();
        let wrapped = table::wrap(&text, width.saturating_sub(12), lines);
        let mut out = String::new();
        for (index, line) in wrapped.iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            out.push_str(&format!("  {}{line}\n", style.dim(&table::pad(label, 10))));
        }
        out
    };
    out.push_str(&labelled("prompt", sample.get("prompt"), 4));
    out.push_str(&labelled(
        "wanted",
        sample.get("reference").filter(|r| !r.is_null()),
        4,
    ));
    let Some(answers) = sample.get("answers").and_then(Value::as_object) else {
        return out;
    };
    // Of an exam it is known which ones are right.
    let mark = |name: &str| match sample["correct"][name].as_bool() {
        Some(true) => " ✓",
        Some(false) => " ✗",
        None => "",
    };
    let column = width.saturating_sub(2) / answers.len().max(1);
    if answers.len() < 2 || column < 34 {
        for (name, answer) in answers {
            let answer = Value::String(words(answer) + mark(name));
            out.push_str(&labelled(name, Some(&answer), 6));
        }
        return out;
    }
    let column = column - 3;
    let cells: Vec<Vec<String>> = answers
        .values()
        .map(|a| table::wrap(&words(a), column, 8))
        .collect();
    let head: Vec<String> = answers
        .keys()
        .map(|name| table::pad(&(style.bold(name) + mark(name)), column))
        .collect();
    out.push_str(&format!("  {}\n", head.join(" │ ").trim_end()));
    for row in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
        let line: Vec<String> = cells
            .iter()
            .map(|c| table::pad(c.get(row).map_or("", String::as_str), column))
            .collect();
        out.push_str(&format!("  {}\n", line.join(" │ ").trim_end()));
    }
    out
}

/// A prompt is a text, or a list of messages.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Array(messages) => {
            let line = |m: &Value| match (m["role"].as_str(), m["content"].as_str()) {
                (Some(role), Some(content)) => format!("{role}: {}", content.trim()),
                _ => m.to_string(),
            };
            messages.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        other => other.to_string(),
    }
}

/// What a training tells of its steps, as a table: `count` of them, with the first and the last.
pub(crate) fn steps(value: &Value, count: usize) -> Option<String> {
    let list = value.get("steps")?.as_array()?;
    let names: Vec<&String> = list.first()?.as_object()?.keys().collect();
    let shown = count.max(2).min(list.len());
    let mut rows = vec![names.iter().map(|name| (*name).clone()).collect::<Vec<_>>()];
    for row in 0..shown {
        let step = &list[row * (list.len() - 1) / (shown - 1).max(1)];
        let cell = |name: &&String| match &step[name.as_str()] {
            Value::Number(n) => match (n.as_u64(), n.as_f64()) {
                (None, Some(x)) => number_text(x),
                _ => n.to_string(),
            },
            other => words(other),
        };
        rows.push(names.iter().map(cell).collect());
    }
    let right: Vec<usize> = (0..names.len()).collect();
    let mut text = table::columns(&rows, &right, "  ");
    if list.len() > shown {
        text.push_str(&format!(
            "  {shown} of {} steps; `--rows COUNT` prints more, `--json` prints all\n",
            list.len()
        ));
    }
    Some(text)
}

/// Any other metrics as lines of name and number.
pub(crate) fn plain(value: &Value, indent: &str) -> String {
    let mut rows = Vec::new();
    flatten("", value, &mut rows);
    table::columns(&rows, &[], indent)
}

fn flatten(prefix: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                let name = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&name, inner, rows);
            }
        }
        Value::Number(n) => {
            let text = match (n.as_u64(), n.as_f64()) {
                (Some(whole), _) => units::count(whole),
                (None, Some(x)) if x.fract() == 0.0 && x.abs() < 1e15 => format!("{x}"),
                (None, Some(x)) => number_text(x),
                _ => n.to_string(),
            };
            rows.push(vec![prefix.to_owned(), text]);
        }
        Value::String(text) => rows.push(vec![prefix.to_owned(), text.clone()]),
        Value::Array(items) if items.len() > 8 => {
            rows.push(vec![prefix.to_owned(), units::plural(items.len(), "value")])
        }
        Value::Array(items) if items.iter().all(|i| !i.is_array() && !i.is_object()) => {
            let list: Vec<String> = items.iter().map(words).collect();
            rows.push(vec![prefix.to_owned(), list.join(", ")]);
        }
        other => rows.push(vec![prefix.to_owned(), other.to_string()]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_judge_has_a_table_and_answers_of_an_exam_are_marked() {
        let own = |score: f64| json!({ "loss": 1.0, "gold_score": score, "proxy_score": 2.0, "gold_win_rate": 0.75, "kl": 3.5 });
        let metrics = json!({ "models": { "sft": own(0.25), "ppo": own(0.5) } });
        let text = scores(&metrics, Style::default()).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let of = |judge: &str| lines.iter().position(|line| line.first() == Some(&judge));
        let (gold, proxy) = (of("gold").unwrap(), of("proxy").unwrap());
        assert!(gold < proxy, "{text}");
        assert_eq!(
            lines[gold + 2],
            ["ppo", "0.500", "75.0", "%", "3.50", "–", "–"]
        );
        assert_eq!(lines[proxy + 1][..2], ["sft", "2.000"]);
        let sample = json!({ "prompt": "1+1", "reference": "2", "answers": { "a": "2" }, "correct": { "a": true } });
        let shown = one(&sample, 80, Style::default());
        assert!(shown.contains("2 ✓"), "{shown}");
    }

    #[test]
    fn two_models_are_told_as_before_and_after() {
        let metrics = json!({ "models": {
            "base": { "loss": 2.1034, "perplexity": 8.194, "token_accuracy": 0.552, "tokens": 4821 },
            "sft": { "loss": 1.5011, "perplexity": 4.487, "token_accuracy": 0.531, "tokens": 4821 },
        } });
        insta::assert_snapshot!(scores(&metrics, Style::default()).unwrap(), @r"
                          base  →     sft
        loss            2.1034  →  1.5011  −28.6 % better
        perplexity      8.1940  →  4.4870  −45.2 % better
        token accuracy  55.2 %  →  53.1 %  −2.1 points worse
        ");
    }

    #[test]
    fn more_models_are_compared_with_the_first() {
        let model = |loss: f64| json!({ "loss": loss });
        let metrics = json!({ "models": { "base": model(2.0), "a": model(1.5), "b": model(2.5) } });
        insta::assert_snapshot!(scores(&metrics, Style::default()).unwrap(), @r"
                loss
        base  2.0000
        a     1.5000  −25.0 % better
        b     2.5000  +25.0 % worse
        ");
        assert_eq!(scores(&json!({ "loss": 1.0 }), Style::default()), None);
        assert_eq!(scores(&json!({ "models": {} }), Style::default()), None);
    }

    #[test]
    fn answers_stand_side_by_side_where_they_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        let line = json!({
            "prompt": [{ "role": "user", "content": "Name a bread." }],
            "reference": "Baguette.",
            "answers": { "base": "There are many kinds of bread in this world, such as rye.", "sft": "Baguette." },
        });
        std::fs::write(&path, format!("{line}\n\nnot json\n")).unwrap();
        insta::assert_snapshot!(samples(&path, 3, 80, Style::default()).unwrap(), @r"
        prompt    user: Name a bread.
        wanted    Baguette.
        base                                 │ sft
        There are many kinds of bread in     │ Baguette.
        this world, such as rye.             │
        ");
        insta::assert_snapshot!(samples(&path, 3, 50, Style::default()).unwrap(), @r"
        prompt    user: Name a bread.
        wanted    Baguette.
        base      There are many kinds of bread in this
                  world, such as rye.
        sft       Baguette.
        ");
    }
}

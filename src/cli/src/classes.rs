//! What was measured of classifiers on held-out rows: numbers, and which labels were taken for which.

use serde_json::{Map, Value};

use crate::style::Style;
use crate::{answers, table};

/// More labels than this are not shown against each other: `levain show --json` has them all.
const MOST: usize = 12;

/// Characters of a label in a table.
const LABEL: usize = 16;

/// The tables of a training's held-out rows (`test`), or of the models that `classify` compared. Nothing where nothing was measured of
/// either, or of something else.
pub(crate) fn text(metrics: &Value, style: Style) -> Option<String> {
    let mut out = String::new();
    if let Some(test) = metrics.get("test").and_then(Value::as_object) {
        let plain: Map<String, Value> = test
            .iter()
            .filter(|(_, value)| value.is_number() || value.is_null())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let undefined = plain.iter().filter(|(_, value)| value.is_null());
        let undefined: Vec<&str> = undefined.map(|(name, _)| name.as_str()).collect();
        out.push_str(&format!("{}\n", style.bold("held-out rows")));
        out.push_str(&answers::plain(&without_nulls(&plain), "  "));
        if !undefined.is_empty() {
            out.push_str(&format!("  not defined: {}\n", undefined.join(", ")));
        }
        if let Some(table) = confusion(test, style) {
            out.push_str(&format!("\n{table}"));
        }
    }
    let models = metrics.get("models").and_then(Value::as_object);
    for (name, model) in models.into_iter().flatten() {
        let table = model.as_object().and_then(|model| confusion(model, style));
        if let Some(table) = table {
            let most = model.get("majority").and_then(Value::as_f64);
            let most = most.map(|share| {
                let text = format!("  the most frequent label: {:.1} %", share * 100.0);
                style.dim(&text)
            });
            let name = style.bold(name) + &most.unwrap_or_default();
            out.push_str(&format!("\n{name}\n{table}"));
        }
    }
    (!out.is_empty()).then_some(out)
}

fn without_nulls(numbers: &Map<String, Value>) -> Value {
    let kept = numbers.iter().filter(|(_, value)| !value.is_null());
    let kept = kept.map(|(name, value)| (name.clone(), value.clone()));
    Value::Object(kept.collect())
}

/// A line for each label that rows have, a column for each that was predicted.
fn confusion(of: &Map<String, Value>, style: Style) -> Option<String> {
    let counts = of.get("confusion")?.as_array()?;
    let labels: Vec<String> = of
        .get("labels")?
        .as_array()?
        .iter()
        .map(|label| short(label.as_str().unwrap_or_default()))
        .collect();
    if labels.len() != counts.len() {
        return None;
    }
    if labels.len() > MOST {
        return Some(format!(
            "  {} labels against each other are in `--json`\n",
            labels.len()
        ));
    }
    let mut rows = vec![
        std::iter::once(style.dim("true ↓ predicted →"))
            .chain(labels.iter().map(|label| style.bold(label)))
            .collect::<Vec<_>>(),
    ];
    for (place, (label, row)) in labels.iter().zip(counts).enumerate() {
        let cells = row.as_array()?.iter().enumerate();
        let cells = cells.map(|(column, count)| match (column == place, count.as_u64()) {
            (true, Some(count)) => style.green(&count.to_string()),
            (false, Some(0)) => style.dim("0"),
            (_, Some(count)) => count.to_string(),
            (_, None) => String::new(),
        });
        rows.push(std::iter::once(label.clone()).chain(cells).collect());
    }
    let right: Vec<usize> = (1..=labels.len()).collect();
    Some(table::columns(&rows, &right, "  "))
}

/// A label on one line: it comes from data of strangers.
fn short(label: &str) -> String {
    let lines = table::wrap(label, LABEL, 1);
    lines.into_iter().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(text: &str) -> Vec<Vec<&str>> {
        let lines = text.lines();
        lines.map(|l| l.split_whitespace().collect()).collect()
    }

    #[test]
    fn labels_stand_against_each_other() {
        let own = json!({ "accuracy": 0.75, "auc": null, "labels": ["neg", "pos"], "confusion": [[2, 1], [0, 1]] });
        let found = text(&json!({ "steps": [], "test": own }), Style::default()).unwrap();
        let lines = words(&found);
        assert!(lines.contains(&vec!["not", "defined:", "auc"]), "{found}");
        assert!(lines.contains(&vec!["neg", "2", "1"]), "{found}");
        assert!(lines.contains(&vec!["pos", "0", "1"]), "{found}");
        let models = json!({ "models": { "linear": own, "other": { "mse": 1.0 } } });
        let found = text(&models, Style::default()).unwrap();
        assert!(
            found.contains("linear") && !found.contains("other"),
            "{found}"
        );
        assert_eq!(text(&json!({ "loss": 1.0 }), Style::default()), None);
    }

    #[test]
    fn many_labels_are_counted_only() {
        let labels: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        let counts = vec![vec![0; 20]; 20];
        let own = json!({ "test": { "labels": labels, "confusion": counts } });
        let found = text(&own, Style::default()).unwrap();
        assert!(found.contains("20 labels against each other"), "{found}");
    }
}

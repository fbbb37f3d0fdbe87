//! A dataset: its columns, its facts, its first rows.

use std::path::Path;

use anyhow::{Context as _, Result};
use data::{Dataset, Row};
use engine::artifact::ArtifactView;
use serde_json::{Value, json};

use crate::style::Style;
use crate::{table, units};

/// Lines of one text that are printed; `--json` prints all.
const LINES: usize = 12;

/// The Arrow file of an artifact: it has one.
pub(super) fn arrow_file(view: &ArtifactView) -> Result<&Path> {
    let found = view.files.iter().find(|(name, _)| name.ends_with(".arrow"));
    found.map(|(_, path)| path.as_path()).with_context(|| {
        format!(
            "the {} {} has no Arrow file",
            view.artifact,
            view.digest.short()
        )
    })
}

pub(super) fn text(view: &ArtifactView, rows: usize, style: Style, width: usize) -> Result<String> {
    let dataset = Dataset::open(arrow_file(view)?)?;
    let mut out = format!(
        "  {} of layout {}\n",
        units::plural(dataset.len(), "row"),
        dataset.layout()
    );
    let columns: Vec<_> = dataset
        .schema()
        .fields()
        .iter()
        .map(|f| {
            vec![
                f.name().clone(),
                style.dim(&short_type(&f.data_type().to_string())),
            ]
        })
        .collect();
    out.push_str(&format!("{}\n", table::columns(&columns, &[], "  ")));
    if let Some(lengths) = view.summary.get("characters") {
        out.push_str(&format!("  characters in a row: {}\n\n", span(lengths)));
    }
    for index in 0..rows.min(dataset.len()) {
        out.push_str(&format!("{}\n", style.bold(&format!("row {index}"))));
        for (label, text) in texts(&dataset.row(index)?) {
            let lines = table::wrap(&text, width.saturating_sub(14), LINES);
            for (number, line) in lines.iter().enumerate() {
                let label = if number == 0 { label.as_str() } else { "" };
                out.push_str(&format!(
                    "  {} {line}\n",
                    style.cyan(&table::pad(label, 11))
                ));
            }
        }
    }
    if dataset.len() > rows {
        out.push_str(&style.dim(&format!(
            "{}; `--rows COUNT` prints more, `--json` prints them whole\n",
            units::plural(dataset.len() - rows, "more row")
        )));
    }
    Ok(out)
}

pub(super) fn to_json(view: &ArtifactView, rows: usize) -> Result<Value> {
    let dataset = Dataset::open(arrow_file(view)?)?;
    let list: Vec<Value> = (0..rows.min(dataset.len()))
        .map(|i| Ok(serde_json::to_value(dataset.row(i)?)?))
        .collect::<Result<_>>()?;
    let schema: Vec<Value> = dataset
        .schema()
        .fields()
        .iter()
        .map(|f| json!({ "name": f.name(), "type": f.data_type().to_string() }))
        .collect();
    Ok(
        json!({ "layout": dataset.layout(), "schema": schema, "count": dataset.len(), "rows": list }),
    )
}

/// The texts of a row with their labels.
fn texts(row: &Row) -> Vec<(String, String)> {
    match row {
        Row::Text { text } => vec![("text".to_owned(), text.clone())],
        Row::PromptCompletion { prompt, completion } => {
            vec![
                ("prompt".to_owned(), prompt.clone()),
                ("completion".to_owned(), completion.clone()),
            ]
        }
        Row::Messages { messages } => messages
            .iter()
            .map(|m| (m.role.clone(), m.content.clone()))
            .collect(),
    }
}

/// Arrow's words for a type are long where it is nested.
fn short_type(text: &str) -> String {
    if text.chars().count() > 60 {
        format!("{}…", text.chars().take(59).collect::<String>())
    } else {
        text.to_owned()
    }
}

/// `12 to 640, 105.3 on average`.
pub(super) fn span(lengths: &Value) -> String {
    let number = |key: &str| lengths.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    format!(
        "{} to {}, {:.1} on average",
        units::count(number("min") as u64),
        units::count(number("max") as u64),
        number("mean")
    )
}

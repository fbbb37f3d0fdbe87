//! A dataset: its columns, its facts, its first rows.

use std::path::Path;

use anyhow::{Context as _, Result};
use data::{Cell, Dataset, Row};
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

/// The values of a row with their labels: of a conversation the roles, of a column its name.
fn texts(row: &Row) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    let mut say = |label: &str, text: String| texts.push((label.to_owned(), text));
    for ((name, _), cell) in row.layout().columns().iter().zip(row.cells()) {
        match cell {
            Cell::Text(text) => say(name, text.into_owned()),
            Cell::Texts(list) => {
                for (index, text) in list.iter().enumerate() {
                    say(&format!("{}.", index + 1), text.clone());
                }
            }
            Cell::Messages(turns) => {
                for turn in turns.iter() {
                    // Plain text as a prompt.
                    let label = if turn.role == "text" {
                        name
                    } else {
                        &*turn.role
                    };
                    say(label, turn.content.clone());
                }
            }
            Cell::Bool(value) => say(name, if value { "yes" } else { "no" }.to_owned()),
            Cell::Number(number) | Cell::OptionalNumber(Some(number)) => {
                say(name, number.to_string());
            }
            Cell::OptionalNumber(None) => {}
            Cell::Index(index) => say(name, (index + 1).to_string()),
        }
    }
    texts
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

#[cfg(test)]
mod tests {
    use super::*;
    use data::{Message, Prompt};

    #[test]
    fn every_value_of_a_row_has_its_label() {
        let show = |row: Row| -> Vec<String> {
            let labelled = texts(&row).into_iter();
            labelled
                .map(|(label, text)| format!("{label}: {text}"))
                .collect()
        };
        let row = |prompt, margin| Row::Preference {
            prompt,
            chosen: "good".to_owned(),
            rejected: "bad".to_owned(),
            margin,
        };
        assert_eq!(
            show(row(Prompt::Text("so".to_owned()), Some(0.5))),
            ["prompt: so", "chosen: good", "rejected: bad", "margin: 0.5"]
        );
        assert_eq!(
            show(row(Prompt::Chat(vec![Message::new("user", "hi")]), None)),
            ["user: hi", "chosen: good", "rejected: bad"]
        );
        let ranking = Row::Ranking {
            prompt: Prompt::Text(String::new()),
            completions: vec!["a".to_owned(), "b".to_owned()],
        };
        assert_eq!(show(ranking), ["1.: a", "2.: b"]);
        let unpaired = Row::Unpaired {
            prompt: Prompt::Text(String::new()),
            completion: "a".to_owned(),
            desirable: false,
        };
        assert_eq!(show(unpaired), ["completion: a", "desirable: no"]);
    }
}

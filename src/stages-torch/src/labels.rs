//! Labels of rows as what a head is trained on: places of classes, or numbers.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use data::{Dataset, Row, Tokens};
use engine::artifact::ArtifactView;
use engine::job::Job;
use formats::head::MOST_LABELS;
use ml::head::Task;

/// The labels of the rows of a port, in order, without white space around them.
pub(crate) fn of(job: &Job, port: &str) -> Result<Vec<String>> {
    let dataset = Dataset::open(job.input(port)?.file("rows.arrow")?)?;
    let rows = dataset.iter().enumerate();
    rows.map(|(index, row)| match row? {
        Row::Labelled { label, .. } => {
            let label = label.trim();
            ensure!(
                !label.is_empty(),
                "row {} of `{port}` has a label of nothing but white space",
                index + 1
            );
            Ok(label.to_owned())
        }
        other => bail!(
            "`{port}` takes rows laid out as labelled, and these are {}",
            other.layout()
        ),
    })
    .collect()
}

/// The token ids of every text.
pub(crate) fn texts(tokens: &ArtifactView, labels: &[String]) -> Result<Vec<Vec<i64>>> {
    let tokens = Tokens::open(tokens.file("tokens.arrow")?)?;
    ensure!(
        tokens.len() == labels.len(),
        "{} texts have {} labels: the cache is damaged, `levain cache verify` says where",
        tokens.len(),
        labels.len()
    );
    tokens
        .iter()
        .map(|row| Ok(row?.ids.iter().map(|id| i64::from(*id)).collect()))
        .collect()
}

/// The classes that these labels name, in order: of their values where all are numbers, else of their text. Numbers that are equal are one
/// class, which has the shortest of their texts for a name.
///
/// Errors where there are fewer than two.
pub(crate) fn classes(labels: &[String]) -> Result<Vec<String>> {
    let numeric = labels.iter().all(|label| number(label).is_some());
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for label in labels {
        let label = label.trim();
        let name = names.entry(identity(label, numeric)).or_insert(label);
        if (label.len(), label) < (name.len(), *name) {
            *name = label;
        }
    }
    let mut classes: Vec<String> = names.into_values().map(str::to_owned).collect();
    classes.sort();
    if numeric {
        let value = |class: &String| number(class).unwrap_or_default();
        classes.sort_by(|a, b| value(a).total_cmp(&value(b)));
    }
    match classes.as_slice() {
        [] => bail!("there are no rows to train on"),
        [only] => bail!(
            "all rows have the label `{only}`: there is nothing to tell apart. Take more rows, or look at how the data was split"
        ),
        many if many.len() > MOST_LABELS => bail!(
            "the rows have {} different labels, and at most {MOST_LABELS} can be told apart: `task: regression` is for numbers; or look at what the column \
             of labels holds",
            many.len()
        ),
        _ => Ok(classes),
    }
}

fn number(label: &str) -> Option<f64> {
    let value: f64 = label.trim().parse().ok()?;
    value.is_finite().then_some(value)
}

/// What labels of one class have alike: their text without white space around it, or where all classes are numbers their value.
fn identity(label: &str, numeric: bool) -> String {
    /// Beyond this, numbers that are not equal may have the same value.
    const EXACT: f64 = (1u64 << 53) as f64;
    match number(label).filter(|value| numeric && value.abs() < EXACT) {
        // No zero is below another.
        Some(value) => (value + 0.0).to_string(),
        None => label.trim().to_owned(),
    }
}

/// What a head is trained on, or measured by: of each row the place of its class among `classes`, or the number that its label is.
pub(crate) fn targets(task: Task, labels: &[String], classes: &[String]) -> Result<Vec<f64>> {
    let numeric = classes.iter().all(|class| number(class).is_some());
    let places: BTreeMap<String, usize> = (classes.iter().enumerate())
        .map(|(place, class)| (identity(class, numeric), place))
        .collect();
    ensure!(
        places.len() == classes.len(),
        "two classes of the model mean the same: {}",
        listed(classes)
    );
    let rows = labels.iter().enumerate();
    rows.map(|(row, label)| match task {
        Task::Classification => match places.get(&identity(label, numeric)) {
            Some(place) => Ok(*place as f64),
            None => bail!(
                "row {} has the label `{label}`, which is no class of the head; it was trained on: {}{}",
                row + 1,
                listed(classes),
                unnamed(classes)
            ),
        },
        Task::Regression => match number(label) {
            Some(value) => Ok(value),
            None => bail!(
                "row {} has the label `{label}`, which is no number: `task: classification` is for names",
                row + 1
            ),
        },
    })
    .collect()
}

/// The way out where transformers made the names of classes up.
fn unnamed(classes: &[String]) -> &'static str {
    match classes.iter().any(|class| class.starts_with("LABEL_")) {
        true => {
            ". Names such as LABEL_0 were nobody's choice: give others with `labels` of `load_classifier`"
        }
        false => "",
    }
}

/// Labels in a message: the first few.
fn listed(labels: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = labels
        .iter()
        .take(SHOWN)
        .map(|label| format!("`{label}`"))
        .collect();
    match labels.len() > SHOWN {
        true => format!("{} and {} more", shown.join(", "), labels.len() - SHOWN),
        false => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(list: &[&str]) -> Vec<String> {
        list.iter().map(|label| (*label).to_owned()).collect()
    }

    #[test]
    fn classes_are_in_the_order_of_their_values_or_names() {
        let found = classes(&labels(&["10", "9", "-1", "9"])).unwrap();
        assert_eq!(found, ["-1", "9", "10"]);
        let found = classes(&labels(&["pos", "10", "neg"])).unwrap();
        assert_eq!(found, ["10", "neg", "pos"]);
        assert!(classes(&labels(&["a", "a"])).is_err());
        assert!(classes(&[]).is_err());
    }

    #[test]
    fn labels_that_mean_one_thing_are_one_class() {
        let of = |list: &[&str]| classes(&labels(list)).unwrap();
        assert_eq!(of(&["1.0", "2", "1", " 1", "1e0", "02"]), ["1", "2"]);
        assert_eq!(of(&["1.50", "1.5", "-0", "0.0", "0"]), ["0", "1.5"]);
        assert_eq!(of(&["pos", "pos ", "\tneg", "neg"]), ["neg", "pos"]);
        // Where one of them is no number, the others are texts.
        assert_eq!(of(&["1", "1.0", "many"]), ["1", "1.0", "many"]);
        // Numbers that f64 can't tell apart stay apart.
        let large = ["9007199254740992", "9007199254740993"];
        assert_eq!(of(&large), large);
        assert!(classes(&labels(&["1", "1.0"])).is_err());
        let classes = of(&["1.0", "2.0", "3"]);
        assert_eq!(classes, ["1.0", "2.0", "3"]);
        let found = targets(
            Task::Classification,
            &labels(&["3.0", "1", " 2 ", "2e0"]),
            &classes,
        );
        assert_eq!(found.unwrap(), [2.0, 0.0, 1.0, 1.0]);
        assert!(targets(Task::Classification, &labels(&["4"]), &classes).is_err());
        assert!(targets(Task::Classification, &labels(&["one"]), &classes).is_err());
        let names = of(&["neg", "pos"]);
        let found = targets(Task::Classification, &labels(&[" pos", "neg"]), &names);
        assert_eq!(found.unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn targets_are_places_or_numbers() {
        let names = labels(&["neg", "pos"]);
        let found = targets(Task::Classification, &labels(&["pos", "neg"]), &names);
        assert_eq!(found.unwrap(), [1.0, 0.0]);
        let error = targets(Task::Classification, &labels(&["so"]), &names).unwrap_err();
        assert!(
            error.to_string().contains("row 1 has the label `so`"),
            "{error}"
        );
        let found = targets(Task::Regression, &labels(&["2.5", " -3"]), &[]);
        assert_eq!(found.unwrap(), [2.5, -3.0]);
        for wrong in ["so", "NaN", "inf", ""] {
            assert!(targets(Task::Regression, &labels(&[wrong]), &[]).is_err());
        }
    }
}

//! Labels of rows as what a head is trained on: places of classes, or numbers.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use data::{Dataset, Row, Tokens};
use engine::artifact::ArtifactView;
use engine::job::Job;
use ml::head::Task;

/// The most classes: the confusion matrix has a place for each pair of them.
const MOST: usize = 4096;

/// The labels of the rows of a port, in order.
pub(crate) fn of(job: &Job, port: &str) -> Result<Vec<String>> {
    let dataset = Dataset::open(job.input(port)?.file("rows.arrow")?)?;
    dataset
        .iter()
        .map(|row| match row? {
            Row::Labelled { label, .. } => Ok(label),
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

/// The classes that these labels name, in order: of their values where all are numbers, else of their text.
///
/// Errors where there are fewer than two.
pub(crate) fn classes(labels: &[String]) -> Result<Vec<String>> {
    let mut classes: Vec<String> = labels.to_vec();
    classes.sort();
    classes.dedup();
    let values: Option<Vec<f64>> = classes.iter().map(|label| number(label)).collect();
    if let Some(values) = values {
        let mut both: Vec<(f64, String)> = values.into_iter().zip(classes).collect();
        both.sort_by(|a, b| a.0.total_cmp(&b.0));
        classes = both.into_iter().map(|(_, label)| label).collect();
    }
    match classes.as_slice() {
        [] => bail!("there are no rows to train on"),
        [only] => bail!(
            "all rows have the label `{only}`: there is nothing to tell apart. Take more rows, or look at how the data was split"
        ),
        many if many.len() > MOST => bail!(
            "the rows have {} different labels, and at most {MOST} can be told apart: `task: regression` is for numbers; or look at what the column \
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

/// What a head is trained on, or measured by: of each row the place of its class among `classes`, or the number that its label is.
pub(crate) fn targets(task: Task, labels: &[String], classes: &[String]) -> Result<Vec<f64>> {
    let places: BTreeMap<&str, usize> = (classes.iter().enumerate())
        .map(|(place, class)| (class.as_str(), place))
        .collect();
    let rows = labels.iter().enumerate();
    rows.map(|(row, label)| match task {
        Task::Classification => match places.get(label.as_str()) {
            Some(place) => Ok(*place as f64),
            None => bail!(
                "row {} has the label `{label}`, which no row of the training has; there were: {}",
                row + 1,
                listed(classes)
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

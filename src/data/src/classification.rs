//! How well predictions agree with labels, and with numbers: scikit-learn's definitions (`sklearn.metrics` 1.9), in f64.
//!
//! A number that is not defined, such as the area under the ROC curve where all rows have one label, is the reason why, never NaN.

use anyhow::{Result, ensure};

/// A number, or the reason why there is none.
pub type Measured = std::result::Result<f64, String>;

/// What predictions of classes are worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Classification {
    /// Rows.
    pub rows: usize,
    /// The share of rows whose likeliest class is the true one (the first of several that are equally likely).
    pub accuracy: f64,
    /// The accuracy of always saying the most frequent label of these rows.
    pub majority: f64,
    /// Of two classes the F1 of the second, 2 tp / (2 tp + fp + fn); of more the mean over classes, as `f1_macro`.
    pub f1: Measured,
    /// The mean of F1 over the classes that are there, in truth or as predicted.
    pub f1_macro: f64,
    /// Matthews' correlation coefficient (for several classes: Gorodkin 2004), 0 where truth or predictions are all of one class.
    pub mcc: f64,
    /// The area under the ROC curve, by ranks; of more than two classes the mean over classes of each against the rest.
    pub auc: Measured,
    /// The mean of −log p(true class), in nats.
    pub loss: f64,
    /// How many rows of each true class (first index) were predicted to be of each class (second).
    pub confusion: Vec<Vec<u64>>,
}

impl Classification {
    /// Measures log-probabilities of the classes, a list for each row, against the true classes.
    ///
    /// Errors where there are no rows, lists are not all of one length of at least 2, a class is not among them, or a number is not finite.
    pub fn of(truth: &[usize], log_probabilities: &[Vec<f64>]) -> Result<Classification> {
        ensure!(!truth.is_empty(), "there are no rows to measure on");
        ensure!(
            truth.len() == log_probabilities.len(),
            "{} rows have {} predictions",
            truth.len(),
            log_probabilities.len()
        );
        let classes = log_probabilities[0].len();
        ensure!(
            classes > 1,
            "classes are two at least, and there is {classes}"
        );
        let mut confusion = vec![vec![0u64; classes]; classes];
        let mut loss = 0.0;
        for (row, (&class, scores)) in truth.iter().zip(log_probabilities).enumerate() {
            ensure!(
                scores.len() == classes && class < classes,
                "row {row} has the class {class} and {} predictions of {classes} classes",
                scores.len()
            );
            ensure!(
                scores.iter().all(|score| score.is_finite()),
                "the predictions of row {row} are not finite: the training diverged"
            );
            confusion[class][largest(scores)] += 1;
            loss -= scores[class];
        }
        let rows = truth.len();
        let right: u64 = (0..classes).map(|class| confusion[class][class]).sum();
        let most = confusion.iter().map(|row| row.iter().sum::<u64>()).max();
        let of_classes: Vec<Measured> = (0..classes).map(|class| f1(&confusion, class)).collect();
        let there: Vec<f64> = of_classes.iter().flatten().copied().collect();
        let f1_macro = there.iter().sum::<f64>() / there.len() as f64;
        Ok(Classification {
            rows,
            accuracy: right as f64 / rows as f64,
            majority: most.unwrap_or(0) as f64 / rows as f64,
            f1: match classes {
                2 => of_classes[1].clone(),
                _ => Ok(f1_macro),
            },
            f1_macro,
            mcc: mcc(&confusion),
            auc: area(truth, log_probabilities, classes),
            loss: loss / rows as f64,
            confusion,
        })
    }

    /// Its numbers by name; the confusion matrix is none.
    pub fn numbers(&self) -> Vec<(&'static str, Measured)> {
        vec![
            ("loss", Ok(self.loss)),
            ("accuracy", Ok(self.accuracy)),
            ("f1", self.f1.clone()),
            ("f1_macro", Ok(self.f1_macro)),
            ("mcc", Ok(self.mcc)),
            ("auc", self.auc.clone()),
            ("majority", Ok(self.majority)),
        ]
    }
}

/// What predictions of a number are worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Regression {
    /// Rows.
    pub rows: usize,
    /// The mean of the squared errors.
    pub mse: f64,
    /// The mean of the absolute errors.
    pub mae: f64,
    /// The coefficient of determination, 1 − Σ (y − ŷ)² / Σ (y − ȳ)².
    pub r2: Measured,
    /// Pearson's correlation coefficient.
    pub pearson: Measured,
    /// Spearman's: that of the ranks, where equal numbers share the mean of their ranks.
    pub spearman: Measured,
}

impl Regression {
    /// Measures predictions against the true numbers.
    ///
    /// Errors where there are no rows, not as many predictions, or a number is not finite.
    pub fn of(truth: &[f64], predicted: &[f64]) -> Result<Regression> {
        ensure!(!truth.is_empty(), "there are no rows to measure on");
        ensure!(
            truth.len() == predicted.len(),
            "{} rows have {} predictions",
            truth.len(),
            predicted.len()
        );
        let finite = |values: &[f64]| values.iter().all(|value| value.is_finite());
        ensure!(finite(truth), "a number to predict is not finite");
        ensure!(
            finite(predicted),
            "the predictions are not finite: the training diverged"
        );
        let rows = truth.len() as f64;
        let errors = || truth.iter().zip(predicted).map(|(y, p)| y - p);
        let squares: f64 = errors().map(|error| error * error).sum();
        let center = mean(truth);
        let spread: f64 = truth.iter().map(|y| (y - center).powi(2)).sum();
        let r2 = match constant(truth) {
            true => Err("the rows all have one number, which leaves nothing to explain".to_owned()),
            false => Ok(1.0 - squares / spread),
        };
        let (true_ranks, ranks) = (average_ranks(truth), average_ranks(predicted));
        Ok(Regression {
            rows: truth.len(),
            mse: squares / rows,
            mae: errors().map(f64::abs).sum::<f64>() / rows,
            r2,
            pearson: pearson(truth, predicted),
            spearman: pearson(&true_ranks, &ranks),
        })
    }

    /// Its numbers by name. The loss is the mean squared error.
    pub fn numbers(&self) -> Vec<(&'static str, Measured)> {
        vec![
            ("loss", Ok(self.mse)),
            ("mse", Ok(self.mse)),
            ("mae", Ok(self.mae)),
            ("r2", self.r2.clone()),
            ("pearson", self.pearson.clone()),
            ("spearman", self.spearman.clone()),
        ]
    }
}

/// The place of the largest number, the first of equal ones.
pub fn largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

/// The ranks of values from 1 on, in their order; equal ones share the mean of their ranks.
pub fn average_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let value = values[order[start]];
        let alike = order[start..].iter();
        // −0 and 0 are equal, though they are ordered.
        let end = start + alike.take_while(|at| values[**at] == value).count().max(1);
        let rank = (start + 1 + end) as f64 / 2.0;
        order[start..end].iter().for_each(|at| ranks[*at] = rank);
        start = end;
    }
    ranks
}

/// The area under the ROC curve: how likely a row that is has a higher score than one that is not, where ties count half (Mann and Whitney's
/// U over the number of pairs).
pub fn roc_auc(is: &[bool], scores: &[f64]) -> Measured {
    let those = is.iter().filter(|is| **is).count() as f64;
    let others = is.len() as f64 - those;
    if those == 0.0 || others == 0.0 {
        return Err("all rows are of one kind, so that no order can be right or wrong".to_owned());
    }
    let ranks = average_ranks(scores);
    let own = ranks.iter().zip(is).filter(|(_, is)| **is);
    let sum: f64 = own.map(|(rank, _)| rank).sum();
    Ok((sum - those * (those + 1.0) / 2.0) / (those * others))
}

/// That of two classes by the odds of the second; of more the mean over classes, each of which must be there.
fn area(truth: &[usize], log_probabilities: &[Vec<f64>], classes: usize) -> Measured {
    let against_rest = |class: usize| {
        let is: Vec<bool> = truth.iter().map(|own| *own == class).collect();
        let scores: Vec<f64> = match classes {
            // The probability of one of two says less than its odds where it is near 1.
            2 => log_probabilities
                .iter()
                .map(|row| row[class] - row[1 - class])
                .collect(),
            _ => log_probabilities.iter().map(|row| row[class]).collect(),
        };
        roc_auc(&is, &scores)
    };
    if classes == 2 {
        return against_rest(1).map_err(|_| {
            "all rows have one label, so that no order of them can be right or wrong".to_owned()
        });
    }
    let mut sum = 0.0;
    for class in 0..classes {
        sum += against_rest(class).map_err(|_| match truth.contains(&class) {
            true => "all rows have one label, so that no order of them can be right or wrong".to_owned(),
            false => format!("no row has the label at place {class}, so that its order against the rest is unknown"),
        })?;
    }
    Ok(sum / classes as f64)
}

/// F1 of a class. Where no row is of it and none was said to be, there is none.
fn f1(confusion: &[Vec<u64>], class: usize) -> Measured {
    let hits = confusion[class][class];
    let there: u64 = confusion[class].iter().sum();
    let said: u64 = confusion.iter().map(|row| row[class]).sum();
    match there + said {
        0 => Err(format!(
            "no row has the label at place {class}, and none was predicted to have it"
        )),
        all => Ok(2.0 * hits as f64 / all as f64),
    }
}

/// Matthews' correlation coefficient from the counts.
fn mcc(confusion: &[Vec<u64>]) -> f64 {
    let classes = confusion.len();
    let there: Vec<f64> = confusion
        .iter()
        .map(|row| row.iter().sum::<u64>() as f64)
        .collect();
    let said: Vec<f64> = (0..classes)
        .map(|class| confusion.iter().map(|row| row[class]).sum::<u64>() as f64)
        .collect();
    let all: f64 = there.iter().sum();
    let right: f64 = (0..classes)
        .map(|class| confusion[class][class] as f64)
        .sum();
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let both = right * all - product(&there, &said);
    let of_truth = all * all - product(&there, &there);
    let of_said = all * all - product(&said, &said);
    if of_truth <= 0.0 || of_said <= 0.0 {
        return 0.0;
    }
    both / (of_truth.sqrt() * of_said.sqrt())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn constant(values: &[f64]) -> bool {
    values.iter().all(|value| *value == values[0])
}

fn pearson(a: &[f64], b: &[f64]) -> Measured {
    for (values, whose) in [(a, "rows"), (b, "predictions")] {
        if constant(values) {
            return Err(format!(
                "the {whose} all have one number, which goes along with nothing"
            ));
        }
    }
    let (center_a, center_b) = (mean(a), mean(b));
    let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - center_a, y - center_b);
        both += x * y;
        of_a += x * x;
        of_b += y * y;
    }
    let scale = of_a.sqrt() * of_b.sqrt();
    match scale > 0.0 {
        true => Ok((both / scale).clamp(-1.0, 1.0)),
        false => Err("the numbers differ by less than can be told apart".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_numbers_share_their_ranks() {
        assert_eq!(
            average_ranks(&[3.0, 1.0, 3.0, -0.0, 0.0]),
            [4.5, 3.0, 4.5, 1.5, 1.5]
        );
        assert_eq!(largest(&[0.0, 2.0, 2.0]), 1);
    }

    #[test]
    fn what_is_not_defined_has_a_reason() {
        let sure = |class: usize| match class {
            0 => vec![0.9f64.ln(), 0.1f64.ln()],
            _ => vec![0.1f64.ln(), 0.9f64.ln()],
        };
        let found = Classification::of(&[0, 0], &[sure(0), sure(0)]).unwrap();
        assert_eq!((found.accuracy, found.majority, found.mcc), (1.0, 1.0, 0.0));
        assert!(found.auc.is_err() && found.f1.is_err());
        assert_eq!(found.f1_macro, 1.0);
        let flat = Regression::of(&[2.0, 2.0], &[1.0, 3.0]).unwrap();
        assert!(flat.r2.is_err() && flat.pearson.is_err() && flat.spearman.is_err());
        assert_eq!((flat.mse, flat.mae), (1.0, 1.0));
        for wrong in [f64::NAN, f64::INFINITY] {
            assert!(Regression::of(&[1.0], &[wrong]).is_err());
            assert!(Classification::of(&[0], &[vec![wrong, 0.0]]).is_err());
        }
        assert!(Classification::of(&[], &[]).is_err());
        assert!(Classification::of(&[2], &[sure(0)]).is_err());
    }
}

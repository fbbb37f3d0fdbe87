//! Splitting a dataset into a train and a test side by a seed.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::random::Stream;
use crate::row::Row;
use crate::store::{Dataset, DatasetSummary, DatasetWriter};

/// How much goes to the test side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Portion {
    /// A share of the rows between 0 and 1, rounded to the nearest whole number of rows.
    Fraction(f64),
    /// A number of rows.
    Count(u64),
}

/// Which rows go where. Both lists rise, so each side keeps the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Rows of the train side.
    pub train: Vec<usize>,
    /// Rows of the test side.
    pub test: Vec<usize>,
}

/// What a split made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitReport {
    /// The train side.
    pub train: DatasetSummary,
    /// The test side.
    pub test: DatasetSummary,
    /// Rows of the test side whose exact texts are also on the train side.
    pub test_rows_in_train: u64,
}

/// Chooses the test rows among `rows`: the first ones of a permutation from the random stream `split` of `seed`.
///
/// Depends on nothing but its arguments. Errors when a side would be empty.
pub fn split(rows: usize, test: Portion, seed: u64) -> Result<Split> {
    let count = match test {
        Portion::Fraction(share) if share > 0.0 && share < 1.0 => {
            (share * rows as f64).round() as usize
        }
        Portion::Fraction(share) => bail!(
            "test: {share} is not a fraction between 0 and 1 (for a number of rows, give a count)"
        ),
        Portion::Count(count) => usize::try_from(count).unwrap_or(usize::MAX),
    };
    let wanted = match test {
        Portion::Fraction(share) => format!("a share of {share} of {rows} rows is {count} rows"),
        Portion::Count(_) => format!("{count} of {rows} rows"),
    };
    if count == 0 {
        bail!("the test side would be empty: {wanted}; give a larger `test`");
    }
    if count >= rows {
        bail!("the train side would be empty: {wanted}; give a smaller `test`");
    }
    let order = Stream::new(seed, "split").permutation(rows);
    let mut in_test = vec![false; rows];
    for row in &order[..count] {
        in_test[*row] = true;
    }
    let (test, train) = (0..rows).partition(|row| in_test[*row]);
    Ok(Split { train, test })
}

/// Splits a dataset into two files of the same layout.
pub fn split_dataset(
    dataset: &Dataset,
    test: Portion,
    seed: u64,
    train_path: &Path,
    test_path: &Path,
) -> Result<SplitReport> {
    let sides = split(dataset.len(), test, seed)?;
    let mut writer = DatasetWriter::create(train_path, dataset.layout())?;
    let mut seen = HashSet::with_capacity(sides.train.len());
    for index in &sides.train {
        let row = dataset.row(*index)?;
        seen.insert(fingerprint(&row));
        writer.push(&row)?;
    }
    let train = writer.finish()?;
    let mut writer = DatasetWriter::create(test_path, dataset.layout())?;
    let mut test_rows_in_train = 0;
    for index in &sides.test {
        let row = dataset.row(*index)?;
        test_rows_in_train += u64::from(seen.contains(&fingerprint(&row)));
        writer.push(&row)?;
    }
    Ok(SplitReport {
        train,
        test: writer.finish()?,
        test_rows_in_train,
    })
}

/// Sixteen bytes of the digest of a row's values, enough to tell rows apart.
fn fingerprint(row: &Row) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    // JSON keeps neighbouring texts apart; writing to a hasher can't fail.
    let _ = serde_json::to_writer(&mut hasher, row);
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

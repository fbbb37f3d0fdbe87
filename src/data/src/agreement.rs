//! How far people agree who put the same items into categories: raw agreement, Cohen's kappa, Fleiss' kappa.
//!
//! A kappa is (observed − expected) / (1 − expected) agreement: 1 where all agree, 0 where they agree as often as by chance. Where
//! every category ever given is the same one, chance agrees always, and kappa is 0 / 0: undefined here, as it is `nan` in
//! scikit-learn and statsmodels. So it is with no item.

use anyhow::{Result, ensure};

/// The share of pairs of annotators that put an item into the same category, averaged over items: for two annotators, how many
/// items they agree about. `ratings[annotator][item]` is a category.
///
/// Undefined (`None`) for fewer than two annotators and for no item. Errors when somebody has rated more items than another.
pub fn raw_agreement(ratings: &[Vec<usize>]) -> Result<Option<f64>> {
    let items = items_of(ratings)?;
    let pairs = (ratings.len() * ratings.len().saturating_sub(1) / 2 * items) as f64;
    if pairs == 0.0 {
        return Ok(None);
    }
    let mut equal = 0usize;
    for (place, first) in ratings.iter().enumerate() {
        for second in &ratings[place + 1..] {
            equal += first.iter().zip(second).filter(|(a, b)| a == b).count();
        }
    }
    Ok(Some(equal as f64 / pairs))
}

/// The kappa of so many annotators: Cohen's for two, Fleiss' for more.
///
/// Undefined (`None`) for fewer than two annotators, for no item, and where every rating is of the same category. Errors when
/// somebody has rated more items than another.
pub fn kappa(ratings: &[Vec<usize>]) -> Result<Option<f64>> {
    match ratings {
        [first, second] => cohen_kappa(first, second),
        _ => fleiss_kappa(ratings),
    }
}

/// Cohen's kappa of two annotators, not weighted (Cohen 1960, *A coefficient of agreement for nominal scales*; scikit-learn's
/// `cohen_kappa_score`). Chance puts items into categories as often as each of the two did: p_e = Σ_k n_1k n_2k / n².
///
/// Undefined (`None`) and in error as [`kappa`].
pub fn cohen_kappa(first: &[usize], second: &[usize]) -> Result<Option<f64>> {
    ensure!(
        first.len() == second.len(),
        "the two have rated {} and {} items: kappa takes items that both have rated",
        first.len(),
        second.len()
    );
    let items = first.len() as f64;
    let equal = first.iter().zip(second).filter(|(a, b)| a == b).count() as f64;
    let count = |of: &[usize], category: usize| of.iter().filter(|c| **c == category).count();
    let expected: f64 = categories([first, second].into_iter())
        .map(|category| (count(first, category) * count(second, category)) as f64)
        .sum();
    // In counts of n², which are whole: chance agrees always only when it does so exactly.
    Ok(ratio(equal * items - expected, items * items - expected))
}

/// Fleiss' kappa of several annotators (Fleiss 1971, *Measuring nominal scale agreement among many raters*; statsmodels'
/// `fleiss_kappa`). Chance puts an item into a category as often as all of them together did: p_e = Σ_k (n_k / (n · annotators))².
///
/// Undefined (`None`) and in error as [`kappa`].
pub fn fleiss_kappa(ratings: &[Vec<usize>]) -> Result<Option<f64>> {
    let items = items_of(ratings)? as f64;
    let Some(observed) = raw_agreement(ratings)? else {
        return Ok(None);
    };
    let all = items * ratings.len() as f64;
    let squares: f64 = categories(ratings.iter().map(Vec::as_slice))
        .map(|category| {
            let own = ratings.iter().flatten().filter(|c| **c == category);
            (own.count() as f64).powi(2)
        })
        .sum();
    Ok(ratio(observed * all * all - squares, all * all - squares))
}

/// How many items each has rated.
fn items_of(ratings: &[Vec<usize>]) -> Result<usize> {
    let items = ratings.first().map_or(0, Vec::len);
    ensure!(
        ratings.iter().all(|own| own.len() == items),
        "the annotators have not rated the same items"
    );
    Ok(items)
}

/// Every category that was given, once.
fn categories<'a>(ratings: impl Iterator<Item = &'a [usize]>) -> impl Iterator<Item = usize> {
    let all: std::collections::BTreeSet<usize> = ratings.flatten().copied().collect();
    all.into_iter()
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_chance_explains_whole_is_undefined() {
        assert_eq!(cohen_kappa(&[], &[]).unwrap(), None);
        assert_eq!(cohen_kappa(&[2, 2], &[2, 2]).unwrap(), None);
        assert_eq!(kappa(&[]).unwrap(), None);
        assert_eq!(kappa(&[vec![0, 1]]).unwrap(), None);
        assert_eq!(fleiss_kappa(&vec![vec![1; 4]; 3]).unwrap(), None);
        assert_eq!(raw_agreement(&[vec![], vec![]]).unwrap(), None);
        assert_eq!(raw_agreement(&[vec![1]]).unwrap(), None);
    }

    #[test]
    fn all_who_agree_about_different_categories_have_a_kappa_of_one() {
        let own = vec![0, 1, 2, 0];
        assert_eq!(cohen_kappa(&own, &own).unwrap(), Some(1.0));
        assert_eq!(kappa(&vec![own.clone(); 5]).unwrap(), Some(1.0));
        assert_eq!(raw_agreement(&vec![own; 5]).unwrap(), Some(1.0));
    }

    #[test]
    fn everybody_rates_every_item() {
        assert!(cohen_kappa(&[0], &[]).is_err());
        assert!(kappa(&[vec![0], vec![0], vec![]]).is_err());
    }
}

//! What follows from the answers: scores of completions, counts, agreement, and how often one set of samples wins over another.

use std::cmp::Ordering;

use anyhow::Result;

use super::{Answer, Comparison, Comparisons};
use crate::agreement;

/// Answers of some annotators to some comparisons.
pub struct Tally<'a> {
    comparisons: &'a Comparisons,
    /// `[annotator][comparison]`; none where it is still open.
    answers: Vec<Vec<Option<&'a Answer>>>,
}

/// What one annotator did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Comparisons that were answered, without those that were skipped.
    pub answered: usize,
    /// Comparisons that were skipped.
    pub skipped: usize,
    /// Pairs of completions that were called equal.
    pub ties: usize,
}

/// How far the annotators agree about pairs of completions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Pairs about which everybody said something.
    pub pairs: usize,
    /// The share of pairs of annotators that say the same of a pair of completions; see [`agreement::raw_agreement`].
    pub raw: Option<f64>,
    /// Cohen's or Fleiss' kappa over the categories *the first is better*, *the second*, *equal*; see [`agreement::kappa`].
    pub kappa: Option<f64>,
}

/// Comparisons in half points, so that sums are exact.
#[derive(Clone, Copy, Debug, Default)]
struct Points {
    won: u64,
    compared: u64,
}

impl Points {
    /// Two points for the better one, one for each of two equal ones.
    fn add(&mut self, outcome: Ordering) {
        self.won += match outcome {
            Ordering::Less => 2,
            Ordering::Equal => 1,
            Ordering::Greater => 0,
        };
        self.compared += 1;
    }

    fn share(self) -> Option<f64> {
        (self.compared > 0).then(|| self.won as f64 / (2 * self.compared) as f64)
    }
}

impl<'a> Tally<'a> {
    /// `answers[annotator][comparison]`, in the order of the comparisons; an answer fits its comparison ([`Answer::fits`]).
    pub fn new(comparisons: &'a Comparisons, answers: Vec<Vec<Option<&'a Answer>>>) -> Self {
        Self {
            comparisons,
            answers,
        }
    }

    /// The score of each completion of each group: the share of its comparisons that it won, ties counting half, over all annotators.
    /// In an order of n completions each is compared with n − 1 others, so that its score is the mean of its normalized ranks: 1 for
    /// the best, 0 for the worst. None where a completion was never compared.
    pub fn scores(&self) -> Vec<Vec<Option<f64>>> {
        let groups = &self.comparisons.groups;
        let mut points: Vec<Vec<Points>> = groups
            .iter()
            .map(|group| vec![Points::default(); group.all.len()])
            .collect();
        for own in &self.answers {
            for (comparison, ranks) in self.ranked(own) {
                for (i, j) in pairs(ranks.len()) {
                    let outcome = ranks[i].cmp(&ranks[j]);
                    let group = &mut points[comparison.group];
                    group[comparison.members[i]].add(outcome);
                    group[comparison.members[j]].add(outcome.reverse());
                }
            }
        }
        let shares = |group: Vec<Points>| group.into_iter().map(Points::share).collect();
        points.into_iter().map(shares).collect()
    }

    /// What each annotator did.
    pub fn counts(&self) -> Vec<Counts> {
        let of = |own: &Vec<Option<&Answer>>| {
            let mut counts = Counts::default();
            for answer in own.iter().flatten() {
                match answer {
                    Answer::Skipped => counts.skipped += 1,
                    Answer::Ranked(ranks) => {
                        counts.answered += 1;
                        counts.ties += pairs(ranks.len())
                            .filter(|(i, j)| ranks[*i] == ranks[*j])
                            .count();
                    }
                }
            }
            counts
        };
        self.answers.iter().map(of).collect()
    }

    /// How far the annotators agree, over the comparisons that all of them have answered and nobody has skipped.
    pub fn agreement(&self) -> Result<Agreement> {
        let mut ratings = vec![Vec::new(); self.answers.len()];
        for place in 0..self.comparisons.all.len() {
            let ranked = |own: &Vec<Option<&'a Answer>>| match own.get(place)? {
                Some(Answer::Ranked(ranks)) => Some(ranks.as_slice()),
                _ => None,
            };
            let all: Option<Vec<&[usize]>> = self.answers.iter().map(ranked).collect();
            for (own, ranks) in ratings.iter_mut().zip(all.unwrap_or_default()) {
                own.extend(
                    pairs(ranks.len()).map(|(i, j)| match ranks[i].cmp(&ranks[j]) {
                        Ordering::Less => 0,
                        Ordering::Greater => 1,
                        Ordering::Equal => 2,
                    }),
                );
            }
        }
        Ok(Agreement {
            pairs: ratings.first().map_or(0, Vec::len),
            raw: agreement::raw_agreement(&ratings)?,
            kappa: agreement::kappa(&ratings)?,
        })
    }

    /// How often a completion of the dataset `own` (by its place among the samples) is better than one of the dataset `other` to the
    /// same prompt: over all such pairs and annotators, ties counting half. Equal texts are a tie that nobody is asked about. None
    /// where nothing was compared.
    pub fn win_rate(&self, own: usize, other: usize) -> Option<f64> {
        let mut points = Points::default();
        for group in &self.comparisons.groups {
            for candidate in &group.all {
                let times = times(&candidate.from, own) * times(&candidate.from, other);
                for _ in 0..times * self.answers.len() {
                    points.add(Ordering::Equal);
                }
            }
        }
        for answers in &self.answers {
            for (comparison, ranks) in self.ranked(answers) {
                let group = &self.comparisons.groups[comparison.group];
                let from = |place: usize| &group.all[comparison.members[place]].from;
                for (i, j) in pairs(ranks.len()) {
                    let outcome = ranks[i].cmp(&ranks[j]);
                    for _ in 0..times(from(i), own) * times(from(j), other) {
                        points.add(outcome);
                    }
                    for _ in 0..times(from(j), own) * times(from(i), other) {
                        points.add(outcome.reverse());
                    }
                }
            }
        }
        points.share()
    }

    /// The comparisons that an annotator has not skipped, with the ranks.
    fn ranked(
        &self,
        own: &[Option<&'a Answer>],
    ) -> impl Iterator<Item = (&'a Comparison, &'a [usize])> {
        let all = self.comparisons.all.iter().zip(own.iter().copied());
        all.filter_map(|(comparison, answer)| match answer? {
            Answer::Ranked(ranks) => Some((comparison, ranks.as_slice())),
            Answer::Skipped => None,
        })
    }
}

/// Every two of so many.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |i| (i + 1..count).map(move |j| (i, j)))
}

fn times(from: &[usize], dataset: usize) -> usize {
    from.iter().filter(|from| **from == dataset).count()
}

#[cfg(test)]
mod tests {
    use super::super::tests::group;
    use super::super::{Ask, Comparisons};
    use super::*;
    use crate::candidates::Candidates;

    /// The answer of somebody who likes the completions of `order` in that order; those in one word are equal.
    fn likes(comparisons: &Comparisons, place: usize, order: &[&[&str]]) -> Answer {
        let comparison = &comparisons.all[place];
        let rank = |text: &str| {
            order
                .iter()
                .position(|equal| equal.contains(&text))
                .unwrap()
        };
        let group = &comparisons.groups[comparison.group];
        let given: Vec<usize> = comparison
            .members
            .iter()
            .map(|member| rank(&group.all[*member].text))
            .collect();
        let mut steps = given.clone();
        steps.sort_unstable();
        steps.dedup();
        let ranks = given
            .iter()
            .map(|g| 1 + steps.iter().position(|s| s == g).unwrap())
            .collect();
        Answer::Ranked(ranks)
    }

    fn compared(groups: Vec<Candidates>, ask: Ask) -> Comparisons {
        Comparisons::new(groups, ask, "?", None, 3).unwrap()
    }

    #[test]
    fn a_score_is_the_share_of_comparisons_won() {
        let comparisons = compared(vec![group("p", &["a", "b", "c"])], Ask::Pairs);
        // Anna: a > b > c. Ben: a = b, a > c, and he skips b against c.
        let anna: Vec<Answer> = (0..3)
            .map(|i| likes(&comparisons, i, &[&["a"], &["b"], &["c"]]))
            .collect();
        let mut ben: Vec<Answer> = (0..3)
            .map(|i| likes(&comparisons, i, &[&["a", "b"], &["c"]]))
            .collect();
        ben[2] = Answer::Skipped;
        let all = |own: &'static [Answer]| own.iter().map(Some).collect();
        let tally = Tally::new(&comparisons, vec![all(anna.leak()), all(ben.leak())]);
        // a: 2 of 2 and 1.5 of 2; b: 1 of 2 and 0.5 of 1; c: 0 of 2 and 0 of 1.
        let scores = [Some(3.5 / 4.0), Some(1.5 / 3.0), Some(0.0)];
        assert_eq!(tally.scores(), [scores.to_vec()]);
        let counts = tally.counts();
        let expected = |answered, skipped, ties| Counts {
            answered,
            skipped,
            ties,
        };
        assert_eq!(counts, [expected(3, 0, 0), expected(2, 1, 1)]);
        // Of the two pairs that both answered they agree about a and c.
        let agreement = tally.agreement().unwrap();
        assert_eq!((agreement.pairs, agreement.raw), (2, Some(0.5)));
    }

    #[test]
    fn a_ranking_gives_normalized_ranks() {
        let comparisons = compared(
            vec![group("p", &["a", "b", "c"]), group("q", &["d", "e"])],
            Ask::Rankings,
        );
        let answers = [
            likes(&comparisons, 0, &[&["b"], &["a", "c"]]),
            likes(&comparisons, 1, &[&["e"], &["d"]]),
        ];
        let tally = Tally::new(&comparisons, vec![answers.iter().map(Some).collect()]);
        let scores = tally.scores();
        assert_eq!(scores[0], [Some(0.25), Some(1.0), Some(0.25)]);
        assert_eq!(scores[1], [Some(0.0), Some(1.0)]);
        // One annotator agrees with nobody.
        assert_eq!(tally.agreement().unwrap().kappa, None);
    }

    #[test]
    fn what_was_never_compared_has_no_score() {
        let comparisons = compared(
            vec![group("p", &["a", "b"]), group("q", &["c", "d"])],
            Ask::Pairs,
        );
        let answer = likes(&comparisons, 0, &[&["b"], &["a"]]);
        let tally = Tally::new(
            &comparisons,
            vec![vec![Some(&answer), Some(&Answer::Skipped)]],
        );
        assert_eq!(
            tally.scores(),
            [vec![Some(0.0), Some(1.0)], vec![None, None]]
        );
        let open = Tally::new(&comparisons, vec![vec![None, None]]);
        assert_eq!(open.win_rate(0, 1), None);
        assert_eq!(open.counts(), [Counts::default()]);
    }

    #[test]
    fn a_model_wins_over_another_where_its_completion_is_better() {
        // Two models, two samples each: `a` and `b` from the first, `b` and `c` from the second.
        let mut both = group("p", &["a", "b", "c"]);
        both.all[0].from = vec![0];
        both.all[1].from = vec![0, 1];
        both.all[2].from = vec![1];
        let comparisons = compared(vec![both], Ask::Pairs);
        let answers: Vec<Answer> = (0..3)
            .map(|i| likes(&comparisons, i, &[&["c"], &["b"], &["a"]]))
            .collect();
        let tally = Tally::new(&comparisons, vec![answers.iter().map(Some).collect()]);
        // The second against the first: b > a, b = b, c > a, c > b.
        assert_eq!(tally.win_rate(1, 0), Some(3.5 / 4.0));
        assert_eq!(tally.win_rate(0, 1), Some(0.5 / 4.0));
        assert_eq!(tally.win_rate(0, 2), None);
    }
}

//! Comparisons for people: which completions are shown beside each other, in which order, and under which name.
//!
//! What may be answered is in [`answer`], what follows from the answers in [`tally`].

pub mod answer;
pub mod tally;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::candidates::Candidates;
use crate::random::Stream;

pub use answer::Answer;
pub use tally::Tally;

/// What is made of the completions of one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Every two of them are compared.
    Pairs,
    /// All of them are put into an order at once.
    Rankings,
}

/// Completions to be compared at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// 16 hexadecimal digits: a digest of the question, the prompt's place and the texts, whatever the order in which they are shown.
    pub id: String,
    /// The group, by its place.
    pub group: usize,
    /// The completions by their places in the group, in an order that was drawn: which of two is the first tells nothing of where
    /// they came from, so that categories (first, second, equal) may be counted.
    pub members: Vec<usize>,
}

/// Every comparison of some samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparisons {
    /// The completions, by prompt.
    pub groups: Vec<Candidates>,
    /// Group by group.
    pub all: Vec<Comparison>,
    seed: u64,
}

/// A comparison as one person sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which one, by its place.
    pub comparison: usize,
    /// The completions in the order shown, by their places among the members.
    pub order: Vec<usize>,
}

impl Comparisons {
    /// The comparisons of the first `limit` groups (all of them without a limit). The order of the members is drawn from the stream
    /// `sides` of `seed`, comparison by comparison: with a higher limit the first ones stay as they are.
    ///
    /// Errors when no group has two different completions.
    pub fn new(
        groups: Vec<Candidates>,
        ask: Ask,
        question: &str,
        limit: Option<usize>,
        seed: u64,
    ) -> Result<Comparisons> {
        let mut groups = groups;
        groups.truncate(limit.unwrap_or(usize::MAX));
        let mut sides = Stream::new(seed, "sides");
        let mut all = Vec::new();
        for (place, group) in groups.iter().enumerate() {
            let count = group.all.len();
            let together: Vec<Vec<usize>> = match ask {
                _ if count < 2 => Vec::new(),
                Ask::Rankings => vec![(0..count).collect()],
                Ask::Pairs => (0..count)
                    .flat_map(|i| (i + 1..count).map(move |j| vec![i, j]))
                    .collect(),
            };
            for mut members in together {
                let texts: Vec<&str> = members
                    .iter()
                    .map(|m| group.all[*m].text.as_str())
                    .collect();
                let word = match ask {
                    Ask::Pairs => "pairs",
                    Ask::Rankings => "rankings",
                };
                let named = json!([word, question, place, group.prompt, texts]);
                let digest = blake3::hash(named.to_string().as_bytes());
                sides.shuffle(&mut members);
                all.push(Comparison {
                    id: digest.to_hex()[..16].to_owned(),
                    group: place,
                    members,
                });
            }
        }
        ensure!(
            !all.is_empty(),
            "there is nothing to compare: none of {} prompts has two different completions; sample more of each prompt, or several models",
            groups.len()
        );
        Ok(Comparisons { groups, all, seed })
    }

    /// All comparisons as `annotator` sees them. Everybody has an order of their own, drawn from the streams `items NAME` and `sides
    /// NAME`: a habit of taking the left one does not look like agreement then.
    pub fn shown_to(&self, annotator: &str) -> Vec<Shown> {
        let mut sides = Stream::new(self.seed, &format!("sides {annotator}"));
        let orders: Vec<Vec<usize>> = self
            .all
            .iter()
            .map(|comparison| sides.permutation(comparison.members.len()))
            .collect();
        let items = Stream::new(self.seed, &format!("items {annotator}")).permutation(orders.len());
        items
            .into_iter()
            .map(|comparison| Shown {
                comparison,
                order: orders[comparison].clone(),
            })
            .collect()
    }

    /// The texts of a comparison in the order shown.
    pub fn texts(&self, shown: &Shown) -> Vec<&str> {
        let comparison = &self.all[shown.comparison];
        let group = &self.groups[comparison.group];
        let text = |place: &usize| group.all[comparison.members[*place]].text.as_str();
        shown.order.iter().map(text).collect()
    }

    /// The place of the comparison called `id`.
    pub fn find(&self, id: &str) -> Option<usize> {
        self.all.iter().position(|comparison| comparison.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidates::Candidate;
    use crate::layout::Prompt;

    pub(super) fn group(prompt: &str, texts: &[&str]) -> Candidates {
        Candidates {
            prompt: Prompt::Text(prompt.to_owned()),
            all: texts
                .iter()
                .map(|text| Candidate {
                    text: (*text).to_owned(),
                    score: None,
                    from: vec![0],
                })
                .collect(),
        }
    }

    fn groups(count: usize) -> Vec<Candidates> {
        (0..count)
            .map(|i| group(&format!("p{i}"), &["a", "b", "c"]))
            .collect()
    }

    #[test]
    fn pairs_are_all_pairs_and_a_ranking_is_one_of_all() {
        let mut some = groups(2);
        some.insert(1, group("alone", &["x"]));
        let of = |ask| Comparisons::new(some.clone(), ask, "?", None, 17).unwrap();
        let pairs = of(Ask::Pairs);
        let mut members: Vec<(usize, Vec<usize>)> = pairs
            .all
            .iter()
            .map(|c| {
                let mut members = c.members.clone();
                members.sort_unstable();
                (c.group, members)
            })
            .collect();
        members.dedup();
        let expected = |g| [(g, vec![0, 1]), (g, vec![0, 2]), (g, vec![1, 2])];
        assert_eq!(members, [expected(0), expected(2)].concat());
        let rankings = of(Ask::Rankings);
        assert_eq!(rankings.all.len(), 2);
        assert_eq!(rankings.all[1].members.len(), 3);
    }

    #[test]
    fn a_higher_limit_keeps_names_and_sides_and_another_seed_keeps_names() {
        let of = |limit, seed, question| {
            Comparisons::new(groups(40), Ask::Pairs, question, limit, seed).unwrap()
        };
        let (all, few) = (of(None, 17, "?"), of(Some(5), 17, "?"));
        assert_eq!(few.all, all.all[..15]);
        assert_eq!(few.groups.len(), 5);
        let ids = |c: &Comparisons| c.all.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
        let other = of(None, 18, "?");
        assert_eq!(ids(&other), ids(&all));
        assert_ne!(other.all, all.all);
        assert!(!ids(&all).contains(&of(Some(1), 17, "Which?").all[0].id));
        let mut distinct = ids(&all);
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 120);
        assert_eq!(all.find(&all.all[7].id), Some(7));
    }

    #[test]
    fn people_see_every_comparison_once_in_orders_of_their_own() {
        let all = Comparisons::new(groups(40), Ask::Pairs, "?", None, 17).unwrap();
        let (anna, ben) = (all.shown_to("anna"), all.shown_to("ben"));
        assert_eq!(all.shown_to("anna"), anna);
        for shown in [&anna, &ben] {
            let mut places: Vec<usize> = shown.iter().map(|s| s.comparison).collect();
            assert_ne!(places, (0..120).collect::<Vec<_>>());
            places.sort_unstable();
            assert_eq!(places, (0..120).collect::<Vec<_>>());
            // Of 120 fair coins, from 40 to 80 show heads but once in ten thousand times.
            let turned = shown.iter().filter(|s| s.order == [1, 0]).count();
            assert!((40..=80).contains(&turned), "{turned}");
        }
        assert_ne!(anna, ben);
        let first = &anna[0];
        let comparison = &all.all[first.comparison];
        let texts = all.texts(first);
        for (text, place) in texts.iter().zip(&first.order) {
            let candidate = &all.groups[comparison.group].all[comparison.members[*place]];
            assert_eq!(*text, candidate.text);
        }
    }

    #[test]
    fn nothing_to_compare_is_an_error() {
        let alone = vec![group("p", &["x"]), group("q", &["y"])];
        let error = Comparisons::new(alone, Ask::Pairs, "?", None, 1).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("none of 2 prompts has two different completions"),
            "{error}"
        );
    }
}

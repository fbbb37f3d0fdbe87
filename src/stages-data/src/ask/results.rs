//! From verdicts to scores and rates.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use data::candidates::Candidates;
use data::judging::Verdict;
use engine::digest::Digest;
use serde_json::{Map, Value, json};

use super::questions::Pair;

/// What each completion, and each pair, came to.
pub(super) struct Results {
    /// By group and completion; none where it was not compared.
    pub scores: Vec<Vec<Option<f64>>>,
    /// What the judge says as a whole: name → number.
    pub numbers: Map<String, Value>,
    /// (group, one, other) → the result of the one against the other.
    pairs: HashMap<(usize, usize, usize), f64>,
}

/// What the completion that stood first, or the only one, came to.
fn result(verdict: Verdict) -> f64 {
    match verdict {
        Verdict::First => 1.0,
        Verdict::Second => 0.0,
        Verdict::Tie => 0.5,
        Verdict::Score(score) => score,
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

impl Results {
    /// Of a rubric: `ids` are the questions in the order of the completions.
    pub fn of_scores(
        groups: &[Candidates],
        ids: &[Digest],
        verdicts: &HashMap<Digest, Verdict>,
    ) -> Results {
        let mut ids = ids.iter();
        let mut scores = Vec::with_capacity(groups.len());
        for group in groups {
            let own = ids.by_ref().take(group.all.len());
            let own = own.map(|id| verdicts.get(id).copied().map(result));
            scores.push(own.collect());
        }
        Results {
            scores,
            numbers: Map::new(),
            pairs: HashMap::new(),
        }
    }

    /// Of comparisons: `ids` are the questions, two for each pair, first with the one in front, then with the other.
    pub fn of_pairs(
        groups: &[Candidates],
        several: bool,
        pairs: &[Pair],
        ids: &[Digest],
        verdicts: &HashMap<Digest, Verdict>,
    ) -> Result<Results> {
        let mut each: Vec<Vec<Vec<f64>>> = groups
            .iter()
            .map(|group| {
                let own = group.all.iter().map(|candidate| {
                    // A text that several sets have is as good as itself.
                    let shared = candidate.from.iter().any(|set| *set != candidate.from[0]);
                    if several && shared {
                        vec![0.5]
                    } else {
                        Vec::new()
                    }
                });
                own.collect()
            })
            .collect();
        let (mut results, mut firsts) = (HashMap::new(), Vec::new());
        let (mut ties, mut inconsistent) = (0usize, 0usize);
        for (pair, both) in pairs.iter().zip(ids.chunks_exact(2)) {
            let verdict =
                |id: &Digest| verdicts.get(id).copied().context("BUG: a question is open");
            let (there, back) = (verdict(&both[0])?, verdict(&both[1])?);
            let won = (result(there) + 1.0 - result(back)) / 2.0;
            firsts.extend(
                [there, back]
                    .into_iter()
                    .map(result)
                    .filter(|first| *first != 0.5),
            );
            ties += usize::from(won == 0.5);
            inconsistent += usize::from(there == back && there != Verdict::Tie);
            each[pair.group][pair.one].push(won);
            each[pair.group][pair.other].push(1.0 - won);
            results.insert((pair.group, pair.one, pair.other), won);
        }
        let share = |count: usize| count as f64 / pairs.len().max(1) as f64;
        let numbers = json!({
            "comparisons": pairs.len(),
            "ties": share(ties),
            "inconsistent": share(inconsistent),
            "first_position_share": mean(&firsts),
        });
        let scores = each
            .iter()
            .map(|group| group.iter().map(|own| mean(own)).collect());
        Ok(Results {
            scores: scores.collect(),
            numbers: numbers.as_object().cloned().unwrap_or_default(),
            pairs: results,
        })
    }

    /// How one completion of a group fares against another: 1, 0.5 or 0, or what lies between.
    fn against(&self, group: usize, one: usize, other: usize) -> Option<f64> {
        if one == other {
            return Some(0.5);
        }
        if let Some(won) = self.pairs.get(&(group, one, other)) {
            return Some(*won);
        }
        if let Some(lost) = self.pairs.get(&(group, other, one)) {
            return Some(1.0 - lost);
        }
        let scores = &self.scores[group];
        let (one, other) = (scores[one]?, scores[other]?);
        Some(match one.total_cmp(&other) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        })
    }

    /// `score` and `win_rate` of a set, prompt by prompt, each prompt alike: the set `place` of those that were compared.
    pub fn of_set(&self, groups: &[Candidates], place: usize, name: &str) -> Result<Value> {
        let (mut scores, mut rates) = (Vec::new(), Vec::new());
        for (index, group) in groups.iter().enumerate() {
            // A completion that a set has twice counts twice.
            let of = |set: usize| -> Vec<usize> {
                let all = group.all.iter().enumerate();
                all.flat_map(|(i, c)| c.from.iter().filter(move |s| **s == set).map(move |_| i))
                    .collect()
            };
            let (own, first) = (of(place), of(0));
            let own_scores: Vec<f64> = own.iter().filter_map(|i| self.scores[index][*i]).collect();
            scores.extend(mean(&own_scores));
            let mut won = Vec::new();
            if place == 0 {
                won.push(0.5);
            } else {
                for one in &own {
                    won.extend(
                        first
                            .iter()
                            .filter_map(|other| self.against(index, *one, *other)),
                    );
                }
            }
            rates.extend(mean(&won));
        }
        ensure!(
            !scores.is_empty() && rates.len() == groups.len(),
            "nothing of `{name}` was compared: sample more of each prompt"
        );
        Ok(json!({ "score": mean(&scores), "win_rate": mean(&rates) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::questions::{of_completions, of_pairs, pairs};
    use data::candidates::Candidate;
    use data::layout::Prompt;

    /// A group of (text, the sets that have it).
    fn group(prompt: &str, all: &[(&str, &[usize])]) -> Candidates {
        let candidate = |(text, from): &(&str, &[usize])| Candidate {
            text: (*text).to_owned(),
            score: None,
            from: from.to_vec(),
        };
        Candidates {
            prompt: Prompt::Text(prompt.to_owned()),
            all: all.iter().map(candidate).collect(),
        }
    }

    /// What a judge makes of every pair.
    fn compared(
        groups: &[Candidates],
        several: bool,
        judge: impl Fn(&str, &str) -> Verdict,
    ) -> Results {
        let pairs = pairs(groups, several);
        let questions = of_pairs(groups, &pairs);
        let text = |group: usize, place: usize| groups[group].all[place].text.as_str();
        let verdicts = questions.iter().map(|q| {
            let verdict = judge(text(q.group, q.a), text(q.group, q.b.unwrap()));
            (q.id, verdict)
        });
        let ids: Vec<_> = questions.iter().map(|q| q.id).collect();
        Results::of_pairs(groups, several, &pairs, &ids, &verdicts.collect()).unwrap()
    }

    fn longer(a: &str, b: &str) -> Verdict {
        match a.len().cmp(&b.len()) {
            std::cmp::Ordering::Greater => Verdict::First,
            std::cmp::Ordering::Equal => Verdict::Tie,
            std::cmp::Ordering::Less => Verdict::Second,
        }
    }

    #[test]
    fn a_score_is_the_share_of_comparisons_won() {
        let groups = [
            group(
                "p",
                &[("aaa", &[0]), ("b", &[0]), ("cc", &[0]), ("d", &[0])],
            ),
            group("q", &[("alone", &[0])]),
        ];
        let results = compared(&groups, false, longer);
        let third = 1.0 / 3.0;
        let wanted = [1.0, 0.5 * third, 2.0 * third, 0.5 * third];
        for (found, wanted) in results.scores[0].iter().zip(wanted) {
            assert!((found.unwrap() - wanted).abs() < 1e-12);
        }
        assert_eq!(results.scores[1], [None]);
        // Of six pairs, b and d are the one tie; of ten decided answers the winner stood first in five.
        let wanted = json!({ "comparisons": 6, "ties": 1.0 / 6.0, "inconsistent": 0.0, "first_position_share": 0.5 });
        assert_eq!(Value::Object(results.numbers), wanted);
    }

    #[test]
    fn a_judge_who_always_prefers_a_place_finds_nothing_better() {
        let groups = [group("p", &[("a", &[0]), ("b", &[0]), ("c", &[0])])];
        for (verdict, share) in [(Verdict::First, 1.0), (Verdict::Second, 0.0)] {
            let results = compared(&groups, false, |_, _| verdict);
            assert_eq!(results.scores[0], [Some(0.5); 3]);
            let wanted = json!({ "comparisons": 3, "ties": 1.0, "inconsistent": 1.0, "first_position_share": share });
            assert_eq!(Value::Object(results.numbers), wanted);
        }
        let results = compared(&groups, false, |_, _| Verdict::Tie);
        let wanted = json!({ "comparisons": 3, "ties": 1.0, "inconsistent": 0.0, "first_position_share": null });
        assert_eq!(Value::Object(results.numbers), wanted);
    }

    #[test]
    fn a_tie_in_one_order_is_half_a_win() {
        let groups = [group("p", &[("a", &[0]), ("b", &[0])])];
        let results = compared(&groups, false, |a, _| {
            if a == "a" {
                Verdict::First
            } else {
                Verdict::Tie
            }
        });
        assert_eq!(results.scores[0], [Some(0.75), Some(0.25)]);
        assert_eq!(results.numbers["ties"], 0.0);
        assert_eq!(results.numbers["inconsistent"], 0.0);
        assert_eq!(results.numbers["first_position_share"], 1.0);
    }

    #[test]
    fn sets_are_compared_across_and_equal_texts_tie() {
        let groups = [
            group("p", &[("a", &[0]), ("bb", &[1]), ("ccc", &[2])]),
            group("q", &[("aa", &[0, 1]), ("b", &[2])]),
            group("r", &[("aa", &[0, 0]), ("bbb", &[1]), ("c", &[1, 2])]),
        ];
        // In r: a text of set 0, one of set 1, one of 1 and 2; the two of set 1 are compared, since set 2 has one of them.
        let results = compared(&groups, true, longer);
        assert_eq!(results.numbers["comparisons"], 3 + 1 + 3);
        assert_eq!(results.scores[1], [Some(0.75), Some(0.0)]);
        let of = |place| results.of_set(&groups, place, "x").unwrap();
        assert_eq!(of(0)["win_rate"], 0.5);
        // p: won; q: the same text; r: won with the one, lost with the other.
        assert_eq!(of(1)["win_rate"], (1.0 + 0.5 + 0.5) / 3.0);
        assert_eq!(of(2)["win_rate"], (1.0 + 0.0 + 0.0) / 3.0);
        // p: 0 of 2; q: (tie with itself, won) / 2; r: lost to bbb, won against c.
        assert_eq!(of(0)["score"], (0.0 + 0.75 + 0.5) / 3.0);
        let none = [
            group("p", &[("a", &[0]), ("b", &[0])]),
            group("q", &[("a", &[1])]),
        ];
        assert!(pairs(&none, true).is_empty());
    }

    #[test]
    fn rated_sets_win_by_score() {
        let groups = [
            group("p", &[("a", &[0]), ("bb", &[1])]),
            group("q", &[("ccc", &[0, 1])]),
        ];
        let questions = of_completions(&groups);
        let ids: Vec<_> = questions.iter().map(|q| q.id).collect();
        let score = |q: &crate::ask::questions::Question| {
            let text = &groups[q.group].all[q.a].text;
            (q.id, Verdict::Score(text.len() as f64))
        };
        let verdicts = questions.iter().map(score).collect();
        let results = Results::of_scores(&groups, &ids, &verdicts);
        assert_eq!(
            results.scores,
            [vec![Some(1.0), Some(2.0)], vec![Some(3.0)]]
        );
        assert_eq!(
            results.of_set(&groups, 1, "x").unwrap(),
            json!({ "score": 2.5, "win_rate": 0.75 })
        );
        assert_eq!(
            results.of_set(&groups, 0, "x").unwrap(),
            json!({ "score": 2.0, "win_rate": 0.5 })
        );
    }
}

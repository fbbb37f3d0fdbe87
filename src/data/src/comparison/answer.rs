//! What a person may answer to a comparison: who is better, an order with ties, or nothing.

use serde::{Deserialize, Serialize};

/// The answer to a comparison. In JSON: a list of ranks, or `null` for a skipped one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<Vec<usize>>", into = "Option<Vec<usize>>")]
pub enum Answer {
    /// The rank of each completion: 1 is the best, equal ones share a rank, and no rank is left out.
    Ranked(Vec<usize>),
    /// The person would not say.
    Skipped,
}

impl From<Option<Vec<usize>>> for Answer {
    fn from(ranks: Option<Vec<usize>>) -> Self {
        ranks.map_or(Answer::Skipped, Answer::Ranked)
    }
}

impl From<Answer> for Option<Vec<usize>> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Ranked(ranks) => Some(ranks),
            Answer::Skipped => None,
        }
    }
}

impl Answer {
    /// Reads what somebody wrote about `count` completions, numbered in the order shown from 1: the best first, equal ones joined by
    /// `=`, as `2 1 3` or `2=1 3`; of two completions also `1` or `2` for the better one and `=` for a tie; `s` or `skip` to leave
    /// it out.
    ///
    /// Errors say what may be written.
    pub fn parse(text: &str, count: usize) -> Result<Answer, String> {
        let text = text.trim();
        if matches!(text, "s" | "S" | "skip") {
            return Ok(Answer::Skipped);
        }
        if count == 2 {
            match text {
                "1" => return Ok(Answer::Ranked(vec![1, 2])),
                "2" => return Ok(Answer::Ranked(vec![2, 1])),
                "=" => return Ok(Answer::Ranked(vec![1, 1])),
                _ => {}
            }
        }
        order(text, count).map(Answer::Ranked).ok_or_else(|| {
            let choices = choices(count);
            format!("`{text}` is no answer: write {choices}")
        })
    }

    /// Whether it can be about `count` completions.
    pub fn fits(&self, count: usize) -> bool {
        let Answer::Ranked(ranks) = self else {
            return true;
        };
        let highest = ranks.iter().copied().max().unwrap_or(0);
        ranks.len() == count && !ranks.contains(&0) && (1..=highest).all(|r| ranks.contains(&r))
    }

    /// The same about the members, when it was given about those in `order`: `order[k]` is the place of the one shown as number k + 1.
    pub fn of_members(self, order: &[usize]) -> Answer {
        let Answer::Ranked(shown) = self else {
            return self;
        };
        let mut ranks = vec![0; shown.len()];
        for (place, rank) in order.iter().zip(shown) {
            ranks[*place] = rank;
        }
        Answer::Ranked(ranks)
    }
}

/// What may be written about `count` completions, in words.
pub fn choices(count: usize) -> String {
    if count == 2 {
        return "`1` or `2` for the better one, `=` when they are equal, `s` to skip".to_owned();
    }
    let numbers: Vec<String> = (1..=count).rev().map(|n| n.to_string()).collect();
    format!(
        "all numbers from 1 to {count}, the best first, such as `{}`, with `=` between equal ones, or `s` to skip",
        numbers.join(" ")
    )
}

/// The ranks by the order that `text` says.
fn order(text: &str, count: usize) -> Option<Vec<usize>> {
    let spaced = text.replace('=', " = ");
    let mut ranks = vec![0; count];
    let (mut rank, mut equal) = (0, true);
    for (at, word) in spaced.split_whitespace().enumerate() {
        if word == "=" {
            // Between two numbers, once.
            if equal || at == 0 {
                return None;
            }
            equal = true;
            continue;
        }
        let number: usize = word.parse().ok()?;
        let place = ranks.get_mut(number.checked_sub(1)?)?;
        if *place != 0 {
            return None;
        }
        rank += usize::from(!equal || at == 0);
        *place = rank;
        equal = false;
    }
    (!equal && !ranks.contains(&0)).then_some(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(text: &str, count: usize) -> Option<Vec<usize>> {
        Answer::parse(text, count).unwrap().into()
    }

    #[test]
    fn two_are_answered_by_a_key_or_by_an_order() {
        for text in ["1", "1 2", " 1 "] {
            assert_eq!(ranks(text, 2), Some(vec![1, 2]));
        }
        assert_eq!(ranks("2", 2), Some(vec![2, 1]));
        for text in ["=", "1=2", "2 = 1"] {
            assert_eq!(ranks(text, 2), Some(vec![1, 1]));
        }
        assert_eq!(ranks("s", 2), None);
    }

    #[test]
    fn an_order_may_have_ties() {
        assert_eq!(ranks("2 1 3", 3), Some(vec![2, 1, 3]));
        assert_eq!(ranks("2=1 3", 3), Some(vec![1, 1, 2]));
        assert_eq!(ranks("3 2=1", 3), Some(vec![2, 2, 1]));
        assert_eq!(ranks("1=2=3 4", 4), Some(vec![1, 1, 1, 2]));
        assert_eq!(ranks("skip", 4), None);
    }

    #[test]
    fn what_is_no_answer_says_what_is() {
        for text in ["", "3", "1 1", "x", "1 =", "= 1", "1 2 3", "==", "-1", "0"] {
            let error = Answer::parse(text, 2).unwrap_err();
            assert!(
                error.contains("`1` or `2` for the better one"),
                "{text}: {error}"
            );
        }
        for text in [
            "1", "=", "1 2", "1 2 2", "1 2 4", "1==2 3", "1 2 3 =", "2, 1, 3",
        ] {
            let error = Answer::parse(text, 3).unwrap_err();
            assert!(
                error.contains("from 1 to 3") && error.contains("`3 2 1`"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_was_shown_is_turned_back() {
        // Shown as 1, 2, 3 were the members 2, 0, 1; the person liked number 2 best, that is member 0.
        let answer = Answer::parse("2 3 1", 3).unwrap().of_members(&[2, 0, 1]);
        assert_eq!(answer, Answer::Ranked(vec![1, 2, 3]));
        assert_eq!(Answer::Skipped.of_members(&[1, 0]), Answer::Skipped);
    }

    #[test]
    fn a_file_may_hold_what_nobody_can_have_answered() {
        let fits = |ranks: &[usize]| Answer::Ranked(ranks.to_vec()).fits(3);
        assert!(fits(&[1, 1, 2]) && fits(&[3, 1, 2]) && fits(&[1, 1, 1]));
        assert!(!fits(&[1, 2]) && !fits(&[1, 3, 3]) && !fits(&[0, 1, 2]) && !fits(&[2, 2, 2]));
        assert!(Answer::Skipped.fits(3));
        let skipped: Answer = serde_json::from_str("null").unwrap();
        assert_eq!(skipped, Answer::Skipped);
        assert_eq!(
            serde_json::to_string(&Answer::Ranked(vec![2, 1])).unwrap(),
            "[2,1]"
        );
    }
}

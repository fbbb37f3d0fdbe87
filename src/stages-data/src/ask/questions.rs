//! Which questions a judge is asked: each completion, or each pair in both orders.

use data::candidates::{Candidate, Candidates};
use data::judging::{Shown, prompt_text};
use engine::digest::Digest;
use serde_json::json;

/// A question; places are those in the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// The digest of what is shown: equal questions are asked once.
    pub id: Digest,
    /// Which prompt.
    pub group: usize,
    /// The completion, or the one that stands first.
    pub a: usize,
    /// The one that stands second.
    pub b: Option<usize>,
}

impl Question {
    fn new(groups: &[Candidates], group: usize, a: usize, b: Option<usize>) -> Question {
        let mut question = Question {
            id: Digest::from_bytes([0; 32]),
            group,
            a,
            b,
        };
        let text = match question.shown(groups) {
            Shown::Two { a, b } => json!([question.prompt(groups), a, b]),
            Shown::One(completion) => json!([question.prompt(groups), completion]),
        };
        question.id = Digest::of_bytes(text.to_string().as_bytes());
        question
    }

    /// The prompt as a judge reads it.
    pub fn prompt(&self, groups: &[Candidates]) -> String {
        prompt_text(&groups[self.group].prompt)
    }

    /// The completions.
    pub fn shown<'a>(&self, groups: &'a [Candidates]) -> Shown<'a> {
        let text = |place: usize| groups[self.group].all[place].text.as_str();
        match self.b {
            Some(b) => Shown::Two {
                a: text(self.a),
                b: text(b),
            },
            None => Shown::One(text(self.a)),
        }
    }
}

/// Two completions of one prompt that are compared, the earlier one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub group: usize,
    pub one: usize,
    pub other: usize,
}

/// Every pair; of several sets, only those across sets.
pub(super) fn pairs(groups: &[Candidates], several: bool) -> Vec<Pair> {
    let mut found = Vec::new();
    for (group, candidates) in groups.iter().enumerate() {
        let all = &candidates.all;
        for one in 0..all.len() {
            let others = one + 1..all.len();
            found.extend(
                others
                    .filter(|other| !several || are_across(&all[one], &all[*other]))
                    .map(|other| Pair { group, one, other }),
            );
        }
    }
    found
}

/// Whether some set has the one and another set the other.
fn are_across(one: &Candidate, other: &Candidate) -> bool {
    one.from
        .iter()
        .any(|set| other.from.iter().any(|own| own != set))
}

/// Both orders of each pair, one after the other.
pub(super) fn of_pairs(groups: &[Candidates], pairs: &[Pair]) -> Vec<Question> {
    let orders = |pair: &Pair| {
        let order = |a, b| Question::new(groups, pair.group, a, Some(b));
        [order(pair.one, pair.other), order(pair.other, pair.one)]
    };
    pairs.iter().flat_map(orders).collect()
}

/// A question about each completion.
pub(super) fn of_completions(groups: &[Candidates]) -> Vec<Question> {
    let mut found = Vec::new();
    for (group, candidates) in groups.iter().enumerate() {
        let places = 0..candidates.all.len();
        found.extend(places.map(|place| Question::new(groups, group, place, None)));
    }
    found
}

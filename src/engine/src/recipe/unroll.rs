//! `repeat` and `matrix`: groups of stages, written once, become plain stages with stable names before anything else is read.
//!
//! Round 2 of a repeat is `align[2].tuned`, a cell of a matrix `rm[size=500].judge`. A round knows nothing of how many there are, so
//! that more rounds reuse the first ones.

use std::borrow::Cow;

use super::fields;
use super::names::{Carried, Item, Named, Names, Scope};
use super::params::{self, Values};
use super::read::{check_name, whole, wrong_type};
use super::stop_if::Stop;
use super::yaml::{Key, Node, NodeKind};
use crate::contract::{Contract, Contracts, Output};
use crate::diagnostic::{Problem, Span, nearest};
use crate::digest::Digest;

/// The most stages that a recipe may come to.
const MAX_STAGES: usize = 100_000;
const MAX_ROUNDS: i64 = 10_000;
const REPEAT: [&str; 6] = ["repeat", "carry", "stop_if", "seed", "stages", "when"];

/// A stage before its words are read.
pub(super) struct Declared<'a> {
    /// Its name as written.
    pub key: &'a Key,
    pub body: Cow<'a, Node>,
    /// None when its kind is unknown, which has been said.
    pub contract: Option<&'static Contract>,
    /// For a stage that draws and has no seed of its own.
    pub seed: u64,
    /// What has it skipped: indices of [`Unroll::stops`].
    pub guards: Vec<usize>,
}

/// The seed of round `round`, from 1: the first 63 bits of a digest.
pub fn derive(seed: u64, round: u64) -> u64 {
    let mut bytes = seed.to_le_bytes().to_vec();
    bytes.extend(round.to_le_bytes());
    let digest = Digest::derive("levain 1 seed of a round", &bytes);
    let first = digest
        .as_bytes()
        .first_chunk::<8>()
        .copied()
        .unwrap_or_default();
    u64::from_le_bytes(first) >> 1
}

/// Every stage of a recipe, and the names that lead to them.
pub(super) struct Unroll<'a, 'p> {
    pub declared: Vec<Declared<'a>>,
    pub names: Names,
    /// Every `stop_if`, after each round.
    pub stops: Vec<Stop<'a>>,
    /// Places where nothing could be put in: what they lack is no mistake of its own.
    pub failed: Vec<Span>,
    contracts: Contracts,
    pub(super) problems: &'p mut Vec<Problem>,
}

/// A reference and where it stands.
type Reference = (String, Span);

/// Where stages are being declared.
pub(super) struct Place<'v> {
    pub scope: usize,
    /// `align[2].`, empty at the top.
    pub prefix: String,
    pub seed: u64,
    pub values: &'v Values,
    /// What has the stages here skipped.
    pub guards: &'v [usize],
}

impl<'a, 'p> Unroll<'a, 'p> {
    pub(super) fn new(contracts: Contracts, problems: &'p mut Vec<Problem>) -> Self {
        Self {
            declared: Vec::new(),
            names: Names::default(),
            stops: Vec::new(),
            failed: Vec::new(),
            contracts,
            problems,
        }
    }

    /// Declares the stages of a recipe.
    pub(super) fn top(&mut self, pairs: &'a [(Key, Node)], seed: u64) {
        self.names.scopes.push(Scope::default());
        let place = Place {
            scope: 0,
            prefix: String::new(),
            seed,
            values: &Values::new(),
            guards: &[],
        };
        self.stages(pairs, &place);
        // A mistake in what is carried is told even where no stage uses the name; a name that is carried on and on is told once.
        let all = self
            .names
            .scopes
            .iter()
            .flat_map(|scope| scope.carried.values());
        for miss in all.filter_map(|carried| self.names.origin(carried).err()) {
            let span = miss.span.unwrap_or(pairs[0].0.span);
            let problem = Problem::at("bad-reference", span, miss.message);
            self.problems
                .push(problem.help(miss.help.unwrap_or_else(|| "name a stage".to_owned())));
        }
    }

    pub(super) fn stages(&mut self, pairs: &'a [(Key, Node)], place: &Place<'_>) {
        for (key, body) in pairs {
            check_name(key, self.problems);
            let item = match self.present(body, place) {
                Some(false) => Some(Item::Absent),
                None => None,
                Some(true) => match (body.get("repeat"), body.get("matrix")) {
                    (Some(_), Some(matrix)) => {
                        let message = "a group is a `repeat` or a `matrix`, not both";
                        let help = "put one group into the other";
                        self.problems
                            .push(Problem::at("unknown-key", matrix.span, message).help(help));
                        None
                    }
                    (Some(count), None) => self.repeat(key, body, count, place),
                    (None, Some(axes)) => self.matrix(key, body, axes, place),
                    (None, None) => Some(self.stage(key, body, place)),
                },
            };
            let items = &mut self.names.scopes[place.scope].items;
            items.insert(key.name.clone(), item.unwrap_or(Item::Broken));
        }
    }

    fn stage(&mut self, key: &'a Key, body: &'a Node, place: &Place<'_>) -> Item {
        let body = self.filled(body, place);
        let contract = fields::kind_of(key, &body, self.contracts, self.problems);
        let index = self.declared.len();
        let port = contract.and_then(|c| c.outputs.iter().find_map(Output::handed_on));
        self.names.stages.push(Named {
            name: format!("{}{}", place.prefix, key.name),
            contract,
            scope: place.scope,
            handed_on: port.and_then(|port| first_text(body.get(port)?)),
        });
        self.declared.push(Declared {
            key,
            body,
            contract,
            seed: place.seed,
            guards: place.guards.to_vec(),
        });
        Item::Stage(index)
    }

    /// A node with `${round}` and `${matrix.x}` put in; as it is where there is nothing to put in.
    pub(super) fn filled(&mut self, node: &'a Node, place: &Place<'_>) -> Cow<'a, Node> {
        if !params::has_marks(node) {
            return Cow::Borrowed(node);
        }
        let mut own = node.clone();
        self.failed
            .extend(params::fill(&mut own, place.values, self.problems));
        Cow::Owned(own)
    }

    /// What `when` says; it knows parameters only, so that everything is decided before anything runs.
    fn present(&mut self, body: &'a Node, place: &Place<'_>) -> Option<bool> {
        let Some(when) = body.get("when") else {
            return Some(true);
        };
        let node = self.filled(when, place);
        if let Some(answer) = truth(&node) {
            return Some(answer);
        }
        let problem = wrong_type(
            "when",
            "`true` or `false`, or two values with `==` or `!=` between them",
            &node,
        );
        let help = "write `when: \"${params.method} == ppo\"`, or `when: ${params.long}`";
        self.problems.push(problem.help(help));
        None
    }

    /// Where the random streams of a group's stages start: its own `seed`, or that of the place where it stands.
    pub(super) fn seed(&mut self, body: &'a Node, place: &Place<'_>) -> u64 {
        let given = body
            .get("seed")
            .filter(|n| !matches!(n.kind, NodeKind::Null));
        let Some(node) = given else {
            return place.seed;
        };
        let node = self.filled(node, place);
        let seed = whole("seed", &node, (0, i64::MAX), self.problems);
        seed.map_or(place.seed, |seed| seed as u64)
    }

    fn repeat(
        &mut self,
        key: &'a Key,
        body: &'a Node,
        count: &'a Node,
        place: &Place<'_>,
    ) -> Option<Item> {
        self.known_words(key, body, &REPEAT);
        let stages = self.inner_stages(key, body)?;
        let count = self.filled(count, place);
        let rounds = match count.kind {
            NodeKind::Integer(n) if (1..=MAX_ROUNDS).contains(&n) => n,
            NodeKind::Integer(_) => {
                let message = format!(
                    "`repeat` is from 1 to {MAX_ROUNDS}, not {}",
                    count.describe()
                );
                self.problems
                    .push(Problem::at("out-of-range", count.span, message));
                return None;
            }
            _ => {
                self.problems
                    .push(wrong_type("repeat", "a whole number of rounds", &count));
                return None;
            }
        };
        self.room(key, rounds as usize, stages.len())?;
        let carry = self.carry(body, stages)?;
        let mut stop = body
            .get("stop_if")
            .filter(|n| !matches!(n.kind, NodeKind::Null));
        let stops = stop.is_some();
        let seed = self.seed(body, place);
        let mut guards = place.guards.to_vec();
        let mut scopes: Vec<usize> = Vec::new();
        for round in 1..=rounds {
            let scope = self.names.scopes.len();
            let carried = carry.iter().map(|(name, first, then)| {
                let (scope, (reference, span)) = match scopes.last() {
                    None => (place.scope, first.clone()),
                    Some(previous) => (*previous, then.clone()),
                };
                let carried = Carried {
                    scope,
                    reference,
                    span,
                };
                (name.clone(), carried)
            });
            self.names.scopes.push(Scope {
                parent: Some(place.scope),
                carried: carried.collect(),
                ..Scope::default()
            });
            let mut values = place.values.clone();
            let number = NodeKind::Integer(round);
            values.insert(
                "round".to_owned(),
                Node {
                    kind: number,
                    span: key.span,
                },
            );
            let inner = Place {
                scope,
                prefix: format!("{}{}[{round}].", place.prefix, key.name),
                seed: derive(seed, round as u64),
                values: &values,
                guards: &guards,
            };
            self.stages(stages, &inner);
            // A mistake in it is one of every round, and is told once. The guard of the round before is enough: when that round
            // was skipped itself, so is what its metrics guard.
            let made = stop.and_then(|node| self.stop_if(key, node, stages, &inner, round));
            stop = stop.filter(|_| made.is_some());
            guards.truncate(place.guards.len());
            guards.extend(made);
            scopes.push(scope);
        }
        Some(Item::Rounds { scopes, stops })
    }

    /// `carry`: (name, what it is in round 1, which stage of a round it is in the next).
    fn carry(
        &mut self,
        body: &Node,
        stages: &[(Key, Node)],
    ) -> Option<Vec<(String, Reference, Reference)>> {
        let Some(node) = body
            .get("carry")
            .filter(|n| !matches!(n.kind, NodeKind::Null))
        else {
            return Some(Vec::new());
        };
        let expected = "a mapping from names to `{ first: stage, then: stage }`";
        let NodeKind::Map(pairs) = &node.kind else {
            self.problems.push(wrong_type("carry", expected, node));
            return None;
        };
        let mut carry = Vec::new();
        let before = self.problems.len();
        for (key, words) in pairs {
            check_name(key, self.problems);
            if stages.iter().any(|(stage, _)| stage.name == key.name) {
                let message = format!(
                    "`{}` is carried, and a stage of the group has the same name",
                    key.name
                );
                self.problems.push(
                    Problem::at("duplicate-key", key.span, message).help("rename one of them"),
                );
            }
            self.known_words(key, words, &["first", "then"]);
            let mut text = |word: &str, doc: &str| match words.get(word) {
                Some(Node {
                    kind: NodeKind::Text(text),
                    span,
                }) => Some((text.clone(), *span)),
                Some(other) => {
                    self.problems
                        .push(wrong_type(word, "a stage's name", other));
                    None
                }
                None => {
                    let message = format!("`{}` is carried and does not say `{word}`", key.name);
                    self.problems
                        .push(Problem::at("missing-field", key.span, message).help(doc));
                    None
                }
            };
            let first = text(
                "first",
                "`first` is the stage that it is in the first round",
            );
            let then = text(
                "then",
                "`then` is the stage of a round that it is in the next one",
            );
            if let Some((reference, span)) = &then
                && pairs
                    .iter()
                    .any(|(name, _)| name.name == reference.split('.').next().unwrap_or(""))
            {
                let message = format!(
                    "`then` names a stage of the round, and `{reference}` is carried itself"
                );
                self.problems
                    .push(Problem::at("bad-reference", *span, message));
            }
            if let (Some(first), Some(then)) = (first, then) {
                carry.push((key.name.clone(), first, then));
            }
        }
        (self.problems.len() == before).then_some(carry)
    }

    pub(super) fn inner_stages(&mut self, key: &Key, body: &'a Node) -> Option<&'a [(Key, Node)]> {
        match body.get("stages").map(|n| (n, &n.kind)) {
            Some((_, NodeKind::Map(pairs))) if !pairs.is_empty() => Some(pairs),
            Some((node, NodeKind::Map(_) | NodeKind::Null)) => {
                let message = format!("the group `{}` has no stages", key.name);
                self.problems
                    .push(Problem::at("empty", node.span, message).help("add at least one"));
                None
            }
            Some((node, _)) => {
                self.problems
                    .push(wrong_type("stages", "a mapping from names to stages", node));
                None
            }
            None => {
                let message = format!("the group `{}` needs `stages`", key.name);
                self.problems
                    .push(Problem::at("missing-field", key.span, message));
                None
            }
        }
    }

    pub(super) fn known_words(&mut self, key: &Key, body: &Node, words: &[&str]) {
        let NodeKind::Map(pairs) = &body.kind else {
            self.problems.push(wrong_type(&key.name, "a mapping", body));
            return;
        };
        for (word, _) in pairs
            .iter()
            .filter(|(word, _)| !words.contains(&word.name.as_str()))
        {
            let help = match nearest(&word.name, words.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if word.name == "kind" => "a group has no kind: its stages have".to_owned(),
                None => format!("it has {}", words.join(", ")),
            };
            let message = format!("`{}` is not a word of `{}`", word.name, key.name);
            self.problems
                .push(Problem::at("unknown-key", word.span, message).help(help));
        }
    }

    /// Refuses groups in groups that multiply beyond all bounds.
    pub(super) fn room(&mut self, key: &Key, times: usize, each: usize) -> Option<()> {
        let all = self
            .declared
            .len()
            .saturating_add(times.saturating_mul(each));
        if all > MAX_STAGES {
            let message = format!(
                "with the group `{}` the recipe has more than {MAX_STAGES} stages",
                key.name
            );
            self.problems
                .push(Problem::at("too-large", key.span, message));
        }
        (all <= MAX_STAGES).then_some(())
    }
}

/// The first text in a port's value.
fn first_text(node: &Node) -> Option<String> {
    match &node.kind {
        NodeKind::Text(text) => Some(text.clone()),
        NodeKind::List(items) => first_text(items.first()?),
        NodeKind::Map(pairs) => first_text(&pairs.first()?.1),
        _ => None,
    }
}

fn truth(node: &Node) -> Option<bool> {
    let text = match &node.kind {
        NodeKind::Bool(answer) => return Some(*answer),
        NodeKind::Text(text) => text,
        _ => return None,
    };
    let (sides, equal) = match (text.split_once("=="), text.split_once("!=")) {
        (Some(sides), None) => (sides, true),
        (None, Some(sides)) => (sides, false),
        _ => return None,
    };
    let (left, right) = (sides.0.trim(), sides.1.trim());
    // A slip would make a stage vanish without a word: a parameter without its `${}`, quotes, a second comparison.
    let slip = |side: &str| {
        side.is_empty()
            || side.contains(['\'', '"', '=', '!'])
            || ["params.", "matrix."].iter().any(|p| side.starts_with(p))
            || side == "round"
    };
    if slip(left) || slip(right) {
        return None;
    }
    let same = left == right
        || matches!((left.parse::<f64>(), right.parse::<f64>()), (Ok(a), Ok(b)) if a == b);
    Some(same == equal)
}

#[cfg(test)]
mod tests {
    use super::derive;

    #[test]
    fn the_seed_of_a_round_is_what_it_always_was() {
        // With Python's blake3 1.0.11: int.from_bytes(blake3(seed.to_bytes(8, "little") + round.to_bytes(8, "little"),
        // derive_key_context="levain 1 seed of a round").digest()[:8], "little") >> 1
        assert_eq!(derive(17, 1), 7947729300413678488);
        assert_eq!(derive(17, 2), 375720363375674027);
        assert_eq!(derive(u64::MAX, 1), 7189928957109793035);
    }
}

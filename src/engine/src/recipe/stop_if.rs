//! `stop_if`: after a round in which it holds, the later rounds of a `repeat` are skipped.

use std::sync::Arc;

use anyhow::Result;

use super::names::Names;
use super::path::parts;
use super::read::wrong_type;
use super::unroll::{Place, Unroll};
use super::yaml::{Key, Node, NodeKind};
use super::{Guard, bind};
use crate::diagnostic::{Problem, Span, nearest};
use crate::metric::{Summary, apart, number};

const WORDS: [&str; 4] = ["metrics", "metric", "above", "below"];

/// What a `stop_if` says after one round.
#[derive(Clone, Debug, PartialEq)]
pub struct StopIf {
    /// The name of a number.
    pub metric: String,
    /// It holds for greater ones.
    pub above: Option<f64>,
    /// It holds for lesser ones.
    pub below: Option<f64>,
    /// The full name of the repeat.
    pub group: String,
    /// The round after which it is asked.
    pub round: i64,
}

impl StopIf {
    /// Whether it holds for these metrics: then in which words.
    ///
    /// # Errors
    /// They have no such number.
    pub fn holds(&self, metrics: &Summary) -> Result<Option<String>> {
        let value = number(metrics, std::slice::from_ref(&self.metric))?;
        let above = self.above.filter(|limit| value > *limit);
        let below = self.below.filter(|limit| value < *limit);
        let (word, limit) = match (above, below) {
            (Some(limit), _) => ("above", limit),
            (None, Some(limit)) => ("below", limit),
            (None, None) => return Ok(None),
        };
        let told = apart(&[value, limit]).swap_remove(0);
        let (group, round, metric) = (&self.group, self.round, &self.metric);
        Ok(Some(format!(
            "`{group}` stopped after round {round}: `{metric}` is {told}, {word} {limit}"
        )))
    }

    /// The condition in words.
    pub fn words(&self) -> String {
        let limits = [("above", self.above), ("below", self.below)];
        let said = limits
            .iter()
            .filter_map(|(word, limit)| limit.map(|limit| format!("{word} {limit}")));
        format!("{} {}", self.metric, said.collect::<Vec<_>>().join(" or "))
    }
}

/// A `stop_if` after one round, before its references are looked up.
pub(super) struct Stop<'a> {
    /// The repeat's name as written.
    key: &'a Key,
    metrics: Node,
    /// Where its references count.
    scope: usize,
    stop: Arc<StopIf>,
    /// Where the name of the metric stands.
    pub metric_span: Span,
}

impl Stop<'_> {
    /// With the output that it looks at.
    pub(super) fn bind(&self, names: &Names, problems: &mut Vec<Problem>) -> Option<Guard> {
        let metrics = bind::metrics(&self.metrics, self.key, names, self.scope, problems)?;
        Some(Guard {
            metrics,
            stop: self.stop.clone(),
        })
    }
}

impl<'a> Unroll<'a, '_> {
    /// Reads a `stop_if` as it is after round `round`, whose stages are declared at `place`. Returns its index.
    pub(super) fn stop_if(
        &mut self,
        key: &'a Key,
        node: &'a Node,
        stages: &[(Key, Node)],
        place: &Place<'_>,
        round: i64,
    ) -> Option<usize> {
        let before = self.problems.len();
        let node = self.filled(node, place);
        if !matches!(node.kind, NodeKind::Map(_)) {
            let expected =
                "a mapping such as `{ metrics: scores, metric: tuned.loss, above: 2.5 }`";
            self.problems.push(wrong_type("stop_if", expected, &node));
            return None;
        }
        let own = Key {
            name: "stop_if".to_owned(),
            span: node.span,
        };
        self.known_words(&own, &node, &WORDS);
        let metrics = self.text_of(key, &node, "metrics", "a stage's name");
        let metric = self.text_of(key, &node, "metric", "the name of a metric");
        let above = self.limit(&node, "above");
        let below = self.limit(&node, "below");
        let problem = |message: &str, help: &str| {
            Problem::at("out-of-range", node.span, message.to_owned()).help(help.to_owned())
        };
        match (above, below) {
            // A word that is no number has been said.
            (None, None) if self.problems.len() == before => self.problems.push(problem(
                "`stop_if` has no limit",
                "write `above: 2.5`, `below: 0.1`, or both",
            )),
            (Some(above), Some(below)) if below > above => self.problems.push(problem(
                "`stop_if` holds for every number: each is above the one limit or below the other",
                "let `below` be the lesser one",
            )),
            _ => {}
        }
        if let Some((text, span)) = &metrics
            && let Some(path) = parts(text)
            && !stages.iter().any(|(stage, _)| stage.name == path[0].name)
        {
            let message = format!("`metrics` names a stage of the round, and `{text}` is not one");
            let names = || stages.iter().map(|(stage, _)| stage.name.as_str());
            let help = match nearest(path[0].name, names()) {
                Some(word) => format!("did you mean `{word}`?"),
                None => {
                    let all: Vec<_> = names().map(|name| format!("`{name}`")).collect();
                    format!("the round has {}", all.join(", "))
                }
            };
            self.problems
                .push(Problem::at("bad-reference", *span, message).help(help));
        }
        let (_, (metric, metric_span)) = (metrics?, metric?);
        if self.problems.len() > before {
            return None;
        }
        let group = place.prefix.trim_end_matches('.');
        let group = group.strip_suffix(&format!("[{round}]")).unwrap_or(group);
        self.stops.push(Stop {
            key,
            metrics: node.get("metrics")?.clone(),
            scope: place.scope,
            stop: Arc::new(StopIf {
                metric,
                above,
                below,
                group: group.to_owned(),
                round,
            }),
            metric_span,
        });
        Some(self.stops.len() - 1)
    }

    fn text_of(
        &mut self,
        key: &Key,
        node: &Node,
        word: &str,
        expected: &str,
    ) -> Option<(String, Span)> {
        match node.get(word) {
            Some(Node {
                kind: NodeKind::Text(text),
                span,
            }) if !text.is_empty() => Some((text.clone(), *span)),
            Some(other) => {
                self.problems.push(wrong_type(word, expected, other));
                None
            }
            None => {
                let message = format!("the `stop_if` of `{}` needs `{word}`", key.name);
                let help = format!("`{word}` is {expected}");
                self.problems
                    .push(Problem::at("missing-field", node.span, message).help(help));
                None
            }
        }
    }

    fn limit(&mut self, node: &Node, word: &str) -> Option<f64> {
        let node = node.get(word)?;
        match node.kind {
            NodeKind::Null => None,
            NodeKind::Integer(i) => Some(i as f64),
            NodeKind::Number(x) if x.is_finite() => Some(x),
            _ => {
                self.problems.push(wrong_type(word, "a number", node));
                None
            }
        }
    }
}

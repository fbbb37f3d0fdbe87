//! `matrix`: the stages of a group once for each combination of values.

use super::names::{Cell, Item, Scope};
use super::read::{check_name, wrong_type};
use super::unroll::{Place, Unroll};
use super::yaml::{Key, Node, NodeKind};
use crate::diagnostic::Problem;

const MATRIX: [&str; 5] = ["matrix", "exclude", "seed", "stages", "when"];

impl<'a> Unroll<'a, '_> {
    pub(super) fn matrix(
        &mut self,
        key: &'a Key,
        body: &'a Node,
        axes: &'a Node,
        place: &Place<'_>,
    ) -> Option<Item> {
        self.known_words(key, body, &MATRIX);
        let stages = self.inner_stages(key, body)?;
        let axes = self.filled(axes, place);
        let mut cells = match &axes.kind {
            NodeKind::Map(pairs) if !pairs.is_empty() => self.grid(key, pairs)?,
            NodeKind::List(items) if !items.is_empty() => {
                let read: Vec<_> = items.iter().map(|item| self.values(item)).collect();
                read.into_iter().collect::<Option<Vec<_>>>()?
            }
            _ => {
                let expected = "a mapping from axes to lists of values, or a list of mappings from axes to values";
                self.problems.push(wrong_type("matrix", expected, &axes));
                return None;
            }
        };
        if let Some(node) = body
            .get("exclude")
            .filter(|n| !matches!(n.kind, NodeKind::Null))
        {
            let node = self.filled(node, place);
            self.exclude(&node, &mut cells)?;
        }
        if cells.is_empty() {
            let message = format!("nothing is left of the matrix `{}`", key.name);
            self.problems
                .push(Problem::at("empty", key.span, message).help("exclude less"));
            return None;
        }
        self.room(key, cells.len(), stages.len())?;
        let mut made: Vec<Cell> = Vec::new();
        let mut wrong_seed = false;
        for pairs in cells {
            let scope = self.names.scopes.len();
            let cell = Cell {
                values: pairs.iter().map(|(n, v)| (n.clone(), label(v))).collect(),
                scope,
            };
            if made.iter().any(|other| other.label() == cell.label()) {
                let message = format!(
                    "the matrix `{}` has the cell `{}` twice",
                    key.name,
                    cell.label()
                );
                self.problems
                    .push(Problem::at("duplicate-key", key.span, message));
                return None;
            }
            self.names.scopes.push(Scope {
                parent: Some(place.scope),
                ..Scope::default()
            });
            let mut values = place.values.clone();
            values.extend(
                pairs
                    .into_iter()
                    .map(|(name, value)| (format!("matrix.{name}"), value)),
            );
            let mut inner = Place {
                scope,
                prefix: format!("{}{}[{}].", place.prefix, key.name, cell.label()),
                seed: place.seed,
                values: &values,
                guards: place.guards,
            };
            // A mistake in it is one of every cell, and is told once.
            let before = self.problems.len();
            inner.seed = self.seed(body, &inner);
            if wrong_seed {
                self.problems.truncate(before);
            }
            wrong_seed |= self.problems.len() > before;
            self.stages(stages, &inner);
            made.push(cell);
        }
        Some(Item::Cells(made))
    }

    /// Every combination of one value from each axis; the last axis runs fastest.
    fn grid(&mut self, key: &Key, axes: &[(Key, Node)]) -> Option<Vec<Vec<(String, Node)>>> {
        let mut cells = vec![Vec::new()];
        for (axis, node) in axes {
            let values = match &node.kind {
                NodeKind::List(values) if !values.is_empty() => values,
                _ => {
                    self.problems
                        .push(wrong_type(&axis.name, "a list of values", node));
                    return None;
                }
            };
            check_name(axis, self.problems);
            values
                .iter()
                .try_for_each(|value| self.scalar(&axis.name, value))?;
            self.room(key, cells.len(), values.len())?;
            let longer = |cell: &Vec<(String, Node)>| {
                let one = |value: &Node| {
                    [cell.clone(), vec![(axis.name.clone(), value.clone())]].concat()
                };
                values.iter().map(one).collect::<Vec<_>>()
            };
            cells = cells.iter().flat_map(longer).collect();
        }
        Some(cells)
    }

    /// One cell that is written out, or one of `exclude`.
    fn values(&mut self, node: &Node) -> Option<Vec<(String, Node)>> {
        let NodeKind::Map(pairs) = &node.kind else {
            self.problems
                .push(wrong_type("matrix", "a mapping from axes to values", node));
            return None;
        };
        for (axis, value) in pairs {
            check_name(axis, self.problems);
            self.scalar(&axis.name, value)?;
        }
        Some(
            pairs
                .iter()
                .map(|(k, v)| (k.name.clone(), v.clone()))
                .collect(),
        )
    }

    /// A value of an axis becomes part of names.
    fn scalar(&mut self, axis: &str, value: &Node) -> Option<()> {
        let fine = match &value.kind {
            NodeKind::Bool(_) | NodeKind::Integer(_) | NodeKind::Number(_) => true,
            NodeKind::Text(text) => {
                !text.is_empty() && text.len() <= 100 && !text.contains(['[', ']', ',', '=', '\n'])
            }
            _ => false,
        };
        if !fine {
            let expected = "a number, true or false, or a short text without brackets, `,` and `=`";
            self.problems.push(wrong_type(axis, expected, value));
        }
        fine.then_some(())
    }

    /// Takes away the cells that agree with an entry of `exclude` on every axis that it names.
    fn exclude(&mut self, node: &Node, cells: &mut Vec<Vec<(String, Node)>>) -> Option<()> {
        let NodeKind::List(items) = &node.kind else {
            self.problems.push(wrong_type(
                "exclude",
                "a list of mappings from axes to values",
                node,
            ));
            return None;
        };
        for item in items {
            let wanted = self.values(item)?;
            let before = cells.len();
            cells.retain(|cell| {
                let agrees = |(axis, value): &(String, Node)| {
                    cell.iter()
                        .any(|(n, v)| n == axis && label(v) == label(value))
                };
                !wanted.iter().all(agrees)
            });
            if cells.len() == before {
                let message = "this excludes no cell";
                let help = "each entry names axes of the matrix with one of their values";
                self.problems
                    .push(Problem::at("empty", item.span, message).help(help));
                return None;
            }
        }
        Some(())
    }
}

/// A scalar as it stands in a name.
fn label(node: &Node) -> String {
    match &node.kind {
        NodeKind::Text(text) => text.clone(),
        _ => node.to_value().to_string(),
    }
}

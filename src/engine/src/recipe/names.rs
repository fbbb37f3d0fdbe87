//! What a name in a recipe leads to: a stage, a round of a `repeat`, a cell of a `matrix`, something that is carried.
//!
//! ```text
//! tuned            a stage of this group, or of one around it
//! tuned.metrics    one of its outputs
//! align.tuned      of a repeat: the last round's, or that of the last one that ran; of a matrix: every cell's
//! align[2].tuned   the second round's;  align[*].tuned  every round's
//! rm[size=500].judge   of the cells with this value
//! ```

use std::collections::BTreeMap;

use super::Pick;
use super::path::{Part, parts};
use crate::artifact::ArtifactType;
use crate::contract::{Contract, Gives, Output};
use crate::diagnostic::{Span, nearest};

/// Every name of a recipe, in scopes: the recipe's own, and one for each round and cell.
#[derive(Default)]
pub(crate) struct Names {
    pub scopes: Vec<Scope>,
    pub stages: Vec<Named>,
}

/// A stage as its name leads to it.
pub(crate) struct Named {
    /// Its full name.
    pub name: String,
    /// None when its kind is unknown, which has been said.
    pub contract: Option<&'static Contract>,
    /// Where its references count.
    pub scope: usize,
    /// The first reference in the port whose artifact it hands on.
    pub handed_on: Option<String>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.stages.iter().map(|stage| &stage.name))
            .finish()
    }
}

/// The names of one group.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// The scope around it.
    pub parent: Option<usize>,
    pub items: BTreeMap<String, Item>,
    pub carried: BTreeMap<String, Carried>,
}

/// What a carried name stands for.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    /// The scope in which the reference counts.
    pub scope: usize,
    pub reference: String,
    /// Where the reference stands.
    pub span: Span,
}

/// What one name stands for.
#[derive(Debug)]
pub(crate) enum Item {
    /// Index of the stage.
    Stage(usize),
    /// The scope of each round, and whether later ones may be skipped.
    Rounds { scopes: Vec<usize>, stops: bool },
    /// The cells of a matrix.
    Cells(Vec<Cell>),
    /// A stage or a group whose `when` is false.
    Absent,
    /// It has a mistake, which has been said.
    Broken,
}

/// One cell of a matrix.
#[derive(Debug)]
pub(crate) struct Cell {
    /// Axis and value, in the order of the file.
    pub values: Vec<(String, String)>,
    pub scope: usize,
}

impl Cell {
    /// `size=500,seed=1`.
    pub fn label(&self) -> String {
        let pairs: Vec<_> = self
            .values
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        pairs.join(",")
    }

    /// Whether `selector` (`size=500`, or several) speaks of this cell.
    fn fits(&self, selector: &str) -> bool {
        selector.split(',').all(|part| {
            let Some((axis, value)) = part.split_once('=') else {
                return false;
            };
            let equal = |own: &str| {
                own == value.trim()
                    || matches!((own.parse::<f64>(), value.trim().parse::<f64>()), (Ok(a), Ok(b)) if a == b)
            };
            self.values.iter().any(|(n, v)| n == axis.trim() && equal(v))
        })
    }
}

/// An output of a stage; an empty name means its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub stage: usize,
    pub output: String,
}

/// What a reference leads to.
#[derive(Debug)]
pub(crate) enum Found {
    One(Pick<Spot>),
    /// Rounds or cells with their labels.
    Many(Vec<(String, Pick<Spot>)>),
    /// Something with a mistake that has been said.
    Broken,
}

/// Why a reference leads nowhere.
#[derive(Debug)]
pub(crate) struct Miss {
    pub message: String,
    pub help: Option<String>,
    /// Where the mistake is, when it is not where the name stands.
    pub span: Option<Span>,
}

fn miss<T>(message: String, help: Option<String>) -> Result<T, Miss> {
    Err(Miss {
        message,
        help,
        span: None,
    })
}

impl Names {
    /// What `text` leads to from inside `scope`.
    pub fn find(&self, scope: usize, text: &str) -> Result<Found, Miss> {
        let Some(path) = parts(text) else {
            let help =
                "write `stage`, `stage.output`, `group[2].stage` or `group[axis=value].stage`"
                    .to_owned();
            return miss(format!("`{text}` is not the name of an output"), Some(help));
        };
        let (first, rest) = (&path[0], &path[1..]);
        let mut at = Some(scope);
        while let Some(index) = at {
            let here = &self.scopes[index];
            if let Some(carried) = here.carried.get(first.name) {
                return self.carried(carried, first, rest);
            }
            if let Some(item) = here.items.get(first.name) {
                return self.descend(item, first, rest, first.name);
            }
            at = here.parent;
        }
        let help = nearest(first.name, self.visible(scope)).map(|w| format!("did you mean `{w}`?"));
        miss(format!("there is no stage `{}`", first.name), help)
    }

    /// How an output is named from everywhere.
    pub fn full(&self, spot: &Spot) -> String {
        let Named { name, contract, .. } = &self.stages[spot.stage];
        match spot.output.as_str() {
            "" => name.clone(),
            _ if contract.is_some_and(|c| c.outputs.len() < 2) => name.clone(),
            output => format!("{name}.{output}"),
        }
    }

    /// The type of an output of stage `index`, also where it hands on what another stage gives. None where a mistake that is told
    /// elsewhere hides it.
    pub fn artifact(&self, index: usize, output: &Output) -> Option<ArtifactType> {
        let (mut index, mut output) = (index, *output);
        // Stages that hand on to each other in a circle are told as one that waits for itself.
        for _ in 0..=self.stages.len() {
            if let Gives::New(artifact) = output.gives {
                return Some(artifact);
            }
            let stage = &self.stages[index];
            let spot = match self.find(stage.scope, stage.handed_on.as_ref()?).ok()? {
                Found::One(pick) => pick.from.into_iter().next()?,
                Found::Many(list) => list.into_iter().next()?.1.from.into_iter().next()?,
                Found::Broken => return None,
            };
            index = spot.stage;
            output = *self.stages[index].contract?.output(&spot.output)?;
        }
        None
    }

    /// Every name that can be used in `scope`.
    pub fn visible(&self, scope: usize) -> Vec<&str> {
        let mut names = Vec::new();
        let mut at = Some(scope);
        while let Some(index) = at {
            let here = &self.scopes[index];
            names.extend(
                here.carried
                    .keys()
                    .chain(here.items.keys())
                    .map(String::as_str),
            );
            at = here.parent;
        }
        names
    }

    /// The stages that can be named in `scope` without a group's name, with their contracts.
    pub fn stages_in(&self, scope: usize) -> Vec<(&str, &'static Contract)> {
        let mut found = Vec::new();
        let mut at = Some(scope);
        while let Some(index) = at {
            let here = &self.scopes[index];
            for (name, item) in &here.items {
                if let Item::Stage(stage) = item
                    && let Some(contract) = self.stages[*stage].contract
                {
                    found.push((name.as_str(), contract));
                }
            }
            at = here.parent;
        }
        found
    }

    /// What a carried reference leads to; a mistake in it is one where it stands.
    pub fn origin(&self, carried: &Carried) -> Result<Found, Miss> {
        let found = self.find(carried.scope, &carried.reference);
        found.map_err(|miss| Miss {
            span: miss.span.or(Some(carried.span)),
            ..miss
        })
    }

    fn carried(
        &self,
        carried: &Carried,
        first: &Part<'_>,
        rest: &[Part<'_>],
    ) -> Result<Found, Miss> {
        let name = first.name;
        if first.selector.is_some() {
            let help = Some(format!("`{name}` is one thing in each round"));
            return miss(
                format!("`{name}` is carried and has no rounds of its own"),
                help,
            );
        }
        match (self.origin(carried)?, rest) {
            (found, []) => Ok(found),
            (Found::Broken, _) => Ok(Found::Broken),
            (Found::One(pick), [output])
                if pick.from.iter().all(|spot| spot.output.is_empty())
                    && output.selector.is_none() =>
            {
                Ok(Found::One(pick.map(|spot| Spot {
                    output: output.name.to_owned(),
                    ..spot
                })))
            }
            (_, [output, ..]) => {
                let help = Some(format!("it is what `{}` gives", carried.reference));
                miss(
                    format!("`{name}` is carried and has no output `{}`", output.name),
                    help,
                )
            }
        }
    }

    fn descend(
        &self,
        item: &Item,
        own: &Part<'_>,
        rest: &[Part<'_>],
        path: &str,
    ) -> Result<Found, Miss> {
        match item {
            Item::Broken => Ok(Found::Broken),
            Item::Absent => miss(
                format!("`{path}` is not there, because its `when` is false"),
                None,
            ),
            Item::Stage(stage) => match (own.selector, rest) {
                (Some(_), _) => miss(
                    format!("`{path}` is a stage, not a group with rounds or cells"),
                    None,
                ),
                (None, []) => Ok(Found::One(Pick::one(Spot {
                    stage: *stage,
                    output: String::new(),
                }))),
                (None, [output]) if output.selector.is_none() => Ok(Found::One(Pick::one(Spot {
                    stage: *stage,
                    output: output.name.to_owned(),
                }))),
                (None, [output, ..]) => miss(
                    format!("the output `{}` of `{path}` has no parts", output.name),
                    None,
                ),
            },
            Item::Rounds {
                scopes,
                stops: true,
            } if own.selector.is_none() => self.last(scopes, rest, path),
            Item::Rounds { scopes, stops } => {
                let all = || {
                    scopes
                        .iter()
                        .enumerate()
                        .map(|(i, s)| ((i + 1).to_string(), *s))
                        .collect()
                };
                let chosen: Vec<(String, usize)> = match own.selector {
                    None => vec![(scopes.len().to_string(), *scopes.last().unwrap_or(&0))],
                    Some("*") => all(),
                    Some(number) => match number
                        .parse::<usize>()
                        .ok()
                        .filter(|n| (1..=scopes.len()).contains(n))
                    {
                        Some(n) => vec![(n.to_string(), scopes[n - 1])],
                        None => {
                            let help = format!(
                                "its rounds are `{path}[1]` to `{path}[{}]`, and `{path}[*]` is all of them",
                                scopes.len()
                            );
                            return miss(format!("`{path}` has no round `{number}`"), Some(help));
                        }
                    },
                };
                let every = own.selector == Some("*");
                let mut found = self.each(&chosen, every, rest, path)?;
                if let (Found::Many(list), true, true) = (&mut found, every, *stops) {
                    list.iter_mut().for_each(|(_, pick)| pick.optional = true);
                }
                Ok(found)
            }
            Item::Cells(cells) => {
                let selector = own.selector.filter(|s| *s != "*");
                let chosen: Vec<(String, usize)> = cells
                    .iter()
                    .filter(|cell| selector.is_none_or(|s| cell.fits(s)))
                    .map(|cell| (cell.label(), cell.scope))
                    .collect();
                if let (Some(selector), true) = (selector, chosen.is_empty()) {
                    let names: Vec<_> = cells
                        .iter()
                        .take(8)
                        .map(|c| format!("`{path}[{}]`", c.label()))
                        .collect();
                    let help = Some(format!("its cells are {}", names.join(", ")));
                    return miss(format!("`{path}` has no cell `{selector}`"), help);
                }
                let many = selector.is_none() || chosen.len() > 1;
                self.each(&chosen, many, rest, path)
            }
        }
    }

    /// The rest of a path in the last round that ran: every round's may be it.
    fn last(&self, scopes: &[usize], rest: &[Part<'_>], path: &str) -> Result<Found, Miss> {
        let round = |scope: usize| self.each(&[(String::new(), scope)], false, rest, path);
        let (first, later) = scopes.split_first().unwrap_or((&0, &[]));
        let mut whole = round(*first)?;
        for scope in later {
            let fits = match (&mut whole, round(*scope)?) {
                (Found::Broken, _) | (_, Found::Broken) => return Ok(Found::Broken),
                (Found::One(all), Found::One(pick)) => {
                    all.from.extend(pick.from);
                    true
                }
                // The same names in every round, each of them there whenever its round is.
                (Found::Many(all), Found::Many(list)) => {
                    let names = |list: &[(String, Pick<Spot>)]| -> Vec<String> {
                        list.iter().map(|(name, _)| name.clone()).collect()
                    };
                    let sure =
                        |list: &[(String, Pick<Spot>)]| list.iter().all(|(_, p)| !p.optional);
                    let fits = names(all) == names(&list) && sure(all) && sure(&list);
                    let pairs = all.iter_mut().zip(list);
                    pairs.for_each(|((_, all), (_, pick))| all.from.extend(pick.from));
                    fits
                }
                _ => false,
            };
            if !fits {
                let help = format!("say which round: `{path}[1]` to `{path}[{}]`", scopes.len());
                return miss(
                    format!("`{path}` may stop early, and its rounds do not give the same list"),
                    Some(help),
                );
            }
        }
        Ok(whole)
    }

    /// The rest of a path in each of some scopes: in the only one unless `many`.
    fn each(
        &self,
        chosen: &[(String, usize)],
        many: bool,
        rest: &[Part<'_>],
        path: &str,
    ) -> Result<Found, Miss> {
        let Some((next, after)) = rest.split_first() else {
            let inside = chosen.first().map(|(_, scope)| &self.scopes[*scope].items);
            let example = inside.and_then(|items| items.keys().next());
            let help = example.map(|stage| format!("name a stage in it, such as `{path}.{stage}`"));
            return miss(format!("`{path}` is a group of stages"), help);
        };
        let mut list = Vec::new();
        for (label, scope) in chosen {
            let items = &self.scopes[*scope].items;
            let Some(item) = items.get(next.name) else {
                let help = nearest(next.name, items.keys().map(String::as_str))
                    .map(|w| format!("did you mean `{path}.{w}`?"));
                return miss(
                    format!("the group `{path}` has no stage `{}`", next.name),
                    help,
                );
            };
            let found = self.descend(item, next, after, &format!("{path}.{}", next.name))?;
            // What is one of its kind needs no label.
            match found {
                found if !many => return Ok(found),
                Found::One(pick) => list.push((label.clone(), pick)),
                Found::Broken => return Ok(Found::Broken),
                Found::Many(inner) => {
                    list.extend(inner.into_iter().map(|(l, p)| (format!("{label},{l}"), p)))
                }
            }
        }
        Ok(Found::Many(list))
    }
}

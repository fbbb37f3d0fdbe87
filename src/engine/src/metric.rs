//! The numbers of a metrics artifact, named by dotted paths into its summary: `tuned.loss`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::diagnostic::nearest_first;

/// What an artifact tells of itself.
pub type Summary = BTreeMap<String, Value>;

/// The most names that a message lists.
const LISTED: usize = 12;

/// The number that has one of the `wanted` names; the first that is there counts.
///
/// # Errors
/// There is none, or it is not a number, as the loss of a training that went astray.
pub fn number(summary: &Summary, wanted: &[String]) -> Result<f64> {
    for name in wanted {
        match find(summary, name) {
            Some(Value::Number(number)) => {
                return Ok(number.as_f64().unwrap_or(f64::NAN));
            }
            // JSON has no other way to write it.
            Some(Value::Null) => bail!("the metric `{name}` is not a number"),
            _ => {}
        }
    }
    let name = wanted.last().map_or("", String::as_str);
    let known = names(summary);
    bail!("there is no metric `{name}`: {}", listed(name, &known));
}

/// The significant digits that a person is told of a number; the number itself keeps all.
const DIGITS: usize = 6;

/// A number as a person is told it.
pub fn short(value: f64) -> String {
    rounded(value, DIGITS)
}

/// Numbers as a person is told them beside each other: with as many digits more as tell different ones apart. What is greater than a
/// limit is then greater in words as well.
pub fn apart(values: &[f64]) -> Vec<String> {
    let different: BTreeSet<u64> = values.iter().map(|value| value.to_bits()).collect();
    let mut told = Vec::new();
    // Any two numbers differ in 17 digits.
    for digits in DIGITS..=17 {
        told = values.iter().map(|value| rounded(*value, digits)).collect();
        if told.iter().collect::<BTreeSet<&String>>().len() == different.len() {
            break;
        }
    }
    told
}

/// A number of so many significant digits, without zeros at its end. Whole numbers count something, and stay as they are.
fn rounded(value: f64, digits: usize) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return value.to_string();
    }
    let text = format!("{value:.*e}", digits - 1);
    match text.parse::<f64>() {
        Ok(near) if near.abs() < 1e-5 || near.abs() >= 1e15 => format!("{near:e}"),
        Ok(near) => near.to_string(),
        Err(_) => text,
    }
}

/// The name of every number.
pub fn names(summary: &Summary) -> Vec<String> {
    fn walk(prefix: &str, value: &Value, names: &mut Vec<String>) {
        match value {
            Value::Number(_) => names.push(prefix.to_owned()),
            Value::Object(map) => {
                for (key, value) in map {
                    walk(&format!("{prefix}.{key}"), value, names);
                }
            }
            _ => {}
        }
    }
    let mut names = Vec::new();
    for (key, value) in summary {
        walk(key, value, &mut names);
    }
    names
}

/// The names that there are, the nearest to `name` first, in words.
pub fn listed(name: &str, known: &[String]) -> String {
    if known.is_empty() {
        return "there are no numbers".to_owned();
    }
    let near = nearest_first(name, known.iter().map(String::as_str));
    let shown: Vec<_> = near.iter().take(LISTED).map(|n| format!("`{n}`")).collect();
    let more = match known.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match known.len() {
        1 => format!("there is {}", shown[0]),
        _ => format!("there are {}{more}", shown.join(", ")),
    }
}

/// Where the number of a candidate is: which of the metrics, and under which names, of which the first that is there counts.
pub type Place = (usize, Vec<String>);

/// Where the number of each candidate is. One metrics artifact holds it for all, under the candidate's name; of several, each
/// belongs to the candidate of its name, or of its place where no names are shared.
///
/// # Errors
/// In a sentence, why they do not belong together.
pub fn places(candidates: &[&str], metrics: &[&str], metric: &str) -> Result<Vec<Place>, String> {
    let own = |candidate: &&str| format!("{candidate}.{metric}");
    if let ([candidate], [_]) = (candidates, metrics) {
        return Ok(vec![(0, vec![own(candidate), metric.to_owned()])]);
    }
    if metrics.len() == 1 {
        return Ok(candidates.iter().map(|c| (0, vec![own(c)])).collect());
    }
    let (count, given) = (candidates.len(), metrics.len());
    if count != given {
        return Err(format!(
            "{count} candidates and {given} metrics: there is one for each, or one for all"
        ));
    }
    let by_name: Option<Vec<usize>> = candidates
        .iter()
        .map(|c| metrics.iter().position(|m| m == c))
        .collect();
    let stranger = metrics.iter().find(|m| !candidates.contains(m));
    let by_place = || (0..count).collect();
    let order: Vec<usize> = match (by_name, stranger) {
        (Some(order), None) => order,
        _ if !candidates.iter().any(|c| metrics.contains(c)) => by_place(),
        (_, stranger) => {
            let alone = candidates.iter().find(|c| !metrics.contains(c));
            let alone = alone.or(stranger).map_or("", |name| name);
            return Err(format!(
                "only one side has `{alone}`, and both share other names: give both the same names, or none"
            ));
        }
    };
    let name = || vec![metric.to_owned()];
    Ok(order.into_iter().map(|at| (at, name())).collect())
}

/// The value under a dotted path. Keys may have dots of their own: a model's name may be `tuned.model`.
fn find<'a>(summary: &'a Summary, path: &str) -> Option<&'a Value> {
    below(summary.iter(), path)
}

fn below<'a>(
    pairs: impl Iterator<Item = (&'a String, &'a Value)>,
    path: &str,
) -> Option<&'a Value> {
    for (key, value) in pairs {
        let Some(rest) = path.strip_prefix(key.as_str()) else {
            continue;
        };
        let found = match (rest.strip_prefix('.'), value) {
            _ if rest.is_empty() => Some(value),
            (Some(rest), Value::Object(map)) => below(map.iter(), rest),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn summary() -> Summary {
        let summary = json!({
            "base": { "loss": 2.5, "tokens": 40, "words": "many" },
            "tuned.model": { "loss": 1.5 },
            "astray": { "loss": null },
            "steps": 7,
        });
        serde_json::from_value(summary).unwrap()
    }

    fn told(names: &[&str]) -> Result<f64, String> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        number(&summary(), &names).map_err(|e| e.to_string())
    }

    #[test]
    fn numbers_have_dotted_names() {
        assert_eq!(told(&["base.loss"]), Ok(2.5));
        assert_eq!(told(&["base.tokens"]), Ok(40.0));
        assert_eq!(told(&["tuned.model.loss"]), Ok(1.5));
        assert_eq!(told(&["loss", "steps"]), Ok(7.0));
    }

    #[test]
    fn what_is_no_number_is_said() {
        let none = |name: &str, list: &str| Err(format!("there is no metric `{name}`: {list}"));
        assert_eq!(
            told(&["astray.loss"]),
            Err("the metric `astray.loss` is not a number".to_owned())
        );
        let near = "there are `base.loss`, `base.tokens`, `steps`, `tuned.model.loss`";
        assert_eq!(told(&["base.los"]), none("base.los", near));
        assert!(told(&["base.words"]).is_err() && told(&["base"]).is_err());
        assert!(told(&["base.loss.more"]).is_err() && told(&["tuned.loss"]).is_err());
        let many: Vec<String> = (0..20).map(|i| format!("m{i}")).collect();
        assert!(listed("m3", &many).starts_with("there are `m3`, "));
        assert!(listed("m3", &many).ends_with(" and 8 more"));
        assert_eq!(listed("x", &[]), "there are no numbers");
        assert_eq!(listed("x", &["loss".to_owned()]), "there is `loss`");
    }

    #[test]
    fn a_person_is_told_six_digits() {
        for (value, wanted) in [
            (2.0 / 3.0, "0.666667"),
            (-1234.567891, "-1234.57"),
            (2.5, "2.5"),
            (0.0, "0"),
            (12_345_678.0, "12345678"),
            (0.1 + 0.2, "0.3"),
            (1.0 / 3e9, "3.33333e-10"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(short(value), wanted);
        }
    }

    #[test]
    fn what_differs_is_told_apart() {
        assert_eq!(apart(&[2.0 / 3.0, 0.5, 0.5]), ["0.666667", "0.5", "0.5"]);
        assert_eq!(apart(&[2.500_000_04, 2.5]), ["2.50000004", "2.5"]);
        let (one, next) = (0.1, 0.1_f64.next_up());
        assert_eq!(apart(&[one, next]), [one.to_string(), next.to_string()]);
        assert!(apart(&[]).is_empty());
    }

    #[test]
    fn metrics_belong_to_candidates_by_name_or_by_place() {
        let at = |candidates: &[&str], metrics: &[&str]| {
            let places = places(candidates, metrics, "loss")?;
            let words = places
                .iter()
                .map(|(i, names)| format!("{i}:{}", names.join("|")));
            Ok(words.collect::<Vec<_>>().join(" "))
        };
        let fine = |text: &str| Ok(text.to_owned());
        assert_eq!(at(&["a", "b"], &["scores"]), fine("0:a.loss 0:b.loss"));
        assert_eq!(at(&["a"], &["scores"]), fine("0:a.loss|loss"));
        assert_eq!(at(&["a", "b"], &["b", "a"]), fine("1:loss 0:loss"));
        assert_eq!(at(&["a", "b"], &["x", "y"]), fine("0:loss 1:loss"));
        let wrong: Result<String, String> = at(&["a", "b"], &["b", "c"]);
        assert!(wrong.unwrap_err().starts_with("only one side has `a`"));
        let wrong: Result<String, String> = at(&["a", "a"], &["a", "b"]);
        assert!(wrong.unwrap_err().starts_with("only one side has `b`"));
        let wrong: Result<String, String> = at(&["a", "b", "c"], &["a", "b"]);
        assert!(
            wrong
                .unwrap_err()
                .starts_with("3 candidates and 2 metrics: ")
        );
    }
}

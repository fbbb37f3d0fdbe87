//! Settings of a training that do nothing together, as far as the recipe alone shows it. What takes the model's parameters to know is refused by
//! the stage before its first step.

use serde_json::{Map, Value};

use crate::training::{LAST_LAYERS, TRAINED_BY_WORD, USUAL_BETA1, USUAL_BETA2, USUAL_EPSILON};
use crate::words::twice;

/// What is wrong with which field.
type Problems = Vec<(&'static str, String)>;

/// What does nothing in a training, and choices that are none.
pub(crate) fn fits(params: &Map<String, Value>) -> Problems {
    let mut problems = fits_with_head(params);
    let word = params.get("train").and_then(Value::as_str);
    if let Some(word @ ("norms" | "biases")) = word
        && is_positive(params, "weight_decay")
    {
        problems.push((
            "weight_decay",
            format!("norms and biases do not decay, and `train: {word}` trains nothing else: leave `weight_decay` out"),
        ));
    }
    problems
}

/// The same where a head is trained besides what `train` chooses, which decays.
pub(crate) fn fits_with_head(params: &Map<String, Value>) -> Problems {
    let mut problems = choice(params);
    problems.extend(depth(params));
    problems.extend(checkpointing(params));
    problems.extend(optimizer(params));
    problems
}

fn is_positive(params: &Map<String, Value>, name: &str) -> bool {
    params
        .get(name)
        .and_then(Value::as_f64)
        .is_some_and(|x| x > 0.0)
}

/// What `train` cannot mean.
fn choice(params: &Map<String, Value>) -> Problems {
    match params.get("train") {
        Some(Value::Object(by)) if !(by.len() == 1 && by.contains_key(LAST_LAYERS)) => {
            let keys: Vec<&str> = by.keys().map(String::as_str).collect();
            let message = format!(
                "a mapping here says `last_layers: 2`, not {:?}; parameters are named in a list, such as `[layers.2, q_proj]`",
                keys.join(", ")
            );
            vec![("train", message)]
        }
        Some(Value::Array(names)) => {
            let words = names.iter().filter_map(Value::as_str);
            let known = |word: &&str| TRAINED_BY_WORD.iter().any(|choice| choice.word == *word);
            let words = words.filter(known).map(|word| {
                let message = format!(
                    "a list has names of parameters, and `{word}` is a word: say `train: {word}`, or name the parameters, such as `'*norm*'` or `lm_head`"
                );
                ("train", message)
            });
            let mut problems: Problems = words.take(1).collect();
            problems.extend(twice(params, "train"));
            problems
        }
        _ => Vec::new(),
    }
}

/// What goes by depth where one depth is trained.
fn depth(params: &Map<String, Value>) -> Problems {
    let which = match params.get("train") {
        Some(Value::String(word)) if word == "head" => "head".to_owned(),
        Some(Value::Object(by)) if by.get(LAST_LAYERS).and_then(Value::as_u64) == Some(1) => {
            "{ last_layers: 1 }".to_owned()
        }
        _ => return Vec::new(),
    };
    let decays = params
        .get("layer_decay")
        .and_then(Value::as_f64)
        .is_some_and(|decay| decay != 1.0);
    let waits = params
        .get("unfreeze_every")
        .is_some_and(|every| !every.is_null());
    let said = |field: &'static str| {
        let message = format!(
            "`{field}` tells layers apart by their depth, and `train: {which}` trains one depth only: leave `{field}` out"
        );
        (field, message)
    };
    let fields = [("layer_decay", decays), ("unfreeze_every", waits)];
    let given = fields.into_iter().filter(|(_, given)| *given);
    given.map(|(field, _)| said(field)).collect()
}

/// Layers that keep nothing for a way back, since nothing in them or below is trained.
fn checkpointing(params: &Map<String, Value>) -> Option<(&'static str, String)> {
    let head_only = params.get("train").and_then(Value::as_str) == Some("head");
    let again = params.get("checkpointing").and_then(Value::as_bool) == Some(true);
    (head_only && again).then(|| {
        let message = "`checkpointing` saves what layers keep for the way back, and with `train: head` no layer has one: leave `checkpointing` out";
        ("checkpointing", message.to_owned())
    })
}

/// What the optimizer would not look at.
fn optimizer(params: &Map<String, Value>) -> Problems {
    if params.get("optimizer").and_then(Value::as_str) != Some("adafactor") {
        return Vec::new();
    }
    let usual = [
        ("beta1", USUAL_BETA1),
        ("beta2", USUAL_BETA2),
        ("epsilon", USUAL_EPSILON),
    ];
    let given = usual.into_iter().filter(|(name, usual)| {
        let given = params.get(*name).and_then(Value::as_f64);
        given.is_some_and(|given| given != *usual)
    });
    given
        .map(|(name, _)| {
            let message = format!(
                "`{name}` is Adam's; `optimizer: adafactor` does not look at it: leave it out"
            );
            (name, message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The fields that are complained about.
    fn wrong(check: fn(&Map<String, Value>) -> Problems, fields: Value) -> Vec<&'static str> {
        let problems = check(fields.as_object().unwrap());
        problems.into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn what_does_nothing_is_refused() {
        for (fields, expected) in [
            (json!({ "train": "all", "weight_decay": 0.1 }), vec![]),
            (json!({ "train": "norms", "weight_decay": 0.0 }), vec![]),
            (
                json!({ "train": "norms", "weight_decay": 0.1 }),
                vec!["weight_decay"],
            ),
            (
                json!({ "train": "biases", "weight_decay": 1 }),
                vec!["weight_decay"],
            ),
            (json!({ "train": ["q_proj", "k_proj"] }), vec![]),
            (json!({ "train": ["q_proj", "q_proj"] }), vec!["train"]),
            (json!({ "train": ["norms"] }), vec!["train"]),
            (
                json!({ "train": ["norms", "biases", "norms"] }),
                vec!["train", "train"],
            ),
            (
                json!({ "train": "head", "layer_decay": 0.9 }),
                vec!["layer_decay"],
            ),
            (
                json!({ "train": "head", "checkpointing": true }),
                vec!["checkpointing"],
            ),
            (json!({ "train": "head", "checkpointing": false }), vec![]),
            (json!({ "train": "all", "checkpointing": true }), vec![]),
            (
                json!({ "train": { "last_layers": 1 }, "layer_decay": 0.5, "unfreeze_every": 2 }),
                vec!["layer_decay", "unfreeze_every"],
            ),
            (
                json!({ "train": { "last_layers": 1 }, "layer_decay": 1.0, "unfreeze_every": null }),
                vec![],
            ),
            (
                json!({ "train": { "last_layers": 2 }, "layer_decay": 0.5, "unfreeze_every": 2 }),
                vec![],
            ),
            (json!({ "train": { "last": 2 } }), vec!["train"]),
            (
                json!({ "optimizer": "adafactor", "beta1": 0.8, "beta2": 0.999, "epsilon": 1e-6 }),
                vec!["beta1", "epsilon"],
            ),
            (json!({ "optimizer": "adamw", "beta1": 0.8 }), vec![]),
        ] {
            assert_eq!(wrong(fits, fields.clone()), expected, "{fields}");
        }
    }

    #[test]
    fn a_head_beside_norms_decays() {
        let fields = json!({ "train": "norms", "weight_decay": 0.1 });
        assert!(wrong(fits_with_head, fields).is_empty());
        let fields = json!({ "train": "head", "layer_decay": 0.9 });
        assert_eq!(wrong(fits_with_head, fields), ["layer_decay"]);
        let fields = json!({ "train": "head", "checkpointing": true });
        assert_eq!(wrong(fits_with_head, fields), ["checkpointing"]);
    }
}

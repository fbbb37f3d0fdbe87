//! What files say of a head: the configuration of transformers' classifiers, and whether a head goes with a model.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use formats::config::bert::POOLER;
use formats::head::{About, Activation, Names, Pooling, Shape, Task, check_labels};
use formats::{BertParts, ModelConfig, Weights};
use serde_json::{Map, Value};

use super::{Files, find};
use crate::load_model::names;

/// How many labels a configuration means that says nothing of them, as transformers has it.
const SILENT: usize = 2;

/// What a folder of transformers says, which has no `head.json`; `labels` replace those that it names.
pub(super) fn by_config(all: &Files, labels: Option<&[String]>) -> Result<About> {
    let path = find(all, "config.json").with_context(|| {
        format!(
            "a classifier is a folder with `config.json` and `model.safetensors`, as transformers' AutoModelForSequenceClassification saves it, or one \
             that Levain exported, with `head.json`; here are: {}",
            names(all)
        )
    })?;
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{} can't be read", path.display()))?;
    let config = ModelConfig::from_json(&text, Path::new("config.json"))?;
    let object: Map<String, Value> = serde_json::from_str(&text)?;
    check_class(&object)?;
    let weights = Weights::open_files(all)?;
    let (names, pooling, hidden) = match &config {
        ModelConfig::Llama(config) => (Names::Score, Pooling::Last, config.hidden_size),
        ModelConfig::Bert(config) => (Names::Classifier, Pooling::Pooler, config.hidden_size),
    };
    let head = format!("{}.weight", names.layer(0));
    let info = weights.get(&head).with_context(|| {
        format!("the weights hold no `{head}`, the head of a classifier: a model without one is what `load_model` reads")
    })?;
    let [rows, _] = info.shape[..] else {
        bail!(
            "`{head}` has the shape {:?}, and the weight of a head has rows and columns",
            info.shape
        )
    };
    let (task, labels) = told(&object, rows, labels)
        .with_context(|| format!("config.json, with a `{head}` of {rows} rows"))?;
    let about = About {
        task,
        labels,
        pooling,
        normalize: false,
        shape: Shape {
            input: hidden,
            hidden: Vec::new(),
            outputs: rows,
            activation: Activation::Relu,
            bias: names.has_bias(),
            names,
        },
    };
    about.check()?;
    about.check_among(&weights)?;
    Ok(about)
}

/// Refuses classes of transformers whose files look alike and which do something else.
fn check_class(config: &Map<String, Value>) -> Result<()> {
    let classes = config.get("architectures").and_then(Value::as_array);
    let classes = classes.into_iter().flatten();
    let classes: Vec<&str> = classes.filter_map(Value::as_str).collect();
    let fits = |class: &&str| class.ends_with("ForSequenceClassification");
    ensure!(
        classes.is_empty() || classes.iter().any(fits),
        "config.json: architectures is {}, which is no classifier of whole texts (ForSequenceClassification): a model without a head for labels is what \
         `load_model` reads",
        classes.join(", ")
    );
    Ok(())
}

/// What the head of so many rows tells, and of classes their names.
fn told(
    config: &Map<String, Value>,
    rows: usize,
    given: Option<&[String]>,
) -> Result<(Task, Vec<String>)> {
    let said = |name: &str| config.get(name).filter(|value| !value.is_null());
    if let Some(count) = said("num_labels") {
        ensure!(
            count.as_u64() == Some(rows as u64),
            "num_labels is {count}: configuration and weights are of different models"
        );
    }
    let task = match said("problem_type").map(|value| value.as_str().unwrap_or_default()) {
        Some("regression") => Task::Regression,
        Some("single_label_classification") => Task::Classification,
        Some("multi_label_classification") => bail!(
            "problem_type is multi_label_classification: the model gives several labels at a time, and here a text has one"
        ),
        None if rows == 1 => Task::Regression,
        None => Task::Classification,
        Some(_) => bail!(
            "problem_type is {}; it should be \"single_label_classification\" or \"regression\"",
            config["problem_type"]
        ),
    };
    if task == Task::Regression {
        ensure!(
            rows == 1,
            "problem_type is regression: of several numbers at a time none is the label of a text"
        );
        if let Some(given) = given {
            renamed(task, given)?;
        }
        return Ok((task, Vec::new()));
    }
    let labels = match given {
        Some(given) => {
            ensure!(given.len() == rows, "`labels` has {} names", given.len());
            renamed(task, given)?
        }
        None => named(said("id2label"), said("num_labels").is_some(), rows)?,
    };
    check_labels(&labels)?;
    Ok((task, labels))
}

/// The names in `id2label`, by the rows of the head.
fn named(id2label: Option<&Value>, counted: bool, rows: usize) -> Result<Vec<String>> {
    let way_out = "correct it, or give `labels`, the names in the order of the rows";
    let Some(list) = id2label else {
        ensure!(
            counted || rows == SILENT,
            "there is no id2label, which means {SILENT} labels: give `labels`, the names in the order of the rows"
        );
        return Ok((0..rows).map(|row| format!("LABEL_{row}")).collect());
    };
    let list = list
        .as_object()
        .with_context(|| format!("id2label is {list}, not a mapping: {way_out}"))?;
    ensure!(
        list.len() == rows,
        "id2label has {} labels: {way_out}",
        list.len()
    );
    let name = |row: usize| -> Result<String> {
        let label = list.get(&row.to_string()).with_context(|| {
            format!("id2label has no label {row}, though it has {rows}: {way_out}")
        })?;
        let label = label
            .as_str()
            .with_context(|| format!("id2label: label {row} is {label}, not a text: {way_out}"))?;
        Ok(label.trim().to_owned())
    };
    (0..rows).map(name).collect()
}

/// Names of classes that were given in the place of those that the files have.
pub(super) fn renamed(task: Task, given: &[String]) -> Result<Vec<String>> {
    ensure!(
        task == Task::Classification,
        "`labels` are names of classes, and this head tells a number: leave them out"
    );
    let trimmed = given.iter().map(|label| label.trim().to_owned());
    Ok(trimmed.collect())
}

/// Refuses a head that can't be on a model of this shape.
pub(super) fn check_under(about: &About, config: &ModelConfig, weights: &Weights) -> Result<()> {
    let (what, width, encoder) = match config {
        ModelConfig::Llama(config) => ("a language model", config.hidden_size, false),
        ModelConfig::Bert(config) => ("an encoder", config.hidden_size, true),
    };
    ensure!(
        about.shape.input == width,
        "the head takes vectors of {} numbers, and the model's have {width}: it was made for another model",
        about.shape.input
    );
    ensure!(
        encoder || !about.pooling.is_first(),
        "the head takes the first token's state (`{}`), which in a language model has seen no other token: it was made for an encoder",
        about.pooling.word()
    );
    let names = about.shape.names;
    let theirs = Names::of(encoder, about.pooling, &about.shape.hidden);
    ensure!(
        names == Names::Head || names == theirs,
        "the head's tensors are called `{}`, and on {what} a head on `{}` is called `{}`: it was made for another model",
        names.layer(0),
        about.pooling.word(),
        theirs.layer(0)
    );
    ensure!(
        about.pooling != Pooling::Pooler || BertParts::of(weights).pooler,
        "the head takes what the encoder's pooler gives, and the weights have none (`{POOLER}dense`)"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: Value, rows: usize, given: &[&str]) -> Result<(Task, Vec<String>)> {
        let given: Vec<String> = given.iter().map(|label| (*label).to_owned()).collect();
        let given = (!given.is_empty()).then_some(given.as_slice());
        told(config.as_object().unwrap(), rows, given)
    }

    fn refused(config: Value, rows: usize, given: &[&str]) -> String {
        format!("{:#}", of(config, rows, given).unwrap_err())
    }

    #[test]
    fn labels_are_those_of_transformers() {
        let classes = |labels: &[&str]| {
            let labels = labels.iter().map(|label| (*label).to_owned());
            (Task::Classification, labels.collect::<Vec<_>>())
        };
        // transformers writes no list of two that have no names.
        assert_eq!(
            of(json!({}), 2, &[]).unwrap(),
            classes(&["LABEL_0", "LABEL_1"])
        );
        assert_eq!(
            of(json!({}), 2, &["neg", " pos"]).unwrap(),
            classes(&["neg", "pos"])
        );
        let list = json!({ "id2label": { "1": "b", "0": "a", "2": "c" }, "problem_type": null });
        assert_eq!(of(list.clone(), 3, &[]).unwrap(), classes(&["a", "b", "c"]));
        assert_eq!(
            of(list, 3, &["x", "y", "z"]).unwrap(),
            classes(&["x", "y", "z"])
        );
        let number = (Task::Regression, Vec::new());
        let one = json!({ "id2label": { "0": "LABEL_0" } });
        assert_eq!(of(one, 1, &[]).unwrap(), number);
        let said = json!({ "problem_type": "regression", "num_labels": 1 });
        assert_eq!(of(said, 1, &[]).unwrap(), number);
        let said = json!({ "problem_type": "single_label_classification", "num_labels": 3 });
        assert_eq!(of(said, 3, &[]).unwrap().1.len(), 3);
    }

    #[test]
    fn lists_that_lie_are_refused() {
        let gap = json!({ "id2label": { "0": "a", "2": "c" } });
        assert!(refused(gap, 2, &[]).contains("no label 1, though it has 2"));
        let strange = json!({ "id2label": { "0": "a", "01": "b" } });
        assert!(refused(strange, 2, &[]).contains("no label 1"));
        let more = json!({ "id2label": { "0": "a", "1": "b", "2": "c" } });
        assert!(refused(more, 2, &[]).contains("id2label has 3 labels"));
        let twice = json!({ "id2label": { "0": "a", "1": "a " } });
        assert!(refused(twice, 2, &[]).contains("two classes have the label `a`"));
        let empty = json!({ "id2label": { "0": "a", "1": "" } });
        assert!(refused(empty, 2, &[]).contains("a label is empty"));
        let number = json!({ "id2label": { "0": "a", "1": 1 } });
        assert!(refused(number, 2, &[]).contains("label 1 is 1, not a text"));
        assert!(refused(json!({ "id2label": ["a", "b"] }), 2, &[]).contains("not a mapping"));
        assert!(refused(json!({}), 3, &[]).contains("means 2 labels"));
        assert!(refused(json!({ "num_labels": 3 }), 2, &[]).contains("num_labels is 3"));
        assert!(refused(json!({}), 2, &["a", "b", "c"]).contains("`labels` has 3 names"));
        assert!(refused(json!({}), 1, &["a", "b"]).contains("this head tells a number"));
        let problem = |word: &str| json!({ "problem_type": word });
        assert!(refused(problem("regression"), 2, &[]).contains("several numbers"));
        assert!(refused(problem("multi_label_classification"), 2, &[]).contains("several labels"));
        assert!(refused(problem("ranking"), 2, &[]).contains("problem_type is \"ranking\""));
        let one =
            json!({ "problem_type": "single_label_classification", "id2label": { "0": "a" } });
        assert!(refused(one, 1, &[]).contains("at least two labels"));
    }

    #[test]
    fn other_classes_of_transformers_are_told_by_their_name() {
        let of = |names: &[&str]| {
            let config = json!({ "architectures": names });
            check_class(config.as_object().unwrap())
        };
        assert!(of(&["BertForSequenceClassification"]).is_ok());
        assert!(of(&[]).is_ok());
        assert!(check_class(&Map::new()).is_ok());
        for other in ["BertForTokenClassification", "LlamaForCausalLM"] {
            let error = of(&[other]).unwrap_err().to_string();
            assert!(
                error.contains(other) && error.contains("`load_model`"),
                "{error}"
            );
        }
    }
}

//! Heads of classifiers as files: what `head.json` says of one, and the names and shapes of its tensors.

use crate::json;
use crate::tensors::{Stored, Weights};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// The file of [`About`].
pub const ABOUT: &str = "head.json";
/// The file of a head's tensors.
pub const TENSORS: &str = "head.safetensors";
/// The largest `head.json` that is read, in bytes.
const MAXIMUM_ABOUT: u64 = 64 << 20;
/// The widest layer: what a file says must not ask for all the memory there is.
const WIDEST: usize = 1 << 20;
/// The most layers of a head.
const DEEPEST: usize = 256;
/// The most classes: a confusion matrix has a place for each pair of them.
pub const MOST_LABELS: usize = 4096;

/// What the outputs of a head are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Logits of classes.
    Classification,
    /// One number.
    Regression,
}

impl Task {
    /// The task that a recipe calls by this word.
    pub fn parse(word: &str) -> Result<Task> {
        Ok(match word {
            "classification" => Task::Classification,
            "regression" => Task::Regression,
            other => bail!("`{other}` is not a task: it is classification or regression"),
        })
    }

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Task::Classification => "classification",
            Task::Regression => "regression",
        }
    }

    /// How many numbers a head for these classes gives.
    pub fn outputs(self, classes: &[String]) -> usize {
        match self {
            Task::Classification => classes.len(),
            Task::Regression => 1,
        }
    }
}

/// Which vector stands for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean of the states of all tokens (Reimers and Gurevych, arXiv 1908.10084).
    Mean,
    /// The last token's state.
    Last,
    /// The first token's state.
    Cls,
    /// The first token's state through BERT's pooler.
    Pooler,
}

impl Pooling {
    /// The pooling that a recipe calls by this word.
    pub fn parse(word: &str) -> Result<Pooling> {
        Ok(match word {
            "mean" => Pooling::Mean,
            "last" => Pooling::Last,
            "cls" => Pooling::Cls,
            "pooler" => Pooling::Pooler,
            other => bail!("`{other}` is not a pooling: it is mean, last, cls or pooler"),
        })
    }

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::Last => "last",
            Pooling::Cls => "cls",
            Pooling::Pooler => "pooler",
        }
    }

    /// Whether it is the first token's state, which says nothing in a causal model.
    pub fn is_first(self) -> bool {
        matches!(self, Pooling::Cls | Pooling::Pooler)
    }
}

/// What follows a layer that is not the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// max(0, x).
    Relu,
    /// x Φ(x).
    Gelu,
    /// The hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// The activation that a recipe calls by this word.
    pub fn parse(word: &str) -> Result<Activation> {
        Ok(match word {
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            "tanh" => Activation::Tanh,
            other => bail!("`{other}` is not an activation: it is relu, gelu or tanh"),
        })
    }
}

/// The names of a head's tensors: in files, in `train` and in `learning_rates`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Names {
    /// `head.0.weight`, `head.0.bias`, `head.1.weight`…
    Head,
    /// `score.weight`, as in `LlamaForSequenceClassification`; of linear heads.
    Score,
    /// `classifier.weight` and `classifier.bias`, as in `BertForSequenceClassification`; of linear heads.
    Classifier,
}

impl Names {
    /// The names of a head on this vector of an encoder or of a language model: as in transformers where its classifiers have this shape.
    pub fn of(encoder: bool, pooling: Pooling, hidden: &[usize]) -> Names {
        match (encoder, pooling) {
            _ if !hidden.is_empty() => Names::Head,
            (true, Pooling::Pooler) => Names::Classifier,
            (false, Pooling::Last) => Names::Score,
            _ => Names::Head,
        }
    }

    /// The module that transformers calls the head, where it has one.
    pub fn module(self) -> Option<&'static str> {
        match self {
            Names::Head => None,
            Names::Score => Some("score"),
            Names::Classifier => Some("classifier"),
        }
    }

    /// Whether layers have biases. Llama's in transformers has none.
    pub fn has_bias(self) -> bool {
        self != Names::Score
    }

    /// The name of a layer, counted from 0.
    pub fn layer(self, index: usize) -> String {
        match self.module() {
            Some(module) => module.to_owned(),
            None => format!("head.{index}"),
        }
    }

    /// The names of the tensors of a head with so many layers between vector and result.
    pub fn tensors(self, hidden: usize) -> Vec<String> {
        let layers = (0..=hidden).map(|index| self.layer(index));
        let parts = |layer: String| {
            let bias = self.has_bias().then(|| format!("{layer}.bias"));
            std::iter::once(format!("{layer}.weight")).chain(bias)
        };
        layers.flat_map(parts).collect()
    }
}

/// The shape of a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Numbers of a vector.
    pub input: usize,
    /// Widths of the layers between.
    pub hidden: Vec<usize>,
    /// Numbers that come out.
    pub outputs: usize,
    /// What follows each layer but the last.
    pub activation: Activation,
    /// Whether layers have biases.
    pub bias: bool,
    /// What its tensors are called.
    pub names: Names,
}

impl Shape {
    /// (inputs, outputs) of each layer.
    ///
    /// Errors for widths of 0 or beyond reason, and for layers between under a name that has no place for them.
    pub fn layers(&self) -> Result<Vec<(usize, usize)>> {
        let widths = [&[self.input][..], &self.hidden[..], &[self.outputs][..]].concat();
        ensure!(
            widths.len() <= DEEPEST,
            "a head can't have {} layers",
            widths.len() - 1
        );
        ensure!(
            widths.iter().all(|width| (1..=WIDEST).contains(width)),
            "a head can't have the widths {widths:?}"
        );
        ensure!(
            self.hidden.is_empty() || self.names == Names::Head,
            "a head that transformers knows has no layers between"
        );
        Ok(widths.windows(2).map(|w| (w[0], w[1])).collect())
    }

    /// The names and row-major shapes of its tensors; errors as in [`Shape::layers`].
    pub fn tensors(&self) -> Result<Vec<(String, Vec<usize>)>> {
        let mut all = Vec::new();
        for (index, (input, output)) in self.layers()?.into_iter().enumerate() {
            let name = self.names.layer(index);
            all.push((format!("{name}.weight"), vec![output, input]));
            if self.bias {
                all.push((format!("{name}.bias"), vec![output]));
            }
        }
        Ok(all)
    }
}

/// What a head is and what it was trained on: `head.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// What it tells.
    pub task: Task,
    /// The names of the classes, in order; none of a number.
    pub labels: Vec<String>,
    /// Which vector of a text it takes.
    pub pooling: Pooling,
    /// Whether that has the length 1.
    pub normalize: bool,
    /// Its layers.
    pub shape: Shape,
}

impl About {
    /// Reads the file at `path`, and refuses what no head can be: as many outputs as there are labels, none of which stands twice.
    pub fn open(path: &Path) -> Result<About> {
        let text = json::read_text(path, MAXIMUM_ABOUT)?;
        let about: About = serde_json::from_str(&text)
            .with_context(|| format!("{}: not what a head is", path.display()))?;
        about
            .check()
            .with_context(|| format!("{} is not what a head is", path.display()))?;
        Ok(about)
    }

    /// Writes it, indented.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("{} can't be written", path.display()))
    }

    /// Refuses labels that do not go with the outputs, and shapes that are none.
    pub fn check(&self) -> Result<()> {
        self.shape.layers()?;
        let names = self.shape.names;
        ensure!(
            names == Names::Head || self.shape.bias == names.has_bias(),
            "a head whose tensors are called `{}` {} a bias",
            names.layer(0),
            match names.has_bias() {
                true => "has",
                false => "does not have",
            }
        );
        let (labels, outputs) = (self.labels.len(), self.shape.outputs);
        match self.task {
            Task::Regression => ensure!(
                outputs == 1 && labels == 0,
                "a head for a number has one output and no labels, and this one has {outputs} and {labels}"
            ),
            Task::Classification => {
                ensure!(
                    labels == outputs,
                    "a head with {outputs} outputs has {labels} labels"
                );
                check_labels(&self.labels)?;
            }
        }
        Ok(())
    }

    /// Compares with a head's own file: every tensor of the shape is there, as numbers of a weight, and no other. All problems are named in one
    /// error.
    pub fn check_tensors(&self, weights: &Weights) -> Result<()> {
        let expected = self.shape.tensors()?;
        let mut problems = problems(&expected, weights);
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let strangers = weights.infos().map(|info| info.name.as_str());
        let strangers = strangers.filter(|name| !known.contains(name)).take(4);
        problems.extend(strangers.map(|name| format!("{name} is not expected")));
        ensure!(
            problems.is_empty(),
            "{TENSORS} holds another head than {ABOUT} says:\n  {}",
            problems.join("\n  ")
        );
        Ok(())
    }

    /// The same with a file that holds the model under the head as well.
    pub fn check_among(&self, weights: &Weights) -> Result<()> {
        let problems = problems(&self.shape.tensors()?, weights);
        ensure!(
            problems.is_empty(),
            "the weights hold another head than the configuration asks for:\n  {}",
            problems.join("\n  ")
        );
        Ok(())
    }

    /// Says the same in the configuration of one of transformers' classifiers; nothing where it has none of this shape.
    pub fn describe(&self, config: &mut Map<String, Value>) {
        let class = match self.shape.names {
            Names::Head => return,
            Names::Score => "LlamaForSequenceClassification",
            Names::Classifier => "BertForSequenceClassification",
        };
        let problem = match self.task {
            Task::Classification => "single_label_classification",
            Task::Regression => "regression",
        };
        let names = match self.labels.is_empty() {
            true => vec!["LABEL_0".to_owned()],
            false => self.labels.clone(),
        };
        let numbered = || names.iter().enumerate();
        let by_id: Map<String, Value> = numbered()
            .map(|(id, name)| (id.to_string(), json!(name)))
            .collect();
        let by_name: Map<String, Value> = numbered()
            .map(|(id, name)| (name.clone(), json!(id)))
            .collect();
        config.insert("architectures".to_owned(), json!([class]));
        config.insert("problem_type".to_owned(), json!(problem));
        config.insert("num_labels".to_owned(), json!(names.len()));
        config.insert("id2label".to_owned(), Value::Object(by_id));
        config.insert("label2id".to_owned(), Value::Object(by_name));
    }
}

/// What is wrong with the tensors of these names and shapes.
fn problems(expected: &[(String, Vec<usize>)], weights: &Weights) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, shape) in expected {
        match weights.get(name) {
            None => problems.push(format!("{name} is missing")),
            Some(info) if info.shape != *shape => problems.push(format!(
                "{name} has the shape {:?}, expected {shape:?}",
                info.shape
            )),
            Some(info) => {
                if let Stored::Plain(dtype) = info.stored
                    && !dtype.is_float()
                {
                    problems.push(format!("{name} holds {dtype}, not numbers of a weight"));
                }
            }
        }
    }
    problems
}

/// The names of classes: two to [`MOST_LABELS`], none of them empty, none twice.
pub fn check_labels(labels: &[String]) -> Result<()> {
    ensure!(
        labels.len() > 1,
        "a classifier tells at least two labels apart, and this one has {}",
        labels.len()
    );
    ensure!(
        labels.len() <= MOST_LABELS,
        "there are {} labels, and at most {MOST_LABELS} can be told apart",
        labels.len()
    );
    let mut seen = BTreeSet::new();
    for label in labels {
        ensure!(!label.trim().is_empty(), "a label is empty");
        ensure!(
            seen.insert(label.trim()),
            "two classes have the label `{}`",
            label.trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, safetensors};

    fn about(labels: &[&str]) -> About {
        About {
            task: Task::Classification,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            pooling: Pooling::Mean,
            normalize: false,
            shape: Shape {
                input: 2,
                hidden: Vec::new(),
                outputs: labels.len(),
                activation: Activation::Relu,
                bias: true,
                names: Names::Head,
            },
        }
    }

    #[test]
    fn what_a_head_is_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(ABOUT);
        let written = about(&["a", "b"]);
        written.save(&path).unwrap();
        assert_eq!(About::open(&path).unwrap(), written);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, words) in [
            ("\"outputs\": 2", "\"outputs\": 3", "3 outputs has 2 labels"),
            ("\"b\"", "\"a\"", "two classes have the label `a`"),
            ("\"b\"", "\"a \"", "two classes have the label `a`"),
            ("\"b\"", "\" \"", "a label is empty"),
            ("\"input\": 2", "\"input\": 0", "can't have the widths"),
            (
                "\"input\": 2",
                "\"input\": 9000000",
                "can't have the widths",
            ),
            ("\"mean\"", "\"max\"", "not what a head is"),
            ("\"normalize\"", "\"normalise\"", "not what a head is"),
            (
                "\"classification\"",
                "\"regression\"",
                "one output and no labels",
            ),
        ] {
            assert!(text.contains(from), "{from}");
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let error = format!("{:#}", About::open(&path).unwrap_err());
            assert!(error.contains(words), "{to}: {error}");
        }
    }

    #[test]
    fn names_are_those_of_transformers_where_it_has_the_shape() {
        let of = |encoder, pooling, hidden: &[usize]| {
            Names::of(encoder, pooling, hidden).tensors(hidden.len())
        };
        assert_eq!(
            of(true, Pooling::Pooler, &[]),
            ["classifier.weight", "classifier.bias"]
        );
        assert_eq!(of(false, Pooling::Last, &[]), ["score.weight"]);
        assert_eq!(
            of(true, Pooling::Last, &[]),
            ["head.0.weight", "head.0.bias"]
        );
        let deep = [
            "head.0.weight",
            "head.0.bias",
            "head.1.weight",
            "head.1.bias",
        ];
        assert_eq!(of(false, Pooling::Last, &[4]), deep);
        let shape = Shape {
            hidden: vec![4],
            ..about(&["a", "b", "c"]).shape
        };
        let tensors = shape.tensors().unwrap();
        let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, deep);
        assert_eq!(tensors[2].1, [3, 4]);
    }

    #[test]
    fn transformers_is_told_what_the_labels_are() {
        let mut about = about(&["a", "b"]);
        let mut config = Map::new();
        about.describe(&mut config);
        assert!(config.is_empty());
        about.shape.names = Names::Classifier;
        about.describe(&mut config);
        let expected = json!({
            "architectures": ["BertForSequenceClassification"], "problem_type": "single_label_classification", "num_labels": 2,
            "id2label": { "0": "a", "1": "b" }, "label2id": { "a": 0, "b": 1 },
        });
        assert_eq!(Value::Object(config), expected);
        about.shape.names = Names::Score;
        let error = about.check().unwrap_err().to_string();
        assert!(error.contains("`score` does not have a bias"), "{error}");
    }

    #[test]
    fn tensors_that_are_another_heads_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TENSORS);
        let open = |tensors: &[(&str, Dtype, &[usize])]| {
            let tensors: Vec<_> = tensors
                .iter()
                .map(|(name, dtype, shape)| {
                    let bytes = vec![0u8; shape.iter().product::<usize>() * dtype.size()];
                    ((*name).to_owned(), *dtype, shape.to_vec(), bytes)
                })
                .collect();
            safetensors::write_file(&path, &tensors, &[]).unwrap();
            Weights::open(&path).unwrap()
        };
        let about = about(&["a", "b"]);
        let weight = ("head.0.weight", Dtype::F32, &[2, 2][..]);
        let bias = ("head.0.bias", Dtype::F32, &[2][..]);
        about.check_tensors(&open(&[weight, bias])).unwrap();
        let said = |tensors: &[(&str, Dtype, &[usize])]| {
            let error = about.check_tensors(&open(tensors)).unwrap_err();
            error.to_string()
        };
        assert!(said(&[weight]).contains("head.0.bias is missing"));
        let wide = ("head.0.bias", Dtype::F32, &[3][..]);
        assert!(said(&[weight, wide]).contains("has the shape [3], expected [2]"));
        let codes = ("head.0.bias", Dtype::I32, &[2][..]);
        assert!(said(&[weight, codes]).contains("holds I32"));
        let other = ("score.weight", Dtype::F32, &[2, 2][..]);
        assert!(said(&[weight, bias, other]).contains("score.weight is not expected"));
    }
}

//! `head`: a linear map or a small network, trained on vectors that are there already.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, Field, FieldType, Literal, Need, Output, Pool, Port, Repeatable,
    Summary,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::training::{
    BETA1, BETA2, EPSILON, MAX_GRAD_NORM, MAX_STEPS, OPTIMIZER, SCHEDULE, SEED, SNAPSHOT_SECONDS,
    Training, WARMUP, WEIGHT_DECAY, fits_with_head, learning_rate,
};
use crate::words::{POSITIVE, field, numeric, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// `classification` or `regression`.
    pub task: String,
    /// Widths of the layers between vector and result.
    pub hidden: Vec<usize>,
    /// `relu`, `gelu` or `tanh`.
    pub activation: String,
    /// The probability that a number is dropped before a layer.
    pub dropout: f64,
    /// Whether the numbers of vectors are made alike first.
    pub standardize: bool,
    /// See [`Training`].
    pub learning_rate: f64,
    /// See [`Training`].
    pub schedule: String,
    /// See [`Training`].
    pub warmup: f64,
    /// See [`Training`].
    pub epochs: f64,
    /// See [`Training`].
    pub max_steps: Option<u64>,
    /// See [`Training`].
    pub batch: usize,
    /// See [`Training`].
    pub optimizer: String,
    /// See [`Training`].
    pub weight_decay: f64,
    /// See [`Training`].
    pub beta1: f64,
    /// See [`Training`].
    pub beta2: f64,
    /// See [`Training`].
    pub epsilon: f64,
    /// See [`Training`].
    pub max_grad_norm: f64,
    /// See [`Training`].
    pub seed: u64,
    /// See [`Training`].
    pub micro_batch: usize,
    /// See [`Training`].
    pub snapshot_seconds: u64,
}

/// How a head is trained: what there is no field for here is as in a training of a model that says nothing of it.
///
/// # Errors
/// A parameter is not what it should be.
pub fn training(params: &Map<String, Value>) -> serde_json::Result<Training> {
    let usual = crate::sft::CONTRACT.fields.iter();
    let mut all: Map<String, Value> = usual
        .filter_map(|field| match field.need {
            Need::Default(literal) => Some((field.name.to_owned(), literal.value())),
            _ => None,
        })
        .collect();
    all.extend(params.clone());
    serde_json::from_value(Value::Object(all))
}

/// What is to be told of a text.
pub(crate) const TASK: Field = field(
    "task",
    FieldType::Choice(&[
        Choice {
            word: "classification",
            doc: "which label it has, by cross-entropy",
        },
        Choice {
            word: "regression",
            doc: "the number that is its label, by the squared error",
        },
    ]),
    Need::Default(Literal::Text("classification")),
    "What labels are: names, or numbers on a scale.",
);

/// Layers between.
pub(crate) const HIDDEN: Field = field(
    "hidden",
    FieldType::List {
        of: &FieldType::Integer { min: 1, max: 65536 },
        min: 0,
    },
    Need::Default(Literal::EmptyList),
    "Widths of the layers between vector and result, `[256]` for one of 256; none: a linear map.",
);

/// What comes between layers.
pub(crate) const ACTIVATION: Field = field(
    "activation",
    FieldType::Choice(&[
        Choice {
            word: "relu",
            doc: "max(0, x)",
        },
        Choice {
            word: "gelu",
            doc: "x Φ(x)",
        },
        Choice {
            word: "tanh",
            doc: "the hyperbolic tangent",
        },
    ]),
    Need::Default(Literal::Text("relu")),
    "What follows each layer of `hidden`.",
);

/// Dropout before each layer.
pub(crate) const DROPOUT: Field = field(
    "dropout",
    FieldType::Number {
        min: 0.0,
        max: 0.999_999_999,
        above: false,
    },
    Need::Default(Literal::Number(0.0)),
    "The probability that a number is dropped in training before each layer of the head, the first one included.",
);

/// The names of what is measured on held-out rows.
pub(crate) fn measured(params: &Map<String, Value>) -> &'static [&'static str] {
    match params.get("task").and_then(Value::as_str) {
        Some("regression") => &["loss", "mse", "mae", "r2", "pearson", "spearman", "rows"],
        _ => &[
            "loss", "accuracy", "f1", "f1_macro", "mcc", "auc", "majority", "rows",
        ],
    }
}

/// The names of a training's metrics: those of `own`, and with held-out rows what was measured on them.
pub(crate) fn names(
    own: &[&str],
    params: &Map<String, Value>,
    named: &dyn Fn(&str) -> Vec<String>,
) -> Vec<String> {
    let mut all = words(own);
    if !named("test").is_empty() {
        let test = measured(params).iter();
        all.extend(test.map(|name| format!("test.{name}")));
    }
    all
}

/// What can be told of a classifier before it is trained.
pub(crate) fn told(params: &Map<String, Value>, _: &[(&str, &Summary)]) -> Option<Summary> {
    let task = params.get("task")?.clone();
    Some([("task".to_owned(), task)].into())
}

/// An activation between layers that there are not, and what does nothing in a training with a head.
pub(crate) fn fits_head(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let mut problems = fits_with_head(params);
    let linear = params
        .get("hidden")
        .and_then(Value::as_array)
        .is_some_and(Vec::is_empty);
    let usual = params
        .get("activation")
        .and_then(Value::as_str)
        .is_none_or(|word| word == "relu");
    if linear && !usual {
        let message = "a head without `hidden` layers is a linear map, with nothing for `activation` to follow: give widths such as `hidden: [256]`, or leave it out";
        problems.push(("activation", message.to_owned()));
    }
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "head",
    version: 2,
    about: "Trains a linear map or a small network on vectors of texts: the head of feature-based fine-tuning.",
    manual: "\
The vectors come from `features` and stay as they are, so that an epoch takes milliseconds. With x a vector and `hidden: [h]` the head is
W₂ a(W₁ x + b₁) + b₂ with `activation` a; without `hidden` it is W x + b, logistic regression by another name. What is minimised, as a mean
over the rows of a batch:

| `task` | outputs | loss of a row |
|---|---|---|
| `classification` | z, one for each label; labels in order of their text, or of their value where all are numbers, and then `1` and `1.0` are one; white space around them is no part of them | −log softmax(z)_label |
| `regression` | one | (z − label)² |

`standardize` shifts and scales each number of the vectors to mean 0 and deviation 1 over the training rows first (numbers that never change are
only shifted); after the training that is put into W₁ and b₁, so that the head that comes out takes vectors as they are. Weights start
uniform in ±1/√inputs, as torch's `Linear`, biases at 0, that of a regression's result at the mean of the training labels. Dropout is before
each layer. Weight decay spares biases.

With `test`, the head is measured on held-out vectors, which must come from the same model, `pooling` and `normalize`, and of texts that were cut in
the same manner: other `max_length` or `truncation` is an error where it makes a difference to any text. Definitions are scikit-learn's:
*accuracy*; *f1*, of two labels that of the second, else the mean over labels *f1_macro*; *mcc* (Matthews); *auc*, the area under the ROC curve, of more
than two labels the mean of each against the rest; *loss* in nats; and *majority*, the accuracy of always saying the most frequent of the held-out labels. Of
numbers: *mse*, *mae*, *r2*, *pearson*, *spearman*. What is not defined (the AUC of rows that all have one label) is null, with the reason
in `metrics.json`, where the confusion matrix is as well.

The head is `head.safetensors` with `head.json`; it refers to the model whose vectors it was trained on. `classify` applies it to texts. Fields of
optimizers are explained under `sft`.",
    example: "probe: { kind: head, data: vectors, test: held_out, epochs: 20 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: &[
        TASK,
        HIDDEN,
        ACTIVATION,
        DROPOUT,
        field(
            "standardize",
            FieldType::Bool,
            Need::Default(Literal::Bool(true)),
            "Shift and scale each number of the vectors to mean 0 and deviation 1 over the training rows first.",
        ),
        learning_rate(1e-3),
        SCHEDULE,
        WARMUP,
        field(
            "epochs",
            POSITIVE,
            Need::Default(Literal::Number(20.0)),
            "Passes over the rows; 0.5 is half a pass.",
        ),
        MAX_STEPS,
        field(
            "batch",
            FieldType::Integer { min: 1, max: 1 << 20 },
            Need::Default(Literal::Integer(32)),
            "Rows of one update.",
        ),
        OPTIMIZER,
        WEIGHT_DECAY,
        BETA1,
        BETA2,
        EPSILON,
        MAX_GRAD_NORM,
        SEED,
        numeric(
            "micro_batch",
            FieldType::Integer { min: 1, max: 65536 },
            Need::Default(Literal::Integer(1024)),
            "Rows that go through the head at once: less changes the last bits only.",
        ),
        SNAPSHOT_SECONDS,
    ],
    ports: &[
        Port {
            name: "data",
            accepts: &[ArtifactType::Vectors],
            arity: Arity::One,
            layouts: &[],
            doc: "Vectors with labels to train on.",
        },
        Port {
            name: "test",
            accepts: &[ArtifactType::Vectors],
            arity: Arity::Optional,
            layouts: &[],
            doc: "Held-out vectors of the same model to measure on.",
        },
    ],
    outputs: &[
        Output::new("head", ArtifactType::Classifier, "The head.").keeps_tokenizer_of("data").foreseen(told),
        Output::new("metrics", ArtifactType::Metrics, "Loss and accuracy of each step, and what was measured on `test`.")
            .metrics(|params, named| names(&["first_loss", "last_loss", "steps"], params, named)),
    ],
    preparations: &[],
    layout: None,
    check: fits_head,
    check_inputs: None,
    memory: None,
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::training::Train;

    #[test]
    fn a_training_of_a_head_has_what_the_head_does_not_say() {
        let mut params: Map<String, Value> = CONTRACT
            .fields
            .iter()
            .filter_map(|field| match field.need {
                Need::Default(literal) => Some((field.name.to_owned(), literal.value())),
                _ => None,
            })
            .collect();
        params.insert("seed".to_owned(), 17.into());
        params.insert("batch".to_owned(), 5.into());
        let found = training(&params).unwrap();
        assert_eq!((found.batch, found.seed, found.epochs), (5, 17, 20.0));
        assert_eq!(found.train, Train::default());
        assert_eq!(found.learning_rates, BTreeMap::new());
        assert_eq!(found.max_steps, None);
    }
}

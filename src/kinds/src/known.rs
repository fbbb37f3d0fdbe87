//! Mistakes that show before anything runs from what is known of the models in a stage's ports.

use engine::contract::{Inputs, Summary};
use serde_json::{Map, Value};

use crate::memory::{ADAPTER, AT_MOST, QUANTIZED};
use crate::model::FOR_ENCODERS;
use crate::training::ALL;

/// (field or port, message).
pub(crate) type Mistakes = Vec<(&'static str, String)>;

/// What is known of a thing that a model may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// Nothing.
    Unknown,
    /// It has none.
    None,
    /// It has this one.
    Is(&'a str),
}

fn told<'a>(known: &'a Summary, name: &str) -> Told<'a> {
    match known.get(name) {
        Some(Value::Null) => Told::None,
        Some(Value::String(word)) => Told::Is(word),
        _ => Told::Unknown,
    }
}

/// The kind of a model's adapter.
pub fn adapter(known: &Summary) -> Told<'_> {
    told(known, ADAPTER)
}

/// How a model is quantized.
pub fn quantized(known: &Summary) -> Told<'_> {
    told(known, QUANTIZED)
}

/// Whether a model is known to be an encoder.
pub fn is_encoder(known: &Summary) -> bool {
    known.get("architecture").is_some_and(|name| name == "bert")
}

/// The models in a port that are known to be encoders.
fn encoders(inputs: &Inputs<'_>, port: &str) -> impl Iterator<Item = String> {
    let models = (inputs.known)(port).into_iter();
    models.filter_map(|(model, known)| is_encoder(&known).then_some(model))
}

/// Why rows can't tell what a change of the encoder `name` does.
pub fn unmeasured(name: &str) -> String {
    format!(
        "`{name}` is an encoder (BERT), which predicts no next token: there is no loss of these rows to compare. Leave `data` out, and measure the \
         encoder before and after with `masked_lm_loss`"
    )
}

/// Rows to compare an encoder before and after on.
pub(crate) fn measured(inputs: &Inputs<'_>) -> Mistakes {
    if (inputs.names)("data").is_empty() {
        return Mistakes::new();
    }
    encoders(inputs, "model")
        .map(|model| ("data", unmeasured(&model)))
        .collect()
}

/// Encoders in a port that takes language models.
pub(crate) fn language(inputs: &Inputs<'_>, port: &'static str) -> Mistakes {
    let said = encoders(inputs, port).map(|model| {
        format!(
            "`{model}` is an encoder (BERT), which predicts no next token and writes nothing: this takes a language model. Of an encoder, \
             {FOR_ENCODERS}"
        )
    });
    said.map(|message| (port, message)).collect()
}

/// Language models in a port that takes encoders.
pub(crate) fn language_models(inputs: &Inputs<'_>, port: &'static str) -> Mistakes {
    let models = (inputs.known)(port).into_iter();
    let others =
        models.filter(|(_, known)| known.contains_key("architecture") && !is_encoder(known));
    let said = others.map(|(model, _)| {
        format!(
            "`{model}` is a language model (Llama), whose tokens see only what stands before them: masked words are for an encoder (BERT). `sft` \
             trains a language model on text, `evaluate` measures it"
        )
    });
    said.map(|message| (port, message)).collect()
}

/// An adapter that only language models have, for an encoder or a model that has one.
pub(crate) fn unadapted_language(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let said = encoders(inputs, "model").map(|model| {
        let message = format!(
            "`{model}` is an encoder (BERT), and this adapter is for language models: `lora` and `ia3` take both"
        );
        ("model", message)
    });
    said.chain(unadapted(params, inputs)).collect()
}

/// A training of the language model in `model`: see [`trains_port`].
pub(crate) fn trains(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let mut mistakes = language(inputs, "model");
    mistakes.extend(trains_port(params, inputs, "model"));
    mistakes
}

/// A training of the model in `port`: of weights that can't be trained, or a choice of weights where an adapter is what is trained.
pub(crate) fn trains_port(
    params: &Map<String, Value>,
    inputs: &Inputs<'_>,
    port: &'static str,
) -> Mistakes {
    let train = params.get("train").filter(|train| !train.is_null());
    let chooses = train.is_some_and(|train| train.as_str() != Some(ALL));
    let mut mistakes = Vec::new();
    for (stage, known) in (inputs.known)(port) {
        match (adapter(&known), quantized(&known)) {
            (Told::Is(adapter), _) if chooses => mistakes.push((
                "train",
                format!(
                    "`train` chooses among the weights of a model without an adapter, but `{stage}` has one ({adapter}), and that is what is \
                     trained: leave `train` out, or train the model that the adapter was attached to"
                ),
            )),
            (Told::None, Told::Is(scheme)) => mistakes.push((
                port,
                format!(
                    "the weights of `{stage}` are quantized ({scheme}) and can't be trained: attach an adapter with `lora`, or train the model \
                     that was quantized"
                ),
            )),
            _ => {}
        }
    }
    mistakes
}

/// An adapter for a model that has one.
pub(crate) fn unadapted(_: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let models = (inputs.known)("model").into_iter();
    models
        .filter_map(|(stage, known)| {
            let Told::Is(adapter) = adapter(&known) else {
                return None;
            };
            let message = format!(
                "`{stage}` has an adapter already ({adapter}): attach one to its base, or `merge` the first one before"
            );
            Some(("model", message))
        })
        .collect()
}

/// The model in `port` reads the tokens of the one in `model`.
pub(crate) fn same_words(inputs: &Inputs<'_>, port: &'static str, who: &str) -> Mistakes {
    let words = |known: &Summary| {
        let count = known
            .get("vocabulary")
            .filter(|_| !known.contains_key(AT_MOST));
        count.and_then(Value::as_u64)
    };
    let mut mistakes = Vec::new();
    for (model, own) in (inputs.known)("model") {
        for (other, theirs) in (inputs.known)(port) {
            if let (Some(own), Some(theirs)) = (words(&own), words(&theirs))
                && own != theirs
            {
                let message = format!(
                    "{who} reads the tokens of `{model}`, which has {own} words, but `{other}` has {theirs}: start it from `{model}` or a \
                     model of its family"
                );
                mistakes.push((port, message));
            }
        }
    }
    mistakes
}

/// A width in which two models differ: its name, that of the first and that of the second.
pub(crate) fn difference(a: &Summary, b: &Summary) -> Option<(&'static str, String, String)> {
    let bounded = a.contains_key(AT_MOST) || b.contains_key(AT_MOST);
    let names = [
        "layers",
        "hidden",
        "heads",
        "head_dim",
        "intermediate",
        "vocabulary",
    ];
    names.into_iter().find_map(|name| {
        let (own, other) = (a.get(name)?, b.get(name)?);
        let differ = own != other && !(bounded && name == "vocabulary");
        differ.then(|| (name, own.to_string(), other.to_string()))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// What a check says where this is known: port, stage, facts.
    pub(crate) fn said(
        check: engine::contract::CheckInputs,
        params: Value,
        known: &[(&str, &str, Value)],
    ) -> Vec<(&'static str, String)> {
        let names = |port: &str| -> Vec<String> {
            let own = known.iter().filter(|(own, ..)| *own == port);
            own.map(|(port, ..)| (*port).to_owned()).collect()
        };
        let of = |port: &str| -> Vec<(String, Summary)> {
            let own = known.iter().filter(|(own, ..)| *own == port);
            own.map(|(_, stage, facts)| {
                let facts = facts.as_object().unwrap().clone();
                ((*stage).to_owned(), facts.into_iter().collect())
            })
            .collect()
        };
        let inputs = Inputs {
            names: &names,
            rows: &|_| Vec::new(),
            known: &of,
        };
        check(params.as_object().unwrap(), &inputs)
    }

    /// The fields or ports of what is said.
    pub(crate) fn places(
        check: engine::contract::CheckInputs,
        params: Value,
        known: &[(&str, &str, Value)],
    ) -> Vec<&'static str> {
        let all = said(check, params, known).into_iter();
        all.map(|(place, _)| place).collect()
    }

    #[test]
    fn what_can_be_trained_is_trained() {
        let of = |train: Value, facts: Value| {
            places(trains, json!({ "train": train }), &[("model", "m", facts)])
        };
        let none: [&str; 0] = [];
        let packed = json!({ "adapter": null, "quantized": "nf4" });
        assert_eq!(of(json!("all"), packed.clone()), ["model"]);
        assert_eq!(of(json!("norms"), packed), ["model"]);
        let qlora = json!({ "adapter": "lora", "quantized": "nf4" });
        assert_eq!(of(json!("all"), qlora.clone()), none);
        assert_eq!(of(json!("norms"), qlora.clone()), ["train"]);
        assert_eq!(of(json!(["layers.1"]), qlora), ["train"]);
        let plain = json!({ "adapter": null, "quantized": null });
        assert_eq!(of(json!({ "last_layers": 1 }), plain), none);
        // Whether there is an adapter is not known.
        assert_eq!(of(json!("norms"), json!({ "quantized": "nf4" })), none);
        assert_eq!(of(json!("norms"), json!({})), none);
        let found = said(
            trains,
            json!({}),
            &[(
                "model",
                "m",
                json!({ "adapter": null, "quantized": "int8" }),
            )],
        );
        assert!(
            found[0]
                .1
                .starts_with("the weights of `m` are quantized (int8)"),
            "{found:?}"
        );
    }

    #[test]
    fn a_second_model_reads_the_tokens_of_the_first() {
        let check = |_: &Map<String, Value>, inputs: &Inputs<'_>| {
            same_words(inputs, "critic", "the critic")
        };
        let of = |own: Value, other: Value| {
            places(
                check,
                json!({}),
                &[("model", "m", own), ("critic", "c", other)],
            )
        };
        let none: [&str; 0] = [];
        assert_eq!(
            of(json!({ "vocabulary": 280 }), json!({ "vocabulary": 300 })),
            ["critic"]
        );
        assert_eq!(
            of(json!({ "vocabulary": 280 }), json!({ "vocabulary": 280 })),
            none
        );
        assert_eq!(
            of(
                json!({ "vocabulary": 280 }),
                json!({ "vocabulary": 300, AT_MOST: true })
            ),
            none
        );
        assert_eq!(of(json!({}), json!({ "vocabulary": 300 })), none);
    }
}

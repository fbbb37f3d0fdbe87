//! Names in a recipe against the layers and parameters of models whose shape is known before anything runs.

use std::path::Path;

use engine::contract::{Inputs, Summary};
use formats::head::{Names, Pooling};
use formats::{BertParts, ModelConfig, REWARD_HEAD, patterns, peft, quantized};
use kinds::ia3::Ia3;
use kinds::known::{Told, adapter};
use kinds::lora::Targets;
use kinds::memory::{CONFIGURATION, MASKED_HEAD};
use serde_json::{Map, Value};

use crate::{ia3 as ia3_stage, lora as lora_stage};

/// What is known of an encoder's pooler: whether it has one.
const POOLER: &str = "pooler";

/// (field, message).
type Mistakes = Vec<(&'static str, String)>;

/// The shapes of the models in `model` that are known, with what else is known of them.
fn models(inputs: &Inputs<'_>) -> Vec<(ModelConfig, Summary)> {
    let all = (inputs.known)("model").into_iter();
    all.filter_map(|(_, known)| {
        let text = known.get(CONFIGURATION)?.to_string();
        // What is wrong with a configuration is told when its stage runs.
        let config = ModelConfig::from_json(&text, Path::new("config.json")).ok()?;
        Some((config, known))
    })
    .collect()
}

/// The patterns of a field: one or several.
fn patterns_of(params: &Map<String, Value>, name: &str) -> Option<Vec<String>> {
    let value = params.get(name)?.clone();
    let targets: Targets = serde_json::from_value(value).ok()?;
    Some(targets.patterns())
}

/// `skip` of `quantize`.
pub(crate) fn quantize(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let skip = patterns_of(params, "skip").unwrap_or_default();
    let all = models(inputs).into_iter();
    all.filter_map(|(config, _)| quantized::skipped(&skip, &config.linear_shapes()).err())
        .map(|error| ("skip", error.to_string()))
        .collect()
}

/// `targets` and `r` of `lora`.
pub(crate) fn lora(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let targets = patterns_of(params, "targets").unwrap_or_default();
    let rank = params.get("r").and_then(Value::as_u64).unwrap_or(1);
    let mut mistakes = Mistakes::new();
    for (config, _) in models(inputs) {
        let linears = config.linear_shapes();
        let names: Vec<&str> = linears.iter().map(|(name, ..)| name.as_str()).collect();
        match peft::choose_targets(&targets, &names) {
            Err(error) => mistakes.push(("targets", error.to_string())),
            Ok(matched) => {
                if let Err(error) = lora_stage::check_rank(rank as usize, &matched, &linears) {
                    mistakes.push(("r", error.to_string()));
                }
            }
        }
    }
    mistakes
}

/// `targets` and `feedforward` of `ia3`.
pub(crate) fn ia3(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let Ok(params) = serde_json::from_value::<Ia3>(Value::Object(params.clone())) else {
        return Mistakes::new();
    };
    let all = models(inputs).into_iter();
    all.filter_map(|(config, _)| {
        let linears = config.linear_shapes();
        let names: Vec<&str> = linears.iter().map(|(name, ..)| name.as_str()).collect();
        ia3_stage::chosen(&params, &names).err()
    })
    .map(|(field, error)| (field, error.to_string()))
    .collect()
}

/// What a training of whole weights names.
pub(crate) fn train(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    trained(params, inputs, None)
}

/// The same with a head for rewards.
pub(crate) fn train_reward_model(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    trained(params, inputs, Some(REWARD_HEAD))
}

fn trained(params: &Map<String, Value>, inputs: &Inputs<'_>, head: Option<&str>) -> Mistakes {
    let mut mistakes = Mistakes::new();
    // What is trained of an adapter is named by the adapter.
    let whole = models(inputs).into_iter();
    for (config, _) in whole.filter(|(_, known)| adapter(known) == Told::None) {
        // What these kinds say of an encoder is that they take none.
        let ModelConfig::Llama(config) = config else {
            continue;
        };
        let tensors = config.tensor_shapes().into_iter();
        let mut names: Vec<String> = tensors.map(|(name, _)| name).collect();
        names.extend(head.map(str::to_owned));
        mistakes.extend(named(params, &names, config.num_hidden_layers));
    }
    mistakes
}

/// The same of `classifier`, which takes encoders as well and puts a head of its own on the model.
pub(crate) fn train_classifier(params: &Map<String, Value>, inputs: &Inputs<'_>) -> Mistakes {
    let pooling = params.get("pooling").and_then(Value::as_str);
    let pooling = pooling.and_then(|word| Pooling::parse(word).ok());
    let hidden = params.get("hidden").cloned();
    let hidden = hidden.and_then(|list| serde_json::from_value::<Vec<usize>>(list).ok());
    let (Some(pooling), Some(hidden)) = (pooling, hidden) else {
        return Mistakes::new();
    };
    let mut mistakes = Mistakes::new();
    let whole = models(inputs).into_iter();
    for (config, known) in whole.filter(|(_, known)| adapter(known) == Told::None) {
        let (encoder, layers, tensors) = match &config {
            ModelConfig::Llama(config) => (false, config.num_hidden_layers, config.tensor_shapes()),
            ModelConfig::Bert(config) => {
                let has = |part: &str| known.get(part).and_then(Value::as_bool);
                let (Some(pooler), Some(head)) = (has(POOLER), has(MASKED_HEAD)) else {
                    continue;
                };
                let parts = BertParts { pooler, head };
                (true, config.num_hidden_layers, config.tensor_shapes(parts))
            }
        };
        let mut names: Vec<String> = tensors.into_iter().map(|(name, _)| name).collect();
        names.extend(Names::of(encoder, pooling, &hidden).tensors(hidden.len()));
        mistakes.extend(named(params, &names, layers));
    }
    mistakes
}

/// What `train` and `learning_rates` say of parameters of these names.
fn named(params: &Map<String, Value>, names: &[String], layers: usize) -> Mistakes {
    let mut mistakes = Mistakes::new();
    let mut check = |field, wanted: &[String]| {
        if let Err(error) = patterns::check(wanted, names, "parameter of the model") {
            mistakes.push((field, error.to_string()));
        }
    };
    if let Some(Value::Array(_)) = params.get("train") {
        check("train", &patterns_of(params, "train").unwrap_or_default());
    }
    if let Some(Value::Object(rates)) = params.get("learning_rates") {
        let wanted: Vec<String> = rates.keys().cloned().collect();
        check("learning_rates", &wanted);
    }
    let last = params
        .get("train")
        .and_then(|train| train.get("last_layers"));
    if let Some(count) = last.and_then(Value::as_u64)
        && count > layers as u64
    {
        let message =
            format!("the last {count} layers are to be trained, but the model has {layers}");
        mistakes.push(("train", message));
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use formats::LlamaConfig;
    use serde_json::json;

    use super::*;

    /// A Llama of two layers of width 32, with 4 query heads of 8 and 2 for keys.
    fn model(more: Value) -> Summary {
        let config = LlamaConfig {
            vocab_size: 280,
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
            attention_bias: false,
            mlp_bias: false,
            max_position_embeddings: 64,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            rope_scaling: None,
        };
        let mut known: Summary = more.as_object().unwrap().clone().into_iter().collect();
        known.insert(CONFIGURATION.to_owned(), config.to_json());
        known
    }

    /// A BERT of two layers of width 32.
    fn encoder() -> Summary {
        let config = json!({
            "model_type": "bert", "vocab_size": 280, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 64,
        });
        let known = json!({ "adapter": null, CONFIGURATION: config });
        known.as_object().unwrap().clone().into_iter().collect()
    }

    /// `field: message` of what a trial says of these fields and this model.
    fn said(attempt: engine::contract::CheckInputs, fields: Value, known: &Summary) -> Vec<String> {
        let of = |port: &str| match port {
            "model" => vec![("m".to_owned(), known.clone())],
            _ => Vec::new(),
        };
        let inputs = Inputs {
            names: &|port| vec![port.to_owned()],
            rows: &|_| Vec::new(),
            known: &of,
        };
        let found = attempt(fields.as_object().unwrap(), &inputs).into_iter();
        found
            .map(|(field, text)| format!("{field}: {text}"))
            .collect()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn layers_that_are_not_there_are_told_with_the_nearest() {
        let base = model(json!({ "adapter": null }));
        let of = |targets: Value, r: u64| said(lora, json!({ "targets": targets, "r": r }), &base);
        assert_eq!(of(json!("all-linear"), 16), NONE);
        assert_eq!(of(json!(["q_proj", "1.mlp.*"]), 32), NONE);
        assert_eq!(
            of(json!("all-linear"), 17),
            [
                "r: r = 17 is larger than `model.layers.0.self_attn.k_proj` (16 × 32); the rank is at most 16"
            ]
        );
        assert_eq!(
            of(json!(["qproj"]), 8),
            [
                "targets: no linear module is called \"qproj\" (the nearest are q_proj, k_proj and o_proj)"
            ]
        );
        let skip = |skip: Value| said(quantize, json!({ "skip": skip }), &base);
        assert_eq!(skip(json!([])), NONE);
        assert_eq!(skip(json!("q_proj")), NONE);
        assert!(skip(json!(["layers.2"]))[0].starts_with("skip: no linear module is called"));
        assert_eq!(
            skip(json!("model")),
            ["skip: nothing is left to be quantized"]
        );
        let scaled = |targets: Value, feedforward: Value| {
            said(
                ia3,
                json!({ "targets": targets, "feedforward": feedforward }),
                &base,
            )
        };
        assert_eq!(scaled(Value::Null, Value::Null), NONE);
        assert_eq!(scaled(json!("mlp"), json!("down_proj")), NONE);
        assert!(scaled(json!("mpl"), Value::Null)[0].starts_with("targets: "));
        assert!(scaled(Value::Null, json!("donw_proj"))[0].starts_with("feedforward: no linear"));
        assert!(scaled(json!("k_proj"), json!("down_proj"))[0].contains("not among the targets"));
        // An encoder's layers have other names.
        let encoder = encoder();
        let of = |targets: Value| said(lora, json!({ "targets": targets, "r": 8 }), &encoder);
        assert_eq!(of(json!(["query", "layer.1.output.dense"])), NONE);
        assert!(of(json!("q_proj"))[0].starts_with("targets: no linear module is called"));
        assert!(of(json!("pooler"))[0].starts_with("targets: no linear module is called"));
        let skip = |skip: Value| said(quantize, json!({ "skip": skip }), &encoder);
        assert_eq!(skip(json!(["attention.self", "layer.0"])), NONE);
        assert!(skip(json!("down_proj"))[0].starts_with("skip: no linear module is called"));
        assert_eq!(
            skip(json!("bert")),
            ["skip: nothing is left to be quantized"]
        );
        assert!(
            said(
                ia3,
                json!({ "targets": null, "feedforward": null }),
                &encoder
            )[0]
            .starts_with("targets: ")
        );
        // Of a model whose shape is not known nothing is said.
        let unknown = Summary::new();
        assert_eq!(
            said(lora, json!({ "targets": "qproj", "r": 800 }), &unknown),
            NONE
        );
    }

    #[test]
    fn parameters_that_are_not_there_are_told_where_whole_weights_are_trained() {
        let base = model(json!({ "adapter": null }));
        let of = |field: &str, value: Value| said(train, json!({ field: value }), &base);
        assert_eq!(of("train", json!("norms")), NONE);
        assert_eq!(of("train", json!(["layers.1", "*norm*"])), NONE);
        assert_eq!(of("train", json!({ "last_layers": 2 })), NONE);
        assert_eq!(of("learning_rates", json!({})), NONE);
        assert!(
            of("train", json!(["layers.2"]))[0].starts_with("train: no parameter of the model")
        );
        assert!(of("train", json!({ "last_layers": 3 }))[0].contains("but the model has 2"));
        assert!(of("learning_rates", json!({ "embed": 1.0 }))[0].starts_with("learning_rates: "));
        let score = json!({ "train": ["score"] });
        assert_eq!(said(train, score.clone(), &base).len(), 1);
        assert_eq!(said(train_reward_model, score, &base), NONE);
        let thin = model(json!({ "adapter": "lora" }));
        let rates = json!({ "learning_rates": { "lora_B": 1.0 } });
        assert_eq!(said(train, rates, &thin), NONE);
    }

    #[test]
    fn a_classifiers_head_has_the_names_of_its_files() {
        let base = model(json!({ "adapter": null }));
        let of = |fields: Value| said(train_classifier, fields, &base);
        let last = |train: Value| json!({ "pooling": "last", "hidden": [], "train": train });
        assert_eq!(of(last(json!(["score", "layers.1"]))), NONE);
        assert!(of(last(json!(["classifier"])))[0].starts_with("train: no parameter"));
        let rates = |pooling: &str, hidden: Value, name: &str| json!({ "pooling": pooling, "hidden": hidden, "learning_rates": { name: 1e-3 } });
        assert_eq!(of(rates("last", json!([]), "score.weight")), NONE);
        assert_eq!(of(rates("mean", json!([]), "head.0.weight")), NONE);
        assert_eq!(of(rates("last", json!([4]), "head.1.bias")), NONE);
        let wrong = of(rates("mean", json!([]), "haed.0"));
        assert!(
            wrong[0].starts_with("learning_rates: ") && wrong[0].contains("head.0"),
            "{wrong:?}"
        );
        let mut bert = encoder();
        let of = |fields: Value, bert: &Summary| said(train_classifier, fields, bert);
        let pooled = rates("pooler", json!([]), "classifier");
        // Whether there is a pooler is not known.
        let wrong = rates("pooler", json!([]), "score");
        assert_eq!(of(wrong.clone(), &bert), NONE);
        bert.insert(POOLER.to_owned(), json!(true));
        bert.insert(MASKED_HEAD.to_owned(), json!(false));
        assert_eq!(of(pooled, &bert), NONE);
        assert_eq!(of(wrong, &bert).len(), 1);
        let depth = json!({ "pooling": "pooler", "hidden": [], "train": { "last_layers": 3 } });
        assert!(of(depth, &bert)[0].contains("but the model has 2"));
    }
}

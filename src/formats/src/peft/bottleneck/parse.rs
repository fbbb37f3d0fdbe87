//! Reading of adapter_config.json as the package `adapters` writes it.

use super::{BottleneckConfig, MODEL_CLASSES, NonLinearity};
use crate::peft::fields::Fields;
use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

/// Fields of the method that are read.
const READ: [&str; 6] = [
    "mh_adapter",
    "non_linearity",
    "original_ln_before",
    "output_adapter",
    "reduction_factor",
    "scaling",
];

/// Fields that say nothing about what the stored adapter computes: where training started, and details of what is not there (layer norms,
/// hypercomplex layers, invertible adapters).
const SILENT: [&str; 15] = [
    "adapter_residual_before_ln",
    "factorized_phm_W",
    "factorized_phm_rule",
    "hypercomplex_nonlinearity",
    "init_weights",
    "init_weights_seed",
    "inv_adapter_reduction_factor",
    "learn_phm",
    "phm_bias",
    "phm_c_init",
    "phm_dim",
    "phm_init_range",
    "phm_rank",
    "shared_W_phm",
    "shared_phm_rule",
];

/// The widest model that is believed, and the largest factor.
const MAXIMUM: u64 = 1 << 31;

pub(super) fn from_object(object: &Map<String, Value>) -> Result<BottleneckConfig> {
    let fields = Fields(object);
    let need = |key: &str| -> Result<String> {
        fields
            .text(key)?
            .ok_or_else(|| anyhow!("{key} is missing: the package `adapters` writes it"))
    };
    let model_type = need("model_type")?;
    ensure!(
        model_type == "llama",
        "model_type is {model_type:?}; supported is \"llama\""
    );
    let version = need("version")?;
    ensure!(
        version.starts_with("adapters."),
        "version is {version:?}; supported are files of the package `adapters`: load the adapter with that and save it again"
    );
    let model_class = need("model_class")?;
    ensure!(
        MODEL_CLASSES.contains(&model_class.as_str()),
        "model_class is {model_class:?}; supported are {}",
        MODEL_CLASSES.join(", ")
    );
    let name = need("name")?;
    ensure!(
        !name.is_empty() && !name.contains('.'),
        "name is {name:?}; an adapter's name is not empty and has no dot"
    );
    let hidden_size = (fields.get("hidden_size"))
        .and_then(Value::as_u64)
        .filter(|width| (1..=MAXIMUM).contains(width))
        .ok_or_else(|| anyhow!("hidden_size should be the width of the model"))?;
    let Some(Value::Object(method)) = fields.get("config") else {
        bail!("config should be an object with the settings of the adapter");
    };
    let method = Fields(method);
    let word = (method.text("non_linearity")?)
        .ok_or_else(|| anyhow!("non_linearity is missing in config"))?;
    let config = BottleneckConfig {
        name,
        hidden_size: usize::try_from(hidden_size)?,
        model_class,
        model_name: fields.text("model_name")?.unwrap_or_default(),
        mh_adapter: method.flag("mh_adapter")?,
        output_adapter: method.flag("output_adapter")?,
        reduction_factor: reduction_factor(&method, hidden_size)?,
        non_linearity: NonLinearity::parse(&word)?,
        original_ln_before: method.flag("original_ln_before")?,
        scaling: scaling(&method)?,
    };
    ensure!(
        config.mh_adapter || config.output_adapter,
        "mh_adapter and output_adapter are both false: there is no adapter"
    );
    refuse_others(method.0, &config.method())?;
    Ok(config)
}

/// How much narrower the bottleneck is.
fn reduction_factor(method: &Fields<'_>, hidden: u64) -> Result<f64> {
    let value = method
        .get("reduction_factor")
        .ok_or_else(|| anyhow!("reduction_factor is missing in config"))?;
    ensure!(
        !value.is_object(),
        "reduction_factor is {value}, another one for each layer, which is not supported; supported is a number"
    );
    (value.as_f64())
        .filter(|factor| *factor > 0.0 && *factor <= MAXIMUM as f64)
        .filter(|factor| hidden as f64 / factor <= MAXIMUM as f64)
        .ok_or_else(|| anyhow!("reduction_factor should be a number above 0, but is {value}"))
}

/// A number; a trained one has tensors of its own.
fn scaling(method: &Fields<'_>) -> Result<f64> {
    match method.get("scaling") {
        Some(value) if value.is_string() => {
            bail!("scaling is {value}, which is not supported; supported is a number")
        }
        _ => method.number("scaling", 1.0),
    }
}

/// Refuses every other field that has not the value at which it does what is done here; `written` has those values.
fn refuse_others(method: &Map<String, Value>, written: &Value) -> Result<()> {
    let same = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    };
    for (key, value) in method {
        if READ.contains(&key.as_str()) || SILENT.contains(&key.as_str()) {
            continue;
        }
        match written.get(key) {
            Some(usual) if same(usual, value) => {}
            Some(usual) => {
                bail!("{key} is {value}, which is not supported; supported is {usual}")
            }
            None if value.is_null() => {}
            None => bail!(
                "{key} is {value}, which is not known here and may change what the adapter does"
            ),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn read(settings: &Value) -> Result<BottleneckConfig> {
        let path = Path::new("some/adapter_config.json");
        BottleneckConfig::from_json(&settings.to_string(), path)
    }

    #[test]
    fn settings_are_read_as_they_are_written() {
        for config in [
            BottleneckConfig::houlsby(576),
            BottleneckConfig::pfeiffer(32).scored(),
            BottleneckConfig {
                non_linearity: NonLinearity::GeluNew,
                reduction_factor: 4.5,
                scaling: 0.25,
                name: "tone".to_owned(),
                output_adapter: false,
                ..BottleneckConfig::houlsby(64)
            },
        ] {
            assert_eq!(read(&config.to_json()).unwrap(), config);
        }
        // What is absent has the package's value.
        let mut short = BottleneckConfig::houlsby(32).to_json();
        let needed = [
            "mh_adapter",
            "output_adapter",
            "reduction_factor",
            "non_linearity",
        ];
        let method = short["config"].as_object_mut().unwrap();
        method.retain(|key, _| needed.contains(&key.as_str()));
        assert_eq!(read(&short).unwrap(), BottleneckConfig::houlsby(32));
    }

    #[test]
    fn what_would_change_the_adapter_is_refused_by_name() {
        let config = BottleneckConfig::pfeiffer(32);
        for (key, value) in [
            ("is_parallel", json!(true)),
            ("use_gating", json!(true)),
            ("ln_before", json!(true)),
            ("ln_after", json!(true)),
            ("original_ln_after", json!(false)),
            ("residual_before_ln", json!("post_add")),
            ("residual_before_ln", json!(false)),
            ("phm_layer", json!(true)),
            ("inv_adapter", json!("nice")),
            ("cross_adapter", json!(true)),
            ("dropout", json!(0.1)),
            ("stochastic_depth", json!(0.1)),
            ("leave_out", json!([0])),
            ("scaling", json!("learned")),
            ("reduction_factor", json!({"0": 8, "default": 16})),
            ("reduction_factor", json!(0)),
            ("reduction_factor", json!(1e-300)),
            ("non_linearity", json!("mish")),
            ("non_linearity", Value::Null),
            ("architecture", json!("lora")),
            ("a_later_invention", json!(false)),
        ] {
            let mut settings = config.to_json();
            settings["config"][key] = value;
            let message = read(&settings).unwrap_err().to_string();
            assert!(
                message.starts_with("some/adapter_config.json: ") && message.contains(key),
                "{message}"
            );
        }
        for (key, value) in [
            ("model_type", json!("bert")),
            ("model_class", json!("LlamaModel")),
            ("version", Value::Null),
            ("version", json!("3.2.1")),
            ("name", json!("a.b")),
            ("hidden_size", json!(-1)),
            ("config", json!([])),
        ] {
            let mut settings = config.to_json();
            settings[key] = value;
            let message = read(&settings).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
        // Whole numbers are numbers, and what does not matter may be anything.
        let mut settings = config.to_json();
        for (key, value) in [
            ("dropout", json!(0)),
            ("scaling", json!(1)),
            ("init_weights", json!("mam_adapter")),
            ("phm_dim", json!(8)),
        ] {
            settings["config"][key] = value;
        }
        assert_eq!(read(&settings).unwrap(), config);
    }

    #[test]
    fn widths_are_those_of_python() {
        // hidden // factor in Python.
        for (hidden, factor, width) in [
            (32, 16.0, 2),
            (32, 9.0, 3),
            (576, 16.0, 36),
            (16, 32.0, 1),
            (1, 0.1, 9),
            (100, 4.5, 22),
            (32, 0.5, 64),
        ] {
            let config = BottleneckConfig {
                reduction_factor: factor,
                ..BottleneckConfig::houlsby(hidden)
            };
            assert_eq!(config.width(), width, "{hidden} // {factor}");
        }
    }
}

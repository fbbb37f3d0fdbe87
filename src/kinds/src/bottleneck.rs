//! `bottleneck`: a model → the same model with small networks between its layers to train.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Choice, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable, no_check,
};
use serde::Deserialize;

use crate::known::unadapted_language;
use crate::memory;
use crate::words::field;

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bottleneck {
    /// [`HOULSBY`] or `pfeiffer`.
    pub form: String,
    /// The width of the model over that of the bottleneck.
    pub reduction_factor: f64,
    /// What is between the two projections; that of the form unless given.
    pub non_linearity: Option<String>,
    /// Where the stream `init` starts.
    pub seed: u64,
}

/// The word of `form` for adapters behind both parts of a layer.
pub const HOULSBY: &str = "houlsby";

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "bottleneck",
    version: 1,
    about: "Attaches bottleneck adapters (Houlsby's or Pfeiffer's) to a frozen model: small networks behind the parts of each layer.",
    manual: "\
An adapter goes down from the model's width d to m = d / reduction_factor (rounded down, at least 1), through a non-linearity f, and up
again: A(z) = W_up f(W_down z + b_down) + b_up. Only adapters are trained. With x the residual stream and h what attention or the
feed-forward part made of it, a layer without adapter goes on with x + h. There are two forms:

- `pfeiffer`: behind the feed-forward part, x + h + A(x + h), with f = ReLU. 2dm + m + d trained numbers a layer.
- `houlsby`: behind attention and behind the feed-forward part, x + h + A(h), with f = swish (x · sigmoid(x)). Twice as many.

They are what the configurations `seq_bn` and `double_seq_bn` of AdapterHub's package `adapters` do in a Llama, with the defaults of that
package. Both papers have layer norms that follow each part; a Llama's stand before, and stay as they are. Weights start from a normal
distribution of deviation 0.02, drawn from the stream `init <parameter>` of the seed, and biases at 0 (`init_weights: bert`), so that the
model is at first nearly unchanged, but not quite: the reference of `dpo` or `ppo` is then the model with the fresh adapter. There is no
dropout in an adapter. Learning rates of 1.0e-4 to 1.0e-3 are usual. An adapter is not linear and can't be merged into weights.

The files are those of `adapters` 1.3: `adapter.safetensors` in f32 and `adapter_config.json`. A folder of `outputs` is opened by
`model.load_adapter(folder, use_safetensors=True)` after `adapters.init(model)`. PEFT has no such adapters, so `format: peft` is refused.

Source: Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, arXiv 1902.00751; Pfeiffer et al., *MAD-X*, arXiv 2005.00052, and
*AdapterFusion*, arXiv 2005.00247; Poth et al., *Adapters*, arXiv 2311.11077.",
    example: "narrow: { kind: bottleneck, model: base, form: pfeiffer, reduction_factor: 16 }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "form",
            FieldType::Choice(&[
                Choice { word: "pfeiffer", doc: "behind the feed-forward part, on the residual stream" },
                Choice { word: HOULSBY, doc: "behind attention and behind the feed-forward part, on what they made" },
            ]),
            Need::Default(Literal::Text("pfeiffer")),
            "Where adapters stand, and what they read.",
        ),
        field(
            "reduction_factor",
            FieldType::Number { min: 1.0, max: 65536.0, above: false },
            Need::Default(Literal::Number(16.0)),
            "The width of the model over that of the bottleneck.",
        ),
        field(
            "non_linearity",
            FieldType::Choice(&[
                Choice { word: "relu", doc: "max(0, x)" },
                Choice { word: "swish", doc: "x · sigmoid(x)" },
                Choice { word: "gelu", doc: "x · Φ(x)" },
                Choice { word: "gelu_new", doc: "the same, approximated by tanh" },
                Choice { word: "tanh", doc: "tanh(x)" },
            ]),
            Need::Optional,
            "What is between the two projections; `relu` of `pfeiffer` and `swish` of `houlsby` unless given.",
        ),
        field("seed", FieldType::Seed, Need::Optional, "Where the draw of the weights starts; the recipe's seed unless given."),
    ],
    ports: &[Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model to adapt." }],
    outputs: &[Output::new("model", ArtifactType::Model, "The model with its adapters, ready to train.")
        .keeps_tokenizer_of("model")
        .foreseen(memory::narrowed)],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: Some(unadapted_language),
    memory: None,
};

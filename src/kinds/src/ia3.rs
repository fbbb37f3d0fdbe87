//! `ia3`: a model → the same model with a trained number for each output or input of some layers.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, FieldType, Need, Output, Pool, Port, Repeatable};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::known::unadapted;
use crate::lora::Targets;
use crate::memory;
use crate::words::{field, twice};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ia3 {
    /// The layers; PEFT's for a Llama unless given.
    pub targets: Option<Targets>,
    /// Those whose inputs are scaled; the targets called `down_proj` unless given.
    pub feedforward: Option<Targets>,
}

/// Layers that are named twice.
fn fits(params: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let mut problems = twice(params, "targets");
    problems.extend(twice(params, "feedforward"));
    problems
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "ia3",
    version: 1,
    about: "Attaches an (IA)³ adapter to a frozen model: a number for each output, or input, of some layers.",
    manual: "\
For a linear layer y = W x + b the adapter makes y = l ⊙ (W x + b), with a trained number in l for each output; for a feedforward layer
y = W (l ⊙ x) + b, with one for each input. W and b stay frozen. l starts at 1, so that the model is at first unchanged, and nothing is
drawn. By default keys and values are scaled where they are made, and the inner activations of the MLP where `down_proj` reads them, as
in the paper and in PEFT: in a Llama of 135 million parameters 57,600 are then trained, some forty times fewer than by `lora` with r = 8.
They take larger learning rates, such as 3.0e-3. `weight_decay` spares l, which would otherwise be pulled towards 0, away from 1, where nothing is
changed; PEFT with transformers' trainer decays it. The files are PEFT's: `adapter_model.safetensors` in f32 and `adapter_config.json`.

Source: Liu et al., *Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning*, arXiv 2205.05638.",
    example: "scaled: { kind: ia3, model: base }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "targets",
            FieldType::Either(&[FieldType::Text, FieldType::List { of: &FieldType::Text, min: 1 }]),
            Need::Optional,
            "The layers, named as `targets` of `lora`; k_proj, v_proj and down_proj unless given.",
        ),
        field(
            "feedforward",
            FieldType::Either(&[FieldType::Text, FieldType::List { of: &FieldType::Text, min: 0 }]),
            Need::Optional,
            "Those of the targets whose inputs are scaled instead of their outputs; the ones called down_proj unless given.",
        ),
    ],
    ports: &[Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model to adapt." }],
    outputs: &[Output::new("model", ArtifactType::Model, "The model with its adapter, ready to train.")
        .keeps_tokenizer_of("model")
        .foreseen(|_, inputs| Some(memory::attached(inputs, "ia3")))],
    preparations: &[],
    layout: None,
    check: fits,
    check_inputs: Some(unadapted),
    memory: None,
};

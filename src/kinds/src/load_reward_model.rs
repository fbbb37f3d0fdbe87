//! `load_reward_model`: a reward model's files outside → a reward model in the cache.

use engine::artifact::ArtifactType;
use engine::contract::{Contract, FieldType, Literal, Need, Output, Pool, Repeatable, no_check};
use serde::Deserialize;

use crate::load_model::DTYPES;
use crate::words::{NUMBER, POSITIVE, field};

/// The word of config.json for what is subtracted from rewards.
pub const MEAN: &str = "reward_mean";

/// The word of config.json for what they are divided by then.
pub const DEVIATION: &str = "reward_deviation";

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRewardModel {
    /// As written; the files come with the job.
    pub source: serde_json::Value,
    /// `bf16` or `f32`.
    pub dtype: String,
    /// Subtracted from rewards.
    pub mean: Option<f64>,
    /// Rewards are divided by it.
    pub deviation: Option<f64>,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "load_reward_model",
    version: 1,
    about: "Reads a reward model with its tokenizer: a Hugging Face folder of a sequence classifier with one label.",
    manual: "\
Takes a folder as transformers saves `LlamaForSequenceClassification` with one label, which is what TRL's `RewardTrainer` and
`reward_model` make: `config.json`, `model.safetensors` (or its index and shards) with the weights of the blocks and the head `score.weight`
of one row, and `tokenizer.json`. An adapter is not a whole model: merge it into its base first (`merge_and_unload` of PEFT).

The reward of a completion is that of its last token, which is the end-of-text token: that is how both trainers see completions. Judges
give (r − `mean`) / `deviation`. Unless they are given, the two are what `reward_mean` and `reward_deviation` in `config.json` say, where
`reward_model` writes them, and else 0 and 1: then the coefficients of `ppo` and others mean what they mean for the raw rewards.",
    example: "judge: { kind: load_reward_model, source: models/rewards }",
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
            "dtype",
            DTYPES,
            Need::Default(Literal::Text("bf16")),
            "The type of the weights and activations in every stage that uses the model; the head is in f32 always.",
        ),
        field("mean", NUMBER, Need::Optional, "What is subtracted from rewards."),
        field("deviation", POSITIVE, Need::Optional, "What rewards are divided by then."),
    ],
    ports: &[],
    outputs: &[Output::new("model", ArtifactType::RewardModel, "The reward model.")],
    preparations: &[],
    layout: None,
    check: no_check,
    check_inputs: None,
    memory: None,
};

//! `sft`: supervised fine-tuning.

use engine::artifact::ArtifactType;
use engine::contract::{Arity, Contract, From, Output, Pool, Port, Preparation, Repeatable};
use serde::Deserialize;

use crate::known::trains;
use crate::lists::fields;
use crate::memory;
use crate::training::{RUNNING, Training, fits, learning};
use crate::words::{LOSS_ON, MAX_LENGTH, TOKENIZE_FIELDS, TRUNCATION, words};

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
pub struct Sft {
    /// What every training has.
    #[serde(flatten)]
    pub training: Training,
    /// See `tokenize`.
    pub max_length: usize,
    /// See `tokenize`.
    pub truncation: String,
    /// See `tokenize`.
    pub loss_on: String,
}

/// The contract.
pub const CONTRACT: Contract = Contract {
    kind: "sft",
    version: 3,
    about: "Trains a model on rows by next-token prediction (supervised fine-tuning).",
    manual: "\
Minimises the mean over the counted tokens of −log p(token | what comes before), taken over the whole batch: the sum over all
micro-batches divided by their number of counted tokens, so that `micro_batch` changes the last bits only. With an adapter only
the adapter is trained; without one, every weight is, or what `train` says: norms, biases, the head, parameters by their names, or the last layers
with the final norm and a head that is not the embedding. What is frozen keeps its numbers, in the model's `dtype`.

AdamW (Loshchilov and Hutter, arXiv 1711.05101) with states in f32: with g the gradient after clipping, m ← β₁m + (1−β₁)g,
v ← β₂v + (1−β₂)g², w ← w − η(λw + m̂/(√v̂ + ε)). `optimizer` has two others:

- `adamw_8bit` (Dettmers et al., arXiv 2110.02861): the same with m and v in eight bits, in blocks of 256 values along the flat weight, each with its
  largest magnitude in f32, to the nearest of 256 values that are dense near 0, as bitsandbytes has them; a tensor of fewer than 4096 values keeps
  them in f32. m and v then take 2 bytes a trained number instead of 8. On a GPU it is composed of libtorch's operators.
- `adafactor` (Shazeer and Stern, arXiv 1804.04235) with the rate from here (transformers' `scale_parameter=False, relative_step=False`): no m; of a
  matrix only the means R of the rows and C of the columns of v are kept, with β₂ = 1 − t^−0.8 in step t, u = g / √(R Cᵀ / mean R),
  w ← w − η(λw + u / max(1, rms u)). `beta1`, `beta2` and `epsilon` are AdamW's.

Weights in bf16 are rounded from a copy in f32, which takes 4 bytes more, whatever the optimizer. With `optimizer_state: host` m, v and that copy lie in
the host's memory and visit the GPU for their step, one weight at a time (after QLoRA's paged optimizers). `weight_decay` spares norms, biases, the
numbers of (IA)³, the lengths of DoRA and virtual tokens. The rate η rises in a line from 0 over `warmup` of
the steps, then follows `schedule`. With `layer_decay` d, layer i of L (the last is layer L) learns at the rate η d^(L−i), the embedding at η d^L, and
what comes after the layers at η (discriminative fine-tuning: Howard and Ruder, arXiv 1801.06146, with d = 1/2.6; Clark et al., arXiv 2003.10555);
a parameter that `learning_rates` names has its own rate in the place of `learning_rate`. With `unfreeze_every` s (gradual unfreezing, section 3.3 of the
former) layer i begins in step s (L−i), counted from 0, the embedding (and with it a head that is the embedding) in step s L, and what comes after the
layers at once; where `train` leaves depths out, the others take the turns one after the other. Until its turn a parameter has no gradient, no step and
no decay, and nothing is computed backwards below the lowest one that has begun; its AdamW then counts steps from its own first. An adapter's parameters
have the turns of their layers. The rows of an epoch are a permutation drawn from the
stream `shuffle` of the seed; a last batch that is not full is trained as it is.

A setting that would do nothing is refused, by `check` where the recipe shows it and otherwise before the first step: a rate that every trained
parameter has another for, a pattern that a longer one leaves nothing, `layer_decay` or `unfreeze_every` where one depth is trained, `weight_decay` where
nothing decays.

A killed or stopped training goes on from its last snapshot, and ends with the same bytes as one that was left alone.",
    example: "tuned: { kind: sft, model: thin, data: halves.train, learning_rate: 2.0e-4, epochs: 1 }",
    pool: Pool::Torch,
    repeatable: Repeatable::Deterministic,
    fields: fields![
        &learning(2e-4),
        &[MAX_LENGTH, TRUNCATION, LOSS_ON],
        &RUNNING,
    ],
    ports: &[
        Port { name: "model", accepts: &[ArtifactType::Model], arity: Arity::One, layouts: &[], doc: "The model to train." },
        Port {
            name: "data",
            accepts: &[ArtifactType::Dataset],
            arity: Arity::One,
            layouts: &["text", "prompt-completion", "messages"],
            doc: "The rows to train on.",
        },
    ],
    outputs: &[
        Output::new("model", ArtifactType::Model, "The trained model.").keeps_tokenizer_of("model").foreseen(memory::same),
        Output::new("metrics", ArtifactType::Metrics, "Loss, rate and gradient norm of each step.")
            .metrics(|_, _| words(&["first_loss", "last_loss", "steps", "tokens"])),
    ],
    preparations: &[Preparation {
        name: "tokens",
        kind: "tokenize",
        inputs: &[("tokenizer", From::TokenizerOf("model")), ("data", From::Port("data"))],
        fields: &TOKENIZE_FIELDS,
        replaces: &["data"],
    }],
    layout: None,
    check: fits,
    check_inputs: Some(trains),
    memory: Some(memory::of_rows),
};
